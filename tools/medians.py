"""Tables of measured medians in the documentation, made from the runs that are kept."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cog

from kernelbench.report.gather import gather

RUNS = Path("results/h200")
Row = Mapping[str, Any]


def medians(runs: str, family: str, mode: str, axes: str, providers: str) -> None:
    """A markdown table of median times in µs: a row a case, a column a provider.

    runs: how their folders' names begin, by spaces. axes: those that name a row, by commas.
    providers: by spaces; – where there is no time. A case with another axis than its defaults says
    which.
    """
    folders = [folder for run in runs.split() for folder in RUNS.glob(f"{run}*")]
    columns = providers.split()
    cases: dict[str, dict[str, Any]] = {}
    for row in gather(folders, [family]).rows:
        if row["mode"] == mode:
            case = cases.setdefault(row["case"], {"": _name(row, axes.split(","))})
            case[row["provider"]] = row["median_us"] if row["status"] == "ok" else None
    cog.outl(f"| {axes} | {' | '.join(columns)} |")
    cog.outl("|---" * (len(columns) + 1) + "|")
    for case in sorted(cases.values(), key=_order):
        cog.outl(f"| {case['']} | {' | '.join(_rounded(case.get(name)) for name in columns)} |")


def against(runs: str, family: str, modes: str) -> None:
    """A markdown table of `triton_fused`: a row a case, its median in µs, the share of the ceiling,
    and its speedup over the best other, with its interval. runs, modes: by spaces."""
    folders = [path for run in runs.split() for path in sorted(RUNS.glob(run))]
    rows = [row for row in gather(folders, [family]).rows if row["provider"] == "triton_fused"]
    cog.outl("| case | µs | % of the ceiling | × best other | [95 %] | best other |")
    cog.outl("|---" * 6 + "|")
    for mode in modes.split():
        for row in (row for row in rows if row["mode"] == mode):
            mid, low, high = (row[f"speedup_best{end}"] for end in ("", "_lo", "_hi"))
            cells = [row["case"], _rounded(row["median_us"]), f"{row['sol_pct']:.1f}",
                     f"{mid:.3f}", f"[{low:.3f}, {high:.3f}]", row["best_other"]]  # fmt: skip
            cog.outl(f"| {' | '.join(cells)} |")


def _order(case: Mapping[str, Any]) -> tuple[list[int], str]:
    sizes, _, more = case[""].partition(" ")
    return [int(size) for size in sizes.split(",")], more


def _name(row: Row, axes: list[str]) -> str:
    name = ",".join(str(row["axes"][axis]) for axis in axes)
    said = set(row["case"].split("-")) - {f"{axis}{row['axes'][axis]}" for axis in axes}
    more = sorted(said - {row["dtype"], row["mode"]})
    return " ".join([name, *(word.replace("parametrization=", "") for word in more)])


def _rounded(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}"
