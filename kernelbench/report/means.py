"""Means over many cases: the only place that averages speedups, and the only definition of a
difference beyond noise.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import stdev
from typing import Any

from kernelbench.metrics import Interval, over_processes, t_reach
from kernelbench.spec import COUNTED, Role

Row = Mapping[str, Any]
FEWEST = 2  # cases that a mean is over
_NORMAL = 1.96  # standard deviations that hold 95 % of a normal distribution


def within_noise(row: Row, column: str = "speedup") -> bool:
    """Whether a row's speedup is no difference: |speedup − 1| within the noise floor of its job,
    or 1 within its own 95 % interval. False for the yardstick itself, which has no interval.

    column: `speedup` or `speedup_best`.
    """
    value, lo, hi = (row[name] for name in (column, f"{column}_lo", f"{column}_hi"))
    if any(math.isnan(v) for v in (value, lo, hi)):
        return False
    return bool(lo <= 1 <= hi or abs(value - 1) * 100 <= row["noise_pct"])


def counts(rows: Sequence[Row], column: str = "speedup_best") -> dict[str, int]:
    """Count cases: faster, within noise, slower, flagged."""
    equal = [within_noise(row, column) for row in rows]
    ratios = [row[column] for row, same in zip(rows, equal, strict=True) if not same]
    return {
        "faster": sum(ratio > 1 for ratio in ratios),
        "within noise": sum(equal),
        "slower": sum(ratio < 1 for ratio in ratios),
        "flagged": sum(bool(row["flags"]) for row in rows),
    }


@dataclass(frozen=True)
class Mean:
    """A geometric mean of speedups over cases.

    lo, hi: its 95 % interval, which says how well the cases were measured, not how they were
        chosen. Over the `processes` that all cases share, each of which gives a mean of its own,
        and not narrower than what follows from the cases' intervals, taken as independent; where
        they share but one, that alone.
    over: the rows that it is a mean of; of: all that it could have been of. opponents: those that
        ran in every case of `over`.
    """

    mid: float
    lo: float
    hi: float
    over: tuple[Row, ...]
    of: int
    opponents: tuple[str, ...]
    column: str
    processes: int = 1

    @property
    def within(self) -> str:
        """What the interval is over, in words."""
        if self.processes > 1:
            return f"over {self.processes} processes"
        single = all(int(row.get("processes", 1)) == 1 for row in self.over)
        return "within this run" if single else "from those of its cases"

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest of the cases."""
        values = [row[self.column] for row in self.over]
        return min(values), max(values)

    @property
    def counts(self) -> dict[str, int]:
        """`counts` of the cases in `over`."""
        return counts(self.over, self.column)

    @property
    def cases(self) -> str:
        """`12 cases`, or `12 of 15 cases` where not every opponent ran in all."""
        few = "" if len(self.over) == self.of else f" of {self.of}"
        return f"{len(self.over)}{few} cases"


def mean(ours: Sequence[Row], rows: Iterable[Row], column: str = "speedup_best") -> Mean | None:
    """Of one kernel's speedups, over the cases in which every opponent ran; None of fewer than two.

    ours: its rows. rows: all of the same runs and families, the opponents' among them. An opponent
    is whoever is of the same accuracy, is not ours, and ran in one of these cases; for `speedup`,
    that is the baseline alone.
    """
    good = [row for row in ours if row[column] > 0 and row[f"{column}_lo"] > 0]
    ran = _ran(good, rows) if column == "speedup_best" else {}
    opponents = tuple(dict.fromkeys(name for names in ran.values() for name in names))
    over = [row for row in good if set(opponents) <= set(ran.get(_case(row), opponents))]
    if len(over) < FEWEST:
        return None
    (mid, lo, hi), processes = _interval(over, column)
    return Mean(mid, lo, hi, tuple(over), len(good), opponents, column, processes)


def over_what(rows: Iterable[Row]) -> str:
    """What the intervals of right rows are over, in words: `over 3 processes`; nothing where there
    are none."""
    timed = (row for row in rows if has_time(row))
    processes = sorted({int(row["processes"]) for row in timed})
    if not processes or processes == [1]:
        return "within this run, of one process" if processes else ""
    counts = " or ".join(map(str, processes))
    return f"over {counts} processes{' (1: within it)' if 1 in processes else ''}"


