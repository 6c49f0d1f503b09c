"""A comparison on a terminal: 80 columns suffice, wider ones show more."""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from kernelbench.compare import wording
from kernelbench.compare.rows import Change, Comparison, RowChange

LEAST, WIDE = 80, 120
STYLES = {
    Change.slower: "red",
    Change.broken: "bold red",
    Change.bad: "red",
    Change.faster: "green",
    Change.fixed: "green",
    Change.unsure: "yellow",
    Change.same: "dim",
}


class _Column(NamedTuple):
    head: str
    cell: Callable[[RowChange], str]
    justify: Literal["left", "right"] = "right"
    wide: bool = False  # left out of a narrow table


def time(us: float | None) -> str:
    """Four figures in the unit that suits them: 1.723 ms, 122.5 µs, 2.905 µs."""
    if us is None:
        return ""
    unit, scale = next((u, s) for u, s in (("s", 1e6), ("ms", 1e3), ("µs", 0.0)) if us >= s)
    value = us / (scale or 1.0)
    return f"{value:.{max(0, 4 - len(f'{value:.0f}'))}f} {unit}"


def percent(ratio: float | None) -> str:
    """`+1.2%`, of a ratio; nothing where there is none."""
    if ratio is None:
        return ""
    value = (ratio - 1) * 100
    if abs(value) < 0.05:
        return "0.0%"
    return f"{value:+.{1 if abs(value) < 100 else 0}f}%" if value < 1e4 else "∞"


def interval(row: RowChange) -> str:
    if row.lo is None or row.hi is None:
        return ""
    return f"[{percent(row.lo).rstrip('%')}, {percent(row.hi).rstrip('%')}]"


def _processes(row: RowChange) -> str:
    return f"{row.processes_a} + {row.processes_b}"


def _clock(row: RowChange) -> str:
    if row.a_mhz is None or row.b_mhz is None:
        return ""
    if row.normalised is None:
        return f"{row.b_mhz:.0f}"
    return f"{row.a_mhz:.0f} → {row.b_mhz:.0f}{' *' if row.used == 'normalised' else ''}"


_COLUMNS = (
    _Column("verdict", lambda row: row.verdict, "left"),
    _Column("change", lambda row: percent(row.ratio)),
    _Column("95 % interval", interval),
    _Column("A", lambda row: time(row.a_us)),
    _Column("B", lambda row: time(row.b_us)),
    _Column("processes", _processes, wide=True),
    _Column("more", lambda row: f"+{row.more}" if row.more else "", wide=True),
    _Column("job noise", lambda row: f"{row.floor_pct:.2f}%" if row.floor_pct else "", wide=True),
    _Column("SM MHz", _clock, wide=True),
    _Column(
        "adjusted p", lambda row: "" if row.adjusted is None else f"{row.adjusted:.2g}", wide=True
    ),
)


def render(comparison: Comparison, console: Console) -> None:
    """Print it at least 80 columns wide, so that a pipe or a narrow terminal cuts no number."""
    narrow = console.width
    console.width = max(narrow, LEAST)
    try:
        console.print(Text("\n".join(wording.title(comparison)), style="bold"))
        console.print()
        for table in _tables(comparison, console.width):
            console.print(table)
            console.print()
        _print_notes(comparison, console)
        style = "bold red" if comparison.exit_code else "bold"
        console.print(Text(wording.verdicts(comparison), style=style))
    finally:
        console.width = narrow


def _print_notes(comparison: Comparison, console: Console) -> None:
    if rows := wording.notable_rows(comparison):
        console.print(Text("Moves, and what they are put down to", style="bold"))
        for row in rows:
            words = f"{row.verdict} {percent(row.ratio)}".strip()
            line = f"{words}  {row.family} {row.case}  {row.provider}"
            console.print(Text(line, style=STYLES[row.verdict]))
            if reason := wording.reasons(row):
                console.print(Padding(Text(reason), (0, 0, 0, 2)))
        console.print()
    for head, lines in (
        ("No longer judged", wording.untimed_lines(comparison, regressed=True)),
        ("Not compared", wording.untimed_lines(comparison, regressed=False)),
        ("What else differs", wording.difference_lines(comparison)),
    ):
        if lines:
            console.print(Text(head, style="bold"))
            for line in lines:
                console.print(Padding(Text(line), (0, 0, 0, 2)))
            console.print()
    for note in (*wording.notes(comparison), f"{wording.KINDS}."):
        console.print(Text(note, style="dim"))
    console.print()


def _tables(comparison: Comparison, width: int) -> Iterator[Table]:
    """A table for each family, mode, dtype and GPU, all with the same columns and widths."""
    columns = [column for column in _COLUMNS if not column.wide or width >= WIDE]
    shown = wording.rows_of_both(comparison)
    timed = [row for row in shown if row.ratio is not None]
    widths = [_width(column, shown, timed) for column in columns]
    rest = sum(widths) + 2 * len(widths)
    names = max((max(len(_case(r)), len(r.provider) + 2) for r in shown), default=0)
    first = max(12, min(names, width - rest))
    several = len({row.gpu for row in shown}) > 1
    parts: dict[tuple[str, ...], list[RowChange]] = {}
    for row in shown:
        part = (row.family, row.mode, row.dtype, *([row.gpu] if several else []))
        parts.setdefault(part, []).append(row)
    for part, rows in parts.items():
        title = Text(" · ".join(part), style="bold cyan")
        table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
        table.min_width = min(width, title.cell_len)
        table.add_column(Text("case\n  provider"), width=first, overflow="fold")
        for column, cells in zip(columns, widths, strict=True):
            table.add_column(Text(column.head), justify=column.justify, width=cells)
        for case in dict.fromkeys(map(_case, rows)):
            table.add_row(Text(case))
            _add(table, [row for row in rows if _case(row) == case], columns)
        yield table


def _width(column: _Column, rows: Sequence[RowChange], timed: Sequence[RowChange]) -> int:
    cells = [column.cell(row) for row in (rows if column.head == "verdict" else timed)]
    return max(len(text) for text in (column.head, *cells))


def _add(table: Table, rows: Sequence[RowChange], columns: Sequence[_Column]) -> None:
    for row in rows:
        name = Text(f"  {row.provider}", style="bold" if row.role.ours else "")
        texts = [column.cell(row) if row.ratio is not None else "" for column in columns]
        verdict = Text(row.verdict, style=STYLES.get(row.verdict, ""))
        table.add_row(name, verdict, *map(Text, texts[1:]))


def _case(row: RowChange) -> str:
    """The case's label and id, without what the title of the table says."""
    return " ".join(filter(None, [row.label, row.case.removesuffix(f"-{row.dtype}-{row.mode}")]))
