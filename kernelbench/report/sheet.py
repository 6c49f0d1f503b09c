"""A table as text, for a terminal or for Markdown, and the data that such tables are made from."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.text import Text

from kernelbench import metrics
from kernelbench.report.means import has_time
from kernelbench.report.tables import fold
from kernelbench.spec import Measured

Row = Mapping[str, Any]
Lines = tuple[tuple[str, ...], ...]
GAP = 2
LEAST_CONFIG, LEAST_WORD = 16, 9  # columns that words keep before they fold


@dataclass(frozen=True)
class Sheet:
    """A table as text. words: the heads of columns that are words, not numbers. labelled: the last
    column holds labels, which stand above their lines where it does not fit. Without heads it is a
    title and a note."""

    title: str
    heads: tuple[str, ...]
    rows: Lines
    note: str = ""
    words: frozenset[str] = frozenset()
    labelled: bool = False

    def is_word(self, column: int) -> bool:
        return self.heads[column] in self.words


def without_empty_columns(sheet: Sheet) -> Sheet:
    """The sheet without its empty columns; the first column stays."""
    columns = [n for n in range(len(sheet.heads)) if n == 0 or any(row[n] for row in sheet.rows)]
    return replace(
        sheet,
        heads=tuple(sheet.heads[n] for n in columns),
        rows=tuple(tuple(row[n] for n in columns) for row in sheet.rows),
        labelled=sheet.labelled and len(sheet.heads) - 1 in columns,
    )


@dataclass(frozen=True)
class Source:
    """The data of sheets. against: the provider that speedups are against, or the baseline."""

    rows: Sequence[Row]
    measured: Sequence[Measured]
    manifests: Mapping[str, Mapping[str, Any]]
    axes: Sequence[str]
    against: str = ""

    @cached_property
    def short(self) -> dict[str, str]:
        """A number for each run; nothing where there is only one."""
        runs = dict.fromkeys([*(str(row["run_id"]) for row in self.rows), *self.manifests])
        return {run: str(n) for n, run in enumerate(runs, 1)} if len(runs) > 1 else {}

    def parts(self) -> Iterator[tuple[str, list[Row]]]:
        """Rows that ran on a GPU, by family, mode, dtype, GPU and run, each with its title."""
        groups: dict[tuple[str, ...], list[Row]] = {}
        for row in self.rows:
            if has_time(row):
                names = ("family", "mode", "dtype", "gpu", "run_id")
                groups.setdefault(tuple(str(row[name]) for name in names), []).append(row)
        several = len({key[-1] for key in groups}) > 1
        for key, rows in groups.items():
            yield " · ".join(key if several else key[:-1]), rows

    def is_baseline(self, row: Row) -> bool:
        return bool(row["provider"] == self.against if self.against else row["role"] == "baseline")


def source(
    rows: Sequence[Row],
    measured: Sequence[Measured] = (),
    manifests: Mapping[str, Mapping[str, Any]] | None = None,
    against: str = "",
) -> Source:
    """rows: of `metrics.rows_of`."""
    axes = metrics.axis_columns(row["axes"] for row in rows)
    flat = [
        row | {column: row["axes"].get(axis) for column, axis in axes.items()}
        for row in metrics.filled(rows)
    ]
    return Source(flat, measured, manifests or {}, list(axes), against)


def show(sheet: Sheet, console: Console) -> None:
    """Print the title, the table and the note. Where it is wider than the console, labels stand
    above their lines and words fold; numbers never fold."""
    console.print(Text(sheet.title, style="bold"))
    needed = _needed(sheet) if sheet.heads else []
    labels: Sequence[str] = ()
    if sheet.labelled and _total(needed) > console.width:
        labels = [row[-1] for row in sheet.rows]
        needed.pop()
        sheet = replace(sheet, heads=sheet.heads[:-1], rows=tuple(row[:-1] for row in sheet.rows))
    indent = " " * GAP if labels else ""
    widths = _narrow(sheet, needed, console.width - len(indent))
    lines = list[str]()
    for number, row in enumerate((sheet.heads, *sheet.rows) if sheet.heads else ()):
        if number and labels and labels[number - 1]:
            lines.append(labels[number - 1])
        for cells in zip(*_fold_cells(sheet, row, widths), strict=True):
            lines.append(f"{indent}{(' ' * GAP).join(cells).rstrip()}")
    if lines:
        console.print(Text("\n".join(lines)), soft_wrap=True)
    if sheet.note:
        console.print(Text(sheet.note))


def _fold_cells(sheet: Sheet, row: Sequence[str], widths: Sequence[int]) -> Iterator[list[str]]:
    """Fold each cell to its column's width, with equally many lines; heads stand at the bottom."""
    cells = [_lines(cell, width) for cell, width in zip(row, widths, strict=True)]
    high = max(map(len, cells))
    for number, (lines, width) in enumerate(zip(cells, widths, strict=True)):
        missing = [""] * (high - len(lines))
        padded = [*missing, *lines] if row is sheet.heads else [*lines, *missing]
        yield [_aligned(line, width, left=sheet.is_word(number)) for line in padded]


def _lines(cell: str, width: int) -> list[str]:
    if "\n" not in cell and cell_len(cell) <= width:
        return [cell]
    whole = (part for line in cell.split("\n") for part in fold(line, width).split("\n"))
    return [part for line in whole for part in chop_cells(line, width) or [""]]


def _aligned(text: str, width: int, *, left: bool) -> str:
    space = " " * (width - cell_len(text))
    return text + space if left else space + text


def _needed(sheet: Sheet) -> list[int]:
    """The width of each column."""
    return [
        max(1, *(cell_len(text) for text in (*head.split("\n"), *(row[n] for row in sheet.rows))))
        for n, head in enumerate(sheet.heads)
    ]


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def _narrow(sheet: Sheet, needed: Sequence[int], width: int) -> list[int]:
    """Narrow columns of words where all is too wide: cases first, then the others."""
    widths = list(needed)
    over = _total(widths) - width
    for number in range(len(widths)):
        if over > 0 and sheet.is_word(number):
            least = LEAST_CONFIG if number == 0 else LEAST_WORD
            gained = min(over, max(0, widths[number] - least))
            widths[number] -= gained
            over -= gained
    return widths


def config(row: Row) -> str:
    """A case's id without the dtype and mode, which the table's title has."""
    return str(row["case"]).removesuffix(f"-{row['dtype']}-{row['mode']}")


def by_row(rows: Sequence[Row], cells: Callable[[Row], Sequence[str] | None]) -> Lines:
    """A line a row: its case, its `cells`, its label; a repeated case is left blank."""
    lines, before = list[tuple[str, ...]](), ("", "")
    for row in rows:
        row_cells, case = cells(row), (config(row), str(row["label"]))
        if row_cells is not None:
            words = case if case != before else ("", "")
            lines.append((words[0], *row_cells, words[1]))
            before = case
    return tuple(lines)


def by_case(
    source: Source, rows: Sequence[Row], cells: Callable[[Sequence[Row]], Sequence[str]]
) -> Lines:
    """A line a case and run: the case, the run's number, the `cells` of its rows, its label;
    repeated ones are left blank."""
    jobs: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        jobs.setdefault((str(row["label"]), str(row["case"]), str(row["run_id"])), []).append(row)
    lines, before = list[tuple[str, ...]](), ("", "")
    for (label, case, run), part in jobs.items():
        name = "" if (label, case) == before else config(part[0])
        heading = "" if label == before[0] else label
        lines.append((name, source.short.get(run, ""), *cells(part), heading))
        before = (label, case)
    return tuple(lines)
