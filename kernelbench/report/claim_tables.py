"""Claimed beside measured figures: a table a document, objections as numbered notes."""

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kernelbench import claims
from kernelbench.claims.words import Bound, Claim
from kernelbench.metrics import Kind
from kernelbench.report.tables import percent

KINDS = (
    f"claimed: {Kind.quoted}. {Kind.measured}: so, or {Kind.derived} from it, unless it says "
    f"{Kind.modelled} or {Kind.mixed}; ± the 95 % interval. ratio: measured over claimed, of a "
    "range its nearest end. Verdicts and their rules: docs/claims.md."
)
HEADS = ("claim", f"claimed ({Kind.quoted})", str(Kind.measured), "ratio", "verdict")
STYLES = {
    claims.Verdict.reproduced: "green",
    claims.Verdict.better: "green",
    claims.Verdict.not_reproduced: "red",
}
BROKEN = {str(claims.Verdict.inconclusive): "incon-\nclusive"}  # heads too wide for 80 columns
Cells = tuple[str, ...]

_GAP = 2
_LEAST = 80
_LEAST_CLAIMED, _LEAST_VERDICT = 13, 17


class Part(NamedTuple):
    """The claims in one section of a document for one machine: a line of HEADS a claim."""

    head: str
    rows: list[claims.ClaimRow]
    cells: list[Cells]


class Page(NamedTuple):
    """A document's claims as text. notes: numbered from 1, as in brackets behind a verdict;
    remarks: on the whole document."""

    title: str
    source: str
    parts: list[Part]
    notes: list[str]
    remarks: tuple[str, ...]


def pages(rows: Sequence[claims.ClaimRow]) -> Iterator[Page]:
    """One page a document, in order."""
    for document, group in groupby(rows, key=lambda row: row.document):
        numbers: dict[str, int] = {}
        parts = [
            Part(head, section_rows, [_cells(row, numbers) for row in section_rows])
            for head, section in groupby(group, key=_head)
            if (section_rows := list(section))
        ]
        place = "/".join(word for word in (document.repository, document.path) if word)
        yield Page(document.title, place, parts, list(numbers), document.notes)


def _head(row: claims.ClaimRow) -> str:
    hardware = claims.hardware_of(row.claim, row.document)
    return f"{row.claim.section} · {hardware or 'hardware not stated'}"


def _cells(row: claims.ClaimRow, numbers: dict[str, int]) -> Cells:
    note_numbers = [numbers.setdefault(note, len(numbers) + 1) for note in (*row.whys, *row.notes)]
    ratio = "" if row.ratio is None else figure(row.ratio)
    verdict = " ".join([row.verdict_text, *(f"[{number}]" for number in note_numbers)])
    return (row.claim.id, claimed_text(row.claim), measured_text(row), ratio, verdict)


def claimed_text(claim: Claim) -> str:
    """`1.24 ×`, `1.2–1.5 ×`, `≥ 1.5 ×`, `≤ 1e-06 max error`, with the decimals of the document."""
    low, high = (_printed(value, claim.places) for value in claim.value)
    sign = {Bound.exact: "", Bound.at_least: "≥ ", Bound.at_most: "≤ "}[claim.bound]
    return f"{sign}{low if low == high else f'{low}–{high}'} {claim.sort.unit}"


def _printed(value: float, places: int) -> str:
    return f"{value:.0e}" if 0 < abs(value) < 1e-3 else f"{value:,.{places}f}"


def measured_text(row: claims.ClaimRow) -> str:
    """`2.23 ±0.6%`, with the longer arm of its interval, or `34.8 modelled`; nothing without a
    value."""
    value = row.evidence.value
    if value is None:
        return ""
    spread = "" if value.lo == value.hi else f" ±{percent(value.relative * 100)}"
    spread = spread if math.isfinite(value.relative) else " (too few samples)"
    kind = row.evidence.kind.removeprefix(Kind.measured).removeprefix(Kind.derived).strip()
    return f"{figure(value.mid)}{spread} {kind}".rstrip()


