"""The third stage of a job: times all candidates together, then reads the other clocks."""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from kernelbench.measure.failure import Failure
from kernelbench.measure.lot import Lot
from kernelbench.measure.messages import read_messages
from kernelbench.measure.other_clocks import read_other_clocks
from kernelbench.measure.prepare import Prepared
from kernelbench.measure.proof import erase
from kernelbench.measure.sampling import PartSamples
from kernelbench.measure.session import Candidate
from kernelbench.measure.task import Stage, Task
from kernelbench.measure.throttling import SteadyClock
from kernelbench.measure.workload import Workload
from kernelbench.spec import COUNTED, Timing


def sample(task: Task, prepared: Prepared, candidates: list[Candidate]) -> Stage[list[Candidate]]:
    """Time all candidates together; returns those that have their timing.

    Yields the record of a candidate that fails meanwhile; the others then start again.
    """
    prepared.proof.oracle.forget()
    first = True
    while candidates:
        task.session.telemetry.reset()
        failure: Failure | None = task.guard.attempt(partial(_sample, task, candidates, first))
        if failure is None:
            break
        first = False
        culprits = [c for c in candidates if c.name == task.guard.at_work] or candidates
        candidates = [c for c in candidates if c not in culprits]
        for culprit in culprits:
            culprit.workload.release()
        yield [task.failed(c.provider, failure, c.facts) for c in culprits]
    if candidates and not task.job.process:
        if task.job.world > 1:  # the other clocks are of one process
            read_messages(task, candidates)
        else:
            timers, guard = task.job.measure.timers, task.guard
            read_other_clocks(task.session.clock, candidates, timers, guard.attempt, guard.tell)
    return candidates


def _sample(task: Task, candidates: list[Candidate], first: bool) -> None:
    """first: whether to return free memory to the driver; not when candidates start again."""
    session, clock = task.session, task.session.clock
    if not clock.times:
        for candidate in candidates:
            candidate.timing = Timing(timer=clock.name, blocks_ns=())
        return
    for candidate in candidates:  # takes memory that `ready` would take parts of, and hold
        candidate.workload.lot = Lot.of(candidate, session.device)
    if first:
        session.release_memory()
    for candidate in candidates:
        task.guard.tell(candidate.name, "measure")
        candidate.workload.ready()
    if first:
        session.release_memory(collect=False)
    parts = [c.workload for c in candidates]
    baseline = next(
        (i for i, c in enumerate(candidates) if c.provider is task.family.baseline), None
    )
    lasting: tuple[int, ...] = ()
    if baseline is not None and clock.name in COUNTED:
        parts = [*parts, parts[baseline]]
        lasting = (baseline, len(candidates))
    results = _sampled(task, parts, lasting)
    for i, (candidate, own) in enumerate(zip(candidates, results, strict=False)):
        again = results[-1] if lasting and i == baseline else None
        candidate.timing = _timing(task, own, again)
        candidate.facts["ranks"] = tuple(
            Timing(timer=candidate.timing.timer, blocks_ns=blocks)
            for blocks in zip(*own.ranks, strict=True)
        )
        _conclude_lot(candidate)


def _sampled(
    task: Task, parts: Sequence[Workload], lasting: tuple[int, ...]
) -> Sequence[PartSamples]:
    """Samples of every part; where several ranks do the job, of one after the other."""
    session, measure = task.session, task.job.measure
    team = session.team
    if team.world > 1:
        measure = replace(measure, interleave=False)
    return SteadyClock(session.clock, session.telemetry, team).sample(
        parts,
        measure,
        now=lambda: team.gather(time.perf_counter())[0],
        seed=f"{task.request.context.seed} {task.job.family} {task.case.id} {task.job.process}",
        lasting=lasting,
        tell=lambda name: task.guard.tell(name, "measure"),
        after_batch=lambda i: task.guard.blame(parts[i].name),
    )


def _conclude_lot(candidate: Candidate) -> None:
    """Store the verdict on the judged calls, and erase the proven answer."""
    lot, candidate.workload.lot = candidate.workload.lot, None
    if lot is not None:
        candidate.facts["judged_calls"] = lot.timed
        reason = lot.verdict()
        candidate.fault = candidate.fault or (reason and f"as it was timed: {reason}")
        erase(candidate.proven)
        candidate.proven = {}


def _timing(task: Task, own: PartSamples, again: PartSamples | None) -> Timing:
    """own: the samples of a provider; again: those of the baseline's second run."""
    session, clock = task.session, task.session.clock
    held = own.held and (again is None or again.held)
    return Timing(
        timer=session.timer(held),
        blocks_ns=tuple(own.blocks_ns),
        again_ns=tuple(again.blocks_ns) if again else (),
        places=tuple(own.places),
        again_places=tuple(again.places) if again else (),
        quantum_ns=clock.quantum_ns,
        clocks_mhz=tuple(own.clocks_mhz) if all(own.clocks_mhz) else (),
        lead=own.lead,
        overhead_ns=clock.overhead_ns,
        traced_overhead_ns=session.ceilings.overhead.traced_ns,
        stop=own.stop,
    )
