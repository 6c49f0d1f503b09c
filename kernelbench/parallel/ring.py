"""Zigzag context-parallel attention as a ring: keys and values go from rank to rank, and meanwhile
each rank attends to those that it has.

Shapes: as in `zigzag`; c rows of a chunk of a document.
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from kernelbench.kernels.attention import parts
from kernelbench.kernels.attention.checks import How
from kernelbench.kernels.operators import differentiable_once
from kernelbench.kernels.zigzag_attention.parts import delta_of
from kernelbench.parallel.layout import ZigzagLayout

_LN2 = math.log(2)


class Ring(NamedTuple):
    """What a call is about, besides tensors."""

    layout: ZigzagLayout
    group: Any
    rank: int
    scale: float | None


class _Rows(NamedTuple):
    """Of a rank's rows of documents that are cut: where documents begin among all of them, and
    among those of one kind of chunk; which are early, and which late."""

    starts: Tensor
    half_starts: Tensor
    early: Tensor
    late: Tensor


@lru_cache(maxsize=256)
def _rows_of(layout: ZigzagLayout, device: torch.device) -> _Rows:
    chunks = [rows // (2 * layout.ranks) for rows in layout.cut]
    kinds = torch.cat([torch.arange(2).repeat_interleave(c) for c in chunks])
    half = layout.joined(device).chunks
    early, late = ((kinds == kind).nonzero()[:, 0].to(device) for kind in (0, 1))
    return _Rows(2 * half, half, early, late)


class _Part(NamedTuple):
    """What a rank attends to in a step: some of its queries, some of the keys that are there. None
    for all."""

    queries: Tensor | None
    keys: Tensor | None
    starts: tuple[Tensor, Tensor]
    causal: bool


def _part(call: Ring, source: int, rows: _Rows) -> _Part:
    """Of its own keys, those up to a query's; of an earlier rank's, the early ones for all queries;
    of a later rank's, all for the late queries."""
    if source == call.rank:
        return _Part(None, None, (rows.starts, rows.starts), True)
    if source < call.rank:
        return _Part(None, rows.early, (rows.starts, rows.half_starts), False)
    return _Part(rows.late, None, (rows.half_starts, rows.starts), False)


def _some(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x.index_select(0, rows)


class _Passing:
    """Tensors on their way to the next rank, and what comes from the one before."""

    def __init__(self, call: Ring, *sent: Tensor) -> None:
        group, ranks = call.group, call.layout.ranks
        of: Any = group or dist.group.WORLD
        to, source = (dist.get_global_rank(of, (call.rank + step) % ranks) for step in (1, -1))
        self._sent = sent  # kept until they are gone
        self.came = tuple(torch.empty_like(x) for x in sent)
        sends = [dist.P2POp(dist.isend, x, to, group) for x in sent]
        takes = [dist.P2POp(dist.irecv, x, source, group) for x in self.came]
        self._works = dist.batch_isend_irecv([*sends, *takes])

    def wait(self) -> tuple[Tensor, ...]:
        for work in self._works:
            work.wait()
        return self.came


class RingAttention(torch.autograd.Function):
    """o of the rows of documents that are cut, (C,H,D), causal."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, call: Ring) -> Tensor:
        q, k, v = (_without_padding(x, call) for x in (q, k, v))
        rows = _rows_of(call.layout, q.device)
        total, lse = None, None
        there: tuple[Tensor, ...] = (k.contiguous(), v.contiguous())
        for step in range(call.layout.ranks):
            going = _Passing(call, *there) if step + 1 < call.layout.ranks else None
            source = (call.rank - step) % call.layout.ranks
            part = _part(call, source, rows)
            o_s, lse_s = parts.forward(
                _some(q, part.queries),
                *(_some(x, part.keys) for x in there),
                starts=part.starts,
                how=How(part.causal, call.scale),
            )
            total, lse = _merged(total, lse, o_s, lse_s[0] * _LN2, part.queries)
            there = going.wait() if going is not None else there
        assert total is not None and lse is not None
        o = _without_padding(total.to(q.dtype), call)
        ctx.call = call
        ctx.save_for_backward(q, k, v, o, lse)
        return o

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, do: Tensor) -> Any:
        call: Ring = ctx.call
        q, k, v, o, lse = ctx.saved_tensors
        do = _without_padding(do, call)
        rows, ranks = _rows_of(call.layout, q.device), call.layout.ranks
        delta = delta_of(do, o)
        dq = torch.zeros_like(q, dtype=torch.float32)
        there: tuple[Tensor, ...] = (k.contiguous(), v.contiguous())
        sums: tuple[Tensor, ...] = (*(torch.zeros_like(x, dtype=torch.float32) for x in there),)
        coming = None
        for step in range(ranks):
            going = _Passing(call, *there) if step + 1 < ranks else None
            part = _part(call, (call.rank - step) % ranks, rows)
            found = _gradients((do, q, lse, delta), there, part, call)
            if coming is not None:
                sums = coming.wait()
            _add(dq, part.queries, found[0])
            for total, gradient in zip(sums, found[1:], strict=True):
                _add(total, part.keys, gradient)
            coming = _Passing(call, *sums) if ranks > 1 else None
            there = going.wait() if going is not None else there
        dk, dv = coming.wait() if coming is not None else sums
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None


def _gradients(
    queries: tuple[Tensor, ...], keys: tuple[Tensor, ...], part: _Part, call: Ring
) -> tuple[Tensor, Tensor, Tensor]:
    """What a part adds to dq, dk and dv, by the statistics of the whole."""
    do, q, lse, delta = queries
    lse = lse[None] / _LN2
    if part.queries is not None:
        lse, delta = (x.index_select(2, part.queries) for x in (lse, delta))
    k, v = (_some(x, part.keys) for x in keys)
    return parts.backward(
        _some(do, part.queries),
        _some(q, part.queries),
        k,
        v,
        lse,
        delta,
        starts=part.starts,
        how=How(part.causal, call.scale),
    )


def _add(total: Tensor, rows: Tensor | None, part: Tensor) -> None:
    if rows is None:
        total += part
    else:
        total.index_add_(0, rows, part.float())


def _merged(
    o: Tensor | None, lse: Tensor | None, o_s: Tensor, lse_s: Tensor, rows: Tensor | None
) -> tuple[Tensor, Tensor]:
    """o −= σ(lse_s − lse)(o − o_s), lse −= log σ(lse − lse_s), in fp32, of some rows. o: (C,H,D);
    lse: (H,C), natural."""
    if o is None or lse is None:
        return o_s.float(), lse_s
    before, lse_before = _some(o, rows), lse if rows is None else lse[:, rows]
    share = torch.sigmoid(lse_s - lse_before).T[:, :, None]
    after = before - share * (before - o_s)
    lse_after = lse_before - torch.nn.functional.logsigmoid(lse_before - lse_s)
    if rows is None:
        return after, lse_after
    return o.index_copy(0, rows, after), lse.index_copy(1, rows, lse_after)


def _without_padding(x: Tensor, call: Ring) -> Tensor:
    """Zeros in rows that are padded, of which there may be none."""
    padding = call.layout.padding(call.rank, x.device)
    return x if padding is None else x.masked_fill(padding[: len(x), None, None], 0)
