"""A row's observations on both sides, in time, and in cycles where the SM clocks differ."""

import math
from collections.abc import Sequence

from kernelbench import metrics
from kernelbench.compare import noise
from kernelbench.compare.noise import LogMedian

CLOCKS_DIFFER = 0.01


class Pair:
    """The observations of one row on both sides.

    raw: the logarithm of B's time over A's. in_cycles: that of their SM cycles; None where the
    clocks of the sides are within 1 %, or not known. mhz: the mean SM clock of each side, or 0.
    normalised: whether cycles decide: where the clocks differ and flops bound the row. How much any
    other row depends on the clock is unknown, so both decide: see `ends`.
    """

    def __init__(
        self,
        a: Sequence[LogMedian],
        b: Sequence[LogMedian],
        earlier: Sequence[Sequence[LogMedian]] = (),
        most: tuple[int, int] = (0, 0),
    ) -> None:
        self.a, self.b, self.earlier = a, b, earlier
        self.most = most  # processes of each side that measured its case
        self.mhz = [_mean([s.mhz for s in side if s.mhz]) for side in (a, b)]
        self.raw = _mean([s.log_ns for s in b]) - _mean([s.log_ns for s in a])
        self.in_cycles: float | None = None
        if all(s.mhz for s in (*a, *b)) and abs(self.mhz[1] / self.mhz[0] - 1) > CLOCKS_DIFFER:
            self.in_cycles = self.raw + _log_clock(b) - _log_clock(a)
        share = metrics.share_of_ceiling(b[0].record)
        self.normalised = self.in_cycles is not None and share is not None and share[1] == "compute"

    @property
    def earlier_processes(self) -> int:
        """Processes of other builds, of those builds that have several."""
        return sum(len(build) for build in self.earlier if len(build) > 1)

    @property
    def processes(self) -> int:
        """Of the side that has more."""
        return max(len(self.a), len(self.b))

    @property
    def log_ratio(self) -> float:
        return self.in_cycles if self.normalised and self.in_cycles is not None else self.raw

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the most that the logarithm of the ratio may be, noise apart."""
        if self.in_cycles is None or self.normalised:
            return self.log_ratio, self.log_ratio
        return min(self.raw, self.in_cycles), max(self.raw, self.in_cycles)

    @property
    def clocks(self) -> str:
        """In words, where they differ."""
        if self.in_cycles is None:
            return ""
        before, after = self.mhz
        how = "normalised" if self.normalised else "held in time and in cycles"
        return f"SM clock {before:.0f} → {after:.0f} MHz, {how}"

    def spread(self) -> noise.Spread:
        """The input of `noise`. A clock reading is itself uncertain, which widens the variance."""
        record, medians = self.b[0].record, (*self.a, *self.b)
        slowed = any(s.throttled for s in medians)
        short = any(s.launch_error > noise.MEASURED for s in medians)
        clock_error = 0.0 if self.in_cycles is None else noise.CLOCK_READING**2
        sides = [
            tuple(s.log_ns + (math.log(s.mhz) if self.normalised and s.mhz else 0) for s in side)
            for side in (self.a, self.b, *self.earlier)
        ]
        return noise.Spread(
            kind=f"{record.family} {record.mode} {record.role} {slowed} {short}",
            a=sides[0],
            b=sides[1],
            earlier=tuple(sides[2:]),
            variances=tuple(s.variance + clock_error for s in medians),
            least=_mean([s.within**2 for s in medians]),
        )


def _log_clock(side: Sequence[LogMedian]) -> float:
    return _mean([math.log(s.mhz) for s in side if s.mhz])


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0
