"""Records that are wrong or failed: printed first, and the reason for exit code 1."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console

from kernelbench.spec import RunRecord, Status

MOST = 20  # lines before the tables
_LONGEST = 200
_BAD = frozenset(status.value for status in Status if status.bad)
Row = Mapping[str, Any]


def show(rows: Iterable[Row], console: Console) -> None:
    """Print a line for each with its case, then an empty line; a long list is cut."""
    bad = _bad(rows)
    lines = [f"{_name(row)}: {row['status']}{_reason(row)}" for row in bad[:MOST]]
    if len(bad) > MOST:
        lines.append(f"and {len(bad) - MOST} more that are wrong or failed")
    if lines:
        text = "\n".join(lines)
        console.print(text, style="red", highlight=False, markup=False)
        console.print()


def why(rows: Iterable[Row]) -> str:
    """Why the exit code is 1, in a line; nothing where no row is wrong or failed."""
    rows = list(rows)
    bad = _bad(rows)
    if not bad:
        return ""
    counts = Counter(str(row["status"]) for row in bad).most_common()
    summary = ", ".join(f"{count} {status}" for status, count in counts)
    return f"exit 1: {summary} of {len(rows)} records, the first {_name(bad[0])}"


def rows_of(records: Iterable[RunRecord]) -> list[dict[str, str]]:
    """The fields of records that these lines need; nothing is derived from samples."""
    names = ("family", "case", "provider", "status", "reason")
    return [{name: str(getattr(record, name)) for name in names} for record in records]


def _bad(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row["status"] in _BAD]


def _name(row: Row) -> str:
    return f"{row['family']}/{row['case']} {row['provider']}"


def _reason(row: Row) -> str:
    lines = str(row["reason"]).strip().splitlines()
    return f": {lines[0][:_LONGEST]}" if lines else ""
