"""Right before fast: a provider's outputs against an fp64 oracle, within a budget.

The call that is judged finds NaN in memory it did not write, finds its inputs filled in only in
the order of its own stream, and has its outputs copied at once, before anything else is waited
for. So half-written outputs, work left on another stream, answers kept from an earlier call and
changed inputs all show as errors.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from kernelbench.measure.workload import CaseInputs, Workload
from kernelbench.spec import DType, Family, OutputError, Provider

# Relative error that any implementation may have, and that none may pass, whatever the baseline.
FLOOR = {DType.bf16: 2e-3, DType.fp16: 2.5e-4, DType.tf32: 2e-4, DType.fp32: 1e-6}
CEILING = {DType.bf16: 1e-2, DType.fp16: 2e-3, DType.tf32: 2e-3, DType.fp32: 2e-5}
TIMES_BASELINE = 3.0
KEEP_ORACLE_BYTES = 2 << 30  # a larger oracle is computed anew for each provider
GATE_CYCLES = (4_000_000, 40_000_000, 200_000_000)  # about 2, 20, 100 ms of a held stream


@dataclass(frozen=True)
class Deviation:
    """How far one output is from the oracle: relative Frobenius, worst element over rms."""

    rel: float
    worst: float
    peak: float  # max |ref| / rms(ref): what rounding the largest element amounts to
    cosine: float | None = None  # of the angle between them, where neither is all zero


@dataclass
class _Sums:
    error2: float = 0.0
    ref2: float = 0.0
    out2: float = 0.0
    worst: float = 0.0
    peak: float = 0.0
    count: int = 0
    nan: bool = False

    def add(self, out: torch.Tensor, ref: torch.Tensor) -> None:
        if out.shape != ref.shape:
            raise ValueError(f"shape {tuple(out.shape)}, the oracle has {tuple(ref.shape)}")
        if ref.numel() == 0:
            return
        wide = out.to(torch.float64)
        error = wide - ref
        sums = torch.stack([error.square().sum(), ref.square().sum(), wide.square().sum()])
        most = torch.stack([error.abs().max(), ref.abs().max()])
        e2, r2, o2 = sums.tolist()
        worst, peak = most.tolist()
        self.nan = self.nan or math.isnan(e2)
        self.error2, self.ref2, self.out2 = self.error2 + e2, self.ref2 + r2, self.out2 + o2
        self.worst, self.peak = max(self.worst, worst), max(self.peak, peak)
        self.count += ref.numel()

    def deviation(self) -> Deviation:
        if self.nan:
            return Deviation(math.nan, math.nan, 1.0)
        if self.count == 0:
            return Deviation(0.0, 0.0, 1.0)
        if self.ref2 == 0:
            return Deviation(math.sqrt(self.out2 / self.count), self.worst, 1.0)
        rms = math.sqrt(self.ref2 / self.count)
        rel = math.sqrt(self.error2 / self.ref2)
        return Deviation(rel, self.worst / rms, self.peak / rms, self._cosine())

    def _cosine(self) -> float | None:
        """From ‖out − ref‖² = ‖out‖² + ‖ref‖² − 2 out·ref."""
        lengths = math.sqrt(self.out2) * math.sqrt(self.ref2)
        if not (0 < lengths < math.inf and self.error2 < math.inf):
            return None
        return (self.out2 + self.ref2 - self.error2) / (2 * lengths)


@dataclass
class Oracle:
    """The right answers of a case for the inputs that it holds now; kept if they are small."""

    family: Family[Any]
    case: Any
    inputs: CaseInputs
    shapes: Mapping[str, torch.Size] = field(default_factory=dict)  # the baseline's, once known
    _pieces: list[tuple[str, Any, torch.Tensor]] | None = field(default=None, init=False)

    def pieces(self) -> Iterable[tuple[str, Any, torch.Tensor]]:
        if self._pieces is not None:
            yield from self._pieces
            return
        kept: list[tuple[str, Any, torch.Tensor]] | None = []
        total = 0
        for piece in self.family.oracle(self.case, self.inputs.pristine):
            if piece[2].dtype is not torch.float64:
                raise TypeError(f"the oracle of {self.family.name} yields {piece[2].dtype}")
            total += piece[2].numel() * 8
            kept = [*kept, piece] if kept is not None and total <= KEEP_ORACLE_BYTES else None
            yield piece
        self._pieces = kept

    def forget(self) -> None:
        """The inputs were drawn anew."""
        self._pieces = None


def deviations(oracle: Oracle, produced: Mapping[str, torch.Tensor]) -> dict[str, Deviation]:
    """Of every produced output, which is spent. A NaN anywhere in it counts, sampled or not.

    Raises ValueError for a shape that is not the oracle's, or an output the oracle does not cover.
    """
    for name, tensor in produced.items():
        if tensor.shape != oracle.shapes.get(name, tensor.shape):
            right = tuple(oracle.shapes[name])
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, the baseline's {right}")
    sums = {name: _Sums() for name in produced}
    for name, index, ref in oracle.pieces():
        if name in sums:
            sums[name].add(produced[name][index], ref)
    found = {}
    for name, tensor in produced.items():
        if sums[name].count == 0 and tensor.numel() > 0:
            raise ValueError(f"the oracle of {oracle.family.name} says nothing about {name!r}")
        sums[name].nan = sums[name].nan or bool(torch.isnan(tensor).any())
        found[name] = sums[name].deviation()
        if tensor.is_floating_point():
            tensor.fill_(math.nan)  # no right answer is left behind in free memory
    return found


def judge(
    found: Mapping[str, Deviation],
    baseline: Mapping[str, Deviation] | None,
    dtype: DType,
    provider: Provider[Any],
) -> tuple[OutputError, ...]:
    """Errors beside their budgets.

    An exact provider may err by 3 × the baseline's own error, at least FLOOR and at most CEILING
    of the dtype. The worst element is held to the same figures times max |ref| / rms(ref), since
    rounding the largest element errs by that much. Without a baseline the ceiling holds. An
    approximate provider is held to the error that it promises.
    """
    errors = []
    for name, deviation in found.items():
        base = baseline.get(name) if baseline else None
        if provider.max_error is not None:
            rel_budget, worst_budget = provider.max_error, math.inf
        else:
            rel_budget = _budget(base.rel if base else math.inf, dtype, 1.0)
            worst_budget = _budget(base.worst if base else math.inf, dtype, deviation.peak)
        errors.append(
            OutputError(
                name=name,
                rel=deviation.rel,
                worst=deviation.worst,
                rel_budget=rel_budget,
                worst_budget=worst_budget,
                baseline_rel=base.rel if base else None,
                baseline_worst=base.worst if base else None,
                cosine=deviation.cosine,
            )
        )
    return tuple(errors)


def _budget(baseline: float, dtype: DType, scale: float) -> float:
    allowed = math.inf if math.isnan(baseline) else TIMES_BASELINE * baseline
    return min(max(allowed, FLOOR[dtype] * scale), CEILING[dtype] * scale)


def produce(workload: Workload) -> tuple[dict[str, torch.Tensor], list[str]]:
    """One hardened call: the outputs as they stood when the call's own stream reached its end.

    And the names of the inputs that it changed without saying so.

    On a GPU everything is queued behind a gate, so that a copy of the outputs is due the moment
    the call's stream is through with it; a gate that was too short is tried again, longer.
    Raises ValueError when the call returns another number of outputs than the family names.
    """
    cuda = next(iter(workload.args.values())).is_cuda
    for cycles in GATE_CYCLES if cuda else (0,):
        workload.ready()
        _poison_outputs(workload)
        kept, changed, held = _hardened_call(workload, cycles)
        if held:
            break
    if len(kept) != len(workload.names):
        raise ValueError(f"returns {len(kept)} outputs, expected {', '.join(workload.names)}")
    return dict(zip(workload.names, kept, strict=True)), changed


def _hardened_call(workload: Workload, cycles: int) -> tuple[list[torch.Tensor], list[str], bool]:
    """Outputs, copied in stream order; changed inputs; if the gate held until all was queued."""
    right, opened = workload.right(), None
    with workload.grad_mode():
        workload.poison()
        if cycles:
            torch.cuda.synchronize()
            torch.cuda._sleep(cycles)
            opened = torch.cuda.Event()
            opened.record()
        workload.refill(right)
        outputs = workload.call()
        kept = [tensor.detach().clone() for tensor in outputs]
    held = opened is None or not opened.query()
    if cycles:
        torch.cuda.synchronize()
    changed = workload.changed()
    leave_nan(outputs, workload)
    return kept, changed, held


def _poison_outputs(workload: Workload) -> None:
    """Call once on inputs of NaN, and leave NaN where its outputs lay and in free memory.

    What the call uses, its scratch too, then holds no right answer that the next call, which is
    handed the same memory, could pass for its own. What lies in an input is filled in again.
    """
    with workload.grad_mode():
        workload.poison()
        first = workload.call()
    if any(tensor.is_cuda for tensor in first):
        torch.cuda.synchronize()  # what was left to another stream must not come after the NaN
    sizes = leave_nan(first, workload)
    del first
    workload.rest()
    held = [
        torch.full(shape, math.nan, dtype=dtype, device=device)
        for shape, dtype, device in sizes
        for _ in range(3)
    ]
    del held
    workload.ready()


def leave_nan(
    outputs: Sequence[torch.Tensor], workload: Workload
) -> list[tuple[torch.Size, torch.dtype, torch.device]]:
    """Fill outputs with NaN, but not where they lie in inputs; what they were like."""
    inputs = {t.untyped_storage().data_ptr() for t in workload.args.values()}
    floating = [tensor for tensor in outputs if tensor.is_floating_point()]
    for tensor in floating:
        if tensor.untyped_storage().data_ptr() not in inputs:
            tensor.data.fill_(math.nan)
    return [(tensor.shape, tensor.dtype, tensor.device) for tensor in floating]


def _missed(error: OutputError) -> str:
    worst = f"worst element {error.worst:.2g} of rms"
    if error.worst_budget < math.inf:
        return (
            f"error {error.rel:.2g} ({worst}), budget {error.rel_budget:.2g} "
            f"({error.worst_budget:.2g})"
        )
    cosine = "" if error.cosine is None else f", cosine {error.cosine:.4f}"
    return f"error {error.rel:.2g} ({worst}{cosine}), budget {error.rel_budget:.2g}"


def verdict(errors: Sequence[OutputError], changed: Sequence[str]) -> str:
    """Why a provider is incorrect; empty when it is right."""
    reasons = [f"changed its input {name}" for name in changed]
    for error in errors:
        if math.isnan(error.rel):
            reasons.append(f"NaN in {error.name}")
        elif not error.ok:
            reasons.append(f"{error.name}: {_missed(error)}")
    return "; ".join(reasons)
