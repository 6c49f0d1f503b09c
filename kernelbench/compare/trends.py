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


def as_csv(rows: Sequence[Series]) -> str:
    """One line for each run of a series; the change is in the line where a new level begins."""
    lines = [
        (
            *(row.family, row.case, row.provider),
            *(str(getattr(row, name)) for name in WHERE),
            row.metric,
            *(point.run, point.utc, f"{point.value:.6g}"),
            "" if point.change is None else f"{point.change * 100:.6g}",
        )
        for row in rows
        for point in row.points
    ]
    return table(COLUMNS, lines)


def render(rows: Sequence[Series], console: Console) -> None:
    """Print it at least 80 columns wide."""
    narrow = console.width
    console.width = max(narrow, LEAST)
    try:
        _print(rows, console)
    finally:
        console.width = narrow


def _print(rows: Sequence[Series], console: Console) -> None:
    runs = {point.run for row in rows for point in row.points}
    values = {name: {getattr(row, name) for row in rows} for name in WHERE}
    varying = [name for name in WHERE if len(values[name]) > 1]
    metric, count = rows[0].metric, f"{len(runs)} run{'s' * (len(runs) != 1)}"
    kind = kind_of(metric)
    what = kind if kind is Kind.measured else f"{kind}: {MEANING[kind]}"
    head = f"{metric} ({what}), of {count}, {', '.join(sorted(values['gpu']))}"
    single = [row for row in rows if len(row.points) == 1]
    rows = [row for row in rows if len(row.points) > 1]
    console.print(Text(head, style="bold"))
    console.print()
    grid = Table(box=None, padding=(0, 2, 0, 0))
    grid.add_column(Text("case\n  provider"), overflow="fold", min_width=16)
    grid.add_column("runs", justify="right", no_wrap=True)
    for name in ("first", "last", "change"):
        grid.add_column(name, justify="right", no_wrap=True)
    grid.add_column("history", no_wrap=True)
    shown = ""
    for row in rows:
        where = (f"{name} {getattr(row, name) or '—'}" for name in varying)
        case = "  ".join([f"{row.family} {row.case}", *where])
        if case != shown:
            grid.add_row(Text(case, style="cyan"))
        shown = case
        grid.add_row(*map(Text, _cells(row)))
    if rows:
        console.print(grid)
        console.print()
        _print_changes(rows, console)
    if single:
        plural = "rows that have" if len(single) > 1 else "row that has"
        console.print(Text(f"{len(single)} {plural} one run: --format csv lists them"))
    console.print(Text(KINDS, style="dim"))


def _cells(row: Series) -> list[str]:
    first, last = row.points[0].value, row.points[-1].value
    ratio = percent(last / first) if first > 0 and last > 0 and len(row.points) > 1 else ""
    return [
        f"  {row.provider}", str(len(row.points)), _value(row, first), _value(row, last), ratio,
        bars(row),
    ]  # fmt: skip


def _value(row: Series, value: float) -> str:
    return time(value) if row.metric.endswith("_us") and value >= 0 else f"{value:.4g}"


def bars(row: Series) -> str:
    """The newest forty runs; a level begins behind `│`."""
    points = row.points[-MOST_BARS:]
    values = [point.value for point in points]
    middle = (max(values) + min(values)) / 2
    span = max(max(values) - min(values), _LEAST_SPAN * row.error * abs(middle))
    low = middle - span / 2

    def bar(point: Point) -> str:
        place = min(int((point.value - low) / span * len(_BARS)), len(_BARS) - 1) if span else 0
        return ("│" if point.change is not None else "") + _BARS[place]

    return "".join(map(bar, points))


def _print_changes(rows: Sequence[Series], console: Console) -> None:
    changed = [row for row in rows if row.changes]
    if not changed:
        console.print(Text(f"No change of level in {len(rows)} series"))
        return
    console.print(Text("New levels, and the first run of each", style="bold"))
    for row in changed:
        for point in row.changes:
            step = percent(1 + (point.change or 0))
            where = f"{step}  {row.family} {row.case}  {row.provider}"
            console.print(Padding(Text(where), (0, 0, 0, 2)))
            console.print(Padding(Text(f"{point.run}, {point.utc}", style="dim"), (0, 0, 0, 4)))
