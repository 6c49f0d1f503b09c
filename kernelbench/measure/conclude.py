"""The last stage of a job: checked again, held against what is possible, and put into records."""

import uuid
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any, NamedTuple

from kernelbench.measure.ceilings import too_fast
from kernelbench.measure.failure import Failure
from kernelbench.measure.prepare import Prepared
from kernelbench.measure.recheck import Recheck
from kernelbench.measure.session import Candidate
from kernelbench.measure.slowdown import seen_before
from kernelbench.measure.task import Task
from kernelbench.spec import RunRecord, Status, Timing


class _Group(NamedTuple):
    """What those that were timed together have in common.

    seed: of the fresh inputs. slower: by what factor the baseline is on them.
    """

    seed: int
    slower: float
    doubts: tuple[str, ...]
    name: str


def conclude(task: Task, prepared: Prepared, candidates: list[Candidate]) -> list[RunRecord]:
    """Fresh inputs in the same memory, the check again, plausibility; then the records."""
    for candidate in candidates:
        candidate.workload.rest()
    guard = task.guard
    recheck = Recheck(
        prepared.inputs, prepared.proof, task.session.clock, guard.attempt, guard.tell
    )
    undrawn = recheck.run(candidates)
    if undrawn is not None:
        return [task.failed(c.provider, undrawn, c.facts) for c in candidates]
    group = _Group(
        recheck.seed,
        recheck.slower(candidates),
        task.session.telemetry.flags(),
        uuid.uuid4().hex[:12],
    )
    return [_record(task, prepared, candidate, group) for candidate in candidates]


def _record(task: Task, prepared: Prepared, candidate: Candidate, group: _Group) -> RunRecord:
    task.guard.tell(candidate.name, "check again")
    provider, timing = candidate.provider, candidate.timing
    step = partial(prepared.proof.judge, provider, candidate.workload)
    again = task.guard.attempt(step, candidate.name)
    candidate.workload.rest()
    failure = again if isinstance(again, Failure) else candidate.failure
    if failure is not None:
        return task.failed(provider, failure, candidate.facts)
    doubtful = timing is not None and timing.timer in ("ungated", "profiled")
    flags = (*candidate.flags, *group.doubts, *((timing.timer,) if timing and doubtful else ()))
    reason = again.reason
    if reason:
        candidate.facts["errors"] = again.errors
        reason = f"on fresh inputs, after timing (--seed {group.seed}): {reason}"
    reason = task.guard.disturbed.get(provider.name) or reason or candidate.wrong
    if reason:
        return task.incorrect(replace(candidate, flags=[*flags]), reason, again.detail)
    limits = task.session.ceilings.of(task.case, provider, prepared.cost)
    if timing is not None:
        reason = too_fast(timing, prepared.cost, limits) or seen_before(timing, group.slower)
    return task.answer(
        candidate,
        Status.implausible if reason else Status.ok,
        reason,
        flags=flags,
        timing=timing,
        ceilings=limits or None,
        telemetry=_telemetry(task, timing) or None,
        group=group.name,
    )


def _telemetry(task: Task, timing: Timing | None) -> dict[str, Any]:
    """Of the job; the clock is that of the provider's own samples, where it could be read."""
    own = {"sm_mhz": float(median(timing.clocks_mhz))} if timing and timing.clocks_mhz else {}
    return task.session.telemetry.facts() | own
