"""How far two processes of one build lie apart: measured from several, else assumed.

The observation is the logarithm of a run's median, so that differences are relative. Its variance
from process to process is a sum of what one says about itself (its bootstrap over rounds, and its
baseline against the baseline's second run) and of what no single one can say: ASSUMED, and
ASSUMED_NS for each launch, which dominate for short kernels and chains of them. ASSUMED_NS and
MEASURED come from processes one after another on an H200 (results/h200/measuring/processes.csv,
results/h200/aa); ASSUMED is deliberately too large. Several processes a side, of one run or of
several, override it.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from kernelbench.numbers.statistics import log_medians
from kernelbench.numbers.times import again_ns, blocks_ns
from kernelbench.spec import RunRecord, Status

ASSUMED = 0.01  # standard deviation from process to process, where nothing else is known
MEASURED = 0.004  # that standard deviation on an H200
CARD = 0.01  # from card to card of one model, assumed
ASSUMED_NS = 80.0  # and of each launch, in ns: a process keeps its own launch cost and overhead
ASSUMED_RUNS = 8  # degrees of freedom that the assumption counts as
THROTTLED = 0.015  # added where the GPU was slowed: its clock varies within a job
CLOCK_READING = 0.003  # of a clock that NVML reads in steps of 15 MHz

_MOST_OUTLYING = 10.0  # times the variance of its class that a row may count in it


@dataclass(frozen=True)
class LogMedian:
    """One record's median, as its logarithm; standard deviations are relative, too.

    within: of the median within the run. floor: of one run of the same code in one job, from the
    baseline and its second run; 0 where there was none. reach: the farthest that the 95 % interval
    of those two reaches from no difference.
    """

    record: RunRecord
    run: int
    log_ns: float
    within: float
    floor: float = 0.0
    reach: float = 0.0

    @property
    def mhz(self) -> float | None:
        return (self.record.telemetry or {}).get("sm_mhz") or None

    @property
    def throttled(self) -> bool:
        return any(flag.startswith("throttled") for flag in self.record.flags)

    @property
    def launch_error(self) -> float:
        """The assumed standard deviation that its launches bring."""
        return ASSUMED_NS * launches(self.record) / math.exp(self.log_ns)

    @property
    def variance(self) -> float:
        """From run to run: what this run shows, plus what is assumed."""
        parts = (ASSUMED, self.launch_error, self.within, self.floor)
        return sum(p * p for p in parts) + self.throttled * THROTTLED**2


def launches(record: RunRecord) -> int:
    """How many operators a call launches one after another: those that the byte model of an eager
    baseline numbers as they ran; 1 where that is unknown."""
    numbers = [traffic.tensor.partition(" ")[0] for traffic in record.traffic or ()]
    return max(1, sum(name.isdecimal() for name in numbers))


def gated(record: RunRecord) -> bool:
    """Whether it is right, and was timed behind a gate that held, alone on its GPU."""
    timing = record.timing
    behind_gate = timing is not None and timing.counts and "shared" not in record.flags
    return record.status is Status.ok and behind_gate


def observe(runs: Sequence[Iterable[RunRecord]]) -> list[LogMedian]:
    """The median of each right and gated record, process by process; `run` is an index of runs."""
    records = [(number, record) for number, run in enumerate(runs) for record in run]
    processes = [(number, r) for number, record in records for r in record.processes]
    rows = [(number, r) for number, r in processes if gated(r)]
    rows = [(number, r) for number, r in rows if r.timing and any(r.timing.blocks_ns)]
    times = [blocks_ns(r.timing) for _, r in rows if r.timing]
    logs, within = log_medians(times)
    twice = [n for n, (_, r) in enumerate(rows) if r.group and r.timing and any(r.timing.again_ns)]
    again, error = log_medians([again_ns(t) for n in twice if (t := rows[n][1].timing)])
    floors: dict[tuple[int, str], tuple[float, float]] = {}
    for n, log_again, error_again in zip(twice, again, error, strict=True):
        number, record = rows[n]
        off = abs(float(log_again - logs[n]))
        reach = off + 1.96 * math.hypot(error_again, within[n])
        floors[number, record.group] = (off / math.sqrt(2), reach)
    return [
        LogMedian(record, number, float(log), float(error), *floors.get((number, record.group), ()))
        for (number, record), log, error in zip(rows, logs, within, strict=True)
        if math.isfinite(log)
    ]


@dataclass(frozen=True)
class Spread:
    """The observations of one row on both sides, in logarithms, and the variance of each as
    `LogMedian.variance` has it. least: a variance that none can be below, that within the runs.
    earlier: observations of other builds, one tuple a build, which say how far processes lie apart.
    """

    kind: str
    a: tuple[float, ...]
    b: tuple[float, ...]
    variances: tuple[float, ...]
    least: float
    earlier: tuple[tuple[float, ...], ...] = ()

    @property
    def own(self) -> tuple[float, int]:
        """(variance from process to process of one build, its degrees of freedom)."""
        builds = (self.a, self.b, *self.earlier)
        squares = sum(float(np.var(values)) * len(values) for values in builds)
        degrees = sum(len(values) - 1 for values in builds)
        return (squares / degrees if degrees else 0.0), degrees

    @property
    def prior(self) -> float:
        return math.fsum(self.variances) / len(self.variances)


def errors(rows: Sequence[Spread]) -> list[tuple[float, int]]:
    """(standard error of the log ratio of the sides, degrees of freedom) of each row; no degrees
    where the assumption is all that is known of it.

    The variance of a run is the larger of what its class does, and of what this row itself did.
    The class's is the assumed one, scaled by how the rows of one kind that have several runs
    compare with it; the assumption counts as much as eight further runs.
    """
    scales: dict[str, tuple[float, float]] = {}
    for row in rows:
        own, degrees = row.own
        weight, total = scales.get(row.kind, (float(ASSUMED_RUNS), float(ASSUMED_RUNS)))
        share = min(own / row.prior, _MOST_OUTLYING) if math.isfinite(row.prior) else 0.0
        degrees = degrees if math.isfinite(row.prior) else 0
        scales[row.kind] = (weight + degrees, total + degrees * share)
    results = []
    for row in rows:
        own, degrees = row.own
        weight, total = scales[row.kind]
        variance = max(row.prior * total / weight, own, row.least)
        per_side = 1 / len(row.a) + 1 / len(row.b)
        known_degrees = max(ASSUMED_RUNS, degrees) if degrees else 0
        results.append((math.sqrt(variance * per_side), known_degrees))
    return results
