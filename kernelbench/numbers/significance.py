"""What is beyond chance: Student's t, false discoveries in a table, changes of level."""

from bisect import insort
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from math import erfc, inf, lgamma, log, pi, sqrt
from statistics import median

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FARTHEST = 4.0  # standard deviations; a value of a series that lies farther off counts as this far


def two_sided_p(t: Floats, degrees: Floats) -> Floats:
    """The probability that |T| ≥ |t|, for Student's T with `degrees` degrees of freedom."""
    t, degrees = np.broadcast_arrays(np.asarray(t, np.float64), np.asarray(degrees, np.float64))
    near = degrees / (degrees + t * t)
    return _beta_share(degrees / 2, np.full(t.shape, 0.5), near)


def assumed_p(sizes: Floats) -> Floats:
    """The probability that two values lie `sizes` of their standard deviations apart by chance.

    The larger of two: for Gaussian values, and for values with heavy tails, which follow Student's
    t with 3 degrees of freedom and unit variance. With a = √3, b = 2a, x = a·size and
    D = b² + x², the difference of two heavy-tailed values lies beyond ± x with probability
    1 − 2/π · (atan(x/b) + 2a·x/D + 2a²·b·x/D²), from the characteristic function
    (1 + a|s|)² e^(−b|s|).
    """
    sizes = np.asarray(sizes, np.float64)
    a = sqrt(3)
    b, x = 2 * a, a * sizes
    d = b * b + x * x
    heavy = 1 - 2 / pi * (np.arctan(x / b) + 2 * a * x / d + 2 * a * a * b * x / (d * d))
    gaussian = np.array([erfc(size / 2) for size in np.ravel(sizes)]).reshape(sizes.shape)
    return np.asarray(np.clip(np.maximum(heavy, gaussian), 0.0, 1.0))


def _beta_share(a: Floats, b: Floats, x: Floats) -> Floats:
    """The regularised incomplete beta function I_x(a, b), by its continued fraction (Lentz)."""
    swap = x > (a + 1) / (a + b + 2)
    p, q, y = np.where(swap, b, a), np.where(swap, a, b), np.where(swap, 1 - x, x)
    c, d = np.ones(y.shape), 1 / (1 - (p + q) * y / (p + 1))
    share = d
    for m in range(1, 100):
        for term in (
            m * (q - m) * y / ((p + 2 * m - 1) * (p + 2 * m)),
            -(p + m) * (p + q + m) * y / ((p + 2 * m) * (p + 2 * m + 1)),
        ):
            d, c = 1 / (1 + term * d), 1 + term / c
            share = share * d * c
    sizes = [lgamma(u + v) - lgamma(u) - lgamma(v) for u, v in zip(p.flat, q.flat, strict=True)]
    with np.errstate(divide="ignore"):
        front = np.exp(np.reshape(sizes, y.shape) + p * np.log(y) + q * np.log1p(-y)) / p
    return np.asarray(np.where(swap, 1 - front * share, front * share))


@cache
def t_reach(degrees: int, share: float = 0.05) -> float:
    """The x with P(|t| > x) = `share`, for Student's t with `degrees` degrees of freedom."""
    lo, hi = 0.0, 13.0
    while float(two_sided_p(np.array(hi), np.array(float(degrees)))) > share:
        lo, hi = hi, 2 * hi
    for _ in range(50):
        mid = (lo + hi) / 2
        beyond = float(two_sided_p(np.array(mid), np.array(float(degrees))))
        lo, hi = (mid, hi) if beyond > share else (lo, mid)
    return hi


def false_discovery(p: Floats) -> Floats:
    """Benjamini and Hochberg's adjusted p of every row.

    Calling a change wherever it is ≤ q keeps the expected share of false calls among all calls of
    the table ≤ q.
    """
    order = np.argsort(p)[::-1]
    ranks = np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, np.minimum.accumulate(p[order] * len(p) / ranks))
    return adjusted


def change_points(
    values: Sequence[float], error: float, least: float, *, series: int = 1
) -> list[int]:
    """Where a new level begins, as indices into `values`; a level has at least two of them.

    Finds exactly the partition into levels with the least Σ min(distance from the level's median,
    4 · error)² / error² plus 3 · ln(n) + 2 · ln(series) a level; then removes steps smaller than
    `least`, the smallest first. A single outlier costs less than the two extra levels around it,
    however far off it is.

    error: standard deviation of a value about its level, above 0. series: the number of series
    that are searched at once, any of which may look changed by chance.
    """
    n = len(values)
    level_cost = 3 * log(n) + 2 * log(series) if n else 0.0
    costs = _costs([value / error for value in values])
    best, cut = [0.0, inf], [0, 0]
    for end in range(2, n + 1):
        totals = [best[start] + costs[start][end] + level_cost for start in range(end - 1)]
        cut.append(min(range(end - 1), key=totals.__getitem__))
        best.append(totals[cut[end]])
    starts, end = list[int](), n
    while n > 1 and (end := cut[end]):
        starts.insert(0, end)
    while starts:
        edges = [0, *starts, n]
        levels = [median(values[a:b]) for a, b in pairwise(edges)]
        steps = [abs(b - a) for a, b in pairwise(levels)]
        if min(steps) >= least:
            break
        del starts[steps.index(min(steps))]
    return starts


def _costs(values: Sequence[float]) -> list[list[float]]:
    """Σ min(distance from the median, FARTHEST)² of each part of `values`, as [start][end].

    values: in standard deviations.
    """
    costs = []
    for start in range(len(values)):
        ordered, row = list[float](), [0.0] * (len(values) + 1)
        for end in range(start, len(values)):
            insort(ordered, values[end])
            part, half = np.asarray(ordered), len(ordered) // 2
            middle = (ordered[half] + ordered[~half]) / 2
            row[end + 1] = float(np.minimum(np.square(part - middle), FARTHEST**2).sum())
        costs.append(row)
    return costs
