"""This machine's own measured limits, and what a pair of events adds to a kernel's time.

Measured with the clock that times the providers, at the start of a run: copy, read and write
bandwidth over a range of footprints with a cold L2, and the rate of large matmuls per precision.
"""

import bisect
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any

import torch

from kernelbench.measure.flush import ROUND
from kernelbench.measure.probes import (
    PRECISIONS,
    Probe,
    matmul,
    set_precision,
    small_copy,
    stream,
)
from kernelbench.measure.timer import CudaClock
from kernelbench.numbers.limits import fastest_plausible_ns
from kernelbench.spec import (
    Case,
    Cost,
    Device,
    Distribution,
    DType,
    KernelbenchError,
    Provider,
    Timing,
)

FOOTPRINTS = tuple(1 << shift for shift in (14, 17, 20, 22, 24, 25, 26, 27, 28, 30, 31))
MATMULS = (4096, 6144, 8192)
# Bytes of the copies that calibrate the event overhead: small and large, all memory-bound.
CALIBRATE = (1 << 16, 1 << 20, 1 << 24, 1 << 26)


Points = tuple[tuple[int, float], ...]  # (footprint in bytes, time in ns), ascending


@dataclass(frozen=True)
class Overhead:
    """ns that an event pair reads above a kernel's own time; traced_ns: while CUPTI traces."""

    ns: int
    traced_ns: int
    note: str


@dataclass(frozen=True)
class Ceilings:
    """The limits of one machine.

    bandwidth: for copy, read and write, (footprint in bytes, time in ns) pairs, ascending. tflops:
    TFLOP/s by precision. missing: why a precision has no rate.
    """

    bandwidth: Mapping[str, Points] = field(default_factory=dict)
    tflops: Mapping[str, float] = field(default_factory=dict)
    overhead: Overhead = Overhead(0, 0, "")
    missing: Mapping[str, str] = field(default_factory=dict)

    def at(self, cost: Cost, precision: Mapping[str, float]) -> dict[str, float]:
        """The limits for a call: bandwidths in GB/s at its footprint, TFLOP/s of its precision.

        precision: the share of its flops by precision.
        """
        rates = {
            f"{kind}_gbps": _rate(points, max(cost.bytes, 1))
            for kind, points in self.bandwidth.items()
        }
        if "read" in self.bandwidth:
            rates["peak_read_gbps"] = max(
                size / ns for kind in ("read", "copy") for size, ns in self.bandwidth.get(kind, ())
            )
        if precision and all(name in self.tflops for name in precision):
            # Times add up: a mix runs at the weighted harmonic mean of its rates.
            rates["tflops"] = 1 / sum(share / self.tflops[n] for n, share in precision.items())
        return {name: round(rate, 2) for name, rate in rates.items()}

    def of(self, case: Case, provider: Provider[Any], cost: Cost) -> dict[str, float]:
        """The limits for a provider, as far as they were measured on such data."""
        limits = self.at(cost, dict(provider.precision) or {case.dtype.value: 1.0})
        if case.inputs in (Distribution.zeros, Distribution.ones):
            limits.pop("tflops", None)  # constant bits need less power, so the clock is higher
        return limits

    def as_json(self) -> dict[str, Any]:
        return {
            "bandwidth": {k: [list(p) for p in v] for k, v in self.bandwidth.items()},
            "tflops": dict(self.tflops),
            "overhead": asdict(self.overhead),
            "missing": dict(self.missing),
        }

    @staticmethod
    def from_json(facts: Mapping[str, Any]) -> "Ceilings":
        return Ceilings(
            bandwidth={
                k: tuple((int(s), ns) for s, ns in v) for k, v in facts["bandwidth"].items()
            },
            tflops=facts["tflops"],
            overhead=Overhead(**facts["overhead"]),
            missing=facts.get("missing", {}),
        )


def _rate(points: Points, size: int) -> float:
    """GB/s at a footprint of `size` bytes."""
    return size / _time(points, size)


def _time(points: Points, size: int) -> float:
    """ns for a footprint: linear between the measured ones, beyond the last at its rate."""
    sizes = [s for s, _ in points]
    if size <= sizes[0]:
        return points[0][1]
    if size >= sizes[-1]:
        return points[-1][1] * size / sizes[-1]
    i = bisect.bisect_left(sizes, size)
    (s0, t0), (s1, t1) = points[i - 1], points[i]
    return t0 + (t1 - t0) * (size - s0) / (s1 - s0)


def tighten(bandwidth: Mapping[str, Points]) -> dict[str, Points]:
    """Lower times that others show to be too long, so that a slow probe makes no low ceiling.

    A smaller footprint takes no longer than a larger one; reading n bytes, or writing them, takes
    no longer than copying n bytes, which moves 2n.
    """
    copy = _monotone(bandwidth["copy"])
    tight = {"copy": copy}
    for kind in ("read", "write"):
        points = tuple((size, min(ns, _time(copy, 2 * size))) for size, ns in bandwidth[kind])
        tight[kind] = _monotone(points)
    return tight


