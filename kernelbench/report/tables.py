"""A run as text, a line a provider: one table a family, mode and dtype."""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kernelbench import metrics
from kernelbench.report import means
from kernelbench.report.means import within_noise

MOST_HEADLINES = 8  # more become lines of a table
WIDTH = 100  # columns in which a table of every provider cuts no number
SMOKE = "smoke: a CPU run checks correctness; it says nothing about GPU speed"
_NAMES = {
    "time": "median_us",
    "errors": "error_rel",
    "speedups (×)": "speedup",
    "% of ceiling (time at this machine's measured limits over time)": "sol_pct",
}
KINDS = (
    f"{metrics.said(_NAMES)} Errors are relative; the worst element is in rms of the oracle. ~: no "
    "difference beyond noise. ≈: approximate."
)
Row = Mapping[str, Any]

_GAP = 2
_LEAST_PROVIDER = 12
_LONGEST_REASON = 200
_BACK_TO_BACK = "launches included: calls are timed back to back, each from an idle GPU on"
_NO_SPEEDUP = {
    "ungated": "the queue ran dry while it was timed",
    "profiled": "a profiler looked on while it was timed",
}


@dataclass(frozen=True)
class _Column:
    head: str
    cell: Callable[[Row], str]
    justify: Literal["left", "right"] = "right"


def _provider(row: Row) -> str:
    return f"{row['provider']} ≈" if row["accuracy"] == "approximate" else str(row["provider"])


def _time(row: Row) -> str:
    """The median in a suitable unit, ± the longer arm of its interval in %."""
    us = row["median_us"]
    if math.isnan(us):
        return ""
    arm = max(row["hi_us"] - us, us - row["lo_us"])
    return f"{short_time(us)} ±{percent(arm / us * 100)}" if us else short_time(us)


def short_time(us: float) -> str:
    """Four digits in a suitable unit: 12.35 µs, 1.234 ms; nothing for NaN."""
    if math.isnan(us):
        return ""
    ns = us * 1e3
    unit, scale = next(
        ((u, s) for u, s in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)) if ns >= s), ("ns", 1.0)
    )
    return f"{figures(ns / scale, 4)} {unit}"


def figures(value: float, significant: int = 3) -> str:
    """So many digits, never with an exponent: 1234, 123.4, 12.34, 1.234, 0.01."""
    if math.isnan(value):
        return ""
    if math.isinf(value):
        return "inf"
    decimals = significant - 1
    while decimals and len(f"{abs(value):.{decimals}f}") > significant + 1:
        decimals -= 1
    return f"{value:.{decimals}f}"


def percent(value: float) -> str:
    """2.3%, 45%; nothing for NaN."""
    if math.isnan(value):
        return ""
    return f"{value:.2g}%" if abs(value) < 9.95 else f"{value:.0f}%"


def _speedup_best(row: Row) -> str:
    return "~" if within_noise(row, "speedup_best") else figures(row["speedup_best"])


def _speedup(row: Row) -> str:
    mid = "~" if within_noise(row) else figures(row["speedup"])
    if math.isnan(row["speedup_lo"]):
        return mid
    return f"{mid} [{figures(row['speedup_lo'])}, {figures(row['speedup_hi'])}]"


def _error(row: Row) -> str:
    """The error of the output nearest its budget, and its share of the budget."""
    return _used(row["error_rel"], row["error_budget"])


def _worst(row: Row) -> str:
    """The worst element, in rms of the oracle, and its share of its budget."""
    return _used(row["error_max"], row["error_max_budget"])


def _used(error: float, budget: float) -> str:
    if math.isnan(error):
        return ""
    used = "" if math.isnan(budget) else percent(error / budget * 100 if budget else math.inf)
    return f"{_scientific(error)} {used:>4}"


def _nearness(row: Row) -> str:
    """The promise of an approximate provider that is right, and the cosine of its answer to the
    oracle's."""
    if row["accuracy"] != "approximate" or row["status"] != "ok":
        return ""
    cosine = "" if math.isnan(row["cosine"]) else f"cosine {row['cosine']:.5f}"
    promised = f"promises {row['promised']}" if row["promised"] else ""
    return f"≈ {', '.join(filter(None, (cosine, promised)))}"


def _scientific(value: float) -> str:
    """1.6e-3; 0 and inf as they are, nothing for NaN."""
    if not value or not math.isfinite(value):
        return "" if math.isnan(value) else f"{value:.0f}"
    digits, power = f"{value:.1e}".split("e")
    return f"{digits}e{int(power)}"


_PROVIDER = _Column("provider\n", _provider, "left")
_SPEED = (
    _PROVIDER,
    _Column("time\nmedian ±95%", _time),
    _Column("× best\nother", _speedup_best),
    _Column("× baseline\n[95% interval]", _speedup),
    _Column("% of\nceiling", lambda row: percent(row["sol_pct"])),
    _Column("error and\n% of budget", _error),
    _Column("worst in rms,\n% of budget", _worst),
)
_CHECKS = (
    _PROVIDER,
    _Column("verdict\n", lambda row: "correct", "left"),
    _Column("relative error\nmeasured", lambda row: _scientific(row["error_rel"])),
    _Column("budget\n", lambda row: _scientific(row["error_budget"])),
    _Column("worst element\nin rms, measured", lambda row: _scientific(row["error_max"])),
    _Column("its\nbudget", lambda row: _scientific(row["error_max_budget"])),
)


