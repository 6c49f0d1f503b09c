"""Tables of measured DRAM bytes beside modelled ones in the documentation, from a kept run."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cog

from kernelbench import store
from kernelbench.metrics import audit
from kernelbench.spec import Measured, Role, Status, Tool

RUNS = Path("results/h200")
MARKS = {"ok": "✓", "off": "✗", "small": "·", "no model": "–"}
Row = Mapping[str, Any]


def _groups(
    run: str, family: str, tool: Tool = Tool.ncu
) -> Iterator[tuple[str, list[tuple[Measured, Row]]]]:
    """Cases of a run with what a tool saw of each provider, the baseline first."""
    (folder,) = RUNS.glob(f"{run}*")
    lines, problems = store.read_measured(folder)
    assert not problems, problems
    cases: dict[str, list[tuple[Measured, Row]]] = {}
    for line in lines:
        if line.family == family and line.tool is tool and line.status is Status.ok:
            cases.setdefault(line.case, []).append((line, audit.row(line)))
    for case, rows in cases.items():
        yield case, sorted(rows, key=lambda row: row[0].role is not Role.baseline)


def _mib(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.0f}" if value >= 1000 else f"{value:.1f}"


def _saved(row: Row, base: Row | None, read: str) -> str:
    if base is None or math.isnan(row[read]) or math.isnan(base[read]):
        return "–"
    return f"{round((1 - row[read] / base[read]) * 100)} %"


def reads(run: str, family: str) -> None:
    """Reads measured and modelled, what is saved of the baseline's by either, writes, and time's
    bound: a row a provider, a bold row a case."""
    cog.outl(
        "| provider | kernels | read, measured MiB | read, modelled MiB | error | saved, measured "
        "| saved, modelled | written, measured MiB | DRAM % of peak |"
    )
    cog.outl("|---" * 9 + "|")
    for case, rows in _groups(run, family):
        cog.outl(f"| **{case}** " + "| " * 8 + "|")
        base = next((row for line, row in rows if line.role is Role.baseline), None)
        for line, row in rows:
            error = row["model_error_pct"]
            said = "–" if math.isnan(error) else f"{error:+.1f} % {MARKS[row['audit']]}"
            cells = [
                line.provider,
                f"{row['launches']:.0f}",
                _mib(row["dram_read_mib"]),
                _mib(row["model_read_mib"]),
                said,
                _saved(row, base, "dram_read_mib"),
                _saved(row, base, "model_read_mib"),
                _mib(row["dram_write_mib"]),
                f"{row['dram_pct']:.0f}",
            ]
            cog.outl(f"| {' | '.join(cells)} |")


def summary(run: str) -> None:
    """How many audited rows agree with their model, and those that do not."""
    families = ("rms_norm", "rotary", "rcm_attention", "rcm_layer")
    rows = [row for name in families for _, part in _groups(run, name) for _, row in part]
    judged = [row for row in rows if row["audit"] in ("ok", "off")]
    off = [row for row in judged if row["audit"] == "off"]
    cog.outl(f"{len(judged) - len(off)} of {len(judged)} audited rows agree within 3 %.")
    for row in off:
        cog.outl(
            f"* {row['family']} {row['case']} `{row['provider']}`: {row['model_error_pct']:+.1f} %"
        )


def saved(*cases: tuple[str, str, str, str]) -> None:
    """DRAM reads of (run, family, start of the case's id, provider that PyTorch fuses), saved of
    the baseline's and of that provider's."""
    cog.outl(
        "| family | case | provider | read, measured MiB | saved of the baseline's "
        "| saved of torch's fusion |"
    )
    cog.outl("|---" * 6 + "|")
    for run, family, start, fused in cases:
        groups = {case: rows for case, rows in _groups(run, family) if case.startswith(start)}
        ((case, rows),) = groups.items()
        found = {line.provider: row for line, row in rows}
        for name in ("baseline", fused, "triton_fused"):
            read = found[name]["dram_read_mib"]
            parts = (_saved(found[name], found[of], "dram_read_mib") for of in ("baseline", fused))
            cog.outl(f"| {family} | {case} | {name} | {_mib(read)} | {' | '.join(parts)} |")


def timeline(run: str) -> None:
    """What nsys saw of a call of each provider."""
    cog.outl("| provider | launches | kernel time, µs | span, µs | gaps, µs |")
    cog.outl("|---" * 5 + "|")
    for case, rows in _groups(run, "rms_norm", Tool.nsys):
        cog.outl(f"| **{case}** " + "| " * 4 + "|")
        for line, row in rows:
            times = (f"{row[name]:.1f}" for name in ("busy_us", "span_us", "gaps_us"))
            cog.outl(f"| {line.provider} | {row['launches']:.0f} | {' | '.join(times)} |")
