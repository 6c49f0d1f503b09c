"""Reads the SQLite export of Nsight Systems: NVTX ranges, and the GPU operations in them.

It reads tables, not the reports of `nsys stats`, whose names and columns change with the version.
A missing table is treated as empty. A globalTid is machine << 48 | pid << 24 | tid.
"""

import sqlite3
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kernelbench.profile.nvtx import DOMAIN
from kernelbench.profile.tool import ToolError
from kernelbench.spec import KernelUse

PREFIX = "kb."
TID_BITS = 24

# eventType 75 creates a domain, 59 is a push/pop range. A domain may be created more than once.
RANGES = """
SELECT COALESCE(e.text, s.value), e.globalTid, e.start, e.end
FROM NVTX_EVENTS e LEFT JOIN StringIds s ON s.id = e.textId
WHERE e.eventType = 59 AND (e.globalTid >> 24, e.domainId) IN (
  SELECT d.globalTid >> 24, d.domainId
  FROM NVTX_EVENTS d LEFT JOIN StringIds n ON n.id = d.textId
  WHERE d.eventType = 75 AND COALESCE(d.text, n.value) = :domain)
ORDER BY e.start, e.end DESC
"""
CALLS = "SELECT globalTid, correlationId, start FROM CUPTI_ACTIVITY_KIND_RUNTIME"
OPERATIONS = {
    "CUPTI_ACTIVITY_KIND_KERNEL": """
SELECT COALESCE(n.value, s.value, '[kernel without a name]'), k.start, k.end, k.globalPid,
  k.correlationId, k.registersPerThread,
  k.staticSharedMemory + k.dynamicSharedMemory
FROM CUPTI_ACTIVITY_KIND_KERNEL k LEFT JOIN StringIds n ON n.id = k.demangledName
  LEFT JOIN StringIds s ON s.id = k.shortName""",
    "CUPTI_ACTIVITY_KIND_MEMSET": """
SELECT '[memset]', start, end, globalPid, correlationId, NULL, NULL
FROM CUPTI_ACTIVITY_KIND_MEMSET""",
    "CUPTI_ACTIVITY_KIND_MEMCPY": """
SELECT '[memcpy ' || CASE copyKind WHEN 1 THEN 'HtoD' WHEN 2 THEN 'DtoH' WHEN 8 THEN 'DtoD'
  WHEN 10 THEN 'PtoP' ELSE copyKind END || ']', start, end, globalPid, correlationId, NULL, NULL
FROM CUPTI_ACTIVITY_KIND_MEMCPY""",
}


@dataclass(frozen=True, kw_only=True)
class RangeUse:
    """All ranges of one name. A GPU operation belongs to the innermost range that launched it.

    instances: how many ranges. launches: kernels, and copies and fills by the driver.
    kernels: the same by name, the longest first; `[memset]` and `[memcpy …]` are the driver's.
    busy_ns: sum of their times. span_ns: first start to last end. gaps_ns: the part of the span
        in which none of them ran. host_ns: the ranges' length on the CPU. All are sums over
        instances.
    """

    name: str
    instances: int
    launches: int = 0
    kernels: tuple[KernelUse, ...] = ()
    busy_ns: int = 0
    span_ns: int = 0
    gaps_ns: int = 0
    host_ns: int = 0


@dataclass(frozen=True, kw_only=True)
class ExportedRanges:
    """An export's ranges, and what belongs to none of them.

    operations: of the GPU, in the whole capture; outside: of them, those that no range launched.
    endless: names of ranges that were open when the capture ended; they are not in `ranges`.
    """

    ranges: tuple[RangeUse, ...]
    operations: int = 0
    outside: int = 0
    endless: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Operation:
    name: str
    start: int
    end: int
    process: int
    correlation: int
    registers: int | None
    shared_bytes: int | None


@dataclass
class _Range:
    name: str
    thread: int
    start: int
    end: int
    parent: "_Range | None" = None
    operations: list[_Operation] = field(default_factory=list)


def read_ranges(sqlite: Path, domain: str = DOMAIN, prefix: str = PREFIX) -> ExportedRanges:
    """The push/pop ranges of a domain whose names begin with `prefix`, in order of appearance.

    A kernel belongs to the innermost range that its thread had open at the launch. Launches of a
    thread without ranges, such as autograd's, belong to the range of the only thread of their
    process that has one open; if several have, to none.
    Raises ToolError when the file is no SQLite export.
    """
    try:
        with closing(sqlite3.connect(f"{sqlite.resolve().as_uri()}?mode=ro", uri=True)) as export:
            tables = {name for (name,) in export.execute("SELECT name FROM sqlite_master")}
            rows = _rows(export, tables, "NVTX_EVENTS", RANGES, {"domain": domain})
            named = [row for row in rows if (row[0] or "").startswith(prefix)]
            calls = {
                (thread >> TID_BITS, correlation): (thread, start)
                for thread, correlation, start in _rows(
                    export, tables, "CUPTI_ACTIVITY_KIND_RUNTIME", CALLS
                )
            }
            operations = [
                _Operation(*row)
                for table, query in OPERATIONS.items()
                for row in _rows(export, tables, table, query)
            ]
    except sqlite3.Error as error:
        raise _unreadable(sqlite, error) from None
    ranges = [_Range(*row) for row in named if row[3] is not None]
    outside = _attribute(ranges, calls, operations)
    return ExportedRanges(
        ranges=tuple(_use_of(name, same) for name, same in _grouped(ranges)),
        operations=len(operations),
        outside=outside,
        endless=tuple(dict.fromkeys(row[0] for row in named if row[3] is None)),
    )


