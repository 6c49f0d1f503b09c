"""Reads the table of `ncu --csv --page raw`: launches with their counters, and sums by kernel."""

import csv
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kernelbench.profile.tool import ToolError
from kernelbench.spec import KernelUse

# ncu's metrics by our name: a field of KernelUse, or one of the two parts that add up to its
# shared_bytes.
METRICS: Mapping[str, str] = {
    "gpu_ns": "gpu__time_duration.sum",
    "dram_read_bytes": "dram__bytes_read.sum",
    "dram_write_bytes": "dram__bytes_write.sum",
    "l2_bytes": "lts__t_bytes.sum",
    "dram_pct": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm_pct": "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "occupancy_pct": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "registers": "launch__registers_per_thread",
    "shared_static_bytes": "launch__shared_mem_per_block_static",
    "shared_dynamic_bytes": "launch__shared_mem_per_block_dynamic",
}

_TIME = {"ns": 1, "nsecond": 1, "us": 1e3, "usecond": 1e3, "ms": 1e6, "msecond": 1e6, "s": 1e9}
_BYTES = {"byte": 1, "kbyte": 1e3, "mbyte": 1e6, "gbyte": 1e9, "tbyte": 1e12}  # decimal
_SCALES: Mapping[str, Mapping[str, float]] = {
    "ns": {**_TIME, "second": 1e9},
    "bytes": _BYTES,
    "pct": {"%": 1},
    "registers": {"register": 1},
}

# A line of the table: the header, the units (whose first cells are empty), or a launch. Output of
# the profiled program may precede it in the same line.
_ROW = re.compile(r'"(?:ID|\d*)","(?:Process ID|\d*)",')
_RANGES = "Push/Pop_Range"
_RANGE = re.compile(r'"kernelbench:(kb\.[^":]+):')  # domain:name:payload:…, see the header


@dataclass(frozen=True)
class ProfiledLaunch:
    """One profiled launch.

    ranges: the `kb.` ranges of our NVTX domain that were open in its thread. values: by the names
    of METRICS, in ns, bytes and %; None where ncu has no number.
    """

    kernel: str
    ranges: tuple[str, ...]
    grid: str
    block: str
    values: Mapping[str, float | None]


def parse(text: str) -> list[ProfiledLaunch]:
    """The launches of a table; other output between its lines is skipped.

    Raises ToolError when the table is cut off, has no NVTX ranges, or has an unknown unit.
    """
    header: Sequence[str] = ()
    units: Mapping[str, str] = {}
    launches = []
    for row in _rows(text):
        if row[0] == "ID":
            header, units = row, {}
            if not any(_RANGES in name for name in header):
                raise ToolError("ncu's table has no NVTX ranges: record the report with --nvtx")
            continue
        if len(row) != len(header):
            raise ToolError(
                f"ncu's table is broken: a line of {len(row)} cells under a header of "
                f"{len(header)} (is the disk full?)"
            )
        cells = dict(zip(header, row, strict=True))
        if row[0] == "":
            units = cells
        else:
            launches.append(_launched(cells, units))
    return launches


def _rows(text: str) -> Iterator[list[str]]:
    matches = (_ROW.search(line) for line in text.splitlines())
    return csv.reader(match.string[match.start() :] for match in matches if match)


def _launched(cells: Mapping[str, str], units: Mapping[str, str]) -> ProfiledLaunch:
    nvtx = next(cell for name, cell in cells.items() if _RANGES in name)
    return ProfiledLaunch(
        kernel=cells["Kernel Name"],
        ranges=tuple(dict.fromkeys(_RANGE.findall(nvtx))),
        grid=cells.get("Grid Size", ""),
        block=cells.get("Block Size", ""),
        values={
            word: _value(word, cells.get(metric, ""), units.get(metric, ""))
            for word, metric in METRICS.items()
        },
    )


def _value(word: str, cell: str, unit: str) -> float | None:
    """A cell in ns, bytes, % or registers; None where it has no number.

    Handles separators, as in `134,217,728`, and without `--print-units base` scaled units, as in
    `134.22 Mbyte`. Raises ToolError for an unknown unit.
    """
    try:
        number = float(cell.replace(",", ""))
    except ValueError:
        return None  # `(!) n/a`, or another version's text for no number
    if not math.isfinite(number):
        return None
    scale = _SCALES[word.rpartition("_")[2]].get(unit.partition("/")[0].lower())
    if scale is None:
        raise ToolError(
            f"ncu says {METRICS[word]} is {cell!r} in {unit!r}, which is not understood: add it "
            "to kernelbench/profile/ncu/csv.py"
        )
    return number * scale


def kernels_by_range(launches: Sequence[ProfiledLaunch]) -> dict[str, tuple[KernelUse, ...]]:
    """The kernels of each range, summed over all of its calls, the longest first."""
    names = dict.fromkeys(name for launch in launches for name in launch.ranges)
    return {
        name: _kernels([launch for launch in launches if name in launch.ranges]) for name in names
    }


def _kernels(launches: Sequence[ProfiledLaunch]) -> tuple[KernelUse, ...]:
    groups: dict[str, list[ProfiledLaunch]] = {}
    for launch in launches:
        groups.setdefault(launch.kernel, []).append(launch)
    uses = [_use(name, group) for name, group in groups.items()]
    return tuple(sorted(uses, key=lambda use: -(use.gpu_ns or 0)))


def _use(name: str, group: Sequence[ProfiledLaunch]) -> KernelUse:
    shared = [
        _total([launch.values["shared_static_bytes"], launch.values["shared_dynamic_bytes"]])
        for launch in group
    ]
    return KernelUse(
        name=name,
        launches=len(group),
        gpu_ns=_total(_of(group, "gpu_ns")),
        dram_read_bytes=_total(_of(group, "dram_read_bytes")),
        dram_write_bytes=_total(_of(group, "dram_write_bytes")),
        l2_bytes=_total(_of(group, "l2_bytes")),
        dram_pct=_weighted(group, "dram_pct"),
        sm_pct=_weighted(group, "sm_pct"),
        occupancy_pct=_weighted(group, "occupancy_pct"),
        registers=_most(_of(group, "registers")),
        shared_bytes=_most(shared),
    )


def _of(group: Sequence[ProfiledLaunch], word: str) -> list[float | None]:
    return [launch.values[word] for launch in group]


def _total(values: Sequence[float | None]) -> int | None:
    known = [value for value in values if value is not None]
    return round(sum(known)) if len(known) == len(values) else None


def _most(values: Sequence[float | None]) -> int | None:
    known = [value for value in values if value is not None]
    return round(max(known)) if len(known) == len(values) else None


def _weighted(group: Sequence[ProfiledLaunch], word: str) -> float | None:
    pairs = [(launch.values[word], launch.values["gpu_ns"]) for launch in group]
    known = [(value, ns) for value, ns in pairs if value is not None and ns is not None]
    total = sum(ns for _, ns in known)
    if len(known) < len(pairs) or not total:
        return None
    return sum(value * ns for value, ns in known) / total
