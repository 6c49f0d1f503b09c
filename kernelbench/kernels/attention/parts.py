"""Attention to a part of the keys: two primitives without autograd, with which operators over
parts, on other GPUs or in other orders, give the results and gradients of the whole; and one with.

Shapes: as in `operator`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernelbench.kernels.attention.checks import PLAIN, How, Inputs, how_of
from kernelbench.kernels.attention.configs import AttentionConfig
from kernelbench.kernels.attention.plans import Planned, inputs_of, plan_of
from kernelbench.kernels.attention.tiles import statistic_of
from kernelbench.kernels.operators import graded


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    starts: tuple[Tensor, Tensor] | None = None,
    how: How = PLAIN,
    config: AttentionConfig | None = None,
) -> tuple[Tensor, Tensor]:
    """o and lse of a part of the keys, without gradients: to base 2, (B,H,N) of fp32.

    starts: cu_seqlens of queries and keys. how: see `attention`. Results of parts of the keys are
    merged by lse: o = Σ 2^(lse_i − lse)·o_i with lse = log2 Σ 2^lse_i.
    """
    tensors, how = _inputs(q, k, v, starts), _checked(how)
    o, lse = plan_of(tensors, how, config, None, True).forward(tensors, True)
    assert lse is not None
    return o, lse


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    starts: tuple[Tensor, Tensor] | None = None,
    how: How = PLAIN,
    config: AttentionConfig | None = None,
) -> tuple[Tensor, Tensor]:
    """As `forward`, with gradients."""
    if not graded(q, k, v):
        return forward(q, k, v, starts=starts, how=how, config=config)
    tensors, how = _inputs(q, k, v, starts), _checked(how)
    o, lse = Planned.apply(plan_of(tensors, how, config, None, True), *tensors)
    return o, lse


def delta_of(do: Tensor, o: Tensor) -> Tensor:
    """δ = rowsum(dO⊙O) as `backward` takes it, of (B,N,H,D), or (T,H,D) packed, (B,H,N) in fp32."""
    do, o = (x if x.dim() == 4 else x.unsqueeze(0) for x in (do, o))
    delta = statistic_of(o)
    return delta.copy_((do.float() * o.float()).sum(-1).transpose(1, 2))


def backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    delta: Tensor,
    *,
    starts: tuple[Tensor, Tensor] | None = None,
    how: How = PLAIN,
    config: AttentionConfig | None = None,
    accumulate: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What a part of the keys adds to dq, and its dk and dv.

    lse, delta: of **all** keys, (B,H,N), as `forward` and `delta_of` leave them: with them, the
    gradients of parts add up to those of the whole. accumulate: dq, dk and dv so far, contiguous,
    best in fp32, to which these are added; they are returned. The rest: as `forward` takes it.

    Raises ValueError or TypeError for shapes, dtypes and layouts that do not fit.
    """
    tensors, how = _inputs(q, k, v, starts), _checked(how)
    _check(do, lse, delta, tensors, accumulate)
    plan = plan_of(tensors, how, config, None, True)
    gradients = plan.add(do.resolve_neg(), tensors, lse, delta, accumulate)
    if accumulate is not None:
        torch.autograd.graph.increment_version(accumulate)
    return gradients


def _check(
    do: Tensor, lse: Tensor, delta: Tensor, tensors: Inputs, sums: Sequence[Tensor] | None
) -> None:
    q = tensors[0]
    if do.shape != q.shape or do.dtype is not q.dtype:
        raise ValueError(
            f"parts.backward takes do of q's shape and dtype, {tuple(q.shape)} of {q.dtype}, got "
            f"{tuple(do.shape)} of {do.dtype}"
        )
    B = 1 if q.dim() == 3 else q.shape[0]
    rows = (B, q.shape[-2], q.shape[-3])
    for name, statistic in (("lse", lse), ("delta", delta)):
        if statistic.shape != rows or statistic.dtype is not torch.float32:
            raise ValueError(
                f"parts.backward takes {name} of shape (B,H,N), here {rows}, and float32, got "
                f"{tuple(statistic.shape)} of {statistic.dtype}"
            )
    if sums is None:
        return
    if len(sums) != 3:
        raise ValueError(f"parts.backward takes accumulate as (dq, dk, dv), got {len(sums)}")
    for name, total, tensor in zip(("dq", "dk", "dv"), sums, tensors[:3], strict=True):
        fits = total.shape == tensor.shape and total.device == tensor.device
        if not (fits and total.is_contiguous() and total.is_floating_point()):
            raise ValueError(
                f"parts.backward adds to a contiguous {name} of a floating dtype and of shape "
                f"{tuple(tensor.shape)}, got {total.dtype}, shape {tuple(total.shape)}, strides "
                f"{total.stride()}, on {total.device}"
            )
        if total.is_neg():
            raise ValueError(f"parts.backward adds to no negative view, got one as {name}")


def _checked(how: How) -> How:
    checked = how_of(how.causal, how.scale, (how.left, how.right))
    return checked._replace(chunk=how.chunk)


def _inputs(q: Tensor, k: Tensor, v: Tensor, starts: tuple[Tensor, Tensor] | None) -> Inputs:
    q, k, v = (tensor.resolve_neg() for tensor in (q, k, v))
    return inputs_of(q, k, v, *_once(starts))


def _once(starts: tuple[Tensor, Tensor] | None) -> tuple[Tensor | None, Tensor | None]:
    if starts is None:
        return None, None
    return starts[0], None if starts[1] is starts[0] else starts[1]
