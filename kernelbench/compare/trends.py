"""Series of one metric over runs as a table, and as CSV."""

from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from kernelbench.compare.formats import table
from kernelbench.compare.history import LEAST_STEP, Point, Series
from kernelbench.compare.tables import LEAST, percent, time
from kernelbench.metrics import MEANING, Kind, kind_of

WHERE = ("gpu", "gpu_uuid", "suite", "method")
COLUMNS = ("family", "case", "provider", *WHERE, "metric", "run", "utc", "value", "change_pct")
MOST_BARS = 40
KINDS = (
    f"one bar a run, the oldest first, on a scale of its own; │: a new level begins, of at least "
    f"two runs and {LEAST_STEP:.0%} away. A level of one run, as of the last, is not one yet."
)
_BARS = "▁▂▃▄▅▆▇█"
_LEAST_SPAN = 8  # of the bars, in standard deviations, so that noise looks like noise


def as_csv(all_series: Sequence[Series]) -> str:
    """One line a run of a series; the change stands where a new level begins."""
    lines = [
        (
            *(one.family, one.case, one.provider),
            *(str(getattr(one, name)) for name in WHERE),
            one.metric,
            *(point.run, point.utc, f"{point.value:.6g}"),
            "" if point.change is None else f"{point.change * 100:.6g}",
        )
        for one in all_series
        for point in one.points
    ]
    return table(COLUMNS, lines)


def render(all_series: Sequence[Series], console: Console) -> None:
    """Print it; at least 80 columns wide."""
    narrow = console.width
    console.width = max(narrow, LEAST)
    try:
        _print(all_series, console)
    finally:
        console.width = narrow


def _print(all_series: Sequence[Series], console: Console) -> None:
    runs = {point.run for one in all_series for point in one.points}
    values = {name: {getattr(one, name) for one in all_series} for name in WHERE}
    apart = [name for name in WHERE if len(values[name]) > 1]
    metric, count = all_series[0].metric, f"{len(runs)} run{'s' * (len(runs) != 1)}"
    kind = kind_of(metric)
    what = kind if kind is Kind.measured else f"{kind}: {MEANING[kind]}"
    head = f"{metric} ({what}), of {count}, {', '.join(sorted(values['gpu']))}"
    alone = [one for one in all_series if len(one.points) == 1]
    all_series = [one for one in all_series if len(one.points) > 1]
    console.print(Text(head, style="bold"))
    console.print()
    grid = Table(box=None, padding=(0, 2, 0, 0))
    grid.add_column(Text("case\n  provider"), overflow="fold", min_width=16)
    grid.add_column("runs", justify="right", no_wrap=True)
    for name in ("first", "last", "change"):
        grid.add_column(name, justify="right", no_wrap=True)
    grid.add_column("history", no_wrap=True)
    shown = ""
    for one in all_series:
        where = (f"{name} {getattr(one, name) or '—'}" for name in apart)
        case = "  ".join([f"{one.family} {one.case}", *where])
        if case != shown:
            grid.add_row(Text(case, style="cyan"))
        shown = case
        grid.add_row(*map(Text, _cells(one)))
    if all_series:
        console.print(grid)
        console.print()
        _print_changes(all_series, console)
    if alone:
        plural = "rows that have" if len(alone) > 1 else "row that has"
        console.print(Text(f"{len(alone)} {plural} one run: --format csv lists them"))
    console.print(Text(KINDS, style="dim"))


def _cells(one: Series) -> list[str]:
    first, last = one.points[0].value, one.points[-1].value
    ratio = percent(last / first) if first > 0 and last > 0 and len(one.points) > 1 else ""
    return [
        f"  {one.provider}", str(len(one.points)), _value(one, first), _value(one, last), ratio,
        bars(one),
    ]  # fmt: skip


def _value(one: Series, value: float) -> str:
    return time(value) if one.metric.endswith("_us") and value >= 0 else f"{value:.4g}"


def bars(one: Series) -> str:
    """The newest forty runs; a level begins behind `│`."""
    points = one.points[-MOST_BARS:]
    values = [point.value for point in points]
    middle = (max(values) + min(values)) / 2
    span = max(max(values) - min(values), _LEAST_SPAN * one.error * abs(middle))
    low = middle - span / 2

    def bar(point: Point) -> str:
        place = min(int((point.value - low) / span * len(_BARS)), len(_BARS) - 1) if span else 0
        return ("│" if point.change is not None else "") + _BARS[place]

    return "".join(map(bar, points))


def _print_changes(all_series: Sequence[Series], console: Console) -> None:
    changed = [one for one in all_series if one.changes]
    if not changed:
        console.print(Text(f"No change of level in {len(all_series)} series"))
        return
    console.print(Text("New levels, and the first run of each", style="bold"))
    for one in changed:
        for point in one.changes:
            step = percent(1 + (point.change or 0))
            where = f"{step}  {one.family} {one.case}  {one.provider}"
            console.print(Padding(Text(where), (0, 0, 0, 2)))
            console.print(Padding(Text(f"{point.run}, {point.utc}", style="dim"), (0, 0, 0, 4)))
