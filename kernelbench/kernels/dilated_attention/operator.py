"""Dilated attention as a function of PyTorch.

Shapes: B samples, N tokens, H heads of q, G heads of k and v, D head size.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from kernelbench.kernels.attention.configs import AttentionConfig
from kernelbench.kernels.attention.plans import Planned
from kernelbench.kernels.attention.tiles import statistic_of
from kernelbench.kernels.dilated_attention.checks import (
    How,
    check,
    check_types,
    how_of,
    refuse_dropout,
)
from kernelbench.kernels.dilated_attention.plans import Inputs, inputs_of, plan_of
from kernelbench.kernels.launch import refusal
from kernelbench.kernels.operators import (
    Transform,
    absent,
    admit,
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
from kernelbench.kernels.sharding import needed_cut, optional, sharded


def _how(
    lengths: list[int],
    rates: list[int],
    causal: bool,
    rule: str,
    combine: str,
    order: str,
    grid: list[int],
    reorder: bool,
    scale: float | None,
) -> How:
    branches = tuple(zip(lengths, rates, strict=True))
    sides = (grid[0], grid[1]) if grid else None
    return How(branches, causal, rule, combine, order, sides, reorder, scale)


@torch.library.custom_op("kernelbench::dilated_attention", mutates_args=())
def _operator(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: list[int],
    rates: list[int],
    causal: bool,
    rule: str,
    combine: str,
    order: str,
    grid: list[int],
    reorder: bool,
    scale: float | None,
    config: list[int],
    save: bool,
) -> tuple[Tensor, Tensor]:
    """o, and lse to base 2, (B,H,N), or `absent`."""
    tensors = inputs_of(q, k, v)
    how = _how(lengths, rates, causal, rule, combine, order, grid, reorder, scale)
    o, lse = plan_of(tensors, how, of_numbers(AttentionConfig, config)).forward(tensors, save)
    return o, absent(o).float() if lse is None or not save else lse


@without_data(_operator)
def _(q, k, v, lengths, rates, causal, rule, combine, order, grid, reorder, scale, config, save):
    lse = statistic_of(q) if save and combine == "lse" else absent(q).float()
    return q.new_empty(q.shape), lse


@torch.library.custom_op("kernelbench::dilated_attention_backward", mutates_args=())
def _operator_backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    lengths: list[int],
    rates: list[int],
    causal: bool,
    rule: str,
    combine: str,
    order: str,
    grid: list[int],
    reorder: bool,
    scale: float | None,
    config: list[int],
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv; `absent` for what is not needed."""
    tensors = inputs_of(q, k, v)
    how = _how(lengths, rates, causal, rule, combine, order, grid, reorder, scale)
    plan = plan_of(tensors, how, of_numbers(AttentionConfig, config))
    results = (o, lse) if combine == "lse" else (None, None)
    dq, dk, dv = gradients_of(plan.backward(do, tensors, results, needs), q)
    return dq, dk, dv


@without_data(_operator_backward)
def _(do, q, k, v, *rest):
    return empty_gradients((q, k, v), rest[-1], q)


_NAMES = (
    *("lengths", "rates", "causal", "rule", "combine", "order", "grid", "reorder", "scale"),
    "config",
)


def _keep(ctx, inputs, output):
    q, k, v, *rest, _ = inputs
    ctx.how = rest
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, *output)


def _gradients(ctx, do, dlse, call=_operator_backward):
    if do is None:
        return (*(None for _ in ctx.needs_input_grad),)
    rest = dict(zip(_NAMES, ctx.how, strict=True))
    return needed_gradients(ctx, 3, call, do, *ctx.saved_tensors, **rest)


_operator.register_autograd(_gradients, setup_context=_keep)


def _ways(q, k, v, lengths, rates, causal, rule, combine, *rest):
    """Heads have offsets by their numbers, which ranks do not know."""
    yield (0, needed_cut(rest[-1] and combine == "lse", 0)), (0, 0, 0)


def _ways_backward(do, q, k, v, o, lse, lengths, rates, causal, rule, combine, *rest):
    statistic = optional(lse, 0) if combine == "lse" else "whole"
    yield [needed_cut(needed, 0) for needed in rest[-1]], (0, 0, 0, 0, 0, statistic)


sharded(_operator, _ways)
sharded(_operator_backward, _ways_backward)
_TRANSFORM = Transform(
    "dilated_attention", _operator, _keep, partial(_gradients, call=final(_operator_backward))
)


