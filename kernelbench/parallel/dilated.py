"""Dilated attention over the ranks of a group: segments longer than a rank's tokens are shared, and
of their keys and values only the rows that a branch keeps travel.

Shapes: B samples, N tokens of all W ranks, L = N / W of a rank, H heads of q, G of k and v, D head
size; q (B,L,H,D), k, v (B,L,G,D).
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any, NamedTuple, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kernelbench.kernels.dilated_attention.checks import (
    check_shapes,
    how_of,
    refuse_dropout,
)
from kernelbench.kernels.operators import differentiable_once
from kernelbench.nn.branches import Piece, nothing_of, repeated
from kernelbench.nn.dilated import Implementation, check_given, check_impl, chosen
from kernelbench.nn.spans import (
    Given,
    Merged,
    Span,
    Way,
    add_gradients,
    all_given,
    finished,
    merge,
    ours,
    wide_zeros,
)
from kernelbench.parallel.collectives import all_gather_single, reduce_scatter_single
from kernelbench.parallel.segments import Branch, Kept, Ranks, branch_of, misfit, unmade


class _Call(NamedTuple):
    """What a call is about, besides tensors."""

    branches: list[Branch]
    rank: int
    causal: bool
    mean: bool
    way: Way


class _Travelling(NamedTuple):
    """Messages of a branch, or sums of them: there when work is done. kept: until then."""

    there: Tensor
    work: Any
    kept: Tensor | None = None


class _Rows(NamedTuple):
    """What a class of rows attends to of others' keys. every: their messages' part of it,
    (ranks,2,B,rows,heads,D). those: which ranks it sees."""

    one: Kept
    every: Tensor
    those: list[int]

    @property
    def span(self) -> Span:
        rows, q = sum(self.one.counts[i] for i in self.those), self.one.piece
        return Span(q, Piece(0, 1, max(1, rows), rows, 1, slice(None)), False)

    def keys(self, heads: int) -> Tensor:
        """k and v of these ranks, (2,B,M,heads,D)."""
        each = [self.every[i, :, :, : self.one.counts[i]] for i in self.those]
        both, sent = torch.cat(each, 2), self.one.sent
        return both if sent == heads else both.repeat_interleave(heads // sent, 3)

    def put(self, gradients: Tensor) -> None:
        """Gradients of `keys` into `every`, summed over heads of q that share them."""
        heads = self.every.shape[4]
        summed = gradients.unflatten(3, (heads, -1)).sum(4)
        parts = summed.split([self.one.counts[i] for i in self.those], 2)
        for i, part in zip(self.those, parts, strict=True):
            self.every[i, :, :, : self.one.counts[i]] = part


def _rows_of(every: Tensor, branch: Branch, call: _Call, q: Tensor) -> Iterator[_Rows]:
    """Of all classes that see rows of others. every: all messages, or a sum like them."""
    ranks, own, first = len(branch.members), call.rank - branch.members[0], 0
    messages = every.view(ranks, every.numel() // ranks)
    for one in branch.classes:
        sizes = one.sizes(len(q), q.shape[-1])
        size = torch.Size(sizes).numel()
        part = messages[:, first : first + size].unflatten(1, sizes)
        first += size
        seen = range(own) if call.causal else range(ranks)
        those = [i for i in seen if i != own and one.counts[i]]
        if those and one.piece.rows:
            yield _Rows(one, part, those)


class _Ring(torch.autograd.Function):
    """o of a rank's tokens. What travels does so while a rank attends to its own keys."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, call: _Call) -> Tensor:
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
        coming = [
            _gather(k, v, branch, q.shape[2]) if branch.shared else None for branch in call.branches
        ]
        H, several = q.shape[2], call.branches if call.mean else call.branches[:1]
        merged = [Merged(*nothing_of(q)) for _ in several]
        whole = repeated(k, H), repeated(v, H)
        for number, branch in enumerate(call.branches):
            merge(merged[number % len(merged)], branch.spans, q, *whole, call.way)
        for number, (branch, one) in enumerate(zip(call.branches, coming, strict=True)):
            if one is None:
                continue
            one.work.wait()
            for rows in _rows_of(one.there, branch, call, q):
                keys = rows.keys(len(range(*rows.span.q.heads.indices(H))))
                merge(merged[number % len(merged)], [rows.span], q, keys[0], keys[1], call.way)
        o, saved = finished(merged, q)
        ctx.call, ctx.saved = call, len(saved)
        every = [q.new_empty(0) if one is None else one.there for one in coming]
        ctx.save_for_backward(q, k, v, *saved, *every)
        return o

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *grads: Any) -> Any:
        call: _Call = ctx.call
        q, k, v, *others = ctx.saved_tensors
        given = all_given(grads[0], others[: ctx.saved])
        H, every = q.shape[2], others[ctx.saved :]
        whole = repeated(k, H), repeated(v, H)
        sums = [wide_zeros(x) for x in (q, *whole)]
        going = [
            _scatter(sums[0], q, branch, messages, given[number % len(given)], call)
            if branch.shared
            else None
            for number, (branch, messages) in enumerate(zip(call.branches, every, strict=True))
        ]
        for number, branch in enumerate(call.branches):
            add_gradients(sums, branch.spans, q, *whole, given[number % len(given)], call.way)
        dk, dv = (x.unflatten(2, (k.shape[2], -1)).sum(3) for x in sums[1:])
        for branch, one in zip(call.branches, going, strict=True):
            if one is not None:
                _land(one, branch, dk, dv, H)
        return *(x.to(q.dtype) for x in (sums[0], dk, dv)), None


