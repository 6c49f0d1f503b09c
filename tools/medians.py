"""Tables of measured medians in the documentation, made from the runs that are kept."""

import csv
from pathlib import Path

import cog

RUNS = Path("results/h200")


def medians(run: str, family: str, mode: str, axes: str, providers: str) -> None:
    """A markdown table of a run's median times in µs: a row a case, a column a provider.

    run: how the folder's name begins. axes: those that name a row, by commas. providers: by spaces;
    – where there is no time. A case with another axis than its defaults says which.
    """
    (folder,) = RUNS.glob(f"{run}*")
    columns = providers.split()
    cases: dict[str, dict[str, str]] = {}
    with (folder / "results.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if (row["family"], row["mode"]) == (family, mode):
                case = cases.setdefault(row["case"], {"": _name(row, axes.split(","))})
                case[row["provider"]] = row["median_us"] if row["status"] == "ok" else ""
    cog.outl(f"| {axes} | {' | '.join(columns)} |")
    cog.outl("|---" * (len(columns) + 1) + "|")
    for case in sorted(cases.values(), key=_order):
        cog.outl(f"| {case['']} | {' | '.join(_rounded(case.get(name, '')) for name in columns)} |")


def _order(case: dict[str, str]) -> tuple[list[int], str]:
    sizes, _, more = case[""].partition(" ")
    return [int(size) for size in sizes.split(",")], more


def _name(row: dict[str, str], axes: list[str]) -> str:
    name = ",".join(row[axis] for axis in axes)
    said = set(row["case"].split("-")) - {f"{axis}{row[axis]}" for axis in axes}
    more = sorted(said - {row["dtype"], row["mode"]})
    return " ".join([name, *(word.replace("parametrization=", "") for word in more)])


def _rounded(text: str) -> str:
    if not text:
        return "–"
    value = float(text)
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}"
