"""This machine's own measured limits, and what a pair of events adds to a kernel's time.

Measured with the clock that times the providers, at the start of a run: copy, read and write
bandwidth over a range of footprints with a cold L2, and the rate of a large matmul per precision.
"""

import bisect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import torch

from kernelbench.limits import fastest_plausible_ns
from kernelbench.measure.environment import TORCH_DTYPES
from kernelbench.measure.timer import CudaClock
from kernelbench.spec import Cost, Device, DType, Timing

FOOTPRINTS = tuple(1 << shift for shift in (14, 17, 20, 22, 24, 25, 26, 27, 28, 30, 31))
SAMPLES = 20
MATMULS = (4096, 8192)
# Kernels by which event overhead is calibrated: small and large, all bound by memory.
CALIBRATE = (1 << 16, 1 << 20, 1 << 24, 1 << 26)


Points = tuple[tuple[int, float], ...]  # (footprint in bytes, time in ns), ascending


@dataclass(eq=False)  # a clock remembers what it learnt of each
class Probe:
    """A bare torch call that a clock can time like a workload."""

    name: str
    call: Callable[[], Any]

    def ready(self) -> None:
        """A probe needs nothing."""

    def restore(self) -> None:
        """A probe overwrites nothing that it reads."""

    def grad_mode(self) -> Any:
        return torch.no_grad()


