"""Reads the other clocks, each into its own column, or records why one is missing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from kernelbench.measure.failure import Failure
from kernelbench.measure.graph import Replays
from kernelbench.measure.session import Attempt, Candidate, Clock, Tell
from kernelbench.measure.timer import CudaClock, Timed
from kernelbench.measure.trace import Spans

LATE = "left work on another stream unfinished when its own stream was done"


def read_other_clocks(
    clock: Clock,
    candidates: Sequence[Candidate],
    timers: Sequence[str],
    attempt: Attempt,
    tell: Tell,
) -> None:
    """Read host, graph and kernel times, as `timers` names them, into the candidates' timings."""
    if not isinstance(clock, CudaClock):
        return
    for candidate in candidates if "host" in timers else ():
        tell(candidate.name, "host")
        read = partial(clock.host_ns, candidate.workload)
        _store(candidate, "host", attempt(read, candidate.name))
    for candidate in candidates if "graph" in timers else ():
        tell(candidate.name, "graph")
        replay = partial(clock.replays, candidate.workload)
        _store_replays(candidate, attempt(replay, candidate.name))
    if "kernel" in timers:
        parts = _one_after_another(candidates, tell)
        spans = attempt(lambda: clock.kernel_ns(parts), "")
        for candidate in candidates:
            _store_spans(candidate, spans)


def _one_after_another(candidates: Sequence[Candidate], tell: Tell) -> Iterator[Timed]:
    for candidate in candidates:
        tell(candidate.name, "kernel")
        yield candidate.workload


def _store_replays(candidate: Candidate, replays: Replays | Failure) -> None:
    _store(candidate, "graph", replays if isinstance(replays, Failure) else replays.ns)
    if isinstance(replays, Replays) and candidate.timing is not None:
        candidate.timing = replace(candidate.timing, graph_nodes=replays.nodes)


def _store_spans(candidate: Candidate, spans_of: Mapping[str, Spans] | Failure) -> None:
    if isinstance(spans_of, Failure):
        _store_missing(candidate, "kernel", spans_of.reason)
        return
    spans = spans_of.get(candidate.name, Spans())
    if spans.ns:
        _store(candidate, "kernel", spans.ns)
        _store(candidate, "kernel_event", spans.event_ns)
    elif spans.held:
        _store_missing(candidate, "kernel", "CUPTI saw no kernel in the call")
    else:
        _store_missing(candidate, "kernel", "the gate did not hold under CUPTI")
    if 2 * spans.late > len(spans.ns):
        candidate.fault = LATE


def _store(candidate: Candidate, timer: str, times: tuple[int, ...] | Failure) -> None:
    if isinstance(times, Failure):
        _store_missing(candidate, timer, times.reason)
    elif candidate.timing is not None:
        facts: dict[str, Any] = {f"{timer}_ns": times}
        candidate.timing = replace(candidate.timing, **facts)


def _store_missing(candidate: Candidate, timer: str, reason: str) -> None:
    if candidate.timing is not None:
        missing = {**candidate.timing.missing, timer: reason}
        candidate.timing = replace(candidate.timing, missing=missing)
