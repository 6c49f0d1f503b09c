"""Rotary embedding by PyTorch and by our kernels."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch

from kernelbench.families.providing import (
    MAX_AUTOTUNE,
    compiled,
    eager_traffic,
    no_autotuner,
    no_compiler,
    pushed,
)
from kernelbench.families.rotary.case import Layout, RotaryCase, grads, inputs, outputs, turn
from kernelbench.spec import Call, Device, Mode, Tensors, Traffic


def _eager(case: RotaryCase) -> Callable[..., Any]:
    interleaved = case.interleaved

    def turn_both(
        q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return turn(q, cos, sin, interleaved), turn(k, cos, sin, interleaved)

    def turn_both_in_place(
        q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return q.copy_(turn(q, cos, sin, interleaved)), k.copy_(turn(k, cos, sin, interleaved))

    return turn_both_in_place if case.inplace else turn_both


def _as_call(case: RotaryCase, function: Callable[..., Any]) -> Call:
    def call(a: Tensors) -> Any:
        return function(a["q"], a["k"], a["cos"], a["sin"])

    return pushed(call, grads(case)) if case.mode is Mode.jvp else call


def _compiled(case: RotaryCase, mode: str = "default") -> Call:
    if case.mode is Mode.jvp:
        return compiled(_as_call(case, _eager(case)), mode)
    return _as_call(case, compiled(_eager(case), mode))


def eager(case: RotaryCase, config: Any) -> Call:
    return _as_call(case, _eager(case))


def torch_fused(case: RotaryCase, config: Any) -> Call:
    """torch.compile of the eager form: one kernel for each of q and k, or one for both."""
    return _compiled(case)


def compile_max_autotune(case: RotaryCase, config: Any) -> Call:
    """As `torch_fused`, its kernels chosen by trial."""
    return _compiled(case, MAX_AUTOTUNE)


def torch_complex(case: RotaryCase, config: Any) -> Call:
    """Neighbours as complex numbers in fp32, as in Meta's Llama: (x1 + i·x2)·(cos + i·sin), one
    kernel for each of q and k (three in 16 bits), and one that combines cos and sin."""

    def turn_both(
        q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        turns = torch.complex(cos.float(), sin.float())[..., None, :]
        pairs = (torch.view_as_complex(x.float().unflatten(-1, (-1, 2))) for x in (q, k))
        return tuple(torch.view_as_real(x * turns).flatten(-2).type_as(q) for x in pairs)

    return _as_call(case, turn_both)


def triton_fused(case: RotaryCase, config: Any) -> Call:
    from kernelbench.kernels.rotary import apply_rotary

    interleaved, inplace = case.interleaved, case.inplace
    function = partial(apply_rotary, interleaved=interleaved, inplace=inplace, config=config)
    return _as_call(case, function)


def triton_configs(case: RotaryCase, device: Device) -> tuple[Any, ...]:
    from kernelbench.kernels.rotary import configs

    heads_apart = case.layout is Layout.bhsd
    return configs(case.S, case.Hq + case.Hk, case.D, arch=device.arch, heads_apart=heads_apart)


def overwrites(case: RotaryCase) -> tuple[str, ...]:
    return ("q", "k") if case.inplace else ()


def forward_in_place(case: RotaryCase, device: Device) -> str | None:
    """In place, only the forward is timed; the backward is the one out of place."""
    if case.inplace and case.mode is not Mode.fwd:
        return "inplace is timed in mode fwd: a gradient is not overwritten"
    return None


def complex_serves(case: RotaryCase, device: Device) -> str | None:
    if not case.interleaved or case.inplace:
        return "complex numbers are pairs of neighbours, turned out of place"
    return forward_in_place(case, device)


def compile_serves(case: RotaryCase, device: Device) -> str | None:
    return forward_in_place(case, device) or no_compiler(case, device)


def autotune_serves(case: RotaryCase, device: Device) -> str | None:
    return forward_in_place(case, device) or no_autotuner(case, device)


@cache
def traffic_of_eager(case: RotaryCase) -> tuple[Traffic, ...]:
    return eager_traffic(case, inputs, eager(case, None), outputs(case), grads(case))


@cache
def traffic_of_complex(case: RotaryCase) -> tuple[Traffic, ...]:
    return eager_traffic(case, inputs, torch_complex(case, None), outputs(case), grads(case))
