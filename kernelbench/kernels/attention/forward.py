"""The forward of attention on any GPU, and in the interpreter: o = softmax(q kᵀ·scale) v.

Softmax is taken online, in powers of two, over tiles of keys: the scores never leave the chip.

Shapes: B samples, N tokens, H heads, D head size, M query rows of a tile. Tensors are read where
they lie, by their strides; what is made is contiguous.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from kernelbench.kernels.attention.tiles import (
    Hook,
    Rows,
    Tile,
    Variant,
    Work,
    is_wide,
    load_tile,
    pitch,
    store_tile,
    strides_of,
    tile_of_head,
    visible,
    widened,
)
from kernelbench.kernels.launch import Launch, ceil_div, power_of_2

LOG2E = tl.constexpr(1.4426950408889634)


class Forward(NamedTuple):
    """The tensors of a forward. q, k, v: (B,N,H,D) of any strides whose last is 1. o: (B,N,H·D) and
    contiguous. lse: as `statistic_of` makes it, gets the logarithms to base 2 of the sums of
    2^(score·log2 e). What is not wanted is None."""

    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor | None
    lse: Tensor | None


@triton.jit
def _attend_keys(
    state,
    q_MD,
    k,
    v,
    row_M,
    first,
    end,
    scale,
    variant,
    MASKED: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Keys `first` to `end`: unnormalised result, sum of weights, and largest score so far."""
    acc_MD, sum_M, max_M = state
    D: tl.constexpr = variant.D
    BLOCK_N: tl.constexpr = variant.BLOCK
    BLOCK_D: tl.constexpr = variant.BLOCK_D
    RAGGED: tl.constexpr = MASKED and variant.RAGGED
    for start in tl.range(first, end, BLOCK_N, num_stages=STAGES):
        k_ND = load_tile(k, start, D, BLOCK_N, BLOCK_D, RAGGED)
        score_MN = tl.dot(q_MD, tl.trans(k_ND), input_precision="ieee")
        if MASKED:
            visible_MN = visible(row_M, start + tl.arange(0, BLOCK_N), k.N, variant.CAUSAL)
            score_MN = tl.where(visible_MN, score_MN, float("-inf"))
        new_max_M = tl.maximum(max_M, tl.max(score_MN, axis=1) * scale)
        weight_MN = tl.exp2(score_MN * scale - new_max_M[:, None])
        decay_M = tl.exp2(max_M - new_max_M)
        v_ND = load_tile(v, start, D, BLOCK_N, BLOCK_D, RAGGED)
        acc_MD = acc_MD * decay_M[:, None]
        acc_MD = tl.dot(weight_MN.to(v_ND.dtype), v_ND, acc_MD, input_precision="ieee")
        sum_M = sum_M * decay_M + tl.sum(weight_MN, axis=1)
        max_M = new_max_M
    return acc_MD, sum_M, max_M


@triton.jit
def attend(
    q_ptr,
    k_ptr,
    v_ptr,
    extra,
    o_ptr,
    lse_ptr,
    q_stride_B,
    q_stride_N,
    q_stride_H,
    k_stride_B,
    k_stride_N,
    k_stride_H,
    v_stride_B,
    v_stride_N,
    v_stride_H,
    scale,
    N,
    H,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CAUSAL: tl.constexpr,
    RAGGED: tl.constexpr,
    WIDE: tl.constexpr,
    STAGES: tl.constexpr,
    FINISH: tl.constexpr,
    KIND: tl.constexpr,
):
    """BLOCK_M query rows of one head a program, the longest first where causal.

    FINISH(extra, o_MD, tile, KIND, work) gets the result in fp32, if there is such a hook.
    """
    row, h, b, bh = tile_of_head(N, H, BLOCK_M, CAUSAL)
    q = Rows(q_ptr + b * q_stride_B + h * q_stride_H, widened(q_stride_N, WIDE), N)
    k = Rows(k_ptr + b * k_stride_B + h * k_stride_H, widened(k_stride_N, WIDE), N)
    v = Rows(v_ptr + b * v_stride_B + h * v_stride_H, widened(v_stride_N, WIDE), N)
    q_MD = load_tile(q, row, D, BLOCK_M, BLOCK_D, RAGGED)
    row_M = row + tl.arange(0, BLOCK_M)
    acc_MD = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    sum_M = tl.zeros([BLOCK_M], tl.float32)
    max_M = tl.full([BLOCK_M], float("-inf"), tl.float32)
    state = (acc_MD, sum_M, max_M)
    scale_2 = scale * LOG2E
    if CAUSAL:
        whole = row // BLOCK_N * BLOCK_N
        end = tl.minimum(row + BLOCK_M, N)
    else:
        whole = N // BLOCK_N * BLOCK_N
        end = N
    state = _attend_keys(
        state,
        q_MD,
        k,
        v,
        row_M,
        0,
        whole,
        scale_2,
        Variant(D, BLOCK_N, BLOCK_D, CAUSAL, RAGGED),
        False,
        STAGES,
    )
    if CAUSAL or RAGGED:  # few turns: a pipeline here would make every wgmma wait for the last
        state = _attend_keys(
            state,
            q_MD,
            k,
            v,
            row_M,
            whole,
            end,
            scale_2,
            Variant(D, BLOCK_N, BLOCK_D, CAUSAL, RAGGED),
            True,
            1,
        )
    acc_MD, sum_M, max_M = state

    o_MD = acc_MD * (1.0 / sum_M)[:, None]
    out = b * N * H * D + h * D
    if lse_ptr is not None:
        lse_M = max_M + tl.log2(sum_M)
        tl.store(lse_ptr + bh * pitch(N) + row_M, lse_M, mask=row_M < N)
    if o_ptr is not None:
        o = Rows(o_ptr + out, widened(H * D, WIDE), N)
        store_tile(o, o_MD, row, D, BLOCK_M, BLOCK_D, RAGGED)
    if FINISH is not None:
        FINISH(
            extra, o_MD, Tile(row, h, b, out, N, H), KIND, Work(D, BLOCK_M, BLOCK_D, RAGGED, WIDE)
        )


def forward_launch(
    tensors: Forward,
    *,
    scale: float,
    causal: bool,
    blocks: tuple[int, int, int, int],
    finish: Hook,
) -> Launch:
    """The launch that writes o and lse, each where it is wanted.

    blocks: query rows of a program, keys at a time, warps, stages.
    """
    q, k, v, o, lse = tensors
    B, N, H, D = q.shape
    block_m, block_n, warps, stages = blocks
    args: dict[str, Any] = {
        "q_ptr": q,
        "k_ptr": k,
        "v_ptr": v,
        "o_ptr": o,
        "lse_ptr": lse,
        "extra": finish.extra,
        "scale": scale,
        "N": N,
        "H": H,
    }
    constexprs = {
        "D": D,
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "BLOCK_D": max(16, power_of_2(D)),
        "CAUSAL": causal,
        "RAGGED": N % max(block_m, block_n) != 0,
        "WIDE": is_wide(max(block_m, block_n), q, k, v, o, *finish.rows),
        "STAGES": stages,
        "FINISH": finish.function,
        "KIND": finish.kind,
    }
    grid = (ceil_div(N, block_m) * H * B,)
    options = {"num_warps": warps, "num_stages": stages}
    return Launch(attend, grid, args | strides_of(q=q, k=k, v=v), constexprs, options)
