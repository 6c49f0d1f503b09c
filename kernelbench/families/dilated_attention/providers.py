"""Dilated attention by PyTorch and by our kernels."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from kernelbench.families.attention.providers import serves
from kernelbench.families.dilated_attention.case import Combine, DilatedCase, Order
from kernelbench.families.providing import compiled, no_compiler
from kernelbench.nn.branches import (
    Combined,
    How,
    Piece,
    attend,
    combined,
    gathered,
    of_segments,
    strided,
)
from kernelbench.nn.lse import takes
from kernelbench.spec import Call, Device, Tensors

Tensor = torch.Tensor


def _in_order(case: DilatedCase, attend: Callable[..., Tensor]) -> Call:
    """Tokens put in order before, and back after, where that is asked for: copies."""
    if not case.reorder:
        return lambda a: attend(*(a[name] for name in ("q", "k", "v")))
    from kernelbench.kernels.dilated_attention.orders import key_of, square

    key = key_of(case.order.value, torch.arange(case.N), case.sides or square(case.N))
    order = key.argsort()
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

    def branch(q: Tensor, k: Tensor, v: Tensor, pieces: Sequence[Piece]) -> tuple[Tensor, Tensor]:
        o = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
        lse = torch.full(q.shape[:3], -torch.inf, device=q.device)
        samples = torch.arange(case.B, device=q.device)[:, None, None]
        tokens = torch.arange(case.N, device=q.device)[None, :, None]
        for piece in pieces:
            parts = [gathered(x, piece).transpose(1, 2) for x in (q, k, v)]
            own, of = attention(*parts, causal=case.causal, return_lse=True)
            rows = strided(tokens, piece._replace(heads=slice(0, 1))).flatten()[:, None]
            heads = torch.arange(case.H, device=q.device)[piece.heads]
            sizes = case.B, -1, len(heads)
            o = o.index_put((samples, rows, heads), own.float().view(*sizes, case.D))
            lse = lse.index_put((samples, rows, heads), of.transpose(1, 2).reshape(sizes))
        return o, lse

    def ours_gathered(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        found = [branch(q, k, v, pieces) for pieces in case.pieces]
        os, lses = torch.stack([o for o, _ in found]), torch.stack([lse for _, lse in found])
        if case.combine == Combine.mean:
            return os.mean(0).to(q.dtype)
        kept = lses.amax(0) > -torch.inf  # elsewhere no softmax, and no gradient of one
        share = lses.where(kept, 0.0).softmax(0).where(kept, 0.0)
        return (os * share.unsqueeze(-1)).sum(0).to(q.dtype)

    return _in_order(case, ours_gathered)


def gather_serves(case: DilatedCase, device: Device) -> str | None:
    if case.order != Order.identity and not case.reorder:
        return "rows that are gathered lie in order"
    return serves(case, device)
