"""Every number that is derived from one record, or from two of one measurement.

A number that does not apply is None, never 0. Speeds (rates, shares of a ceiling, speedups) exist
only for a record that is `timed`: correct, and measured behind a gate that held. Where several
processes timed it, each is an observation, and an interval is over them.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

from kernelbench.numbers import times
from kernelbench.numbers.limits import floors_ns
from kernelbench.numbers.statistics import Interval, noise_floor, over_processes, ratio_interval
from kernelbench.numbers.times import again_ns, blocks_ns
from kernelbench.spec import OutputError, RunRecord, Status, Timing

MIB = 2**20


def clocked(record: RunRecord) -> tuple[RunRecord, ...]:
    """Of its processes those whose times count, and that took longer than the clock's overhead."""
    return tuple(
        process
        for process in record.processes
        if process.timing and process.timing.counts and times.median_ns(process.timing)
    )


def timings(record: RunRecord) -> tuple[Timing, ...]:
    """What its times come from: its processes that are `clocked`, else whatever was read."""
    return tuple(
        process.timing for process in clocked(record) or record.processes if process.timing
    )


def median_ns(record: RunRecord) -> float | None:
    """The median of the corrected samples, in ns; of several processes as `over_processes`."""
    interval = times.of_processes(timings(record))
    return interval.mid if interval else None


def timed(record: RunRecord) -> bool:
    """Whether speeds may be derived: status ok, timer gated, and a time above the overhead."""
    return record.status is Status.ok and bool(clocked(record))


def _time_ns(record: RunRecord) -> float | None:
    return median_ns(record) if timed(record) else None


def gbps(record: RunRecord) -> float | None:
    """Compulsory bytes / median time, in decimal GB/s (= bytes per ns)."""
    time, needed = _time_ns(record), bytes_min(record)
    return needed / time if time and needed else None


def tflops(record: RunRecord) -> float | None:
    """Flops of the algorithm (FMA = 2) / median time, in TFLOP/s."""
    time = _time_ns(record)
    return record.flops / time / 1e3 if time and record.flops else None


def bytes_min(record: RunRecord) -> int | None:
    """Compulsory bytes: each input read once, each output written once."""
    if record.read_bytes is None or record.write_bytes is None:
        return None
    return record.read_bytes + record.write_bytes


def share_of_ceiling(record: RunRecord) -> tuple[float, str] | None:
    """(percent, bound): the larger floor time / median time · 100, and which floor it is.

    A floor is the time that a resource needs at this machine's own measured limit: `memory` for
    the compulsory bytes, `compute` for the flops.
    """
    time = _time_ns(record)
    if not time or not record.ceilings:
        return None
    floors = floors_ns(
        record.read_bytes or 0, record.write_bytes or 0, record.flops or 0, record.ceilings
    )
    bound = max(floors, key=lambda name: floors[name], default=None)
    return (floors[bound] / time * 100, bound) if bound and floors[bound] else None


def modelled_bytes(record: RunRecord) -> tuple[int, int] | None:
    """(read, written): HBM bytes that the provider's own model says it moves."""
    if record.traffic is None:
        return None
    return sum(t.read for t in record.traffic), sum(t.write for t in record.traffic)


def hbm_saved_pct(record: RunRecord, baseline: RunRecord) -> float | None:
    """(baseline − this) / baseline · 100 of the modelled bytes; below 0 where more are moved."""
    ours, theirs = modelled_bytes(record), modelled_bytes(baseline)
    if ours is None or theirs is None or not sum(theirs):
        return None
    return (sum(theirs) - sum(ours)) / sum(theirs) * 100


@dataclass(frozen=True)
class Speedup:
    """median(against) / median(record), above 1 where the record is faster.

    over: with its 95 % interval, over the processes that timed both; of one process, over the
    rounds of that process. each: what each process found, by its number.
    """

    over: Interval
    each: Mapping[int, float]


