"""Print what a wait of more than two seconds is for: one line, on stderr."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

AFTER = 1.5  # s
Say = Callable[[str], object]


class Slow:
    """The current step; a thread prints it once it has lasted for AFTER. say: None to be silent."""

    def __init__(self, say: Say | None) -> None:
        self._say = say
        self._now = ""
        self._next = threading.Event()
        self._over = False
        if say is not None:
            threading.Thread(target=self._watch, daemon=True).start()

    def begin(self, what: str) -> None:
        """Begin another step; `` ends the current one."""
        if what != self._now:
            self._now = what
            self._next.set()

    def end(self) -> None:
        self._over = True
        self.begin("")
        self._next.set()

    def _watch(self) -> None:
        while not self._over:
            self._next.clear()
            what = self._now
            if not self._next.wait(AFTER) and what:
                if self._say is not None:
                    with suppress(OSError):  # nobody reads: the next print raises
                        self._say(what)
                self._next.wait()


@contextmanager
def waiting(what: str, say: Say | None) -> Iterator[None]:
    """Print `what` once where the block takes longer than AFTER."""
    slow = Slow(say)
    slow.begin(f"{what} …")
    try:
        yield
    finally:
        slow.end()
