"""RMSNorm by PyTorch and by our kernels."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F

from kernelbench.families.providing import MAX_AUTOTUNE, compiled, eager_traffic, pushed
from kernelbench.families.rms_norm.case import Casting, RMSNormCase, grads, inputs, outputs
from kernelbench.spec import Call, Device, Mode, Tensors, Traffic


def _eager(casting: Casting, residual: bool, eps: float) -> Callable[..., Any]:
    """RMSNorm as people write it in PyTorch."""

    def norm(h: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if casting is Casting.none:
            return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps) * weight
        wide = h.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        if casting is Casting.llama:
            return weight * wide.to(h.dtype)
        if casting is Casting.gemma:
            return (wide * (1.0 + weight.float())).to(h.dtype)
        return (wide * weight.float()).to(h.dtype)

    def add_norm(
        x: torch.Tensor, weight: torch.Tensor, r: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        h = x + r
        return norm(h, weight), h

    return add_norm if residual else norm


def _as_call(case: RMSNormCase, function: Callable[..., Any]) -> Call:
    def norm(a: Tensors) -> Any:
        return function(a["x"], a["weight"])

    def add_norm(a: Tensors) -> Any:
        return function(a["x"], a["weight"], a["residual"])

    call = add_norm if case.residual else norm
    return pushed(call, grads(case)) if case.mode is Mode.jvp else call


def _compiled(case: RMSNormCase, function: Callable[..., Any], mode: str = "default") -> Call:
    if case.mode is Mode.jvp:
        return compiled(_as_call(case, function), mode)
    return _as_call(case, compiled(function, mode))


def eager(case: RMSNormCase, config: Any) -> Call:
    return _as_call(case, _eager(case.casting, case.residual, case.eps))


def compile_eager(case: RMSNormCase, config: Any) -> Call:
    return _compiled(case, _eager(case.casting, case.residual, case.eps))


def compile_max_autotune(case: RMSNormCase, config: Any) -> Call:
    """As `compile`, its kernels chosen by trial."""
    return _compiled(case, _eager(case.casting, case.residual, case.eps), MAX_AUTOTUNE)


def torch_fused(case: RMSNormCase, config: Any) -> Call:
    """F.rms_norm, which rounds once; after an add when there is a residual."""
    shape, eps = (case.N,), case.eps

    def add_norm(
        x: torch.Tensor, weight: torch.Tensor, r: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        h = x + r
        return F.rms_norm(h, shape, weight, eps), h

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, shape, weight, eps)

    return _as_call(case, add_norm if case.residual else norm)


def rounds_once(case: RMSNormCase, device: Device) -> str | None:
    """F.rms_norm computes `fp32`, and `llama` with one rounding less."""
    if case.casting in (Casting.fp32, Casting.llama):
        return None
    return f"F.rms_norm has no casting={case.casting}"


def triton_fused(case: RMSNormCase, config: Any) -> Call:
    from kernelbench.kernels.rms_norm import rms_norm

    eps, casting = case.eps, case.casting.value

    def add_norm(x: torch.Tensor, weight: torch.Tensor, r: torch.Tensor) -> Any:
        return rms_norm(x, weight, eps, residual=r, casting=casting, config=config)

    norm = partial(rms_norm, eps=eps, casting=casting, config=config)
    return _as_call(case, add_norm if case.residual else norm)


def triton_configs(case: RMSNormCase, device: Device) -> tuple[Any, ...]:
    from kernelbench.kernels.rms_norm import configs

    return configs(
        case.M,
        case.N,
        arch=device.arch,
        mode="fwd" if case.mode is Mode.jvp else case.mode.value,
        itemsize=case.dtype.bytes,
        residual=case.residual,
        sms=device.sms or None,
    )


@cache
def traffic_of_eager(case: RMSNormCase) -> tuple[Traffic, ...]:
    """One operator of the backward, pow(h, 1), is a copy by the driver: it moves what its row says,
    but profilers of kernels do not see it (512 of 7936 MiB at (16384, 8192))."""
    return eager_traffic(case, inputs, eager(case, None), outputs(case), grads(case))
