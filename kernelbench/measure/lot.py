"""Judges timed calls that are drawn by lot, by comparing their answers with the proven answer.

On a GPU the comparison is queued after the event that ends the call's time. It takes a multiple of
CYCLE launches, so that samples stay evenly spread over the cycle's positions (see flush). Nothing
waits for it: the results are read when a batch is over.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from kernelbench.measure.deviation import is_fp8
from kernelbench.measure.flush import CYCLE, launch_empty
from kernelbench.measure.inputs import referenced_elsewhere, storage_addresses
from kernelbench.spec import Device, Mode, OutputError

PER_BATCH = 4  # calls of a batch that are judged until ENOUGH are; then one a batch
RARE = 8  # of the other calls one in this many is judged
ENOUGH = 59  # 1 − 0.95⁵⁹ = 0.95: the chance to find a fault of one call in twenty
MOST = 1024  # calls of one part that can be judged
MOST_LEADING = 256  # of those, calls that lead a block and are no samples
_BAD, _SQUARE, _PRODUCT = range(3)  # indices of the sums of one comparison


@dataclass(frozen=True)
class Tolerance:
    """How far a timed answer may be from the proven one.

    element: |difference| of an element. norm: ‖difference‖. slope: Σ difference·answer / Σ answer²,
    infinite where it is not judged.
    """

    element: float
    norm: float
    slope: float


def tolerance(error: OutputError, proven: torch.Tensor, unit: float) -> Tolerance:
    """How far an answer within its budgets can be from a proven one: by the sum of the budget and
    the proven answer's own error, which may have the opposite sign.

    unit: rms(p), where p is the part of the right answer that is judged.
    """
    if not proven.is_floating_point():
        return Tolerance(0.0, 0.0, float("inf"))

    norm = unit * float(proven.numel()) ** 0.5
    whole = error.part is None
    return Tolerance(
        (error.worst_budget + error.worst) * unit,
        (error.rel_budget + error.rel) * norm,
        error.slope_budget + abs(error.slope) if whole else float("inf"),
    )


@dataclass
class Lot:
    """Judges calls of one workload.

    proven: its proven answer by output; tolerances: in the same order.
    differ: queues the comparison of one output: `answer, proven, element, into`, whose three sums
        go to `into`; returns its number of launches.
    workload: whose answers are filled with NaN once they are judged, except where they lie in an
        input, or in memory that a backward needs again.
    judged: calls that were judged, leading ones included. timed: samples among them, since samples
    were last dropped. mismatch: describes an answer that could not be compared, or "".
    """

    proven: Mapping[str, torch.Tensor]
    tolerances: Sequence[Tolerance]
    differ: Callable[[torch.Tensor, torch.Tensor, float, torch.Tensor], int]
    workload: Any = None  # a Workload
    judged: int = 0
    timed: int = 0
    mismatch: str = ""
    _sums: torch.Tensor = field(init=False)  # [judged call, output, _BAD | _SQUARE | _PRODUCT]
    _squares: list[float] = field(init=False)
    _left: tuple[int, int] = field(default=(0, 0), init=False)  # calls to judge, calls to come
    _leads: bool = field(default=False, init=False)  # whether the current calls lead a block
    _judged_leading: int = field(default=0, init=False)  # judged calls that led a block
    _random: Any = field(default_factory=random.SystemRandom, init=False)

    @staticmethod
    def of(candidate: Any, device: Device) -> "Lot":
        """The lot of a candidate that still has its proven answer, on this device."""
        errors, proven = candidate.facts["errors"], candidate.proven
        on_gpu = next(iter(proven.values())).is_cuda
        return Lot(
            proven,
            [tolerance(e, proven[e.name], candidate.deviations[e.name].unit) for e in errors],
            differ_by_triton if on_gpu and not device.no_triton else differ_by_torch,
            candidate.workload,
        )

    def __post_init__(self) -> None:
        wide = (t if _has_norm(t) else t.double() for t in self.proven.values())
        norms = (torch.linalg.vector_norm(t, dtype=torch.float64) for t in wide)
        self._squares = [max(float(norm) ** 2, 1e-300) for norm in norms]
        device = next(iter(self.proven.values())).device
        shape = (MOST, len(self.proven), 3)
        self._sums = torch.zeros(shape, dtype=torch.float32, device=device)

    def begin(self, n: int, *, leads: bool = False) -> int:
        """Begin n calls; returns about how many are judged. Which ones is drawn once they return.

        leads: they lead a block and are no samples; one of them is judged.
        """
        want = min(n, PER_BATCH if self.timed < ENOUGH and not leads else 1)
        self._left, self._leads = (want, n), leads
        return want

    def draw(self) -> bool:
        """Draw whether the call that has just returned is judged.

        As many of a batch as `begin` returned are, and of the others one in RARE, so that no call
        can be sure that it is not.
        """
        want, n = self._left
        rare = not self._leads and self._random.randrange(RARE) == 0
        drawn = self._random.randrange(n) < want or rare
        self._left = max(want - drawn, 0), n - 1
        room = self.judged < MOST and not (self._leads and self._judged_leading >= MOST_LEADING)
        return bool(drawn and room)

    def judge(self, returned: Sequence[Any]) -> None:
        """Queue the comparison of what a timed call returned."""
        launches = 0
        if isinstance(returned, tuple) and type(returned).__iter__ is not tuple.__iter__:
            self.mismatch = self.mismatch or f"returned {type(returned).__name__}, expected a tuple"
            returned = ()  # its items could be computed only now, which is too late
        elif len(returned) != len(self.proven):
            self.mismatch = f"returned {len(returned)} outputs, {len(self.proven)} in the proof"
        pairs = zip(returned, self.proven.items(), self.tolerances, strict=False)
        for i, (out, (name, proven), allowed) in enumerate(pairs):
            same = type(out) is torch.Tensor and out.dtype is proven.dtype
            if not (same and out.shape == proven.shape):
                self.mismatch = self.mismatch or f"{name} is of another kind than in the proof"
                continue
            into = self._sums[self.judged, i]
            launches += self.differ(out, proven, allowed.element, into)
        launches += 0 if self.mismatch else self._fill_with_nan(returned)
        if self._sums.is_cuda:
            launch_empty(-launches % CYCLE)
        self.judged += 1
        self.timed += not self._leads
        self._judged_leading += self._leads

    def _fill_with_nan(self, outputs: Sequence[torch.Tensor]) -> int:
        """Leave no right answer in memory that the next call may get; returns the launches."""
        if self.workload is None:
            return 0
        in_use = storage_addresses(self.workload.all_tensors())
        retained = self.workload.mode is Mode.bwd
        targets = [
            out
            for out in outputs
            if out.is_floating_point()
            and out.untyped_storage().data_ptr() not in in_use
            and not (retained and referenced_elsewhere(out, outputs))
        ]
        with torch.inference_mode():
            for out in targets:
                out.fill_(math.nan)
        return len(targets)

    def rehearse(self, returned: Sequence[Any]) -> None:
        """Judge an answer that does not count, so that the kernels are compiled and loaded."""
        self._leads = False
        self.judge(returned)
        self.judged, self.timed = self.judged - 1, self.timed - 1
        self._sums[self.judged].zero_()

    def verdict(self) -> str:
        """What is wrong with the judged calls, or "". Waits for the GPU."""
        if self.mismatch:
            return self.mismatch
        by_call = self._sums[: self.judged].cpu().double()
        for i, name in enumerate(self.proven):
            allowed, sums, squares = self.tolerances[i], by_call[:, i], self._squares[i]
            bad = (
                (sums[:, _BAD] > 0)
                | ~(sums[:, _SQUARE].sqrt() <= allowed.norm)
                | ~((sums[:, _PRODUCT] / squares).abs() <= allowed.slope)
            )
            if bool(bad.any()):
                most = int(sums[bad, _BAD].max())
                elements = f", in up to {most} elements" if most else ""
                return (
                    f"{name} differs from the proven answer in {int(bad.sum())} of the "
                    f"{self.judged} judged calls{elements}"
                )
        return ""


def differ_by_torch(
    out: torch.Tensor, proven: torch.Tensor, element: float, into: torch.Tensor
) -> int:
    """`Lot.differ` for machines without Triton; its launches are not counted."""
    wide, right = torch.Tensor.double(out), proven.double()
    gap = torch.where(wide == right, 0.0, wide - right)
    into[_BAD] = (~(gap.abs() <= element)).sum()
    into[_SQUARE] = gap.square().sum()
    into[_PRODUCT] = (gap * right).nan_to_num(0, 0, 0).sum()
    return 0


def differ_by_triton(
    out: torch.Tensor, proven: torch.Tensor, element: float, into: torch.Tensor
) -> int:
    """`Lot.differ` in one launch where both are dense with equal strides and not of fp8; else after
    two copies, or more."""
    from kernelbench.kernels import stream

    launches = 1
    out = torch.Tensor.detach(out)
    if is_fp8(out):  # which Triton loads on some GPUs alone
        out, proven = out.float(), proven.float()
        launches += 2
    if out.stride() != proven.stride() or not _dense(proven):
        out, proven = out.contiguous(), proven.contiguous()
        launches += 2
    stream.differ(out, proven, element, into).run()
    return launches


def _has_norm(tensor: torch.Tensor) -> bool:
    """Whether PyTorch takes the norm of such a tensor in fp64."""
    return tensor.is_floating_point() and not is_fp8(tensor)


def _dense(tensor: torch.Tensor) -> bool:
    return bool(torch.ops.aten.is_non_overlapping_and_dense(tensor))
