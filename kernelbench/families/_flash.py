"""FlashAttention-3 and -4 as peers: their calls on dense and packed tensors, and what they take."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from kernelbench.spec import Device, DType, Mode

FP8_ERROR = 0.1  # where all of q, k and v have three bits of mantissa; 0.053 on normal inputs
FP8_ON_OUTLIERS = "FP8 rounds the largest scores by more than 1, so that rows get other values"
E4M3 = torch.float8_e4m3fn
Attend = Callable[..., torch.Tensor]  # of q, k, v and, packed, cu_seqlens, → o


def fa4(causal: bool, longest: int | None = None) -> Attend:
    """FlashAttention-4, of (B,N,H,D), or of packed (T,H,D) whose longest sequence is given."""
    from flash_attn.cute import flash_attn_func, flash_attn_varlen_func

    def attend(*tensors: torch.Tensor) -> Any:
        if longest is None:
            out = flash_attn_func(*tensors, causal=causal)
        else:
            q, k, v, starts = tensors
            names: dict[str, Any] = dict.fromkeys(("max_seqlen_q", "max_seqlen_k"), longest)
            names |= {"cu_seqlens_q": starts, "cu_seqlens_k": starts, "causal": causal}
            out = flash_attn_varlen_func(q, k, v, **names)
        return out[0] if isinstance(out, tuple) else out

    return attend


def fa4_takes(case: Any, device: Device) -> str | None:
    """Why FlashAttention-4 cannot run a case with dtype and D, or None."""
    if device.capability is None or device.capability < (9, 0):
        return f"FlashAttention-4 needs a GPU of sm_90 or later, this is {device.arch}"
    if case.dtype not in (DType.bf16, DType.fp16):
        return f"FlashAttention-4 takes bf16 and fp16, not {case.dtype}"
    if case.D % 8 or case.D > 256:
        return f"FlashAttention-4 takes D in multiples of 8 up to 256, not {case.D}"
    return None


def fa3(causal: bool, longest: int | None = None) -> Attend:
    """FlashAttention-3, its forward alone, as PyPI's fa3-fwd builds it: bf16, sm_90a. Tensors: as
    for `fa4`."""
    from fa3_fwd_interface import flash_attn_func, flash_attn_varlen_func

    if longest is None:
        dense: Attend = partial(flash_attn_func, causal=causal)
        return dense

    def attend(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, starts: torch.Tensor
    ) -> torch.Tensor:
        out: torch.Tensor = flash_attn_varlen_func(
            q, k, v, starts, starts, longest, longest, causal=causal
        )
        return out

    return attend


def fa3_takes(case: Any, device: Device) -> str | None:
    """Why FlashAttention-3 cannot run a case with dtype, mode and D, or None."""
    if device.capability != (9, 0):
        return f"FlashAttention-3 needs a GPU of sm_90, this is {device.arch}"
    if case.mode is not Mode.fwd:
        return "this build of FlashAttention-3 has no backward"
    if case.dtype is not DType.bf16:
        return f"this build of FlashAttention-3 takes bf16, not {case.dtype}"
    if case.D % 8 or case.D > 256:
        return f"FlashAttention-3 takes D in multiples of 8 up to 256, not {case.D}"
    return None


def fp8(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(B,N,H,D) as e4m3, and the scale of each head of a sample, (B,H) fp32."""
    scale = (t.abs().amax(dim=(1, 3)).float() / torch.finfo(E4M3).max).clamp_min(2.0**-100)
    return (t.float() / scale[:, None, :, None]).to(E4M3), scale


def fa3_fp8(causal: bool, dtype: torch.dtype) -> Attend:
    """FlashAttention-3 of q, k and v in 8 bits and their scales, see `fp8`; o in `dtype`."""
    from fa3_fwd_interface import flash_attn_func

    names = ("q_descale", "k_descale", "v_descale")

    def attend(*packed: torch.Tensor) -> torch.Tensor:
        scales = dict(zip(names, packed[3:], strict=True))
        out: torch.Tensor = flash_attn_func(*packed[:3], causal=causal, **scales)
        return out if out.dtype is dtype else out.to(dtype)

    return attend


def quantised(pack: Callable[..., Any], attend: Attend) -> Attend:
    """Attention that quantises inside the call. pack: q, k, v → parts, scales in turn."""

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        parts = pack(q, k, v)
        return attend(*parts[::2], *parts[1::2])

    return call


def in_fp8(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> list[torch.Tensor]:
    """For `quantised`: each in 8 bits, and its scale."""
    return [part for tensor in (q, k, v) for part in fp8(tensor)]
