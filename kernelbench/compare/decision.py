"""From observations to decisions: how sure each row is, computed over the whole table at once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kernelbench.compare import noise
from kernelbench.numbers.significance import (
    Floats,
    assumed_p,
    false_discovery,
    t_reach,
    two_sided_p,
)

FALSE_SHARE = 0.05  # of the moves called in the whole table that may be false
MARGIN = 1.25  # factor on a probability that follows from an assumption alone
GAUSSIAN = 1.96  # standard errors that 95 % lie within, of heavy tails as well
MOST_PROCESSES = 100


@dataclass(frozen=True)
class Decided:
    """Of each row: reach of its 95 % interval to either side, the probability of no change, and
    that adjusted for the number of rows."""

    reach: Floats
    p: Floats
    adjusted: Floats
    noise: Floats  # standard errors that more processes reduce
    fixed: float  # standard error that they do not: of the cards
    degrees: Floats

    @property
    def moved(self) -> "np.typing.NDArray[np.bool_]":
        """Which rows have moved."""
        return np.asarray(self.adjusted <= FALSE_SHARE)


def decide(
    spreads: Sequence[noise.Spread],
    ends: Sequence[tuple[float, float]],
    widened: float = 1.0,
    card: float = 0.0,
) -> Decided:
    """ends: between which the logarithm of each ratio lies, without noise. widened: factor on the
    errors. card: standard deviation of each side's card."""
    pairs = noise.errors(spreads)
    error, degrees = np.array(pairs, np.float64).reshape(-1, 2).T
    scatter, fixed = error * widened, card * math.sqrt(2)
    error = np.hypot(scatter, fixed)
    nearest = np.array([0.0 if lo <= 0 <= hi else min(abs(lo), abs(hi)) for lo, hi in ends])
    single = np.array([len(spread.a) == len(spread.b) == 1 for spread in spreads])
    p = _chance(nearest / error, degrees, single)
    reaches = [t_reach(int(count)) if count else GAUSSIAN for count in degrees]
    return Decided(np.array(reaches) * error, p, false_discovery(p), scatter, fixed, degrees)


def _chance(sizes: Floats, degrees: Floats, single: "np.typing.NDArray[np.bool_]") -> Floats:
    """The probability that chance alone makes a change of this many standard errors.

    single: one process a side, whose heavy tails are not averaged out, however well the scatter is
    known; where the scatter is assumed, only this counts.
    """
    measured = np.where(degrees > 0, two_sided_p(sizes, np.maximum(degrees, 1.0)), 0.0)
    assumed = np.minimum(1.0, MARGIN * assumed_p(sizes * math.sqrt(2)))
    return np.where(single, np.maximum(measured, assumed), measured)


def more(now: int, size: float, limit: float, decided: Decided, row: int) -> int | None:
    """More processes a side, beside the `now` there are, that would decide a row's change of this
    size: its interval would lie within the limit, or, beyond the limit, the change would be called.
    Assumes that no other row changes. None above MOST_PROCESSES, as between two cards."""
    degrees = int(decided.degrees[row])
    if size > limit:  # called where p · rows / rank is small enough, next to those that are
        rank = int(decided.moved.sum()) + 1
        target_error = size / _reach(degrees, FALSE_SHARE * rank / len(decided.p))
    else:
        target_error = (limit - size) / _reach(degrees, FALSE_SHARE)
    variance = target_error**2 - decided.fixed**2
    if variance <= 0 or not math.isfinite(float(decided.noise[row])):
        return None
    processes = math.ceil(now * float(decided.noise[row]) ** 2 / variance)
    return max(processes - now, 1) if processes <= MOST_PROCESSES else None


def _reach(degrees: int, share: float) -> float:
    """Standard errors within which all but that share lies, of several processes."""
    return t_reach(degrees or noise.ASSUMED_RUNS, share)
