"""Bare calls that probe a machine's limits: several for each limit, of which the best counts.

These copies, reads and writes were chosen among more of them on an H200
(results/h200/measuring): none is the best at every footprint.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from kernelbench.measure.environment import TORCH_DTYPES
from kernelbench.spec import Device, DType

Call = Callable[[], Any]


@dataclass(eq=False)  # a key of the clock's plans
class Probe:
    """A bare call that a clock can time like a workload."""

    name: str
    call: Call
    lot: None = None  # its answers are not judged

    def ready(self) -> None:
        """Nothing to prepare."""

    def restore(self) -> None:
        """Nothing to restore: a probe overwrites nothing that it reads."""

    def grad_mode(self) -> Any:
        return torch.no_grad()


def stream(kind: str, size: int, device: Device) -> Iterator[Probe]:
    """Ways to `copy`, `read` or `write` memory; a copy of `size` bytes reads half of them."""
    calls = {"copy": _copies, "read": _reads, "write": _writes}[kind](size, device)
    for name, call in calls.items():
        yield Probe(f"{kind} {size} {name}", call)


def _copies(size: int, device: Device) -> dict[str, Call]:
    source = torch.ones(size // 4, dtype=torch.bfloat16, device="cuda")
    target = torch.empty_like(source)
    calls: dict[str, Call] = {
        "neg": lambda: torch.neg(source, out=target),
        "copy_": lambda: target.copy_(source),
    }
    if not device.no_triton:
        from kernelbench.kernels.stream import copy

        for block, warps in ((1024, 4), (2048, 4), (2048, 8), (8192, 4), (16384, 16)):
            calls[f"triton {block}"] = copy(source, target, block, warps).run
    return calls


def _reads(size: int, device: Device) -> dict[str, Call]:
    source = torch.ones(size // 4, dtype=torch.float32, device="cuda")
    total = torch.empty((), dtype=torch.float32, device="cuda")
    calls: dict[str, Call] = {"sum": lambda: torch.sum(source, dim=0, out=total)}
    if not device.no_triton:
        from kernelbench.kernels.stream import read

        for block, times in ((1024, 1), (1024, 4), (2048, 1), (4096, 1)):
            calls[f"triton {block}x{times}"] = read(source, total, block, times).run
    return calls


def _writes(size: int, device: Device) -> dict[str, Call]:
    target = torch.empty(size // 4, dtype=torch.float32, device="cuda")
    calls: dict[str, Call] = {"fill": lambda: target.fill_(1.0)}
    if not device.no_triton:
        from kernelbench.kernels.stream import write

        for block in (1024, 2048):
            calls[f"triton {block}"] = write(target, block).run
    return calls


def small_copy(size: int) -> Probe:
    """A copy by torch's elementwise kernel, since CUPTI may see `copy_` as a memcpy."""
    source = torch.ones(size // 4, dtype=torch.bfloat16, device="cuda")
    target = torch.empty_like(source)
    return Probe(f"copy {size}", lambda: torch.neg(source, out=target))


def matmul(precision: str, n: int) -> Probe:
    """An n × n × n matrix product; `precision` is a dtype of the cases, or int8 or fp8.

    The second operand is transposed in memory, as a linear layer's weight is.
    """
    call = _QUANTISED[precision](n) if precision in _QUANTISED else _plain(DType(precision), n)
    return Probe(f"{precision} {n}", call)


def _plain(dtype: DType, n: int) -> Call:
    a, b = (torch.randn(n, n, device="cuda").to(TORCH_DTYPES[dtype]) for _ in range(2))
    out = torch.empty(n, n, dtype=a.dtype, device="cuda")
    set_precision(dtype)
    return partial(torch.mm, a, b.t(), out=out)


def _int8(n: int) -> Call:
    a, b = (torch.randint(-127, 128, (n, n), dtype=torch.int8, device="cuda") for _ in range(2))
    return partial(torch._int_mm, a, b.t())


def _fp8(n: int) -> Call:
    a, b = (torch.randn(n, n, device="cuda").to(torch.float8_e4m3fn) for _ in range(2))
    scale = torch.ones((), device="cuda")
    run = partial(torch._scaled_mm, a, b.t(), scale_a=scale, scale_b=scale)
    return partial(run, out_dtype=torch.bfloat16, use_fast_accum=True)


_QUANTISED: dict[str, Callable[[int], Call]] = {"int8": _int8, "fp8": _fp8}
PRECISIONS = (*(dtype.value for dtype in DType), *_QUANTISED)


def set_precision(dtype: DType) -> None:
    """Set the precision of matmuls: IEEE fp32, except in cases of dtype tf32."""
    tf32 = dtype is DType.tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
