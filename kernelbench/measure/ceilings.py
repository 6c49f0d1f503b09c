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
# Kernels by which event overhead is calibrated: small and large, all bound by memory.
CALIBRATE = (1 << 16, 1 << 20, 1 << 24, 1 << 26)


Points = tuple[tuple[int, float], ...]  # (footprint in bytes, time in ns), ascending


@dataclass(frozen=True)
class Overhead:
    """ns that an event pair reads more than a kernel runs; traced_ns: while CUPTI looks on."""

    ns: int
    traced_ns: int
    note: str


@dataclass(frozen=True)
class Ceilings:
    """bandwidth: for copy, read and write, (footprint bytes, time in ns) pairs; tflops by dtype."""

    bandwidth: Mapping[str, Points] = field(default_factory=dict)
    tflops: Mapping[str, float] = field(default_factory=dict)
    overhead: Overhead = Overhead(0, 0, "")
    missing: Mapping[str, str] = field(default_factory=dict)  # why a precision has no rate

    def at(self, cost: Cost, precision: Mapping[str, float]) -> dict[str, float]:
        """The limits that hold for a call: bandwidths at its footprint, its precision's rate."""
        rates = {
            f"{kind}_gbps": _rate(points, max(cost.bytes, 1))
            for kind, points in self.bandwidth.items()
        }
        if "read" in self.bandwidth:
            rates["peak_read_gbps"] = max(
                size / ns for kind in ("read", "copy") for size, ns in self.bandwidth.get(kind, ())
            )
        if precision and all(name in self.tflops for name in precision):
            # time shares add up: a mix runs at the harmonic mean of its rates
            rates["tflops"] = 1 / sum(share / self.tflops[n] for n, share in precision.items())
        return {name: round(rate, 2) for name, rate in rates.items()}

    def of(self, case: Case, provider: Provider[Any], cost: Cost) -> dict[str, float]:
        """The limits that hold for a provider, as far as they were measured on such data."""
        limits = self.at(cost, dict(provider.precision) or {case.dtype.value: 1.0})
        if case.inputs in (Distribution.zeros, Distribution.ones):
            limits.pop("tflops", None)  # idle bits leave power for a higher clock
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
    """GB/s at a footprint."""
    return size / _time(points, size)


def _time(points: Points, size: int) -> float:
    """ns for a footprint: linear in bytes between measured ones, beyond the last at its rate."""
    sizes = [s for s, _ in points]
    if size <= sizes[0]:
        return points[0][1]
    if size >= sizes[-1]:
        return points[-1][1] * size / sizes[-1]
    i = bisect.bisect_left(sizes, size)
    (s0, t0), (s1, t1) = points[i - 1], points[i]
    return t0 + (t1 - t0) * (size - s0) / (s1 - s0)


def tightened(bandwidth: Mapping[str, Points]) -> dict[str, Points]:
    """What the measured times imply of each other, so that a slow probe is no low ceiling.

    A smaller footprint takes no longer than a larger one; reading n bytes, or writing them, takes
    no longer than copying n bytes, which moves 2n.
    """
    copy = _monotone(bandwidth["copy"])
    known = {"copy": copy}
    for kind in ("read", "write"):
        points = tuple((size, min(ns, _time(copy, 2 * size))) for size, ns in bandwidth[kind])
        known[kind] = _monotone(points)
    return known


def _monotone(points: Points) -> Points:
    least, kept = math.inf, []
    for size, ns in reversed(points):
        least = min(least, ns)
        kept.append((size, least))
    return tuple(reversed(kept))


def too_fast(timing: Timing, cost: Cost, limits: Mapping[str, float]) -> str:
    """Why a time is not possible on this machine, or nothing. Only gated times are judged."""
    if timing.timer != "gated":
        return ""
    ns = median(ns for block in timing.blocks_ns for ns in block) - timing.overhead_ns
    least = fastest_plausible_ns(cost.read, cost.flops, limits)
    if ns >= least:
        return ""
    return (
        f"{ns / 1e3:.2f} µs, but this machine's own limits allow no less than "
        f"{least / 1e3:.2f} µs for {cost.read} bytes read and {cost.flops} flops"
    )


def calibrate(clock: CudaClock) -> Overhead:
    """Read the event pair's overhead off bare copies whose kernel time CUPTI knows.

    The smallest of several memory-bound kernels' differences: a corrected time never flatters.
    Where CUPTI cannot be had, what an empty pair reads, and the reason.
    """
    probes = [small_copy(size) for size in CALIBRATE]
    try:
        seen_by_cupti = {name: s for name, s in clock.kernel_ns(probes, 4 * ROUND).items() if s.ns}
    except RuntimeError as error:
        seen_by_cupti, note = {}, f"an empty event pair: no CUPTI ({error})"
    else:
        note = (
            "event time minus CUPTI span"
            if seen_by_cupti
            else "an empty event pair: CUPTI saw nothing"
        )
    if not seen_by_cupti:
        empty = int(median(clock.batch(Probe("empty", lambda: None), 2 * ROUND).samples_ns))
        return Overhead(empty, empty, note)
    kernels = {name: median(s.ns) for name, s in seen_by_cupti.items()}
    untraced = [_ns(clock, p, 16 * ROUND) - kernels[p.name] for p in probes if p.name in kernels]
    traced = [median(s.event_ns) - kernels[name] for name, s in seen_by_cupti.items()]
    return Overhead(max(0, int(min(untraced))), max(0, int(min(traced))), note)


def measure(clock: CudaClock, device: Device) -> Ceilings:
    """Take a few seconds to learn the machine's limits; sets the clock's overhead."""
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
    return Ceilings(tightened(bandwidth), tflops, overhead, missing)


def again(clock: CudaClock, known: Ceilings) -> Ceilings:
    """The limits of this machine as another process found them, with this process's overhead."""
    clock.overhead_ns = 0
    overhead = calibrate(clock)
    clock.overhead_ns = overhead.ns
    return replace(known, overhead=overhead)


def _best_ns(clock: CudaClock, kind: str, size: int, device: Device) -> float:
    """The shortest time that any way to move these bytes takes."""
    return min(_ns(clock, probe) for probe in stream(kind, size, device))


def _ns(clock: CudaClock, probe: Probe, n: int = 2 * ROUND) -> float:
    """Raises KernelbenchError where not even a bare call is queued in time."""
    clock.batch(probe, 3)
    batch = clock.batch(probe, n)
    if not batch.held:
        raise KernelbenchError(
            f"the gate did not hold for {probe.name}: this machine's CPU is too busy to measure"
        )
    return median(batch.samples_ns) - clock.overhead_ns


def _rates(clock: CudaClock, device: Device) -> tuple[dict[str, float], dict[str, str]]:
    """TFLOP/s by precision, the best of a few sizes; why one is missing."""
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
