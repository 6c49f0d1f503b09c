"""What dilated attention moves through HBM, kernel by kernel: a kernel reads a tensor once, what it
reads again comes from the L2."""

from typing import NamedTuple

import torch

from kernelbench.families.dilated_attention.case import Combine, DilatedCase, Order
from kernelbench.families.dilated_attention.case import inputs as drawn
from kernelbench.families.dilated_attention.providers import baseline, torch_strided, triton_gather
from kernelbench.families.providing import eager_traffic
from kernelbench.nn.branches import heads_of
from kernelbench.spec import Mode, Traffic


def copied_traffic(case: DilatedCase) -> tuple[Traffic, ...]:
    """Of the unfused provider, operator by operator."""
    return eager_traffic(case, drawn, baseline(case, None), ("o",), ("q", "k", "v"))


def strided_traffic(case: DilatedCase) -> tuple[Traffic, ...]:
    """The same on views."""
    return eager_traffic(case, drawn, torch_strided(case, None), ("o",), ("q", "k", "v"))


def gathered_traffic(case: DilatedCase) -> tuple[Traffic, ...]:
    """Of our attention on gathered rows, operator by operator."""
    return eager_traffic(case, drawn, triton_gather(case, None), ("o",), ("q", "k", "v"))


def dilated_traffic(case: DilatedCase) -> tuple[Traffic, ...]:
    """Ours. Forward: each branch reads its rows, and merges them into what others have left, in
    fp32; a branch with r = 1 writes the result, else it is converted at the end. Backward: δ, then
    of each branch dk with dv, then dq, added to fp32 sums, which are converted at the end. For the
    mean, each branch attends once more for its lse and δ. after: o so far. rows: where those that
    are in order lie."""
    model = _Model(case)
    if case.mode is not Mode.bwd:
        model.forward()
    if case.mode is not Mode.fwd:
        model.backward()
    return tuple(Traffic(name, *both) for name, both in model.moved.items() if any(both))


class _Branch(NamedTuple):
    """kept: rows of all heads and samples that it keeps. listed: those of a list of rows."""

    rate: int
    kept: int
    listed: int


class _Model:
    """Bytes by tensor, read and written."""

    def __init__(self, case: DilatedCase) -> None:
        self.moved: dict[str, list[int]] = {}
        self._case, self._e = case, case.dtype.bytes
        self._all = case.B * case.N * case.H
        made = [_branch(case, number) for number in range(len(case.pieces))]
        self._branches = sorted(made, key=lambda branch: -branch.rate)
        self._whole = min(case.rates) == 1
        self._several, self._mean = len(made) > 1, case.combine == Combine.mean

    def _move(self, names: str, read: int, write: int = 0) -> None:
        for name in names.split():
            both = self.moved.setdefault(name, [0, 0])
            both[0] += read
            both[1] += write

    def _lists(self, branch: "_Branch", kernels: int) -> None:
        if self._case.order != Order.identity:
            self._move("rows", 4 * branch.listed * kernels)

    def forward(self) -> None:
        D, e, every = self._case.D, self._e, self._all
        wide = self._several and e == 2
        so_far = "after" if wide else "o"
        if not self._whole or (self._several and self._mean):
            self._move(so_far, 0, every * D * (4 if wide else e))
        statistic = not self._mean and (self._several or self._case.mode is not Mode.fwd)
        if statistic:
            self._move("lse", 0, 4 * every)
        for number, branch in enumerate(self._branches):
            kept = branch.kept
            self._lists(branch, 1)
            self._move("q k v", kept * D * e)
            last = self._whole and number == len(self._branches) - 1
            unit = kept * D * (4 if wide else e)
            self._move(so_far, unit if number else 0, 0 if last else unit)
            self._move("o", 0, kept * D * e if last else 0)
            if statistic:
                self._move("lse", 4 * kept if number else 0, 4 * kept)
        if wide and not self._whole:
            self._move(so_far, every * D * 4)
            self._move("o", 0, every * D * e)

    def backward(self) -> None:
        D, e, every = self._case.D, self._e, self._all
        unit = 4 if self._several else e
        if not self._whole:
            self._move("dq dk dv", 0, every * D * unit)
        if not self._mean:
            self._move("grad_o o", every * D * e)
            self._move("delta", 0, 4 * every)
        adds = not self._whole
        for branch in reversed(self._branches):
            kept = branch.kept
            self._lists(branch, 3 if self._mean else 2)
            if self._mean:
                self._move("q k v grad_o", kept * D * e)
                self._move("lse delta", 0, 4 * kept)
            self._move("q k v grad_o", 2 * kept * D * e)
            self._move("lse delta", 8 * kept)
            self._move("dq dk dv", kept * D * unit * adds, kept * D * unit)
            adds = True
        if unit != e:
            self._move("dq dk dv", every * D * unit, every * D * e)


def _branch(case: DilatedCase, number: int) -> _Branch:
    pieces = case.pieces[number]
    rows = [piece.segments * piece.rows for piece in pieces]
    of_heads = zip(rows, (heads_of(piece, case.H) for piece in pieces), strict=True)
    return _Branch(case.rates[number], case.B * sum(n * heads for n, heads in of_heads), sum(rows))


def covered(case: DilatedCase) -> int:
    """Rows of all heads and samples that any branch keeps."""
    seen = torch.zeros(case.N, case.H, dtype=torch.bool)
    for piece in (piece for pieces in case.pieces for piece in pieces):
        first = piece.first + piece.apart * torch.arange(piece.segments)
        rows = first[:, None] + piece.rate * torch.arange(piece.rows)
        seen[rows.flatten()[:, None], torch.arange(case.H)[piece.heads]] = True
    return int(seen.sum()) * case.B
