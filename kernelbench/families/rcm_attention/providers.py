"""Attention with a skip by PyTorch and by our kernels."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from kernelbench.families._rcm import Function, attention, probabilities, skip
from kernelbench.families.providing import DTYPES, MAX_AUTOTUNE, compiled, eager_traffic
from kernelbench.families.rcm_attention.case import RCMAttentionCase, grads, inputs
from kernelbench.spec import Call, Device, DType, Mode, Traffic


def _materialised(case: RCMAttentionCase) -> Function:
    def attend(*qkv: torch.Tensor) -> torch.Tensor:
        q, k, v = (tensor.transpose(1, 2) for tensor in qkv)
        return (probabilities(q, k, 0, case.causal) @ v).transpose(1, 2).flatten(2)

    return attend


def _joined(case: RCMAttentionCase, attend: Function, mix: Function) -> Call:
    if not case.skips:
        return lambda a: attend(a["q"], a["k"], a["v"])
    return lambda a: mix(attend(a["q"], a["k"], a["v"]), a["x"], a["t"])


def baseline(case: RCMAttentionCase, config: Any) -> Call:
    """SDPA on the backend that `backends` puts first (cuDNN on Hopper), then the skip, eager."""
    return _joined(
        case, attention(case.causal), skip(case.parametrization, case.sigma, DTYPES[case.dtype])
    )


def torch_fused(case: RCMAttentionCase, config: Any) -> Call:
    """The same SDPA, then one compiled kernel."""
    return _joined(
        case,
        attention(case.causal),
        compiled(skip(case.parametrization, case.sigma, torch.float32)),
    )


def compile_max_autotune(case: RCMAttentionCase, config: Any) -> Call:
    """As `torch_fused`, its kernel chosen by trial."""
    mix = skip(case.parametrization, case.sigma, torch.float32)
    return _joined(case, attention(case.causal), compiled(mix, MAX_AUTOTUNE))


def naive(case: RCMAttentionCase, config: Any) -> Call:
    """Two matrix products with the scores in memory, then the skip, eager."""
    return _joined(
        case, _materialised(case), skip(case.parametrization, case.sigma, DTYPES[case.dtype])
    )


def ours(fused: bool) -> Callable[[RCMAttentionCase, Any], Call]:
    def build(case: RCMAttentionCase, config: Any) -> Call:
        from kernelbench.kernels.rcm_attention import rcm_attention, rcm_attention_unfused

        function = rcm_attention if fused else rcm_attention_unfused
        kind, sigma, causal = case.parametrization.value, case.sigma, case.causal
        axes = {"parametrization": kind, "sigma_data": sigma, "causal": causal, "config": config}
        return lambda a: function(a["q"], a["k"], a["v"], a["x"], a["t"], **axes)

    return build


def triton_configs(fused: bool, case: RCMAttentionCase, device: Device) -> tuple[Any, ...]:
    from kernelbench.kernels.attention.configs import configs

    return configs(
        case.B,
        case.N,
        case.H,
        case.D,
        arch=device.arch,
        mode=case.mode.value,
        itemsize=case.dtype.bytes,
        causal=case.causal,
        mixes=fused and case.skips,
    )


def naive_serves(case: RCMAttentionCase, device: Device) -> str | None:
    """Forward, scores and probabilities are alive at once; backward a third of their size.

    A score of 8 rounded to bf16 is off by up to 2⁻⁶, which its probability, then dS, takes over.
    """
    if case.dtype is DType.bf16 and case.mode is not Mode.fwd:
        return "scores rounded to bf16 in memory: elements of dq and dk miss the error budget"
    scores = case.B * case.H * case.N**2 * case.dtype.bytes
    alive = (2 if case.mode is Mode.fwd else 3) * scores
    if device.total_bytes == 0 or alive <= 0.8 * device.total_bytes:
        return None
    return f"scores of {scores / 1e9:.0f} GB: too large for {device.total_bytes / 1e9:.0f} GB"


def serves(case: RCMAttentionCase, device: Device) -> str | None:
    if case.dtype is DType.tf32:
        return "our kernels multiply fp32 exactly, never as TF32"
    return None if 16 <= case.D <= 256 else f"our kernels take D from 16 to 256, not {case.D}"


@cache
def naive_traffic(case: RCMAttentionCase) -> tuple[Traffic, ...]:
    rows = eager_traffic(case, inputs, naive(case, None), ("y",), grads(case))
    return tuple(row for row in rows if "view" not in row.tensor)  # `_unsafe_view` moves nothing