def run_tables(rows: Sequence[Row], width: int = WIDTH, against: str = "") -> list[Table]:
    """One table a GPU, family, mode and dtype of `metrics.filled`, cases one below another.

    Smoke runs, which compare nothing, have one a family.
    width: columns to stay within; what does not fit folds provider names, never numbers.
    against: the provider that speedups hold up instead of the baseline.
    """
    smoke = smoke_machines(rows)
    parts: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        small = row["gpu"] in smoke
        names = ("family", "gpu") if small else ("family", "mode", "dtype", "gpu")
        key = (*(str(row[name]) for name in names), "smoke" if small else "")
        parts.setdefault(key, []).append(row)
    several = len({row["run_id"] for row in rows}) > 1
    columns = {bool(smoke): columns_of(bool(smoke), against) for *_, smoke in parts}
    return [
        _table(key, part, columns[bool(key[-1])], width, several) for key, part in parts.items()
    ]


def columns_of(smoke: bool, against: str = "") -> tuple[_Column, ...]:
    """The columns of a table: of a CPU's smoke run, or of speeds."""
    if smoke:
        return _CHECKS
    head = f"× {against}\n[95% interval]"
    renamed = (replace(c, head=head) if against and c.cell is _speedup else c for c in _SPEED)
    return tuple(renamed)


def smoke_machines(rows: Sequence[Row]) -> set[str]:
    """The machines without a GPU, known by their timer. A machine without any time is not one: it
    shows no speed."""
    return {row["gpu"] for row in rows if row["timer"] == "host"}


def _table(
    key: tuple[str, ...],
    rows: Sequence[Row],
    all_columns: Sequence[_Column],
    width: int,
    several_runs: bool,
) -> Table:
    good = [row for row in rows if row["status"] == "ok"]
    columns = [
        column
        for column in all_columns
        if column is _PROVIDER or any(column.cell(row) for row in good)
    ]
    widths = _widths(columns, rows, good, width)
    title = Text(" · ".join(part for part in key if part), style="bold")
    table = Table(
        title=title,
        title_justify="left",
        min_width=min(title.cell_len, width),  # else rich folds it in a narrow table
        box=None,
        show_header=False,
        padding=0,
    )
    table.add_column(overflow="fold")
    if good:
        head = _grid(columns, widths)
        head.add_row(*(column.head for column in columns))
        table.add_row(head)
        table.add_row("─" * (sum(widths) + _GAP * (len(widths) - 1)))
    cases: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        run = row["run_id"] if several_runs else ""
        cases.setdefault((row["label"], row["case"], run), []).append(row)
    for number, (case, part) in enumerate(cases.items()):
        if number:
            table.add_row()
        table.add_row(Text("  ".join(word for word in case if word), style="cyan"))
        _add_case(table, part, columns, widths)
    return table


def _widths(
    columns: Sequence[_Column], rows: Sequence[Row], good: Sequence[Row], width: int
) -> list[int]:
    """The width of each column; the first, of providers, takes what the others leave."""
    first = max(cell_len(_provider(row)) for row in rows)
    others = [
        max(cell_len(text) for text in (*column.head.split("\n"), *map(column.cell, good)))
        for column in columns[1:]
    ]
    rest = width - sum(others) - _GAP * len(others)
    return [min(max(first, len("provider")), max(rest, _LEAST_PROVIDER)), *others]


def _grid(columns: Sequence[_Column], widths: Sequence[int]) -> Table:
    grid = Table.grid(padding=(0, _GAP, 0, 0))
    for column, width in zip(columns, widths, strict=True):
        grid.add_column(width=width, justify=column.justify, overflow="fold")
    return grid


