"""Zigzag attention as a function of PyTorch.

Shapes: T0, T1 rows of all documents in the early and the late chunk, Tk keys, H heads of q, G heads
of k and v, D head size, S documents, W ranks.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from kernelbench.kernels.attention.plans import Planned
from kernelbench.kernels.launch import refusal
from kernelbench.kernels.operators import (
    Transform,
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
from kernelbench.kernels.zigzag_attention.checks import (
    Inputs,
    check,
    check_rows_of_all,
    check_types,
    check_values,
    how_of,
    refuse,
)
from kernelbench.kernels.zigzag_attention.configs import ZigzagConfig
from kernelbench.kernels.zigzag_attention.lengths import How, chunk_rows
from kernelbench.kernels.zigzag_attention.plans import inputs_of, logarithms_of, plan_of


def _how(chunks: list[int], scale: float | None, causal: bool, zigzag: bool) -> How:
    early, late, count = chunks
    return How(early, late, count, scale, causal, zigzag)


@torch.library.custom_op("kernelbench::zigzag_attention", mutates_args=())
def _operator(
    q0: Tensor,
    q1: Tensor,
    k: Tensor,
    v: Tensor,
    q0_starts: Tensor,
    k_starts: Tensor,
    q1_starts: Tensor | None,
    k_places: Tensor | None,
    chunks: list[int],
    scale: float | None,
    causal: bool,
    zigzag: bool,
    validate: bool | None,
    config: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both o, and both lse, (H,T). chunks: which two, of how many."""
    tensors = inputs_of(q0, q1, k, v, q0_starts, k_starts, q1_starts, k_places)
    how = _how(chunks, scale, causal, zigzag)
    plan = plan_of(tensors, how, of_numbers(ZigzagConfig, config))
    given: Inputs = q0, q1, k, v, q0_starts, k_starts, q1_starts, k_places
    check_values(given, how, validate)
    o0, o1, lse0, lse1 = plan.forward(tensors)
    return o0, o1, lse0, lse1


@without_data(_operator)
def _(q0, q1, *rest):
    return q0.new_empty(q0.shape), q1.new_empty(q1.shape), logarithms_of(q0), logarithms_of(q1)


