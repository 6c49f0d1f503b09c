"""How fast jobs come in; and syncs that are grouped where they come faster than 1,000 a minute."""

import threading
from collections.abc import Callable, Hashable, Iterable

FAST = 1_000  # jobs a minute above which syncs are grouped
MOST_MS = 100  # that a record then waits for its sync
_BEGIN_S = 0.05  # after which the sync begins, since it takes its own time
_MINUTE_S = 60.0
Clock = Callable[[], float]


class Pace:
    """Whether more than `FAST` jobs had records within a minute. Knows that many jobs at most."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last: dict[Hashable, float] = {}  # when a job last had records, the oldest first

    def fast(self, jobs: Iterable[Hashable]) -> bool:
        """Whether it is so, now that these have some."""
        now = self._clock()
        for job in jobs:
            self._last.pop(job, None)
            self._last[job] = now
        while len(self._last) > FAST + 1:
            del self._last[next(iter(self._last))]
        return len(self._last) > FAST and now - next(iter(self._last.values())) < _MINUTE_S


class Grouped:
    """Calls `sync` 50 ms after the first record that waits for it: whoever comes by then does, or
    else a thread of its own. All but `end` is for those who hold the lock.

    waited_s: the longest that a record waited until it was synced.
    """

    def __init__(self, sync: Callable[[], None], lock: threading.RLock, clock: Clock) -> None:
        self._sync, self._clock = sync, clock
        self._changed = threading.Condition(lock)
        self._since: float | None = None  # when the first of what waits was written
        self._thread: threading.Thread | None = None
        self._ended = False
        self.waited_s = 0.0

    def later(self) -> None:
        """What was just written may wait."""
        if self._since is None:
            self._since = self._clock()
            self._changed.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="sync", daemon=True)
            self._thread.start()
        self._if_due()

    def now(self) -> None:
        """Sync what was just written, and what waits."""
        self._sync()
        if self._since is not None:
            self.waited_s = max(self.waited_s, self._clock() - self._since)
            self._since = None

    def flush(self) -> None:
        """Sync what waits, if anything does."""
        if self._since is not None:
            self.now()

    def end(self) -> None:
        """Sync what waits and let the thread go, which needs the lock for it."""
        with self._changed:
            self.flush()
            self._ended = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _if_due(self) -> float | None:
        """Sync if it is time; else the seconds until then, None where nothing waits."""
        if self._since is None:
            return None
        left = self._since + _BEGIN_S - self._clock()
        if left > 0:
            return left
        self.now()
        return None

    def _watch(self) -> None:
        with self._changed:
            while not self._ended:
                self._changed.wait(self._if_due())
