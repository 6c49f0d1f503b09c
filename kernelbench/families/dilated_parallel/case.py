"""Dilated attention over ranks: one point of a sweep, a rank's rows and keys, and inputs."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property

import torch

from kernelbench.families._ranks import own_rank
from kernelbench.families.dilated_attention.case import Combine, DilatedCase, Offsets
from kernelbench.kernels.launch import ceil_div
from kernelbench.nn.branches import Piece
from kernelbench.nn.spans import Span
from kernelbench.spec import Case, Draw, Mode, Tensors, axis


@dataclass(frozen=True, kw_only=True)
class ParallelDilatedCase(Case):
    """q, k and v (1,N,H,D) of all ranks; each has as many tokens, rank after rank."""

    world: int = axis("ranks, each a GPU of its own")
    N: int = axis("tokens of all ranks")
    branches: str = axis("w and r of each branch: 2048r1_4096r2 is [2048, 4096] and [1, 2]")
    H: int = axis("heads")
    D: int = axis("head size")
    causal: bool = axis("a query sees keys up to its own position, in every segment", False)
    offsets: Offsets = axis("which position a head keeps first", Offsets.head_mod)
    combine: Combine = axis("how branches are combined", Combine.lse)

    def __post_init__(self) -> None:
        if self.world < 1 or self.N % self.world:
            raise ValueError(f"world is at least 1 and divides N, got {self.world} and N {self.N}")
        self.whole  # noqa: B018 - it raises for what it cannot be

    @cached_property
    def whole(self) -> DilatedCase:
        """The same on one rank that has everything. Raises ValueError for what it cannot be."""
        alike = {x.name: getattr(self, x.name) for x in fields(self) if x.name != "world"}
        return DilatedCase(B=1, **alike)

    @property
    def rows(self) -> int:
        """Tokens of a rank."""
        return self.N // self.world

    @property
    def rank(self) -> int:
        return own_rank()

    @property
    def own(self) -> slice:
        """This rank's tokens."""
        return slice(self.rank * self.rows, (self.rank + 1) * self.rows)

    def spans(self, rank: int) -> list[list[Span]]:
        """Of each branch, a rank's rows of q among its own, and the keys among all that they see:
        segments that it has whole together, others one by one."""
        of = rank * self.rows, (rank + 1) * self.rows, self.causal
        return [[x for piece in pieces for x in _spans(piece, *of)] for pieces in self.whole.pieces]

    @cached_property
    def keys_seen(self) -> int:
        """Rows of k, of all heads, that any branch of a rank sees, of all ranks together."""
        total = 0
        for rank in range(self.world):
            seen = torch.zeros(self.N, self.H, dtype=torch.bool)
            for _, k, _ in (span for spans in self.spans(rank) for span in spans):
                rows = k.first + k.apart * torch.arange(k.segments)[:, None]
                rows = rows + k.rate * torch.arange(k.rows)
                seen[rows.flatten()[:, None], torch.arange(self.H)[k.heads]] = True
            total += int(seen.sum())
        return total


def _spans(piece: Piece, low: int, high: int, causal: bool) -> Iterator[Span]:
    """Of positions low to high, by those of a piece that are there."""
    whole = list[int]()
    for segment in range(piece.segments):
        start = piece.first + segment * piece.apart
        first, end = (
            min(max(0, ceil_div(position - start, piece.rate)), piece.rows)
            for position in (low, high)
        )
        if end - first == piece.rows:
            whole.append(start)
            continue
        if first == end:
            continue
        all_keys = piece._replace(first=start, segments=1)
        own = all_keys._replace(first=start + first * piece.rate, rows=end - first)
        q = own._replace(first=own.first - low)
        if causal and first:
            yield Span(q, all_keys._replace(rows=first), False)
        yield Span(q, own if causal else all_keys, causal)
    if whole:
        k = piece._replace(first=whole[0], segments=len(whole))
        yield Span(k._replace(first=whole[0] - low), k, causal)


def inputs(case: ParallelDilatedCase, draw: Draw) -> Tensors:
    tensors = {name: draw(1, case.N, case.H, case.D) for name in "qkv"}
    if case.mode is not Mode.fwd:
        tensors["grad_o"] = draw(1, case.N, case.H, case.D)[:, case.own].contiguous()
    return tensors


def shards(case: ParallelDilatedCase, a: Tensors) -> Tensors:
    """This rank's rows of q, k and v."""
    return {name: a[name][:, case.own].contiguous() for name in "qkv"}
