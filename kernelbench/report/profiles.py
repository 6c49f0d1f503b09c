"""Tables of what profilers saw: one a tool, family and GPU."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kernelbench import audit
from kernelbench.report.tables import WIDTH, figures, percent
from kernelbench.spec import Measured, Status, Tool

Row = Mapping[str, Any]
LONGEST_NAME = 58
MOST_KERNELS = 5  # of a provider, in the table of torch's profiler
AUDITS = {
    "ok": "✓",
    "off": "✗ off",
    "small": "fits the L2",
    "no model": "no model",
    "": "",
}
LEGENDS = {
    Tool.ncu: (
        "DRAM read and written, time, registers, occupancy: measured by ncu, caches flushed before "
        "each kernel. model: modelled. A row is audited (✓ within 3 %, ✗ off) where a tensor is at "
        "least 4 × L2; writes are not: dirty lines stay in the L2."
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
    return "" if math.isnan(row["model_error_pct"]) else f"{row['model_error_pct']:+.1f}%"


_PROVIDER = _Column("provider\n", lambda row: str(row["provider"]), "left")
_COLUMNS = {
    Tool.ncu: (
        _PROVIDER,
        _Column("launches\n", _number("launches", 2)),
        _Column("read MiB\nmeasured", _number("dram_read_mib")),
        _Column("read MiB\nmodelled", _number("model_read_mib")),
        _Column("error\n", _error),
        _Column("audit\n", lambda row: AUDITS[row["audit"]], "left"),
        _Column("written MiB\nmeasured", _number("dram_write_mib")),
        _Column("DRAM\n% peak", _share("dram_pct")),
        _Column("SM\n% peak", _share("sm_pct")),
        _Column("µs\nin ncu", _number("busy_us")),
        _Column("regs\n", _number("registers", 3)),
        _Column("occu-\npancy", _share("occupancy_pct")),
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
    """Print a table for each tool, family and GPU, and what became of those that failed."""
    groups: dict[tuple[Tool, str, str], list[Measured]] = {}
    for one in measured:
        groups.setdefault((one.tool, one.family, one.gpu), []).append(one)
    narrow = console.width
    console.width = max(narrow, WIDTH)
    try:
        for (tool, family, gpu), part in groups.items():
            version = ", ".join(sorted({one.tool_version for one in part}))
            title = f"{family} as {tool} {version} saw it on {gpu}"
            console.print(_kernels(part, title) if tool is Tool.torch else _table(part, title))
            console.print()
        for tool in dict.fromkeys(tool for tool, _, _ in groups):
            console.print(f"{tool}: {LEGENDS[tool]}", highlight=False)
    finally:
        console.width = narrow


def _table(measured: Sequence[Measured], title: str) -> Table:
    columns = _COLUMNS[measured[0].tool]
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column.head, justify=column.justify, overflow="fold")
    cases: dict[str, list[Measured]] = {}
    for one in measured:
        cases.setdefault(one.case, []).append(one)
    for case, part in cases.items():
        table.add_row(Text(case, style="bold"))
        rows = [audit.row(one) for one in part]
        whole = sum(row["busy_us"] for row in rows if not math.isnan(row["busy_us"]))
        for one, row in zip(part, rows, strict=True):
            share = row["busy_us"] / whole * 100 if whole else math.nan
            cells = [Text(column.cell({**row, "share_pct": share})) for column in columns]
            if one.status is not Status.ok:
                cells = [Text(one.provider), *[Text("")] * (len(columns) - 1)]
            style = "red" if row["audit"] == "off" else ""
            table.add_row(*cells, style=style)
    return table


def _kernels(measured: Sequence[Measured], title: str) -> Table:
    """The kernels, or operators, that took longest."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("provider, kernel or operator")
    for head in ("launches\na call", "µs\na call", "share\n"):
        table.add_column(head, justify="right")
    case = ""
    for one in measured:
        if one.case != case:
            case = one.case
            table.add_row(Text(case, style="bold"))
        table.add_row(Text(one.provider))
        times = [kernel.gpu_ns or kernel.host_ns or 0 for kernel in one.kernels]
        for kernel, ns in [*zip(one.kernels, times, strict=True)][:MOST_KERNELS]:
            name = kernel.name if len(kernel.name) <= LONGEST_NAME else kernel.name[:LONGEST_NAME]
            table.add_row(
                Text(f"  {name}" + (f" {kernel.shapes}" if kernel.shapes else "")),
                figures(kernel.launches / one.calls, 2),
                figures(ns / one.calls / 1e3, 4),
                percent(ns / sum(times) * 100 if sum(times) else math.nan),
            )
        if len(times) > MOST_KERNELS:
            table.add_row(Text(f"  … {len(times) - MOST_KERNELS} more"))
    return table


def answers(measured: Sequence[Measured]) -> list[str]:
    """A line for each that was not profiled, with its reason."""
    return [
        f"{one.tool} {one.family}/{one.case} {one.provider}: {one.status}: {one.reason}"
        for one in measured
        if one.status is not Status.ok
    ]