def speedup(record: RunRecord, against: RunRecord) -> Speedup | None:
    """Only inside one group, that is, one interleaved measurement; several have one a process."""
    if not (timed(record) and timed(against)):
        return None
    theirs = {process.group: process.timing for process in clocked(against) if process.group}
    both = {
        process.process: (process.timing, theirs.get(process.group)) for process in clocked(record)
    }
    pairs = {n: (mine, other) for n, (mine, other) in both.items() if mine and other}
    try:
        ratios = {
            n: ratio_interval(blocks_ns(other), blocks_ns(mine), quantum=mine.quantum_ns)
            for n, (mine, other) in pairs.items()
        }
        steps = [times.step(mine) + times.step(other) for mine, other in pairs.values()]
        over = over_processes(list(ratios.values()), max(steps, default=0.0))
    except ValueError:  # no common process or round, or nothing above the overhead in those
        return None
    return Speedup(over, {n: ratio.mid for n, ratio in ratios.items()})


def noise_pct(baseline: RunRecord) -> float | None:
    """The difference in % that the baseline's job cannot tell from none, by its second run."""
    twice = [t for t in timings(baseline) if t.again_ns] if timed(baseline) else []
    try:
        return noise_floor(*((blocks_ns(t), again_ns(t)) for t in twice)) * 100
    except ValueError:
        return None


def exposed_ns(record: RunRecord) -> float | None:
    """Time that waits for messages: the median less that of the same calls without them, both of
    the process that read it; below 0 where chance says so."""
    messages, timing = record.messages, record.timing
    if not timed(record) or messages is None or not messages.without_ns:
        return None
    if timing is None or not timing.counts:  # another process's gate held
        return None
    ours = times.median_ns(timing)
    return ours + timing.overhead_ns - median(messages.without_ns) if ours else None


def overlap_slowdown(record: RunRecord) -> float | None:
    """How many times as long a call's kernels take beside its messages as without them."""
    messages = record.messages
    if not timed(record) or messages is None or not messages.kernels_without_ns:
        return None
    return (messages.kernels_ns or 0) / messages.kernels_without_ns


def share_of_one(record: RunRecord, one: RunRecord, ranks: int) -> Interval | None:
    """What one GPU takes, divided by the ranks, over what they take, in %: of the same provider on
    all of the work. Its ends are those of both intervals, which are of different jobs."""
    theirs, mine = (times.of_processes(timings(each)) for each in (one, record))
    if not (timed(record) and timed(one) and theirs and mine and mine.lo > 0):
        return None
    scale = 100 / ranks
    return Interval(
        scale * theirs.mid / mine.mid, scale * theirs.lo / mine.hi, scale * theirs.hi / mine.lo
    )


def best_other(group: Iterable[RunRecord], accuracy: str) -> RunRecord | None:
    """The yardstick of `speedup_best`: the fastest record of the group that is timed, of this
    accuracy, not ours, and not prepacked."""
    others = [
        r
        for r in group
        if r.accuracy == accuracy and not r.role.ours and not r.prepacked and timed(r)
    ]
    return min(others, key=lambda r: median_ns(r) or math.inf, default=None)


def worst_element(record: RunRecord) -> OutputError | None:
    """The output that has the largest element error over rms(oracle), in any process; NaN counts
    as infinite."""
    errors = (e for process in record.processes for e in process.errors)
    return max(errors, key=lambda error: finite(error.worst), default=None)


def tightest(record: RunRecord) -> OutputError | None:
    """The output that is nearest to its relative budget, or farthest above it, in any process."""

    def used(error: OutputError) -> float:
        return finite(error.rel) / error.rel_budget if error.rel_budget else math.inf

    return max((e for process in record.processes for e in process.errors), key=used, default=None)


def finite(value: float) -> float:
    """NaN counts as infinite."""
    return math.inf if math.isnan(value) else value
