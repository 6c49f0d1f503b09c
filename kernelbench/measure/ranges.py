"""Named ranges for a profiler that looks on: which call, which flush, which warm-up it sees."""

from typing import Protocol


class Ranges(Protocol):
    """Opened and closed on one thread, innermost first; never inside what is timed."""

    def call(self, provider: str) -> None:
        """Open the range of one measured call."""

    def open(self, name: str) -> None:
        """Open the range of something besides: `flush`, `warmup`."""

    def close(self) -> None:
        """Close what was opened last."""


class Unseen:
    """Nobody looks on: some 50 ns a call."""

    def call(self, provider: str) -> None:
        pass

    def open(self, name: str) -> None:
        pass

    def close(self) -> None:
        pass
