"""The forward of attention on any GPU, and in the interpreter: o = softmax(q kᵀ·scale) v.

Softmax is taken online, in powers of two, over tiles of keys: the scores never leave the chip.

Shapes: B samples, N tokens, H heads, D head size, M query rows of a tile. Tensors are read where
they lie, by their strides; what is made is contiguous.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from kernelbench.kernels.attention.places import Place, placing, reach_of, tiles_of
from kernelbench.kernels.attention.tiles import (
    NO_HOOK,
    NO_MASK,
    Hook,
    Mask,
    Tile,
    Variant,
    Work,
    finish,
    is_wide,
    load_tile,
    pitch,
    strides_of,
    visible,
)
from kernelbench.kernels.launch import Launch, power_of_2

LOG2E = tl.constexpr(1.4426950408889634)


class Forward(NamedTuple):
    """The tensors of a forward. q: (B,N,H,D), k and v: (B,keys,heads,D), where heads divides H, of
    any strides whose last is 1. o: (B,N,H·D) and contiguous. lse: as `statistic_of` makes it, gets
    the logarithms to base 2 of the sums of 2^(score·log2 e). What is not wanted is None."""

    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor | None
    lse: Tensor | None


@triton.jit
def seen(rows, key_N, N, variant):
    """Which of these keys each row sees. rows: the last that it sees where causal, its own position
    for a mask, and what the mask reads."""
    last_M, mask = rows
    seen_MN = visible(last_M, key_N, N, variant.CAUSAL)
    if variant.VISIBLE is not None:
        seen_MN &= variant.VISIBLE(mask, last_M[:, None], key_N[None, :])
    return seen_MN


@triton.jit
def weigh(q_MD, k_ND, max_M, rows, start, N, scale, variant, MASKED: tl.constexpr):
    """The weights of a tile of keys from `start` on, of N; what is left of those before it; the
    largest score now. rows: see `seen`."""
    score_MN = tl.dot(q_MD, tl.trans(k_ND), input_precision="ieee")
    if MASKED:
        visible_MN = seen(rows, start + tl.arange(0, variant.BLOCK), N, variant)
        score_MN = tl.where(visible_MN, score_MN, float("-inf"))
    new_max_M = tl.maximum(max_M, tl.max(score_MN, axis=1) * scale)
    if MASKED and variant.BLIND:  # −∞ less −∞ is no number
        finite_M = tl.where(new_max_M == float("-inf"), 0.0, new_max_M)
    else:
        finite_M = new_max_M
    weight_MN = tl.exp2(score_MN * scale - finite_M[:, None])
    decay_M = tl.exp2(max_M - finite_M)
    return weight_MN, decay_M, new_max_M


@triton.jit
def attend_keys(
    state,
    q_MD,
    k,
    v,
    rows,
    first,
    end,
    scale,
    variant,
    MASKED: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Keys `first` to `end`: unnormalised result, sum of weights, and largest score so far.

    rows: see `seen`.
    """
    acc_MD, sum_M, max_M = state
    D: tl.constexpr = variant.D
    BLOCK_N: tl.constexpr = variant.BLOCK
    BLOCK_D: tl.constexpr = variant.BLOCK_D
    RAGGED: tl.constexpr = MASKED and variant.RAGGED
    for start in tl.range(first, end, BLOCK_N, num_stages=STAGES):
        k_ND = variant.LOAD(k, start, D, BLOCK_N, BLOCK_D, RAGGED)
        weight_MN, decay_M, max_M = weigh(
            q_MD, k_ND, max_M, rows, start, k.N, scale, variant, MASKED
        )
        v_ND = variant.LOAD(v, start, D, BLOCK_N, BLOCK_D, RAGGED)
        acc_MD = acc_MD * decay_M[:, None]
        acc_MD = tl.dot(weight_MN.to(v_ND.dtype), v_ND, acc_MD, input_precision="ieee")
        sum_M = sum_M * decay_M + tl.sum(weight_MN, axis=1)
    return acc_MD, sum_M, max_M


@triton.jit
def keys_of(
    row,
    row_M,
    ahead,
    keys,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr,
    SQUARE: tl.constexpr,
):
    """What a tile of query rows sees: how many keys without a mask, how many at all, and where
    causal the last key of each row. ahead: of the rows' positions."""
    if not CAUSAL:
        whole = keys // BLOCK_N * BLOCK_N
        end = keys
        last_M = row_M
    elif SQUARE:
        whole = row // BLOCK_N * BLOCK_N
        end = tl.minimum(row + BLOCK_M, keys)
        last_M = row_M
    else:
        whole = tl.minimum(tl.maximum(row + ahead, 0), keys) // BLOCK_N * BLOCK_N
        end = tl.minimum(row + BLOCK_M + ahead, keys)
        last_M = row_M + ahead
    return whole, end, last_M


