"""Checks a provider's outputs against an fp64 oracle, within an error budget.

Memory that the judged call did not write holds NaN, its inputs are filled in only in the order of
its own stream, and its outputs are copied at once, before anything else is waited for. So
half-written outputs, work left on another stream, answers kept from an earlier call and changed
inputs all show as errors.
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
from kernelbench.measure.inputs import Tensors, storage_addresses
from kernelbench.measure.team import Team
from kernelbench.measure.workload import Workload
from kernelbench.spec import DType, OutputError, Provider

# Multiples of FLOOR and CEILING for the worst row and column. A row's ceiling is higher except in
# trials: a row that nearly cancels, such as the causal dq of a query that sees two keys, errs far
# more than the rest, in PyTorch's kernels as well.
GROUP_FLOOR, GROUP_CEILING, ROW_CEILING = 3.0, 10.0, 50.0
WORST_FLOOR, WORST_CEILING = 4.0, 2.0  # the same for the worst element: up to four roundings
TIMES_BASELINE = 3.0
OF_ROUNDED = 1.25  # times the slope of the right answer, rounded once
GROSS = 10.0
SIGMAS = 4.0  # standard errors that a figure may be off by chance
FEW_COUNT = 4.0  # elements that count as one: where few are large, they alone make up a norm
# Multiples of the relative error that an approximate provider promises.
WORST_OF_PROMISE, GROUP_OF_PROMISE = 8.0, 3.0
OF_LARGEST = 2.0  # the same for the worst element, times the largest element over the rms
GATE_CYCLES = (4_000_000, 40_000_000, 200_000_000)  # hold the stream for about 2, 20, 100 ms


@dataclass
class Answer:
    """The result of one checked call.

    outputs: copies by name. changed: inputs that it changed without declaring it. overwritten:
    outputs of it that a later call changed.
    """

    outputs: Tensors
    changed: list[str] = field(default_factory=list)
    overwritten: list[str] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        """What is wrong with the call, apart from the values of its outputs."""
        return [f"changed its input {name}" for name in self.changed] + [
            f"a later call changed {name} of an earlier one" for name in self.overwritten
        ]


def promise(provider: Provider[Any], *inputs: str) -> float | str | None:
    """The relative error that a provider promises for inputs of these names.

    inputs: the name of a distribution, and of a trial of it; the largest promise counts. Returns
    None for an exact provider, and the reason where a provider, exact or not, promises nothing.
    """
    promises = [provider.promises[name] for name in inputs if name in provider.promises]
    if reason := next((value for value in promises if isinstance(value, str)), None):
        return reason
    if provider.max_error is None:
        return None
    return max([p for p in promises if not isinstance(p, str)], default=provider.max_error)


def judge(
    deviations: Mapping[str, Deviation],
    baseline: Mapping[str, Deviation] | None,
    dtype: DType,
    provider: Provider[Any],
    *inputs: str,
    trial: bool = False,
) -> tuple[OutputError, ...]:
    """The errors of every output beside their budgets.

    The budgets of an exact provider are 3 × the baseline's own figure, within [floor, ceiling]:
      rel: [FLOOR · (1 + 4/√(n/4)), CEILING] · ‖ref‖/‖p‖ for n elements. A baseline's error may be
        small by chance, and what passes through unchanged is rounded as well.
      worst: [4 · FLOOR, 2 · CEILING] · max |ref| / rms(p). One rounding errs by FLOOR at most, and
        rounding the largest element errs by max |ref| times that.
      row, column: [3 · FLOOR, 10 · CEILING (a row 50 ·)] · ‖ref‖/‖p‖ of the row or column.
      slope: [SLOPE_FLOOR, CEILING · ‖ref‖/‖p‖], plus 4 standard errors. The baseline's figure is
        here the largest of 3 × its slope, 4 × its spread, 1.25 × the slope of ref itself, rounded
        once, and rel² / 4: a part that is smaller than the rounding of what passes through is lost
        in it, by a share that depends on the order of roundings.
    Of an output in another dtype than the case's, FLOOR and CEILING are those of the coarser of
    both (of an fp8 output, by its unit roundoff). Whole numbers and booleans have no floor: where
    the baseline is exact, all must be.
    Without a baseline the ceilings are the budgets; that of the slope is CEILING or, if that is
    more, (FLOOR · ‖ref‖/‖p‖)² / 4. In a `trial` the
    errors that matter are gross, and rounding errors depend on few elements: there the ceilings (of
    rows and columns 10 · CEILING) are the floors, and 3 × them the ceilings.

    The budgets of an approximate provider follow from its promise for `inputs` (the name of a
    distribution, and of a trial): that error for rel, 8 × it for worst (or 2 × it · max |p| /
    rms(p), if that is more), 3 × it for row and column, `max_slope` for the slope on all inputs (if
    None, the promise). Where something passes through, an exact provider's budget is added. A
    promise above `max_error` is about the whole output alone: where one score decides which value a
    row takes, a few rows have all of the error.
    """
    errors = []
    promises = promise(provider, *inputs)
    promised = provider.max_error if isinstance(promises, str) else promises
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
    """The same errors with budgets of at least GROSS × CEILING for rel and slope, and no others.

    For inputs on which nobody has stated how precisely the formula can be computed.
    """
    loosened = []
    for error in errors:
        deviation = deviations[error.name]
        most = GROSS * Limit.of(dtype, deviation.dtype).ceiling
        loosened.append(
            replace(
                error,
                rel_budget=max(error.rel_budget, most * deviation.scale),
                slope_budget=error.slope_budget + most,
                worst_budget=math.inf,
                row_budget=math.inf,
                column_budget=math.inf,
            )
        )
    return tuple(loosened)


def _between(least: float, most: float, allowed: float | None, trial: bool) -> float:
    """`allowed` within [least, most], in a trial [most, 3 · most]; `most` if it is unknown."""
    if allowed is None or math.isnan(allowed):
        return most
    if trial:
        least, most = most, TIMES_BASELINE * most
    return min(max(allowed, least), most)


def _exact(
    deviation: Deviation, base: Deviation | None, limit: Limit, trial: bool
) -> dict[str, float]:
    """The budgets of an exact provider by field of OutputError, but the slope's; see `judge`."""
    ceiling = limit.ceiling
    by_chance = SIGMAS / math.sqrt(deviation.count / FEW_COUNT)
    floor = min(limit.floor * (1 + by_chance), ceiling)

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
    """The budgets of an approximate provider, but the slope's; see `judge`.

    exact: those of an exact one. whole: the promise is about the whole output alone.
    """
    peak = max(WORST_OF_PROMISE, OF_LARGEST * deviation.own_peak)
    times = {"rel": 1.0, "worst": peak, "row": GROUP_OF_PROMISE, "column": GROUP_OF_PROMISE}
    if whole:
        times = {"rel": 1.0, "worst": math.inf, "row": math.inf, "column": math.inf}
    rounding = {name: 0.0 if deviation.part is None else budget for name, budget in exact.items()}
    return {f"{k}_budget": promised * times[k] + rounding[f"{k}_budget"] for k in times}


