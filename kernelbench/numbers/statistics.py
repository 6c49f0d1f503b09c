"""Medians and ratios of samples with their 95 % intervals, and when to stop sampling.

No distribution is assumed: kernel times are skewed, quantised by the clock, and drift.
A *block* is the samples of one provider that ran back to back; blocks of the same index of two
providers ran in the same *round* of an interleaved measurement.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, pairwise
from math import exp, fsum, inf, isqrt, log, sqrt
from statistics import median, stdev

import numpy as np
from numpy.typing import NDArray

from kernelbench.numbers.significance import t_reach

Blocks = Sequence[Sequence[float]]
HashableBlocks = tuple[tuple[float, ...], ...]  # blocks that a cache can use as its key
Floats = NDArray[np.float64]
Counts = NDArray[np.int32]

FEWEST_SAMPLES = 6  # the median of fewer has no 95 % interval
_PLATEAU_CHECKS = 16
_PLATEAU_GAIN = 0.95
_FEW_ROUNDS = 12
_HALF = 8  # rounds that a half must have, or halves are not compared
_HALF_DRAWS = 200
_IN_A_THREAD = 2**18  # products of which OpenBLAS makes no threads
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

    quantum: the step of the clock that read them. A median of such readings is uncertain by half a
    step on either side at least, however many there are.

    The k-th smallest and k-th largest of n samples enclose the true median with probability
    1 − 2·P(Bin(n, ½) < k); k is the largest rank that keeps this at 95 % or above. Fewer than
    six samples cannot reach 95 %: their interval is min..max, with whatever coverage that has.

    Raises ValueError without samples.
    """
    if not samples:
        raise ValueError("no samples")
    ordered = sorted(samples)
    rank, mid, half = _rank(len(ordered)), _middle(ordered), quantum / 2
    return Interval(mid, min(ordered[rank - 1], mid - half), max(ordered[-rank], mid + half))


def median_of_rounds(blocks: Blocks, quantum: float = 0.0) -> Interval:
    """The median of the samples of all rounds, with its 95 % interval.

    The interval spans that over the samples and that over the medians of the rounds: samples of
    one round are correlated, since a card under its power limit runs one whole round faster than
    the next. Where two halves of at least eight rounds have intervals that do not overlap, it spans
    the medians of both halves as well.

    Raises ValueError without samples.
    """
    rounds = [_middle(sorted(block)) if block else None for block in blocks]
    whole = _of_rounds(blocks, rounds, quantum)
    middle = len(blocks) // 2
    if middle < _HALF:
        return whole
    early = _of_rounds(blocks[:middle], rounds[:middle])
    late = _of_rounds(blocks[middle:], rounds[middle:])
    if early.hi >= late.lo and late.hi >= early.lo:
        return whole
    ends = (early.mid, late.mid)
    return Interval(whole.mid, min(whole.lo, *ends), max(whole.hi, *ends))


def _of_rounds(blocks: Blocks, medians: Sequence[float | None], quantum: float = 0.0) -> Interval:
    """medians: of each of these blocks, None of one without samples."""
    samples = median_interval(list(chain(*blocks)), quantum)
    rounds = median_interval([each for each in medians if each is not None])
    return Interval(samples.mid, min(samples.lo, rounds.lo), max(samples.hi, rounds.hi))


def over_processes(intervals: Sequence[Interval], least: float = 0.0) -> Interval:
    """One estimate from those of several processes, all above 0, with its 95 % interval.

    The geometric mean of the estimates, with Student's t interval of their logarithms, which says
    where another process would lie. It contains the interval of every process: a few processes may
    agree by chance, better than their own rounds do. For one process it is that process's interval.

    least: the shortest that either arm may be, as a share of the estimate: the clock's step.

    Raises ValueError without processes, or where an estimate of several is not above 0.
    """
    if len(intervals) == 1:
        return intervals[0]
    if not intervals or min(interval.mid for interval in intervals) <= 0:
        raise ValueError("estimates above 0 are needed, of one process at least")
    logs = [log(interval.mid) for interval in intervals]
    mid = fsum(logs) / len(logs)
    reach = t_reach(len(logs) - 1) * stdev(logs) / sqrt(len(logs))
    lo, hi = min(exp(-reach), 1 - least), max(_exp(reach), 1 + least)
    own = min(interval.lo for interval in intervals), max(interval.hi for interval in intervals)
    return Interval(exp(mid), max(min(exp(mid) * lo, own[0]), 0.0), max(exp(mid) * hi, own[1]))


def _exp(value: float) -> float:
    return exp(value) if value < 700 else inf


def _middle(ordered: Sequence[float]) -> float:
    """`median`, of samples that are sorted already."""
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


