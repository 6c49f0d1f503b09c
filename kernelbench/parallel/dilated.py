"""Dilated attention over the ranks of a group: segments longer than a rank's tokens are shared, and
of their keys and values only the rows that a branch keeps travel.

Shapes: B samples, N tokens of all W ranks, L = N / W of a rank, H heads of q, G of k and v, D head
size; q (B,L,H,D), k, v (B,L,G,D).
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kernelbench.kernels.attention import attention
from kernelbench.kernels.dilated_attention.checks import (
    check_shapes,
    how_of,
    offsets_of,
    refuse_dropout,
)
from kernelbench.kernels.operators import differentiable_once
from kernelbench.nn.branches import (
    Attend,
    attend_gathered,
    combined_in_autograd,
    nothing_of,
    pieces_of,
    put,
    repeated,
)
from kernelbench.nn.dilated import Implementation, check_given, check_impl, chosen
from kernelbench.nn.lse import plain, summed_in


class _Ranks(NamedTuple):
    """group: of torch.distributed. rank of `ranks`, which have `rows` tokens each."""

    group: Any
    rank: int
    ranks: int
    rows: int


class _Class(NamedTuple):
    """Rows of a segment that spans ranks, of heads with one offset. heads: of q. keys: of k and v,
    as many as heads, or those that they share. first, rate: where this rank's rows begin, and how
    far they are apart. counts: how many rows each rank of the segment has."""

    heads: list[int]
    keys: list[int]
    first: int
    rate: int
    counts: list[int]

    def rows(self, own: int, device: Any) -> Tensor:
        """This rank's, among its tokens. own: its number among those of the segment."""
        return self.first + self.rate * torch.arange(self.counts[own], device=device)


class _Gather(torch.autograd.Function):
    """Every rank's message, one after another. In the backward their gradients are summed over the
    ranks, in fp32 or wider."""

    @staticmethod
    def forward(ctx: Any, message: Tensor, group: Any, works: list[Any]) -> Tensor:
        ctx.group = group
        every = message.new_empty(dist.get_world_size(group) * len(message))
        works.append(dist.all_gather_into_tensor(every, message, group=group, async_op=True))
        return every

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *grads: Any) -> Any:
        [grad] = grads
        wide = grad.to(summed_in(grad.dtype)).contiguous()
        total = wide.new_empty(len(wide) // dist.get_world_size(ctx.group))
        dist.reduce_scatter_tensor(total, wide, group=ctx.group)
        return total.to(grad.dtype), None, None


class _Shared(NamedTuple):
    """A branch whose segments span ranks, its rows of k and v on their way."""

    members: range
    classes: list[_Class]
    every: Tensor
    works: list[Any]


def _plain(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """As `_ours`, in PyTorch's operators."""
    H = q.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, repeated(k, H), repeated(v, H)))
    o, lse = plain(q, k, v, causal)
    return o.transpose(1, 2), lse