def cards(rows: Sequence[Row]) -> Iterator[str]:
    """Of each run over several GPUs which had how many cases: a case is timed on one, but its
    neighbours in a table, and in a mean, may be another's."""
    cases: dict[str, dict[str, set[tuple[str, str]]]] = {}
    for row in rows:
        of_run = cases.setdefault(row["run_id"], {})
        of_run.setdefault(row["gpu_uuid"], set()).add((row["family"], row["case"]))
    for run, by_card in cases.items():
        if len(by_card) > 1:
            shares = (f"{len(found)} on {uuid[:12]}" for uuid, found in sorted(by_card.items()))
            where = f"{run}: " if len(cases) > 1 else ""
            how = f"each case on one of {len(by_card)} GPUs, means over all"
            yield f"{where}{how}: {', '.join(shares)}"


def common(rows: Sequence[Row]) -> list[Row]:
    """Of rows with a speedup, those of cases in which all providers have one."""
    names = {row["provider"] for row in rows}
    providers: dict[tuple[Any, ...], set[str]] = {}
    for row in rows:
        providers.setdefault(_case(row), set()).add(row["provider"])
    return [row for row in rows if providers[_case(row)] == names]


def _ran(ours: Sequence[Row], rows: Iterable[Row]) -> dict[tuple[Any, ...], list[str]]:
    """The opponents that have a time, by case of ours."""
    ran: dict[tuple[Any, ...], list[str]] = {_case(row): [] for row in ours}
    accuracies = {row["accuracy"] for row in ours}
    for row in rows:
        case = _case(row)
        opponent = not Role(row["role"]).ours and row["accuracy"] in accuracies
        if (
            case in ran
            and has_time(row)
            and opponent
            and "prepacked" not in str(row["flags"]).split(";")
        ):
            ran[case].append(str(row["provider"]))
    return ran


def has_time(row: Row) -> bool:
    """Whether a row is right and has a GPU's time, above what the clock adds."""
    right = row["status"] == "ok" and row.get("timer") in COUNTED
    return right and bool((row.get("median_us") or 0) > 0)


def _case(row: Row) -> tuple[Any, ...]:
    return row["run_id"], row["family"], row["case"]


def _interval(rows: Sequence[Row], column: str) -> tuple[tuple[float, float, float], int]:
    """The mean with its interval, and the number of processes it is over."""
    ratios = [_by_process(row, column) for row in rows]
    common = set.intersection(*map(set, ratios))
    alone = _independent(rows, column)
    if len(common) < FEWEST:
        return alone, 1
    means = [
        math.exp(sum(math.log(ratio[n]) for ratio in ratios) / len(ratios)) for n in sorted(common)
    ]
    over = over_processes([Interval(mid, mid, mid) for mid in means])
    # Not narrower than from the cases' own intervals.
    arm = max(alone[2] / alone[0], alone[0] / alone[1])
    return (over.mid, min(over.lo, over.mid / arm), max(over.hi, over.mid * arm)), len(common)


def _by_process(row: Row, column: str) -> dict[int, float]:
    values = str(row.get(f"{column}_each") or "").split(";")
    return {n: float(value) for n, value in enumerate(values) if value}


def _independent(rows: Sequence[Row], column: str) -> tuple[float, float, float]:
    """The mean and interval from the cases' own intervals, taken as independent."""
    middle = sum(math.log(row[column]) for row in rows) / len(rows)
    errors = [
        math.log(row[f"{column}_hi"] / row[f"{column}_lo"]) / 2 / _reach(row, column)
        for row in rows
    ]
    arm = _NORMAL * math.sqrt(sum(error**2 for error in errors)) / len(rows)
    return math.exp(middle), math.exp(middle - arm), math.exp(middle + arm)


def _reach(row: Row, column: str) -> float:
    """How many standard errors its interval reaches to either side: Student's t over processes, or,
    where one process has the wider interval, the normal value."""
    logs = [math.log(value) for value in _by_process(row, column).values()]
    if len(logs) < 2:
        return _NORMAL
    reach = t_reach(len(logs) - 1)
    own = reach * stdev(logs) / math.sqrt(len(logs))
    arm = math.log(row[f"{column}_hi"] / row[f"{column}_lo"]) / 2
    return reach if own > 0.99 * arm else _NORMAL
