"""What samples say: medians and ratios with the interval they are known to, and when to stop.

Nothing is assumed of a distribution: kernel times are skewed, quantised by the clock, and drift.
A *block* is the samples of one provider that ran back to back; blocks of the same index of two
providers ran in the same *round* of an interleaved measurement.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, pairwise
from math import inf
from statistics import median

import numpy as np
from numpy.typing import NDArray

Blocks = Sequence[Sequence[float]]
Floats = NDArray[np.float64]
Counts = NDArray[np.int32]

_PLATEAU_CHECKS = 16
_PLATEAU_GAIN = 0.95
_FEW_ROUNDS = 12


@dataclass(frozen=True)
class Interval:
    """An estimate and the 95 % interval around it, in the unit of the samples."""

    mid: float
    lo: float
    hi: float

    @property
    def relative(self) -> float:
        """The longer arm of the interval over the estimate; infinite where the estimate is 0."""
        arm = max(self.hi - self.mid, self.mid - self.lo)
        return arm / abs(self.mid) if self.mid else inf


def median_interval(samples: Sequence[float]) -> Interval:
    """The sample median with its distribution-free 95 % interval, in the unit of the samples.

    The k-th smallest and k-th largest of n samples enclose the true median with probability
    1 − 2·P(Bin(n, ½) < k); k is the largest rank that keeps this at 95 % or above. Fewer than
    six samples cannot reach 95 %: their interval is min..max, whatever it covers.

    Raises ValueError without samples.
    """
    if not samples:
        raise ValueError("no samples")
    ordered = sorted(samples)
    rank = _rank(len(ordered))
    return Interval(median(ordered), ordered[rank - 1], ordered[-rank])


def _rank(n: int) -> int:
    """The largest k with P(Bin(n, ½) < k) ≤ 1/40, at least 1; exact in whole numbers."""
    rank, term, tail = 0, 1, 1  # tail = C(n, 0) + … + C(n, rank)
    while tail * 40 <= 2**n:
        term = term * (n - rank) // (rank + 1)
        rank += 1
        tail += term
    return max(rank, 1)


def converged(samples: Sequence[float], interval_pct: float) -> bool:
    """Whether the 95 % interval of the median lies within ± `interval_pct` % of the median.

    False for fewer than six samples, whose interval cannot cover 95 %.
    """
    return len(samples) >= 6 and median_interval(samples).relative * 100 <= interval_pct


def plateau(widths: Sequence[float]) -> bool:
    """Whether more samples no longer narrow the interval.

    widths: `Interval.relative` after each block so far. Independent samples narrow it by the
    root of their number: twice the samples, 0.71 of the width. It has stopped when, after at
    least 16 blocks, the narrowest of the later half is above 0.95 of the narrowest of the earlier
    half: then drift or the clock's step rules, not the number of samples.
    """
    if len(widths) < _PLATEAU_CHECKS:
        return False
    half = len(widths) // 2
    return min(widths[half:]) > _PLATEAU_GAIN * min(widths[:half])


def ratio_interval(
    numerator_blocks: Blocks, denominator_blocks: Blocks, *, seed: int = 0, draws: int = 1000
) -> Interval:
    """median(numerator) / median(denominator) with its 95 % interval; without unit.

    Only rounds that both took part in count, so that drift hits both alike. The interval is a
    bootstrap over rounds: each draw takes as many rounds as there are, with replacement and the
    same ones for both, pools their samples, and forms the ratio of the medians; 2.5 % of the
    draws lie on either side. Fewer than twelve rounds say too little about themselves: the interval
    then also spans a bootstrap over the single samples (alone, where there is one round).
    The same samples and seed give the same interval.

    Raises ValueError without a common round, or where a median is not above 0.
    """
    pairs = [
        (top, bottom)
        for top, bottom in zip(numerator_blocks, denominator_blocks, strict=False)
        if top and bottom
    ]
    if not pairs:
        raise ValueError("no common round")
    tops, bottoms = [top for top, _ in pairs], [bottom for _, bottom in pairs]
    above, below = median(chain(*tops)), median(chain(*bottoms))
    if above <= 0 or below <= 0:
        raise ValueError("a ratio needs medians above 0")
    random = np.random.default_rng(seed)
    few = len(pairs) < _FEW_ROUNDS
    counts = _draw(random, len(pairs), draws) if few else _drawn(seed, len(pairs), draws)
    ratios = [_ratios(_medians(tops, counts), _medians(bottoms, counts))]
    if few:
        ratios.append(_ratios(_alone(random, tops, draws), _alone(random, bottoms, draws)))
    cut = draws // 40
    mid = above / below
    return Interval(
        mid,
        min(mid, *(float(drawn[cut]) for drawn in ratios)),
        max(mid, *(float(drawn[-1 - cut]) for drawn in ratios)),
    )


@lru_cache(maxsize=64)
def _drawn(seed: int, units: int, draws: int) -> Counts:
    """`_draw` of a new generator: the same for every ratio of as many rounds."""
    return _draw(np.random.default_rng(seed), units, draws)


def _draw(random: np.random.Generator, units: int, draws: int) -> Counts:
    """How often each draw holds each unit: [units, draws]."""
    picks = random.integers(0, units, (units, draws)) * draws + np.arange(draws)
    counts = np.bincount(picks.ravel(), minlength=units * draws)
    return counts.reshape(units, draws).astype(np.int32)


def _medians(blocks: Blocks, counts: Counts) -> Floats:
    """The median of each draw's pooled samples.

    The samples are sorted once; a draw holds each as often as its round, and its median is where
    their running count passes half. Whole draws are columns, so that each step adds rows.
    """
    values = _pool(blocks)
    owners = np.repeat(np.arange(len(blocks)), [len(block) for block in blocks])
    order = np.argsort(values, kind="stable")
    reached = counts[owners[order]].cumsum(axis=0, dtype=np.int32)
    total = reached[-1]
    ordered = values[order]
    lower = np.count_nonzero(reached < (total + 1) // 2, axis=0)
    upper = np.count_nonzero(reached < total // 2 + 1, axis=0)
    return np.asarray((ordered[lower] + ordered[upper]) / 2)


def _alone(random: np.random.Generator, blocks: Blocks, draws: int) -> Floats:
    """The medians of draws of n single samples out of n, straight from their distribution.

    The k-th smallest of n uniform numbers is Beta(k, n + 1 − k), and the next one lies
    Beta(1, n − k) of the way from there to 1; n of them, cut down, are places in the samples.
    """
    samples = np.sort(_pool(blocks))
    n = len(samples)
    k = (n + 1) // 2
    lower = random.beta(k, n + 1 - k, draws)
    upper = lower if n % 2 else lower + (1 - lower) * random.beta(1, n - k, draws)
    places = np.minimum(np.stack([lower, upper]) * n, n - 1).astype(np.int64)
    return np.asarray(samples[places].mean(axis=0))


def _pool(blocks: Blocks) -> Floats:
    return np.concatenate([np.asarray(block, dtype=np.float64) for block in blocks])


def _ratios(above: Floats, below: Floats) -> Floats:
    """Sorted; infinite where the lower median is 0, which the clock's step can make it."""
    ratios = np.full(above.shape, inf)
    np.divide(above, below, out=ratios, where=below > 0)
    return np.sort(ratios)


def noise_floor(baseline_blocks: Blocks, again_blocks: Blocks) -> float:
    """The relative difference that this job cannot tell from none; 0.004 is 0.4 %.

    The baseline ran twice in every round, so the true ratio of the two is 1. The floor is the
    farthest that the 95 % interval of their measured ratio reaches from 1: what the same code
    was seen to differ by, and what that sight itself is uncertain by. It is at least one step
    of the clock, the smallest difference between two samples, over the median: samples that
    all agree hide a difference below that step.

    Raises ValueError as `ratio_interval` does.
    """
    ratio = ratio_interval(again_blocks, baseline_blocks)
    samples = sorted({*chain(*baseline_blocks), *chain(*again_blocks)})
    step = min((b - a for a, b in pairwise(samples)), default=0)
    return max(abs(ratio.lo - 1), abs(ratio.hi - 1), step / median(chain(*baseline_blocks)))
