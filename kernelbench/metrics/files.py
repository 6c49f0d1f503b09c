"""The canonical CSV, and rows for JSON."""

import csv
import io
import math
import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from kernelbench import files
from kernelbench.metrics.rows import IDENTITY, RESULT, csv_columns, frame, plain_of, rows_of
from kernelbench.spec import KernelbenchError, RunRecord

if TYPE_CHECKING:
    from pandas import DataFrame

_ADDING = threading.Lock()


def to_csv(records: Sequence[RunRecord], path: Path) -> None:
    """Write the canonical CSV in UTF-8.

    The file is replaced in one step, so a reader or a crash never meets half of it.
    Raises KernelbenchError when it cannot be written.
    """
    files.write(path, csv_text(records))


def append_csv(records: Sequence[RunRecord], path: Path) -> None:
    """Add the rows of one job: all its records, since speedups are formed among them. Several
    threads may.

    Costs what the job costs, not what the file holds; a job that brings a new axis has the file
    rewritten with that column. This file is for reading along: rows that were measured again
    stay, and a kill may tear the last one, until the next `to_csv`.
    Raises KernelbenchError when it cannot be written.
    """
    rows = [{n: cell(v) for n, v in row.items()} for row in plain_of(rows_of(records))]
    try:
        with _ADDING:
            _add(rows, csv_columns(records), path)
    except OSError as error:
        raise KernelbenchError(f"{path}: cannot be written ({error.strerror})") from None


def _add(rows: list[dict[str, str]], ours: list[str], path: Path) -> None:
    with path.open("a+b") as file:
        whole = not file.tell() or _ends_a_row(file)
    with path.open(newline="", encoding="utf-8", errors="replace") as text:
        reader = csv.DictReader(text, restval="")
        header = list(reader.fieldnames or [])
        if set(ours) <= set(header):
            added = _text([row.get(n, "") for n in header] for row in rows)
            with path.open("ab") as file:
                file.write((added if whole else f"\r\n{added}").encode())
            return
        rows = [*reader, *rows]
    axes = [n for n in (*header, *ours) if n not in (*IDENTITY, *RESULT)]
    columns = [*IDENTITY, *dict.fromkeys(axes), *RESULT]
    files.write(path, _text([columns, *([row.get(n, "") for n in columns] for row in rows)]))


def csv_text(records: Sequence[RunRecord], against: str = "") -> str:
    """The canonical CSV: RFC 4180, floats to 6 significant digits, NaN empty."""
    return csv_of(frame(records, against))


def csv_of(table: "DataFrame") -> str:
    """A `frame` as `csv_text` gives it."""
    return _text([list(table.columns), *_cells(table)])


def rows_json(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """The rows of `frame`, as `json_of` gives them."""
    return json_of(frame(records))


def dicts(table: "DataFrame") -> list[dict[str, Any]]:
    """The rows of a `frame`, by the names of its columns."""
    return cast(list[dict[str, Any]], table.to_dict("records"))


def json_of(table: "DataFrame") -> list[dict[str, Any]]:
    """The rows of a `frame` for strict JSON: floats in full, null where a number does not apply,
    and the text "inf" for what JSON has no number for."""
    rows = _plain(table).to_dict("records")
    ends = (math.inf, -math.inf)
    return [{str(k): str(v) if v in ends else v for k, v in row.items()} for row in rows]


def _plain(table: "DataFrame") -> "DataFrame":
    """In types of Python, with None where a number does not apply."""
    return table.astype(object).where(table.notna(), None)


def _cells(table: "DataFrame") -> list[list[str]]:
    rows = _plain(table).itertuples(index=False, name=None)
    return [[cell(value) for value in row] for row in rows]


def cell(value: Any) -> str:
    """A value as every CSV here has it: floats to 6 significant digits, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _text(rows: Iterable[Iterable[str]]) -> str:
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue()


def _ends_a_row(file: IO[bytes]) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read() == b"\n"
