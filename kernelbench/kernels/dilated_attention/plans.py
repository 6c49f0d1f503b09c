"""Plans of calls of dilated attention: checked once for a layout, with prepared launches."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernelbench.kernels.attention.backward import Gradients, deltas_launch
from kernelbench.kernels.attention.configs import AttentionConfig, Pattern, choose
from kernelbench.kernels.attention.forward import Forward
from kernelbench.kernels.attention.launches import attend, differentiate
from kernelbench.kernels.attention.plans import as_saved, check_tile
from kernelbench.kernels.attention.tiles import NO_HOOK, NO_MASK, Hook, statistic_of
from kernelbench.kernels.dilated_attention.checks import How, check, coverage, offsets_of
from kernelbench.kernels.dilated_attention.orders import list_rows
from kernelbench.kernels.dilated_attention.places import (
    BY_POSITION,
    Dilated,
    Merge,
    Own,
    Share,
    merge,
    own_statistics,
    share_of,
)
from kernelbench.kernels.launch import (
    Launch,
    Plans,
    Repeats,
    arch_of,
    ceil_div,
    check_device,
    layout_of,
    layouts_of,
    packed_rows,
)

Inputs = tuple[Tensor, Tensor, Tensor]


class _Tensors(NamedTuple):
    """What a plan's launches take, besides the lists of rows. total: o so far, in fp32."""

    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor | None
    lse: Tensor | None
    total: Tensor | None = None
    do: Tensor | None = None
    delta: Tensor | None = None
    dq: Tensor | None = None
    dk: Tensor | None = None
    dv: Tensor | None = None


class _Branch(NamedTuple):
    """place: without its list of rows."""

    place: Dilated
    config: AttentionConfig


