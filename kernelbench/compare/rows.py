"""The verdict on each row from one side to the other, and the facts behind it."""

from dataclasses import dataclass
from enum import StrEnum

from kernelbench.compare.attribution import Difference, other_card
from kernelbench.compare.gate import Gate
from kernelbench.compare.sides import Side
from kernelbench.spec import Role

Key = tuple[str, str, str, str]  # family, case, provider, GPU


class Change(StrEnum):
    """The verdict on a row from A to B."""

    slower = "SLOWER"  # beyond noise, and not known to be within the limit
    faster = "FASTER"
    same = "SAME"  # the whole 95 % interval lies within the limit
    unsure = "UNSURE"  # neither
    broken = "BROKEN"  # it was right, or more often, and now it is wrong, or does not run
    fixed = "FIXED"  # the other way round
    bad = "BAD"  # on both sides
    new = "NEW"
    gone = "GONE"
    unjudged = "UNJUDGED"  # it has no times that may be compared, and why

    @property
    def moved(self) -> bool:
        return self in (Change.slower, Change.faster)


@dataclass(frozen=True, kw_only=True)
class RowChange:
    """A (family, case, provider) from A to B.

    ratio: time of B over time of A, so above 1 is slower; lo, hi: its 95 % interval. raw: in
    time; normalised: in SM cycles, where the sides' clocks differ by more than 1 %. used: which of
    them `ratio` is, `raw` or `normalised`; lo and hi span both where it is not known how far the
    row follows the clock. more: how many further processes a side would decide what is UNSURE, by
    the noise of those that are there. p: of no change; adjusted: for the number of rows. floor_pct:
    the larger noise floor of the jobs. cause: what a move is put down to; why: what speaks for
    that, or for a verdict that no time decided, and that the clocks differ.
    """

    family: str
    case: str
    provider: str
    gpu: str
    role: Role
    mode: str
    dtype: str
    label: str
    verdict: Change
    processes_a: int = 0
    processes_b: int = 0
    a_us: float | None = None
    b_us: float | None = None
    ratio: float | None = None
    lo: float | None = None
    hi: float | None = None
    raw: float | None = None
    normalised: float | None = None
    used: str = ""
    a_mhz: float | None = None
    b_mhz: float | None = None
    floor_pct: float | None = None
    more: int | None = None
    p: float | None = None
    adjusted: float | None = None
    cause: str = ""
    why: str = ""
    regression: bool = False

    @property
    def change_pct(self) -> float | None:
        """How much longer B takes than A."""
        return None if self.ratio is None else (self.ratio - 1) * 100


@dataclass(frozen=True)
class Comparison:
    """Every row, and what else differs between the sides.

    earlier: rows that A has times of; judged: those of them that have a verdict, or an interval
    within the limit. widened: by what every interval was multiplied, because rows that are not
    ours lay farther apart than their errors allow. noise_from: processes of other builds that say
    how far processes lie apart.
    """

    a: Side
    b: Side
    rows: tuple[RowChange, ...]
    differences: tuple[Difference, ...]
    gate: Gate
    one_gpu: bool
    earlier: int
    judged: int
    widened: float = 1.0
    noise_from: int = 0
    processes: int = 1  # of a side that has times of one row, at most

    @property
    def limit_pct(self) -> float:
        return self.gate.limit_pct

    @property
    def undecided(self) -> str:
        """Why this says too little to pass; empty if it says enough."""
        if not self.one_gpu:
            return (
                f"{self.a.name} is of {', '.join(self.a.gpus)}, {self.b.name} of "
                f"{', '.join(self.b.gpus)}: no GPU in common, so times say nothing of a build. "
                "Measure both on one"
            )
        if not self.earlier:
            return (
                f"{self.a.name} has a time of no row, so nothing is judged. Measure it on a GPU "
                "without a profiler"
            )
        if self.judged >= self.gate.least_pct / 100 * self.earlier:
            return ""
        more = (
            "Both builds on one card" if other_card(self.differences) else "More processes or runs"
        )
        return (
            f"{self.judged} of the {self.earlier} rows that {self.a.name} has times of are judged "
            f"to ± {self.limit_pct:g} %, fewer than {self.gate.least_pct:g} %. {more} would judge "
            "more; or ask for less by --least, or by a wider slower:PCT%"
        )

    @property
    def exit_code(self) -> int:
        """3 where a row regressed, else 2 where too little is judged, else 0."""
        if any(row.regression for row in self.rows):
            return 3
        return 2 if self.undecided else 0
