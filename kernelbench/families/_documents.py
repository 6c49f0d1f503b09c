"""Lengths of documents that are packed one after another, as a training batch has them."""

import random
from enum import StrEnum
from functools import cache

# Of documents up to so many tokens, the share: quoted from MagiAttention's charts of the lengths in
# its training corpus (47 % up to 500, 87 % up to 2k, a tail to 64k), the ends assumed.
_CORPUS = ((16, 0.0), (500, 0.47), (2048, 0.87), (65536, 1.0))
_MIXED = (8192, 8192, 4096, 4096, 2048, 2048, 1536, 1280, 1024, 256)  # of 32768


class Documents(StrEnum):
    """How a sequence of N tokens is cut into documents.

    none: it is not; each of B samples is one sequence. four: four of one length. mixed: ten, from
    1/128 to 1/4 of N. corpus: drawn from a corpus' histogram, always the same for an N.
    """

    none = "none"
    four = "four"
    mixed = "mixed"
    corpus = "corpus"


@cache
def lengths_of(documents: Documents, N: int) -> tuple[int, ...]:
    """The lengths, which add up to N; the last one is what is left."""
    if documents == Documents.none:
        return (N,)
    if documents == Documents.corpus:
        return tuple(_drawn(N))
    shares = _MIXED if documents == Documents.mixed else (8192,) * 4
    lengths = [N * share // 32768 for share in shares]
    lengths[-1] += N - sum(lengths)
    return tuple(lengths)


def _drawn(N: int) -> list[int]:
    """Log-uniform between the quantiles that are known."""
    generator, lengths = random.Random(0), list[int]()
    while (left := N - sum(lengths)) > 0:
        share = generator.random()
        above = next(i for i, (_, below) in enumerate(_CORPUS) if share <= below and i > 0)
        (low, first), (high, last) = _CORPUS[above - 1 : above + 1]
        length = low * (high / low) ** ((share - first) / (last - first))
        lengths.append(min(left, round(length)))
    return lengths