class DilatedPlan:
    """Calls that differ only in their tensors' addresses: checked once, with prepared launches.

    Branches come sparse ones first, in the backward last: a densest one that has every row writes
    the result itself, and begins the sums of gradients.
    """

    def __init__(self, tensors: Inputs, how: How, config: AttentionConfig | None) -> None:
        check(*tensors, how)
        q, k, v = tensors
        device, (_, N, H, D) = check_device(q=q, k=k, v=v), q.shape
        if config is not None:
            check_tile(config, q, False, arch_of(device))
        self._how, self._scale = how, D**-0.5 if how.scale is None else how.scale
        self._repeats = Repeats(device)
        capped = [(max(1, min(length, N)), rate) for length, rate in how.branches]
        capped.sort(key=lambda branch: -branch[1])
        self._branches = [_branch(q, k.shape[2], *each, how, config) for each in capped]
        self._is_whole = capped[-1][1] == 1
        self._lists: list[Tensor] = []
        if how.order != "identity":
            lists = [list_rows(N, *each, how.order, how.grid, how.reorder) for each in capped]
            self._lists = [rows.to(device) for rows in lists]
        if not self._is_whole:
            _warn_of_uncovered(N, H, capped, how.rule)

    def forward(self, tensors: Inputs, save: bool) -> tuple[Tensor, Tensor | None]:
        """o, like q and contiguous, and lse, (B,H,N) as `statistic_of` makes it, if `save` and that
        is what branches are combined by."""
        q, k, v = tensors
        several, mean = len(self._branches) > 1, self._how.combine == "mean"
        make = torch.empty if self._is_whole and not (several and mean) else torch.zeros
        wide = several and q.dtype is not torch.float32
        o = q.new_empty(q.shape) if wide else make(q.shape, dtype=q.dtype, device=q.device)
        total = make(q.shape, dtype=torch.float32, device=q.device) if wide else None
        lse = None
        if not mean and (save or several):
            lse = statistic_of(q).fill_(-torch.inf)
        t = _Tensors(q, k, v, o, lse, total)
        self._repeats.run(("forward", lse is None), (*t, *self._lists), self._forward_launches)
        if total is not None and not self._is_whole:
            o.copy_(total)
        return o, lse

    def _forward_launches(self, _: Any, tensors: Sequence[Any]) -> Sequence[Launch]:
        t = _Tensors(*tensors[: len(_Tensors._fields)])
        so_far = t.o if t.total is None else t.total
        share = self._share()
        launches: list[Launch] = []
        for number, place in enumerate(self._places(tensors)):
            is_last = number == len(self._branches) - 1 and self._is_whole
            before = so_far if number else None
            after = t.o if is_last else so_far
            merged = Merge(place, before, after, t.lse, share)
            launches += self._attend(t, number, place, Hook(merge, merged, rows=(t.o,)))
        return launches

    def _attend(self, t: _Tensors, number: int, place: Dilated, finish: Hook) -> Sequence[Launch]:
        config, how = self._branches[number].config, self._seeing(place)
        tensors = Forward(t.q, t.k, t.v, None, None)
        return attend(tensors, scale=self._scale, config=config, finish=finish, place=place, **how)

    def _places(self, tensors: Sequence[Any]) -> list[Dilated]:
        lists = tensors[len(_Tensors._fields) :] or [None] * len(self._branches)
        pairs = zip(self._branches, lists, strict=True)
        return [branch.place._replace(rows=rows) for branch, rows in pairs]

    def _seeing(self, place: Dilated) -> dict[str, Any]:
        listed = self._how.causal and place.rows is not None
        return {
            "causal": self._how.causal and not listed,
            "mask": BY_POSITION if listed else NO_MASK,
        }

    def _share(self) -> float | None:
        return 1 / len(self._branches) if self._how.combine == "mean" else None

    def results(
        self, tensors: Inputs, needs: Sequence[bool]
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """For `Planned`: o, and what `gradients` takes."""
        o, lse = self.forward(tensors, save=True)
        return o, (*tensors, None if lse is None else o, lse)

    def gradients(
        self, grads: Sequence[Tensor | None], saved: Sequence[Any], needs: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        """For `Planned`: dq, dk, dv, where needed."""
        *tensors, o, lse = saved
        if grads[0] is None:
            return (None,) * len(needs)
        return self.backward(grads[0], inputs_of(*tensors), (o, lse), needs)

    def backward(
        self,
        do: Tensor,
        tensors: Inputs,
        results: tuple[Tensor | None, Tensor | None],
        needs: Sequence[bool],
    ) -> tuple[Tensor | None, ...]:
        """dq, dk, dv, each where it is needed. results: of `forward`, o and lse; None for a mean,
        whose branches are attended to once more."""
        o, lse = results
        wanted = needs[0], needs[1] or needs[2], needs[1] or needs[2]
        make = torch.empty if self._is_whole else torch.zeros
        dtype = torch.float32 if len(self._branches) > 1 else do.dtype
        sums = [
            make(x.shape, dtype=dtype, device=x.device) if want else None
            for x, want in zip(tensors, wanted, strict=True)
        ]
        lse = statistic_of(tensors[0]) if lse is None else lse
        o = None if o is None else o.contiguous()
        do, q, k, v, lse = as_saved(do.flatten(2), *tensors, lse, self._branches[0].config)
        t = _Tensors(q, k, v, o, lse, None, do, statistic_of(q), *sums)
        kind = ("backward", *wanted, *map(layout_of, (do, q, k, v)))
        self._repeats.run(kind, (*t, *self._lists), self._backward_launches)
        pairs = zip(sums, tensors, needs, strict=True)
        return tuple([x.to(y.dtype) if x is not None and need else None for x, y, need in pairs])

    def _backward_launches(self, _: Any, tensors: Sequence[Any]) -> Sequence[Launch]:
        t = _Tensors(*tensors[: len(_Tensors._fields)])
        assert t.do is not None and t.lse is not None and t.delta is not None
        sums, share = (t.dq, t.dk, t.dv), self._share()
        launches: list[Launch] = []
        wide = t.dk if t.dq is None else t.dq
        if wide is None:
            return ()
        if t.o is not None:
            launches.append(deltas_launch(t.do, t.q, t.o, t.delta, None))
        given = Gradients(t.do, t.q, t.k, t.v, t.lse, t.delta, wide)
        adds = not self._is_whole
        for number, place in reversed([*enumerate(self._places(tensors))]):
            if t.o is None:
                step_B, step_N, _ = t.do.stride()
                own = Own(place, t.do, step_B, step_N, t.lse, t.delta)
                launches += self._attend(t, number, place, Hook(own_statistics, own, rows=(t.do,)))
            launches += differentiate(
                given,
                sums,
                None,
                scale=self._scale,
                config=self._branches[number].config,
                read=(),
                factor=NO_HOOK if share is None else Hook(share_of, Share(share)),
                place=place,
                adds=adds,
                **self._seeing(place),
            )
            adds = True
        return launches


def _branch(
    q: Tensor, shared: int, length: int, rate: int, how: How, config: AttentionConfig | None
) -> _Branch:
    """shared: heads of k and v."""
    (B, N, H, D), group = q.shape, q.shape[2] // shared
    heads, turn = offsets_of(how.rule, H, rate)
    offsets = max((h + group - 1) // heads - h // heads + 1 for h in range(0, H, group))
    place = Dilated(length, rate, heads, turn, group, min(offsets, rate), None)
    if config is None:
        shape = B * ceil_div(N, length), ceil_div(length, rate), H, D
        size, pattern = q.element_size(), Pattern(None, group, plain=False)
        arch = arch_of(q.device)
        config = choose(shape, arch, size, True, False, how.causal, False, True, pattern)
    return _Branch(place, config)


def _warn_of_uncovered(N: int, H: int, branches: list[tuple[int, int]], rule: str) -> None:
    lengths, rates = zip(*branches, strict=True)
    missing = int((coverage(N, H, lengths, rates, offset_rule=rule) == 0).sum())
    if missing:
        warnings.warn(
            f"dilated_attention: no branch covers {missing} of {N} tokens × {H} heads "
            f"({missing / (N * H):.1%}), whose results are 0: a dilation rate of 1 covers all",
            stacklevel=2,
        )


_PLANS: Plans[DilatedPlan] = Plans()


def plan_of(tensors: Inputs, how: How, config: AttentionConfig | None) -> DilatedPlan:
    """tensors: with packed rows."""
    key = (*layouts_of(tensors), how, config)
    plan = _PLANS.get(key)
    return _PLANS.add(key, DilatedPlan(tensors, how, config)) if plan is None else plan


def inputs_of(q: Tensor, k: Tensor, v: Tensor) -> Inputs:
    """What takes part, with rows as the kernels read them."""
    return packed_rows(q), packed_rows(k), packed_rows(v)