def _slope(
    deviation: Deviation,
    base: Deviation | None,
    limit: Limit,
    promised: float | None,
    trial: bool,
) -> tuple[float, float]:
    """The slope that is nearest to its budget, and that budget."""
    slopes = []
    for i, slope in enumerate(deviation.slopes):
        allowed = max(limit.ceiling, (limit.floor * deviation.scale) ** 2 / 4)
        if promised is not None:
            allowed = promised
        elif base is not None and i < len(base.slopes):
            own = base.slopes[i]
            most = max(
                TIMES_BASELINE * abs(own.value),
                SIGMAS * own.spread,
                base.rel**2 / 4,
                OF_ROUNDED * abs(slope.rounded),
            )
            ceiling = limit.ceiling * (1 if trial else deviation.scale)
            allowed = _between(limit.slope_floor, ceiling, most, trial)
        slopes.append((slope.value, allowed + SIGMAS * slope.error))
    return max(slopes, key=_nearest, default=(0.0, math.inf))


def _nearest(slope: tuple[float, float]) -> float:
    value, budget = slope
    return abs(value) / budget if budget else math.inf if value else 0.0


@contextmanager
def watching(workload: Workload, contract: Contract) -> Iterator[None]:
    """Inside, what each forward of the workload returns is checked when it is returned."""
    workload.watch = partial(contract.check, names=workload.outputs)
    try:
        yield
    finally:
        workload.watch = None


def produce(workload: Workload, contract: Contract, team: Team) -> Answer:
    """One hardened call: the outputs as they were when the call's own stream reached its end.

    On a GPU everything is queued behind a gate, so that the copy of the outputs starts as soon as
    the call's stream is done with it; if a gate was too short, a longer one is tried.
    team: who calls with this process. Raises ContractError when the call, or its forward, returns
    no valid answer.
    """
    cuda = next(iter(workload.args.values())).is_cuda
    with watching(workload, contract):
        for cycles in GATE_CYCLES if cuda else (0,):
            workload.ready()
            _poison_outputs(workload, contract)
            result, storages, held = _hardened_call(workload, contract, cycles)
            if all(team.gather(held)):
                break
    kept = any(team.gather(answer.still_referenced(storages)))
    later = answer.LATER_CALLS if kept else answer.FEW_CALLS
    result.overwritten = answer.overwritten(workload, later)
    return result


