"""Zigzag attention: one point of a sweep, what its rank holds, and its inputs."""

from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from itertools import accumulate
from typing import NamedTuple

import torch

from kernelbench.families._documents import Documents, lengths_of
from kernelbench.spec import Case, Draw, Mode, Tensors, axis

CHUNKS = ("0", "1")  # the early one, and the late one


class Order(StrEnum):
    """sequence: documents one after another. zigzag: each rank's two chunks of every document, rank
    after rank."""

    sequence = "sequence"
    zigzag = "zigzag"


class Piece(NamedTuple):
    """A rank's rows of a document: how many, the position of the first in the document; where that
    begins among the keys, and its keys."""

    rows: int
    first: int
    start: int
    keys: int

    @property
    def end(self) -> int:
        """The first position behind its rows: how many keys its last row sees, where causal."""
        return self.first + self.rows if self.rows else 0


@dataclass(frozen=True, kw_only=True)
class ZigzagCase(Case):
    """q0 (T0,Hq,D), q1 (T1,Hq,D), k and v (N,Hk,D), cu_seqlens of q0, q1 and k, (S+1,) in int32."""

    W: int = axis("ranks that share all documents; one of them is measured")
    rank: int = axis("which of them")
    N: int = axis("tokens of all documents, of all ranks")
    Hq: int = axis("heads of q")
    Hk: int = axis("heads of k and v")
    D: int = axis("head size")
    causal: bool = axis("a query sees the keys up to its own position", True)
    documents: Documents = axis("what N tokens are packed of: lists of lengths", Documents.none)
    order: Order = axis("how the keys lie", Order.sequence)
    least: int = axis("rows a chunk, with fewer of which a document goes whole to one rank", 0)

    def __post_init__(self) -> None:
        if min(self.W, self.N, self.Hq, self.Hk, self.D) < 1 or self.least < 0:
            raise ValueError("W, N, Hq, Hk and D must be at least 1, least at least 0")
        if not 0 <= self.rank < self.W:
            raise ValueError(f"rank must be from 0 to W − 1, here {self.W - 1}, got {self.rank}")
        if self.Hq % self.Hk:
            raise ValueError(f"Hk must divide Hq, got {self.Hk} and {self.Hq}")
        if self.order == Order.zigzag:
            odd = [length for length in self.lengths if length % (2 * self.W)]
            if odd or self.least:
                raise ValueError(
                    f"zigzag order takes documents that are all cut, of multiples of 2W = "
                    f"{2 * self.W} tokens, got least {self.least}, lengths {list(self.lengths)}"
                )
        if not any(piece.rows for pieces in self.pieces for piece in pieces):
            raise ValueError(f"rank {self.rank} of {self.W} has no row of {self.lengths}")

    @property
    def lengths(self) -> tuple[int, ...]:
        """Of the documents."""
        return lengths_of(self.documents, self.N)

    @property
    def numbers(self) -> tuple[int, int]:
        """Of the rank's chunks, of 2W."""
        return self.rank, 2 * self.W - 1 - self.rank

    @property
    def pieces(self) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
        """The early rows of each document, and the late ones."""
        early, late = (_pieces(self, number) for number in self.numbers)
        return early, late

    @property
    def rows(self) -> tuple[int, int]:
        """Of q0 and q1."""
        early, late = (sum(piece.rows for piece in pieces) for pieces in self.pieces)
        return early, late

    @property
    def pairs(self) -> int:
        """Queries by the keys that each sees, of one head."""
        every = [piece for pieces in self.pieces for piece in pieces]
        if not self.causal:
            return sum(piece.rows * piece.keys for piece in every)
        return sum(p.rows * p.first + p.rows * (p.rows + 1) // 2 for p in every)

    def sees(self, piece: Piece) -> int:
        """How many keys of its document any row of a piece sees."""
        return piece.end if self.causal else piece.keys * (piece.rows > 0)

    def seen(self, chunk: int) -> int:
        """Keys that any row of the early (0) or the late (1) chunks sees."""
        return sum(map(self.sees, self.pieces[chunk]))

    @property
    def seen_by_any(self) -> int:
        """Keys that any row sees."""
        return sum(max(map(self.sees, pair)) for pair in zip(*self.pieces, strict=True))


@cache
def _pieces(case: ZigzagCase, number: int) -> tuple[Piece, ...]:
    """A chunk of each document; all of one that the rank has whole."""
    lengths, chunks = case.lengths, 2 * case.W
    owners: tuple[int | None, ...] = (None,) * len(lengths)
    if case.least:
        from kernelbench.kernels.zigzag_attention.lengths import owners_of

        owners = owners_of(lengths, case.W, case.least)
    pieces = []
    for start, length, owner in zip(accumulate((0, *lengths)), lengths, owners, strict=False):
        size = -(-length // chunks)
        first = min(number * size, length)
        rows = min(size, length - first)
        if owner is not None:
            first, rows = 0, length if (owner, number) == (case.rank, case.rank) else 0
        pieces.append(Piece(rows, first, start, length))
    return tuple(pieces)


@cache
def places(case: ZigzagCase) -> torch.Tensor:
    """Where each key lies, (N,), of those in order."""
    if case.order == Order.sequence:
        return torch.arange(case.N)
    place = torch.empty(case.N, dtype=torch.int64)
    at = 0
    for rank in range(case.W):
        for start, length in zip(accumulate((0, *case.lengths)), case.lengths, strict=False):
            size = length // (2 * case.W)
            for number in (rank, 2 * case.W - 1 - rank):
                first = start + number * size
                place[first : first + size] = torch.arange(at, at + size)
                at += size
    return place


def inputs(case: ZigzagCase, draw: Draw) -> Tensors:
    T0, T1 = case.rows
    tensors = {"q0": draw(T0, case.Hq, case.D), "q1": draw(T1, case.Hq, case.D)}
    tensors |= {name: draw(case.N, case.Hk, case.D) for name in ("k", "v")}
    lengths = [[piece.rows for piece in pieces] for pieces in case.pieces]
    for name, each in zip(("q0", "q1", "k"), (*lengths, case.lengths), strict=True):
        starts = torch.tensor([0, *accumulate(each)], dtype=torch.int32)
        tensors[f"cu_seqlens_{name}"] = starts.to(draw.device)
    if case.mode is not Mode.fwd:
        tensors |= {"grad_o0": draw(T0, case.Hq, case.D), "grad_o1": draw(T1, case.Hq, case.D)}
    return tensors
