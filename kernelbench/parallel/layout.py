"""Which rank has which tokens of packed documents: zigzag, in 2W chunks a document for W ranks.

Shapes: T tokens of all documents, L rows of a rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from operator import index
from typing import Any

import torch
from torch import Tensor

from kernelbench.kernels.launch import ceil_div
from kernelbench.kernels.zigzag_attention.lengths import owners_of
from kernelbench.kernels.zigzag_attention.parts import Joined
from kernelbench.parallel.collectives import all_gather_single


@dataclass(frozen=True)
class ZigzagLayout:
    """Documents of so many tokens over `ranks`; owners: who has a document whole, None for one that
    is cut.

    A document that is cut is padded to a multiple of 2W rows, and rank r has its chunks r and
    2W−1−r. A rank's rows: of each document that is cut, in order, its early and its late chunk;
    then the documents that it has whole, in order.
    """

    lengths: tuple[int, ...]
    owners: tuple[int | None, ...]
    ranks: int

    @staticmethod
    def of(lengths: Sequence[int], ranks: int, least: int = 64) -> "ZigzagLayout":
        """The layout in which documents whose chunks would have fewer than `least` rows are whole,
        see `owners_of`.

        Raises TypeError for lengths that are not whole numbers, ValueError as `owners_of` does.
        """
        whole = _whole(lengths)
        return ZigzagLayout(whole, owners_of(whole, ranks, least), ranks)

    @cached_property
    def cut(self) -> tuple[int, ...]:
        """The rows, with what is padded, of each document that is cut."""
        chunks = 2 * self.ranks
        pairs = zip(self.lengths, self.owners, strict=True)
        return tuple(ceil_div(n, chunks) * chunks for n, owner in pairs if owner is None)

    @property
    def cut_rows(self) -> int:
        """A rank's rows of documents that are cut: its first."""
        return sum(self.cut) // self.ranks

    def whole(self, rank: int) -> tuple[int, ...]:
        """The lengths of the documents that a rank has whole."""
        return tuple(n for n, owner in zip(self.lengths, self.owners, strict=True) if owner == rank)

    def rows(self, rank: int) -> Tensor:
        """Which token each of a rank's rows is, (L,) of int64; −1 for what is padded."""
        return _rows(self, rank)

    def padding(self, rank: int, device: torch.device) -> Tensor | None:
        """Which of a rank's rows are padded, (L,) of bool; None where none is."""
        return _padding(self, rank, device)

    def joined(self, device: torch.device) -> Joined:
        """The documents that are cut, for the kernels."""
        return _joined(self, device)

    def whole_starts(self, rank: int, device: torch.device) -> Tensor:
        """cu_seqlens of the documents that a rank has whole."""
        return _whole_starts(self, rank, device)

    def shard(self, x: Tensor, rank: int, dim: int = 0, fill: float = 0) -> Tensor:
        """A rank's rows of x, whose axis `dim` is all tokens; `fill` for what is padded."""
        if x.shape[dim] != sum(self.lengths):
            raise ValueError(
                f"shard takes all {sum(self.lengths)} tokens along axis {dim}, got {x.shape[dim]}"
            )
        some = x.index_select(dim, self.rows(rank).clamp(min=0).to(x.device))
        padding, shape = self.padding(rank, x.device), [1] * x.dim()
        shape[dim] = -1
        return some if padding is None else some.masked_fill(padding.view(shape), fill)

    @cached_property
    def most_rows(self) -> int:
        """Of the rank that has most: to so many rows all are padded to be gathered."""
        return max(len(self.rows(rank)) for rank in range(self.ranks))

    def gathered(self, device: torch.device) -> Tensor:
        """Where each token lies when `most_rows` of every rank are gathered, rank after rank, (T,)
        of int64."""
        return _gathered(self, device)

    def unshard(self, local: Tensor, group: Any = None, dim: int = 0) -> Tensor:
        """All tokens in order, on every rank, from each rank's rows; without gradients. One rank
        needs no group."""
        moved = local.detach().movedim(dim, 0)
        every = padded = moved.new_zeros(self.most_rows, *moved.shape[1:])
        padded[: len(moved)] = moved
        if self.ranks > 1:
            every = padded.new_empty(self.ranks * len(padded), *padded.shape[1:])
            all_gather_single(every, padded, group=group)
        return every.index_select(0, self.gathered(local.device)).movedim(0, dim)


def _whole(lengths: Any) -> tuple[int, ...]:
    try:
        given = tuple(lengths)
        if any(isinstance(n, (bool, Tensor)) for n in given):
            raise TypeError
        return tuple(map(index, given))
    except TypeError:
        raise TypeError(
            f"ZigzagLayout takes lengths as a sequence of whole numbers, got {lengths!r}"
        ) from None


@lru_cache(maxsize=256)
def _rows(layout: ZigzagLayout, rank: int) -> Tensor:
    cut, whole = [], []
    starts = accumulate((0, *layout.lengths))
    for start, length, owner in zip(starts, layout.lengths, layout.owners, strict=False):
        if owner == rank:
            whole.append(torch.arange(start, start + length))
        if owner is not None:
            continue
        chunk = ceil_div(length, 2 * layout.ranks)
        for number in (rank, 2 * layout.ranks - 1 - rank):
            position = torch.arange(number * chunk, (number + 1) * chunk)
            cut.append(torch.where(position < length, start + position, -1))
    return torch.cat([*cut, *whole, torch.empty(0, dtype=torch.int64)])


@lru_cache(maxsize=256)
def _gathered(layout: ZigzagLayout, device: torch.device) -> Tensor:
    place = torch.empty(sum(layout.lengths), dtype=torch.int64)
    for rank in range(layout.ranks):
        rows = layout.rows(rank)
        real = (rows >= 0).nonzero()[:, 0]
        place[rows[real]] = rank * layout.most_rows + real
    return place.to(device)


@lru_cache(maxsize=256)
def _padding(layout: ZigzagLayout, rank: int, device: torch.device) -> Tensor | None:
    padded = _rows(layout, rank) < 0
    return padded.to(device) if padded.any() else None


@lru_cache(maxsize=256)
def _joined(layout: ZigzagLayout, device: torch.device) -> Joined:
    real = [n for n, owner in zip(layout.lengths, layout.owners, strict=True) if owner is None]
    chunks = [rows // (2 * layout.ranks) for rows in layout.cut]
    return Joined(*(_starts(each, device) for each in (chunks, real, layout.cut)))


@lru_cache(maxsize=256)
def _whole_starts(layout: ZigzagLayout, rank: int, device: torch.device) -> Tensor:
    return _starts(layout.whole(rank), device)


def _starts(lengths: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
