"""What the page's first screen is of: our kernels, one in a family, mode and run, held against the
others of the same jobs."""

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
        """Rows of what is no kernel of ours."""
        return [row for row in self.rows if row["role"] != Role.triton_fused]

    @cached_property
    def _row_of(self) -> dict[tuple[str, str], Row]:
        return {(str(row["case"]), str(row["provider"])): row for row in self.rows}

    def best_other(self, row: Row) -> Row | None:
        """Of a row of ours, the one that its `speedup_best` is against."""
        return self._row_of.get((str(row["case"]), str(row["best_other"])))


def panels(rows: Sequence[Row]) -> list[Panel]:
    """Those in which something of ours is wrong or failed, then those in which something else is,
    then the others; of each, those with most cases first."""
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
    """Those that are wrong or failed."""
    return [row for row in rows if row["record"].status.bad]


def with_number(rows: Sequence[Row], column: str) -> list[Row]:
    """Those that have a number there."""
    return [row for row in rows if math.isfinite(row[column])]