def fold(name: str, width: int) -> str:
    """Break a long name into lines after `_`, `-` and spaces."""
    lines = [""]
    for piece in re.findall(r"[^_\s-]+[_\s-]?|[_\s-]", name):
        if lines[-1] and cell_len(lines[-1] + piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(lines)


def _add_case(
    table: Table, rows: Sequence[Row], columns: Sequence[_Column], widths: Sequence[int]
) -> None:
    """Add the measured rows, then the others with the reason, then doubts."""
    grid = _grid(columns, widths)
    for row in rows:
        if row["status"] == "ok":
            style = "bold" if row["role"] == "triton_fused" else ""
            cells = [fold(_provider(row), widths[0]), *(c.cell(row) for c in columns[1:])]
            grid.add_row(*map(Text, cells), style=style)
    if grid.row_count:
        table.add_row(grid)
    answers = Table.grid(padding=(0, _GAP, 0, 0))
    answers.add_column(width=widths[0], overflow="fold")
    answers.add_column(overflow="fold")
    shared = {row["unproven"] for row in rows if row["status"] == "ok"}
    shared = shared if len(shared) == 1 else set()
    for row in rows:
        name = Text(fold(_provider(row), widths[0]))
        if row["status"] != "ok":
            answers.add_row(name, Text(answer(row), style="yellow"))
        if text := _nearness(row):
            answers.add_row(name, Text(text))
        if row["unproven"] and row["unproven"] not in shared:
            answers.add_row(name, Text(f"not proven on {row['unproven']}"))
        doubts = [flag for flag in str(row["flags"]).split(";") if flag]
        if row["timer"] in _NO_SPEEDUP:
            doubts.append(f"no speedup: {_NO_SPEEDUP[row['timer']]}")
        if doubts:
            answers.add_row(name, Text(f"! {', '.join(doubts)}", style="yellow"))
    if any(row["timer"] == "back_to_back" for row in rows):
        answers.add_row(Text("all"), Text(_BACK_TO_BACK))
    for unproven in filter(None, shared):
        answers.add_row(Text("all"), Text(f"not proven on {unproven}"))
    if answers.row_count:
        table.add_row(answers)


def answer(row: Row) -> str:
    lines = str(row["reason"]).strip().splitlines() or [""]
    reason = lines[0] if len(lines[0]) <= _LONGEST_REASON else f"{lines[0][:_LONGEST_REASON]}…"
    return f"{row['status']}: {reason}" if reason else str(row["status"])


def summary(rows: Sequence[Row]) -> Text:
    """Counts by status, and for each of our kernels the geometric mean of `speedup_best`.

    Runs and models of GPU are never pooled: where there are several, each headline names its own.
    """
    statuses = Counter(str(row["status"]) for row in rows)
    counts = ", ".join(f"{count} {status}" for status, count in statuses.most_common())
    plural = "s" if len(rows) != 1 else ""
    runs, gpus = ({row[name] for row in rows} for name in ("run_id", "gpu"))
    of = f" of {len(runs)} runs" if len(runs) > 1 else ""
    lines = [f"{len(rows)} record{plural}{of}: {counts}" if rows else "no records"]
    if smoke := smoke_machines(rows):
        lines.append(SMOKE if len(gpus) == 1 else f"{SMOKE} ({', '.join(sorted(smoke))})")
    lines += means.cards(rows)
    ours: dict[tuple[str, ...], list[Row]] = {}
    by_family: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        by_family.setdefault((row["run_id"], row["family"]), []).append(row)
        if row["role"] == "triton_fused" and not math.isnan(row["speedup_best"]):
            key = tuple(row[name] for name in ("run_id", "gpu", "family", "mode", "provider"))
            ours.setdefault(key, []).append(row)
    kind = metrics.kind_of("speedup_best")
    means_of = {key: _mean(part, by_family[key[0], key[2]]) for key, part in ours.items()}
    if len(means_of) > MOST_HEADLINES:
        lines.append(f"geometric means against the best other, {kind}:")
        return Text("\n".join([*lines, *_aligned(means_of, several=len(gpus) > 1)]))
    for (run, gpu, family, mode, provider), (mid, what, over) in means_of.items():
        where = (f" on {gpu}" if len(gpus) > 1 else "") + (f" in {run}" if len(runs) > 1 else "")
        lines.append(
            f"{family} {mode}{where}: {provider} {mid} the best other, {kind} ({what}{over})"
        )
    return Text("\n".join(lines))


def _aligned(means_of: Mapping[tuple[str, ...], tuple[str, str, str]], several: bool) -> list[str]:
    """A line a family, mode, kernel and run, grouped by kernel."""
    cells = [
        (family, mode, provider, mid, f"{run} on {gpu}" if several else run, over)
        for (run, gpu, family, mode, provider), (mid, _, over) in means_of.items()
    ]
    cells.sort(key=lambda line: (line[:3], line[4]))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]


def _mean(ours: Sequence[Row], rows: Sequence[Row]) -> tuple[str, str, str]:
    """(speedup of a kernel over the best other, `geometric mean of ` if it is one, the cases it is
    over or why there is no mean)."""
    average = means.mean(ours, rows)
    if average is None and len(ours) > 1:
        return "–", "", "no two cases in which all others ran"
    over = average.over if average else ours
    counted = means.counts(over)
    notes = [f"{counted[what]} {what}" for what in ("within noise", "flagged") if counted[what]]
    if average is None:
        return f"{figures(ours[0]['speedup_best'])} ×", "", ", ".join(["1 case", *notes])
    low, high = map(figures, average.range)
    lo, hi = figures(average.lo, 4), figures(average.hi, 4)
    within = f"95 % {lo} to {hi} {average.within}"
    text = ", ".join([f"{average.cases}, {low} to {high}", *notes, within])
    return f"{figures(average.mid)} ×", "geometric mean of ", text


def show_cases(rows: Sequence[Row], console: Console, against: str = "") -> None:
    """Print the tables with an empty line after each, as wide as the console or wider: no number is
    cut."""
    narrow, console.width = console.width, max(console.width, WIDTH)
    try:
        for table in run_tables(rows, console.width, against):
            console.print(table)
            console.print()
    finally:
        console.width = narrow
    if over := means.over_what(rows):
        console.print(f"{KINDS} Intervals are {over}.", highlight=False)
        console.print()
