"""Dilated attention: one point of a sweep, which positions its branches keep, and its inputs."""

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from kernelbench.nn.branches import Piece, heads_of, pieces_of
from kernelbench.spec import Case, Draw, Mode, Tensors, axis

_BRANCH = re.compile(r"([1-9][0-9]*)r([1-9][0-9]*)")


class Offsets(StrEnum):
    """Which position of segment i head j keeps first, of each r: head_mod j mod r; head_group
    ⌊j / ⌈H/r⌉⌋; segment_index i mod r."""

    head_mod = "head_mod"
    head_group = "head_group"
    segment_index = "segment_index"


class Combine(StrEnum):
    """lse: one softmax over the keys of all branches. mean: of all branches' results."""

    lse = "lse"
    mean = "mean"


class Order(StrEnum):
    """In which order positions lie in tiles, or, reordered, in the sequence that is cut."""

    identity = "identity"
    hilbert = "hilbert"
    morton = "morton"
    tile = "tile"
    random = "random"


@dataclass(frozen=True, kw_only=True)
class DilatedCase(Case):
    """q, k and v (B,N,H,D)."""

    B: int = axis("batch")
    N: int = axis("tokens")
    branches: str = axis("w and r of each branch, joined: 2048r1_4096r2 is [2048, 4096] and [1, 2]")
    H: int = axis("heads")
    D: int = axis("head size")
    causal: bool = axis("a query sees keys up to its own position, in every segment", False)
    offsets: Offsets = axis("which position a head keeps first", Offsets.head_mod)
    combine: Combine = axis("how branches are combined", Combine.lse)
    order: Order = axis("in which order positions are taken", Order.identity)
    height: int = axis("rows of the grid that N tokens are; 0 for a line", 0)
    reorder: bool = axis("tokens are put in order before they are cut into segments", False)

    def __post_init__(self) -> None:
        if min(self.B, self.N, self.H, self.D) < 1:
            raise ValueError("B, N, H and D must be at least 1")
        if not all(_BRANCH.fullmatch(part) for part in self.branches.split("_")):
            raise ValueError(
                f"branches are like 2048r1_4096r2: w, the letter r, r, got {self.branches!r}"
            )
        if self.height < 0 or (self.height and self.N % self.height):
            raise ValueError(f"height divides N, or is 0, got {self.height} and N {self.N}")
        if self.reorder and (self.causal or self.order == Order.identity):
            raise ValueError(
                "reorder takes an order, and no causal: masked by positions that lie in disorder, "
                "nobody but our kernels has it"
            )

    @cached_property
    def pairs_of(self) -> tuple[tuple[int, int], ...]:
        """(w, r) of each branch, w at most N."""
        found = (_BRANCH.fullmatch(part) for part in self.branches.split("_"))
        return tuple((min(int(one[1]), self.N), int(one[2])) for one in found if one)

    @property
    def lengths(self) -> list[int]:
        """w of each branch."""
        return [w for w, _ in self.pairs_of]

    @property
    def rates(self) -> list[int]:
        """r of each branch."""
        return [r for _, r in self.pairs_of]

    @property
    def sides(self) -> tuple[int, int] | None:
        """Rows and columns, if tokens are a grid."""
        return (self.height, self.N // self.height) if self.height else None

    @cached_property
    def pieces(self) -> tuple[tuple[Piece, ...], ...]:
        """Those of each branch; together all positions that it keeps, of all heads."""
        how = self.N, self.H, self.offsets.value
        return tuple(tuple(pieces_of(w, r, *how)) for w, r in self.pairs_of)

    @property
    def pairs(self) -> int:
        """Queries by the keys that each sees in each branch, of all heads and samples."""
        total = 0
        for piece in (piece for pieces in self.pieces for piece in pieces):
            m = piece.rows
            each = m * (m + 1) // 2 if self.causal else m * m
            total += each * piece.segments * heads_of(piece, self.H)
        return self.B * total


def inputs(case: DilatedCase, draw: Draw) -> Tensors:
    names = ("q", "k", "v") if case.mode is Mode.fwd else ("q", "k", "v", "grad_o")
    return {name: draw(case.B, case.N, case.H, case.D) for name in names}
