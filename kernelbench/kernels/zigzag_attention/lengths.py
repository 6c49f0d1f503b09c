"""What lengths of documents may be: checked once for each tensor, on the CPU.

A document of P keys, what is padded included, is cut into 2W chunks of c = ⌈P/2W⌉ rows, of which
the last may be shorter, or empty. Rank r of W has chunks r and 2W−1−r.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from kernelbench.kernels.launch import ceil_div


class How(NamedTuple):
    """What is computed, apart from sizes: which two chunks of how many, and what else
    `zigzag_attention` is told."""

    early: int
    late: int
    chunks: int
    scale: float | None = None
    causal: bool = True
    zigzag: bool = False


@dataclass(frozen=True, eq=False)
class Starts:
    """The values of a tensor of cu_seqlens, and its name. Compared by identity, so that they are
    cheap keys."""

    name: str
    values: tuple[int, ...]

    def lengths(self) -> list[int]:
        return [end - start for start, end in pairwise(self.values)]


_KNOWN: WeakIdKeyDictionary = WeakIdKeyDictionary()


def values_of(name: str, tensor: Tensor, anew: bool) -> Starts:
    """The tensor's values, read once as long as nothing writes to it, unless `anew`."""
    unversioned = tensor.is_inference()  # nobody sees writes to it
    version = 0 if unversioned else tensor._version
    known = _KNOWN.get(tensor)
    if anew or unversioned or known is None or known[0] != version:
        known = version, tuple(tensor.tolist()), {}
        _KNOWN[tensor] = known
    _, values, named = known
    if name not in named:
        named[name] = Starts(name, values)
    starts: Starts = named[name]
    return starts


def readable(*tensors: Tensor | None) -> bool:
    """Whether the values of tensors are there to be read, now."""
    there = [tensor for tensor in tensors if tensor is not None]
    if any(tensor.is_meta for tensor in there):
        return False
    return not (there[0].is_cuda and torch.cuda.is_current_stream_capturing())


@lru_cache(maxsize=1024)
def check_lengths(
    early: Starts,
    late: Starts,
    keys: Starts,
    padded: Starts | None,
    how: How,
    rows: tuple[int | None, int | None, int],
) -> None:
    """Raise ValueError unless documents are cut as `zigzag_attention` says. rows: of q0, q1 and k,
    None for any."""
    lying = keys if padded is None else padded
    for starts, end in zip((early, late, lying), rows, strict=True):
        check_rising(starts)
        if end is not None and starts.values[-1] != end:
            raise ValueError(
                f"zigzag_attention takes {starts.name} that ends at the number of rows, {end}, got "
                f"{starts.values[-1]}"
            )
    check_rising(keys)
    lengths = zip(early.lengths(), late.lengths(), keys.lengths(), lying.lengths(), strict=True)
    for number, (first, second, real, most) in enumerate(lengths):
        if real > most:
            raise ValueError(
                f"zigzag_attention takes documents no longer than {lying.name} has room for, got "
                f"{real} keys in {most} rows in document {number}"
            )
        wanted = (
            rows_of_chunk(most, how.early, how.chunks),
            rows_of_chunk(most, how.late, how.chunks),
        )
        if how.zigzag and most % how.chunks:
            raise ValueError(
                "zigzag_attention takes keys in zigzag order of documents that are padded to a "
                f"multiple of total_chunks, {how.chunks}, got {most} rows in document {number}: "
                "pass cu_seqlens_padded"
            )
        whole = not how.zigzag and (first, second) in ((most, 0), (0, 0))
        if (first, second) != wanted and not whole:
            other = "" if how.zigzag else f", or all {most} of it as q0's, or none"
            raise ValueError(
                f"zigzag_attention takes chunks {how.early} and {how.late} of "
                f"{how.chunks} of document {number}, of {most} keys, with {wanted[0]} and "
                f"{wanted[1]} rows{other}, got {first} and {second}"
            )


def check_rising(starts: Starts, function: str = "zigzag_attention") -> None:
    """Raise ValueError unless they begin at 0 and do not fall."""
    if starts.values[0] != 0:
        raise ValueError(f"{function} takes {starts.name} from 0 on, got {starts.values[0]}")
    if any(length < 0 for length in starts.lengths()):
        raise ValueError(
            f"{function} takes {starts.name} that does not fall, got {list(starts.values)}"
        )


def rows_of_chunk(length: int, number: int, chunks: int) -> int:
    """The rows of a chunk of a document that is cut into so many."""
    chunk = ceil_div(length, chunks)
    return max(0, min(chunk, length - number * chunk))


def owners_of(lengths: Sequence[int], ranks: int, least: int = 64) -> tuple[int | None, ...]:
    """Which rank gets a document whole, None for one that is cut for all.

    A document whose chunks would have fewer than `least` rows is not worth cutting: its tiles would
    be mostly empty. The longest of them first, each goes to the rank with the least work so far,
    which is L² for L keys, to the first of these. Raises ValueError for no rank, and for lengths
    below 0.
    """
    if ranks < 1 or any(length < 0 for length in lengths):
        raise ValueError(
            f"owners_of takes ranks from 1 on and lengths from 0 on, got {ranks} and {lengths}"
        )
    owners: list[int | None] = [None] * len(lengths)
    work = [0] * ranks
    short = [s for s, length in enumerate(lengths) if ceil_div(length, 2 * ranks) < least]
    for s in sorted(short, key=lambda s: -lengths[s]):
        rank = min(range(ranks), key=lambda rank: work[rank])
        owners[s] = rank
        work[rank] += lengths[s] ** 2
    return tuple(owners)


def chunk_rows(
    starts: Tensor, lying: Tensor, number: int, chunks: int, gathered: int | None = None
) -> Tensor:
    """Which rows of all keys a chunk has, (T,) of int64, for a chunk of each document that begins
    at `starts`, (S+1,), and its keys, what is padded included, at `lying`.

    gathered: how many rows there are where they lie in zigzag order, see `zigzag_attention`.
    """
    T = values_of("starts", starts, False).values[-1]
    row = torch.arange(T, device=starts.device)
    document = torch.searchsorted(starts, row, right=True) - 1
    rows, padded = (x.diff().long()[document] for x in (starts, lying))
    begin = lying.long()[document]
    chunk = -(-padded // chunks)
    within = row - starts[document]
    position = within + torch.where(rows == padded, 0, number * chunk)
    if gathered is None:
        return begin + position
    return _row_in_zigzag(position, chunk, begin, chunks // 2, gathered)


def _row_in_zigzag(
    position: Tensor, chunk: Tensor, begin: Tensor, ranks: int, gathered: int
) -> Tensor:
    """The row of a key by its position in its document, which begins at row `begin` in order."""
    number = position // chunk.clamp(min=1)
    late = number >= ranks
    rank = torch.where(late, 2 * ranks - 1 - number, number)
    within = position - number * chunk + torch.where(late, chunk, 0)
    return rank * (gathered // ranks) + begin // ranks + within
