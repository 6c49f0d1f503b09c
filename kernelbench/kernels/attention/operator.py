"""Attention as a function of PyTorch.

Shapes: B samples, N queries, K keys, H heads of q, G heads of k and v, D head size; packed: T
queries and U keys of all sequences, S sequences.
"""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kernelbench.kernels.attention.checks import How, Inputs, check, check_types, how_of
from kernelbench.kernels.attention.configs import AttentionConfig
from kernelbench.kernels.attention.plans import Planned, asked_to_repeat, inputs_of, plan_of
from kernelbench.kernels.attention.tiles import statistic_of
from kernelbench.kernels.launch import refusal
from kernelbench.kernels.operators import (
    Transform,
    absent,
    admit,
    as_flag,
    direct,
    empty_gradients,
    final,
    graded,
    gradients_of,
    needed_gradients,
    numbers_of,
    of_numbers,
    refuse_some_on_meta,
    transformed,
    without_data,
)
from kernelbench.kernels.sharding import WHOLE, needed_cut, optional, sharded

_LN2 = math.log(2)


@torch.library.custom_op("kernelbench::attention", mutates_args=())
def _operator(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_starts: Tensor | None,
    k_starts: Tensor | None,
    causal: bool,
    scale: float | None,
    left: int,
    right: int,
    deterministic: bool | None,
    config: list[int],
    save: bool,
) -> tuple[Tensor, Tensor]:
    """o, and lse to base 2, (B,H,N), or `absent`."""
    tensors = inputs_of(q, k, v, q_starts, k_starts)
    how = How(causal, scale, left, right)
    plan = plan_of(tensors, how, of_numbers(AttentionConfig, config), deterministic, save)
    o, lse = plan.forward(tensors, save)
    return o, absent(o).float() if lse is None else lse


@without_data(_operator)
def _(q, k, v, q_starts, k_starts, causal, scale, left, right, deterministic, config, save):
    samples = q if q_starts is None else q.unsqueeze(0)
    return q.new_empty(q.shape), statistic_of(samples) if save else absent(q).float()