@lru_cache(maxsize=4096)
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
    return (
        len(samples) >= FEWEST_SAMPLES and median_interval(samples).relative * 100 <= interval_pct
    )


def plateau(widths: Sequence[float]) -> bool:
    """Whether more samples no longer narrow the interval.

    widths: `Interval.relative` after each block so far. Independent samples narrow it by the
    square root of their number: twice the samples, 0.71 of the width. It has stopped when, after
    at least 16 blocks, the narrowest of the later half is above 0.95 × the narrowest of the
    earlier half: then drift or the clock's step sets the width, not the number of samples.
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

    Only rounds that both took part in count, so that drift affects both equally. The interval is a
    bootstrap over rounds: each draw takes as many rounds as there are, with replacement and the
    same ones for both, pools their samples, and forms the ratio of the medians; 2.5 % of the
    draws lie on either side. Fewer than twelve rounds show too little of their spread: the interval
    then also spans a bootstrap over the single samples (the only one that says something where
    there is one round). The same samples and seed give the same interval. Where the two halves of
    at least sixteen rounds have intervals that do not overlap, it spans the ratios of both halves:
    then the rounds are not samples of one distribution.

    quantum: the step of the clock; each median is uncertain by half of it at least.

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
        _draw(random, len(pairs), draws)  # skip what `_cached_draw` takes from a new generator
        single = (_single_sample_medians(random, part, draws) for part in (tops, bottoms))
        ratios.append(_ratios(*single))
    halves = [] if len(pairs) < 2 * _HALF else _diverging_halves(tops, bottoms, seed)
    cut, half = draws // 40, quantum / 2
    least = max(above - half, 0.0) / (below + half)
    most = (above + half) / (below - half) if below > half else inf
    return Interval(
        above / below,
        min(least, *halves, *(float(draw[cut]) for draw in ratios)),
        max(most, *halves, *(float(draw[-1 - cut]) for draw in ratios)),
    )


def _diverging_halves(tops: HashableBlocks, bottoms: HashableBlocks, seed: int) -> list[float]:
    """The ratios of the earlier and the later half, if their intervals do not overlap; else []."""
    middle, cut = len(tops) // 2, _HALF_DRAWS // 40
    parts = [(tops[part], bottoms[part]) for part in (slice(middle), slice(middle, None))]
    drawn = [_ratios(*(_medians(part, seed, _HALF_DRAWS) for part in both)) for both in parts]
    (lo, hi), (other_lo, other_hi) = ((float(d[cut]), float(d[-1 - cut])) for d in drawn)
    if not (hi < other_lo or other_hi < lo):
        return []
    pooled = [(median(chain(*above)), median(chain(*below))) for above, below in parts]
    return [above / below for above, below in pooled if below]


@lru_cache(maxsize=64)
def _cached_draw(seed: int, units: int, draws: int) -> tuple[Counts, Floats]:
    """`_draw` with a new generator, the same for every ratio of the same number of rounds; and the
    same as floats, which are multiplied faster."""
    counts = _draw(np.random.default_rng(seed), units, draws)
    return counts, counts.astype(np.float64)


def _draw(random: np.random.Generator, units: int, draws: int) -> Counts:
    """How often each draw contains each unit: [units, draws]."""
    picks = random.integers(0, units, (units, draws)) * draws + np.arange(draws)
    counts = np.bincount(picks.ravel(), minlength=units * draws)
    return counts.reshape(units, draws).astype(np.int32)


@lru_cache(maxsize=32)
def _medians(blocks: HashableBlocks, seed: int, draws: int) -> Floats:
    """The median of each draw's pooled samples; cached, since many are compared with a baseline.

    The samples are sorted once. A draw contains a sample as often as its round, and its median is
    where the running count passes half. A coarse count, of how many samples of each round lie below
    a step, first narrows down the samples at which the exact count is needed. Draws are columns, so
    that each step adds rows; sums of whole numbers are exact as floats, too.
    """
    values, (counts, as_floats) = _pool(blocks), _cached_draw(seed, len(blocks), draws)
    order, rounds = np.argsort(values, kind="stable"), len(blocks)
    owners = np.repeat(np.arange(rounds), [len(block) for block in blocks])[order]
    width = isqrt(len(order))  # samples of a step
    cells = np.arange(len(order)) // width * rounds + owners
    steps = np.bincount(cells, minlength=-(-len(order) // width) * rounds).reshape(-1, rounds)
    reached = _product(steps.cumsum(axis=0, dtype=np.float64), as_floats).astype(np.int32)
    half, beyond = (reached[-1] + 1) // 2, reached[-1] // 2 + 1
    early = int((reached < half).all(axis=1).sum())  # coarse steps without any draw's median
    late = int((reached < beyond).any(axis=1).sum())
    first = early * width
    near = counts[owners[first : (late + 1) * width]]
    if early:
        near[0] += reached[early - 1]
    for above, row in pairwise(near):
        row += above
    ordered = values[order]
    lower = first + (near < half).sum(axis=0, dtype=np.int32)
    upper = first + (near < beyond).sum(axis=0, dtype=np.int32)
    return np.asarray((ordered[lower] + ordered[upper]) / 2)


def _product(left: Floats, right: Floats) -> Floats:
    """left @ right, in parts so small that BLAS does each in this thread: several threads take
    longer than one for what there is to do here."""
    columns = max(_IN_A_THREAD // left.size, 1)
    parts = [left @ right[:, n : n + columns] for n in range(0, right.shape[1], columns)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def _single_sample_medians(random: np.random.Generator, blocks: Blocks, draws: int) -> Floats:
    """The medians of draws of n single samples out of n, sampled from their exact distribution.

    The k-th smallest of n uniform numbers is Beta(k, n + 1 − k), and the next one lies
    Beta(1, n − k) of the way from there to 1. Times n and rounded down, these are indices into the
    sorted samples.
    """
    samples = np.sort(_pool(blocks))
    n = len(samples)
    k = (n + 1) // 2
    lower = random.beta(k, n + 1 - k, draws)
    upper = lower if n % 2 else lower + (1 - lower) * random.beta(1, n - k, draws)
    places = np.minimum(np.stack([lower, upper]) * n, n - 1).astype(np.int64)
    return np.asarray(samples[places].mean(axis=0))


def _pool(blocks: Blocks) -> Floats:
    return np.fromiter(chain.from_iterable(blocks), np.float64)


def _ratios(above: Floats, below: Floats) -> Floats:
    """above / below, sorted; infinite where `below` is 0, as the clock's step can make it."""
    ratios = np.full(above.shape, inf)
    np.divide(above, below, out=ratios, where=below > 0)
    return np.sort(ratios)