def _ours(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """o (B,M,H,D) and lse (B,H,M); causal to the last key."""
    o, lse = attention(q, k, v, causal=causal, return_lse=True)
    return o, lse


class RingDilatedAttention(nn.Module):
    """LongNet's dilated attention of tokens that are spread over the ranks of a group.

    segment_lengths, dilation_rates: w and r of each branch. With L tokens a rank, w divides L, or L
    divides w; w longer than all N tokens means N.
    dropout: 0; anything else is refused.
    group: of torch.distributed; all ranks unless given, or this process alone where that is not
        initialised. Every rank of it must call.
    offset_rule, combine: see `kernels.dilated_attention.dilated_attention`.
    impl: `triton`: our kernels. `eager`: PyTorch's operators, any dtype, with all scores of a
        segment in memory. `auto`: `triton` where the kernels run, else `eager`.
    device, dtype: that q, k and v must have; any if left out.

    A segment of w ≤ L is this rank's own. Of a longer one, each of its w/L ranks sends the rows of
    k and v that a head keeps, in one message for each branch, while segments of its own are
    attended to; and attends with its own rows to all of the segment's. Ranks send as many rows
    each as the one that has most. Branches are combined by their lse in fp32. Memory is that of
    w/r rows of k and v for each branch, twice, and of o in fp32 for each, besides the rank's own;
    in the backward gradients of k and v are summed over the segment's ranks, in fp32.

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
        self._groups: dict[tuple[int, int], Any] = {}

    def forward(self, q: Tensor, k: Tensor, v: Tensor, is_causal: bool = False) -> Tensor:
        """y, like q, of this rank's tokens, which follow those of the rank before. is_causal: by
        the positions of tokens among all, in every segment.

        Raises TypeError for another dtype, RuntimeError for another device, ValueError for shapes
        that do not fit, and for lengths of segments that a rank's tokens do not divide, nor they
        them.
        """
        check_given(self, q, k, v)
        check_shapes(q, k, v, self._how)
        at = _Ranks(self.group, 0, 1, q.shape[1])
        if self.group is not None or dist.is_initialized():
            at = at._replace(rank=dist.get_rank(self.group), ranks=dist.get_world_size(self.group))
        attend = _ours if chosen(self, q) == "triton" else _plain
        N = max(1, at.ranks * at.rows)
        branches = [(min(w, N), r) for w, r in self._how.branches]
        for w, _ in branches:  # before any message
            if at.rows % w and (w < at.rows or (w % at.rows and w < N)):
                raise ValueError(
                    f"RingDilatedAttention takes segments that divide a rank's {at.rows} tokens, "
                    f"or are a multiple of them, got {w}"
                )
        shared = [
            self._begin(q.shape[2], k, v, at, w, r) if w > at.rows else None for w, r in branches
        ]
        L, H = q.shape[1:3]
        whole, of = (q, repeated(k, H), repeated(v, H)), (L, H, self._how.rule)
        parts = [
            attend_gathered(*whole, pieces_of(w, r, *of, at.rank * L // w), is_causal, attend)
            for (w, r), one in zip(branches, shared, strict=True)
            if one is None
        ]
        parts += [_of_all(q, at, one, is_causal, attend) for one in shared if one is not None]
        os, lses = (torch.stack(each) for each in zip(*parts, strict=True))
        o = combined_in_autograd(os, lses, self._how.combine == "mean").to(q.dtype)
        return o + (q[:, :0].sum() + k[:, :0].sum() + v[:, :0].sum())  # also where no row is kept

    def _begin(self, H: int, k: Tensor, v: Tensor, at: _Ranks, w: int, r: int) -> _Shared:
        span = -(-w // at.rows)
        first = at.rank // span * span
        members = range(first, min(first + span, at.ranks))
        classes = [*_classes(H, k.shape[2], at, members, w, r, self._how.rule)]
        message = _message(k, v, at.rank - first, classes)
        every, works = message, list[Any]()
        if len(members) > 1:
            every = _Gather.apply(message, self._group_of(at, span), works)  # type: ignore[no-untyped-call]
        return _Shared(members, classes, every, works)

    def _group_of(self, at: _Ranks, span: int) -> Any:
        """That of the ranks which share a segment with this one, made by them alone."""
        if span >= at.ranks:
            return at.group
        if (span, at.ranks) not in self._groups:
            of: Any = at.group or dist.group.WORLD
            first = at.rank // span * span
            members = range(first, min(first + span, at.ranks))
            self._groups[span, at.ranks] = dist.new_group(
                [dist.get_global_rank(of, rank) for rank in members],
                backend=dist.get_backend(of),
                use_local_synchronization=True,
            )
        return self._groups[span, at.ranks]


def _classes(
    H: int, G: int, at: _Ranks, members: range, w: int, r: int, rule: str
) -> Iterator[_Class]:
    heads, turn = offsets_of(rule, H, r)
    segment = members[0] * at.rows // w
    offsets: dict[int, list[int]] = {}
    for h in range(H):
        offsets.setdefault((h // heads + segment * turn) % r, []).append(h)
    for offset, some in offsets.items():
        begins = [(offset - i * at.rows) % r for i in range(len(members))]
        counts = [len(range(begin, at.rows, r)) for begin in begins]
        if any(counts):
            first = begins[at.rank - members[0]]
            yield _Class(some, _keys_of(some, H // G), first, r, counts)


def _keys_of(heads: list[int], group: int) -> list[int]:
    """Which heads of k and v those of q take: each once, if as many follow each other as share
    one."""
    each = [h // group for h in heads]
    once = [*dict.fromkeys(each)]
    share = len(each) // len(once)
    return once if each == [h for h in once for _ in range(share)] else each


def _message(k: Tensor, v: Tensor, own: int, classes: list[_Class]) -> Tensor:
    """This rank's rows of k and v of all classes, as many for each rank."""
    parts = []
    for one in classes:
        rows = one.rows(own, k.device)
        both = torch.stack([x[:, rows][:, :, one.keys] for x in (k, v)])  # (2,B,M,heads,D)
        missing = max(one.counts) - len(rows)
        parts.append(nn.functional.pad(both, (0, 0, 0, 0, 0, missing)).flatten())
    return torch.cat(parts) if parts else k.new_empty(0)


def _of_all(
    q: Tensor, at: _Ranks, shared: _Shared, causal: bool, attend: Attend
) -> tuple[Tensor, Tensor]:
    """o and lse of this rank's rows of a branch, to those of all ranks of their segment."""
    for work in shared.works:
        work.wait()
    B, _, _, D = q.shape
    ranks, own, at_row = len(shared.members), at.rank - shared.members[0], 0
    messages = shared.every.view(ranks, shared.every.numel() // ranks)
    o, lse = nothing_of(q)
    o = o + shared.every[:0].sum()  # every rank takes part in the sum of gradients
    for one in shared.classes:
        sizes = 2, B, max(one.counts), len(one.keys), D
        size = torch.Size(sizes).numel()
        every = messages[:, at_row : at_row + size].unflatten(1, sizes)
        at_row += size
        rows, before = one.rows(own, q.device), sum(one.counts[:own])
        if not len(rows):
            continue
        keys = torch.cat([every[i, :, :, :count] for i, count in enumerate(one.counts)], 2)
        keys = keys[:, :, : before + len(rows)] if causal else keys
        found, of = attend(q[:, rows][:, :, one.heads], keys[0], keys[1], causal)
        heads = torch.tensor(one.heads, device=q.device)
        o, lse = put(o, lse, rows, heads, found, of.transpose(1, 2))
    return o, lse
