"""Dilated attention by PyTorch and by our kernels."""

from collections.abc import Callable
from typing import Any

import torch

from kernelbench.families.attention.providers import serves
from kernelbench.families.dilated_attention.case import Combine, DilatedCase, Order
from kernelbench.families.providing import compiled, no_compiler
from kernelbench.nn.branches import (
    Combined,
    How,
    attend,
    attend_gathered,
    combined,
    combined_in_autograd,
    gathered,
    of_segments,
)
from kernelbench.nn.lse import takes
from kernelbench.spec import Call, Device, Tensors

Tensor = torch.Tensor


def _in_order(case: DilatedCase, attend: Callable[..., Tensor]) -> Call:
    """Tokens put in order before, and back after, where that is asked for: copies."""
    if not case.reorder:
        return lambda a: attend(*(a[name] for name in ("q", "k", "v")))
    from kernelbench.kernels.dilated_attention.orders import sequence

    order = sequence(case.N, case.order.value, case.sides)
    places: dict[Any, tuple[Tensor, Tensor]] = {}

    def call(a: Tensors) -> Tensor:
        device = a["q"].device
        if device not in places:
            places[device] = order.to(device), order.argsort().to(device)
        there, back = places[device]
        o = attend(*(a[name].index_select(1, there) for name in ("q", "k", "v")))
        return o.index_select(1, back)

    return call


def _by_torch(case: DilatedCase, take: Any, combine: Combined) -> Callable[..., Tensor]:
    how = How(case.pieces, case.causal, case.combine == Combine.mean, take, combine)
    return lambda q, k, v: attend(q, k, v, how)


def baseline(case: DilatedCase, config: Any) -> Call:
    """Each branch's rows are gathered, attended to by PyTorch's operator, scattered, and combined
    in eager operators."""
    return _in_order(case, _by_torch(case, gathered, combined))


def torch_strided(case: DilatedCase, config: Any) -> Call:
    """The same on strided views of q, k and v."""
    return _in_order(case, _by_torch(case, of_segments, combined))


def torch_fused(case: DilatedCase, config: Any) -> Call:
    """On strided views, combined by a compiled function."""
    return _in_order(case, _by_torch(case, of_segments, compiled(combined)))


def torch_serves(case: DilatedCase, device: Device) -> str | None:
    return takes(case.D) if device.kind == "cuda" else None


def fused_serves(case: DilatedCase, device: Device) -> str | None:
    return torch_serves(case, device) or no_compiler(case, device)


def ours(case: DilatedCase, config: Any) -> Call:
    from kernelbench.kernels.dilated_attention import dilated_attention

    def call(a: Tensors) -> Tensor:
        return dilated_attention(
            a["q"],
            a["k"],
            a["v"],
            case.lengths,
            case.rates,
            causal=case.causal,
            offset_rule=case.offsets.value,
            combine=case.combine.value,
            order=case.order.value,
            grid=case.sides,
            reorder=case.reorder,
        )

    return call


def triton_gather(case: DilatedCase, config: Any) -> Call:
    """Our attention on gathered rows, combined in eager operators: what reading rows where they lie
    is worth."""
    from kernelbench.kernels.attention import attention

    def one(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
        o, lse = attention(q, k, v, causal=causal, return_lse=True)
        return o, lse

    def ours_gathered(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        found = [attend_gathered(q, k, v, pieces, case.causal, one) for pieces in case.pieces]
        os, lses = (torch.stack(each) for each in zip(*found, strict=True))
        return combined_in_autograd(os, lses, case.combine == Combine.mean).to(q.dtype)

    return _in_order(case, ours_gathered)


def gather_serves(case: DilatedCase, device: Device) -> str | None:
    if case.order != Order.identity and not case.reorder:
        return "rows that are gathered lie in order"
    return serves(case, device)
