"""What the processes of a run found of the same, as one record."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import chain

from kernelbench.spec import RunRecord, Status

UNTIMED = ("ungated", "profiled")  # flags of a process whose times do not count beside others


def together(records: Iterable[RunRecord]) -> list[RunRecord]:
    """One record a (family, case, provider), in the order in which these first came.

    It is that of the first process, and holds the others as `further`, as far as they are of the
    same code, config and method on the same card; its peak of memory is the largest of them. What
    is not right in one of them is that one alone.
    """
    rows: dict[tuple[str, str, str], list[RunRecord]] = {}
    for record in records:
        rows.setdefault(record.row, []).append(record)
    return [_one(sorted(group, key=lambda r: r.process)) for group in rows.values()]


def _one(records: list[RunRecord]) -> RunRecord:
    first, *others = records
    others = [record for record in others if _build(record) == _build(first)]
    if first.status is not Status.ok:
        return first
    bad = next((record for record in others if record.status is not Status.ok), None)
    if bad is not None:  # whatever its config: who fell early has none
        return replace(bad, reason=f"in process {bad.process + 1}: {bad.reason}")
    further = tuple(record for record in others if record.config == first.config)
    if not further:
        return first
    flags = dict.fromkeys(chain.from_iterable(record.flags for record in (first, *further)))
    if any(record.timing and record.timing.counts for record in (first, *further)):
        flags = {flag: None for flag in flags if flag not in UNTIMED}
    peaks = [record.peak_bytes for record in (first, *further) if record.peak_bytes is not None]
    return replace(first, flags=tuple(flags), peak_bytes=max(peaks, default=None), further=further)


def _build(record: RunRecord) -> tuple[object, ...]:
    """Of what, where and how: the same for two processes that say something of one another."""
    return (record.source, record.gpu_uuid, record.method)
