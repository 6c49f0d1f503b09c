"""From the raw samples of a record to times: what the clocks add is taken off here, once."""

from itertools import chain
from statistics import median, quantiles
from typing import Any

from kernelbench.spec import Timing
from kernelbench.statistics import median_interval


def blocks_ns(timing: Timing) -> list[list[int]]:
    """The samples in ns less what the event pair adds, block by block; not below 0."""
    return _corrected(timing.blocks_ns, timing.overhead_ns)


def again_ns(timing: Timing) -> list[list[int]]:
    """The baseline's second run of every round, likewise."""
    return _corrected(timing.again_ns, timing.overhead_ns)


def _corrected(blocks: tuple[tuple[int, ...], ...], overhead: int) -> list[list[int]]:
    return [[max(sample - overhead, 0) for sample in block] for block in blocks]


def kernel_ns(timing: Timing) -> float | None:
    """The median CUPTI span in ns, less what CUPTI slowed the call by.

    It widens gaps between kernels, and makes some of very many small blocks slower. By how much,
    event pairs around the traced calls tell, beside those around untraced ones.
    """
    if not timing.kernel_ns:
        return None
    span = median(timing.kernel_ns)
    samples = list(chain(*timing.blocks_ns))
    if not (timing.kernel_event_ns and samples):
        return span
    traced = median(timing.kernel_event_ns) - timing.traced_overhead_ns
    return max(0.0, span - max(0.0, traced - (median(samples) - timing.overhead_ns)))


def columns(timing: Timing) -> dict[str, Any]:
    """Times in µs: the gated ones corrected, the others as their clocks gave them."""
    found: dict[str, Any] = {"timer": timing.timer}
    for name in ("host", "graph"):
        samples = getattr(timing, f"{name}_ns")
        found[f"{name}_us"] = median(samples) / 1e3 if samples else None
    span = kernel_ns(timing)
    found["kernel_us"] = None if span is None else span / 1e3
    flat = list(chain(*blocks_ns(timing)))
    if not flat:
        return found
    mid = median_interval(flat)
    twentieths = quantiles(flat, n=20, method="inclusive") if len(flat) > 1 else flat * 19
    q20, q25, q75, q80 = (twentieths[i] for i in (3, 4, 14, 15))
    return {
        **found,
        "samples": len(flat),
        "median_us": mid.mid / 1e3,
        "lo_us": mid.lo / 1e3,
        "hi_us": mid.hi / 1e3,
        "p20_us": q20 / 1e3,
        "p80_us": q80 / 1e3,
        "iqr_pct": (q75 - q25) / mid.mid * 100 if mid.mid else None,
    }
