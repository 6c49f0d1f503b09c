"""The third stage of a job: all candidates are timed together, then read by the other clocks."""

from functools import partial

from kernelbench.measure.failure import Failure
from kernelbench.measure.lot import Lot
from kernelbench.measure.other_clocks import read_beside
from kernelbench.measure.prepare import Prepared
from kernelbench.measure.proof import spend
from kernelbench.measure.sampling import Sampled
from kernelbench.measure.session import Candidate
from kernelbench.measure.task import Stage, Task
from kernelbench.measure.throttling import Steady
from kernelbench.spec import Timing


def sample(task: Task, prepared: Prepared, candidates: list[Candidate]) -> Stage[list[Candidate]]:
    """Time all together; one that fails meanwhile leaves and the others start again. Those that are
    left have their timing."""
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
            culprit.workload.rest()
        yield [task.failed(c.provider, failure, c.facts) for c in culprits]
    if candidates:
        timers = () if task.job.process else task.job.measure.timers
        read_beside(task.session.clock, candidates, timers, task.guard.attempt, task.guard.tell)
    return candidates


def _sample(task: Task, candidates: list[Candidate], first: bool) -> None:
    """first: what is taken from the driver now is there when they start again."""
    session, clock = task.session, task.session.clock
    if not clock.times:
        for candidate in candidates:
            candidate.timing = Timing(timer=clock.name, blocks_ns=())
        return
    if first:
        session.hand_back()
    for candidate in candidates:
        task.guard.tell(candidate.name, "measure")
        candidate.workload.ready()
        candidate.workload.lot = Lot.of(candidate, session.device)
    if first:
        session.hand_back(collect=False)
    parts = [c.workload for c in candidates]
    baseline = next(
        (i for i, c in enumerate(candidates) if c.provider is task.family.baseline), None
    )
    stays: tuple[int, ...] = ()
    if baseline is not None and clock.name == "gated":
        parts = [*parts, parts[baseline]]
        stays = (baseline, len(candidates))
    taken = Steady(clock, session.telemetry).sample(
        parts,
        task.job.measure,
        seed=f"{task.request.context.seed} {task.job.family} {task.case.id} {task.job.process}",
        stays=stays,
        tell=lambda name: task.guard.tell(name, "measure"),
        after_batch=lambda i: task.guard.blame(parts[i].name),
    )
    for i, (candidate, sampled) in enumerate(zip(candidates, taken, strict=False)):
        again = taken[-1] if stays and i == baseline else None
        candidate.timing = _timing(task, sampled, again)
        _draw_lots(candidate)


def _draw_lots(candidate: Candidate) -> None:
    """What the judged ones among the timed calls were found to be."""
    lot, candidate.workload.lot = candidate.workload.lot, None
    if lot is not None:
        candidate.facts["judged_calls"] = lot.timed
        reason = lot.verdict()
        candidate.wrong = candidate.wrong or (reason and f"as it was timed: {reason}")
        spend(candidate.proven)
        candidate.proven = {}


def _timing(task: Task, sampled: Sampled, again: Sampled | None) -> Timing:
    session, clock = task.session, task.session.clock
    held = sampled.held and (again is None or again.held)
    return Timing(
        timer=session.timer(held),
        blocks_ns=tuple(sampled.blocks_ns),
        again_ns=tuple(again.blocks_ns) if again else (),
        places=tuple(sampled.places),
        again_places=tuple(again.places) if again else (),
        quantum_ns=clock.quantum_ns,
        clocks_mhz=tuple(sampled.clocks_mhz) if all(sampled.clocks_mhz) else (),
        lead=sampled.lead,
        overhead_ns=clock.overhead_ns,
        traced_overhead_ns=session.ceilings.overhead.traced_ns,
        stop=sampled.stop,
    )
