"""What samples say: medians and ratios with the interval they are known to, and when to stop.

Nothing is assumed of a distribution: kernel times are skewed, quantised by the clock, and drift.
A *block* is the samples of one provider that ran back to back; blocks of the same index of two
providers ran in the same *round* of an interleaved measurement.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import chain, pairwise
from math import inf, isqrt, lgamma, log
from statistics import median

import numpy as np
from numpy.typing import NDArray

Blocks = Sequence[Sequence[float]]
Floats = NDArray[np.float64]
Counts = NDArray[np.int32]

_PLATEAU_CHECKS = 16
_PLATEAU_GAIN = 0.95
_FEW_ROUNDS = 12
_AT_ONCE = 2**22  # samples × draws held in memory


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


def median_interval(samples: Sequence[float], quantum: float = 0.0) -> Interval:
    """The sample median with its distribution-free 95 % interval, in the unit of the samples.

    quantum: the step of the clock that read them. A median of such readings is known to half of it
    on either side at best, however many there are.

    The k-th smallest and k-th largest of n samples enclose the true median with probability
    1 − 2·P(Bin(n, ½) < k); k is the largest rank that keeps this at 95 % or above. Fewer than
    six samples cannot reach 95 %: their interval is min..max, whatever it covers.

    Raises ValueError without samples.
    """
    if not samples:
        raise ValueError("no samples")
    ordered = sorted(samples)
    rank, mid, half = _rank(len(ordered)), median(ordered), quantum / 2
    return Interval(mid, min(ordered[rank - 1], mid - half), max(ordered[-rank], mid + half))


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
    numerator_blocks: Blocks,
    denominator_blocks: Blocks,
    *,
    quantum: float = 0.0,
    seed: int = 0,
    draws: int = 1000,
) -> Interval:
    """median(numerator) / median(denominator) with its 95 % interval; without unit.

    Only rounds that both took part in count, so that drift hits both alike. The interval is a
    bootstrap over rounds: each draw takes as many rounds as there are, with replacement and the
    same ones for both, pools their samples, and forms the ratio of the medians; 2.5 % of the
    draws lie on either side. Fewer than twelve rounds say too little about themselves: the interval
    then also spans a bootstrap over the single samples (alone, where there is one round).
    The same samples and seed give the same interval.

    quantum: the step of the clock; each median is known to half of it at best.

    Raises ValueError without a common round, or where a median is not above 0.
    """
    pairs = [
        (top, bottom)
        for top, bottom in zip(numerator_blocks, denominator_blocks, strict=False)
        if top and bottom
    ]
    if not pairs:
        raise ValueError("no common round")
    tops, bottoms = (tuple(map(tuple, part)) for part in zip(*pairs, strict=True))
    above, below = median(chain(*tops)), median(chain(*bottoms))
    if above <= 0 or below <= 0:
        raise ValueError("a ratio needs medians above 0")
    ratios = [_ratios(*(_medians(part, seed, draws) for part in (tops, bottoms)))]
    if len(pairs) < _FEW_ROUNDS:
        random = np.random.default_rng(seed)
        _draw(random, len(pairs), draws)  # as `_drawn`: single samples are drawn after the rounds
        ratios.append(_ratios(_alone(random, tops, draws), _alone(random, bottoms, draws)))
    cut, half = draws // 40, quantum / 2
    least = max(above - half, 0.0) / (below + half)
    most = (above + half) / (below - half) if below > half else inf
    return Interval(
        above / below,
        min(least, *(float(drawn[cut]) for drawn in ratios)),
        max(most, *(float(drawn[-1 - cut]) for drawn in ratios)),
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


@lru_cache(maxsize=32)
def _medians(blocks: tuple[tuple[float, ...], ...], seed: int, draws: int) -> Floats:
    """The median of each draw's pooled samples; kept, since a baseline is held against many.

    The samples are sorted once; a draw holds each as often as its round, and its median is where
    their running count passes half. A coarse count leaves few places to count at one by one. Whole
    draws are columns, so that each step adds rows.
    """
    values, counts = _pool(blocks), _drawn(seed, len(blocks), draws)
    owners = np.repeat(np.arange(len(blocks)), [len(block) for block in blocks])
    order = np.argsort(values, kind="stable")
    held = counts[owners[order]]
    marks = np.arange(0, len(held), isqrt(len(held)))
    reached = np.add.reduceat(held, marks, axis=0).cumsum(axis=0, dtype=np.int32)
    half, beyond = (reached[-1] + 1) // 2, reached[-1] // 2 + 1
    early = int((reached < half).all(axis=1).sum())  # steps that no draw's median is in
    late = int((reached < beyond).any(axis=1).sum())
    first, last = marks[early], (*marks, len(held))[late + 1]
    near = held[first:last].cumsum(axis=0, dtype=np.int32)
    if early:
        near += reached[early - 1]
    ordered = values[order]
    lower = first + np.count_nonzero(near < half, axis=0)
    upper = first + np.count_nonzero(near < beyond, axis=0)
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


def log_medians(
    series: Sequence[Blocks], *, draws: int = 64, seed: int = 0
) -> tuple[Floats, Floats]:
    """The natural logarithm of each series' median, and the standard error of that.

    A bootstrap over blocks, all series of one shape at once; fewer than twelve blocks say too
    little about themselves, so then also one over single samples, and the larger error holds.
    One sample, or a draw whose median is 0, has an infinite error; a median of 0 the logarithm
    −infinity.

    Raises ValueError where a series has no samples.
    """
    logs, errors = np.empty(len(series)), np.empty(len(series))
    alike: dict[tuple[int, ...], list[int]] = {}
    for place, blocks in enumerate(series):
        alike.setdefault(tuple(len(block) for block in blocks if len(block)), []).append(place)
    for sizes, places in alike.items():
        if not sizes:
            raise ValueError("no samples")
        samples = np.stack([_pool(series[place]) for place in places])
        logs[places], errors[places] = _log_medians(samples, np.array(sizes), draws, seed)
        if len(sizes) < _FEW_ROUNDS:
            alone = _log_medians(samples, np.ones(sum(sizes), np.int64), draws, seed)[1]
            errors[places] = np.maximum(errors[places], alone)
    return logs, errors


def _log_medians(
    samples: Floats, sizes: NDArray[np.int64], draws: int, seed: int
) -> tuple[Floats, Floats]:
    """Of samples [series, sample], in blocks of these sizes."""
    with np.errstate(divide="ignore"):
        logs = np.log(np.median(samples, axis=1))
    if samples.shape[1] == 1:
        return logs, np.full(len(samples), inf)
    counts = _draw(np.random.default_rng(seed), len(sizes), draws).astype(np.int16)
    half = (sizes @ counts + 1) // 2
    owners = np.repeat(np.arange(len(sizes)), sizes)
    errors = np.empty(len(samples))
    step = max(1, _AT_ONCE // (samples.shape[1] * draws))
    for first in range(0, len(samples), step):
        part = samples[first : first + step]
        order = np.argsort(part, axis=1, kind="stable")
        reached = counts[owners[order]].cumsum(axis=1, dtype=np.int16)
        places = np.count_nonzero(reached < half, axis=1)
        drawn = np.take_along_axis(np.take_along_axis(part, order, 1), places, 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.log(drawn).std(axis=1, ddof=1)
        errors[first : first + step] = np.where(np.isfinite(found), found, inf)
    return logs, errors


def two_sided_p(t: Floats, degrees: Floats) -> Floats:
    """The probability that Student's t of so many degrees of freedom is as far from 0."""
    t, degrees = np.broadcast_arrays(np.asarray(t, np.float64), np.asarray(degrees, np.float64))
    near = degrees / (degrees + t * t)
    return _beta_share(degrees / 2, np.full(t.shape, 0.5), near)