@torch.library.custom_op("kernelbench::attention_backward", mutates_args=())
def _operator_backward(
    do: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_starts: Tensor | None,
    k_starts: Tensor | None,
    o: Tensor,
    lse: Tensor,
    causal: bool,
    scale: float | None,
    left: int,
    right: int,
    deterministic: bool | None,
    config: list[int],
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv; `absent` for what is not needed."""
    tensors = inputs_of(q, k, v, q_starts, k_starts)
    how = How(causal, scale, left, right)
    plan = plan_of(tensors, how, of_numbers(AttentionConfig, config), deterministic, True)
    dq, dk, dv = gradients_of(plan.backward(do, dlse, tensors, o, lse, needs), q)
    return dq, dk, dv


@without_data(_operator_backward)
def _(do, dlse, q, k, v, *rest):
    return empty_gradients((q, k, v), rest[-1], q)


def _keep(ctx, inputs, output):
    *tensors, causal, scale, left, right, deterministic, config, _ = inputs
    ctx.how = causal, scale, left, right, deterministic, config
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output)


def _gradients(ctx, do, dlse, call=_operator_backward):
    if do is None and dlse is None:
        return (*(None for _ in ctx.needs_input_grad),)
    names = "causal", "scale", "left", "right", "deterministic", "config"
    rest = dict(zip(names, ctx.how, strict=True))
    saved = ctx.saved_tensors
    do = torch.zeros_like(saved[-2]) if do is None else do
    return needed_gradients(ctx, 3, call, do, dlse, *saved, **rest)


_operator.register_autograd(_gradients, setup_context=_keep)


def _ways(q, k, v, q_starts, k_starts, *rest):
    save, heads = rest[-1], len(q.shape) - 2
    whole = optional(q_starts, WHOLE), optional(k_starts, WHOLE)
    if q_starts is None:
        yield (0, needed_cut(save, 0)), (0, 0, 0, *whole)
    if _heads_fit(k):
        yield (heads, needed_cut(save, 1)), (heads, heads, heads, *whole)


def _ways_backward(do, dlse, q, k, v, q_starts, k_starts, o, lse, *rest):
    heads, needs = len(q.shape) - 2, rest[-1]
    whole = optional(q_starts, WHOLE), optional(k_starts, WHOLE)
    if q_starts is None:
        results = [needed_cut(needed, 0) for needed in needs]
        yield results, (0, optional(dlse, 0), 0, 0, 0, *whole, 0, 0)
    if _heads_fit(k):
        results = [needed_cut(needed, heads) for needed in needs]
        yield results, (heads, optional(dlse, 1), heads, heads, heads, *whole, heads, 1)


def _heads_fit(k):
    """Whether every rank would get whole heads of k and v, and the queries of these."""
    return k.shape[-2] % k.mesh.size() == 0


sharded(_operator, _ways)
sharded(_operator_backward, _ways_backward)
_TRANSFORM = Transform(
    "attention", _operator, _keep, partial(_gradients, call=final(_operator_backward))
)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    window: tuple[int, int] | None = None,
    return_lse: bool = False,
    deterministic: bool | None = None,
    config: AttentionConfig | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """o = softmax(q kᵀ·scale) v, and the logarithm of each row's sum, lse = ln Σ exp(q kᵀ·scale).

    q: (B,N,H,D), k and v: (B,K,G,D), of one dtype, float32, float16 or bfloat16, D up to 256, any
        strides; a last axis that is not contiguous costs a copy. G divides H: heads h·H/G to
        (h+1)·H/G−1 of q share head h of k and v (GQA; MQA where G is 1). float32 is multiplied
        exactly, never as TF32. o is like q, contiguous.
    cu_seqlens_q, cu_seqlens_k: (S+1,) of int32, from 0 on, rising: sequence s of S that are packed
        has queries cu_seqlens_q[s] to cu_seqlens_q[s+1]−1, and keys likewise; as the queries unless
        given. q is then (T,H,D), k and v (U,G,D). Rows behind the last sequence get zeros, and
        gradients of zero. Their values are never read on the host, so that they are not checked.
    causal: a query attends to keys up to its own position, the last query's being the last key's,
        also where there are more keys than queries, or fewer: queries in front of the first key see
        none, and get zeros, and −∞ for lse.
    scale: of the scores, positive; 1/√D unless given.
    window: (left, right): a query attends to so many keys in front of its own position, and behind
        it; −1 for no limit. Where causal, right counts as 0.
    return_lse: return (o, lse); lse is (B,H,N), packed (H,T), in fp32, and has a gradient.
    deterministic: gradients have the same bits on every call; None for what
        `torch.use_deterministic_algorithms` says at the time of the call (in a graph of
        torch.compile, of the backward). Only gradients on Hopper, of as many queries as keys, D of
        64 or 128, are faster otherwise.
    config: how to cut up the work; None for the choice of the table, see `configs.configs`. One
        that is passed heeds `deterministic`, but not PyTorch's switch.

    Softmax is computed in fp32; its weights are rounded to v's dtype before they meet v. The
    gradients, of q, k and v, are not differentiable themselves. torch.compile and torch.export take
    it as one operator, `kernelbench::attention`.

    Raises TypeError for other dtypes, nested tensors and arguments of another kind; ValueError for
    shapes that do not fit, and a scale that it cannot have; RuntimeError for tensors that are not
    on one device where Triton runs, or have no memory; NotImplementedError in forward mode.

    Dao, FlashAttention-2, 2023 (arXiv:2307.08691); Shah et al., FlashAttention-3, 2024
    (arXiv:2407.08608); Ainslie et al., GQA, 2023 (arXiv:2305.13245).
    """
    if cu_seqlens_k is cu_seqlens_q:
        cu_seqlens_k = None  # one tensor, once
    how = how_of(causal, scale, window)
    tensors: Inputs = q, k, v, cu_seqlens_q, cu_seqlens_k
    if deterministic is not None:
        deterministic = as_flag("attention", "deterministic", deterministic)
    try:
        o, lse = _attend(tensors, how, config, deterministic, return_lse)
    except (AttributeError, TypeError):  # a clearer error comes first
        check_types(tensors, config)
        raise
    if not return_lse:
        return o
    lse = lse * _LN2
    return o, lse if cu_seqlens_q is None else lse[0]


def _attend(
    tensors: Inputs,
    how: How,
    config: AttentionConfig | None,
    deterministic: bool | None,
    save: bool,
) -> tuple[Tensor, Any]:
    """o, and lse to base 2 if it is saved."""
    q = tensors[0]
    save = save or graded(*tensors[:3])
    if direct(*tensors) and not (q.is_meta and refusal(q.device)):
        try:
            tensors = inputs_of(*tensors)
            plan = plan_of(tensors, how, config, deterministic, save)
            if graded(*tensors[:3]):
                o, lse = Planned.apply(plan, *tensors)
                return o, lse
            return plan.forward(tensors, save)
        except (RuntimeError, IndexError, TypeError):  # a clearer error comes first
            admit("attention", *tensors)
            check(*tensors, how)
            raise
    refuse_some_on_meta("attention", *tensors)
    admit("attention", *tensors)
    check(*tensors, how)
    if deterministic is None and not torch.compiler.is_compiling():
        deterministic = asked_to_repeat(config)
    causal, scale, left, right, _ = how  # a chunk is a matter of `parts` alone
    rest = causal, scale, left, right, deterministic, numbers_of(config)
    o, lse = (
        _TRANSFORM(tensors, (*rest, True)) if transformed() else _operator(*tensors, *rest, save)
    )
    return o, lse
