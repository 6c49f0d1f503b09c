"""Plans of calls of zigzag attention: checked once for a layout, with prepared launches."""

import math
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from kernelbench.kernels.attention.tiles import pitch, statistic_of, to_base_2
from kernelbench.kernels.launch import (
    Launch,
    Plans,
    Repeats,
    check_device,
    layout_of,
    layouts_of,
    packed_rows,
)
from kernelbench.kernels.zigzag_attention import hopper
from kernelbench.kernels.zigzag_attention.checks import NAMES, Inputs, check
from kernelbench.kernels.zigzag_attention.configs import ZigzagConfig
from kernelbench.kernels.zigzag_attention.hopper import Together
from kernelbench.kernels.zigzag_attention.launches import (
    Tensors,
    deltas_launches,
    forward_launches,
    gradient_launches,
    room_of,
    settled,
    together_launches,
)
from kernelbench.kernels.zigzag_attention.lengths import How

_LN2 = math.log(2)


class ZigzagPlan:
    """Calls that differ only in their tensors' addresses: checked once, with prepared launches."""

    def __init__(self, tensors: Inputs, how: How, config: ZigzagConfig | None) -> None:
        check(*tensors, how)
        device = check_device(**dict(zip(NAMES, tensors, strict=True)))
        self._cut = settled(tensors[:4], how, config)
        self._repeats = Repeats(device)

    def forward(self, tensors: Inputs) -> tuple[Tensor, ...]:
        """o of both chunks, like q and contiguous, and both lse, (H,T)."""
        qs = tensors[:2]
        os, lses = [q.new_empty(q.shape) for q in qs], [logarithms_of(q) for q in qs]
        t = Tensors(*tensors, *os, *lses)
        room = room_of(t, self._cut)
        t = t._replace(listed=room.listed, ordered_k=room.k, ordered_v=room.v)
        self._repeats.run(None, t, self._forward_launches)
        return *os, *lses

    def _forward_launches(self, _: Hashable, tensors: Sequence[Any]) -> Sequence[Launch]:
        t = Tensors(*tensors)
        return forward_launches(t, self._cut)

    def results(
        self, tensors: Inputs, needs: Sequence[bool]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
        """For `Planned`: both o and lse, and what `gradients` takes."""
        results = self.forward(tensors)
        return results, (*tensors, *results)

    def gradients(
        self, grads: Sequence[Tensor | None], saved: Sequence[Any], needs: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        """For `Planned`: of q0, q1, k and v, where needed, and None for where documents begin."""
        if not any(grad is not None for grad in grads):
            return (None,) * len(needs)
        tensors, results = saved[:8], saved[8:]
        return *self.backward(grads, inputs_of(*tensors), results, needs[:4]), *(None,) * 4

    def backward(
        self,
        grads: Sequence[Tensor | None],
        tensors: Inputs,
        results: Sequence[Tensor],
        needs: Sequence[bool],
    ) -> tuple[Tensor | None, ...]:
        """dq0, dq1, dk, dv, each where it is needed. grads: of both o, and both lse."""
        if self._cut.config.bwd_hopper is not None and all(map(any, (needs[:2], needs[2:]))):
            found = self._together(grads, tensors, results)
            return tuple([x if need else None for x, need in zip(found, needs, strict=True)])
        packed = torch.contiguous_format
        wanted = (*(any(needs[:2]),) * 2, *(any(needs[2:]),) * 2)
        outs = [
            torch.empty_like(x, memory_format=packed) if want else None
            for x, want in zip(tensors[:4], wanted, strict=True)
        ]
        os = [o.contiguous().unsqueeze(0) for o in results[:2]]
        lses = [to_base_2(lse[None], o) for lse, o in zip(results[2:], os, strict=True)]
        dos = [
            torch.zeros_like(o).flatten(2) if do is None else packed_rows(do.flatten(1))[None]
            for do, o in zip(grads[:2], os, strict=True)
        ]
        dlses = [None if dlse is None else dlse.contiguous() * _LN2 for dlse in grads[2:]]
        deltas = [statistic_of(o) for o in os]
        t = Tensors(*tensors, *os, *lses, *dos, *dlses, *deltas, *outs)
        given = map(layout_of, (*tensors[:4], *dos, *dlses))
        self._repeats.run((*wanted, *given), t, self._backward_launches)
        return tuple([x if need else None for x, need in zip(outs, needs, strict=True)])

    def _together(
        self, grads: Sequence[Tensor | None], tensors: Inputs, results: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """dq0, dq1, dk and dv by one kernel, for which both chunks are copied into one tensor."""
        q0, q1, k, v = (x.contiguous() for x in tensors[:4])
        q, o = (torch.cat(pair)[None] for pair in ([q0, q1], [*results[:2]]))
        lse = to_base_2(torch.cat(list(results[2:]), 1)[None], o)
        given = [
            torch.zeros_like(x) if grad is None else grad
            for x, grad in zip(results, grads, strict=True)
        ]
        do, dlse = torch.cat(given[:2]), torch.cat(given[2:], 1)
        dk, dv = torch.empty_like(k), torch.empty_like(v)
        ordered = [k, v, dk, dv]
        if self._cut.how.zigzag:
            ordered = [torch.empty_like(x) for x in ordered]
        own_k, own_v, own_dk, own_dv = (x[None] for x in ordered)
        both = Together(
            do=do.flatten(1)[None],
            q=q,
            o=o,
            k=own_k,
            v=own_v,
            lse=lse,
            dlse=dlse[None] * _LN2,
            delta=statistic_of(q),
            total=lse.new_empty(1, *q.shape[2:0:-1], q.shape[3]),
            dq=torch.empty_like(q),
            dk=own_dk,
            dv=own_dv,
            listed=hopper.rows_listed(k, len(tensors[4]) - 1),
        )
        t = Tensors(*tensors, *(None,) * 2, *results[2:])._replace(k=k, v=v, dk=dk, dv=dv)
        self._repeats.run("together", (*t, *both), self._together_launches)
        dq0, dq1 = both.dq[0].split([len(q0), len(q1)])
        return dq0, dq1.clone(), dk, dv  # an operator's results share no memory

    def _together_launches(self, _: Hashable, tensors: Sequence[Any]) -> Sequence[Launch]:
        parts = len(Tensors._fields)
        t, both = Tensors(*tensors[:parts]), Together(*tensors[parts:])
        return together_launches(t, both, self._cut)

    def _backward_launches(self, _: Hashable, tensors: Sequence[Any]) -> Sequence[Launch]:
        t = Tensors(*tensors)
        return *deltas_launches(t), *gradient_launches(t, self._cut)


def logarithms_of(q: Tensor) -> Tensor:
    """An empty tensor for one fp32 number per row of q, (T,H,D): (H,T), as `statistic_of` lays it
    out."""
    (T, H, _), step = q.shape, pitch.fn(q.shape[0])
    return q.new_empty_strided((H, T), (step, 1), dtype=torch.float32)


_PLANS: Plans[ZigzagPlan] = Plans()


def plan_of(tensors: Inputs, how: How, config: ZigzagConfig | None) -> ZigzagPlan:
    """tensors: with packed rows."""
    key = (*layouts_of(tensors), how, config)
    plan = _PLANS.get(key)
    return _PLANS.add(key, ZigzagPlan(tensors, how, config)) if plan is None else plan


def inputs_of(
    q0: Tensor,
    q1: Tensor,
    k: Tensor,
    v: Tensor,
    q0_starts: Tensor,
    k_starts: Tensor,
    q1_starts: Tensor | None,
    k_places: Tensor | None,
) -> Inputs:
    """What takes part, with rows as the kernels read them."""
    q1_starts, k_places = (None if x is None else x.contiguous() for x in (q1_starts, k_places))
    rows = packed_rows(q0), packed_rows(q1), packed_rows(k), packed_rows(v)
    return *rows, q0_starts.contiguous(), k_starts.contiguous(), q1_starts, k_places