def spread(
    q: Tensor, k: Tensor, v: Tensor, branches: list[list[Span]], mean: bool, way: Way
) -> Tensor:
    """o like q, of keys that are all here: branches of spans, as one softmax, or their mean."""
    own = [Branch(spans, range(0), [], None) for spans in branches]
    o: Tensor = _Ring.apply(q, k, v, _Call(own, 0, False, mean, way))  # type: ignore[no-untyped-call]
    return o


def _gather(k: Tensor, v: Tensor, branch: Branch, H: int) -> _Travelling:
    """Send this rank's rows of k and v of all classes, as many for each rank."""
    parts = []
    for one in branch.classes:
        both = torch.stack([one.taken(x, H) for x in (k, v)])
        missing = max(one.counts) - both.shape[2]
        parts.append(nn.functional.pad(both, (0, 0, 0, 0, 0, missing)).flatten())
    message = torch.cat(parts)
    every = message.new_empty(len(branch.members) * len(message))
    work = all_gather_single(every, message, group=branch.group, async_op=True)
    return _Travelling(every, work)


def _scatter(
    dq: Tensor, q: Tensor, branch: Branch, every: Tensor, given: Given, call: _Call
) -> _Travelling:
    """Add to dq what others' keys have of it, and send them their gradients, in fp32 or wider."""
    total = wide_zeros(every)
    both = zip(*(_rows_of(x, branch, call, q) for x in (every, total)), strict=True)
    for rows, sums in both:
        keys = rows.keys(len(range(*rows.span.q.heads.indices(q.shape[2]))))
        found = torch.zeros_like(keys, dtype=total.dtype)
        sums_of = dq, found[0], found[1]
        add_gradients(sums_of, [rows.span], q, keys[0], keys[1], given, call.way)
        sums.put(found)
    mine = total.new_empty(len(total) // len(branch.members))
    work = reduce_scatter_single(mine, total, group=branch.group, async_op=True)
    return _Travelling(mine, work, total)


def _land(going: _Travelling, branch: Branch, dk: Tensor, dv: Tensor, H: int) -> None:
    """Add to dk and dv what other ranks have of them."""
    going.work.wait()
    first = 0
    for one in branch.classes:
        sizes = one.sizes(len(dk), dk.shape[-1])
        size = torch.Size(sizes).numel()
        part = going.there[first : first + size].view(sizes)[:, :, : one.piece.rows]
        first += size
        for sums, each in zip((dk, dv), part, strict=True):
            one.add(sums, each, H)


class RingDilatedAttention(nn.Module):
    """LongNet's dilated attention of tokens that are spread over the ranks of a group.

    segment_lengths, dilation_rates: w and r of each branch. With L tokens a rank, w divides L, or L
    divides w; w longer than all N tokens means N.
    dropout: 0; anything else is refused.
    group: of torch.distributed; all ranks unless given (also where `new_group` returned None, to a
        process that is none of its), or this process alone where that is not initialised. Every
        rank of it must call, with as many samples and tokens, and with gradients or without.
    offset_rule, combine: see `kernels.dilated_attention.dilated_attention`.
    impl: `triton`: our kernels. `eager`: PyTorch's attention operators, any dtype. `auto`: `triton`
        where the kernels run, else `eager`.
    device, dtype: that q, k and v must have; any if left out.

    A segment of w ≤ L is this rank's own. Of a longer one, each of its w/L ranks sends the rows of
    k and v that a head keeps, in one message for each branch, while it attends to keys of its own;
    then its rows attend to those of the others. Ranks send as many rows each as the one that has
    most. Parts are merged by their lse in fp32. Memory besides the rank's own: w/r rows of k and v
    for each branch that is shared, and o in fp32, for the mean of each branch; where heads share
    keys, k and v of all H heads, and in the backward their gradients in fp32. In the backward
    gradients of these rows are summed over the segment's ranks, in fp32, while those of the rank's
    own keys are computed. All modules share communicators.

    Raises TypeError and ValueError for arguments that cannot be, NotImplementedError for dropout.

    Ding et al., LongNet, 2023 (arXiv:2307.02486, §3.2).
    """

    def __init__(
        self,
        segment_lengths: Sequence[int],
        dilation_rates: Sequence[int],
        dropout: float = 0.0,
        *,
        group: Any = None,
        offset_rule: str = "head_mod",
        combine: str = "lse",
        impl: Implementation = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        refuse_dropout(dropout)
        check_impl("RingDilatedAttention", impl)
        given = {"offset_rule": offset_rule, "combine": combine}
        others = {"order": "identity", "grid": None, "reorder": False, "scale": None}
        self._how = how_of(segment_lengths, dilation_rates, causal=False, **given, **others)
        self.group, self.impl, self.dtype = group, impl, dtype
        self.device = None if device is None else torch.device(device)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, is_causal: bool = False) -> Tensor:
        """y, like q, of this rank's tokens, which follow those of the rank before. is_causal: by
        the positions of tokens among all, in every segment.

        Raises TypeError for another dtype, RuntimeError for another device, ValueError for shapes
        that do not fit, for lengths of segments that a rank's tokens do not divide, nor they them,
        for a process that is not in the group, and for groups of ranks that cannot be made.
        """
        check_given(self, q, k, v)
        check_shapes(q, k, v, self._how)
        at = Ranks(self.group, 0, 1, q.shape[1])
        if self.group is not None or dist.is_initialized():
            at = at._replace(rank=dist.get_rank(self.group), ranks=dist.get_world_size(self.group))
        if at.rank < 0:
            raise ValueError("RingDilatedAttention: this process is none of its group's")
        way = Way(ours) if chosen(self, q) == "triton" else Way()
        N = max(1, at.ranks * at.rows)
        lengths = [(min(w, N), r) for w, r in self._how.branches]
        spans = [w for w, _ in lengths]
        if why := misfit(spans, at.rows, N) or unmade(spans, at):  # before any message
            raise ValueError(why)
        if not q.numel():
            return q + (k.sum() + v.sum())
        H, G = q.shape[2], k.shape[2]
        branches = [branch_of(H, G, at, w, r, self._how.rule, is_causal) for w, r in lengths]
        call = _Call(branches, at.rank, is_causal, self._how.combine == "mean", way)
        o: Tensor = _Ring.apply(q, k, v, call)  # type: ignore[no-untyped-call]
        return o

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Of the same group, which cannot be copied."""
        memo[id(self.group)] = self.group
        copy = self.__class__.__new__(self.__class__)
        memo[id(self)] = copy
        copy.__dict__.update(deepcopy(self.__dict__, memo))
        return copy
