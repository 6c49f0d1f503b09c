"""Claimed beside measured: a table a document, what stands against a claim as numbered notes."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kernelbench import claims, store
from kernelbench.claims.words import Bound, Claim
from kernelbench.report.tables import WIDTH, percent
from kernelbench.spec import Measured, RunRecord, UsageError, suggest

FORMATS = ("table", "md", "json", "csv")
KINDS = (
    "claimed: quoted. measured, modelled: as each says, ± the 95 % interval. ratio: measured "
    "over claimed, of a range its nearest end. Verdicts and their rules: docs/claims.md."
)
HEADS = ("claim", "claimed (quoted)", "found", "ratio", "verdict", "notes")


class Page(NamedTuple):
    """A document's claims as text. cells: one line of HEADS a claim; notes: numbered from 1, those
    in their last cell; remarks: of the whole document."""

    title: str
    source: str
    cells: list[tuple[str, ...]]
    notes: list[str]
    remarks: tuple[str, ...]


def verb(
    paths: Sequence[Path],
    against: Path | None,
    format: str,
    console: Console,
    errors: Console,
) -> int:
    """Print the verdicts on claims files, the shipped ones if none is named; name what could not be
    read. Exit code 1 if a record's line could not be read.

    Raises UsageError for a format, a file or a folder that is none.
    """
    if format not in FORMATS:
        raise UsageError(f"--format: no format {format!r}{suggest(format, FORMATS)}")
    files = claims.load(paths or claims.shipped())
    records, measured, problems = _read(against)
    for problem in problems:
        errors.print(problem, style="yellow", highlight=False, markup=False, soft_wrap=True)
    found = claims.rows(records, files, measured)
    if format == "table":
        render(found, console)
    else:
        print({"md": markdown, "json": to_json, "csv": to_csv}[format](found), end="")
    return int(bool(problems))


def _read(against: Path | None) -> tuple[list[RunRecord], list[Measured], list[str]]:
    records, measured, problems = list[RunRecord](), list[Measured](), list[str]()
    runs = store.find_runs([against]) if against else []
    if against and not runs:
        raise UsageError(f"--against: no run in {against}: kernelbench run smoke")
    for run in runs:
        found, damaged = store.read_with_problems(run)
        seen, torn = store.read_measured(run)
        records, measured = [*records, *found], [*measured, *seen]
        problems += [*damaged, *torn]
    return records, measured, problems


def pages(rows: Sequence[claims.Row]) -> Iterator[Page]:
    """One a document, in order."""
    for document, part in groupby(rows, key=lambda row: row.document):
        numbers: dict[str, int] = {}
        cells = [_cells(row, numbers) for row in part]
        place = "/".join(word for word in (document.repository, document.path) if word)
        yield Page(document.title, place, cells, list(numbers), document.notes)


def _cells(row: claims.Row, numbers: dict[str, int]) -> tuple[str, ...]:
    said = [numbers.setdefault(note, len(numbers) + 1) for note in (*row.whys, *row.notes)]
    ratio = "" if row.ratio is None else figure(row.ratio)
    notes = " ".join(f"[{number}]" for number in said)
    return (row.claim.id, claimed(row.claim), found(row), ratio, row.verdict_text, notes)


def claimed(claim: Claim) -> str:
    """`1.24 ×`, `1.2–1.5 ×`, `≥ 1.5 ×`, `≤ 1e-06 max error`, with the decimals of the document."""
    low, high = (_printed(value, claim.places) for value in claim.value)
    sign = {Bound.exact: "", Bound.at_least: "≥ ", Bound.at_most: "≤ "}[claim.bound]
    return f"{sign}{low if low == high else f'{low}–{high}'} {claim.sort.unit}"


def _printed(value: float, places: int) -> str:
    return f"{value:.0e}" if 0 < abs(value) < 1e-3 else f"{value:,.{places}f}"


def found(row: claims.Row) -> str:
    """`2.23 ±0.6% measured`, the longer arm of its interval; nothing where nothing was found."""
    value = row.found.value
    if value is None:
        return ""
    spread = "" if value.lo == value.hi else f" ±{percent(value.relative * 100)}"
    return f"{figure(value.mid)}{spread} {row.found.kind}"


def figure(value: float) -> str:
    """Three figures, more where a whole number has them."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def counts(rows: Sequence[claims.Row]) -> str:
    """`124 claims: 3 reproduced, 20 better, …`"""
    each = [(verdict, sum(row.verdict is verdict for row in rows)) for verdict in claims.Verdict]
    said = ", ".join(f"{number} {verdict}" for verdict, number in each if number)
    return f"{len(rows)} claim{'s' * (len(rows) != 1)}: {said}" if rows else "no claims"


def render(rows: Sequence[claims.Row], console: Console) -> None:
    """Print it; at least 100 columns wide, so that a pipe cuts no number."""
    narrow = console.width
    console.width = max(narrow, WIDTH)
    try:
        for page in pages(rows):
            _page(page, console)
        console.print(KINDS, highlight=False)
        console.print()
        console.print(counts(rows), highlight=False)
    finally:
        console.width = narrow


def _page(page: Page, console: Console) -> None:
    console.print(Text(page.title, style="bold"))
    if page.source:
        console.print(Text(page.source))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    shown = _shown(page)
    for head in (HEADS[at] for at in shown):
        right = head in ("claimed (quoted)", "ratio")
        table.add_column(head, justify="right" if right else "left", overflow="fold")
    for cells in page.cells:
        table.add_row(*(Text(cells[at]) for at in shown))
    console.print(table)
    for number, note in enumerate(page.notes, 1):
        console.print(Text(f"[{number}] {note}"))
    for remark in page.remarks:
        console.print(Text(f"* {remark}"))
    console.print()


def _shown(page: Page) -> list[int]:
    """The columns that hold something."""
    return [at for at in range(len(HEADS)) if any(cells[at] for cells in page.cells)]


def markdown(rows: Sequence[claims.Row]) -> str:
    """The same as Markdown, a heading of the third level a document."""
    lines: list[str] = []
    for page in pages(rows):
        lines += [f"### {_escaped(page.title)}", ""]
        lines += [_escaped(page.source), ""] if page.source else []
        shown = _shown(page)
        lines += [f"| {' | '.join(HEADS[at] for at in shown)} |", "|---" * len(shown) + "|"]
        lines += [f"| {' | '.join(_escaped(cells[at]) for at in shown)} |" for cells in page.cells]
        notes = [f"* [{number}] {note}" for number, note in enumerate(page.notes, 1)]
        remarks = [f"* {remark}" for remark in page.remarks]
        lines += ["", *(_escaped(line, but="*") for line in (*notes, *remarks)), ""]
    return "\n".join([*lines, KINDS, "", counts(rows), ""])


def _escaped(text: str, but: str = "") -> str:
    """Nothing of a document becomes markup."""
    return "".join(
        f"\\{char}" if char in "\\`*_<>|#" and char not in but else char
        for char in " ".join(text.split())
    )


def to_json(rows: Sequence[claims.Row]) -> str:
    """Strict JSON: a list of flat rows, null where a field does not apply."""
    return json.dumps([claims.plain(row) for row in rows], allow_nan=False, indent=1) + "\n"


def to_csv(rows: Sequence[claims.Row]) -> str:
    """The same fields, empty where one does not apply."""
    out = io.StringIO()
    flat = [claims.plain(row) for row in rows]
    writer = csv.DictWriter(out, list(flat[0]) if flat else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()
