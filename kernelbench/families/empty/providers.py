"""An empty and a pointwise call by PyTorch and by our kernels, and the bytes that they move."""

from functools import cache
from typing import Any

import torch

from kernelbench.families.empty.case import EmptyCase, inputs
from kernelbench.families.providing import compiled, eager_traffic, no_compiler
from kernelbench.spec import Call, Device, Tensors, Traffic


def _two_operators(a: Tensors) -> torch.Tensor:
    y: torch.Tensor = 2 * a["x"] + a["z"]
    return y


def _spin(a: Tensors) -> torch.Tensor:
    x: torch.Tensor = a["x"]
    if x.is_cuda:
        torch.cuda._sleep(0)
    return x


def eager(case: EmptyCase, config: Any) -> Call:
    """pointwise: two operators. empty: PyTorch's kernel that spins for no cycle, launched without
    its dispatcher; on a CPU there is none to launch."""
    return _spin if case.empty else _two_operators


def torch_fused(case: EmptyCase, config: Any) -> Call:
    """One operator of PyTorch: z + 2·x."""
    return lambda a: torch.add(a["z"], a["x"], alpha=2)


def compile_eager(case: EmptyCase, config: Any) -> Call:
    function = compiled(lambda x, z: 2 * x + z)
    return lambda a: function(a["x"], a["z"])


def triton_fused(case: EmptyCase, config: Any) -> Call:
    """Launched as our other kernels are: prepared once for a layout."""
    from kernelbench.kernels.empty import add_twice, do_nothing

    if case.empty:
        return lambda a: do_nothing(a["x"])
    return lambda a: add_twice(a["x"], a["z"])


def triton_plain(case: EmptyCase, config: Any) -> Call:
    """The same kernels by Triton's own launcher, `kernel[grid](…)`, without checks."""
    from kernelbench.kernels.empty import add_twice_plainly, do_nothing_plainly

    if case.empty:
        return lambda a: do_nothing_plainly(a["x"])
    return lambda a: add_twice_plainly(a["x"], a["z"])


def pointwise_alone(case: EmptyCase, device: Device) -> str | None:
    return "PyTorch has no operator that launches nothing" if case.empty else None


def compile_serves(case: EmptyCase, device: Device) -> str | None:
    if case.empty:
        return "torch.compile makes no kernel of nothing"
    return no_compiler(case, device)


def size_of(case: EmptyCase) -> int:
    """Bytes of x."""
    return case.M * case.N * case.dtype.bytes


def fused_traffic(case: EmptyCase) -> tuple[Traffic, ...]:
    """Each tensor once; nothing of x where the kernel is empty."""
    if case.empty:
        return (Traffic("x"),)
    size = size_of(case)
    return (Traffic("x", read=size), Traffic("z", read=size), Traffic("y", write=size))


@cache
def traffic_of_eager(case: EmptyCase) -> tuple[Traffic, ...]:
    if case.empty:
        return fused_traffic(case)
    return eager_traffic(case, inputs, _two_operators, ("y",), ())