def _monotone(points: Points) -> Points:
    """No time is longer than that of a larger footprint."""
    least, lowered = math.inf, []
    for size, ns in reversed(points):
        least = min(least, ns)
        lowered.append((size, least))
    return tuple(reversed(lowered))


def too_fast(timing: Timing, cost: Cost, limits: Mapping[str, float]) -> str:
    """Why a time is impossible on this machine, or "". Only times that count are judged."""
    if not timing.counts:
        return ""
    ns = median(ns for block in timing.blocks_ns for ns in block) - timing.overhead_ns
    least = fastest_plausible_ns(cost.read, cost.flops, limits)
    idle = not (cost.read or cost.flops)  # an empty kernel may take less than the overhead
    if idle or ns >= least:
        return ""
    return (
        f"{ns / 1e3:.2f} µs, but this machine's own limits allow no less than "
        f"{least / 1e3:.2f} µs for {cost.read} bytes read and {cost.flops} flops"
    )


def calibrate(clock: CudaClock) -> Overhead:
    """Measure the event pair's overhead with bare copies whose kernel time CUPTI reads.

    The smallest difference of several memory-bound kernels, so that a corrected time is never too
    short. Without CUPTI: what an empty pair reads, and the reason in `note`.
    """
    probes = [small_copy(size) for size in CALIBRATE]
    try:
        spans = {name: s for name, s in clock.kernel_ns(probes, 4 * ROUND).items() if s.ns}
    except RuntimeError as error:
        spans, note = {}, f"an empty event pair: no CUPTI ({error})"
    else:
        note = "event time minus CUPTI span" if spans else "an empty event pair: CUPTI saw nothing"
    if not spans:
        empty = int(median(clock.batch(Probe("empty", lambda: None), 2 * ROUND).samples_ns))
        return Overhead(empty, empty, note)
    kernels = {name: median(s.ns) for name, s in spans.items()}
    untraced = [_ns(clock, p, 16 * ROUND) - kernels[p.name] for p in probes if p.name in kernels]
    traced = [median(s.event_ns) - kernels[name] for name, s in spans.items()]
    return Overhead(max(0, int(min(untraced))), max(0, int(min(traced))), note)


def measure(clock: CudaClock, device: Device) -> Ceilings:
    """Measure the machine's limits, which takes a few seconds, and set the clock's overhead."""
    clock.overhead_ns = 0
    clock.overhead_ns = (overhead := calibrate(clock)).ns
    largest = min(FOOTPRINTS[-1], device.total_bytes // 8)
    bandwidth = {
        kind: tuple(
            (size, max(_best_ns(clock, kind, size, device), 1.0))
            for size in FOOTPRINTS
            if size <= largest
        )
        for kind in ("copy", "read", "write")
    }
    tflops, missing = _rates(clock, device)
    torch.cuda.empty_cache()
    return Ceilings(tighten(bandwidth), tflops, overhead, missing)


def recalibrated(clock: CudaClock, known: Ceilings) -> Ceilings:
    """Limits that another process measured on this machine, with this process's overhead."""
    clock.overhead_ns = 0
    overhead = calibrate(clock)
    clock.overhead_ns = overhead.ns
    return replace(known, overhead=overhead)


def _best_ns(clock: CudaClock, kind: str, size: int, device: Device) -> float:
    """The time in ns of the fastest way to move these bytes."""
    return min(_ns(clock, probe) for probe in stream(kind, size, device))


def _ns(clock: CudaClock, probe: Probe, n: int = 2 * ROUND) -> float:
    """Median ns of n calls. Raises KernelbenchError where not even a bare call can be gated."""
    clock.batch(probe, 3)
    batch = clock.batch(probe, n)
    if not batch.held:
        raise KernelbenchError(
            f"the gate did not hold for {probe.name}: this machine's CPU is too busy to measure"
        )
    return median(batch.samples_ns) - clock.overhead_ns


def _rates(clock: CudaClock, device: Device) -> tuple[dict[str, float], dict[str, str]]:
    """(TFLOP/s by precision, the best of a few sizes; why a precision has none)."""
    rates, missing = {}, {}
    for name in PRECISIONS:
        if name == "fp8" and (device.capability or (0, 0)) < (8, 9):
            missing[name] = f"{device.arch} has no fp8 matmul"
            continue
        try:
            best = max(2 * n**3 / _ns(clock, matmul(name, n), ROUND) for n in MATMULS)
        except RuntimeError as error:
            missing[name] = str(error).splitlines()[0]
        else:
            rates[name] = round(best / 1e3, 1)
    set_precision(DType.fp32)
    return rates, missing
