"""The second stage of a job: every provider is built and proven right, on other inputs, too."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from kernelbench.measure.failure import Failure
from kernelbench.measure.parts import traffic_of
from kernelbench.measure.prepare import Prepared, config, unable, workload
from kernelbench.measure.session import Candidate
from kernelbench.measure.task import Stage, Task
from kernelbench.measure.trials import Trials
from kernelbench.spec import Provider


@dataclass(frozen=True)
class Proven:
    """Who is right. yardstick: the baseline, asked for or not, if it is right."""

    candidates: list[Candidate]
    yardstick: Candidate | None = None


@dataclass(frozen=True)
class _Wrong:
    """A provider whose answer is not right."""

    candidate: Candidate
    reason: str
    detail: str = ""


def prove(task: Task, prepared: Prepared, able: Sequence[Provider[Any]]) -> Stage[Proven]:
    """Build and check every provider; the right ones become candidates.

    The baseline comes first, even when it was not asked for: its error sets the budget.
    """
    candidates, yardstick = list[Candidate](), None
    for provider in _baseline_first(task, able):
        outcome = task.guard.attempt(partial(_build, task, prepared, provider), provider.name)
        if provider is task.family.baseline and isinstance(outcome, Candidate):
            yardstick = outcome
        if provider not in able:
            continue
        if isinstance(outcome, Failure):
            yield [task.failed(provider, outcome)]
        elif isinstance(outcome, _Wrong):
            yield [task.incorrect(outcome.candidate, outcome.reason, outcome.detail)]
        elif disturbed := task.guard.disturbed.get(provider.name):
            yield [task.incorrect(outcome, disturbed)]
        else:
            candidates.append(outcome)
    return Proven(candidates, yardstick)


def try_others(task: Task, prepared: Prepared, proven: Proven) -> Stage[list[Candidate]]:
    """Prove the candidates on the trials' inputs, too; those that are wrong there leave."""
    left, guard = [*proven.candidates], task.guard
    trials = Trials(prepared.inputs, prepared.proof, guard.attempt, guard.tell)
    seed = task.request.context.seed
    for candidate, fallen in trials.run(proven.candidates, proven.yardstick, seed):
        left.remove(candidate)
        if isinstance(fallen, Failure):
            yield [task.failed(candidate.provider, fallen, candidate.facts)]
        else:
            yield [task.incorrect(candidate, fallen.reason, fallen.detail)]
    for candidate in [*left]:
        if disturbed := guard.disturbed.get(candidate.name):
            left.remove(candidate)
            yield [task.incorrect(candidate, disturbed)]
    return left


def _baseline_first(task: Task, able: Sequence[Provider[Any]]) -> Sequence[Provider[Any]]:
    baseline = task.family.baseline
    if baseline.name in task.request.without or unable(task, baseline) is not None:
        return able
    return [baseline, *(p for p in able if p is not baseline)]


def _build(task: Task, prepared: Prepared, provider: Provider[Any]) -> Candidate | _Wrong:
    """Build, call for the first time, and prove right. The search of a config is compiling."""
    task.guard.tell(provider.name, "compile")
    start = time.perf_counter()
    chosen, origin = config(task, prepared, provider)
    built = workload(task, prepared, provider, chosen)
    facts: dict[str, Any] = {"compile_s": round(time.perf_counter() - start, 4)}
    if chosen is not None:
        facts |= {"config": asdict(chosen), "config_origin": origin}
    task.guard.tell(provider.name, "check")
    task.session.hand_back(collect=False)  # what is kept of it lies in no larger block
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
    reason = verdict.reason or built.computed()
    if reason:
        return _Wrong(candidate, reason, verdict.detail)
    facts["peak_bytes"] = built.peak_bytes()
    built.rest()  # what it keeps for a backward is not in the way of the next proof
    return candidate
