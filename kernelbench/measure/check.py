"""Right before fast: a provider's outputs against an fp64 oracle, within a budget.

The call that is judged finds NaN in memory it did not write, finds its inputs filled in only in
the order of its own stream, and has its outputs copied at once, before anything else is waited
for. So half-written outputs, work left on another stream, answers kept from an earlier call and
changed inputs all show as errors.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from kernelbench.measure import answer
from kernelbench.measure.answer import Contract
from kernelbench.measure.budgets import Limit
from kernelbench.measure.deviation import Deviation
from kernelbench.measure.inputs import Tensors, stored
from kernelbench.measure.workload import Workload
from kernelbench.spec import DType, OutputError, Provider

GROUP_FLOOR, GROUP_CEILING = 3.0, 10.0  # of a row or column, as multiples of those
# But for trials: a row that nearly cancels, as the causal dq of a query that sees two keys, errs
# far more than the rest, in PyTorch's kernels, too.
ROW_CEILING = 50.0
WORST_FLOOR, WORST_CEILING = 4.0, 2.0  # likewise of the worst element: up to four roundings
TIMES_BASELINE = 3.0
GROSS = 10.0
SIGMAS = 4.0  # standard errors that a figure may be off by chance
FEW_COUNT = 4.0  # elements an element: where few are large, they alone make up a norm
# What an approximate provider's promise of a relative error is worth elsewhere.
WORST_OF_PROMISE, GROUP_OF_PROMISE = 8.0, 3.0
OF_LARGEST = 2.0  # likewise of the largest element, if that is more
GATE_CYCLES = (4_000_000, 40_000_000, 200_000_000)  # about 2, 20, 100 ms of a held stream


@dataclass
class Answer:
    """What one hardened call made: outputs by name, the inputs that it changed without saying so,
    and the outputs of it that a later call changed."""

    outputs: Tensors
    changed: list[str] = field(default_factory=list)
    overwritten: list[str] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        """What is wrong with the call, whatever it answered."""
        return [f"changed its input {name}" for name in self.changed] + [
            f"a later call changed {name} of an earlier one" for name in self.overwritten
        ]


def promise(provider: Provider[Any], *inputs: str) -> float | str | None:
    """The relative error that an approximate provider promises for inputs of these names (a
    distribution's, and a trial's of it), the largest of them; None for an exact one; or the reason
    why either promises nothing there."""
    promised = [provider.promises[name] for name in inputs if name in provider.promises]
    if reason := next((one for one in promised if isinstance(one, str)), None):
        return reason
    if provider.max_error is None:
        return None
    return max([one for one in promised if not isinstance(one, str)], default=provider.max_error)


def judge(
    deviations: Mapping[str, Deviation],
    baseline: Mapping[str, Deviation] | None,
    dtype: DType,
    provider: Provider[Any],
    *inputs: str,
    trial: bool = False,
) -> tuple[OutputError, ...]:
    """Errors beside their budgets.

    An exact provider may err by 3 × the baseline's own error, at least FLOOR (of n elements
    1 + 4/√(n/4) times that: a baseline may be lucky) and at most CEILING of the dtype, times how
    much larger ref is than the part that is judged: what passes through is rounded, too. The worst
    element is held to 4 × FLOOR (a rounding errs by FLOOR at most) and 2 × CEILING times
    max |ref| / rms(p), since rounding the largest element errs by that much; a row or column to at
    least 3 × FLOOR and at most 10 × CEILING (a row 50 ×); a slope to 3 × the baseline's, at least
    SLOPE_FLOOR and a quarter of the square of the baseline's error (a part below the rounding of
    what passes through is lost in it, another share in each order of roundings), at most CEILING by
    the same factor, and 4 standard errors. Without a baseline the ceilings hold, that of the slope
    without the factor.
    trial: the inputs are those of a trial, on which errors that matter are gross, and those of
    rounding hang on few elements: the ceilings (of rows and columns 10 × CEILING) are floors there,
    and 3 × them the ceilings.
    Of an output in another dtype than the case's the limits are those of the coarser of both (an
    fp8 output: by its unit roundoff); whole numbers and booleans have no floor: where the baseline
    is exact, all are.
    An approximate provider is held to the error that it promises for such inputs (the name of a
    trial or of a distribution), in the worst element to 8 × that, in a row or column to 3 ×, or to
    2 × of the largest element where that is more, in a slope to its `max_slope` on any; and where
    something passes through, to what an exact one may err by besides. A promise for such inputs
    that is larger than `max_error` is one of the whole output alone: where one score decides which
    value a row is, few rows hold all of the error.
    """
    errors = []
    promise_of = promise(provider, *inputs)
    promised = provider.max_error if isinstance(promise_of, str) else promise_of
    steepest = promised if provider.max_slope is None else provider.max_slope
    for name, deviation in deviations.items():
        base = baseline.get(name) if baseline else None
        limit = Limit.of(dtype, deviation.dtype)
        budgets = _exact(deviation, base, limit, trial)
        if promised is not None:
            whole = promised > (provider.max_error or 0)
            budgets = _approximate(deviation, promised, budgets, whole)
        slope, slope_budget = _slope(deviation, base, limit, steepest, trial)
        errors.append(
            OutputError(
                name=name,
                rel=deviation.rel,
                worst=deviation.worst,
                row=deviation.row,
                column=deviation.column,
                slope=slope,
                slope_budget=slope_budget,
                part=deviation.part,
                baseline_rel=base.rel if base else None,
                baseline_worst=base.worst if base else None,
                cosine=deviation.cosine,
                **budgets,
            )
        )
    return tuple(errors)


def gross(
    errors: Sequence[OutputError], deviations: Mapping[str, Deviation], dtype: DType
) -> tuple[OutputError, ...]:
    """The same, where only the error and the slope of a whole output count, above GROSS × what any
    may err by: for inputs of which nobody said how well the formula can be computed on them."""
    nothing, found = math.inf, []
    for error in errors:
        deviation = deviations[error.name]
        most = GROSS * Limit.of(dtype, deviation.dtype).ceiling
        found.append(
            replace(
                error,
                rel_budget=max(error.rel_budget, most * deviation.scale),
                slope_budget=error.slope_budget + most,
                worst_budget=nothing,
                row_budget=nothing,
                column_budget=nothing,
            )
        )
    return tuple(found)


def _between(least: float, most: float, allowed: float | None, trial: bool) -> float:
    """What the baseline allows, between a floor and a ceiling; the latter if it says nothing."""
    if allowed is None or math.isnan(allowed):
        return most
    if trial:
        least, most = most, TIMES_BASELINE * most
    return min(max(allowed, least), most)


def _exact(
    deviation: Deviation, base: Deviation | None, limit: Limit, trial: bool
) -> dict[str, float]:
    ceiling = limit.ceiling
    lucky = SIGMAS / math.sqrt(deviation.count / FEW_COUNT)
    floor = min(limit.floor * (1 + lucky), ceiling)

    def within(name: str, scale: float, low: float = 1, high: float = 1) -> float:
        allowed = TIMES_BASELINE * getattr(base, name) if base else None
        return _between(floor * low * scale, ceiling * high * scale, allowed, trial)

    most = GROUP_CEILING if trial else ROW_CEILING

    return {
        "rel_budget": within("rel", deviation.scale),
        "worst_budget": within("worst", deviation.peak, WORST_FLOOR, WORST_CEILING),
        "row_budget": within("row", deviation.row_scale, GROUP_FLOOR, most),
        "column_budget": within("column", deviation.column_scale, GROUP_FLOOR, GROUP_CEILING),
    }


def _approximate(
    deviation: Deviation, promised: float, exact: Mapping[str, float], whole: bool
) -> dict[str, float]:
    """Of the part that is judged; beyond it, what passes through is rounded as exact ones do.
    whole: the promise is one of the whole output."""
    peak = max(WORST_OF_PROMISE, OF_LARGEST * deviation.own_peak)
    times = {"rel": 1.0, "worst": peak, "row": GROUP_OF_PROMISE, "column": GROUP_OF_PROMISE}
    if whole:
        times = {"rel": 1.0, "worst": math.inf, "row": math.inf, "column": math.inf}
    passes = {name: 0.0 if deviation.part is None else budget for name, budget in exact.items()}
    return {f"{k}_budget": promised * times[k] + passes[f"{k}_budget"] for k in times}


def _slope(
    deviation: Deviation,
    base: Deviation | None,
    limit: Limit,
    promised: float | None,
    trial: bool,
) -> tuple[float, float]:
    """The slope nearest to its budget, and that."""
    slopes = []
    for i, slope in enumerate(deviation.slopes):
        allowed = limit.ceiling
        if promised is not None:
            allowed = promised
        elif base is not None and i < len(base.slopes):
            own = base.slopes[i]
            most = max(TIMES_BASELINE * abs(own.value), SIGMAS * own.spread, base.rel**2 / 4)
            ceiling = limit.ceiling * (1 if trial else deviation.scale)
            allowed = _between(limit.slope_floor, ceiling, most, trial)
        slopes.append((slope.value, allowed + SIGMAS * slope.error))
    return max(slopes, key=_nearest, default=(0.0, math.inf))


def _nearest(slope: tuple[float, float]) -> float:
    value, budget = slope
    return abs(value) / budget if budget else math.inf if value else 0.0


@contextmanager
def watching(workload: Workload, contract: Contract) -> Iterator[None]:
    """What every forward of the workload returns is looked at as it is returned."""
    workload.watch = partial(contract.check, names=workload.outputs)
    try:
        yield
    finally:
        workload.watch = None


def produce(workload: Workload, contract: Contract) -> Answer:
    """One hardened call: the outputs as they stood when the call's own stream reached its end.

    On a GPU everything is queued behind a gate, so that a copy of the outputs is due the moment
    the call's stream is through with it; a gate that was too short is tried again, longer.
    Raises ContractError when the call, or its forward, returns anything but an answer.
    """
    cuda = next(iter(workload.args.values())).is_cuda
    with watching(workload, contract):
        for cycles in GATE_CYCLES if cuda else (0,):
            workload.ready()
            _poison_outputs(workload, contract)
            fault, watched, held = _hardened_call(workload, contract, cycles)
            if held:
                break
    later = answer.LATER_CALLS if answer.kept(watched) else answer.FEW_CALLS
    fault.overwritten = answer.overwritten(workload, later)
    return fault


def produce_plainly(workload: Workload, contract: Contract, apart: Sequence[str]) -> Answer:
    """One call on inputs that are there, its answer looked at and, but for `apart`, copied."""
    with watching(workload, contract):
        workload.ready()
        right = workload.state()
        with workload.grad_mode():
            outputs = _called(workload, contract)
            outputs = tuple(answer.copied(outputs))
    result = Answer(dict(zip(workload.names, outputs, strict=True)), workload.changed(right))
    for name in apart:
        result.outputs.pop(name, None)
    workload.rest()
    return result


def _called(workload: Workload, contract: Contract) -> tuple[torch.Tensor, ...]:
    outputs = workload.call()
    contract.check(outputs, workload.names)
    return outputs


def _hardened_call(
    workload: Workload, contract: Contract, cycles: int
) -> tuple[Answer, Sequence[Any], bool]:
    """The answer, copied in stream order; what it lay in; if the gate held until all was queued."""
    right, opened = workload.state(), None
    with workload.grad_mode():
        workload.poison()
        if cycles:
            torch.cuda.synchronize()
            torch.cuda._sleep(cycles)
            opened = torch.cuda.Event()
            opened.record()
        workload.refill(right)
        outputs = _called(workload, contract)
        copies = answer.copied(outputs)
    held = opened is None or not opened.query()
    if cycles:
        torch.cuda.synchronize()
    changed = workload.changed(right)
    leave_nan(outputs, workload)
    watched = answer.watch_of(outputs, workload)
    return Answer(dict(zip(workload.names, copies, strict=True)), changed), watched, held


def _poison_outputs(workload: Workload, contract: Contract) -> None:
    """Call once on inputs of NaN, and leave NaN where its outputs lay and in free memory.

    What the call uses, its scratch too, then holds no right answer that the next call, which is
    handed the same memory, could pass for its own. What lies in an input is filled in again.
    """
    with workload.grad_mode():
        workload.poison()
        first = _called(workload, contract)
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
    inputs = stored(workload.given())
    floating = [t for t in outputs if t.is_floating_point() and answer.has_memory(t)]
    for tensor in floating:
        if tensor.untyped_storage().data_ptr() not in inputs:
            tensor.data.fill_(math.nan)
    return [(tensor.shape, tensor.dtype, tensor.device) for tensor in floating]


def _missed(error: OutputError) -> str:
    """Each figure that is over its budget, the relative error first, and the worst element."""
    figures = {what: (value, budget) for what, value, budget in error.figures}
    rel, rel_budget = figures.pop("error")
    worst, worst_budget = figures.pop("worst element")
    cosine = "" if error.cosine is None else f", cosine {error.cosine:.4f}"
    part = "" if error.part is None else f" of the part that is computed, {error.part:.2g} of all"
    over = [
        f"{what} {value:.2g}, budget {budget:.2g}"
        for what, (value, budget) in figures.items()
        if not value <= budget
    ]
    text = (
        f"error {rel:.2g} (worst element {worst:.2g} of rms{cosine}){part}, "
        f"budget {rel_budget:.2g} ({worst_budget:.2g})"
    )
    return "; ".join([text, *over])


def verdict(errors: Sequence[OutputError], faults: Sequence[str]) -> str:
    """Why a provider is incorrect; empty when it is right."""
    reasons = list(faults)
    for error in errors:
        if math.isnan(error.rel):
            reasons.append(f"NaN in {error.name}")
        elif math.isinf(error.rel):
            reasons.append(f"an infinity in {error.name} that is not the oracle's, or lacks there")
        elif not error.ok:
            reasons.append(f"{error.name}: {_missed(error)}")
    return "; ".join(reasons)