def dilated_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segment_lengths: Sequence[int],
    dilation_rates: Sequence[int],
    *,
    causal: bool = False,
    offset_rule: str = "head_mod",
    combine: str = "lse",
    order: str = "identity",
    grid: tuple[int, int] | None = None,
    reorder: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    config: AttentionConfig | None = None,
) -> Tensor:
    """LongNet's dilated attention: attention of every r-th token of segments of w, for some w and
    r, combined.

    Branch (w, r) cuts N tokens into segments {iw, …, min((i+1)w, N) − 1}. Of segment i, head j
    keeps the positions {iw + s, iw + s + r, …} in it; these attend to each other alone, with
    o_b = softmax(q kᵀ·scale) v and lse_b = ln Σ exp(q kᵀ·scale). A token's result is Σ_b α_b o_b
    over the branches that keep it, α_b = exp(lse_b) / Σ exp(lse_b): one softmax over all their
    keys, those of two branches twice. It is 0 where no branch keeps it; `coverage` tells where, and
    a warning how many.

    q: (B,N,H,D), k and v: (B,N,G,D), of one dtype, float32, float16 or bfloat16, D up to 256, any
        strides; a last axis that is not contiguous costs a copy. G divides H: heads j·G/H share a
        head of k and v, of which each sees the positions that it keeps itself. float32 is
        multiplied exactly, never as TF32. The result is like q, contiguous.
    segment_lengths, dilation_rates: w and r of each branch; w > N means N.
    causal: a query sees keys up to its own position, in every segment.
    offset_rule: which s a head has. `head_mod`: j mod r, as the paper says. `head_group`:
        ⌊j / ⌈H/r⌉⌋, as torchscale computes it. `segment_index`: i mod r, of all heads.
    combine: `lse`: as above, with the gradient of the weights α. `mean`: Σ_b o_b over the number of
        all branches, also of those that do not keep the token; its gradients attend once more.
    order: in which order kept positions lie in the kernels' tiles, which changes nothing but
        roundings: `identity`, `hilbert`, `morton`, `tile` (8 by 16) or `random` (the same on every
        call), see `orders.list_rows`.
    grid: (h, w) with h·w = N: position p is at row p // w, column p % w. None: kept positions of a
        segment are numbered, and lie row by row in the smallest square of a power of two.
    reorder: all tokens are put in order before they are cut into segments, so that a segment is a
        patch of the grid, if `order` makes it so. This is another function of q, k and v.
        Results are where the tokens were; `causal` is still by the positions before.
    scale: of the scores, positive; 1/√D unless given.
    dropout_p: refused, unless it is 0.
    config: how to cut up the work of every branch; None for the table's choice for each, see
        `attention.configs`.

    Softmax is computed in fp32; its weights are rounded to v's dtype before they meet v. Branches
    are combined in fp32. Gradients, of q, k and v, have the same bits on every call, and are not
    differentiable themselves. torch.compile and torch.export take it as one operator,
    `kernelbench::dilated_attention`. Lists of rows are made on the host, once for a layout.

    Raises TypeError for other dtypes, nested tensors and arguments of another kind; ValueError for
    shapes, numbers and names that do not fit; RuntimeError for tensors that are not on one device
    where Triton runs, or have no memory; NotImplementedError for dropout, and in forward mode.

    Ding et al., LongNet, 2023 (arXiv:2307.02486); torchscale's DilatedAttention.
    """
    refuse_dropout(dropout_p)
    how = how_of(
        segment_lengths,
        dilation_rates,
        causal=causal,
        offset_rule=offset_rule,
        combine=combine,
        order=order,
        grid=grid,
        reorder=reorder,
        scale=scale,
    )
    try:
        return _attend((q, k, v), how, config)
    except (AttributeError, TypeError):  # a clearer error comes first
        check_types((q, k, v), config)
        raise


def _attend(tensors: Inputs, how: How, config: AttentionConfig | None) -> Tensor:
    q = tensors[0]
    planned: Tensor
    if direct(*tensors) and not (q.is_meta and refusal(q.device)):
        try:
            tensors = inputs_of(*tensors)
            plan = plan_of(tensors, how, config)
            if graded(*tensors):
                planned = Planned.apply(plan, *tensors)
                return planned
            o, _ = plan.forward(tensors, save=False)
            return o
        except (RuntimeError, IndexError, TypeError):  # a clearer error comes first
            admit("dilated_attention", *tensors)
            check(*tensors, how)
            raise
    refuse_some_on_meta("dilated_attention", *tensors)
    admit("dilated_attention", *tensors)
    check(*tensors, how)
    lengths, rates = map(list, zip(*how.branches, strict=True))
    rest = lengths, rates, *how[1:5], list(how.grid or ()), *how[6:], numbers_of(config)
    if transformed():
        results = _TRANSFORM(tensors, (*rest, True))
    else:
        results = _operator(*tensors, *rest, graded(*tensors))
    planned, _ = results
    return planned