def figure(value: float) -> str:
    """Three digits, or all digits of a whole number."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def summary(rows: Sequence[claims.ClaimRow]) -> list[Cells]:
    """How often each verdict occurs: a head, a line a document, and a total."""
    verdicts = list(claims.Verdict)
    lines: list[Cells] = [("document", "claims", *map(str, verdicts))]
    documents = [(doc.id, list(part)) for doc, part in groupby(rows, key=lambda row: row.document)]
    for name, part in [*documents, ("all", list(rows))]:
        counts = [sum(row.verdict is verdict for row in part) for verdict in verdicts]
        lines.append((name, str(len(part)), *map(str, counts)))
    return lines


def render(rows: Sequence[claims.ClaimRow], console: Console) -> None:
    """Print the pages, 80 columns wide or wider."""
    narrow = console.width
    console.width = max(narrow, _LEAST)
    try:
        for page in pages(rows):
            _page(page, console)
        console.print(_totals(rows))
        console.print()
        console.print(KINDS, highlight=False)
    finally:
        console.width = narrow


def _page(page: Page, console: Console) -> None:
    console.print(Text(page.title, style="bold"))
    if page.source:
        console.print(Text(page.source, style="dim"))
    widths = _widths(page, console.width)
    for number, part in enumerate(page.parts):
        console.print()
        console.print(Text(part.head, style="italic"))
        console.print(_table(part, widths, heads=not number))
    if page.notes or page.remarks:
        console.print()
        console.print(_remarks(page))
    console.print()


def _widths(page: Page, whole: int) -> dict[int, int]:
    """The width of each column that is not empty; the verdict takes the rest."""
    lines = [HEADS, *(cells for part in page.parts for cells in part.cells)]
    columns = [column for column in range(len(HEADS)) if any(cells[column] for cells in lines[1:])]
    widths = {column: max(cell_len(cells[column]) for cells in lines) for column in columns[:-1]}
    rest = whole - sum(widths.values()) - _GAP * len(widths)
    if rest < _LEAST_VERDICT:
        widths[1] = max(_LEAST_CLAIMED, widths[1] - (_LEAST_VERDICT - rest))
    last = max(_LEAST_VERDICT, whole - sum(widths.values()) - _GAP * len(widths))
    return widths | {columns[-1]: last}


def _table(part: Part, widths: dict[int, int], heads: bool) -> Table:
    table = Table(
        box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="dim", show_header=heads
    )
    for column, width in widths.items():
        right = HEADS[column] in ("claimed (quoted)", "ratio")
        table.add_column(
            HEADS[column], width=width, justify="right" if right else "left", overflow="fold"
        )
    for row, cells in zip(part.rows, part.cells, strict=True):
        style = STYLES.get(row.verdict, "")
        table.add_row(
            *(
                Text(cells[column], style=style if HEADS[column] == "verdict" else "")
                for column in widths
            )
        )
    return table


def _remarks(page: Page) -> Table:
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(justify="right")
    grid.add_column(overflow="fold")
    for number, note in enumerate(page.notes, 1):
        grid.add_row(Text(f"[{number}]"), Text(note))
    for remark in page.remarks:
        grid.add_row(Text("*"), Text(remark))
    return grid


def _totals(rows: Sequence[claims.ClaimRow]) -> Table:
    heads, *lines = summary(rows)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for column, word in enumerate(heads):
        head = BROKEN.get(word) or "\n".join(word.rsplit(" ", 1))
        table.add_column(
            head, justify="right" if column else "left", vertical="bottom", no_wrap=not column
        )
    for line in lines:
        table.add_row(*map(Text, line))
    return table


def markdown(rows: Sequence[claims.ClaimRow]) -> str:
    """The same as Markdown, a heading of the third level a document."""
    lines = [*_grid(summary(rows)), "", KINDS, ""]
    for page in pages(rows):
        lines += [f"### {_escaped(page.title)}", ""]
        lines += [_escaped(page.source), ""] if page.source else []
        columns = list(_widths(page, 0))
        table: list[Cells] = [HEADS]
        for part in page.parts:
            table += [(f"**{_escaped(part.head)}**", *[""] * (len(HEADS) - 1))]
            table += [tuple(map(_escaped, cells)) for cells in part.cells]
        lines += _grid([[cells[column] for column in columns] for cells in table])
        notes = [f"[{number}] {note}" for number, note in enumerate(page.notes, 1)]
        lines += ["", *(f"* {_escaped(note)}" for note in (*notes, *page.remarks)), ""]
    return "\n".join(lines)


def _grid(cells: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; the first line is the head."""
    lines = [f"| {' | '.join(line)} |" for line in cells]
    return [lines[0], "|---" * len(cells[0]) + "|", *lines[1:]]


def _escaped(text: str) -> str:
    """Escape Markdown in a text."""
    return re.sub(r"([\\`*_<>|#\[\]])", r"\\\1", " ".join(text.split()))


def to_json(rows: Sequence[claims.ClaimRow]) -> str:
    """Strict JSON: a list of flat rows, null where a field does not apply."""
    return json.dumps([claims.plain(row) for row in rows], allow_nan=False, indent=1) + "\n"


def to_csv(rows: Sequence[claims.ClaimRow]) -> str:
    """The same fields, empty where one does not apply."""
    out = io.StringIO()
    flat = [claims.plain(row) for row in rows]
    writer = csv.DictWriter(out, list(flat[0]) if flat else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()
