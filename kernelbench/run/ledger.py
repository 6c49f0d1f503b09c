"""Where the wall time of a run goes: seconds by who was at work, and on what."""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

HARNESS = "harness"  # the parent's own work: whatever no worker is waited for

_COUNT = re.compile(r" \d+/\d+$")


class Ledger:
    """Charges every moment since it was opened to whoever was entered last, at first to HARNESS.

    clock: seconds, which never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._spent: dict[tuple[str, str], float] = {}
        self._current, self._since = ("", HARNESS), clock()

    def enter(self, provider: str, phase: str) -> None:
        """From now on time is theirs. A phase that counts, `tune 3/40`, is charged to `tune`."""
        now = self._clock()
        before = self._spent.get(self._current, 0.0)
        self._spent[self._current] = before + now - self._since
        self._current, self._since = (provider, _COUNT.sub("", phase)), now

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """A block that begins in a phase; what follows it is charged as what went before."""
        before = self._current
        self.enter("", phase)
        try:
            yield
        finally:
            self.enter(*before)

    def spent(self) -> dict[tuple[str, str], float]:
        """Seconds up to now by (provider, phase); "" for what is no provider's."""
        self.enter(*self._current)
        return dict(self._spent)

    def phases(self) -> dict[str, float]:
        """Seconds up to now by phase. Their sum is the time since the ledger was opened."""
        seconds_of: dict[str, float] = {}
        for (_, phase), seconds in self.spent().items():
            seconds_of[phase] = seconds_of.get(phase, 0.0) + seconds
        return seconds_of


def added(before: Mapping[str, float], now: Mapping[str, float]) -> dict[str, float]:
    """Seconds by phase of two sessions together, rounded to 0.01."""
    phases = {**before, **now}
    return {name: round(before.get(name, 0.0) + now.get(name, 0.0), 2) for name in phases}
