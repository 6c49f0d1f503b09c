"""What the processes of a run found of the same, as one record."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import chain

from kernelbench.spec import RunRecord, Status


def together(records: Iterable[RunRecord]) -> list[RunRecord]:
    """One record a (family, case, provider), in the order in which these first came.

    It is that of the first process, and holds the others as `further`, as far as they are of the
    same code on the same card. What is wrong in any of them is wrong.
    """
    rows: dict[tuple[str, str, str], list[RunRecord]] = {}
    for record in records:
        rows.setdefault(record.row, []).append(record)
    return [_one(sorted(found, key=lambda r: r.process)) for found in rows.values()]


def _one(found: list[RunRecord]) -> RunRecord:
    first, *others = found
    further = tuple(r for r in others if (r.source, r.gpu_uuid) == (first.source, first.gpu_uuid))
    if not further or first.status is not Status.ok:
        return first
    flags = tuple(dict.fromkeys(chain(first.flags, *(r.flags for r in further))))
    first = replace(first, flags=flags, further=further)
    wrong = next((r for r in further if r.status is not Status.ok), None)
    if wrong is None:
        return first
    reason = f"in process {wrong.process + 1}: {wrong.reason}"
    errors = wrong.errors or first.errors
    return replace(first, status=wrong.status, reason=reason, detail=wrong.detail, errors=errors)
