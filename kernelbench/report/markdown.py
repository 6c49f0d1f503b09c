"""A report as Markdown, for a README, a pull request, or the summary of a CI job."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kernelbench import files
from kernelbench.report import tables
from kernelbench.report.choice import Choice
from kernelbench.report.documents import untimed_reasons
from kernelbench.report.means import over_what
from kernelbench.report.sheet import Sheet
from kernelbench.spec import KernelbenchError

Row = Mapping[str, Any]
SUMMARY_LIMIT = 1 << 20  # bytes that GitHub takes of one step
CUT = "\n\n*Truncated: more than the 1 MiB that GitHub shows of a step.*\n"


def markdown(selection: Choice, against: str = "") -> str:
    """The summary and the chosen tables."""
    lines = [f"- {_escaped(line)}" for line in str(tables.summary(selection.rows)).splitlines()]
    blocks = ["\n".join(lines), *map(of_sheet, selection.first)]
    blocks += [*_cases(selection.cases, against), *map(of_sheet, selection.sheets)]
    if over := over_what(selection.cases):
        blocks.append(_escaped(f"{tables.KINDS} Intervals are {over}."))
    blocks.append(_escaped(selection.note))
    return "\n\n".join(text for text in blocks if text) + "\n"


def _cases(rows: Sequence[Row], against: str) -> Iterator[str]:
    for sheet, part in case_sheets(rows, against):
        yield of_sheet(sheet)
        yield "\n".join(f"- {_escaped(line)}" for line in untimed_reasons(part))


def case_sheets(rows: Sequence[Row], against: str = "") -> Iterator[tuple[Sheet, Sequence[Row]]]:
    """A table a family, mode, dtype and GPU, a line a provider, and the rows that it is of; a smoke
    run has one a family."""
    smoke = tables.smoke_machines(rows)
    parts: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        small = row["gpu"] in smoke
        names = ("family", "gpu") if small else ("family", "mode", "dtype", "gpu")
        parts.setdefault((*(str(row[n]) for n in names), "smoke" * small), []).append(row)
    several = len({row["run_id"] for row in rows}) > 1
    for key, part in parts.items():
        title = " · ".join(word for word in key if word)
        yield _speeds(title, part, bool(key[-1]), several, against), part


def _speeds(title: str, rows: Sequence[Row], smoke: bool, several: bool, against: str) -> Sheet:
    good = [row for row in rows if row["status"] == "ok"]
    columns = [
        column
        for column in tables.columns_of(smoke, against)
        if any(column.cell(row) for row in good)
    ]
    lines, before = [], ""
    for row in good:
        words = (row["label"], row["case"], row["run_id"] if several else "")
        config = " ".join(str(word) for word in words if word)
        name, before = ("" if config == before else config), config
        lines.append((name, *(column.cell(row) for column in columns)))
    heads = ("Config", *(column.head for column in columns))
    return Sheet(title, heads, tuple(lines), words=frozenset(heads[:2]))


def of_sheet(sheet: Sheet) -> str:
    """A heading, the table, its note; nothing for a table without rows."""
    note = "\n".join(f"- {_escaped(line)}" for line in sheet.note.splitlines())
    if not sheet.rows:
        return f"### {_escaped(sheet.title)}\n\n{note}" if note and not sheet.heads else ""
    rule = ["---" if sheet.is_word(n) else "---:" for n in range(len(sheet.heads))]
    heads = (" ".join(head.split()) for head in sheet.heads)
    lines = [f"| {' | '.join(_escaped(cell) for cell in row)} |" for row in (heads, *sheet.rows)]
    table = "\n".join([lines[0], f"|{'|'.join(rule)}|", *lines[1:]])
    return f"### {_escaped(sheet.title)}\n\n{table}\n\n{note}".strip()


def _escaped(text: str) -> str:
    """Escape Markdown and HTML in a text, on one line."""
    for plain, safe in (("\\", "\\\\"), ("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(plain, safe)
    text = re.sub(r"[|*`\[\]]|(?<!\w)_|_(?!\w)", r"\\\g<0>", text)
    return "<br>".join(text.splitlines())


def append_summary(text: str) -> bool:
    """Append to the file that `GITHUB_STEP_SUMMARY` names; False where it is not set.

    Cut at a line where the file would grow beyond what GitHub takes.
    Raises KernelbenchError when it cannot be written.
    """
    name = os.environ.get("GITHUB_STEP_SUMMARY")
    if not name:
        return False
    try:
        there = Path(name).stat().st_size
    except OSError:  # the writer reports what is wrong with it
        there = 0
    try:
        files.append(name, _cut(text.encode(), SUMMARY_LIMIT - there))
    except KernelbenchError as error:
        raise KernelbenchError(f"GITHUB_STEP_SUMMARY={error}") from None
    return True


def _cut(text: bytes, limit: int) -> bytes:
    if len(text) <= limit:
        return text
    start = text[: max(0, limit - len(CUT.encode()))].rpartition(b"\n")[0]
    return start + CUT.encode() if start else b""
