"""Lines of records as runs that are kept have them: samples in steps above the least of them.

A clock has a step, so that its readings are small whole numbers apart; text of these packs by a
fifth better than the readings themselves. Nothing is lost.
"""

import json
import math
from typing import Any

_LEAST = 8  # samples that are worth it


def packed(line: bytes) -> bytes:
    """A line whose lists of samples, in `timing`, are {"from": ns, "step": ns, "steps": […]}."""
    record = json.loads(line)
    timing = record.get("timing")
    if timing is None:
        return line
    for name, value in timing.items():
        if samples := [*_numbers(value)]:
            least = min(samples)
            step = math.gcd(*(ns - least for ns in samples)) or 1
            steps = _each(value, lambda ns, low=least, by=step: (ns - low) // by)
            timing[name] = {"from": least, "step": step, "steps": steps}
    return _line(record)


def unpacked(line: bytes) -> bytes:
    """The line that `packed` was given; others, and damaged ones, as they are."""
    if b'"steps":' not in line:
        return line
    try:
        record = json.loads(line)
        for name, value in record["timing"].items():
            if isinstance(value, dict) and {*value} == {"from", "step", "steps"}:
                least, step = int(value["from"]), int(value["step"])
                record["timing"][name] = _each(
                    value["steps"], lambda count, low=least, by=step: low + int(count) * by
                )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return line
    return _line(record)


def _numbers(value: Any) -> list[int]:
    """All samples of a list, or of lists; none where it is something else, or short."""
    if not isinstance(value, list):
        return []
    flat = [ns for each in value for ns in (each if isinstance(each, list) else [each])]
    return flat if len(flat) >= _LEAST and all(type(ns) is int for ns in flat) else []


def _each(value: list[Any], change: Any) -> list[Any]:
    return [[*map(change, each)] if isinstance(each, list) else change(each) for each in value]


def _line(record: Any) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode()
