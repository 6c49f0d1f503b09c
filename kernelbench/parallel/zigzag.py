"""Zigzag context-parallel attention over the ranks of a group: keys and values are gathered, a few
heads at a time, while the heads before them are attended to.

Shapes: L rows of a rank, C of them of documents that are cut, H heads of q, G of k and v, D head
size, W ranks.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kernelbench.kernels.attention import attention
from kernelbench.kernels.attention.checks import DTYPES, check_starts
from kernelbench.kernels.attention.tiles import statistic_of, to_base_2
from kernelbench.kernels.operators import as_flag, as_scale, differentiable_once
from kernelbench.kernels.zigzag_attention import parts
from kernelbench.kernels.zigzag_attention.lengths import How, check_rising, values_of
from kernelbench.parallel.collectives import all_gather_single, reduce_scatter_single
from kernelbench.parallel.layout import ZigzagLayout
from kernelbench.parallel.ring import Ring, RingAttention

COMM_TYPES = ("all_gather", "p2p")  # as TransformerEngine names them


class _Call(NamedTuple):
    """What a call is about, besides tensors. step: heads of k and v that are gathered at a time."""

    layout: ZigzagLayout
    group: Any
    rank: int
    step: int
    how: How


class _Heads(NamedTuple):
    """Heads of q, and those of k and v that they share."""

    q: slice
    k: slice


def _heads(q: Tensor, k: Tensor, step: int) -> list[_Heads]:
    G = k.shape[1]
    group = q.shape[1] // G
    return [
        _Heads(slice(first * group, (first + step) * group), slice(first, first + step))
        for first in range(0, G, step)
    ]


def _gathered(
    k: Tensor, v: Tensor, heads: list[_Heads], call: _Call
) -> Iterator[tuple[_Heads, Tensor, Tensor]]:
    """k and v of all ranks, one rank's rows after another's, for some heads after others: those of
    the next ones travel meanwhile."""

    def begin(some: slice) -> tuple[Tensor, Any]:
        both = torch.cat([k[:, some], v[:, some]], 1)  # one message
        if call.layout.ranks == 1:
            return both, None
        every = both.new_empty(call.layout.ranks * len(both), *both.shape[1:])
        return every, all_gather_single(every, both, group=call.group, async_op=True)

    coming = begin(heads[0].k)
    for i, some in enumerate(heads):
        every, work = coming
        if i + 1 < len(heads):
            coming = begin(heads[i + 1].k)
        if work is not None:
            work.wait()
        yield some, *every.split(every.shape[1] // 2, 1)


class _Zigzag(torch.autograd.Function):
    """o of the rows of documents that are cut, (C,H,D)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, call: _Call) -> Tensor:
        o, lse = q.new_empty(q.shape), statistic_of(q.unsqueeze(0))
        documents = call.layout.joined(q.device)
        for some, k_all, v_all in _gathered(k, v, _heads(q, k, call.step), call):
            outs = o[:, some.q], lse[:, some.q]
            parts.forward(q[:, some.q], k_all, v_all, documents, *outs, how=call.how)
            del k_all, v_all  # before memory is taken for those after the next
        ctx.call = call
        ctx.save_for_backward(q, k, v, o, lse)
        return o

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, do: Tensor) -> Any:
        call: _Call = ctx.call
        q, k, v, o, lse = ctx.saved_tensors
        do = do.contiguous()
        statistics = to_base_2(lse, q.unsqueeze(0)), parts.delta_of(do, o)
        dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
        documents, going = call.layout.joined(q.device), None
        for some, k_all, v_all in _gathered(k, v, _heads(q, k, call.step), call):
            both = k_all.new_empty(
                len(k_all), 2 * k_all.shape[1], k_all.shape[2], dtype=torch.float32
            )
            dk_all, dv_all = both.split(k_all.shape[1], 1)
            outs = dq[:, some.q], dk_all, dv_all
            saved = statistics[0][:, some.q], statistics[1][:, some.q]
            queries = do[:, some.q], q[:, some.q]
            parts.backward(*queries, k_all, v_all, documents, saved, outs, how=call.how)
            del k_all, v_all  # as in the forward
            _land(going, dk, dv)
            going = _send(both, some, call)
        _land(going, dk, dv)
        return dq, dk, dv, None


class _Going(NamedTuple):
    """Sums of dk and dv over the ranks that are under way: `sums`, (C,2·heads,D) in fp32, will hold
    this rank's. both: what is summed, kept until then."""

    some: _Heads
    sums: Tensor
    both: Tensor
    work: Any


