"""Plans of calls of attention: checked once for a layout, with prepared launches; and what they
share with those of operators that are hooks on it."""

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from kernelbench.kernels.attention.backward import Gradients, deltas_launch
from kernelbench.kernels.attention.checks import How, Inputs, check
from kernelbench.kernels.attention.configs import AttentionConfig, Pattern, choose
from kernelbench.kernels.attention.forward import Forward
from kernelbench.kernels.attention.hopper.backward import KEPT
from kernelbench.kernels.attention.hopper.channel import suits
from kernelbench.kernels.attention.hopper.order import listed_size
from kernelbench.kernels.attention.launches import attend, differentiate, sums_queries
from kernelbench.kernels.attention.masks import window_mask
from kernelbench.kernels.attention.places import Packed
from kernelbench.kernels.attention.tiles import NO_MASK, statistic_of
from kernelbench.kernels.launch import (
    Launch,
    Plans,
    Repeats,
    arch_of,
    check_device,
    layout_of,
    layouts_of,
    packed_rows,
)
from kernelbench.kernels.operators import differentiable_once


class Plan(Protocol):
    """Calls of one layout. results: what they return, and what their gradients need again.
    gradients: of all tensors, from those of the results."""

    def results(self, tensors: Any, needs: Sequence[bool]) -> tuple[Any, tuple[Any, ...]]: ...

    def gradients(
        self, grads: Sequence[Tensor | None], saved: Sequence[Any], needs: Sequence[bool]
    ) -> tuple[Tensor | None, ...]: ...


class Planned(torch.autograd.Function):
    """The results of a plan for some tensors, with gradients."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, *tensors: Tensor | None) -> Any:
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        results, saved = plan.results(tensors, ctx.needs_input_grad[1:])
        ctx.save_for_backward(*saved)
        return results

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        return None, *ctx.plan.gradients(grads, ctx.saved_tensors, ctx.needs_input_grad[1:])


def must_repeat() -> bool:
    """Whether PyTorch requires the same bits on every call; `warn_only` does not, as in torch's own
    attention."""
    if not torch.are_deterministic_algorithms_enabled():
        return False
    return not torch.is_deterministic_algorithms_warn_only_enabled()


def check_tile(config: AttentionConfig, q: Tensor, fits: bool, arch: str) -> None:
    """Raise ValueError for a config of Hopper's kernels where these take no such tensors (`fits`),
    or do not run."""
    tile = config.hopper or config.bwd_hopper
    if tile is not None and not (fits and arch == "sm_90"):
        raise ValueError(
            f"{tile} takes bfloat16 or float16, D of 64 or 128, and tensors, none of them "
            "expanded, whose addresses and strides are multiples of 16 bytes, without a window: "
            "one sequence a sample with as many queries as keys, or packed sequences on sm_90, got "
            f"{q.dtype}, D = {q.shape[3]} on {arch}: pass config=None for a kernel that takes these"
        )


def asked_to_repeat(config: AttentionConfig | None) -> bool:
    """Whether a call that does not say so itself must have the same bits as the next one."""
    return config is None and must_repeat()


def as_saved(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    config: AttentionConfig,
) -> tuple[Tensor, ...]:
    """The tensors with the layout that kernels take: hooks on saved tensors may change strides, and
    an upstream gradient has any."""
    statistic = statistic_of(q)
    if lse.stride() != statistic.stride() or lse.data_ptr() % 16:
        lse = statistic.copy_(lse)
    do, q, k, v = (packed_rows(tensor) for tensor in (do, q, k, v))
    if config.bwd_hopper is not None:
        q = _as_suited(q, q)
        do, k, v = (_as_suited(tensor, q) for tensor in (do, k, v))
    return do, q, k, v, lse


def _as_suited(x: Tensor, q: Tensor) -> Tensor:
    """x itself where the copy engine takes it together with q, else a copy."""
    return x if suits(q, x) else x.clone(memory_format=torch.contiguous_format)


class _Tensors(NamedTuple):
    """What a plan's launches take; o and the gradients of packed sequences as of one sample."""

    do: Tensor | None
    q: Tensor
    k: Tensor
    v: Tensor
    q_starts: Tensor | None
    k_starts: Tensor | None
    o: Tensor | None
    lse: Tensor | None
    listed: Tensor | None = None
    dlse: Tensor | None = None
    delta: Tensor | None = None
    total: Tensor | None = None
    dq: Tensor | None = None
    dk: Tensor | None = None
    dv: Tensor | None = None


