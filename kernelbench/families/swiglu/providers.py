"""SwiGLU by PyTorch, by our kernels and by Liger, and the bytes that they move."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F

from kernelbench.families.providing import (
    MAX_AUTOTUNE,
    compiled,
    eager_traffic,
    no_jvp,
    pushed,
)
from kernelbench.families.swiglu.case import SwigluCase, grads, inputs, outputs
from kernelbench.spec import Call, Device, Mode, Tensors, Traffic


def _apart(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return F.silu(gate) * up


def _packed(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


def _as_call(case: SwigluCase, function: Callable[..., Any]) -> Call:
    names = grads(case)

    def call(a: Tensors) -> Any:
        return function(*(a[name] for name in names))

    return pushed(call, names) if case.mode is Mode.jvp else call


def _compiled(case: SwigluCase, mode: str = "default") -> Call:
    function = _packed if case.packed else _apart
    if case.mode is Mode.jvp:
        return compiled(_as_call(case, function), mode)
    return _as_call(case, compiled(function, mode))


def eager(case: SwigluCase, config: Any) -> Call:
    return _as_call(case, _packed if case.packed else _apart)


def compile_eager(case: SwigluCase, config: Any) -> Call:
    return _compiled(case)


def compile_max_autotune(case: SwigluCase, config: Any) -> Call:
    """As `compile`, its kernels chosen by trial."""
    return _compiled(case, MAX_AUTOTUNE)


def triton_fused(case: SwigluCase, config: Any) -> Call:
    from kernelbench.kernels.swiglu import swiglu

    return _as_call(case, partial(swiglu, config=config))


def triton_configs(case: SwigluCase, device: Device) -> tuple[Any, ...]:
    from kernelbench.kernels.swiglu import configs

    return configs(arch=device.arch, itemsize=case.dtype.bytes)


def liger(case: SwigluCase, config: Any) -> Call:
    """Its function of two tensors, or of one that is packed, each as its authors call it."""
    from liger_kernel.ops import swiglu

    if case.packed:
        return _as_call(case, swiglu.LigerFusedGateUpSiLUMulFunction.apply)
    return _as_call(case, swiglu.LigerSiLUMulFunction.apply)


def liger_overwrites(case: SwigluCase) -> tuple[str, ...]:
    """Its backward writes the gradients of two tensors over these; that of a packed one does not,
    unless told to."""
    return grads(case) if case.mode.graded and not case.packed else ()


LIGER_MOST = 65536  # columns


def liger_serves(case: SwigluCase, device: Device) -> str | None:
    if case.F > LIGER_MOST:
        return f"Liger takes rows of at most {LIGER_MOST}"
    if device.kind != "cuda":
        return "a GPU package; there is no GPU here"
    from liger_kernel.ops import swiglu

    if case.packed and not hasattr(swiglu, "LigerFusedGateUpSiLUMulFunction"):
        return "this Liger takes no packed gate and up"
    return no_jvp(case, device)


@cache
def traffic_of_eager(case: SwigluCase) -> tuple[Traffic, ...]:
    return eager_traffic(case, inputs, eager(case, None), outputs(case), grads(case))


def fused_traffic(case: SwigluCase, passes_of_jvp: int = 1) -> tuple[Traffic, ...]:
    """Each tensor once, forward and backward. passes_of_jvp: over gate and up in mode jvp."""
    size = case.M * case.F * case.dtype.bytes
    each = 2 * size if case.packed else size
    rows: list[Traffic] = []
    if case.mode is not Mode.bwd:
        passes = passes_of_jvp if case.mode is Mode.jvp else 1
        rows += [Traffic(name, read=passes * each) for name in grads(case)]
        rows.append(Traffic("y", write=size))
    if case.mode is Mode.jvp:
        rows += [Traffic(f"tangent_{name}", read=each) for name in grads(case)]
        rows.append(Traffic("tangent_y", write=size))
    if case.mode.graded:
        rows += [Traffic(name, read=each) for name in grads(case)]
        rows.append(Traffic("grad_y", read=size))
        rows += [Traffic(f"d{name}", write=each) for name in grads(case)]
    return tuple(rows)


def ours_traffic(case: SwigluCase) -> tuple[Traffic, ...]:
    """The tangent of y is a kernel of its own, which reads gate and up again."""
    return fused_traffic(case, passes_of_jvp=2)
