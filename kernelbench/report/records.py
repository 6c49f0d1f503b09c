"""Records as Python hands them over: a list that prints as the tables of its run."""

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from io import StringIO
from pathlib import Path

from rich.console import Console

from kernelbench import metrics
from kernelbench.report import sheet, tables, terminal
from kernelbench.report.choice import choice
from kernelbench.report.documents import untimed_reasons
from kernelbench.report.markdown import case_sheets
from kernelbench.report.sheet import Row, Sheet
from kernelbench.spec import RunRecord

WIDTH = 100
_CELL = "padding:2px 8px"


class Records(list[RunRecord]):
    """The records of one run. folder: where they are kept, None where they are not.

    `str` has its tables, a notebook shows them as HTML.
    """

    def __init__(self, records: Iterable[RunRecord] = (), folder: Path | None = None) -> None:
        super().__init__(records)
        self.folder = folder

    def __str__(self) -> str:
        text = StringIO()
        terminal.show_run(metrics.rows_of(self), Console(file=text, width=WIDTH))
        return text.getvalue().rstrip()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return "\n".join(_blocks(metrics.rows_of(self)))


def _blocks(rows: Sequence[Row]) -> Iterator[str]:
    chosen = choice((), sheet.source(rows))
    yield "<br>".join(escape(line) for line in str(tables.summary(chosen.rows)).splitlines())
    yield from map(_table, chosen.first)
    for cases, part in case_sheets(chosen.cases):
        yield _table(cases)
        yield "".join(f"<div>{escape(line)}</div>" for line in untimed_reasons(part))
    yield from map(_table, chosen.sheets)
    yield f"<small>{escape(chosen.note)}</small>" if chosen.note else ""


def _table(table: Sheet) -> str:
    """Its title, rows and note; nothing without rows."""
    if not table.rows:
        return ""
    sides = ["left" if table.is_word(n) else "right" for n in range(len(table.heads))]

    def row(tag: str, cells: Iterable[str]) -> str:
        columns = zip(cells, sides, strict=True)
        return "".join(
            f'<{tag} style="text-align:{side};{_CELL}">{escape(" ".join(cell.split()))}</{tag}>'
            for cell, side in columns
        )

    body = "".join(f"<tr>{row('td', cells)}</tr>" for cells in table.rows)
    note = f"<small>{escape(table.note)}</small>" if table.note else ""
    return (
        f"<table><caption>{escape(table.title)}</caption>"
        f"<thead><tr>{row('th', table.heads)}</tr></thead><tbody>{body}</tbody></table>{note}"
    )
