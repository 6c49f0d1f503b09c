"""Known answers on literal samples, and the coverage that the intervals promise."""

import math
import random
from itertools import chain, pairwise
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from kernelbench import store
from kernelbench.numbers import times
from kernelbench.numbers.statistics import (
    Interval,
    converged,
    median_interval,
    median_of_rounds,
    noise_floor,
    plateau,
    ratio_interval,
)


@pytest.mark.parametrize(
    ("n", "rank"),  # ranks from tables of the sign test at 95 %
    [(6, 1), (8, 1), (9, 2), (10, 2), (12, 3), (20, 6), (25, 8), (50, 18), (100, 40)],
)
def test_median_interval_takes_the_binomial_ranks(n: int, rank: int) -> None:
    samples = [float(i) for i in range(1, n + 1)]
    random.Random(n).shuffle(samples)
    assert median_interval(samples) == Interval((n + 1) / 2, rank, n + 1 - rank)


@pytest.mark.parametrize("samples", [[7], [7, 9], [3, 9, 4], [5, 1, 2, 4, 3]])
def test_too_few_samples_for_95_percent_give_their_range(samples: list[int]) -> None:
    interval = median_interval(samples)
    assert (interval.lo, interval.hi) == (min(samples), max(samples))


def test_samples_of_one_round_are_not_taken_for_independent_ones() -> None:
    """A card that dithers between two clocks, a whole round at each: the median of a few rounds is
    that of either."""
    random_, held = random.Random(5), 0
    alone = 0
    for _ in range(400):
        rounds = [[1 + 0.05 * random_.random()] * 8 for _ in range(16)]
        found, samples = median_of_rounds(rounds), median_interval([*chain(*rounds)])
        held += found.lo <= 1.025 <= found.hi
        alone += samples.lo <= 1.025 <= samples.hi
    assert held >= 0.95 * 400 and alone < 0.7 * 400


def test_few_samples_a_round_are_as_wide_as_the_wider_of_both() -> None:
    rounds = [[float(n), float(100 - n)] for n in range(20)]
    found, samples = median_of_rounds(rounds), median_interval([*chain(*rounds)])
    assert found == samples  # the medians of these rounds are all the same


def test_no_samples_have_no_median() -> None:
    with pytest.raises(ValueError, match="no samples"):
        median_interval([])


def test_relative_is_the_longer_arm() -> None:
    assert Interval(100, 99, 104).relative == pytest.approx(0.04)
    assert Interval(0, 0, 1).relative == float("inf")


@pytest.mark.parametrize("jitter", [0.0, 3.0, 40.0])
def test_a_clock_with_steps_gives_no_interval_narrower_than_a_step(jitter: float) -> None:
    """Calls of about 3 µs, read in steps of 32 ns."""
    rng = random.Random(5)

    def samples(true: float) -> list[list[float]]:
        return [[round(rng.gauss(true, jitter) / 32) * 32.0 for _ in range(8)] for _ in range(16)]

    covered, ratios, trials = 0, 0, 200
    for _ in range(trials):
        one, two = rng.uniform(2900, 3100), rng.uniform(2900, 3100)
        ones, twos = samples(one), samples(two)
        found = median_interval([*chain(*ones)], 32)
        assert found.hi - found.lo >= 32
        covered += found.lo <= one <= found.hi
        ratio = ratio_interval(ones, twos, quantum=32, draws=200)
        assert ratio.hi / ratio.lo >= (3000 + 30) / (3000 - 30)
        ratios += ratio.lo <= one / two <= ratio.hi
    assert min(covered, ratios) >= 0.93 * trials


def test_a_step_that_is_larger_than_what_it_reads_says_nothing() -> None:
    found = ratio_interval([[10.0] * 8] * 12, [[10.0] * 8] * 12, quantum=32)
    assert (found.lo, found.mid, found.hi) == (0, 1, math.inf)


def test_the_median_interval_covers_the_median_95_times_in_100() -> None:
    rng = random.Random(0)
    hits = 0
    for _ in range(1000):
        interval = median_interval([rng.expovariate(1) for _ in range(30)])
        hits += interval.lo <= 0.693147 <= interval.hi
    assert 930 <= hits <= 985


def test_converged_within_the_asked_share_of_the_median() -> None:
    tight = [1000, 1001, 999, 1000, 1002, 998, 1000, 1001, 999, 1000]
    assert converged(tight, 0.5)
    assert not converged(tight, 0.05)
    assert not converged([1000] * 5, 0.5)  # five samples cannot cover 95 %


def test_a_plateau_is_when_more_samples_no_longer_narrow_the_interval() -> None:
    narrowing = [n**-0.5 for n in range(1, 33)]
    assert not plateau(narrowing)
    assert plateau([0.02] * 16)
    assert not plateau([0.02] * 15)
    assert plateau([*narrowing[:8], *[narrowing[7]] * 8])
    assert not plateau([0.02] * 8 + [0.018] * 8)


A = [[100, 101, 102], [200, 201, 202], [100, 101, 102]]


def test_ratio_of_medians_and_which_way_round() -> None:
    blocks = [[2 * x for x in block] for block in A]
    assert ratio_interval(blocks, A).mid == 2
    assert ratio_interval(A, blocks).mid == 0.5


