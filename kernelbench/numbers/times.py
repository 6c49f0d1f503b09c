"""From the raw samples of a record to times: subtracts what the clocks add, once and only here."""

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from statistics import median, quantiles
from typing import Any

from kernelbench.numbers.statistics import (
    Interval,
    median_of_rounds,
    over_processes,
)
from kernelbench.spec import Timing

Rounds = tuple[tuple[int, ...], ...]
_KEPT = 256  # what is asked for again and again is of the records of one job


def blocks_ns(timing: Timing) -> Rounds:
    """The samples in ns minus the event pair's overhead, block by block; at least 0."""
    return _corrected(timing.blocks_ns, timing.overhead_ns)


def again_ns(timing: Timing) -> Rounds:
    """As `blocks_ns`, of the baseline's second run in every round."""
    return _corrected(timing.again_ns, timing.overhead_ns)


def median_ns(timing: Timing) -> float | None:
    """The median of `blocks_ns`, computed without them; None unless it is above 0."""
    return _median(timing.blocks_ns, timing.overhead_ns)


@lru_cache(maxsize=_KEPT)
def _median(blocks: Rounds, overhead: int) -> float | None:
    ordered = sorted(chain(*blocks))
    if not ordered:
        return None
    middle = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return sum(max(sample - overhead, 0) for sample in middle) / 2 or None


def step(timing: Timing) -> float:
    """Half of the clock's step over the median: the least uncertainty of a median."""
    return timing.quantum_ns / 2 / (median_ns(timing) or math.inf)


def of_processes(timings: Sequence[Timing]) -> Interval | None:
    """The median in ns with its 95 % interval: over the samples of one process, or over the
    medians of several. None where a process has no time above the overhead."""
    sampled = [timing for timing in timings if any(timing.blocks_ns)]
    intervals = [_interval(t.blocks_ns, t.overhead_ns, t.quantum_ns) for t in sampled]
    if not intervals or min(interval.mid for interval in intervals) <= 0:
        return None
    return over_processes(intervals, max(map(step, timings)))


@lru_cache(maxsize=_KEPT)
def _interval(blocks: Rounds, overhead: int, quantum: int) -> Interval:
    return median_of_rounds(_corrected(blocks, overhead), quantum)


@lru_cache(maxsize=_KEPT)
def _corrected(blocks: Rounds, overhead: int) -> Rounds:
    return tuple(tuple([ns - overhead if ns > overhead else 0 for ns in b]) for b in blocks)


def kernel_ns(timing: Timing) -> float | None:
    """The median CUPTI span in ns, minus `slowed_ns`; at least 0, None where CUPTI has no span.

    CUPTI widens gaps between kernels, and slows down some kernels of very many small blocks.
    """
    if not timing.kernel_ns:
        return None
    return max(0.0, median(timing.kernel_ns) - (slowed_ns(timing) or 0.0))


def slowed_ns(timing: Timing) -> float | None:
    """By how many ns CUPTI's tracing slows down a call, at least 0.

    The difference between the medians of event pairs around traced and around untraced calls, both
    minus their overhead. None where either was not measured.
    """
    samples = list(chain(*timing.blocks_ns))
    if not (timing.kernel_event_ns and samples):
        return None
    traced = median(timing.kernel_event_ns) - timing.traced_overhead_ns
    return max(0.0, traced - (median(samples) - timing.overhead_ns))


def differs_when_traced(timing: Timing) -> bool:
    """Whether `slowed_ns` is above what tracing costs an honest call: a fifth of it or 2 µs, the
    larger of both."""
    slowed, span = slowed_ns(timing) or 0.0, kernel_ns(timing) or 0.0
    return slowed > max(span / 5, 2_000)


def columns(timings: Sequence[Timing], every: Sequence[Timing] = ()) -> dict[str, Any]:
    """Times in µs by column: gated and CUPTI ones corrected, the others as their clocks read them.

    timings: of one process or of several; all columns pool their samples, except for the median and
    its interval. every: the timings of all processes, also of those whose samples do not count: the
    times of the other clocks come from the first that has them.
    """
    if not timings:
        return {}
    every = every or timings
    values: dict[str, Any] = {"timer": timings[0].timer, "processes": len(timings)}
    for name in ("host", "graph"):
        samples = next(filter(None, (getattr(t, f"{name}_ns") for t in every)), ())
        values[f"{name}_us"] = median(samples) / 1e3 if samples else None
    values["graph_nodes"] = next((n for t in every if (n := t.graph_nodes) is not None), None)
    span = next((s for t in every if (s := kernel_ns(t)) is not None), None)
    values["kernel_us"] = None if span is None else span / 1e3
    flat = list(chain.from_iterable(chain(*blocks_ns(timing)) for timing in timings))
    mid = of_processes(timings)
    if mid is None:
        return values
    twentieths = quantiles(flat, n=20, method="inclusive") if len(flat) > 1 else flat * 19
    q20, q25, q75, q80 = (twentieths[i] for i in (3, 4, 14, 15))
    return {
        **values,
        "samples": len(flat),
        "median_us": mid.mid / 1e3,
        "lo_us": mid.lo / 1e3,
        "hi_us": mid.hi / 1e3,
        "p20_us": q20 / 1e3,
        "p80_us": q80 / 1e3,
        "iqr_pct": (q75 - q25) / mid.mid * 100 if mid.mid else None,
    }
