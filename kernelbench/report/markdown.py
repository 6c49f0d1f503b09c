"""A report as Markdown, for a README, a pull request, or the summary of a CI job."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernelbench.report import tables
from kernelbench.report.sheets import Sheet
from kernelbench.spec import KernelbenchError

if TYPE_CHECKING:
    from pandas import DataFrame

Row = Mapping[str, Any]
SUMMARY_LIMIT = 1 << 20  # bytes that GitHub takes of one step
CUT = "\n\n*Truncated: more than the 1 MiB that GitHub shows of a step.*\n"


def markdown(frame: "DataFrame", sheets: Sequence[Sheet] = (), against: str = "") -> str:
    """The summary, a table a family, mode, dtype and GPU, and more sheets."""
    lines = [f"- {_escaped(line)}" for line in str(tables.summary(frame)).splitlines()]
    rows = [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]
    smoke = tables.smoke_machines(rows)
    parts: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        small = row["gpu"] in smoke
        names = ("family", "gpu") if small else ("family", "mode", "dtype", "gpu")
        parts.setdefault((*(str(row[n]) for n in names), "smoke" * small), []).append(row)
    several = len({row["run_id"] for row in rows}) > 1
    found = ["\n".join(lines)]
    for key, part in parts.items():
        title = " · ".join(word for word in key if word)
        found += [of_sheet(_speeds(title, part, bool(key[-1]), several, against)), _others(part)]
    found += map(of_sheet, sheets)
    if any(row["timer"] == "gated" for row in rows):
        found.append(_escaped(tables.KINDS))
    return "\n\n".join(text for text in found if text) + "\n"


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
        shown, before = ("" if config == before else config), config
        lines.append((shown, *(column.cell(row) for column in columns)))
    heads = ("Config", *(" ".join(column.head.split()) for column in columns))
    return Sheet(title, heads, tuple(lines), left=2)


def _others(rows: Sequence[Row]) -> str:
    """What has no time and why, a reason a line."""
    told = Counter(
        (str(row["provider"]), tables.answer(row)) for row in rows if row["status"] != "ok"
    )
    return "\n".join(
        f"- {_escaped(provider)}: {_escaped(why)}{f' ({count} cases)' if count > 1 else ''}"
        for (provider, why), count in told.items()
    )


def of_sheet(sheet: Sheet) -> str:
    """A heading, the table, its note; nothing for a table without rows."""
    if not sheet.rows:
        return ""
    rule = ["---" if n < sheet.left else "---:" for n in range(len(sheet.heads))]
    lines = [
        f"| {' | '.join(_escaped(cell) for cell in row)} |" for row in (sheet.heads, *sheet.rows)
    ]
    table = "\n".join([lines[0], f"|{'|'.join(rule)}|", *lines[1:]])
    note = f"\n\n{_escaped(sheet.note)}" if sheet.note else ""
    return f"### {_escaped(sheet.title)}\n\n{table}{note}"


def _escaped(text: str) -> str:
    """Text that is no markup, on one line."""
    for plain, safe in (("\\", "\\\\"), ("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(plain, safe)
    for mark in "|*_`[]":
        text = text.replace(mark, f"\\{mark}")
    return "<br>".join(text.splitlines())


def append_summary(text: str) -> bool:
    """Append to the file that `GITHUB_STEP_SUMMARY` names; False where it is not set.

    Cut at a line where the file would grow beyond what GitHub takes.
    Raises KernelbenchError when it cannot be written.
    """
    name = os.environ.get("GITHUB_STEP_SUMMARY")
    if not name:
        return False
    path = Path(name)
    try:
        left = SUMMARY_LIMIT - (path.stat().st_size if path.exists() else 0)
        with path.open("ab") as file:
            file.write(_cut(text.encode(), left))
    except OSError as error:
        raise KernelbenchError(
            f"GITHUB_STEP_SUMMARY={name}: cannot be written ({error.strerror})"
        ) from None
    return True


def _cut(text: bytes, limit: int) -> bytes:
    if len(text) <= limit:
        return text
    room = limit - len(CUT.encode())
    return text[:room].rpartition(b"\n")[0] + CUT.encode() if room > 0 else b""
