"""Attention by PyTorch and by our kernels."""

from collections.abc import Callable
from typing import Any

import torch

from kernelbench.families import _varlen
from kernelbench.families._rcm import attention
from kernelbench.families.attention.case import AttentionCase
from kernelbench.families.providing import compiled, no_compiler
from kernelbench.spec import Call, Device, DType, Mode, Tensors


def baseline(case: AttentionCase, config: Any) -> Call:
    """SDPA on the backend that `backends` puts first (cuDNN on Hopper); documents one by one."""
    attend = attention(case.causal)
    heads = (case.Hq, case.D)
    if not case.packed:

        def at_once(a: Tensors) -> torch.Tensor:
            o: torch.Tensor = attend(a["q"], a["k"], a["v"]).unflatten(-1, heads)
            return o

        return at_once

    def one_by_one(a: Tensors) -> torch.Tensor:
        tensors = (a[name].unsqueeze(0).split(case.lengths, 1) for name in ("q", "k", "v"))
        parts = [attend(*each) for each in zip(*tensors, strict=True)]
        o: torch.Tensor = torch.cat(parts, 1)[0].unflatten(-1, heads)
        return o

    return one_by_one


def torch_fused(case: AttentionCase, config: Any) -> Call:
    """FlexAttention, compiled, with a block mask of what a query sees, made once."""
    from torch.nn.attention.flex_attention import create_block_mask

    masks: list[Any] = []
    ahead = case.keys - case.N
    batch = [torch.full((n,), i) for i, n in enumerate(case.lengths)] if case.packed else []

    def mask(device: torch.device) -> Any:
        document = torch.cat(batch).to(device) if batch else None

        def sees(b: Any, h: Any, query: Any, key: Any) -> Any:
            seen = query + ahead >= key if case.causal else query >= 0
            return seen & (document[query] == document[key]) if document is not None else seen

        sizes = None, None, case.N, case.keys
        return create_block_mask(sees, *sizes, device=device.type, _compile=device.type == "cuda")

    graph = compiled(flex(case.Hq != case.Hk))

    def call(a: Tensors) -> Any:
        if not masks:
            masks.append(mask(a["q"].device) if case.causal or case.packed else None)
        tensors = [a[name] for name in ("q", "k", "v")]
        if case.packed:
            return graph(*(tensor.unsqueeze(0) for tensor in tensors), masks[0])[0]
        return graph(*tensors, masks[0])

    return call


def flex(shares: bool) -> Callable[..., Any]:
    """FlexAttention of q, k, v (B,N,H,D) and a block mask. shares: heads of q those of k and v."""
    from torch.nn.attention.flex_attention import flex_attention

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, block_mask: Any) -> Any:
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
        o = flex_attention(q, k, v, block_mask=block_mask, enable_gqa=shares)
        return o.transpose(1, 2)

    return attend


def flex_serves(case: AttentionCase, device: Device) -> str | None:
    if device.kind == "cpu" and case.mode is not Mode.fwd:
        return "FlexAttention has no backward on a CPU"
    if case.D < 16:
        return f"FlexAttention takes D from 16 on, not {case.D}"
    return no_compiler(case, device)


def torch_varlen(case: AttentionCase, config: Any) -> Call:
    """PyTorch's operator for packed sequences: FlashAttention-2, built in."""
    attend, longest = _varlen.operator(case.causal, case.Hq // case.Hk), case.longest

    def call(a: Tensors) -> Any:
        starts = a["cu_seqlens"]
        return attend(a["q"], a["k"], a["v"], starts, starts, longest, longest)

    return call


def varlen_serves(case: AttentionCase, device: Device) -> str | None:
    if not case.packed:
        return "for packed documents alone"
    if device.kind != "cuda":
        return "PyTorch has this operator for GPUs alone"
    return _varlen.takes(case.dtype)


def ours(case: AttentionCase, config: Any, deterministic: bool | None = None) -> Call:
    from kernelbench.kernels.attention import attention as function

    how: dict[str, Any] = {"causal": case.causal, "config": config, "deterministic": deterministic}
    if case.packed:
        return lambda a: function(a["q"], a["k"], a["v"], cu_seqlens_q=a["cu_seqlens"], **how)
    return lambda a: function(a["q"], a["k"], a["v"], **how)


def ours_repeatable(case: AttentionCase, config: Any) -> Call:
    """The same, its gradients with the same bits on every call."""
    return ours(case, config, deterministic=True)


def triton_configs(case: AttentionCase, device: Device) -> tuple[Any, ...]:
    from kernelbench.kernels.attention.configs import Pattern, configs

    return configs(
        case.B,
        case.N,
        case.Hq,
        case.D,
        arch=device.arch,
        mode=case.mode.value,
        itemsize=case.dtype.bytes,
        causal=case.causal,
        pattern=Pattern(case.keys, case.Hq // case.Hk, not case.packed, case.packed),
    )


def serves(case: Any, device: Device) -> str | None:
    if case.dtype is DType.tf32:
        return "our kernels multiply fp32 exactly, never as TF32"
    return None if case.D <= 256 else f"our kernels take D up to 256, not {case.D}"


def repeatable(case: AttentionCase, device: Device) -> str | None:
    """Where gradients with the same bits are other launches."""
    from kernelbench.families.attention.traffic import in_one_kernel

    if case.mode is Mode.fwd:
        return "a forward has the same bits anyway"
    if not in_one_kernel(case) or device.arch != "sm_90":
        return "our gradients of this case have the same bits anyway"
    return serves(case, device)


def repeatable_configs(case: AttentionCase, device: Device) -> tuple[Any, ...]:
    """Those of `triton_configs` whose gradients have the same bits on every call."""
    return tuple(
        config
        for config in triton_configs(case, device)
        if config.bwd_hopper is None or config.bwd_hopper.fused is None
    )