def noise_floor(*processes: tuple[Blocks, Blocks]) -> float:
    """The largest relative difference that this job cannot distinguish from 0; 0.004 is 0.4 %.

    processes: the baseline's blocks and those of its second run, of each process.

    The baseline ran twice in every round, so the true ratio of the two is 1. The floor is the
    farthest that the 95 % interval of their measured ratio reaches from 1: the difference that was
    measured between two runs of the same code, plus the uncertainty of that measurement. It is at
    least one step of the clock, the smallest difference between two samples, over the median:
    samples that all agree hide a difference below that step.

    Raises ValueError as `ratio_interval` does.
    """
    ratio = over_processes([ratio_interval(again, first) for first, again in processes])
    return max(abs(ratio.lo - 1), abs(ratio.hi - 1), *(_step(*blocks) for blocks in processes))


def _step(blocks: Blocks, again: Blocks) -> float:
    """The smallest difference between two samples, over their median.

    Of one process at a time: each has its own overhead subtracted.
    """
    samples = sorted({*chain(*blocks), *chain(*again)})
    return min((b - a for a, b in pairwise(samples)), default=0) / median(chain(*blocks))


def log_medians(
    series: Sequence[Blocks], *, draws: int = 64, seed: int = 0
) -> tuple[Floats, Floats]:
    """The natural logarithm of each series' median, and its standard error: two [series] arrays.

    The error is a bootstrap over blocks, of all series of one shape at once. Fewer than twelve
    blocks show too little of their spread: then single samples are drawn as well, and the larger
    error counts. The error is infinite for a single sample and where a draw has the median 0; the
    logarithm of a median of 0 is −infinity.

    Raises ValueError where a series has no samples.
    """
    logs, errors = np.empty(len(series)), np.empty(len(series))
    same_shape: dict[tuple[int, ...], list[int]] = {}
    for i, blocks in enumerate(series):
        same_shape.setdefault(tuple(len(block) for block in blocks if len(block)), []).append(i)
    for sizes, members in same_shape.items():
        if not sizes:
            raise ValueError("no samples")
        samples = np.stack([_pool(series[i]) for i in members])
        logs[members], errors[members] = _log_medians(samples, np.array(sizes), draws, seed)
        if len(sizes) < _FEW_ROUNDS:
            single = _log_medians(samples, np.ones(sum(sizes), np.int64), draws, seed)[1]
            errors[members] = np.maximum(errors[members], single)
    return logs, errors


def _log_medians(
    samples: Floats, sizes: NDArray[np.int64], draws: int, seed: int
) -> tuple[Floats, Floats]:
    """`log_medians` of samples [series, sample], in blocks of these sizes."""
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
            spread = np.log(drawn).std(axis=1, ddof=1)
        errors[first : first + step] = np.where(np.isfinite(spread), spread, inf)
    return logs, errors