def test_drift_that_hits_both_alike_does_not_widen_a_ratio() -> None:
    drift = [100, 150, 120, 180, 90, 130, 110, 170, 140, 160, 105, 145, 125]
    slow = [[3 * x] * 4 for x in drift]
    fast = [[x] * 4 for x in drift]
    assert ratio_interval(slow, fast) == Interval(3, 3, 3)
    shifted = [*fast[1:], fast[0]]
    assert ratio_interval(slow, shifted).relative > 0.1


def test_only_common_rounds_count() -> None:
    more = [*A, [9000, 9000, 9000, 9000, 9000, 9000, 9000, 9000, 9000, 9000]]
    assert ratio_interval(more, A) == ratio_interval(A, A)
    assert ratio_interval([*A, [], [7]], [*A, [900], []]) == ratio_interval(A, A)


def test_the_same_seed_gives_the_same_interval() -> None:
    rng = random.Random(2)
    one, two = ([[rng.gauss(100, 5) for _ in range(10)] for _ in range(20)] for _ in range(2))
    assert ratio_interval(one, two) == ratio_interval(one, two)
    assert ratio_interval(one, two) != ratio_interval(one, two, seed=1)


RUN = Path(__file__).parent.parent / "results/h200/20261129T121422Z-rcm-seed-h200"


def drawn(top: list[list[int]], bottom: list[list[int]], draws: int = 1000) -> Interval:
    """A bootstrap over the rounds of both, word for word, a draw after another."""
    top, bottom = ([*blocks] for blocks in zip(*zip(top, bottom, strict=False), strict=True))
    picks = np.random.default_rng(0).integers(0, len(top), (len(top), draws))
    ratios = sorted(
        float(np.median(np.concatenate([top[n] for n in draw])))
        / float(np.median(np.concatenate([bottom[n] for n in draw])))
        for draw in picks.T
    )
    mid = median(chain(*top)) / median(chain(*bottom))
    cut = draws // 40
    return Interval(mid, min(mid, ratios[cut]), max(mid, ratios[-1 - cut]))


def test_the_ratio_of_real_samples_is_the_bootstrap_to_the_last_bit() -> None:
    timed = [record for record in store.read(RUN) if record.timing and record.timing.blocks_ns]
    compared = 0
    for one, other in pairwise(timed):
        if one.group and one.group == other.group and compared < 6:
            top, bottom = (times.blocks_ns(each.timing) for each in (one, other) if each.timing)
            assert ratio_interval(top, bottom) == drawn(top, bottom)
            compared += 1
    assert compared == 6


@pytest.mark.parametrize("rounds", [12, 40])
def test_the_ratio_of_uneven_rounds_with_ties_is_the_bootstrap(rounds: int) -> None:
    rng = random.Random(rounds)
    top, bottom = (
        [[rng.randint(90, 99 + n) for _ in range(rng.randint(1, 9))] for n in range(rounds)]
        for _ in range(2)
    )
    assert ratio_interval(top, bottom) == drawn(top, bottom)


def test_few_rounds_draw_the_same_single_samples_as_ever() -> None:
    found = ratio_interval([[10, 12, 11], [9, 13, 10]], [[5, 6, 7], [6, 5, 4, 5]])
    assert found == Interval(mid=2.1, lo=1.5833333333333333, hi=2.4)


def test_one_round_resamples_inside_itself() -> None:
    rng = random.Random(3)
    one, two = ([[rng.gauss(100, 5) for _ in range(10)]] for _ in range(2))
    interval = ratio_interval(one, two)
    assert interval.lo < interval.mid < interval.hi


@pytest.mark.parametrize(
    ("above", "below"), [([], []), ([[1]], []), ([[0]], [[1]]), ([[1]], [[0]]), ([[]], [[1]])]
)
def test_no_ratio_without_times(above: list[list[int]], below: list[list[int]]) -> None:
    with pytest.raises(ValueError, match=r"round|medians above 0"):
        ratio_interval(above, below)


@pytest.mark.parametrize(("rounds", "drift"), [(1, 0.0), (4, 1.0), (12, 0.0), (20, 1.0)])
def test_the_ratio_interval_covers_the_true_ratio(rounds: int, drift: float) -> None:
    rng = random.Random(rounds)
    hits = 0
    for _ in range(200):
        shift = [rng.gauss(0, drift) for _ in range(rounds)]
        one, two = (
            [[scale * (100 + s + rng.expovariate(1)) for _ in range(10)] for s in shift]
            for scale in (2, 1)
        )
        interval = ratio_interval(one, two, draws=400)
        hits += interval.lo <= 2 <= interval.hi
    assert hits >= 174


def test_the_noise_floor_reaches_as_far_as_the_interval_of_the_same_code() -> None:
    rng = random.Random(4)
    one, two = ([[rng.gauss(100, 1) for _ in range(10)] for _ in range(20)] for _ in range(2))
    ratio = ratio_interval(two, one)
    assert noise_floor((one, two)) == max(ratio.hi - 1, 1 - ratio.lo)
    assert 0 < noise_floor((one, two)) < 0.01


def test_the_noise_floor_counts_a_second_run_that_differs() -> None:
    one = [[100] * 5] * 20
    assert noise_floor((one, [[103] * 5] * 20)) == pytest.approx(0.03)
    assert noise_floor((one, [[97] * 5] * 20)) == pytest.approx(0.03)


def test_the_noise_floor_is_no_finer_than_a_step_of_the_clock() -> None:
    blocks = [[3200] * 9 + [3232]] * 20
    assert noise_floor((blocks, blocks)) == pytest.approx(0.01)
    assert noise_floor(([[3200] * 10] * 20, [[3200] * 10] * 20)) == 0