@dataclass(frozen=True)
class Ceilings:
    """bandwidth: for copy, read and write, (footprint bytes, time in ns) pairs; tflops by dtype."""

    bandwidth: Mapping[str, Points] = field(default_factory=dict)
    tflops: Mapping[str, float] = field(default_factory=dict)
    overhead_ns: int = 0
    overhead_note: str = ""
    missing: Mapping[str, str] = field(default_factory=dict)  # why a precision has no rate

    def at(self, cost: Cost, precision: Mapping[str, float]) -> dict[str, float]:
        """The limits that hold for a call: bandwidths at its footprint, its precision's rate."""
        found = {
            f"{kind}_gbps": _rate(points, max(cost.bytes, 1))
            for kind, points in self.bandwidth.items()
        }
        if "read" in self.bandwidth:
            found["peak_read_gbps"] = max(
                size / ns for kind in ("read", "copy") for size, ns in self.bandwidth.get(kind, ())
            )
        if precision and all(name in self.tflops for name in precision):
            # time shares add up: a mix runs at the harmonic mean of its rates
            found["tflops"] = 1 / sum(share / self.tflops[n] for n, share in precision.items())
        return {name: round(rate, 2) for name, rate in found.items()}

    def as_json(self) -> dict[str, Any]:
        return {
            "bandwidth": {k: [list(p) for p in v] for k, v in self.bandwidth.items()},
            "tflops": dict(self.tflops),
            "overhead_ns": self.overhead_ns,
            "overhead_note": self.overhead_note,
            "missing": dict(self.missing),
        }

    @staticmethod
    def from_json(facts: Mapping[str, Any]) -> "Ceilings":
        return Ceilings(
            bandwidth={
                k: tuple((int(s), ns) for s, ns in v) for k, v in facts["bandwidth"].items()
            },
            tflops=facts["tflops"],
            overhead_ns=facts["overhead_ns"],
            overhead_note=facts["overhead_note"],
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
    found = {"copy": copy}
    for kind in ("read", "write"):
        points = tuple((size, min(ns, _time(copy, 2 * size))) for size, ns in bandwidth[kind])
        found[kind] = _monotone(points)
    return found


def _monotone(points: Points) -> Points:
    least, found = math.inf, []
    for size, ns in reversed(points):
        least = min(least, ns)
        found.append((size, least))
    return tuple(reversed(found))


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


def calibrate(clock: CudaClock) -> tuple[int, str]:
    """ns that an event pair reads more than the kernel between ran, by CUPTI on the same calls.

    The smallest of several memory-bound kernels' differences: a corrected time never flatters.
    Where CUPTI cannot be had, what an empty pair reads, and the reason.
    """
    probes = [_copy(size) for size in CALIBRATE]
    try:
        kernels = {name: s for name, s in clock.kernel_ns(probes).items() if s.ns}
    except RuntimeError as error:
        kernels, note = {}, f"an empty event pair: no CUPTI ({error})"
    else:
        note = (
            "event time minus CUPTI span" if kernels else "an empty event pair: CUPTI saw nothing"
        )
    if not kernels:
        empty = clock.batch(Probe("empty", lambda: None), SAMPLES)
        return int(median(empty.samples_ns)), note
    differences = [_ns(clock, p) - median(kernels[p.name].ns) for p in probes if p.name in kernels]
    return max(0, int(min(differences))), note


def measure(clock: CudaClock, device: Device) -> Ceilings:
    """Take a few seconds to learn the machine's limits; sets the clock's overhead."""
    clock.overhead_ns, note = calibrate(clock)
    largest = min(FOOTPRINTS[-1], device.total_bytes // 8)
    bandwidth: dict[str, Points] = {}
    for kind, make in (("copy", _copy), ("read", _read), ("write", _write)):
        bandwidth[kind] = tuple(
            (size, max(_ns(clock, make(size)) - clock.overhead_ns, 1.0))
            for size in FOOTPRINTS
            if size <= largest
        )
    tflops, missing = _rates(clock, device)
    torch.cuda.empty_cache()
    return Ceilings(tightened(bandwidth), tflops, clock.overhead_ns, note, missing)


def _ns(clock: CudaClock, probe: Probe, n: int = SAMPLES) -> float:
    clock.batch(probe, 3)
    return median(clock.batch(probe, n).samples_ns)


def _copy(size: int) -> Probe:
    """A kernel, since a copy_ would be a memcpy to CUPTI and to events."""
    source = torch.ones(size // 4, dtype=torch.bfloat16, device="cuda")
    target = torch.empty_like(source)
    return Probe(f"copy-{size}", lambda: torch.neg(source, out=target))


def _read(size: int) -> Probe:
    source = torch.ones(size // 4, dtype=torch.float32, device="cuda")
    total = torch.empty((), dtype=torch.float32, device="cuda")
    return Probe(f"read-{size}", lambda: torch.sum(source, dim=0, out=total))


def _write(size: int) -> Probe:
    target = torch.empty(size // 4, dtype=torch.float32, device="cuda")
    return Probe(f"write-{size}", lambda: target.fill_(1.0))


def _rates(clock: CudaClock, device: Device) -> tuple[dict[str, float], dict[str, str]]:
    """TFLOP/s by precision, the best of a few sizes; why one is missing."""
    rates, missing = {}, {}
    for name, make in _MATMULS.items():
        if name == "fp8" and (device.capability or (0, 0)) < (8, 9):
            missing[name] = f"{device.arch} has no fp8 matmul"
            continue
        try:
            best = max(2 * n**3 / (_ns(clock, make(n), 10) - clock.overhead_ns) for n in MATMULS)
        except RuntimeError as error:
            missing[name] = str(error).splitlines()[0]
        else:
            rates[name] = round(best / 1e3, 1)
    set_precision(DType.fp32)
    return rates, missing


def _matmul(dtype: DType, n: int) -> Probe:
    a, b = (torch.randn(n, n, device="cuda").to(TORCH_DTYPES[dtype]) for _ in range(2))
    out = torch.empty(n, n, dtype=a.dtype, device="cuda")
    set_precision(dtype)
    return Probe(f"{dtype}-{n}", lambda: torch.mm(a, b, out=out))


def _int8_matmul(n: int) -> Probe:
    a, b = (torch.randint(-127, 128, (n, n), dtype=torch.int8, device="cuda") for _ in range(2))
    b = b.t()  # the layout that int8 matrix units read
    return Probe(f"int8-{n}", lambda: torch._int_mm(a, b))


def _fp8_matmul(n: int) -> Probe:
    a, b = (torch.randn(n, n, device="cuda").to(torch.float8_e4m3fn) for _ in range(2))
    one, b = torch.ones((), device="cuda"), b.t()
    run = partial(torch._scaled_mm, a, b, scale_a=one, scale_b=one)
    return Probe(f"fp8-{n}", partial(run, out_dtype=torch.bfloat16, use_fast_accum=True))


_MATMULS: dict[str, Callable[[int], Probe]] = {
    **{dtype.value: partial(_matmul, dtype) for dtype in DType},
    "int8": _int8_matmul,
    "fp8": _fp8_matmul,
}


def set_precision(dtype: DType) -> None:
    """fp32 is IEEE fp32 for every provider of a job; tf32 only where the case says so."""
    tf32 = dtype is DType.tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32


def gpu_uuid() -> str:
    """NVML's name of the GPU in use."""
    return f"GPU-{torch.cuda.get_device_properties(0).uuid}"
