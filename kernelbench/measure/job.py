"""One job, start to end, in stages: prepare → prove → sample → recheck → conclude."""

from collections.abc import Iterator
from typing import Any

from kernelbench.measure.conclude import conclude
from kernelbench.measure.failure import Failure
from kernelbench.measure.guard import Guard
from kernelbench.measure.prepare import prepare, runnable
from kernelbench.measure.prove import Proven, prove, prove_on_trials
from kernelbench.measure.sample import sample
from kernelbench.measure.session import DeviceLostError, Request, Session, Tell
from kernelbench.measure.task import Task
from kernelbench.spec import Family, RunRecord, Status

__all__ = ["DeviceLostError", "Request", "Session", "run_job"]


def run_job(
    family: Family[Any], request: Request, session: Session, tell: Tell
) -> Iterator[list[RunRecord]]:
    """Build every provider, prove it right, time it, and prove it right again.

    Yields records as soon as they are final; those of providers that were timed together come
    together. tell: is called with the provider and the phase that begin. Raises DeviceLostError
    where nothing more can run in this process.
    """
    guard = Guard(family, session, request.job.case.dtype, tell)
    task = Task(family, request, session.timing(family), guard)
    providers = yield from runnable(task, request.job.providers)
    if not providers:
        return
    prepared = prepare(task)
    if isinstance(prepared, Failure):
        yield [task.failed(provider, prepared) for provider in providers]
        return
    proven = yield from prove(task, prepared, providers)
    candidates = proven.candidates
    if not request.job.process:  # the first process proves it for all
        candidates = yield from prove_on_trials(task, prepared, proven)
    if not request.timing:
        if candidates:
            yield [task.answer(c, Status.ok, flags=tuple(c.flags)) for c in candidates]
        return
    timed = yield from sample(task, prepared, candidates)
    if timed:
        yield conclude(task, prepared, Proven(timed, proven.reference))
