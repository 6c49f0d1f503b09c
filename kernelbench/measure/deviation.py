"""How far an answer is from the fp64 oracle: as a whole, in its worst element, row and column, and
in its scale. Sums are taken piece by piece, as an oracle yields, so that large cases fit in memory.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from kernelbench.measure.parts import elements_at, pieces_of
from kernelbench.spec import Family

# A larger oracle is computed again for each provider and trial. On a GPU this share of its memory
# is the limit, where that is more.
KEEP_ORACLE_BYTES = 2 << 30
KEEP_ORACLE_SHARE = 1 / 16
SMALL_GROUP = 0.3  # of the typical ‖p‖ of a row or column: the least divisor of its error


@dataclass(frozen=True)
class Slope:
    """The slope of out on one part of ref, minus 1.

    error: its standard error if the errors of elements are independent. spread: if those of one row
    may be correlated, as with rounded coefficients. rounded: the slope, minus 1, of ref itself,
    rounded once to out's dtype. A coefficient of 1.001 times bf16 values is lost in that.
    """

    value: float = 0.0
    error: float = 0.0
    spread: float = 0.0
    rounded: float = 0.0


@dataclass(frozen=True)
class Deviation:
    """One output against the oracle; `spec.OutputError` has the formulas.

    With e = out − ref and p, the part of ref that is computed:
    rel: ‖e‖ / ‖p‖. worst: max |e| / rms(p). row, column: the largest ‖e‖ / ‖p‖ of one.
    peak: max |ref| / rms(p), the size of a rounding of the largest element; own_peak: max |p| /
    rms(p). scale, row_scale, column_scale: ‖ref‖ / ‖p‖ of the whole, and the largest of a row or
    column; at least 1. unit: rms(p). count: elements. slopes: one a part.
    """

    rel: float
    worst: float
    peak: float
    cosine: float | None = None  # of the angle between them, where neither is all zero
    row: float = 0.0
    column: float = 0.0
    slopes: tuple[Slope, ...] = ()
    scale: float = 1.0
    row_scale: float = 1.0
    column_scale: float = 1.0
    own_peak: float = 1.0
    unit: float = 1.0
    part: float | None = None  # ‖p‖ / ‖ref‖
    count: float = math.inf
    dtype: torch.dtype | None = None  # the output's


def kept_bytes(device: torch.device) -> int:
    """How large an oracle may be that is kept on a device."""
    if device.type != "cuda":
        return KEEP_ORACLE_BYTES
    memory = torch.cuda.get_device_properties(device).total_memory
    return max(KEEP_ORACLE_BYTES, int(memory * KEEP_ORACLE_SHARE))


@dataclass
class Oracle:
    """The right answers of a case for the current inputs; stored if they are small."""

    family: Family[Any]
    case: Any
    inputs: Any  # CaseInputs
    most: int = KEEP_ORACLE_BYTES  # bytes of it that are kept
    _pieces: list[tuple[Any, ...]] | None = field(default=None, init=False)

    def pieces(self) -> Iterable[tuple[Any, ...]]:
        """Yields (name, index, right values, parts of them that were computed …), all fp64."""
        if self._pieces is not None:
            yield from self._pieces
            return
        stored: list[tuple[Any, ...]] | None = []
        total = 0
        for piece in pieces_of(self.family, self.case, self.inputs.with_upstream()):
            total += sum(tensor.numel() * 8 for tensor in piece[2:])
            stored = [*stored, piece] if stored is not None and total <= self.most else None
            yield piece
        self._pieces = stored

    def forget(self) -> None:
        """Drop the stored values, since the inputs change."""
        self._pieces = None


class _Groups:
    """Σ e², Σ p², Σ ref² of every row, or of every column, of an output."""

    def __init__(self, places: torch.Tensor, count: int) -> None:
        self._places = places  # which group each element of the output belongs to, expanded
        self.sums = torch.zeros(3, count, dtype=torch.float64, device=places.device)

    def add(self, index: Any, dim: int, *squares: torch.Tensor) -> None:
        """Add the squares of a piece. dim: along which groups run, where pieces hold whole ones."""
        places = self._places[index]
        if dim == -1 and places.ndim and places.stride(-1) == 0:
            places, squares = places[..., 0], tuple(square.sum(-1) for square in squares)
        elif dim == 0 and squares[0].shape[-1:] == (self.sums.shape[1],) and places.ndim > 1:
            places = places.reshape(-1, places.shape[-1])[0]
            squares = tuple(square.reshape(-1, square.shape[-1]).sum(0) for square in squares)
        for total, square in zip(self.sums, squares, strict=True):
            total.index_add_(0, places.reshape(-1), square.reshape(-1))

    def worst(self) -> tuple[float, float]:
        """The largest ‖e‖ / ‖p‖, and the largest ‖ref‖ / ‖p‖, at least 1."""
        error, own, ref = self.sums.sqrt()
        known = int((ref > 0).sum())
        if known == 0:
            return 0.0, 1.0
        typical = self.sums[1].sum().div(known).sqrt()
        against = own.clamp(min=float(SMALL_GROUP * typical))
        if float(against.max()) == 0:
            return 0.0, 1.0
        largest = torch.stack([(error / against).max(), (ref / against).max()]).tolist()
        return largest[0], max(largest[1], 1.0)


class Sums:
    """The sums over one output, added up piece by piece of its oracle."""

    def __init__(self, out: torch.Tensor) -> None:
        self.count = 0
        self._dtype = out.dtype
        self._nan = bool(torch.isnan(out).any())  # also in elements that the oracle leaves out
        self._total = torch.zeros(4, dtype=torch.float64, device=out.device)  # e², p², ref², out²
        self._most = torch.zeros(3, dtype=torch.float64, device=out.device)  # |e|, |p|, |ref|
        self._slopes: list[torch.Tensor] = []
        self._diluted = False
        self._rows = self._columns = None
        if out.ndim > 1 and out.numel():
            *above, width = out.shape
            rows = torch.arange(math.prod(above), device=out.device).view(above)
            columns = torch.arange(width, device=out.device)
            self._rows = _Groups(rows[..., None].expand(out.shape), rows.numel())
            self._columns = _Groups(columns.expand(out.shape), width)

    def add(
        self,
        index: Any,
        out: torch.Tensor,
        ref: torch.Tensor,
        parts: Sequence[torch.Tensor] = (),
    ) -> None:
        """Add one piece.

        out: the output's elements at `index`. parts: those of ref that the kernel had to compute,
        which sum to p; empty if p is ref.
        Raises ValueError for a piece of another shape than the output has there.
        """
        if out.shape != ref.shape:
            raise ValueError(f"shape {tuple(out.shape)}, the oracle has {tuple(ref.shape)}")
        if ref.numel() == 0:
            return
        wide, ref, parts = _without_right_infinities(out, ref, parts)
        self._diluted = self._diluted or bool(parts)
        parts = parts or (ref,)
        own = parts[0] if len(parts) == 1 else torch.stack(tuple(parts)).sum(0)
        error = wide - ref
        error2, ref2 = error.square(), ref.square()
        own2 = ref2 if own is ref else own.square()
        self._total += torch.stack([x.sum() for x in (error2, own2, ref2, wide.square())])
        most = torch.stack([x.abs().max() for x in (error, own, ref)])
        self._most = torch.maximum(self._most, most)
        self._add_slopes(error, self._rounding(ref), parts)
        self.count += ref.numel()
        if self._rows is not None and self._columns is not None:
            self._rows.add(index, -1, error2, own2, ref2)
            self._columns.add(index, 0, error2, own2, ref2)

    def _rounding(self, ref: torch.Tensor) -> torch.Tensor:
        """The error of rounding ref to the output's dtype, 0 where that has no such number."""
        return torch.nan_to_num(ref.to(self._dtype).to(ref.dtype) - ref, 0.0, 0.0, 0.0)

    def _add_slopes(
        self, error: torch.Tensor, rounding: torch.Tensor, parts: Sequence[torch.Tensor]
    ) -> None:
        self._slopes = self._slopes or [self._total.new_zeros(5) for _ in parts]
        for total, part in zip(self._slopes, parts, strict=True):
            product, rounded = error * part, (rounding * part).sum()
            row = product.sum(-1) if product.ndim else product
            squares = [x.square().sum() for x in (product, row, part)]
            total += torch.stack([product.sum(), *squares, rounded])

    def deviation(self) -> Deviation:
        """The deviation of what was added."""
        error2, own2, ref2, out2 = self._total.tolist()
        most, own_most, ref_most = self._most.tolist()
        if self._nan or math.isnan(error2):
            return Deviation(math.nan, math.nan, 1.0, dtype=self._dtype)
        if self.count == 0:
            return Deviation(0.0, 0.0, 1.0, dtype=self._dtype)
        if own2 == 0:
            rel = math.sqrt((out2 if ref2 == 0 else error2) / self.count)
            return Deviation(rel, most, max(ref_most, 1.0), dtype=self._dtype)
        rms = math.sqrt(own2 / self.count)
        row, row_scale = self._rows.worst() if self._rows else (0.0, 1.0)
        column, column_scale = self._columns.worst() if self._columns else (0.0, 1.0)
        return Deviation(
            rel=math.sqrt(error2 / own2),
            worst=most / rms,
            peak=ref_most / rms,
            cosine=_cosine(error2, ref2, out2),
            row=row,
            column=column,
            slopes=tuple(_slope(total) for total in self._slopes),
            scale=max(math.sqrt(ref2 / own2), 1.0),
            row_scale=row_scale,
            column_scale=column_scale,
            own_peak=own_most / rms,
            unit=rms,
            part=math.sqrt(own2 / ref2) if self._diluted and ref2 else None,
            count=self.count,
            dtype=self._dtype,
        )


