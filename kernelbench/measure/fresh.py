"""Is a provider as fast on inputs that it has not seen? One that skips repeated work is not."""

from statistics import median

from kernelbench.spec import Timing

DRAWS = 5
FACTOR, MORE_NS = 1.25, 1_000  # a single sample on fresh inputs may take this much longer


def seen_before(timing: Timing) -> str:
    """Why a time holds only for inputs seen before, or nothing. Only gated times are judged."""
    if timing.timer != "gated" or not timing.fresh_ns:
        return ""
    repeated = median(ns for block in timing.blocks_ns for ns in block) - timing.overhead_ns
    fresh = median(timing.fresh_ns) - timing.overhead_ns
    if fresh <= FACTOR * repeated + MORE_NS:
        return ""
    return (
        f"{repeated / 1e3:.2f} µs while its inputs repeat, but {fresh / 1e3:.2f} µs on inputs "
        "that it has not seen before"
    )
