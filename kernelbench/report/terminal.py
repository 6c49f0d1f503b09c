"""A report on a terminal: failures first, then the tables, then the summary."""

from collections.abc import Sequence

from rich.console import Console

from kernelbench import claims
from kernelbench.report import claim_tables, failures, profiles, sheet, tables
from kernelbench.report.choice import Choice, choice
from kernelbench.spec import Measured

LEAST = 80  # columns; a narrower terminal folds the lines itself


def show(
    selection: Choice,
    console: Console,
    *,
    against: str = "",
    measured: Sequence[Measured] = (),
    claimed_rows: Sequence[claims.ClaimRow] = (),
) -> None:
    """Print the chosen tables, then the summary."""
    narrow, console.width = console.width, max(console.width, LEAST)
    try:
        failures.show(selection.rows, console)
        _sheets(selection.first, console)
        if selection.cases:
            tables.show_cases(selection.cases, console, against)
        _sheets(selection.sheets, console)
        if selection.profiles:
            profiles.render(measured, console)
        if claimed_rows:
            claim_tables.render(claimed_rows, console)
            console.print()
        if selection.note:
            console.print(selection.note, highlight=False)
            console.print()
        if selection.rows or not measured:
            console.print(tables.summary(selection.rows), highlight=False)
    finally:
        console.width = narrow


def show_run(rows: Sequence[sheet.Row], console: Console) -> None:
    """The default tables of one run, as `report` shows them. rows: of `metrics.rows_of`."""
    show(choice((), sheet.source(rows)), console)


def _sheets(sheets: Sequence[sheet.Sheet], console: Console) -> None:
    for item in sheets:
        sheet.show(item, console)
        console.print()
