"""The kernels on the page's first screen: one of ours in a family, mode and run, and its rivals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from kernelbench.report.figures import Row, parts, text
from kernelbench.spec import Role


@dataclass(frozen=True)
class Panel:
    """One of our kernels in a family, mode and run.

    ours: its rows, a case each; none where the family has no kernel of ours. rows: all of that
    family, mode and run, the others' among them. provider: its name, marked ≈ if approximate.
    run: its id; nothing where the page has only one.
    """

    family: str
    mode: str
    provider: str
    run: str
    ours: Sequence[Row]
    rows: Sequence[Row]

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.family, self.mode, self.provider)))

    @property
    def others(self) -> list[Row]:
        """Rows of all providers but ours."""
        return [row for row in self.rows if row["role"] != Role.triton_fused]

    @cached_property
    def _row_of(self) -> dict[tuple[str, str], Row]:
        return {(str(row["case"]), str(row["provider"])): row for row in self.rows}

    def best_other(self, row: Row) -> Row | None:
        """The row that the `speedup_best` of a row of ours is against."""
        return self._row_of.get((str(row["case"]), str(row["best_other"])))


def panels(rows: Sequence[Row]) -> list[Panel]:
    """First those in which ours is wrong or failed, then those in which another is, then the rest;
    within each, those with most cases first."""
    several = len({row["run_id"] for row in rows}) > 1
    kernel_panels = []
    for (family, mode, run), part in parts(rows, "family", "mode", "run_id").items():
        kernels = parts([r for r in part if r["role"] == Role.triton_fused], "provider", "accuracy")
        names = text(family), text(mode)
        run_name = text(run) if several else ""
        kernel_panels += [
            Panel(*names, text(name) + " ≈" * (accuracy == "approximate"), run_name, ours, part)
            for (name, accuracy), ours in kernels.items()
        ] or [Panel(*names, "", run_name, (), part)]
    return sorted(kernel_panels, key=lambda p: (not bad(p.ours), not bad(p.others), -len(p.ours)))


def bad(rows: Sequence[Row]) -> list[Row]:
    """Rows that are wrong or failed."""
    return [row for row in rows if row["record"].status.bad]


def with_number(rows: Sequence[Row], column: str) -> list[Row]:
    """Rows with a finite number in this column."""
    return [row for row in rows if math.isfinite(row[column])]
