"""From observations to calls: how sure each row is, settled over the whole table at once."""

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

FALSE_SHARE = 0.05  # of the calls over the whole table that may be false
MARGIN = 1.25  # on a probability that follows from an assumption alone
GAUSSIAN = 1.96  # standard errors that 95 % lie within, of heavy tails as well
MOST_PROCESSES = 100


@dataclass(frozen=True)
class Decided:
    """Of each row: reach of its 95 % interval to either side, the probability of no change, and
    that adjusted for the number of rows."""

    reach: Floats
    p: Floats
    adjusted: Floats
    noise: Floats  # standard errors that further processes lessen
    fixed: float  # one that they do not: of the cards
    degrees: Floats

    @property
    def called(self) -> "np.typing.NDArray[np.bool_]":
        """Which rows have moved."""
        return np.asarray(self.adjusted <= FALSE_SHARE)


def decide(
    spreads: Sequence[noise.Spread],
    ends: Sequence[tuple[float, float]],
    widened: float = 1.0,
    card: float = 0.0,
) -> Decided:
    """ends: between which the logarithm of each ratio lies, noise apart. widened: by what errors
    are multiplied. card: by how much the card of each side may be off."""
    pairs = noise.errors(spreads)
    error, degrees = np.array(pairs, np.float64).reshape(-1, 2).T
    scatter, fixed = error * widened, card * math.sqrt(2)
    error = np.hypot(scatter, fixed)
    nearest = np.array([0.0 if lo <= 0 <= hi else min(abs(lo), abs(hi)) for lo, hi in ends])
    single = np.array([len(one.a) == len(one.b) == 1 for one in spreads])
    p = _chance(nearest / error, degrees, single)
    reaches = [t_reach(int(known)) if known else GAUSSIAN for known in degrees]
    return Decided(np.array(reaches) * error, p, false_discovery(p), scatter, fixed, degrees)


def _chance(sizes: Floats, degrees: Floats, single: "np.typing.NDArray[np.bool_]") -> Floats:
    """The probability of a change by chance, of one so many standard errors large.

    Of a single process a side, heavy tails are not averaged out, however well the scatter is known;
    where it is but assumed, nothing else counts.
    """
    known = np.where(degrees > 0, two_sided_p(sizes, np.maximum(degrees, 1.0)), 0.0)
    alone = np.minimum(1.0, MARGIN * assumed_p(sizes * math.sqrt(2)))
    return np.where(single, np.maximum(known, alone), known)


def more(now: int, size: float, limit: float, decided: Decided, row: int) -> int | None:
    """Further processes a side, beside `now`, until the interval of a row's change of this size
    would lie within the limit, or, of one beyond it, the change would be called, if no other row's
    chances change; None where no number that anybody runs does, as between two cards."""
    degrees = int(decided.degrees[row])
    if size > limit:  # called where p · rows / rank is small enough, next to those that are
        rank = int(decided.called.sum()) + 1
        wanted = size / _reach(degrees, FALSE_SHARE * rank / len(decided.p))
    else:
        wanted = (limit - size) / _reach(degrees, FALSE_SHARE)
    left = wanted**2 - decided.fixed**2
    if left <= 0 or not math.isfinite(float(decided.noise[row])):
        return None
    needed = math.ceil(now * float(decided.noise[row]) ** 2 / left)
    return max(needed - now, 1) if needed <= MOST_PROCESSES else None


def _reach(degrees: int, share: float) -> float:
    """Standard errors that all but so large a share lies within, once several processes tell."""
    return t_reach(degrees or noise.ASSUMED_RUNS, share)
