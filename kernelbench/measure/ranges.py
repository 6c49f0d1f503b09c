"""Named ranges for an attached profiler: calls, flushes and warm-ups."""

from typing import Protocol


class Ranges(Protocol):
    """Opened and closed on one thread, innermost first; never inside what is timed."""

    def call(self, provider: str) -> None:
        """Open the range of one measured call."""

    def open(self, name: str) -> None:
        """Open another range: `flush`, `warmup`."""

    def close(self) -> None:
        """Close the range that was opened last."""


class NoRanges:
    """Opens no range, where no profiler is attached; costs some 50 ns a call."""

    def call(self, provider: str) -> None:
        pass

    def open(self, name: str) -> None:
        pass

    def close(self) -> None:
        pass