@triton.jit
def attend(
    q_ptr,
    k_ptr,
    v_ptr,
    extra,
    o_ptr,
    lse_ptr,
    place,
    mask,
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
    GROUP: tl.constexpr,
    PLACE: tl.constexpr,
    WALK: tl.constexpr,
    SHARES: tl.constexpr,
    SQUARE: tl.constexpr,
    VISIBLE: tl.constexpr,
    KEYS: tl.constexpr,
    FINISH: tl.constexpr,
    KIND: tl.constexpr,
):
    """BLOCK_M query rows of one head a program, the longest first where causal.

    GROUP: heads of q that share one of k and v. PLACE, WALK, SHARES: see `places`. SQUARE: a
    sequence has as many queries as keys; else the last query sees the last key. VISIBLE, KEYS: see
    `Mask`. FINISH(extra, o_MD, tile, KIND, work) gets the result in fp32, if there is such a hook.
    """
    row, h, b, bh, q0, k0, rows, keys, ahead, begin = PLACE(place, N, H, BLOCK_M, CAUSAL, False)
    kv_h = h // GROUP
    q_ptr += b * q_stride_B + q0 * q_stride_N + h * q_stride_H
    k_ptr += b * k_stride_B + k0 * k_stride_N + kv_h * k_stride_H
    v_ptr += b * v_stride_B + k0 * v_stride_N + kv_h * v_stride_H
    q = WALK(place, q_ptr, q_stride_N, begin, rows, WIDE)
    k = WALK(place, k_ptr, k_stride_N, begin, keys, WIDE)
    v = WALK(place, v_ptr, v_stride_N, begin, keys, WIDE)
    q_MD = load_tile(q, row, D, BLOCK_M, BLOCK_D, RAGGED)
    row_M = row + tl.arange(0, BLOCK_M)
    acc_MD = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    sum_M = tl.zeros([BLOCK_M], tl.float32)
    max_M = tl.full([BLOCK_M], float("-inf"), tl.float32)
    state = (acc_MD, sum_M, max_M)
    scale_2 = scale * LOG2E
    whole, end, last_M = keys_of(row, row_M, ahead, keys, BLOCK_M, BLOCK_N, CAUSAL, SQUARE)
    if VISIBLE is not None:  # any tile may be masked
        first, stop = KEYS(k if mask is None else mask, row + ahead, row + ahead + BLOCK_M)
        whole = first // BLOCK_N * BLOCK_N
        end = tl.minimum(end, stop)
        last_M = row_M + ahead
    else:
        state = attend_keys(
            state,
            q_MD,
            k,
            v,
            (last_M, None),
            0,
            whole,
            scale_2,
            Variant(D, BLOCK_N, BLOCK_D, CAUSAL, RAGGED, not SQUARE, None, load_tile),
            False,
            STAGES,
        )
    # Mostly few turns: a pipeline here would make every wgmma wait for the last.
    if CAUSAL or RAGGED or VISIBLE is not None:
        state = attend_keys(
            state,
            q_MD,
            k,
            v,
            (last_M, k if mask is None else mask),
            whole,
            end,
            scale_2,
            Variant(
                D,
                BLOCK_N,
                BLOCK_D,
                CAUSAL,
                RAGGED,
                not SQUARE or VISIBLE is not None,
                VISIBLE,
                load_tile,
            ),
            True,
            1 if VISIBLE is None else STAGES,
        )
    acc_MD, sum_M, max_M = state

    if not SQUARE or VISIBLE is not None:  # who sees no key gets zeros, and −∞ for its statistic
        sum_M = tl.where(sum_M == 0.0, 1.0, sum_M)
    o_MD = acc_MD * (1.0 / sum_M)[:, None]
    out = (b * N + q0) * H * D + h * D
    lse_M = max_M + tl.log2(sum_M)
    if lse_ptr is not None:
        tl.store(lse_ptr + bh * pitch(N) + q0 + row_M, lse_M, mask=row_M < rows)
    tile = Tile(row, h, b, out, rows, H, bh * pitch(N) + q0, begin, lse_M)
    finish(o_ptr, o_MD, extra, tile, FINISH, KIND, Work(D, BLOCK_M, BLOCK_D, RAGGED, WIDE))


def forward_launch(
    tensors: Forward,
    *,
    scale: float,
    causal: bool,
    blocks: tuple[int, int, int, int],
    finish: Hook = NO_HOOK,
    mask: Mask = NO_MASK,
    place: Place | None = None,
) -> Launch:
    """The launch that writes o and lse, each where it is wanted.

    blocks: query rows of a program, keys at a time, warps, stages. place: of sequences that are not
    one a sample; packed ones are the one sample of the tensors. Where its rows are not one by one,
    o and lse are None, and it is the hook that stores them.
    """
    q, k, v, o, lse = tensors
    B, N, H, D = q.shape
    block_m, block_n, warps, stages = blocks
    rows = max(block_m, block_n)
    where, placed = placing(q, k, place, rows)
    args: dict[str, Any] = {
        "q_ptr": q,
        "k_ptr": k,
        "v_ptr": v,
        "extra": finish.extra,
        "o_ptr": o,
        "lse_ptr": lse,
        "place": where,
        "mask": mask.extra,
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
        "WIDE": is_wide(reach_of(rows, place), q, k, v, o, *finish.rows),
        "STAGES": stages,
        **placed,
        "VISIBLE": mask.visible,
        "KEYS": mask.keys,
        "FINISH": finish.function,
        "KIND": finish.kind,
    }
    grid = (tiles_of(N, place, block_m) * H * B,)
    options = {"num_warps": warps, "num_stages": stages}
    return Launch(attend, grid, args | strides_of(q=q, k=k, v=v), constexprs, options)
