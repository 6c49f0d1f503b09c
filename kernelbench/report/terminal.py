"""A report on a terminal: what failed first, then the tables, then what they come to."""

from collections.abc import Sequence

from rich.console import Console

from kernelbench import claims
from kernelbench.report import claimed, failed, profiles, sheet, tables
from kernelbench.report.choice import Choice, choice
from kernelbench.spec import Measured

LEAST = 80  # columns; a narrower terminal folds the lines itself


def show(
    shown: Choice,
    console: Console,
    *,
    against: str = "",
    measured: Sequence[Measured] = (),
    claimed_rows: Sequence[claims.ClaimRow] = (),
) -> None:
    """Print the tables that were chosen, then the summary."""
    narrow, console.width = console.width, max(console.width, LEAST)
    try:
        failed.show(shown.rows, console)
        _sheets(shown.first, console)
        if shown.cases:
            tables.show_cases(shown.cases, console, against)
        _sheets(shown.sheets, console)
        if shown.profiles:
            profiles.render(measured, console)
        if claimed_rows:
            claimed.render(claimed_rows, console)
            console.print()
        if shown.note:
            console.print(shown.note, highlight=False)
            console.print()
        if shown.rows or not measured:
            console.print(tables.summary(shown.rows), highlight=False)
    finally:
        console.width = narrow


def show_run(rows: Sequence[sheet.Row], console: Console) -> None:
    """The default tables of one run, as `report` shows them. rows: of `metrics.rows_of`."""
    show(choice((), sheet.source(rows)), console)


def _sheets(found: Sequence[sheet.Sheet], console: Console) -> None:
    for each in found:
        sheet.show(each, console)
        console.print()
