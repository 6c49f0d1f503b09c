"""Records as JUnit XML: what a CI server shows as tests that passed, failed or were skipped."""

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kernelbench import metrics
from kernelbench.spec import Status

if TYPE_CHECKING:
    from pandas import DataFrame

Row = Mapping[str, Any]
PROPERTIES = ("role", "gpu", "median_us", "lo_us", "hi_us", "speedup", "speedup_best", "best_other",
              "error_rel", "error_budget", "config", "flags")  # fmt: skip
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(frame: "DataFrame") -> str:
    """One suite a run, one case a record. Its `time` is the median of a call in seconds."""
    runs: dict[str, list[Row]] = {}
    for row in metrics.dicts(frame):
        runs.setdefault(str(row["run_id"]), []).append(row)
    root = ET.Element("testsuites", name="kernelbench")
    for run, rows in runs.items():
        _suite(root, run, rows)
    ET.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _suite(root: ET.Element, run: str, rows: Sequence[Row]) -> None:
    statuses = [Status(row["status"]) for row in rows]
    suite = ET.SubElement(
        root,
        "testsuite",
        name=_clean(run),
        tests=str(len(rows)),
        failures=str(sum(status.bad for status in statuses)),
        errors="0",
        skipped=str(statuses.count(Status.skipped)),
        time=f"{sum(map(_seconds, rows)):.9f}",
    )
    for row, status in zip(rows, statuses, strict=True):
        name = _clean(f"{row['case']} {row['provider']}")
        case = ET.SubElement(
            suite,
            "testcase",
            classname=_clean(row["family"]),
            name=name,
            time=f"{_seconds(row):.9f}",
        )
        facts = {p: row[p] for p in PROPERTIES if row[p] != "" and row[p] == row[p]}
        if facts:
            properties = ET.SubElement(case, "properties")
            for name, value in facts.items():
                ET.SubElement(properties, "property", name=name, value=_clean(value))
        if status is not Status.ok:
            reason = _clean(row["reason"])
            kind = "failure" if status.bad else "skipped"
            message = f"{status}: {reason.splitlines()[0]}" if reason else str(status)
            ET.SubElement(case, kind, message=message, type=str(status)).text = reason


def _seconds(row: Row) -> float:
    return 0.0 if math.isnan(row["median_us"]) else float(row["median_us"]) / 1e6


def _clean(value: object) -> str:
    """Replace characters that XML cannot hold."""
    return _NOT_XML.sub("?", f"{value:.6g}" if isinstance(value, float) else str(value))
