"""Lengths of documents that are packed one after another, as a training batch has them."""

import random
from enum import StrEnum
from functools import cache

# Of documents up to so many tokens, the share: quoted from MagiAttention's charts of the lengths in
# its training corpus (47 % up to 500, 87 % up to 2k, a tail to 64k), the ends assumed.
_CORPUS = ((16, 0.0), (500, 0.47), (2048, 0.87), (65536, 1.0))
# Shares of the whole. Uneven and five: those of ring-flash-attention's benchmark, of 8192.
_SHARES = {
    "four": (1, 1, 1, 1),
    "mixed": (32, 32, 16, 16, 8, 8, 6, 5, 4, 1),
    "two": (1, 1),
    "uneven": (8, 231, 17),
    "five": (97, 100, 50, 5, 4),
}


class Documents(StrEnum):
    """How a sequence of N tokens is cut into documents.

    none: it is not; each of B samples is one sequence. four: four of one length. mixed: ten, from
    1/128 to 1/4 of N. two: of one length. uneven: of 1/32 to 9/10 of N. five: of 1/64 to 2/5.
    corpus: drawn from a corpus' histogram, always the same for an N.
    """

    none = "none"
    four = "four"
    mixed = "mixed"
    two = "two"
    uneven = "uneven"
    five = "five"
    corpus = "corpus"


@cache
def lengths_of(documents: Documents, N: int) -> tuple[int, ...]:
    """The lengths, which add up to N; the last one is what is left."""
    if documents == Documents.none:
        return (N,)
    if documents == Documents.corpus:
        return tuple(_drawn(N))
    shares = _SHARES[documents]
    lengths = [N * share // sum(shares) for share in shares]
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