class AttentionPlan:
    """Calls that differ only in their tensors' addresses: checked once, with prepared launches."""

    def __init__(
        self,
        tensors: Inputs,
        how: How,
        config: AttentionConfig | None,
        deterministic: bool,
        save: bool,
    ) -> None:
        """save: for a gradient to come."""
        check(*tensors, how)
        q, k, v, q_starts, k_starts = tensors
        device = check_device(q=q, k=k, v=v, cu_seqlens_q=q_starts, cu_seqlens_k=k_starts)
        self._packed = q_starts is not None
        q, k = self._samples(q), self._samples(k)
        (B, N, H, D), keys, heads = q.shape, k.shape[1], k.shape[2]
        self.scale = D**-0.5 if how.scale is None else float(how.scale)
        self.mask = window_mask(how.left, how.right, how.causal, N + keys)
        self.causal = how.causal and self.mask is NO_MASK
        self._chunk = how.chunk
        plain = not self._packed and self.mask is NO_MASK
        group = H // heads if heads else 1
        packed = self._packed and self.mask is NO_MASK
        suited = q.numel() > 0 and k.numel() > 0 and suits(q, k, self._samples(v))
        suited = suited and (packed or (plain and keys == N))
        arch = arch_of(device)
        if config is None:
            shape, size = (B, N, H, D), q.element_size()
            causal, pattern = self.causal, Pattern(keys, group, plain, packed)
            config = choose(shape, arch, size, save, suited, causal, False, deterministic, pattern)
        elif how.chunk is not None and config.bwd_hopper is not None:
            raise ValueError(f"gradients of chunks are `tl`'s: pass config.plainly(), got {config}")
        check_tile(config, q, suited, arch)
        config = config.repeatable() if deterministic else config
        self.config = config if how.chunk is None else config.plainly()
        self._repeats = Repeats(device)

    def _samples(self, tensor: Tensor) -> Tensor:
        """As the kernels take it: packed sequences are one sample."""
        return tensor.unsqueeze(0) if self._packed else tensor

    @staticmethod
    def _listed(x: Tensor, starts: Tensor | None, rows: int | None) -> Tensor | None:
        """Memory for a list of the tiles of x, of so many rows, where they are of packed sequences
        and listed."""
        if starts is None or rows is None:
            return None
        return x.new_empty(listed_size(x.shape[1], len(starts) - 1, rows), dtype=torch.int32)

    def forward(self, tensors: Inputs, save: bool) -> tuple[Tensor, Tensor | None]:
        """o, like q and contiguous, and lse, (B,H,N) as `statistic_of` makes it, if `save`."""
        q, k, v, q_starts, k_starts = tensors
        o = q.new_empty(q.shape)
        q, k, v = self._samples(q), self._samples(k), self._samples(v)
        lse = statistic_of(q) if save else None
        tile = self.config.hopper
        listed = self._listed(q, q_starts, None if tile is None else tile.groups * 64)
        outs = self._samples(o), lse, listed
        arguments = _Tensors(None, q, k, v, q_starts, k_starts, *outs)
        self._repeats.run(save, arguments, self._forward_launches)
        return o, lse

    def _forward_launches(self, _: Hashable, tensors: Sequence[Any]) -> Sequence[Launch]:
        t = _Tensors(*tensors)
        outs = Forward(t.q, t.k, t.v, t.o, t.lse)
        return attend(outs, config=self.config, listed=t.listed, **self._how(t))

    def _how(self, t: _Tensors) -> dict[str, Any]:
        place = None
        if t.q_starts is not None:
            k_starts = t.q_starts if t.k_starts is None else t.k_starts
            S, keys = len(t.q_starts) - 1, t.k.shape[1]
            place = Packed(t.q_starts, k_starts, S, keys, self._chunk)
        return {"scale": self.scale, "causal": self.causal, "mask": self.mask, "place": place}

    def results(
        self, tensors: Inputs, needs: Sequence[bool]
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor | None, ...]]:
        """For `Planned`: o and lse, and what `gradients` takes."""
        o, lse = self.forward(tensors, save=True)
        assert lse is not None
        return (o, lse), (*tensors, o, lse)

    def gradients(
        self, grads: Sequence[Tensor | None], saved: Sequence[Any], needs: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        """For `Planned`: dq, dk, dv, where needed, and None for where sequences begin."""
        *tensors, o, lse = saved
        do, dlse = grads
        if do is None and dlse is None:
            return (None,) * len(needs)
        do = torch.zeros_like(o) if do is None else do
        return *self.backward(do, dlse, inputs_of(*tensors), o, lse, needs[:3]), None, None

    def backward(
        self,
        do: Tensor,
        dlse: Tensor | None,
        tensors: Inputs,
        o: Tensor,
        lse: Tensor,
        needs: Sequence[bool],
    ) -> tuple[Tensor | None, ...]:
        """dq, dk, dv, each where it is needed. dlse: of lse, (B,H,N)."""
        q, k, v, q_starts, k_starts = tensors
        packed = torch.contiguous_format
        needs_q, needs_keys = needs[0], needs[1] or needs[2]
        dq = torch.empty_like(q, memory_format=packed) if needs_q else None
        dk = torch.empty_like(k, memory_format=packed) if needs_keys else None
        dv = torch.empty_like(v, memory_format=packed) if needs_keys else None
        do, q, k, v, lse = self._as_saved(do, q, k, v, lse)
        o = self._samples(o.contiguous())
        dlse = None if dlse is None else dlse.contiguous()
        B, N, H, D = q.shape
        sums = sums_queries(self.config, q, dq, dk)
        total = lse.new_empty(B, H, N, D) if sums else None
        delta, listed = statistic_of(q), self._listed(k, q_starts, KEPT if sums else None)
        rows = do, q, k, v, q_starts, k_starts, o, lse, listed, dlse, delta, total
        outs = [None if x is None else self._samples(x) for x in (dq, dk, dv)]
        self._run(_Tensors(*rows, *outs), (True, False))
        return dq, dk if needs[1] else None, dv if needs[2] else None

    def add(
        self,
        do: Tensor,
        tensors: Inputs,
        lse: Tensor,
        delta: Tensor,
        sums: tuple[Tensor, Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """dq, dk, dv by a δ that is given; added to the three of `sums`."""
        q, k, v, q_starts, k_starts = tensors
        outs = sums or (q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape))
        delta = statistic_of(self._samples(q)).copy_(delta)
        do, q, k, v, lse = self._as_saved(do, q, k, v, lse)
        dq, dk, dv = map(self._samples, outs)
        B, N, H, D = q.shape
        total = None
        if sums is None and sums_queries(self.config, q, dq, dk):
            total = lse.new_zeros(B, H, N, D)
        listed = self._listed(k, q_starts, None if total is None else KEPT)
        rows = do, q, k, v, q_starts, k_starts, None, lse, listed, None, delta, total
        self._run(_Tensors(*rows, dq, dk, dv), (False, sums is not None))
        return outs

    def _as_saved(
        self, do: Tensor, q: Tensor, k: Tensor, v: Tensor, lse: Tensor
    ) -> tuple[Tensor, ...]:
        """For the kernels: do as (B,N,H·D), q, k, v and lse."""
        q, k, v = map(self._samples, (q, k, v))
        return as_saved(self._samples(do).flatten(2), q, k, v, lse, self.config)

    def _run(self, tensors: _Tensors, what: tuple[bool, bool]) -> None:
        """what: whether δ is to be found, and whether there is something to add to."""
        wanted = [None if x is None else x.dtype for x in tensors[-3:]]
        given = map(layout_of, (tensors.do, tensors.q, tensors.k, tensors.v))
        kind = (what, tensors.dlse is None, *wanted, *given)
        self._repeats.run(kind, tensors, self._backward_launches)

    def _backward_launches(self, kind: Any, tensors: Sequence[Any]) -> Sequence[Launch]:
        (finds, adds), *_ = kind
        t = _Tensors(*tensors)
        assert t.do is not None and t.lse is not None and t.delta is not None
        wide = t.dk if t.dq is None else t.dq
        if wide is None:
            return ()
        launches = []
        if finds:
            assert t.o is not None
            launches.append(deltas_launch(t.do, t.q, t.o, t.delta, t.total, t.dlse))
        return *launches, *differentiate(
            Gradients(t.do, t.q, t.k, t.v, t.lse, t.delta, wide),
            (t.dq, t.dk, t.dv),
            t.total,
            config=self.config.plainly() if adds else self.config,
            read=(t.do, t.o),
            adds=adds,
            listed=t.listed,
            **self._how(t),
        )


_PLANS: Plans[AttentionPlan] = Plans()


def plan_of(
    tensors: Inputs,
    how: How,
    config: AttentionConfig | None,
    deterministic: bool | None,
    save: bool,
) -> AttentionPlan:
    """tensors: with packed rows. save: for a gradient to come."""
    repeat = asked_to_repeat(config) if deterministic is None else deterministic
    key = (*layouts_of(tensors), how, config, repeat, save)
    plan = _PLANS.get(key)
    if plan is None:
        plan = _PLANS.add(key, AttentionPlan(tensors, how, config, repeat, save))
    return plan


def inputs_of(
    q: Tensor, k: Tensor, v: Tensor, q_starts: Tensor | None, k_starts: Tensor | None
) -> Inputs:
    """What takes part, with rows as the kernels read them."""
    starts = (None if x is None else x.contiguous() for x in (q_starts, k_starts))
    q_starts, k_starts = starts
    return packed_rows(q), packed_rows(k), packed_rows(v), q_starts, k_starts