def remove_environments(sqlite: Path) -> None:
    """Delete the environments that nsys read from /proc/*/environ of all processes that it can
    read, profiled or not: strings with a NUL between variables, to which no table refers.

    Raises ToolError when the file is no SQLite export.
    """
    try:
        with closing(sqlite3.connect(sqlite)) as export:
            if export.execute("SELECT 1 FROM sqlite_master WHERE name = 'StringIds'").fetchone():
                export.execute("DELETE FROM StringIds WHERE instr(CAST(value AS BLOB), x'00')")
                export.commit()
                export.execute("VACUUM")  # else they remain in free pages
    except sqlite3.Error as error:
        raise _unreadable(sqlite, error) from None


def _unreadable(sqlite: Path, error: sqlite3.Error) -> ToolError:
    return ToolError(
        f"{sqlite}: is no SQLite export of Nsight Systems that can be read ({error}). Make "
        f"it again: nsys export -t sqlite -f true -o {sqlite} THE_REPORT.nsys-rep"
    )


def _rows(
    export: sqlite3.Connection, tables: set[str], table: str, query: str, values: Any = ()
) -> Iterator[Any]:
    return export.execute(query, values) if table in tables else iter(())


def _attribute(
    ranges: Iterable[_Range],
    calls: dict[tuple[int, int], tuple[int, int]],
    operations: Sequence[_Operation],
) -> int:
    """Add every operation to its range; returns how many have none."""
    threads: dict[int, list[_Range]] = defaultdict(list)
    for range_ in ranges:  # by start: its parent is the last range of its thread that contains it
        earlier = threads[range_.thread]
        range_.parent = _open_at(earlier, range_.start)
        earlier.append(range_)
    outside = 0
    for operation in operations:
        process = operation.process >> TID_BITS
        thread, at = calls.get((process, operation.correlation), (-1, -1))
        owner = _open_at(threads.get(thread, []), at)
        if owner is None:
            others = [
                open_range
                for other, own in threads.items()
                if other >> TID_BITS == process and (open_range := _open_at(own, at))
            ]
            owner = others[0] if len(others) == 1 else None
        if owner is None:
            outside += 1
        else:
            owner.operations.append(operation)
    return outside


def _open_at(ranges: Sequence[_Range], at: int) -> _Range | None:
    """The innermost of a thread's ranges at a time: the last that began, or one around it."""
    after = bisect_right(ranges, at, key=lambda range_: range_.start)
    open_range = ranges[after - 1] if after else None
    while open_range is not None and open_range.end <= at:
        open_range = open_range.parent
    return open_range


def _grouped(ranges: Iterable[_Range]) -> Iterable[tuple[str, list[_Range]]]:
    groups: dict[str, list[_Range]] = defaultdict(list)
    for range_ in ranges:
        groups[range_.name].append(range_)
    return groups.items()


def _use_of(name: str, ranges: Sequence[_Range]) -> RangeUse:
    span = sum(
        max(o.end for o in range_.operations) - min(o.start for o in range_.operations)
        for range_ in ranges
        if range_.operations
    )
    operations = [operation for range_ in ranges for operation in range_.operations]
    return RangeUse(
        name=name,
        instances=len(ranges),
        launches=len(operations),
        kernels=_kernels(operations),
        busy_ns=sum(o.end - o.start for o in operations),
        span_ns=span,
        gaps_ns=span - sum(_covered(range_.operations) for range_ in ranges),
        host_ns=sum(range_.end - range_.start for range_ in ranges),
    )


def _covered(operations: Iterable[_Operation]) -> int:
    """ns in which at least one of the operations ran."""
    covered, until = 0, 0
    for start, end in sorted((o.start, o.end) for o in operations):
        covered += max(0, end - max(start, until))
        until = max(until, end)
    return covered


def _kernels(operations: Iterable[_Operation]) -> tuple[KernelUse, ...]:
    groups: dict[str, list[_Operation]] = defaultdict(list)
    for operation in operations:
        groups[operation.name].append(operation)
    uses = [
        KernelUse(
            name=name,
            launches=len(same),
            gpu_ns=sum(o.end - o.start for o in same),
            registers=max((o.registers for o in same if o.registers is not None), default=None),
            shared_bytes=max(
                (o.shared_bytes for o in same if o.shared_bytes is not None), default=None
            ),
        )
        for name, same in groups.items()
    ]
    return tuple(sorted(uses, key=lambda use: (-(use.gpu_ns or 0), use.name)))
