"""Dilated attention by PyTorch and by our kernels."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from kernelbench.families._lse import operator_of, takes
from kernelbench.families.attention.providers import serves
from kernelbench.families.dilated_attention.case import Combine, DilatedCase, Order, Piece
from kernelbench.families.providing import compiled, no_compiler
from kernelbench.spec import Call, Device, Tensors

Tensor = torch.Tensor
Combined = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor]]


def strided(x: Tensor, piece: Piece) -> Tensor:
    """A piece's rows of x, (B,N,H) or (B,N,H,D): a view, (B, segments, rows, heads, …)."""
    B, _, H, *D = x.shape
    step_B, step_N, step_H, *step_D = x.stride()
    heads = range(*piece.heads.indices(H))
    sizes = (B, piece.segments, piece.rows, len(heads), *D)
    steps = (step_B, piece.apart * step_N, piece.rate * step_N, heads.step * step_H, *step_D)
    at = x.storage_offset() + piece.first * step_N + heads.start * step_H
    view: Tensor = torch.as_strided(x, sizes, steps, at)
    return view


def of_segments(x: Tensor, piece: Piece) -> Tensor:
    """The same as samples, (B·segments, heads, rows, …): a view, unless several samples have
    several segments that do not follow each other."""
    rows: Tensor = strided(x, piece).flatten(0, 1)
    return rows.transpose(1, 2)


def as_rows(x: Tensor, piece: Piece, B: int) -> Tensor:
    """Back from (B·segments, heads, rows, …) to (B, segments, rows, heads, …)."""
    rows: Tensor = x.transpose(1, 2).unflatten(0, (B, piece.segments))
    return rows


def gathered(x: Tensor, piece: Piece) -> Tensor:
    """As `of_segments`, in memory of its own."""
    return of_segments(x, piece).contiguous()


def combined(os: Tensor, lses: Tensor, mean: bool) -> tuple[Tensor, Tensor]:
    """o and lse of all branches, of each one's, (branches,B,N,H,D) and (branches,B,N,H)."""
    lse = lses.logsumexp(0)
    if mean:
        return os.float().mean(0).to(os.dtype), lse
    share = torch.where(lses > -torch.inf, (lses - lse).exp(), 0.0)
    return (os * share.unsqueeze(-1)).sum(0).to(os.dtype), lse


class _Branches(torch.autograd.Function):
    """All branches by PyTorch's operators, gradients added up in fp32.

    Combined by lse, all branches are one softmax: the gradients of each are those of its operator,
    given o and lse of the whole, which also holds the gradient of the weights.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, case: DilatedCase, take: Any, combine: Combined
    ) -> Tensor:
        operator, mean = operator_of(q), case.combine == Combine.mean
        os = torch.zeros(len(case.pieces), *q.shape, dtype=q.dtype, device=q.device)
        lses = torch.full(os.shape[:-1], -torch.inf, device=q.device)
        own = []
        for number, pieces in enumerate(case.pieces):
            for piece in pieces:
                o, lse = operator.forward(*(take(x, piece) for x in (q, k, v)), case.causal)
                strided(os[number], piece).copy_(as_rows(o, piece, case.B))
                strided(lses[number], piece).copy_(as_rows(lse, piece, case.B))
                own += [o, lse] if mean and ctx.needs_input_grad[0] else []
        result, lse = combine(os, lses, mean)
        ctx.case, ctx.take = case, take
        ctx.save_for_backward(q, k, v, *(own or (result, lse)))
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        case, take = ctx.case, ctx.take
        q, k, v, *results = ctx.saved_tensors
        operator, [do] = operator_of(q), grads
        mean = case.combine == Combine.mean
        do = (do / len(case.pieces) if mean else do).contiguous()
        sums = [torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in (q, k, v)]
        for number, piece in enumerate(piece for pieces in case.pieces for piece in pieces):
            if mean:
                o, lse = results[2 * number : 2 * number + 2]
            else:
                o, lse = take(results[0], piece), gathered(results[1], piece)
            parts = [take(x, piece) for x in (do, q, k, v)]
            found = operator.backward(*parts, o, lse, case.causal)
            for total, each in zip(sums, found, strict=True):
                strided(total, piece).add_(as_rows(each, piece, case.B))
        return *(x.to(q.dtype) for x in sums), None, None, None


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
    def attend(*tensors: Tensor) -> Tensor:
        o: Tensor = _Branches.apply(*tensors, case, take, combine)  # type: ignore[no-untyped-call]
        return o

    return attend


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

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        found = [branch(q, k, v, pieces) for pieces in case.pieces]
        os, lses = torch.stack([o for o, _ in found]), torch.stack([lse for _, lse in found])
        if case.combine == Combine.mean:
            return os.mean(0).to(q.dtype)
        kept = lses.amax(0) > -torch.inf  # elsewhere no softmax, and no gradient of one
        share = lses.where(kept, 0.0).softmax(0).where(kept, 0.0)
        return (os * share.unsqueeze(-1)).sum(0).to(q.dtype)

    return _in_order(case, attend)


def gather_serves(case: DilatedCase, device: Device) -> str | None:
    if case.order != Order.identity and not case.reorder:
        return "rows that are gathered lie in order"
    return serves(case, device)