@torch.library.custom_op("kernelbench::zigzag_attention_backward", mutates_args=())
def _operator_backward(
    do0: Tensor | None,
    do1: Tensor | None,
    dlse0: Tensor | None,
    dlse1: Tensor | None,
    q0: Tensor,
    q1: Tensor,
    k: Tensor,
    v: Tensor,
    q0_starts: Tensor,
    k_starts: Tensor,
    q1_starts: Tensor | None,
    k_places: Tensor | None,
    o0: Tensor,
    o1: Tensor,
    lse0: Tensor,
    lse1: Tensor,
    chunks: list[int],
    scale: float | None,
    causal: bool,
    zigzag: bool,
    config: list[int],
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dq0, dq1, dk, dv; `absent` for what is not needed."""
    tensors = inputs_of(q0, q1, k, v, q0_starts, k_starts, q1_starts, k_places)
    how = _how(chunks, scale, causal, zigzag)
    plan = plan_of(tensors, how, of_numbers(ZigzagConfig, config))
    grads, results = (do0, do1, dlse0, dlse1), (o0, o1, lse0, lse1)
    dq0, dq1, dk, dv = gradients_of(plan.backward(grads, tensors, results, needs), q0)
    return dq0, dq1, dk, dv


@without_data(_operator_backward)
def _(do0, do1, dlse0, dlse1, q0, q1, k, v, *rest):
    return empty_gradients((q0, q1, k, v), rest[-1], q0)


def _keep(ctx, inputs, output):
    *tensors, chunks, scale, causal, zigzag, _, config = inputs
    ctx.how = chunks, scale, causal, zigzag, config
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output)


def _gradients(ctx, do0, do1, dlse0, dlse1, call=_operator_backward):
    grads = do0, do1, dlse0, dlse1
    if not any(grad is not None for grad in grads):
        return (*(None for _ in ctx.needs_input_grad),)
    names = "chunks", "scale", "causal", "zigzag", "config"
    rest = dict(zip(names, ctx.how, strict=True))
    return needed_gradients(ctx, 4, call, *grads, *ctx.saved_tensors, **rest)


_operator.register_autograd(_gradients, setup_context=_keep)


def _heads_fit(k):
    """Whether every rank would get whole heads of k and v, and the queries of these."""
    return k.shape[1] % k.mesh.size() == 0


def _ways(q0, q1, k, v, q0_starts, k_starts, q1_starts, k_places, *rest):
    if _heads_fit(k):
        starts = WHOLE, WHOLE, optional(q1_starts, WHOLE), optional(k_places, WHOLE)
        yield (1, 1, 0, 0), (1, 1, 1, 1, *starts)


def _ways_backward(
    do0, do1, dlse0, dlse1, q0, q1, k, v, q0_starts, k_starts, q1_starts, k_places, *rest
):
    if _heads_fit(k):
        grads = *(optional(x, 1) for x in (do0, do1)), *(optional(x, 0) for x in (dlse0, dlse1))
        starts = WHOLE, WHOLE, optional(q1_starts, WHOLE), optional(k_places, WHOLE)
        results = [needed_cut(needed, 1) for needed in rest[-1]]
        yield results, (*grads, 1, 1, 1, 1, *starts, 1, 1, 0, 0)


sharded(_operator, _ways)
sharded(_operator_backward, _ways_backward)
_TRANSFORM = Transform(
    "zigzag_attention", _operator, _keep, partial(_gradients, call=final(_operator_backward))
)


def zigzag_attention(
    q0: Tensor,
    q1: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q0: Tensor,
    cu_seqlens_q1: Tensor,
    cu_seqlens_k: Tensor,
    *,
    chunk_idx_0: int,
    chunk_idx_1: int,
    total_chunks: int,
    cu_seqlens_padded: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = True,
    kv_order: str = "sequence",
    deterministic: bool | None = None,
    validate: bool | None = None,
    config: ZigzagConfig | None = None,
    **others: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Attention of one rank's two chunks of every document to all keys: o = softmax(q kᵀ·scale) v,
    lse = ln Σ exp(q kᵀ·scale), as (o0, o1, lse0, lse1).

    A document of P keys is cut into 2W chunks of c = ⌈P/2W⌉ rows. Row i of chunk n is at position
    n·c + i, and, where causal, sees the keys of its document up to there. Rank r of W has chunks r
    and 2W−1−r, so that every rank has the same work.

    q0: (T0,H,D), q1: (T1,H,D): chunk `chunk_idx_0`, the early one, and `chunk_idx_1`, of every
        document, one after another.
    k, v: (Tk,G,D), where G divides H: heads h·H/G to (h+1)·H/G−1 of q share head h. All four of one
        dtype, bfloat16, float16 or float32 (multiplied exactly, never as TF32), D up to 256, any
        strides; a last axis that is not contiguous costs a copy.
    cu_seqlens_q0, cu_seqlens_q1, cu_seqlens_k: (S+1,) of int32, from 0 on: document s has rows
        cu_seqlens_q0[s] to cu_seqlens_q0[s+1]−1 of q0, and so on. c rows a chunk, but that the last
        chunks of a document that 2W does not divide are shorter, or empty. A document of which q0
        has all rows, and q1 none, is not cut: they are at positions 0 to P−1. Of one that another
        rank has as a whole, both have none.
    total_chunks: 2W.
    cu_seqlens_padded: (S+1,) of int32: document s begins at row cu_seqlens_padded[s] of k, with
        room up to the next one for P keys, of which the first cu_seqlens_k[s+1] − cu_seqlens_k[s]
        are real. Padded rows may hold anything: nobody sees them, their results and gradients are
        zeros, and −∞ for lse.
    softmax_scale: of the scores, positive; 1/√D unless given.
    causal: else both chunks see all keys of their document.
    kv_order: "sequence": documents one after another. "zigzag": as an all-gather over the ranks
        leaves them: each rank's rows one after another, Tk/W of each, with its early and its late
        chunk of each document; all documents are cut then, and have a multiple of 2W rows.
        Gradients lie as k and v do.
    deterministic: gradients have the same bits on every call in any case, but by a config's
        `bwd_hopper`, which is refused if this is True.
    validate: None checks the values of cu_seqlens once for each tensor, which reads them on the
        host, and not while a CUDA graph is captured; True checks at every call, False never. What
        is not checked and wrong gives wrong results, or reads and writes beyond the tensors. An
        inference tensor, whose writes nobody sees, is read at every call.
    config: how to cut up the work; None for the choice of the table, see `configs.configs`.
    others: window_size, alibi_slopes, dropout_p and local_k_slice, as flash-attention's functions
        name them; anything but their neutral values is refused.

    Returns o0 and o1, like q0 and q1, contiguous, and lse0, (H,T0), and lse1, (H,T1), in fp32, with
    gradients; those that see no key are zeros, and −∞. Gradients are not differentiable themselves.
    torch.compile and torch.export take it as one operator, `kernelbench::zigzag_attention`.

    Raises TypeError for other dtypes and arguments of another kind; ValueError for shapes, numbers
    and documents that do not fit; RuntimeError for tensors that are not on one device where Triton
    runs; NotImplementedError for what is refused, and in forward mode.

    Llama 3 (arXiv:2407.21783, §3.3.2); zhuzilin and petrpan26, ring-flash-attention.
    """
    refuse(others)
    how = how_of(chunk_idx_0, chunk_idx_1, total_chunks, softmax_scale, causal, kv_order)
    repeats = deterministic is not None and as_flag(
        "zigzag_attention", "deterministic", deterministic
    )
    if repeats and getattr(config, "bwd_hopper", None) is not None:
        raise ValueError(
            "deterministic=True is not what a config with bwd_hopper does: pass it without"
        )
    if validate is not None:
        validate = as_flag("zigzag_attention", "validate", validate)
    given = q0, q1, k, v, cu_seqlens_q0, cu_seqlens_k, cu_seqlens_q1, cu_seqlens_padded
    if cu_seqlens_q1 is None:
        check_types(given, config)
    q1_starts = None if cu_seqlens_q1 is cu_seqlens_q0 else cu_seqlens_q1
    k_places = None if cu_seqlens_padded is cu_seqlens_k else cu_seqlens_padded
    tensors: Inputs = q0, q1, k, v, cu_seqlens_q0, cu_seqlens_k, q1_starts, k_places
    try:
        return _attend(tensors, how, config, validate)
    except (AttributeError, TypeError):  # a clearer error comes first
        check_types(given, config)
        raise


def _attend(
    tensors: Inputs, how: How, config: ZigzagConfig | None, validate: bool | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both o, and both lse, (H,T)."""
    q0 = tensors[0]
    results: Any
    if direct(*tensors) and not (q0.is_meta and refusal(q0.device)):
        try:
            given, tensors = tensors, inputs_of(*tensors)
            plan = plan_of(tensors, how, config)
            check_values(given, how, validate)
            if graded(*tensors[:4]):
                results = Planned.apply(plan, *tensors)
            else:
                results = plan.forward(tensors)
        except (RuntimeError, IndexError, TypeError):  # a clearer error comes first
            admit("zigzag_attention", *tensors)
            check(*tensors, how)
            raise
    else:
        refuse_some_on_meta("zigzag_attention", *tensors)
        admit("zigzag_attention", *tensors)
        check(*tensors, how)
        rest = [how.early, how.late, how.chunks], *how[3:], validate, numbers_of(config)
        results = _TRANSFORM(tensors, rest) if transformed() else _operator(*tensors, *rest)
    o0, o1, lse0, lse1 = results
    return o0, o1, lse0, lse1


def zigzag_attention_kvpacked(
    q0: Tensor, q1: Tensor, kv: Tensor, *cu_seqlens: Tensor, **options: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`zigzag_attention` of kv, (Tk,2,G,D), k and v next to each other. The rest: as there, which
    also says what is raised."""
    _check_packed("zigzag_attention_kvpacked", "kv", kv)
    if kv.dim() != 4 or kv.shape[1] != 2:
        raise ValueError(f"zigzag_attention_kvpacked takes kv (Tk,2,G,D), got {tuple(kv.shape)}")
    return zigzag_attention(q0, q1, *kv.unbind(1), *cu_seqlens, **options)


def zigzag_attention_qkvpacked(
    qkv: Tensor,
    cu_seqlens_q0: Tensor,
    cu_seqlens_q1: Tensor,
    cu_seqlens_k: Tensor,
    *,
    chunk_idx_0: int,
    chunk_idx_1: int,
    total_chunks: int,
    cu_seqlens_padded: Tensor | None = None,
    kv_order: str = "sequence",
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`zigzag_attention` of qkv, (Tk,3,H,D), q, k and v of all rows next to each other, in
    kv_order. The rows of q that are the two chunks are copied; which they are is read on the host,
    once for each tensor of cu_seqlens, so that it is no part of a graph. The rest: as there."""
    _check_packed("zigzag_attention_qkvpacked", "qkv", qkv)
    if qkv.dim() != 4 or qkv.shape[1] != 3:
        raise ValueError(f"zigzag_attention_qkvpacked takes qkv (Tk,3,H,D), got {tuple(qkv.shape)}")
    q, k, v = qkv.unbind(1)
    how = how_of(chunk_idx_0, chunk_idx_1, total_chunks, None, True, kv_order)
    starts = cu_seqlens_q0, cu_seqlens_k, cu_seqlens_q1, cu_seqlens_padded
    check_types((q, q, k, v, *starts), None)
    check(q, q, k, v, *starts, how)
    check_rows_of_all((q, q, k, v, *starts), how, bool(options.get("validate")))
    places = cu_seqlens_k if cu_seqlens_padded is None else cu_seqlens_padded
    gathered = len(q) if how.zigzag else None
    q0, q1 = (
        q[chunk_rows(starts, places, number, how.chunks, gathered)]
        for starts, number in ((cu_seqlens_q0, how.early), (cu_seqlens_q1, how.late))
    )
    return zigzag_attention(
        *(q0, q1, k, v, cu_seqlens_q0, cu_seqlens_q1, cu_seqlens_k),
        chunk_idx_0=chunk_idx_0,
        chunk_idx_1=chunk_idx_1,
        total_chunks=total_chunks,
        cu_seqlens_padded=cu_seqlens_padded,
        kv_order=kv_order,
        **options,
    )


def _check_packed(function: str, name: str, packed: Any) -> None:
    if not isinstance(packed, Tensor):
        raise TypeError(f"{function} takes {name} as a tensor, got {type(packed).__name__}")
    admit(function, packed)
