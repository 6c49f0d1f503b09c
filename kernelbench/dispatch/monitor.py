"""Choices that are measured again while they are in use."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

from kernelbench.dispatch.table import Entry, Option

# Case, provider, speedup, and what makes the case's entry now, None where it cannot.
Decided = tuple[str, str, float | None, Callable[[], Entry | None]]
SAME = 1.03  # the same speedup, if its interval reaches so near


@dataclass(frozen=True)
class Look:
    """A choice when it was made, and measured again.

    case, provider: what was chosen, and for what. best: what would be chosen now. before, now: its
    speedups against the baseline; `before` is None where it was not measured, `now` where it is
    no longer to be used: wrong, failed, gone.
    """

    case: str
    provider: str
    best: str
    before: float | None
    now: Option | None

    @property
    def drifted(self) -> bool:
        """Whether another would be chosen, or the interval of its speedup has left what it was, by
        more than 3 %."""
        if self.best != self.provider or self.now is None:
            return True
        return self.before is not None and not (
            self.now.lo / SAME <= self.before <= self.now.hi * SAME
        )

    def __str__(self) -> str:
        was = "chosen unmeasured" if self.before is None else f"{self.before:.2f} × the baseline"
        is_now = "not to be used"
        if self.now is not None:
            is_now = f"{self.now.speedup:.2f} × [{self.now.lo:.2f}, {self.now.hi:.2f}]"
        other = "" if self.best == self.provider else f"; {self.best} would be chosen"
        return f"{self.case}: {self.provider} was {was}, and is {is_now} now{other}"


class Monitor:
    """Measures one decision again after every so many steps, in a thread, one at a time, and says
    which have drifted. What was decided stays.

    decided: all that was decided.
    """

    def __init__(
        self,
        decided: Callable[[], list[Decided]],
        every: int,
        say: Callable[[str], None],
    ) -> None:
        if every < 1:
            raise ValueError(f"every is a number of steps, 1 or more, got {every}")
        self.looks: list[Look] = []
        self._decided, self._every, self._say = decided, every, say
        self._steps = self._next = 0
        self._thread: threading.Thread | None = None

    def step(self) -> None:
        """Count a step; what it begins to measure is not waited for."""
        self._steps += 1
        if self._steps % self._every or (self._thread is not None and self._thread.is_alive()):
            return
        self._thread = threading.Thread(target=self._look, name="kernelbench-monitor", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until what is being measured is."""
        if self._thread is not None:
            self._thread.join()

    def _look(self) -> None:
        decided = self._decided()
        if not decided:
            return
        case, provider, before, measure = decided[self._next % len(decided)]
        self._next += 1
        entry = measure()
        if entry is None:
            return
        now = next((option for option in entry.options if option.provider == provider), None)
        look = Look(case, provider, entry.choice, before, now)
        self.looks.append(look)
        if look.drifted:
            self._say(str(look))
