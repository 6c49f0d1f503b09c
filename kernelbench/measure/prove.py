"""The second stage of a job: builds every provider and proves it right, also on trial inputs."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from kernelbench.kernels import interpreter
from kernelbench.measure.failure import Failure
from kernelbench.measure.parts import traffic_of
from kernelbench.measure.prepare import Prepared, config, why_unable, workload
from kernelbench.measure.proof import erase
from kernelbench.measure.session import Candidate
from kernelbench.measure.task import Stage, Task
from kernelbench.measure.team import first_reason
from kernelbench.measure.trials import Trials
from kernelbench.spec import DType, Provider, Status


@dataclass(frozen=True)
class Proven:
    """The right providers. reference: the baseline, requested or not, if it is right."""

    candidates: list[Candidate]
    reference: Candidate | None = None


@dataclass(frozen=True)
class _WrongAnswer:
    """A provider whose answer is wrong, and why."""

    candidate: Candidate
    reason: str
    detail: str = ""


def prove(task: Task, prepared: Prepared, runnable: Sequence[Provider[Any]]) -> Stage[Proven]:
    """Build and check every provider; yields records of the others, returns the right ones.

    The baseline comes first, even when it was not requested: its error sets the budget.
    """
    candidates, reference = list[Candidate](), None
    for provider in _baseline_first(task, runnable):
        outcome = task.guard.attempt(partial(_build, task, prepared, provider), provider.name)
        if provider is task.family.baseline and isinstance(outcome, Candidate):
            reference = outcome
        if provider not in runnable:
            if reference is not None:  # its errors are needed, its answer is not
                erase(reference.proven)
                reference.proven = {}
            continue
        if isinstance(outcome, Failure):
            yield [task.failed(provider, outcome)]
        elif isinstance(outcome, _WrongAnswer):
            yield [task.incorrect(outcome.candidate, outcome.reason, outcome.detail)]
        elif disturbance := task.guard.disturbance(provider.name):
            yield [task.incorrect(outcome, disturbance)]
        else:
            candidates.append(outcome)
    return Proven(candidates, reference)


def prove_on_trials(task: Task, prepared: Prepared, proven: Proven) -> Stage[list[Candidate]]:
    """Prove the candidates on trial inputs; yields records of wrong ones, returns the others."""
    remaining, guard = [*proven.candidates], task.guard
    release = partial(task.session.release_memory, collect=False)
    trials = Trials(prepared.inputs, prepared.proof, guard.attempt, guard.tell, release)
    seed = task.request.context.seed
    for candidate, outcome in trials.run(proven.candidates, proven.reference, seed):
        remaining.remove(candidate)
        if isinstance(outcome, Failure):
            yield [task.failed(candidate.provider, outcome, candidate.facts)]
        else:
            yield [task.incorrect(candidate, outcome.reason, outcome.detail)]
    for candidate in [*remaining]:
        if disturbance := guard.disturbance(candidate.name):
            remaining.remove(candidate)
            yield [task.incorrect(candidate, disturbance)]
    return remaining


def _baseline_first(task: Task, runnable: Sequence[Provider[Any]]) -> Sequence[Provider[Any]]:
    baseline = task.family.baseline
    if baseline.name in task.request.without or why_unable(task, baseline) is not None:
        return runnable
    return [baseline, *(p for p in runnable if p is not baseline)]


def _build(
    task: Task, prepared: Prepared, provider: Provider[Any]
) -> Candidate | _WrongAnswer | Failure:
    """Build, call for the first time, and judge. Searching a config counts as compiling."""
    task.guard.tell(provider.name, "compile")
    interpreter.forget_launches()
    start = time.perf_counter()
    chosen, origin = config(task, prepared, provider)
    built = workload(task, prepared, provider, chosen)
    if task.case.dtype is DType.bf16 and interpreter.launched():
        return Failure(Status.skipped, interpreter.WRONG_BF16)
    facts: dict[str, Any] = {"compile_s": round(time.perf_counter() - start, 4)}
    if chosen is not None:
        facts |= {"config": asdict(chosen), "config_origin": origin}
    task.guard.tell(provider.name, "check")
    task.session.release_memory(collect=False)  # so that the proven answer pins no larger block
    proof, cost = prepared.proof, prepared.cost
    verdict = proof.judge(provider, built, keep=task.request.timing and task.session.clock.times)
    facts |= {
        "errors": verdict.errors,
        "flops": cost.flops,
        "read_bytes": cost.read,
        "write_bytes": cost.write,
        "traffic": traffic_of(provider, task.case),
        "prepared": built.prepared,
    }
    candidate = Candidate(provider, built, facts, verdict.proven, verdict.deviations)
    candidate.flags += task.family.flags(task.case)
    if proof.baseline is None and provider is not task.family.baseline:
        candidate.flags.append("no-baseline-budget")
    if verdict.strides:
        candidate.flags.append(f"strides-of-{'-'.join(verdict.strides)}")
    reason = verdict.reason or first_reason(task.session.team, built.prepare_fault())
    if reason:
        return _WrongAnswer(candidate, reason, verdict.detail)
    peaks = task.session.team.gather(built.peak_bytes())
    facts["peak_bytes"] = max((peak for peak in peaks if peak is not None), default=None)
    built.release()  # what it holds for a backward would take memory from the next proof
    return candidate
