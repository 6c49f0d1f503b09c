"""One metric over the runs of a folder in order of time, and where its level changed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from kernelbench import metrics
from kernelbench.compare.noise import ASSUMED_NS, ASSUMED_RUNS, MEASURED, launches
from kernelbench.compare.sides import Run
from kernelbench.numbers import times
from kernelbench.numbers.significance import change_points
from kernelbench.spec import RunRecord, UsageError, suggest

METRIC = "median_us"
FACTS = {"schema", "processes", "method"}  # numbers that are no metrics
LEAST_STEP = 0.01  # a change of level that is smaller is not marked
_TIMES = ("median_us", "lo_us", "hi_us", "p20_us", "p80_us", "kernel_us", "graph_us")
_CLOCKED = (*_TIMES, "host_us", "samples", "iqr_pct")
_RATES = ("gbps", "tflops", "sol_pct")


# family, case, provider, GPU, its UUID, suite, method
Key = tuple[str, str, str, str, str, str, int]


@dataclass(frozen=True)
class Point:
    """The value of one run. change: from the level before to the one that begins here, as a share
    of the former; None where no new level begins."""

    run: str
    utc: str
    value: float
    change: float | None = None


@dataclass(frozen=True)
class Series:
    """A metric of one (family, case, provider) on one card, in one suite and by one method, run by
    run: a job's neighbours in its suite, and its timing method, change its times as well.

    gpu_uuid: "" where the runs do not state it. error: the assumed standard deviation, as a share,
        of a run about its level.
    """

    family: str
    case: str
    provider: str
    gpu: str
    gpu_uuid: str
    suite: str
    method: int
    metric: str
    points: tuple[Point, ...]
    error: float

    @property
    def changes(self) -> tuple[Point, ...]:
        return tuple(point for point in self.points if point.change is not None)


@dataclass(frozen=True)
class Narrowing:
    """Which rows to follow; empty is all."""

    families: Sequence[str] = ()
    providers: Sequence[str] = ()
    cases: Sequence[str] = ()


def series(runs: Sequence[Run], metric: str, narrowing: Narrowing) -> list[Series]:
    """A series for every row of the runs that has the metric.

    Raises UsageError for a metric, family, provider or case that no run has.
    """
    numeric = [str(n) for n in metrics.frame([]).select_dtypes("number") if n not in FACTS]
    if metric not in numeric:
        raise UsageError(f"--metric: no number {metric!r}{suggest(metric, numeric)}")
    records = [record for run in runs for record in run.records]
    for option, names, choices in (
        ("family", [r.family for r in records], narrowing.families),
        ("provider", [r.provider for r in records], narrowing.providers),
        ("case", [r.case for r in records], narrowing.cases),
    ):
        for name in choices:
            if name not in names:
                raise UsageError(
                    f"--{option}: no {option} {name!r} in these runs{suggest(name, set(names))}"
                )
    groups: dict[Key, list[tuple[RunRecord, Point]]] = {}
    for run in runs:
        suite = str(run.manifest.get("suite") or "")
        card = str((run.manifest.get("machine") or {}).get("uuid") or "")
        for record, value in _values(run, metric):
            if _matches(record, narrowing):
                point = Point(run.path.name, record.utc, value)
                where = (record.gpu, record.gpu_uuid or card, suite, record.method)
                groups.setdefault((*record.row, *where), []).append((record, point))
    if not groups:
        raise UsageError(f"--metric: no run has a {metric} of what was asked for")
    for rows in groups.values():
        rows.sort(key=lambda row: (row[1].utc, row[1].run))
    cases = {case: n for n, case in enumerate(dict.fromkeys((k[:2], k[3:]) for k in groups))}
    ordered = sorted(groups, key=lambda key: cases[key[:2], key[3:]])
    return [_series(key, metric, groups[key], len(groups)) for key in ordered]


def _matches(record: RunRecord, narrowing: Narrowing) -> bool:
    return all(
        not names or name in names
        for name, names in (
            (record.family, narrowing.families),
            (record.provider, narrowing.providers),
            (record.case, narrowing.cases),
        )
    )


def _values(run: Run, metric: str) -> list[tuple[RunRecord, float]]:
    """The records that have the metric as a finite number. A time counts where the record is right
    and was timed behind a gate that held."""
    if metric in _CLOCKED:  # skips the other derived columns, which need a bootstrap a row
        numbers = [times.columns(metrics.timings(r)).get(metric) for r in run.records]
        values = [math.nan if value is None else float(value) for value in numbers]
    else:
        values = [float(v) for v in metrics.frame(run.records)[metric].astype("float64")]
    timed = metric in _TIMES
    return [
        (record, value)
        for record, value in zip(run.records, values, strict=True)
        if math.isfinite(value) and (not timed or metrics.timed(record))
    ]


def _series(key: Key, metric: str, rows: Sequence[tuple[RunRecord, Point]], count: int) -> Series:
    """Searches levels on a scale where steps are shares: logarithms where all values are above 0,
    else values over their median size."""
    points = [point for _, point in rows]
    values = [point.value for point in points]
    logs = min(values) > 0
    size = median(map(abs, values)) or max(map(abs, values)) or 1.0
    scaled = [math.log(v) if logs else v / size for v in values]
    error = level_error(scaled, _assumed(metric, [record for record, _ in rows]))
    starts = change_points(scaled, error, LEAST_STEP, series=count)
    edges = [0, *starts, len(values)]
    levels = [median(scaled[a:b]) for a, b in pairwise(edges)]
    steps = [math.expm1(b - a) if logs else b - a for a, b in pairwise(levels)]
    changes = dict(zip(starts, steps, strict=True))
    marked = tuple(
        Point(point.run, point.utc, point.value, changes.get(place))
        for place, point in enumerate(points)
    )
    return Series(*key, metric, marked, error)


def level_error(values: Sequence[float], assumed: float) -> float:
    """The standard deviation of a value: from its neighbours, and from an assumption that counts as
    many values as in `noise`."""
    degrees = max(len(values) - 1, 0)
    total = ASSUMED_RUNS * assumed**2 + degrees * _scatter(values) ** 2
    return math.sqrt(total / (ASSUMED_RUNS + degrees))


def _scatter(values: Sequence[float]) -> float:
    """The standard deviation about the levels, from the median size of neighbours' differences
    (Gaussian: 0.6745 √2 of it); a step is in one difference only."""
    gaps = [abs(b - a) for a, b in pairwise(values)]
    return median(gaps) / (0.6745 * math.sqrt(2)) if gaps else 0.0


def _assumed(metric: str, records: Sequence[RunRecord]) -> float:
    """The least standard deviation that is assumed from run to run."""
    if metric not in _TIMES and metric not in _RATES and not metric.startswith("speedup"):
        return MEASURED
    medians = [metrics.median_ns(record) or math.inf for record in records]
    shares = [ASSUMED_NS * launches(r) / ns for r, ns in zip(records, medians, strict=True)]
    return math.hypot(MEASURED, median(shares) if shares else 0.0)
