"""Tables of profiler results: one a tool, family and GPU."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kernelbench.metrics import audit
from kernelbench.report.tables import WIDTH, figures, percent
from kernelbench.spec import Measured, Role, Status, Tool

Row = Mapping[str, Any]
LONGEST_NAME = 58
MOST_KERNELS = 5  # a provider, in the table of torch's profiler
AUDITS = {"ok": "✓", "off": "✗", "small": "·", "no model": "no model", "": ""}
LEGENDS = {
    Tool.ncu: (
        "measured by ncu, a call's kernels summed, caches flushed before each; read: from DRAM; "
        "model: modelled reads. error: ✓ within 3 %, ✗ not, · not audited, since no tensor is 4 × "
        "L2. Writes are not audited: dirty lines stay in the L2. n: launches."
    ),
    Tool.nsys: (
        "measured by nsys, with its overhead: no latency to quote. busy: kernel time of a call; "
        "span: first kernel's start to last kernel's end; gaps: no kernel ran meanwhile; share: of "
        "the case's busy time."
    ),
    Tool.torch: "measured by torch.profiler, with its overhead: no latency to quote.",
}


@dataclass(frozen=True)
class _Column:
    head: str
    cell: Callable[[Row], str]
    justify: Literal["left", "right"] = "right"


def _number(name: str, significant: int = 4) -> Callable[[Row], str]:
    return lambda row: "" if math.isnan(row[name]) else figures(row[name], significant)


def _share(name: str) -> Callable[[Row], str]:
    return lambda row: percent(row[name])


def _error(row: Row) -> str:
    mark = AUDITS[row["audit"]]
    return mark if math.isnan(row["model_error_pct"]) else f"{row['model_error_pct']:+.1f}% {mark}"


def _peaks(row: Row) -> str:
    return "/".join(percent(row[name]).rstrip("%") for name in ("dram_pct", "sm_pct"))


_PROVIDER = _Column("provider\n", lambda row: str(row["provider"]), "left")
_COLUMNS = {
    Tool.ncu: (
        _PROVIDER,
        _Column("n\n", lambda row: f"{row['launches']:.3g}"),
        _Column("read\nMiB", _number("dram_read_mib")),
        _Column("model\nMiB", _number("model_read_mib")),
        _Column("error\n", _error),
        _Column("written\nMiB", _number("dram_write_mib")),
        _Column("L2\nMiB", _number("l2_mib")),
        _Column("DRAM/SM\n% of peak", _peaks),
        _Column("µs\nin ncu", _number("busy_us")),
        _Column("regs\n", lambda row: f"{row['registers']:.0f}"),
        _Column("warps\n", _share("occupancy_pct")),
    ),
    Tool.nsys: (
        _PROVIDER,
        _Column("calls\n", lambda row: str(row["calls"])),
        _Column("kernels\n", lambda row: str(row["kernels"])),
        _Column("launches\na call", _number("launches", 2)),
        _Column("busy µs\na call", _number("busy_us")),
        _Column("span µs\na call", _number("span_us")),
        _Column("gaps µs\na call", _number("gaps_us")),
        _Column("share\n", _share("share_pct")),
        _Column("range µs\non the host", _number("host_us")),
    ),
}


def render(measured: Sequence[Measured], console: Console) -> None:
    """Print a table for each tool, GPU, family, case and run, below it the failures. Where there
    are several runs, titles name them."""
    groups: dict[tuple[str, ...], list[Measured]] = {}
    for call in measured:
        groups.setdefault((call.tool, call.gpu, call.family, call.case, call.run_id), []).append(
            call
        )
    several = len({call.run_id for call in measured}) > 1
    narrow = console.width
    console.width = max(narrow, WIDTH)
    try:
        for part in groups.values():
            good = [call for call in part if call.status is Status.ok]
            good.sort(key=lambda call: call.role is not Role.baseline)
            console.print(_title(part, several), style="bold", highlight=False, soft_wrap=True)
            if good:
                make = _operators if good[0].tool is Tool.torch else _table
                console.print(make(good))
            for call in part:
                if call not in good:
                    console.print(
                        f"{call.provider}: {call.status}: {call.reason}",
                        style="yellow",
                        highlight=False,
                        markup=False,
                        soft_wrap=True,
                    )
            console.print()
        for tool in dict.fromkeys(Tool(tool) for tool, *_ in groups):
            console.print(f"{tool}: {LEGENDS[tool]}", highlight=False)
    finally:
        console.width = narrow


def _title(measured: Sequence[Measured], several_runs: bool) -> str:
    first = measured[0]
    run = f" · {first.run_id}" if several_runs else ""
    versions = ", ".join(sorted({call.tool_version for call in measured}))
    return f"{first.family} · {first.case} · {first.tool} {versions} · {first.gpu}{run}"


def _table(measured: Sequence[Measured]) -> Table:
    """One row a provider, without empty columns."""
    rows = [audit.row(call) for call in measured]
    whole = sum(row["busy_us"] for row in rows if not math.isnan(row["busy_us"]))
    rows = [
        {**row, "share_pct": row["busy_us"] / whole * 100 if whole else math.nan} for row in rows
    ]
    columns = [
        column for column in _COLUMNS[measured[0].tool] if any(column.cell(row) for row in rows)
    ]
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column.head, justify=column.justify, no_wrap=True)
    for row in rows:
        style = "red" if row["audit"] == "off" else ""
        table.add_row(*(Text(column.cell(row)) for column in columns), style=style)
    return table


def _operators(measured: Sequence[Measured]) -> Table:
    """The longest kernels, or operators, of each provider."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("provider\n  kernel or operator")
    for head in ("launches\na call", "µs\na call", "share\n"):
        table.add_column(head, justify="right")
    for call in measured:
        table.add_row(Text(call.provider))
        times = [kernel.gpu_ns or kernel.host_ns or 0 for kernel in call.kernels]
        for kernel, ns in [*zip(call.kernels, times, strict=True)][:MOST_KERNELS]:
            name = f"{kernel.name} {kernel.shapes}".strip()
            table.add_row(
                Text(f"  {name if len(name) <= LONGEST_NAME else f'{name[:LONGEST_NAME]}…'}"),
                figures(kernel.launches / call.calls, 2),
                figures(ns / call.calls / 1e3, 4),
                percent(ns / sum(times) * 100 if sum(times) else math.nan),
            )
        if len(times) > MOST_KERNELS:
            table.add_row(Text(f"  … {len(times) - MOST_KERNELS} more"))
    return table
