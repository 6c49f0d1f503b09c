"""Sampling on a card that is slowed, in the state of the call itself and not of its neighbour.

Under its power or thermal limit a card runs each call at a different clock, and needs some tens of
milliseconds to settle at it. A block of samples then begins with calls that are no samples.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from kernelbench.measure.sampling import Batch, Part, PartSamples, sample
from kernelbench.measure.session import Clock
from kernelbench.measure.team import Alone, Team
from kernelbench.measure.telemetry import Telemetry
from kernelbench.spec import Measure

LEAD_NS = 100_000_000  # for which a call runs before its samples, on a card that is slowed


class SteadyClock:
    """A clock that reads the card's state after each block, and leads blocks if it is slowed."""

    def __init__(self, clock: Clock, telemetry: Telemetry, team: Team | None = None) -> None:
        self._clock, self._telemetry, self._team = clock, telemetry, team or Alone()
        self._slowed = False

    def batch(self, part: Any, n: int) -> Batch:
        """A batch of the clock, with the SM clock right after it."""
        batch = self._clock.batch(part, n)
        mhz, slowed = self._telemetry.clock()
        self._slowed = self._slowed or any(self._team.gather(slowed))
        return replace(batch, mhz=mhz)

    def sample(self, parts: Sequence[Part], settings: Measure, **options: Any) -> list[PartSamples]:
        """`sampling.sample`; it starts again, with leading calls, once the card is slowed."""
        take = partial(sample, parts, self, settings, after_round=self._check_card, **options)
        try:
            return take()
        except _SlowedError:
            self._clock.lead_ns = LEAD_NS
            for lot in filter(None, (getattr(part, "lot", None) for part in parts)):
                lot.timed = 0  # the samples that were judged are dropped
            return take()
        finally:
            if self._slowed:
                self._clock.lead_ns = 0

    def _check_card(self) -> None:
        self._telemetry.sample()
        if self._slowed and not self._clock.lead_ns:
            raise _SlowedError


class _SlowedError(Exception):
    """The samples so far were taken in the state that a neighbour had left."""
