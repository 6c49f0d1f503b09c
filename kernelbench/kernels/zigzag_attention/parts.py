"""Zigzag attention without autograd, of chunks that lie as ranks have them, into tensors that are
given: two primitives for operators over several GPUs, which take some heads at a time.

Shapes: T rows of a rank, both chunks of every document next to each other, H heads of q, G of k and
v, D head size, Tk keys of all ranks, S documents.
"""

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from kernelbench.kernels.attention.backward import deltas_launch
from kernelbench.kernels.attention.tiles import statistic_of
from kernelbench.kernels.launch import (
    Launch,
    Plans,
    Repeats,
    check_device,
    layouts_of,
    on_device,
    packed_rows,
)
from kernelbench.kernels.zigzag_attention.configs import ZigzagConfig
from kernelbench.kernels.zigzag_attention.launches import (
    Tensors,
    forward_launches,
    gradient_launches,
    room_of,
    settled,
)
from kernelbench.kernels.zigzag_attention.lengths import How


class Joined(NamedTuple):
    """Documents that are all cut, and padded to a multiple of 2W rows: (S+1,) of int32, where the
    chunks of one kind begin, if they lay one after another; the sums of how many keys are real; and
    where each document begins, with what is padded, in the order of documents."""

    chunks: Tensor
    real: Tensor
    padded: Tensor


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    documents: Joined,
    o: Tensor,
    lse: Tensor,
    *,
    how: How,
    config: ZigzagConfig | None = None,
) -> None:
    """Writes o, (T,H,D), and lse, natural, (1,H,T) as of `statistic_of`; both may be some heads of
    more. q: (T,H,D); k, v: (Tk,G,D), in zigzag order where `how` says so."""
    t = _tensors(q, k, v, documents, o.unsqueeze(0), lse)
    plan = _plan_of(t, how, config)
    room = room_of(t, plan.cut)
    t = t._replace(listed=room.listed, ordered_k=room.k, ordered_v=room.v)
    plan.run("forward", t)


def delta_of(do: Tensor, o: Tensor) -> Tensor:
    """δ = rowsum(dO⊙O) of (T,H,D), o contiguous, (1,H,T) as of `statistic_of`."""
    o = o.unsqueeze(0)
    delta = statistic_of(o)
    with on_device(o.device):
        deltas_launch(packed_rows(do.unsqueeze(0).flatten(2)), o, o, delta, None).run()
    return delta


def backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    documents: Joined,
    statistics: tuple[Tensor, Tensor],
    gradients: tuple[Tensor, Tensor, Tensor],
    *,
    how: How,
    config: ZigzagConfig | None = None,
) -> None:
    """Writes dq, dk and dv, of any floating dtype; all, do and the statistics may be some heads of
    more. statistics: lse to base 2, and δ, (1,H,T)."""
    lse, delta = statistics
    dq, dk, dv = gradients
    t = _tensors(q, k, v, documents, None, lse)
    t = t._replace(do0=do.unsqueeze(0).flatten(2), delta0=delta, dq0=dq, dk=dk, dv=dv)
    _plan_of(t, how, config).run("backward", t)


def _tensors(
    q: Tensor, k: Tensor, v: Tensor, documents: Joined, o: Tensor | None, lse: Tensor
) -> Tensors:
    chunks, real, padded = documents
    return Tensors(q, None, k, v, chunks, real, None, padded, o, None, lse, None)


class _Plan:
    """Launches of tensors that differ only in their addresses."""

    def __init__(self, t: Tensors, how: How, config: ZigzagConfig | None) -> None:
        device = check_device(q=t.q0, k=t.k, v=t.v, chunks=t.q0_starts)
        o = None if t.o0 is None else t.o0[0]
        self.cut = settled((t.q0, None, t.k, t.v, o), how, config)
        self._repeats = Repeats(device)

    def run(self, which: str, t: Tensors) -> None:
        self._repeats.run(which, t, self._launches)

    def _launches(self, which: Hashable, tensors: Sequence[Any]) -> Sequence[Launch]:
        t = Tensors(*tensors)
        if which == "forward":
            return forward_launches(t, self.cut)
        return gradient_launches(t, self.cut)


_PLANS: Plans[_Plan] = Plans()


def _plan_of(t: Tensors, how: How, config: ZigzagConfig | None) -> _Plan:
    key = (*layouts_of(t), how, config)
    plan = _PLANS.get(key)
    return _PLANS.add(key, _Plan(t, how, config)) if plan is None else plan
