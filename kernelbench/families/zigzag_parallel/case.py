"""Zigzag attention over ranks: one point of a sweep, which rows each rank has, and its inputs."""

from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch

from kernelbench.families._documents import Documents, lengths_of
from kernelbench.families._ranks import own_rank
from kernelbench.kernels.launch import ceil_div
from kernelbench.parallel import ZigzagLayout
from kernelbench.spec import Case, Draw, Mode, Tensors, axis


class Order(StrEnum):
    """zigzag: a rank has an early and a late chunk of each document, or it whole. contiguous: as
    many of all tokens, in order; later ranks have more to do."""

    zigzag = "zigzag"
    contiguous = "contiguous"


@dataclass(frozen=True)
class Contiguous(ZigzagLayout):
    """The rows of `Order.contiguous`, and where they lie when they are gathered; nothing else of
    its base has a meaning here."""

    def rows(self, rank: int) -> torch.Tensor:
        share = sum(self.lengths) // self.ranks
        return torch.arange(rank * share, (rank + 1) * share)


@dataclass(frozen=True, kw_only=True)
class ParallelCase(Case):
    """q (N,Hq,D), k and v (N,Hk,D) of all ranks, from which each takes its rows."""

    world: int = axis("ranks, each a GPU of its own, that share all documents")
    N: int = axis("tokens of all documents, of all ranks")
    Hq: int = axis("heads of q")
    Hk: int = axis("heads of k and v")
    D: int = axis("head size")
    documents: Documents = axis("what N tokens are packed of: lists of lengths", Documents.none)
    least: int = axis("rows a chunk, with fewer of which a document goes whole to one rank", 64)
    order: Order = axis("which rows a rank has", Order.zigzag)

    def __post_init__(self) -> None:
        if min(self.world, self.N, self.Hq, self.Hk, self.D, self.least) < 1:
            raise ValueError("world, N, Hq, Hk, D and least must be at least 1")
        if self.Hq % self.Hk:
            raise ValueError(f"Hk divides Hq, got {self.Hk} and {self.Hq}")
        if self.order == Order.contiguous and self.N % self.world:
            raise ValueError(
                f"in contiguous order ranks have as many rows each: N must be a multiple of world, "
                f"got {self.N} and {self.world}"
            )
        for rank in range(self.world):
            if not pieces(self.layout, rank):
                raise ValueError(
                    f"rank {rank} of {self.world} would have none of {self.N} tokens in "
                    f"{len(self.layout.lengths)} documents: take more, or a smaller `least`"
                )

    @property
    def layout(self) -> ZigzagLayout:
        lengths = lengths_of(self.documents, self.N)
        if self.order == Order.contiguous:
            return Contiguous(lengths, (None,) * len(lengths), self.world)
        return ZigzagLayout.of(lengths, self.world, self.least)

    @property
    def cut_tokens(self) -> int:
        """Of documents that several ranks have, with what is padded."""
        if self.order == Order.zigzag:
            return self.layout.cut_rows * self.world
        share = self.N // self.world
        spans = pairwise(accumulate((0, *self.layout.lengths)))
        return sum(end - start for start, end in spans if start // share < (end - 1) // share)

    @property
    def rank(self) -> int:
        return own_rank()

    @property
    def pairs(self) -> int:
        """Queries by the keys that each sees, of one head, of all ranks."""
        return sum(n * (n + 1) // 2 for n in self.layout.lengths)


class Piece(NamedTuple):
    """Rows of a document that a rank has: the first of them among its rows, how many, the position
    of the first in the document, and where the document begins among all tokens."""

    row: int
    rows: int
    first: int
    start: int

    @property
    def end(self) -> int:
        """The position behind the last of them: how many keys that one sees."""
        return self.first + self.rows


def pieces(layout: ZigzagLayout, rank: int) -> list[Piece]:
    """All that a rank has, but for what is padded, in the order of its rows."""
    if isinstance(layout, Contiguous):
        return _contiguous_pieces(layout, rank)
    cut, whole, row = list[Piece](), list[Piece](), 0
    chunks, behind = 2 * layout.ranks, layout.cut_rows
    starts = accumulate((0, *layout.lengths))
    for start, length, owner in zip(starts, layout.lengths, layout.owners, strict=False):
        if owner == rank:
            whole.append(Piece(behind, length, 0, start))
            behind += length
        if owner is not None:
            continue
        chunk = ceil_div(length, chunks)
        for number in (rank, chunks - 1 - rank):
            first = min(number * chunk, length)
            cut.append(Piece(row, min(chunk, length - first), first, start))
            row += chunk
    return [piece for piece in (*cut, *whole) if piece.rows]


def _contiguous_pieces(layout: Contiguous, rank: int) -> list[Piece]:
    share = sum(layout.lengths) // layout.ranks
    low, high = rank * share, (rank + 1) * share
    found = []
    for start, end in pairwise(accumulate((0, *layout.lengths))):
        first, last = max(start, low), min(end, high)
        if first < last:
            found.append(Piece(first - low, last - first, first - start, start))
    return found


def rows_of(case: ParallelCase, device: torch.device) -> torch.Tensor:
    """Which token each of this rank's rows is; any for what is padded."""
    return case.layout.rows(case.rank).clamp(min=0).to(device)


def inputs(case: ParallelCase, draw: Draw) -> Tensors:
    tensors = {"q": draw(case.N, case.Hq, case.D)}
    tensors |= {name: draw(case.N, case.Hk, case.D) for name in ("k", "v")}
    if case.mode is not Mode.fwd:
        whole = draw(case.N, case.Hq, case.D)
        tensors["grad_o"] = whole[rows_of(case, whole.device)]
    return tensors


def shards(case: ParallelCase, a: Tensors) -> Tensors:
    """This rank's rows of q, k and v."""
    return {name: a[name].index_select(0, rows_of(case, a[name].device)) for name in "qkv"}