def _send(both: Tensor, some: _Heads, call: _Call) -> _Going:
    ranks = call.layout.ranks
    if ranks == 1:
        return _Going(some, both, both, None)
    sums = both.new_empty(len(both) // ranks, *both.shape[1:])
    work = reduce_scatter_single(sums, both, group=call.group, async_op=True)
    return _Going(some, sums, both, work)


def _land(going: _Going | None, dk: Tensor, dv: Tensor) -> None:
    """Round the sums into dk and dv."""
    if going is None:
        return
    if going.work is not None:
        going.work.wait()
    for gradient, total in zip((dk, dv), going.sums.chunk(2, 1), strict=True):
        gradient[:, going.some.k] = total


def zigzag_attention_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor | ZigzagLayout,
    group: Any = None,
    *,
    heads_k_stride: int = 1,
    causal: bool = True,
    softmax_scale: float | None = None,
    cp_comm_type: str = "all_gather",
) -> Tensor:
    """softmax(q kᵀ·scale) v of packed documents that are spread over the ranks of a group.

    q: (L,H,D), k, v: (L,G,D), this rank's rows as `ZigzagLayout.shard` cuts them; G divides H.
    cu_seqlens: (S+1,) of int32, where the documents begin among all tokens, the same on every rank;
        read on the host once. Or their layout, which says itself which of them are whole.
    group: of torch.distributed; all ranks unless given, or this process alone where that is not
        initialised. Every rank of it must call.
    heads_k_stride: heads of k and v that are gathered at a time; it divides G. Memory is that of k
        and v of all tokens for twice as many heads, and of their gradients in fp32.
    causal: a token attends to its document up to its own position; else to all of it.
    softmax_scale: of the scores, positive; 1/√D unless given.
    cp_comm_type: "all_gather"; or "p2p": keys go around the ranks as a ring, all heads at once, and
        parts are merged by their statistics in fp32 (causal alone). Memory is that of k and v of
        two ranks, in the backward and of their gradients in fp32.

    Returns o, like q; zeros for padded rows. Only keys of documents that are cut travel, k and v in
    one message, those of the next heads while the kernel works on the last ones. In the backward
    they travel again, and dk and dv are summed over the ranks in fp32.

    Raises ValueError for shapes that do not fit the layout, TypeError for dtypes, and what
    `zigzag_attention` raises. Llama 3 (arXiv:2407.21783, §3.3.2).
    """
    ranks, rank = 1, 0
    if group is not None or dist.is_initialized():
        ranks, rank = dist.get_world_size(group), dist.get_rank(group)
    layout = cu_seqlens
    if isinstance(layout, Tensor):
        check_starts("zigzag_attention_func", "S documents", {"cu_seqlens": layout})
        starts = values_of("cu_seqlens", layout, False)
        check_rising(starts, "zigzag_attention_func")
        layout = ZigzagLayout.of(starts.lengths(), ranks)
    _check(q, k, v, layout, ranks, rank, heads_k_stride)
    scale = as_scale("zigzag_attention_func", "softmax_scale", softmax_scale)
    causal = as_flag("zigzag_attention_func", "causal", causal)
    if cp_comm_type not in COMM_TYPES or (cp_comm_type == "p2p" and not causal):
        raise ValueError(
            f"zigzag_attention_func takes cp_comm_type as one of {', '.join(COMM_TYPES)}, p2p "
            f"where causal, got {cp_comm_type!r}, causal={causal}"
        )
    how = How(rank, 2 * ranks - 1 - rank, 2 * ranks, scale, causal, True)
    C, whole = layout.cut_rows, layout.whole(rank)
    results = []
    if layout.cut:
        cut = q[:C], k[:C], v[:C]
        results.append(
            RingAttention.apply(*cut, Ring(layout, group, rank, scale))  # type: ignore[no-untyped-call]
            if cp_comm_type == "p2p"
            else _Zigzag.apply(*cut, _Call(layout, group, rank, heads_k_stride, how))  # type: ignore[no-untyped-call]
        )
    if whole or not layout.cut:
        begins = layout.whole_starts(rank, q.device) if whole else None
        results.append(_attend_whole(q[C:], k[C:], v[C:], begins, causal, scale))
    return results[0] if len(results) == 1 else torch.cat(results)


def _attend_whole(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None, causal: bool, scale: float | None
) -> Tensor:
    if starts is None:  # a rank without a row, whose k and v have gradients all the same
        return q + (k.sum() + v.sum())
    o = attention(q, k, v, cu_seqlens_q=starts, causal=causal, scale=scale)
    assert isinstance(o, Tensor)
    return o


def _check(
    q: Tensor, k: Tensor, v: Tensor, layout: ZigzagLayout, ranks: int, rank: int, step: int
) -> None:
    name = "zigzag_attention_func"
    if layout.ranks != ranks:
        raise ValueError(f"{name}: the layout is of {layout.ranks} ranks, the group has {ranks}")
    rows = layout.cut_rows + sum(layout.whole(rank))
    shapes = [tuple(x.shape) for x in (q, k, v)]
    if (
        any(len(shape) != 3 or shape[0] != rows for shape in shapes)
        or shapes[1] != shapes[2]
        or shapes[0][2] != shapes[1][2]
    ):
        raise ValueError(
            f"{name} takes q (L,H,D), k and v (L,G,D), where rank {rank} has L = {rows} rows of "
            f"these documents, got {', '.join(map(str, shapes))}"
        )
    dtypes = [x.dtype for x in (q, k, v)]
    if dtypes[0] not in DTYPES or len({*dtypes}) > 1:
        raise TypeError(
            f"{name} takes q, k and v of one dtype, float32, float16 or bfloat16, got "
            f"{', '.join(map(str, dtypes))}: convert them with .to()"
        )
    G = shapes[1][1]
    if shapes[0][1] % max(G, 1) or not 1 <= step <= G or G % step:
        raise ValueError(
            f"{name} takes heads of k and v that divide those of q, and heads_k_stride that "
            f"divides them, got {shapes[0][1]} of q, {G}, and {step}"
        )


class ZigzagAttention(nn.Module):
    """`zigzag_attention_func` as a module, with its group and options."""

    def __init__(
        self,
        group: Any = None,
        *,
        heads_k_stride: int = 1,
        causal: bool = True,
        softmax_scale: float | None = None,
        cp_comm_type: str = "all_gather",
    ) -> None:
        super().__init__()
        self.group, self.heads_k_stride = group, heads_k_stride
        self.causal, self.softmax_scale, self.cp_comm_type = causal, softmax_scale, cp_comm_type

    def forward(self, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor | ZigzagLayout) -> Tensor:
        return zigzag_attention_func(
            *(q, k, v, cu_seqlens, self.group),
            heads_k_stride=self.heads_k_stride,
            causal=self.causal,
            softmax_scale=self.softmax_scale,
            cp_comm_type=self.cp_comm_type,
        )
