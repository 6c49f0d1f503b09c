"""The other clocks, each in its own column; why one is missing is a fact, too."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from kernelbench.measure.failure import Failure
from kernelbench.measure.session import Attempt, Candidate, Clock, Tell
from kernelbench.measure.timer import CudaClock, Timed
from kernelbench.measure.trace import Spans

LATE = "left work on another stream unfinished when its own stream was done"


def read_beside(
    clock: Clock,
    candidates: Sequence[Candidate],
    timers: Sequence[str],
    attempt: Attempt,
    tell: Tell,
) -> None:
    """Read host, graph and kernel times into every candidate's timing, where they are wanted."""
    if not isinstance(clock, CudaClock):
        return
    for timer, read in (("host", clock.host_ns), ("graph", clock.graph_ns)):
        for candidate in candidates if timer in timers else ():
            tell(candidate.name, timer)
            _keep(candidate, timer, attempt(partial(read, candidate.workload), candidate.name))
    if "kernel" in timers:
        parts = _one_after_another(candidates, tell)
        spans = attempt(lambda: clock.kernel_ns(parts), "")
        for candidate in candidates:
            _keep_spans(candidate, spans)


def _one_after_another(candidates: Sequence[Candidate], tell: Tell) -> Iterator[Timed]:
    for candidate in candidates:
        tell(candidate.name, "kernel")
        yield candidate.workload


def _keep_spans(candidate: Candidate, spans_of: Mapping[str, Spans] | Failure) -> None:
    if isinstance(spans_of, Failure):
        _miss(candidate, "kernel", spans_of.reason)
        return
    spans = spans_of.get(candidate.name, Spans())
    if spans.ns:
        _keep(candidate, "kernel", spans.ns)
        _keep(candidate, "kernel_event", spans.event_ns)
    elif spans.held:
        _miss(candidate, "kernel", "CUPTI saw no kernel in the call")
    else:
        _miss(candidate, "kernel", "the gate did not hold under CUPTI")
    if 2 * spans.late > len(spans.ns):
        candidate.wrong = LATE


def _keep(candidate: Candidate, timer: str, times: tuple[int, ...] | Failure) -> None:
    if isinstance(times, Failure):
        _miss(candidate, timer, times.reason)
    elif candidate.timing is not None:
        facts: dict[str, Any] = {f"{timer}_ns": times}
        candidate.timing = replace(candidate.timing, **facts)


def _miss(candidate: Candidate, timer: str, reason: str) -> None:
    if candidate.timing is not None:
        missing = {**candidate.timing.missing, timer: reason}
        candidate.timing = replace(candidate.timing, missing=missing)
