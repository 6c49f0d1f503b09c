"""Compiled kernels as text of 100 columns: one table a target and family."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kernelbench.profile.inspect import KernelRow
from kernelbench.profile.inspect.gate import Judgement

WIDTH = 100
KINDS = (
    "ptxas: registers, spills, shared memory, notes. counted in {}: instructions, each once; TMA "
    "in/out, loads of 16 bytes/all. modelled: programs that fit on a multiprocessor, and the share "
    "of its warps they fill."
)
_HEADS = (
    ("kernel\n", 24, "left"),
    ("config\n", 23, "left"),
    ("regs\n", 4, "right"),
    ("spilled\nbytes", 7, "right"),
    ("shared\nKiB", 6, "right"),
    ("fit\n", 3, "right"),
    ("warps\nfilled", 6, "right"),
    ("instructions\n", 13, "left"),
)


def render(rows: Sequence[KernelRow], console: Console) -> None:
    """Print the tables, at least 100 columns wide, so that no number is cut in a pipe."""
    width = console.width
    console.width = max(width, WIDTH)
    try:
        parts: dict[tuple[str, str], list[KernelRow]] = {}
        for row in rows:
            parts.setdefault((row.target, row.family), []).append(row)
        for (target, family), part in parts.items():
            has = f"{target} with {part[0].smem_limit >> 10} KiB of shared memory a program"
            console.print(_table(f"{family} · {has} · triton {part[0].triton}", part))
            console.print()
        counted = sorted({row.counted_in for row in rows} - {""})
        console.print(KINDS.format(" and ".join(counted) or "nothing"), highlight=False)
    finally:
        console.width = width


def _table(title: str, rows: Sequence[KernelRow]) -> Table:
    table = Table(title=Text(title, style="bold"), title_justify="left", box=None, padding=0)
    table.show_header = False
    table.add_column(overflow="fold")
    head = _grid()
    head.add_row(*(name for name, _, _ in _HEADS))
    table.add_row(head)
    table.add_row("─" * (sum(width for _, width, _ in _HEADS) + 2 * (len(_HEADS) - 1)))
    case = ""
    for row in rows:
        where = f"{row.case}  {row.provider}"
        if where != case:
            table.add_row(Text(where, style="cyan"))
            case = where
        if not row.error:
            grid = _grid()
            grid.add_row(*map(Text, _cells(row)))
            table.add_row(grid)
        for problem in problems(row):
            table.add_row(Text(f"  ! {row.kernel or row.provider}: {problem}", style="yellow"))
    return table


def _grid() -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    for _, width, justify in _HEADS:
        grid.add_column(width=width, justify="left" if justify == "left" else "right")
    for column in grid.columns:
        column.overflow = "fold"
    return grid


def _cells(row: KernelRow) -> tuple[str, ...]:
    others = f"\n+ {row.others} more" if row.others else ""
    return (
        f"{row.kernel}{others}",
        row.config,
        str(row.registers),
        str(row.spill_bytes or ""),
        f"{row.smem_bytes / 1024:.1f}",
        str(row.blocks_per_sm),
        f"{row.occupancy_pct:.0f}%",
        "\n".join(_instructions(row)),
    )


def _instructions(row: KernelRow) -> list[str]:
    """`24 HGMMA` for products, without their shapes, which the JSON has; TMA; 16-byte loads."""
    counts: dict[str, int] = {}
    for kinds in (row.wgmma, row.mma, row.tcgen05):
        for kind, count in kinds.items():
            name = kind.partition(".")[0]
            counts[name] = counts.get(name, 0) + count
    lines = [f"{count} {name}" for name, count in counts.items()]
    if row.tma_loads or row.tma_stores:
        lines.append(f"TMA {row.tma_loads}/{row.tma_stores}")
    if row.loads:
        lines.append(f"ld128 {row.loads_128}/{row.loads}")
    return lines


def problems(row: KernelRow) -> list[str]:
    """What is wrong with a kernel, in words."""
    reasons = [row.error] if row.error else []
    if row.spill_bytes:
        reasons.append(f"a thread spills {row.spill_bytes} bytes")
    if row.smem_bytes > row.smem_limit:
        reasons.append(
            f"{row.smem_bytes / 1024:.1f} KiB of shared memory, {row.target} has "
            f"{row.smem_limit / 1024:.0f}: it cannot be launched"
        )
    if row.serialized:
        reasons.append(f"wgmma are waited for one by one ({', '.join(row.serialized)})")
    return reasons


def show(verdict: Judgement, rows: Sequence[KernelRow], console: Console) -> None:
    """Print changes from an earlier output, failures, and the number of kernels."""
    if verdict.versions:
        against = f"compared with triton {', '.join(verdict.versions)}"
        console.print(against, highlight=False)
    parts = (
        ("new", verdict.new, ""),
        ("gone", verdict.gone, ""),
        ("changed", verdict.changed, ""),
        ("FAILED", verdict.failed, "red"),
    )
    for word, lines, style in parts:
        for line in lines:
            console.print(Text(f"{word}: {line}", style=style), soft_wrap=True)
    spill, beyond = sum(bool(r.spill_bytes) for r in rows), sum(r.blocks_per_sm == 0 for r in rows)
    versions = ", ".join(sorted({row.triton for row in rows}))
    console.print(
        f"{len(rows)} kernels, triton {versions}: {spill} spill, {beyond} cannot be launched, "
        f"{len(verdict.failed)} failed",
        highlight=False,
    )
