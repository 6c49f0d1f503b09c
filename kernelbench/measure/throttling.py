"""The state of the card in which samples are taken: that of the call itself, not its neighbour's.

Under its power or thermal limit a card runs each call at another clock, and takes some tens of
milliseconds to find it. A block of samples then begins with calls that are no samples.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from kernelbench.measure.sampling import Batch, Part, Sampled, sample
from kernelbench.measure.session import Clock
from kernelbench.measure.telemetry import Telemetry
from kernelbench.spec import Measure

LEAD_NS = 100_000_000  # how long a call runs before its samples, on a card that is slowed


class Steady:
    """A clock that looks at the card after each block, and has blocks led once it is slowed."""

    def __init__(self, clock: Clock, telemetry: Telemetry) -> None:
        self._clock, self._telemetry = clock, telemetry
        self._slowed = False

    def batch(self, part: Any, n: int) -> Batch:
        batch = self._clock.batch(part, n)
        mhz, slowed = self._telemetry.clock()
        self._slowed = self._slowed or slowed
        return replace(batch, mhz=mhz)

    def sample(self, parts: Sequence[Part], settings: Measure, **options: Any) -> list[Sampled]:
        """`sampling.sample`; from its beginning again, with led blocks, once the card is slowed."""
        take = partial(sample, parts, self, settings, after_round=self._look, **options)
        try:
            return take()
        except _SlowedError:
            self._clock.lead_ns = LEAD_NS
            for lot in filter(None, (getattr(part, "lot", None) for part in parts)):
                lot.timed = 0  # the samples among which calls were judged are dropped
            return take()
        finally:
            if self._slowed:
                self._clock.lead_ns = 0

    def _look(self) -> None:
        self._telemetry.sample()
        if self._slowed and not self._clock.lead_ns:
            raise _SlowedError


class _SlowedError(Exception):
    """What was sampled so far was sampled in the state that a neighbour had left."""
