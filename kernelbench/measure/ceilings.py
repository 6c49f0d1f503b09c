"""This machine's own measured limits, and what a pair of events adds to a kernel's time.

Measured with the clock that times the providers, at the start of a run: copy, read and write
bandwidth over a range of footprints with a cold L2, and the rate of a large matmul per precision.
"""

import bisect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch

from kernelbench.measure.timer import CudaClock
from kernelbench.spec import Cost, Device, DType

FOOTPRINTS = tuple(1 << shift for shift in (14, 17, 20, 22, 24, 25, 26, 27, 28, 30, 31))
SAMPLES = 20
MATMUL = 8192
# Kernels by which event overhead is calibrated: small and large, all bound by memory.
CALIBRATE = (1 << 16, 1 << 20, 1 << 24, 1 << 26)


@dataclass
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

    bandwidth: Mapping[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    tflops: Mapping[str, float] = field(default_factory=dict)
    overhead_ns: int = 0
    overhead_note: str = ""

    def at(self, cost: Cost, precision: Mapping[str, float]) -> dict[str, float]:
        """The limits that hold for a call: bandwidths at its footprint, its precision's rate."""
        found = {
            f"{kind}_gbps": _rate(points, max(cost.bytes, 1))
            for kind, points in self.bandwidth.items()
        }
        if "read" in self.bandwidth:
            found["peak_read_gbps"] = max(size / ns for size, ns in self.bandwidth["read"])
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
        )


def _rate(points: tuple[tuple[int, float], ...], size: int) -> float:
    """GB/s at a footprint: time is interpolated linearly in bytes between measured footprints."""
    sizes = [s for s, _ in points]
    if size <= sizes[0]:
        return size / points[0][1]
    if size >= sizes[-1]:
        return sizes[-1] / points[-1][1]
    i = bisect.bisect_left(sizes, size)
    (s0, t0), (s1, t1) = points[i - 1], points[i]
    return size / (t0 + (t1 - t0) * (size - s0) / (s1 - s0))


def calibrate(clock: CudaClock) -> tuple[int, str]:
    """ns that an event pair reads more than the kernel between ran, by CUPTI on the same calls.

    The smallest of several memory-bound kernels' differences: a corrected time never flatters.
    Where CUPTI cannot be had, what an empty pair reads, and the reason.
    """
    probes = [_copy(size) for size in CALIBRATE]
    try:
        kernels = clock.kernel_ns(probes)
    except RuntimeError as error:
        kernels, note = {}, f"an empty event pair: no CUPTI ({error})"
    else:
        note = (
            "event time minus CUPTI span" if kernels else "an empty event pair: CUPTI saw nothing"
        )
    if not kernels:
        empty = clock.batch(Probe("empty", lambda: None), SAMPLES)
        return int(median(empty.samples_ns)), note
    differences = [_ns(clock, p) - median(kernels[p.name]) for p in probes if p.name in kernels]
    return max(0, int(min(differences))), note


def measure(clock: CudaClock, device: Device) -> Ceilings:
    """Take a few seconds to learn the machine's limits; sets the clock's overhead."""
    clock.overhead_ns, note = calibrate(clock)
    largest = min(FOOTPRINTS[-1], device.total_bytes // 8)
    bandwidth: dict[str, tuple[tuple[int, float], ...]] = {}
    for kind, make in (("copy", _copy), ("read", _read), ("write", _write)):
        bandwidth[kind] = tuple(
            (size, max(_ns(clock, make(size)) - clock.overhead_ns, 1.0))
            for size in FOOTPRINTS
            if size <= largest
        )
    tflops = {}
    for dtype, run in _matmuls():
        ns = _ns(clock, Probe(dtype, run), 10) - clock.overhead_ns
        tflops[dtype] = round(2 * MATMUL**3 / ns / 1e3, 1)
    clock.forget()
    torch.cuda.empty_cache()
    return Ceilings(bandwidth, tflops, clock.overhead_ns, note)


def _ns(clock: CudaClock, probe: Probe, n: int = SAMPLES) -> float:
    clock.batch(probe, 3)
    return median(clock.batch(probe, n).samples_ns)


def _copy(size: int) -> Probe:
    source = torch.ones(size // 4, dtype=torch.bfloat16, device="cuda")
    target = torch.empty_like(source)
    return Probe(f"copy-{size}", lambda: target.copy_(source))


def _read(size: int) -> Probe:
    source = torch.ones(size // 4, dtype=torch.float32, device="cuda")
    total = torch.empty((), dtype=torch.float32, device="cuda")
    return Probe(f"read-{size}", lambda: torch.sum(source, dim=0, out=total))


def _write(size: int) -> Probe:
    target = torch.empty(size // 4, dtype=torch.float32, device="cuda")
    return Probe(f"write-{size}", lambda: target.fill_(1.0))


def _matmuls() -> list[tuple[str, Callable[[], Any]]]:
    found: list[tuple[str, Callable[[], Any]]] = []
    for dtype, torch_dtype in (
        (DType.bf16, torch.bfloat16),
        (DType.fp16, torch.float16),
        (DType.tf32, torch.float32),
        (DType.fp32, torch.float32),
    ):
        a = torch.randn(MATMUL, MATMUL, device="cuda").to(torch_dtype)
        b = torch.randn(MATMUL, MATMUL, device="cuda").to(torch_dtype)
        found.append((dtype.value, _matmul(a, b, dtype)))
    return found


def _matmul(a: torch.Tensor, b: torch.Tensor, dtype: DType) -> Callable[[], Any]:
    out = torch.empty(MATMUL, MATMUL, dtype=a.dtype, device="cuda")

    def run() -> None:
        set_precision(dtype)
        torch.mm(a, b, out=out)

    return run


def set_precision(dtype: DType) -> None:
    """fp32 is IEEE fp32 for every provider of a job; tf32 only where the case says so."""
    tf32 = dtype is DType.tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32


def gpu_uuid() -> str:
    """NVML's name of the GPU in use."""
    return f"GPU-{torch.cuda.get_device_properties(0).uuid}"
