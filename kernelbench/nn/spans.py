"""Attention of some rows of q to some of k and v, each a part of one softmax: results merged by
lse, and their gradients given o and lse of the whole.

Shapes: B samples, N rows of q, M of k and v, H heads, D head size; q, o (B,N,H,D), k, v (B,M,H,D),
lse (B,N,H).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kernelbench.kernels.attention import parts
from kernelbench.kernels.attention.checks import PLAIN
from kernelbench.kernels.attention.tiles import to_base_2
from kernelbench.nn.branches import Piece, as_rows, gathered, of_segments, strided
from kernelbench.nn.lse import Operator, operator_of, summed_in

Operators = Callable[[Tensor], Operator]  # which one takes such q, k and v, (B,H,N,D)


class Span(NamedTuple):
    """Rows of q, and those of k and v that they attend to, in as many segments and heads. causal:
    query i to keys up to i, of as many."""

    q: Piece
    k: Piece
    causal: bool


class Merged(NamedTuple):
    """What has been attended to so far, in fp32 or wider: o (B,N,H,D) and lse (B,N,H)."""

    o: Tensor
    lse: Tensor


class Way(NamedTuple):
    """operators: by which kernels. take: `of_segments`, views; or `gathered`, copies."""

    operators: Operators = operator_of
    take: Callable[[Tensor, Piece], Tensor] = of_segments


def merge(merged: Merged, spans: Iterable[Span], q: Tensor, k: Tensor, v: Tensor, way: Way) -> None:
    """Add what spans attend to, in place: o ← Σ exp(lse_i − lse)·o_i with lse = ln Σ exp(lse_i)."""
    B = len(q)
    for span in spans:
        taken = way.take(q, span.q), way.take(k, span.k), way.take(v, span.k)
        o, lse = _operator(way, *taken[:2]).forward(*taken, span.causal)
        own, of = as_rows(o, span.q, B), as_rows(lse, span.q, B)
        o_so_far, lse_so_far = strided(merged.o, span.q), strided(merged.lse, span.q)
        both = torch.logaddexp(lse_so_far, of)
        o_so_far.mul_((lse_so_far - both).exp().unsqueeze(-1))
        o_so_far.addcmul_(own.to(both.dtype), (of - both).exp().unsqueeze(-1))
        lse_so_far.copy_(both)


class Given(NamedTuple):
    """Of all keys: the upstream gradient do, o, and lse."""

    do: Tensor
    o: Tensor
    lse: Tensor


def add_gradients(
    sums: Sequence[Tensor],
    spans: Iterable[Span],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    given: Given,
    way: Way,
) -> None:
    """Add to dq, dk and dv, like q, k and v in fp32 or wider, what spans have of them, in place."""
    B = len(q)
    for span in spans:
        taken = way.take(q, span.q), way.take(k, span.k), way.take(v, span.k)
        do, o = way.take(given.do, span.q), way.take(given.o, span.q)
        lse = gathered(given.lse, span.q)
        found = _operator(way, *taken[:2]).backward(do, *taken, o, lse, span.causal)
        for total, each, piece in zip(sums, found, (span.q, span.k, span.k), strict=True):
            strided(total, piece).add_(as_rows(each, piece, B))


def _operator(way: Way, q: Tensor, k: Tensor) -> Operator:
    """That which also takes as few rows as the shorter one has."""
    return way.operators(min(q, k, key=lambda x: x.shape[2]))


def wide_zeros(x: Tensor) -> Tensor:
    """A sum like x, contiguous, in fp32 or wider."""
    return torch.zeros(x.shape, dtype=summed_in(x.dtype), device=x.device)


def finished(merged: Sequence[Merged], q: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The result like q, and what its gradients need: o and lse of each softmax."""
    os = [each.o.to(q.dtype) for each in merged]
    if len(merged) == 1:
        return os[0], [os[0], merged[0].lse]
    total = merged[0].o
    for each in merged[1:]:
        total = total + each.o
    saved = [x for o, each in zip(os, merged, strict=True) for x in (o, each.lse)]
    return (total / len(merged)).to(q.dtype), saved


def all_given(do: Tensor, saved: Sequence[Tensor]) -> list[Given]:
    """What each softmax is given, of what `finished` saved."""
    softmaxes = len(saved) // 2
    do = (do / softmaxes if softmaxes > 1 else do).contiguous()
    return [Given(do, *pair) for pair in zip(saved[::2], saved[1::2], strict=True)]


def _ours(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    rows = (x.transpose(1, 2) for x in (q, k, v))
    o, lse = parts.forward(*rows, how=PLAIN._replace(causal=causal))
    return o.transpose(1, 2), lse * math.log(2)


def _ours_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    do, q, k, v, o = (x.transpose(1, 2) for x in (do, q, k, v, o))
    statistics = to_base_2(lse, q), parts.delta_of(do, o)
    found = parts.backward(do, q, k, v, *statistics, how=PLAIN._replace(causal=causal))
    dq, dk, dv = (x.transpose(1, 2) for x in found)
    return dq, dk, dv


_OURS = Operator(_ours, _ours_backward)


def ours(q: Tensor) -> Operator:
    """Our attention, as `operator_of` gives PyTorch's: bf16, fp16 and fp32."""
    return _OURS