def _beta_share(a: Floats, b: Floats, x: Floats) -> Floats:
    """The regularised incomplete beta function I_x(a, b), by its continued fraction (Lentz)."""
    swap = x > (a + 1) / (a + b + 2)
    p, q, y = np.where(swap, b, a), np.where(swap, a, b), np.where(swap, 1 - x, x)
    c, d = np.ones(y.shape), 1 / (1 - (p + q) * y / (p + 1))
    found = d
    for m in range(1, 100):
        for term in (
            m * (q - m) * y / ((p + 2 * m - 1) * (p + 2 * m)),
            -(p + m) * (p + q + m) * y / ((p + 2 * m) * (p + 2 * m + 1)),
        ):
            d, c = 1 / (1 + term * d), 1 + term / c
            found = found * d * c
    sizes = [lgamma(u + v) - lgamma(u) - lgamma(v) for u, v in zip(p.flat, q.flat, strict=True)]
    with np.errstate(divide="ignore"):
        front = np.exp(np.reshape(sizes, y.shape) + p * np.log(y) + q * np.log1p(-y)) / p
    return np.asarray(np.where(swap, 1 - front * found, front * found))


@cache
def t_reach(degrees: int) -> float:
    """How far 95 % of Student's t of so many degrees of freedom lie from 0."""
    lo, hi = 1.9, 13.0
    for _ in range(50):
        mid = (lo + hi) / 2
        beyond = float(two_sided_p(np.array(mid), np.array(float(degrees))))
        lo, hi = (mid, hi) if beyond > 0.05 else (lo, mid)
    return hi


def false_discovery(p: Floats) -> Floats:
    """Benjamini and Hochberg's adjusted p: calling a change wherever it is ≤ q keeps the expected
    share of false calls among all calls ≤ q, over the whole table."""
    order = np.argsort(p)[::-1]
    ranks = np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, np.minimum.accumulate(p[order] * len(p) / ranks))
    return adjusted


def change_points(
    values: Sequence[float], error: float, least: float, *, series: int = 1
) -> list[int]:
    """Where a new level begins, as places in `values`; a level holds at least two of them.

    The partition into levels with the least (squared distances from the means) / error² plus
    3 · ln(n) + 2 · ln(series) a level, found exactly; then steps smaller than `least` are taken
    back, the smallest first. error: standard deviation of a value about its level, above 0.
    series: how many are searched at once, any of which may look changed by chance.
    """
    n = len(values)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    squares = np.concatenate([[0.0], np.cumsum(np.square(values))])
    best, cut = np.full(n + 1, inf), np.zeros(n + 1, np.int64)
    best[0] = 0.0
    for end in range(2, n + 1):
        start = np.arange(end - 1)
        mean = (sums[end] - sums[start]) / (end - start)
        off = squares[end] - squares[start] - (end - start) * mean**2
        cost = best[start] + off / error**2 + 3 * log(n) + 2 * log(series)
        cut[end] = start[np.argmin(cost)]
        best[end] = cost.min()
    found, end = list[int](), n
    while n > 1 and (end := int(cut[end])):
        found.insert(0, end)
    while found:
        edges = [0, *found, n]
        levels = [float(np.mean(values[a:b])) for a, b in pairwise(edges)]
        steps = [abs(b - a) for a, b in pairwise(levels)]
        if min(steps) >= least:
            break
        del found[steps.index(min(steps))]
    return found
