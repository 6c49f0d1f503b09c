"""The table of docs/method.md: how much of their budgets the errors of right providers use."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import cog

from kernelbench import store
from kernelbench.spec import OutputError, RunRecord, Status

RUNS = Path(__file__).parent.parent / "results/h200"
FIGURES = ("error", "worst element", "worst row", "worst column", "slope")


def table(*runs: str) -> None:
    """A line a family, mode, accuracy and kind of inputs. runs: folders in results/h200."""
    records = [record for run in runs for record in store.history(RUNS / run)]
    cog.outl(f"| family | mode | accuracy | on | answers | {' | '.join(FIGURES)} |")
    cog.outl("|---|---|---|---|---|" + "---|" * len(FIGURES))
    for key, found in _parts(records).items():
        cells = [f"{max(used):.2f}" if used else "" for used in _used(found)]
        cog.outl(f"| {' | '.join((*key, str(len(found)), *cells))} |")


def _parts(records: Iterable[RunRecord]) -> dict[tuple[str, ...], list[OutputError]]:
    parts: dict[tuple[str, ...], list[OutputError]] = {}
    for record in records:
        if record.status is not Status.ok:
            continue
        name = (record.family, record.mode, record.accuracy)
        parts.setdefault((*name, "its own inputs"), []).extend(record.errors)
        for trial in record.trials:
            parts.setdefault((*name, "other inputs"), []).extend(trial.errors)
    return {key: found for key, found in sorted(parts.items()) if found}


def _used(found: Iterable[OutputError]) -> Iterator[list[float]]:
    """By figure, error over budget of each answer that has one."""
    figures = [error.figures for error in found]
    for place in range(len(FIGURES)):
        some = [(value, budget) for each in figures for _, value, budget in [each[place]]]
        yield [value / budget for value, budget in some if 0 < budget < math.inf]
