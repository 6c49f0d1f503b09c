"""What is said of every row from one side to the other: the words, and the facts of each."""

from dataclasses import dataclass
from enum import StrEnum

from kernelbench.compare.attribution import Difference
from kernelbench.compare.sides import Side
from kernelbench.spec import Role

LIMIT_PCT = 3.0
Key = tuple[str, str, str, str]  # family, case, provider, GPU


class Verdict(StrEnum):
    """What became of a row from A to B."""

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
        return self in (Verdict.slower, Verdict.faster)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A (family, case, provider) from A to B.

    ratio: time of B over time of A, so above 1 is slower; lo, hi: its 95 % interval. raw: in
    time; normalised: in SM cycles, where the sides' clocks differ by more than 1 %. used: which of
    them `ratio` is, `raw` or `normalised`; lo and hi span both where it is not known how far the
    row follows the clock. p: of no change; adjusted: for the number of rows. floor_pct: the larger
    noise floor of the jobs. cause: what a move is put down to; why: what speaks for that, or for
    a verdict that no time decided, and that the clocks differ.
    """

    family: str
    case: str
    provider: str
    gpu: str
    role: Role
    mode: str
    dtype: str
    label: str
    verdict: Verdict
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

    limit_pct: see `compare`. widened: by what every interval was multiplied, because rows that
    are not ours lay farther apart than their errors allow.
    """

    a: Side
    b: Side
    rows: tuple[Row, ...]
    differences: tuple[Difference, ...]
    limit_pct: float
    one_gpu: bool
    widened: float = 1.0

    @property
    def exit_code(self) -> int:
        """3 where a row regressed, else 0."""
        return 3 if any(row.regression for row in self.rows) else 0
