"""Attention of branches of dilated attention by PyTorch's operators, and what branches keep.

Shapes: B samples, N tokens, H heads, D head size; q, k, v, o (B,N,H,D).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernelbench.kernels.operators import differentiable_once
from kernelbench.nn.lse import operator_of, summed_in

Combined = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor]]
Attend = Callable[[Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor]]


class Piece(NamedTuple):
    """Positions that some heads keep of some segments of a branch, as many of each: position j of
    segment i is first + i·apart + j·rate."""

    first: int
    segments: int
    apart: int
    rows: int
    rate: int
    heads: slice


def heads_of(piece: Piece, H: int) -> int:
    """How many."""
    return len(range(*piece.heads.indices(H)))


def pieces_of(w: int, r: int, N: int, H: int, offset_rule: str, before: int = 0) -> Iterator[Piece]:
    """All positions that the branch (w, r) keeps of N, w at most N, of all heads.

    offset_rule: as `kernels.dilated_attention.dilated_attention` has it. before: segments in front
    of these, which count for it.
    """
    whole, rest = divmod(N, w)
    for s in range(r):
        heads, begin = slice(0, H), (s - before) % r
        of_whole, apart, is_last = len(range(begin, whole, r)), w * r, whole % r == begin
        first = begin * w
        if offset_rule != "segment_index":
            of_whole, apart, first, is_last = whole, w, 0, True
            each = -(-H // r)
            mod = offset_rule == "head_mod"
            heads = slice(s, H, r) if mod else slice(s * each, min((s + 1) * each, H))
        if not len(range(*heads.indices(H))):
            continue
        if of_whole and s < w:
            yield Piece(first + s, of_whole, apart, len(range(s, w, r)), r, heads)
        if rest and is_last and s < rest:
            yield Piece(whole * w + s, 1, w, len(range(s, rest, r)), r, heads)


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
        return os.to(lses.dtype).mean(0).to(os.dtype), lse
    share = torch.where(lses > -torch.inf, (lses - lse).exp(), 0.0)
    return (os * share.unsqueeze(-1)).sum(0).to(os.dtype), lse


def combined_in_autograd(os: Tensor, lses: Tensor, mean: bool) -> Tensor:
    """o of all branches, where autograd differentiates o and lse of each."""
    lses = lses.where(lses.amax(0) > -torch.inf, 0.0)  # where no branch has any, no NaN
    return combined(os, lses, mean)[0]


def repeated(x: Tensor, H: int) -> Tensor:
    """k or v, (B,N,G,D), with a head for each of H that share them."""
    return x if x.shape[2] == H else x.repeat_interleave(H // x.shape[2], 2)


def nothing_of(q: Tensor) -> tuple[Tensor, Tensor]:
    """o (B,N,H,D) and lse (B,N,H) of no key, in fp32 or wider."""
    wide = summed_in(q.dtype)
    o = torch.zeros(q.shape, dtype=wide, device=q.device)
    return o, torch.full(q.shape[:3], -torch.inf, dtype=wide, device=q.device)


def attend_gathered(
    q: Tensor, k: Tensor, v: Tensor, pieces: Iterable[Piece], causal: bool, attend: Attend
) -> tuple[Tensor, Tensor]:
    """o (B,N,H,D) and lse (B,N,H) of a branch, on rows that are gathered.

    attend(q, k, v, causal) → o (B,M,H,D), lse (B,H,M), differentiable.
    """
    B, N, H, D = q.shape
    o, lse = nothing_of(q)
    tokens = torch.arange(N, device=q.device)[None, :, None]
    for piece in pieces:
        parts = [gathered(x, piece).transpose(1, 2) for x in (q, k, v)]
        own, of = attend(parts[0], parts[1], parts[2], causal)
        rows = strided(tokens, piece._replace(heads=slice(0, 1))).flatten()
        heads = torch.arange(H, device=q.device)[piece.heads]
        sizes = B, -1, len(heads)
        at = torch.arange(B, device=q.device)[:, None, None], rows[:, None], heads
        o = o.index_put(at, own.reshape(*sizes, D).to(o.dtype))
        lse = lse.index_put(at, of.transpose(1, 2).reshape(sizes).to(lse.dtype))
    return o, lse


class How(NamedTuple):
    """pieces: of each branch. causal: within them. mean: branches are combined by their mean, not
    by lse. take: `of_segments`, or `gathered`. combine: `combined`, or what is made of it."""

    pieces: Sequence[Sequence[Piece]]
    causal: bool
    mean: bool
    take: Callable[[Tensor, Piece], Tensor] = of_segments
    combine: Combined = combined


class Branches(torch.autograd.Function):
    """All branches by PyTorch's operators, gradients added up in fp32.

    Combined by lse, all branches are one softmax: the gradients of each are those of its operator,
    given o and lse of the whole, which also holds the gradient of the weights.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, how: How) -> Tensor:
        take, B = how.take, len(q)
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
        os = torch.zeros(len(how.pieces), *q.shape, dtype=q.dtype, device=q.device)
        wide = summed_in(q.dtype)
        lses = torch.full(os.shape[:-1], -torch.inf, dtype=wide, device=q.device)
        own = []
        for number, pieces in enumerate(how.pieces):
            for piece in pieces:
                parts = [take(x, piece) for x in (q, k, v)]
                o, lse = operator_of(parts[0]).forward(*parts, how.causal)
                strided(os[number], piece).copy_(as_rows(o, piece, B))
                strided(lses[number], piece).copy_(as_rows(lse, piece, B))
                own += [o, lse] if how.mean and any(ctx.needs_input_grad) else []
        result, lse = how.combine(os, lses, how.mean)
        ctx.how = how
        ctx.save_for_backward(q, k, v, *(own or (result, lse)))
        return result

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *grads: Any) -> Any:
        how: How = ctx.how
        q, k, v, *results = ctx.saved_tensors
        [do] = grads
        do = (do / len(how.pieces) if how.mean else do).contiguous()
        wide = summed_in(q.dtype)
        sums = [torch.zeros(x.shape, dtype=wide, device=x.device) for x in (q, k, v)]
        for number, piece in enumerate(piece for pieces in how.pieces for piece in pieces):
            if how.mean:
                o, lse = results[2 * number : 2 * number + 2]
            else:
                o, lse = how.take(results[0], piece), gathered(results[1], piece)
            parts = [how.take(x, piece) for x in (do, q, k, v)]
            found = operator_of(parts[1]).backward(*parts, o, lse, how.causal)
            for total, each in zip(sums, found, strict=True):
                strided(total, piece).add_(as_rows(each, piece, len(q)))
        return *(x.to(q.dtype) for x in sums), None


def attend(q: Tensor, k: Tensor, v: Tensor, how: How) -> Tensor:
    """o of all branches, with gradients."""
    o: Tensor = Branches.apply(q, k, v, how)  # type: ignore[no-untyped-call]
    return o
