"""Any timed call may be the judged one: calls drawn by lot are compared with the proven answer.

On a GPU the comparison is queued behind the call, after the event that ends its time, and costs
the front end a multiple of CYCLE launches, so that the samples' places stay as even as before
(see flush). Nothing is waited for: what was found is read when a batch is over.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from kernelbench.measure.flush import CYCLE, settle
from kernelbench.measure.inputs import held, stored
from kernelbench.spec import Device, Mode, OutputError

PER_BATCH = 4  # calls of a batch that are judged, until ENOUGH are; then one
RARE = 8  # one in so many calls beyond those
ENOUGH = 59  # 1 − 0.95⁵⁹ = 0.95: what is wrong in one call of twenty shows
MOST = 1024  # calls of one part that can be judged
MOST_LED = 256  # of them such as lead a block, and are no samples
_BAD, _SQUARE, _PRODUCT = range(3)  # what is counted of each comparison


@dataclass(frozen=True)
class Tolerance:
    """How far a timed answer may be from the proven one. element: |difference|; norm: of it all;
    slope: Σ difference·answer / Σ answer²; infinite where that says nothing."""

    element: float
    norm: float
    slope: float


def tolerance(error: OutputError, proven: torch.Tensor, unit: float) -> Tolerance:
    """By how much an answer within its budgets can differ from one whose error is known: by the
    budget and that error, which may point the other way.

    unit: rms of what is judged of the right answer.
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
    """Judges calls of one workload. proven: its answer; names and tolerances likewise in order.

    differ: queues the comparison of one output, `answer, proven, element, into` (three numbers);
        returns in how many launches.
    workload: whose calls are judged; what they answer is then filled with NaN, but where it lies
        in an input, or in what a backward needs again.
    """

    proven: Mapping[str, torch.Tensor]
    tolerances: Sequence[Tolerance]
    differ: Callable[[torch.Tensor, torch.Tensor, float, torch.Tensor], int]
    workload: Any = None  # a Workload
    judged: int = 0  # calls, whether they led a block or were samples
    timed: int = 0  # samples among them, since they were last dropped
    misfit: str = ""  # an answer that could not be compared
    _found: torch.Tensor = field(init=False)
    _squares: list[float] = field(init=False)
    _left: tuple[int, int] = field(default=(0, 0), init=False)  # to judge, of so many calls
    _led: bool = field(default=False, init=False)
    _leading: int = field(default=0, init=False)  # calls judged that led a block
    _random: Any = field(default_factory=random.SystemRandom, init=False)

    @staticmethod
    def of(candidate: Any, device: Device) -> "Lot":
        """For a candidate whose proven answer is at hand, on this device."""
        errors, proven = candidate.facts["errors"], candidate.proven
        on_gpu = next(iter(proven.values())).is_cuda
        return Lot(
            proven,
            [tolerance(e, proven[e.name], candidate.deviations[e.name].unit) for e in errors],
            differ_by_triton if on_gpu and not device.no_triton else differ_by_torch,
            candidate.workload,
        )

    def __post_init__(self) -> None:
        norms = (torch.linalg.vector_norm(t, dtype=torch.float64) for t in self._floating())
        self._squares = [max(float(norm) ** 2, 1e-300) for norm in norms]
        device = next(iter(self.proven.values())).device
        shape = (MOST, len(self.proven), 3)
        self._found = torch.zeros(shape, dtype=torch.float32, device=device)

    def _floating(self) -> list[torch.Tensor]:
        return [t if t.is_floating_point() else t.double() for t in self.proven.values()]

    def begin(self, n: int, *, led: bool = False) -> int:
        """About how many of the next n calls are judged. Which, nobody knows before they return.

        led: they lead a block and are no samples; one of them is judged.
        """
        want = min(n, PER_BATCH if self.timed < ENOUGH and not led else 1)
        self._left, self._led = (want, n), led
        return want

    def draw(self) -> bool:
        """Whether the call that has returned just now is judged: as many of a batch as were said,
        and beyond those one in RARE, so that none can be sure that it is not."""
        want, n = self._left
        rare = not self._led and self._random.randrange(RARE) == 0
        falls = self._random.randrange(n) < want or rare
        self._left = max(want - falls, 0), n - 1
        room = self.judged < MOST and not (self._led and self._leading >= MOST_LED)
        return bool(falls and room)

    def judge(self, returned: Sequence[Any]) -> None:
        """Queue the comparison of what a timed call returned."""
        launches = 0
        if isinstance(returned, tuple) and type(returned).__iter__ is not tuple.__iter__:
            self.misfit = self.misfit or f"returned {type(returned).__name__}, expected a tuple"
            returned = ()  # what it computed now would come too late
        elif len(returned) != len(self.proven):
            self.misfit = f"returned {len(returned)} outputs, {len(self.proven)} in the proof"
        pairs = zip(returned, self.proven.items(), self.tolerances, strict=False)
        for i, (out, (name, proven), allowed) in enumerate(pairs):
            same = type(out) is torch.Tensor and out.dtype is proven.dtype
            if not (same and out.shape == proven.shape):
                self.misfit = self.misfit or f"{name} is of another kind than in the proof"
                continue
            into = self._found[self.judged, i]
            launches += self.differ(out, proven, allowed.element, into)
        launches += 0 if self.misfit else self._spend(returned)
        if self._found.is_cuda:
            settle(-launches % CYCLE)
        self.judged += 1
        self.timed += not self._led
        self._leading += self._led

    def _spend(self, outputs: Sequence[torch.Tensor]) -> int:
        """Leave no right answer in memory that the next call may get; in how many launches."""
        if self.workload is None:
            return 0
        taken, retained = stored(self.workload.known()), self.workload.mode is Mode.bwd
        spent = [
            out
            for out in outputs
            if out.is_floating_point()
            and out.untyped_storage().data_ptr() not in taken
            and not (retained and held(out, outputs))
        ]
        with torch.inference_mode():
            for out in spent:
                out.fill_(math.nan)
        return len(spent)

    def rehearse(self, returned: Sequence[Any]) -> None:
        """Judge an answer that does not count: kernels are compiled and loaded."""
        self._led = False
        self.judge(returned)
        self.judged, self.timed = self.judged - 1, self.timed - 1
        self._found[self.judged].zero_()

    def verdict(self) -> str:
        """What is wrong with the judged calls, or nothing. Waits for the GPU."""
        if self.misfit:
            return self.misfit
        outcomes = self._found[: self.judged].cpu().double()
        for i, name in enumerate(self.proven):
            allowed, one, squares = self.tolerances[i], outcomes[:, i], self._squares[i]
            bad = (
                (one[:, _BAD] > 0)
                | ~(one[:, _SQUARE].sqrt() <= allowed.norm)
                | ~((one[:, _PRODUCT] / squares).abs() <= allowed.slope)
            )
            if bool(bad.any()):
                most = int(one[bad, _BAD].max())
                elements = f", in up to {most} elements" if most else ""
                return (
                    f"{name} differs from the proven answer in {int(bad.sum())} of the "
                    f"{self.judged} judged calls{elements}"
                )
        return ""


def differ_by_torch(
    out: torch.Tensor, proven: torch.Tensor, element: float, into: torch.Tensor
) -> int:
    """For machines without Triton; its launches are not counted."""
    wide, right = torch.Tensor.double(out), proven.double()
    gap = torch.where(wide == right, 0.0, wide - right)
    into[_BAD] = (~(gap.abs() <= element)).sum()
    into[_SQUARE] = gap.square().sum()
    into[_PRODUCT] = (gap * right).nan_to_num(0, 0, 0).sum()
    return 0


def differ_by_triton(
    out: torch.Tensor, proven: torch.Tensor, element: float, into: torch.Tensor
) -> int:
    """One launch where both lie alike in memory, and densely; a copy before it elsewhere."""
    from kernelbench.kernels import stream

    launches = 1
    out = torch.Tensor.detach(out)
    if out.stride() != proven.stride() or not _dense(proven):
        out, proven = out.contiguous(), proven.contiguous()
        launches += 2
    stream.differ(out, proven, element, into).run()
    return launches


def _dense(tensor: torch.Tensor) -> bool:
    return bool(torch.ops.aten.is_non_overlapping_and_dense(tensor))
