"""The last stage of a job: checks providers again, rejects impossible times, makes the records."""

import uuid
from dataclasses import replace
from functools import partial
from itertools import chain
from statistics import median
from typing import Any, NamedTuple

from kernelbench.measure.ceilings import too_fast
from kernelbench.measure.failure import Failure
from kernelbench.measure.prepare import Prepared
from kernelbench.measure.prove import Proven
from kernelbench.measure.recheck import Recheck
from kernelbench.measure.session import Candidate
from kernelbench.measure.slowdown import slower_on_fresh_inputs
from kernelbench.measure.task import Task
from kernelbench.measure.team import first_reason
from kernelbench.spec import RunRecord, Status, Timing

BEYOND_MODEL = "beyond-model"  # faster than the work that is modelled could be done


class _Group(NamedTuple):
    """What providers that were timed together have in common.

    seed: of the fresh inputs. slowdown: how many times longer the baseline takes on them. flags: of
    the job's telemetry.
    """

    seed: int
    slowdown: float
    flags: tuple[str, ...]
    name: str


def conclude(task: Task, prepared: Prepared, proven: Proven) -> list[RunRecord]:
    """Time and check on fresh inputs in the same memory, judge plausibility; then the records."""
    candidates = proven.candidates
    for candidate in candidates:
        candidate.workload.release()
    guard = task.guard
    recheck = Recheck(
        prepared.inputs, prepared.proof, task.session.clock, guard.attempt, guard.tell
    )
    failure = recheck.run(candidates, proven.reference)
    if failure is not None:
        return [task.failed(c.provider, failure, c.facts) for c in candidates]
    group = _Group(
        recheck.seed,
        recheck.baseline_slowdown(candidates),
        tuple(dict.fromkeys(chain(*task.session.team.gather(task.session.telemetry.flags())))),
        uuid.uuid4().hex[:12],
    )
    return [_record(task, prepared, candidate, group) for candidate in candidates]


def _record(task: Task, prepared: Prepared, candidate: Candidate, group: _Group) -> RunRecord:
    task.guard.tell(candidate.name, "check again")
    provider, timing = candidate.provider, candidate.timing
    step = partial(prepared.proof.judge, provider, candidate.workload)
    again = task.guard.attempt(step, candidate.name)
    candidate.workload.release()
    failure = again if isinstance(again, Failure) else candidate.failure
    if failure is not None:
        return task.failed(provider, failure, candidate.facts)
    doubtful = timing is not None and timing.timer in ("ungated", "profiled")
    flags = (*candidate.flags, *group.flags, *((timing.timer,) if timing and doubtful else ()))
    reason = again.reason
    if reason:
        candidate.facts["errors"] = again.errors
        reason = f"on fresh inputs, after timing (--seed {group.seed}): {reason}"
    fault = first_reason(task.session.team, candidate.fault)
    reason = task.guard.disturbance(provider.name) or reason or fault
    if reason:
        return task.incorrect(replace(candidate, flags=[*flags]), reason, again.detail)
    limits = task.session.ceilings.of(task.case, provider, prepared.cost)
    if timing is not None:
        reason = slower_on_fresh_inputs(timing, group.slowdown)
        fast = too_fast(timing, prepared.cost, limits)
        if fast and task.family.declared:  # what a function must do is counted, not stated
            flags = (*flags, BEYOND_MODEL)
        else:
            reason = fast or reason
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
    """The job's telemetry, with the SM clock of the provider's own samples where it was read."""
    own = {"sm_mhz": float(median(timing.clocks_mhz))} if timing and timing.clocks_mhz else {}
    return task.session.telemetry.facts() | own
