"""A comparison as Markdown, JSON and CSV."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from kernelbench import metrics
from kernelbench.compare import telling
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


def known_format(name: str, known: Sequence[str]) -> str:
    """Raises UsageError for a format that is none."""
    if name not in known:
        raise UsageError(f"--format: no format {name!r}{suggest(name, known)}")
    return name


def as_json(found: Comparison) -> str:
    """Strict JSON, numbers in full; null where a number does not apply, "inf" for what has none."""
    rows = [
        {name: "inf" if value == float("inf") else value for name, value in _plain(row).items()}
        for row in found.rows
    ]
    whole = {
        "a": _side(found.a),
        "b": _side(found.b),
        "limit_pct": found.limit_pct,
        "fails_on": sorted(found.gate.fails),
        "least_pct": found.gate.least_pct,
        "earlier": found.earlier,
        "judged": found.judged,
        "undecided": found.undecided,
        "exit_code": found.exit_code,
        "one_gpu": found.one_gpu,
        "widened": found.widened,
        "notes": telling.notes(found),
        "differences": [asdict(difference) for difference in found.differences],
        "rows": rows,
    }
    return json.dumps(whole, allow_nan=False)


def _side(side: Side) -> dict[str, Any]:
    return {"name": side.name, "runs": [run.path.name for run in side.runs], "gpus": side.gpus}


def as_csv(found: Comparison) -> str:
    """One line a row; an empty cell is a number that does not apply."""
    return table(COLUMNS, [[metrics.cell(v) for v in _plain(row).values()] for row in found.rows])


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """RFC 4180, but for the line's end, which is that of the terminal."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([columns, *rows])
    return out.getvalue()


def as_markdown(found: Comparison) -> str:
    """For a pull request: what moved, what else differs, and the whole table folded away."""
    lines = [
        f"**{telling.verdicts(found)}**",
        *(["", _escaped(found.undecided)] if found.undecided else []),
        "",
        *(f"{_escaped(line)}  " for line in telling.title(found)),
        "",
    ]
    if moved := telling.notable(found):
        lines += [*_rows(moved, causes=True), ""]
    for head, told in (
        ("No longer judged", telling.settled(found, regressed=True)),
        ("Not compared", telling.settled(found, regressed=False)),
        ("What else differs", telling.differing(found)),
    ):
        if told:
            lines += [f"{head}:", "", *(f"- {_escaped(line)}" for line in told), ""]
    shown = telling.both(found)
    lines += [f"<details><summary>All {len(shown)} rows of both sides</summary>", ""]
    lines += [*_rows(shown), "", "</details>", ""]
    lines += [f"{_escaped(note)}\n" for note in (*telling.notes(found), f"{telling.KINDS}.")]
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
        told = [telling.reasons(row)] if causes else []
        lines.append(f"| {' | '.join(map(_escaped, [*cells, *told]))} |")
    return lines


def _escaped(text: str) -> str:
    """Safe inside a cell and outside code: no cell, no tag and no emphasis begins in it."""
    for char, to in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("_", "\\_"), ("\n", " ")):
        text = text.replace(char, to)
    return text