def _cosine(error2: float, ref2: float, out2: float) -> float | None:
    """The cosine of out and ref, from ‖out − ref‖² = ‖out‖² + ‖ref‖² − 2 out·ref."""
    lengths = math.sqrt(out2) * math.sqrt(ref2)
    if not (0 < lengths < math.inf and error2 < math.inf):
        return None
    return (out2 + ref2 - error2) / (2 * lengths)


def _slope(total: torch.Tensor) -> Slope:
    product, squared, rows, own2, rounded = total.tolist()
    if not own2:
        return Slope()
    errors = math.sqrt(squared) / own2, math.sqrt(rows) / own2
    return Slope(product / own2, *errors, rounded / own2)


def is_fp8(tensor: torch.Tensor) -> bool:
    """Whether it is of one of the 8-bit floating dtypes, for which PyTorch has few operators."""
    return tensor.is_floating_point() and tensor.dtype.itemsize == 1


def _without_right_infinities(
    out: torch.Tensor, ref: torch.Tensor, parts: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, Sequence[torch.Tensor]]:
    """out, ref and parts in fp64, 0 where out is infinite and rightly so: as ref in out's dtype."""
    wide = out.to(torch.float64)
    if is_fp8(out):  # of which e4m3 has no infinity
        out = wide
    if not out.is_floating_point() or not bool(torch.isinf(out).any()):
        return wide, ref, parts
    right = torch.isinf(out) & (out == ref.to(out.dtype))
    wide, ref, *parts = (tensor.masked_fill(right, 0.0) for tensor in (wide, ref, *parts))
    return wide, ref, parts


def deviations(oracle: Oracle, produced: Mapping[str, torch.Tensor]) -> dict[str, Deviation]:
    """The deviation of every produced output. A NaN counts even where the oracle has no values.

    Raises ValueError for an output of another shape than the oracle's, or that it does not cover.
    """
    sums = {name: Sums(tensor) for name, tensor in produced.items()}
    for name, index, ref, *parts in oracle.pieces():
        if name in sums:
            sums[name].add(
                index, elements_at(oracle.family, name, produced[name], index), ref, parts
            )
    for name, tensor in produced.items():
        if sums[name].count == 0 and tensor.numel() > 0:
            raise ValueError(f"the oracle of {oracle.family.name} says nothing about {name!r}")
    return {name: total.deviation() for name, total in sums.items()}
