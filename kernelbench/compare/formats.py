"""A comparison as Markdown, JSON and CSV."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from kernelbench import metrics
from kernelbench.compare import wording
from kernelbench.compare.rows import Comparison, RowChange
from kernelbench.compare.sides import Side
from kernelbench.compare.tables import interval, percent, time
from kernelbench.spec import UsageError, suggest

COLUMNS = [
    *(f.name for f in fields(RowChange) if f.name not in ("cause", "why", "regression")),
    "change_pct", "cause", "why", "regression",
]  # fmt: skip
_HEAD = ("verdict", "family", "case", "provider", "change", "95 % interval", "A", "B")


def _plain(row: RowChange) -> dict[str, Any]:
    facts = {**asdict(row), "change_pct": row.change_pct}
    return {name: facts[name] for name in COLUMNS}


def known_format(name: str, formats: Sequence[str]) -> str:
    """The name. Raises UsageError for an unknown format."""
    if name not in formats:
        raise UsageError(f"--format: no format {name!r}{suggest(name, formats)}")
    return name


def as_json(comparison: Comparison) -> str:
    """Strict JSON, numbers in full; null where a number does not apply, "inf" for what has none."""
    rows = [
        {name: "inf" if value == float("inf") else value for name, value in _plain(row).items()}
        for row in comparison.rows
    ]
    document = {
        "a": _side(comparison.a),
        "b": _side(comparison.b),
        "limit_pct": comparison.limit_pct,
        "fails_on": sorted(comparison.gate.fails),
        "least_pct": comparison.gate.least_pct,
        "earlier": comparison.earlier,
        "judged": comparison.judged,
        "undecided": comparison.undecided,
        "exit_code": comparison.exit_code,
        "one_gpu": comparison.one_gpu,
        "widened": comparison.widened,
        "notes": wording.notes(comparison),
        "differences": [asdict(difference) for difference in comparison.differences],
        "rows": rows,
    }
    return json.dumps(document, allow_nan=False)


def _side(side: Side) -> dict[str, Any]:
    return {"name": side.name, "runs": [run.path.name for run in side.runs], "gpus": side.gpus}


def as_csv(comparison: Comparison) -> str:
    """One line a row; an empty cell is a number that does not apply."""
    return table(
        COLUMNS, [[metrics.cell(v) for v in _plain(row).values()] for row in comparison.rows]
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """CSV by RFC 4180, except that lines end in a newline alone."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([columns, *rows])
    return out.getvalue()


def as_markdown(comparison: Comparison) -> str:
    """For a pull request: what moved, what else differs, and the whole table folded away."""
    lines = [
        f"**{wording.verdicts(comparison)}**",
        *(["", _escaped(comparison.undecided)] if comparison.undecided else []),
        "",
        *(f"{_escaped(line)}  " for line in wording.title(comparison)),
        "",
    ]
    if moved := wording.notable_rows(comparison):
        lines += [*_rows(moved, causes=True), ""]
    for head, entries in (
        ("No longer judged", wording.untimed_lines(comparison, regressed=True)),
        ("Not compared", wording.untimed_lines(comparison, regressed=False)),
        ("What else differs", wording.difference_lines(comparison)),
    ):
        if entries:
            lines += [f"{head}:", "", *(f"- {_escaped(line)}" for line in entries), ""]
    rows = wording.rows_of_both(comparison)
    lines += [f"<details><summary>All {len(rows)} rows of both sides</summary>", ""]
    lines += [*_rows(rows), "", "</details>", ""]
    lines += [f"{_escaped(note)}\n" for note in (*wording.notes(comparison), f"{wording.KINDS}.")]
    return "\n".join(lines)


def _rows(rows: Sequence[RowChange], causes: bool = False) -> list[str]:
    head = (*_HEAD, "put down to") if causes else _HEAD
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in rows:
        cells = [
            f"**{row.verdict}**" if row.regression else row.verdict,
            *(row.family, row.case, row.provider, percent(row.ratio), interval(row)),
            *(time(row.a_us), time(row.b_us)),
        ]
        reason = [wording.reasons(row)] if causes else []
        lines.append(f"| {' | '.join(map(_escaped, [*cells, *reason]))} |")
    return lines


def _escaped(text: str) -> str:
    """Escaped for a Markdown cell: it starts no cell, no tag and no emphasis."""
    for char, to in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("_", "\\_"), ("\n", " ")):
        text = text.replace(char, to)
    return text
