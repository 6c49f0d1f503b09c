"""Describes the bad elements of a wrong answer to the author of the kernel: how many, where, and
which value was returned and expected.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from kernelbench.measure.deviation import is_fp8
from kernelbench.measure.patterns import pattern, tile_map


@dataclass(frozen=True)
class Diagnosis:
    """The bad elements of one output.

    bad: how many, of `checked` elements. words: one line, empty where none is bad. map: a few lines
    that draw where they are, empty where that shows nothing.
    """

    name: str
    bad: int
    checked: int
    words: str = ""
    map: str = ""


@dataclass(frozen=True)
class _Spot:
    index: tuple[int, ...]
    got: float
    want: float

    def __str__(self) -> str:
        values = f"got {self.got:.4g}, want {self.want:.4g}"
        place = self.index[0] if len(self.index) == 1 else self.index
        return f"at {place}: {values}" if self.index else values


class _Scan:
    """One output, checked piece by piece: keeps two masks of its elements, and two bad elements."""

    def __init__(self, name: str, out: torch.Tensor, tolerance: float) -> None:
        self._name, self._out, self._tolerance = name, out, tolerance
        self._bad = torch.zeros(out.shape, dtype=torch.bool, device=out.device)
        self._checked = torch.zeros_like(self._bad)
        self._first: _Spot | None = None
        self._worst: tuple[float, _Spot] | None = None

    def add(self, index: Any, ref: torch.Tensor) -> None:
        got = self._out[index]
        off = (got.to(torch.float64) - ref).abs()
        right = ref.to(got.dtype)
        if is_fp8(got):
            got, right = got.float(), right.float()
        infinite = torch.isinf(got) | torch.isinf(right)
        bad = torch.where(infinite, got != right, ~(off <= self._tolerance))
        self._bad[index], self._checked[index] = bad, True
        if not bool(bad.any()):
            return
        off = off.nan_to_num(nan=math.inf).masked_fill(~bad, -1.0)
        place = int(off.argmax())
        most = float(off.reshape(-1)[place])
        if self._worst is None or most > self._worst[0]:
            self._worst = most, self._spot(index, place, got, ref)
        first = self._spot(index, self._earliest(index, bad), got, ref)
        if self._first is None or first.index < self._first.index:
            self._first = first

    def _coordinates(self, index: Any) -> list[torch.Tensor]:
        """The coordinates of the elements at `index`, a tensor a dimension; views for slices."""
        shape, coordinates = self._out.shape, []
        for dim, size in enumerate(shape):
            line = torch.arange(size, device=self._out.device)
            line = line.view([size if d == dim else 1 for d in range(len(shape))])
            coordinates.append(line.expand(shape)[index])
        return coordinates

    def _earliest(self, index: Any, bad: torch.Tensor) -> int:
        """The bad element of a piece that comes first in the output; an index may be unordered."""
        parts = index if isinstance(index, tuple) else (index,)
        if not any(isinstance(part, (torch.Tensor, list)) for part in parts):
            return int(bad.to(torch.uint8).argmax())
        flat = torch.zeros(bad.shape, dtype=torch.int64, device=bad.device)
        for size, coordinate in zip(self._out.shape, self._coordinates(index), strict=True):
            flat = flat * size + coordinate
        return int(flat.masked_fill(~bad, self._out.numel()).argmin())

    def _spot(self, index: Any, place: int, got: torch.Tensor, ref: torch.Tensor) -> _Spot:
        inside = tuple(int(i) for i in torch.unravel_index(torch.tensor(place), got.shape))
        where = tuple(int(coordinate[inside]) for coordinate in self._coordinates(index))
        return _Spot(where, float(got[inside]), float(ref[inside]))

    def diagnosis(self) -> Diagnosis:
        bad, checked = int(self._bad.sum()), int(self._checked.sum())
        if self._first is None or self._worst is None:
            return Diagnosis(self._name, bad, checked)
        columns = self._out.shape[-1] if self._out.dim() else 1
        masks = [mask.reshape(-1, columns) for mask in (self._bad, self._checked)]
        sampled = "sampled " if checked < self._out.numel() else ""
        plural = "s" if checked > 1 else ""
        counted = f"{bad} of {checked} {sampled}element{plural} bad"
        where = ", ".join(filter(None, [counted, self._rows(*masks), _columns(*masks)]))
        first, worst = self._first, self._worst[1]
        spots = f"first {first}; worst {worst}"
        if first == worst:
            spots = str(first) if bad == 1 else f"first and worst {first}"
        words = f"{where}; {spots}"
        return Diagnosis(self._name, bad, checked, words, tile_map(*masks))

    def _rows(self, bad: torch.Tensor, checked: torch.Tensor) -> str:
        if len(bad) == 1:
            return ""
        wrong, known = bad.any(1).cpu(), checked.any(1).cpu()
        shape = self._out.shape
        head = _only_head(wrong, known, shape[2]) if len(shape) == 4 else ""
        return f"in {_counted(wrong, known, 'row', head)}"


def _columns(bad: torch.Tensor, checked: torch.Tensor) -> str:
    if bad.shape[1] == 1:
        return ""
    return _counted(bad.any(0).cpu(), checked.any(0).cpu(), "column")


def _counted(bad: torch.Tensor, checked: torch.Tensor, noun: str, head: str = "") -> str:
    """`all 64 columns`, `1 of 64 rows (the last row)`. head: words that replace the pattern."""
    count, all_ = int(bad.sum()), int(checked.sum())
    if count == all_:
        return f"all {all_} {noun}s" if all_ > 1 else f"the one {noun} seen"
    words = head or pattern(bad, checked, noun)
    return f"{count} of {all_} {noun}s" + (f" ({words})" if words else "")


def _only_head(bad: torch.Tensor, checked: torch.Tensor, heads: int) -> str:
    """Of rows (B,N,H): the only head with bad rows, if it has several; else ""."""
    at, right = bad.nonzero().flatten() % heads, (checked & ~bad).nonzero().flatten() % heads
    if heads == 1 or at.numel() < 2 or at.unique().numel() > 1:
        return ""
    head = int(at[0])
    return f"{'only in ' if bool((right == head).any()) else ''}head {head} of {heads}"


def diagnose(
    name: str, out: torch.Tensor, pieces: Iterable[tuple[Any, ...]], tolerance: float
) -> Diagnosis:
    """The bad elements of an output.

    pieces: (index, fp64 values of `out[index]`, …). tolerance: the absolute error above which an
    element is bad. NaN always is bad, and so is an infinity unless the right value, rounded to the
    output's dtype, is the same infinity.
    """
    scan = _Scan(name, out, tolerance)
    for index, ref, *_ in pieces:
        scan.add(index, ref)
    return scan.diagnosis()


def explain(
    produced: Mapping[str, torch.Tensor],
    pieces: Iterable[tuple[Any, ...]],
    tolerances: Mapping[str, float],
) -> dict[str, Diagnosis]:
    """The bad elements of every output in `tolerances`, in one pass over an oracle's pieces.

    pieces: (name, index, fp64 values, …), as `Oracle.pieces` gives them.
    """
    scans = {name: _Scan(name, produced[name], limit) for name, limit in tolerances.items()}
    for name, index, ref, *_ in pieces:
        if name in scans:
            scans[name].add(index, ref)
    return {name: scan.diagnosis() for name, scan in scans.items()}