def produce_plainly(workload: Workload, contract: Contract, apart: Sequence[str]) -> Answer:
    """One call on the inputs as they are; its outputs are checked and copied, except `apart`.

    Raises ContractError as `produce` does.
    """
    with watching(workload, contract):
        workload.ready()
        before = workload.snapshot()
        with workload.grad_mode():
            outputs = _called(workload, contract)
            outputs = tuple(answer.copies_of(outputs))
    result = Answer(dict(zip(workload.names, outputs, strict=True)), workload.changed(before))
    for name in apart:
        result.outputs.pop(name, None)
    workload.release()
    return result


def _called(workload: Workload, contract: Contract) -> tuple[torch.Tensor, ...]:
    outputs = workload.call()
    contract.check(outputs, workload.names)
    return outputs


def _hardened_call(
    workload: Workload, contract: Contract, cycles: int
) -> tuple[Answer, Sequence[Any], bool]:
    """The answer, copied in stream order; weak references to the storages of its outputs; and
    whether the gate held until everything was queued."""
    before, opened = workload.snapshot(), None
    with workload.grad_mode():
        workload.poison()
        if cycles:
            torch.cuda.synchronize()
            torch.cuda._sleep(cycles)
            opened = torch.cuda.Event()
            opened.record()
        workload.refill(before)
        outputs = _called(workload, contract)
        copies = answer.copies_of(outputs)
    held = opened is None or not opened.query()
    if cycles:
        torch.cuda.synchronize()
    changed = workload.changed(before)
    fill_with_nan(outputs, workload)
    storages = answer.weak_storages(outputs, workload)
    return Answer(dict(zip(workload.names, copies, strict=True)), changed), storages, held


def _poison_outputs(workload: Workload, contract: Contract) -> None:
    """Call once on inputs of NaN, and leave NaN in the memory of its outputs and in free memory.

    The memory that the call uses, scratch included, then holds no right answer that the next call,
    which gets the same memory, could return as its own. An output in an input is filled in again.
    """
    with workload.grad_mode():
        workload.poison()
        first = _called(workload, contract)
    if any(tensor.is_cuda for tensor in first):
        torch.cuda.synchronize()  # work on another stream must not finish after the NaN
    sizes = fill_with_nan(first, workload)
    del first
    workload.release()
    blocks = [
        torch.full(shape, math.nan, dtype=dtype, device=device)
        for shape, dtype, device in sizes
        for _ in range(3)
    ]
    del blocks
    workload.ready()


def fill_with_nan(
    outputs: Sequence[torch.Tensor], workload: Workload
) -> list[tuple[torch.Size, torch.dtype, torch.device]]:
    """Fill floating-point outputs with NaN, unless they lie in inputs; returns their (shape, dtype,
    device)."""
    inputs = storage_addresses(workload.inputs())
    floating = [t for t in outputs if t.is_floating_point() and answer.has_memory(t)]
    for tensor in floating:
        if tensor.untyped_storage().data_ptr() not in inputs:
            tensor.data.fill_(math.nan)
    return [(tensor.shape, tensor.dtype, tensor.device) for tensor in floating]


def _missed(error: OutputError) -> str:
    """The relative error and the worst element, then every other figure above its budget."""
    figures = {name: (value, budget) for name, value, budget in error.figures}
    rel, rel_budget = figures.pop("error")
    worst, worst_budget = figures.pop("worst element")
    cosine = "" if error.cosine is None else f", cosine {error.cosine:.4f}"
    part = "" if error.part is None else f" of the part that is computed, {error.part:.2g} of all"
    over = [
        f"{name} {value:.2g}, budget {budget:.2g}"
        for name, (value, budget) in figures.items()
        if not value <= budget
    ]
    text = (
        f"error {rel:.2g} (worst element {worst:.2g} of rms{cosine}){part}, "
        f"budget {rel_budget:.2g} ({worst_budget:.2g})"
    )
    return "; ".join([text, *over])


def verdict(errors: Sequence[OutputError], faults: Sequence[str]) -> str:
    """Why a provider is incorrect, in words; "" when it is right."""
    reasons = list(faults)
    for error in errors:
        if math.isnan(error.rel):
            reasons.append(f"NaN in {error.name}")
        elif math.isinf(error.rel):
            reasons.append(f"an infinity in {error.name} that is not the oracle's, or lacks there")
        elif not error.ok:
            reasons.append(f"{error.name}: {_missed(error)}")
    return "; ".join(reasons)
