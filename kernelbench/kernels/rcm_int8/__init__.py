"""The attention and skip of `rcm_attention` with 8-bit products: faster, approximate, forward only.

Shapes as there, and G = B·H heads, T tiles of keys, E the head size of the buffers, 64 or 128.

With k̄ and a_d the mean and the largest magnitude over a head's tokens of k and of channel d of v:
q ≈ s_q·q8, k − k̄ ≈ s_k·k8, v_d ≈ (a_d/448)·v8_d, with q8 and k8 in INT8, a scale for each block of
rows, and v8 in FP8 e4m3. A softmax does not notice k̄, as it moves all scores of a row alike.
The weights are 448·2^(score − max), rounded to e4m3: the factor spends the whole range of the
format and leaves with the division by their sum. Products of a tile of keys are summed on their
own and added to the result in fp32, as the accumulator of Hopper's FP8 products is no fp32.
Below sm_89, which has no such products, weights and v8 are fp16.

Three kernels: q8, sums of k and magnitudes of v over parts of the tokens; k8 and v8; attention.
Nothing returns to the host in between.

Zhang et al., SageAttention2, 2024 (arXiv:2411.10958).
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernelbench.kernels.attention.tiles import (
    Tile,
    Work,
    finish,
    is_wide,
    strides_of,
    tile_of_head,
    visible,
    widened,
)
from kernelbench.kernels.launch import (
    Launch,
    Plans,
    Repeats,
    arch_of,
    ceil_div,
    check_device,
    layouts_of,
    on_device,
    packed_rows,
    power_of_2,
    refusal,
    shared_memory,
    sm_count,
    starts_early,
)
from kernelbench.kernels.operators import (
    admit,
    direct,
    graded,
    is_plain,
    numbers_of,
    of_numbers,
    refuse_some_on_meta,
    refuse_tangents,
    transformed,
    without_data,
)
from kernelbench.kernels.rcm import RcmFormula, formula_of
from kernelbench.kernels.rcm_attention import (
    How,
    Inputs,
    _check_all,
    _check_skip,
    _heads_fit,
    inputs_of,
    skip_hooks,
)
from kernelbench.kernels.rcm_int8 import hopper
from kernelbench.kernels.rcm_int8.packed import Packed, RcmInt8Config
from kernelbench.kernels.sharding import WHOLE, optional, sharded

DTYPES = (torch.float16, torch.bfloat16)
_LOG2E = tl.constexpr(1.4426950408889634)
_FULL = tl.constexpr(448.0)  # the largest e4m3
_LOG2_FULL = tl.constexpr(8.807354922057604)
_PARTS = 8  # of heads for each multiprocessor, or a few more, unless a head had more than 64
_LEAST = tl.constexpr(1e-12)  # magnitude of a block; the product of two scales stays above 0
_MAGIC = tl.constexpr(12582912.0)  # 1.5·2^23: the low bits of this plus a small integer are it
_MAGIC_BITS = tl.constexpr(0x4B400000)


@triton.jit
def _load_rows(
    ptr,
    start,
    row_R,
    stride,
    N,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    RAGGED: tl.constexpr,
    POLICY: tl.constexpr,
):
    """Rows start + row_R of D elements; zeros beyond N, where RAGGED, and beyond D."""
    d_D = tl.arange(0, BLOCK_D)
    ptr_RD = ptr + tl.cast(start, tl.int64) * stride + (row_R[:, None] * stride + d_D[None, :])
    if RAGGED:
        mask_RD = (start + row_R < N)[:, None] & (d_D < D)[None, :]
        x_RD = tl.load(ptr_RD, mask=mask_RD, other=0.0, eviction_policy=POLICY)
    elif D < BLOCK_D:
        x_RD = tl.load(ptr_RD, mask=(d_D < D)[None, :], other=0.0, eviction_policy=POLICY)
    else:
        x_RD = tl.load(ptr_RD, eviction_policy=POLICY)
    return x_RD


@triton.jit
def _store_int8(
    out_ptr,
    scale_ptr,
    x_RD,
    block,
    blocks,
    factor,
    BLOCK: tl.constexpr,
    RAGGED: tl.constexpr,
):
    """Rows as INT8 from block number `block` on, and factor times what one unit of it is worth.

    Each BLOCK rows have a scale. RAGGED: blocks from number `blocks` on are left out.
    """
    SIZE: tl.constexpr = BLOCK * x_RD.shape[1]
    BLOCKS: tl.constexpr = x_RD.shape[0] // BLOCK
    x_SR = tl.reshape(x_RD, [BLOCKS, SIZE])
    most_S = tl.maximum(tl.max(tl.abs(x_SR), axis=1), _LEAST)
    whole_SR = x_SR * (127.0 / most_S)[:, None] + _MAGIC
    x8_SR = whole_SR.to(tl.int32, bitcast=True).to(tl.int8)
    worth_S = most_S * (factor / 127.0)
    block_S = tl.arange(0, BLOCKS)
    out_ptr += tl.cast(block, tl.int64) * SIZE
    at_SR = block_S[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    scale_ptr += block
    if RAGGED:
        there_S = block + block_S < blocks
        tl.store(out_ptr + at_SR, x8_SR, mask=there_S[:, None])
        tl.store(scale_ptr + block_S, worth_S, mask=there_S)
    else:
        tl.store(out_ptr + at_SR, x8_SR)
        tl.store(scale_ptr + block_S, worth_S)


@triton.jit
def _load_values(
    v_ptr,
    start,
    stride,
    N,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PERMUTED: tl.constexpr,
    RAGGED: tl.constexpr,
):
    """Four tensors: of each four keys that are neighbours in v8, one each."""
    i_Q = tl.arange(0, BLOCK_N // 4)
    FAR: tl.constexpr = 8 if PERMUTED else 2
    key_Q = i_Q // 4 * 16 + i_Q % 4 * 2 if PERMUTED else i_Q * 4
    far_Q = key_Q + FAR
    v0_QD = _load_rows(v_ptr, start, key_Q, stride, N, D, BLOCK_D, RAGGED, "evict_first")
    v1_QD = _load_rows(v_ptr, start, key_Q + 1, stride, N, D, BLOCK_D, RAGGED, "evict_first")
    v2_QD = _load_rows(v_ptr, start, far_Q, stride, N, D, BLOCK_D, RAGGED, "evict_first")
    v3_QD = _load_rows(v_ptr, start, far_Q + 1, stride, N, D, BLOCK_D, RAGGED, "evict_first")
    return v0_QD, v1_QD, v2_QD, v3_QD


@triton.jit
def _store_values(v8_ptr, v_QD, fill_D):
    """What `_load_values` loaded, times fill_D, as a tile of v8.

    A thread has four keys of a channel when it is transposed: whole words move through shared
    memory, and a conversion to e4m3 takes two neighbours.
    """
    v0_QD, v1_QD, v2_QD, v3_QD = v_QD
    Q: tl.constexpr = v0_QD.shape[0]
    BLOCK_D: tl.constexpr = v0_QD.shape[1]
    v_QD22 = tl.join(tl.join(v0_QD, v2_QD), tl.join(v1_QD, v3_QD))
    v_DN = tl.reshape(tl.permute(v_QD22, [1, 0, 2, 3]), [BLOCK_D, 4 * Q]).to(tl.float32)
    v8_DN = (v_DN * fill_D[:, None]).to(v8_ptr.dtype.element_ty)
    tl.store(v8_ptr + tl.arange(0, v8_DN.numel), tl.reshape(v8_DN, [v8_DN.numel]))


@triton.jit
def _load_partials(partial_ptr, P, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr):
    part_P = tl.arange(0, BLOCK_P)
    at_PD = part_P[:, None] * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    return tl.load(partial_ptr + at_PD, mask=(part_P < P)[:, None], other=0.0)


@triton.jit
def _quantise_queries(
    q_ptr,
    k_ptr,
    v_ptr,
    q8_ptr,
    q_scale_ptr,
    partial_ptr,
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
    part_tokens,
    N,
    H,
    P,
    q_tiles,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    RAGGED: tl.constexpr,
    WIDE: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """q8, the sum of k or the magnitude of v of one of the P parts of a head's tokens a program.

    DEPENDENT: `_quantise_pairs` may start once all programs have.
    """
    if DEPENDENT:
        tl.extra.cuda.gdc_launch_dependents()
    h = tl.program_id(0) % H
    kind = tl.program_id(0) // H % 3
    part = tl.program_id(0) // H // 3 % P
    b = (tl.program_id(0) // H // 3 // P).to(tl.int64)
    g = b * H + h
    first = part * part_tokens
    end = tl.minimum(first + part_tokens, N)
    row_R = tl.arange(0, ROWS)
    partial_ptr += (g * 2 * P + part) * BLOCK_D + tl.arange(0, BLOCK_D)
    q_stride_N = widened(q_stride_N, WIDE)
    k_stride_N = widened(k_stride_N, WIDE)
    v_stride_N = widened(v_stride_N, WIDE)
    if kind == 0:
        q_ptr += b * q_stride_B + h * q_stride_H
        q8_ptr += g * q_tiles * (BLOCK_M * BLOCK_D)
        q_scale_ptr += g * q_tiles
        factor = scale * _LOG2E
        for start in tl.range(first, end, ROWS, num_stages=1):
            q_RD = _load_rows(q_ptr, start, row_R, q_stride_N, N, D, BLOCK_D, RAGGED, "evict_first")
            q_RD = q_RD.to(tl.float32)
            tile = start // BLOCK_M
            _store_int8(q8_ptr, q_scale_ptr, q_RD, tile, q_tiles, factor, BLOCK_M, RAGGED)
    elif kind == 1:
        k_ptr += b * k_stride_B + h * k_stride_H
        sum_D = tl.zeros([BLOCK_D], tl.float32)
        for start in tl.range(first, end, ROWS, num_stages=1):
            k_RD = _load_rows(k_ptr, start, row_R, k_stride_N, N, D, BLOCK_D, RAGGED, "")
            sum_D += tl.sum(k_RD.to(tl.float32), axis=0)
        tl.store(partial_ptr, sum_D)
    else:
        v_ptr += b * v_stride_B + h * v_stride_H
        most_D = tl.zeros([BLOCK_D], tl.float32)
        for start in tl.range(first, end, ROWS, num_stages=1):
            v_RD = _load_rows(v_ptr, start, row_R, v_stride_N, N, D, BLOCK_D, RAGGED, "")
            most_D = tl.maximum(most_D, tl.max(tl.abs(v_RD.to(tl.float32)), axis=0))
        tl.store(partial_ptr + P * BLOCK_D, most_D)


@triton.jit
def _quantise_pairs(
    k_ptr,
    v_ptr,
    k8_ptr,
    v8_ptr,
    k_scale_ptr,
    v_scale_ptr,
    partial_ptr,
    k_stride_B,
    k_stride_N,
    k_stride_H,
    v_stride_B,
    v_stride_N,
    v_stride_H,
    N,
    H,
    P,
    k_tiles,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PERMUTED: tl.constexpr,
    RAGGED: tl.constexpr,
    WIDE: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """A tile of k8 or of v8 a program, once the sums of the head's k and magnitudes of its v are
    there.

    The last tokens first: those the other kernel has left in the cache. v is written by tiles of
    (BLOCK_D, BLOCK_N). PERMUTED: in each 16 keys of them, in the order in which the threads that
    hold the scores of a row after one product want them for the next.
    """
    index = tl.num_programs(0) - 1 - tl.program_id(0)
    h = index % H
    kind = index // H % 2
    tile = index // H // 2 % k_tiles
    b = (index // H // 2 // k_tiles).to(tl.int64)
    g = b * H + h
    start = tile * BLOCK_N
    partial_ptr += g * 2 * P * BLOCK_D
    k_stride_N = widened(k_stride_N, WIDE)
    v_stride_N = widened(v_stride_N, WIDE)
    if kind == 0:
        k_ptr += b * k_stride_B + h * k_stride_H
        row_N = tl.arange(0, BLOCK_N)
        k_ND = _load_rows(k_ptr, start, row_N, k_stride_N, N, D, BLOCK_D, RAGGED, "evict_first")
        if DEPENDENT:
            tl.extra.cuda.gdc_wait()
        mean_D = tl.sum(_load_partials(partial_ptr, P, BLOCK_P, BLOCK_D), axis=0) / N
        smooth_ND = k_ND.to(tl.float32) - mean_D[None, :]
        if RAGGED:
            smooth_ND = tl.where((start + row_N < N)[:, None], smooth_ND, 0.0)
        k8_ptr += g * k_tiles * (BLOCK_N * BLOCK_D)
        k_scale_ptr += g * k_tiles
        _store_int8(k8_ptr, k_scale_ptr, smooth_ND, tile, k_tiles, 1.0, BLOCK_N, False)
    else:
        v_ptr += b * v_stride_B + h * v_stride_H
        v_QD = _load_values(v_ptr, start, v_stride_N, N, D, BLOCK_N, BLOCK_D, PERMUTED, RAGGED)
        if DEPENDENT:
            tl.extra.cuda.gdc_wait()
        partial_ptr += P * BLOCK_D
        most_D = tl.max(_load_partials(partial_ptr, P, BLOCK_P, BLOCK_D), axis=0)
        most_D = tl.maximum(most_D, _LEAST)
        fill_D = _FULL / most_D
        _store_values(v8_ptr + (g * k_tiles + tile) * (BLOCK_N * BLOCK_D), v_QD, fill_D)
        if tile == 0:
            tl.store(v_scale_ptr + g * BLOCK_D + tl.arange(0, BLOCK_D), most_D / _FULL)


class Variant(NamedTuple):
    """What the loop over keys is compiled for; see `RcmInt8Config`."""

    BLOCK_M: Any
    BLOCK_N: Any
    BLOCK_D: Any
    CAUSAL: Any
    PERMUTED: Any
    BIASED: Any


@triton.jit
def _attend_keys(
    state,
    q,
    keys,
    row_M,
    first,
    end,
    N,
    variant,
    MASKED: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Tiles of keys `first` to `end`: unnormalised result, sum of weights, largest score so far.

    q: a tile and its scale. keys: where k, v and the scales of k begin.
    BIASED: products start at the bits of 1.5·2^23 and so end as the bits of that plus their value:
    this stays exact up to |value| < 2^22, and 127²·128 is less than half of that.
    """
    acc_MD, sum_M, max_M = state
    q_MD, q_scale = q
    k_ptr, v_ptr, k_scale_ptr = keys
    BLOCK_M: tl.constexpr = variant.BLOCK_M
    BLOCK_N: tl.constexpr = variant.BLOCK_N
    BLOCK_D: tl.constexpr = variant.BLOCK_D
    BIASED: tl.constexpr = variant.BIASED
    key_N = tl.arange(0, BLOCK_N)
    d_D = tl.arange(0, BLOCK_D)
    BIAS: tl.constexpr = _MAGIC if BIASED else 0.0
    for tile in tl.range(first, end, num_stages=STAGES):
        k_scale = tl.load(k_scale_ptr + tile)
        at = tl.cast(tile, tl.int64) * (BLOCK_N * BLOCK_D)
        k_DN = tl.load(k_ptr + at + (key_N[None, :] * BLOCK_D + d_D[:, None]))
        if BIASED:
            start_MN = tl.full([BLOCK_M, BLOCK_N], _MAGIC_BITS, tl.int32)
            whole_MN = tl.dot(q_MD, k_DN, start_MN, out_dtype=tl.int32)
            product_MN = whole_MN.to(tl.float32, bitcast=True)
        else:
            product_MN = tl.dot(q_MD, k_DN, out_dtype=tl.int32).to(tl.float32)
        if MASKED:
            visible_MN = visible(row_M, tile * BLOCK_N + key_N, N, variant.CAUSAL)
            product_MN = tl.where(visible_MN, product_MN, float("-inf"))
        scale = q_scale * k_scale
        new_max_M = tl.maximum(max_M, (tl.max(product_MN, axis=1) - BIAS) * scale)
        shift_M = (scale * -BIAS + _LOG2_FULL) - new_max_M
        weight_MN = tl.exp2(product_MN * scale + shift_M[:, None])
        decay_M = tl.exp2(max_M - new_max_M)
        v_ND = tl.load(v_ptr + at + (d_D[None, :] * BLOCK_N + key_N[:, None]))
        weight8_MN = weight_MN.to(v_ptr.dtype.element_ty)
        if variant.PERMUTED:
            split_MN = tl.reshape(weight8_MN, [BLOCK_M, BLOCK_N // 16, 2, 4, 2])
            swapped_MN = tl.permute(split_MN, [0, 1, 3, 2, 4])
            weight8_MN = tl.reshape(swapped_MN, [BLOCK_M, BLOCK_N])
        acc_MD = acc_MD * decay_M[:, None] + tl.dot(weight8_MN, v_ND)
        sum_M = sum_M * decay_M + tl.sum(weight_MN, axis=1)
        max_M = new_max_M
    return acc_MD, sum_M, max_M


@triton.jit
def _attend(
    q8_ptr,
    k8_ptr,
    v8_ptr,
    q_scale_ptr,
    k_scale_ptr,
    v_scale_ptr,
    extra,
    o_ptr,
    N,
    H,
    q_tiles,
    k_tiles,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CAUSAL: tl.constexpr,
    RAGGED: tl.constexpr,
    WIDE: tl.constexpr,
    PERMUTED: tl.constexpr,
    BIASED: tl.constexpr,
    STAGES: tl.constexpr,
    FINISH: tl.constexpr,
    KIND: tl.constexpr,
):
    """BLOCK_M query rows of one head a program, the longest first where causal. extra, FINISH,
    KIND: as in `attention.forward.attend`."""
    row, h, b, g = tile_of_head(N, H, BLOCK_M, CAUSAL)
    d_D = tl.arange(0, BLOCK_D)
    block = g * q_tiles + row // BLOCK_M
    q8_ptr += block * (BLOCK_M * BLOCK_D)
    q_MD = tl.load(q8_ptr + tl.arange(0, BLOCK_M)[:, None] * BLOCK_D + d_D[None, :])
    q_scale = tl.load(q_scale_ptr + block)
    k8_ptr += g * k_tiles * (BLOCK_N * BLOCK_D)
    v8_ptr += g * k_tiles * (BLOCK_N * BLOCK_D)
    k_scale_ptr += g * k_tiles
    keys = (k8_ptr, v8_ptr, k_scale_ptr)
    row_M = row + tl.arange(0, BLOCK_M)
    acc_MD = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    sum_M = tl.zeros([BLOCK_M], tl.float32)
    max_M = tl.full([BLOCK_M], float("-inf"), tl.float32)
    state = (acc_MD, sum_M, max_M)
    if CAUSAL:
        whole = row // BLOCK_N
        end = tl.cdiv(tl.minimum(row + BLOCK_M, N), BLOCK_N)
    else:
        whole = N // BLOCK_N
        end = k_tiles
    state = _attend_keys(
        state,
        (q_MD, q_scale),
        keys,
        row_M,
        0,
        whole,
        N,
        Variant(BLOCK_M, BLOCK_N, BLOCK_D, CAUSAL, PERMUTED, BIASED),
        False,
        STAGES,
    )
    if CAUSAL or RAGGED:
        state = _attend_keys(
            state,
            (q_MD, q_scale),
            keys,
            row_M,
            whole,
            end,
            N,
            Variant(BLOCK_M, BLOCK_N, BLOCK_D, CAUSAL, PERMUTED, BIASED),
            True,
            STAGES,
        )
    acc_MD, sum_M, max_M = state

    v_scale_D = tl.load(v_scale_ptr + g * BLOCK_D + d_D)
    o_MD = acc_MD * (1.0 / sum_M)[:, None] * v_scale_D[None, :]
    tile = Tile(row, h, b, b * N * H * D + h * D, N, H)
    finish(o_ptr, o_MD, extra, tile, FINISH, KIND, Work(D, BLOCK_M, BLOCK_D, RAGGED, WIDE))


_Tile = tuple[int, int, int, int, bool]  # block_m, block_n, warps, stages, biased
# By the head size of the buffers, on sm_90 and elsewhere.
_TABLE: dict[tuple[int, bool], tuple[_Tile, ...]] = {
    (128, True): (
        (64, 128, 4, 3, True),
        (64, 128, 4, 3, False),
        (64, 128, 4, 2, True),
        (64, 128, 4, 2, False),
        (128, 128, 8, 2, False),
        (128, 64, 8, 3, False),
        (64, 64, 4, 3, False),
    ),
    (64, True): (
        (64, 128, 4, 3, True),
        (64, 128, 4, 3, False),
        (64, 128, 4, 2, True),
        (64, 128, 4, 2, False),
        (128, 128, 8, 2, False),
        (128, 128, 8, 3, True),
        (64, 64, 4, 3, False),
    ),
    (128, False): ((128, 64, 8, 2, False), (64, 64, 4, 2, False), (64, 64, 4, 3, False)),
    (64, False): ((64, 64, 4, 2, False), (64, 64, 4, 3, False), (128, 64, 8, 2, False)),
}


def configs(N: int, D: int, *, arch: str) -> tuple[RcmInt8Config, ...]:
    """The table's choice for N tokens of heads of D elements, then others that a tuner may pick.

    arch: `sm_90` and the like, or `cpu` for the interpreter.
    """
    E = _buffer_size(D)
    most = max(32, power_of_2(N))
    bytes_of_v = _value_dtype(arch).itemsize
    fitting = (
        RcmInt8Config(min(block_m, most), min(block_n, most), warps, stages, biased)
        for block_m, block_n, warps, stages, biased in _TABLE[E, arch == "sm_90"]
        if (block_m + stages * block_n * (1 + bytes_of_v)) * E <= shared_memory(arch, 1)
    )
    candidates = tuple(dict.fromkeys(fitting))
    if arch == "sm_90" and D == 128:
        candidates = (replace(candidates[0], hopper=True), *candidates)
    return candidates


@lru_cache(maxsize=4096)
def _choose(N: int, D: int, arch: str) -> RcmInt8Config:
    return configs(N, D, arch=arch)[0]


def _buffer_size(D: int) -> int:
    return max(64, power_of_2(D))


def _value_dtype(arch: str) -> torch.dtype:
    """Of weights and v as they are multiplied: FP8 where there are such products."""
    has_fp8 = arch.startswith("sm_") and int(arch.removeprefix("sm_")) >= 89
    return torch.float8_e4m3fn if has_fp8 else torch.float16


def _empty_packed(q: Tensor, scale: float, config: RcmInt8Config, arch: str) -> Packed:
    B, N, H, D = q.shape
    G, E = B * H, _buffer_size(D)
    q_tiles, k_tiles = ceil_div(N, config.block_m), ceil_div(N, config.block_n)
    buffers = (
        q.new_empty(G, q_tiles * config.block_m, E, dtype=torch.int8),
        q.new_empty(G, k_tiles * config.block_n, E, dtype=torch.int8),
        q.new_empty(G, k_tiles, E, config.block_n, dtype=_value_dtype(arch)),
        q.new_empty(G, q_tiles, dtype=torch.float32),
        q.new_empty(G, k_tiles, dtype=torch.float32),
        q.new_empty(G, E, dtype=torch.float32),
    )
    return _packed(buffers, q, scale, config, arch)


def _packed(
    buffers: Sequence[Tensor], q: Tensor, scale: float, config: RcmInt8Config, arch: str
) -> Packed:
    """buffers: as `Packed.buffers`."""
    q8, k8, v8, q_scale, k_scale, v_scale = buffers
    permuted = _value_dtype(arch) is torch.float8_e4m3fn or arch == "cpu"
    B, N, H, D = q.shape
    shape: Any = {"B": B, "N": N, "H": H, "D": D, "dtype": q.dtype}
    how: Any = {"permuted": permuted, "scale": scale, "config": config}
    return Packed(q8, k8, v8, q_scale, k_scale, v_scale, **shape, **how)


def quantise_scratch(packed: Packed) -> Tensor:
    """Scratch memory for `quantise_launches`: the sums and maxima of the parts of each head."""
    G, _, E = packed.q8.shape
    parts = ceil_div(packed.N, _part_tokens(packed))
    return packed.q8.new_empty(G, 2, parts, E, dtype=torch.float32)


def _rows(packed: Packed) -> int:
    """Tokens that are quantised at a time."""
    return max(packed.config.block_m, packed.config.block_n)


def _part_tokens(packed: Packed) -> int:
    """Tokens of a part of a head."""
    G, rows = packed.q8.shape[0], _rows(packed)
    steps = ceil_div(packed.N, rows)
    wanted = G * steps // (_PARTS * sm_count(packed.q8.device))
    return rows * max(wanted, ceil_div(steps, 64), 1)


def quantise_launches(
    q: Tensor, k: Tensor, v: Tensor, packed: Packed, partial: Tensor
) -> tuple[Launch, Launch]:
    """The launches, in order, that fill `packed`.

    q, k, v: (B,N,H,D) of any strides whose last is 1. partial: as `quantise_scratch` makes it. The
    first launch has three programs for each part of a head.
    """
    G, _, E = packed.q8.shape
    rows, P = _rows(packed), partial.shape[2]
    early = starts_early(arch_of(q.device))
    args = {"N": packed.N, "H": packed.H, "P": P, "partial_ptr": partial}
    constexprs = {"D": packed.D, "BLOCK_D": E, "DEPENDENT": early}
    options = {"num_warps": packed.config.quantise_warps, "num_stages": 1}
    first = Launch(
        _quantise_queries,
        (G * P * 3,),
        _queries_args(q, k, v, packed, _part_tokens(packed)) | args | strides_of(q=q, k=k, v=v),
        constexprs
        | {
            "BLOCK_M": packed.config.block_m,
            "ROWS": rows,
            "RAGGED": packed.N % rows != 0,
            "WIDE": is_wide(rows, q, k, v),
        },
        options,
    )
    second = Launch(
        _quantise_pairs,
        (packed.k_scale.numel() * 2,),
        _pairs_args(k, v, packed) | args | strides_of(k=k, v=v),
        constexprs
        | {
            "BLOCK_N": packed.config.block_n,
            "BLOCK_P": power_of_2(P),
            "PERMUTED": packed.permuted,
            "RAGGED": packed.N % packed.config.block_n != 0,
            "WIDE": is_wide(packed.config.block_n, k, v),
        },
        options | {"launch_pdl": early},
    )
    return first, second


def _queries_args(
    q: Tensor, k: Tensor, v: Tensor, packed: Packed, part_tokens: int
) -> dict[str, Any]:
    return {
        "q_ptr": q,
        "k_ptr": k,
        "v_ptr": v,
        "q8_ptr": packed.q8,
        "q_scale_ptr": packed.q_scale,
        "scale": packed.scale,
        "part_tokens": part_tokens,
        "q_tiles": packed.q_scale.shape[1],
    }


def _pairs_args(k: Tensor, v: Tensor, packed: Packed) -> dict[str, Any]:
    return {
        "k_ptr": k,
        "v_ptr": v,
        "k8_ptr": packed.k8,
        "v8_ptr": packed.v8,
        "k_scale_ptr": packed.k_scale,
        "v_scale_ptr": packed.v_scale,
        "k_tiles": packed.k_scale.shape[1],
    }


def attend_launch(
    packed: Packed, x: Tensor | None, t: Tensor | None, y: Tensor, *, formula: RcmFormula
) -> Launch:
    """The launch that writes y, (B,N,H·D) and contiguous.

    x: (B,N,H·D) of any strides whose last is 1, and t: (B,); both None without a skip. The scale
    is that of `packed`.
    """
    config = packed.config
    hook, _ = skip_hooks(x, t, y, formula)
    args: dict[str, Any] = {
        "q8_ptr": packed.q8,
        "k8_ptr": packed.k8,
        "v8_ptr": packed.v8,
        "q_scale_ptr": packed.q_scale,
        "k_scale_ptr": packed.k_scale,
        "v_scale_ptr": packed.v_scale,
        "extra": hook.extra,
        "o_ptr": y if hook.function is None else None,
        "N": packed.N,
        "H": packed.H,
        "q_tiles": packed.q_scale.shape[1],
        "k_tiles": packed.k_scale.shape[1],
    }
    constexprs = {
        "D": packed.D,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_D": packed.q8.shape[2],
        "CAUSAL": formula.causal,
        "RAGGED": packed.N % max(config.block_m, config.block_n) != 0,
        "WIDE": is_wide(config.block_m, x, y),
        "PERMUTED": packed.permuted,
        "BIASED": config.biased,
        "STAGES": config.stages,
        "FINISH": hook.function,
        "KIND": hook.kind,
    }
    grid = (packed.q_scale.numel(),)
    options = {"num_warps": config.warps, "num_stages": config.stages}
    return Launch(_attend, grid, args, constexprs, options)


def _attend_launch(
    packed: Packed, x: Tensor | None, t: Tensor | None, y: Tensor, formula: RcmFormula, arch: str
) -> Launch:
    """The launch of the config's kernel if that takes these tensors and runs there, else `tl`'s."""
    if packed.config.hopper and arch == "sm_90" and hopper.suits(packed, x, y):
        _, hook = skip_hooks(x, t, y, formula)
        how: dict[str, Any] = {"causal": formula.causal, "hook": hook}
        return hopper.attend_launch(packed, y, tile=hopper.TILE, **how)
    return attend_launch(packed, x, t, y, formula=formula)


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    if q.dtype not in DTYPES or k.dtype != q.dtype or v.dtype != q.dtype:
        raise TypeError(
            f"rcm_attention_int8 takes q, k and v of one dtype, float16 or bfloat16, got "
            f"{q.dtype}, {k.dtype} and {v.dtype}: convert them with .to()"
        )
    if q.dim() != 4 or k.shape != q.shape or v.shape != q.shape:
        raise ValueError(
            f"rcm_attention_int8 takes q, k and v of one shape (B,N,H,D), got {tuple(q.shape)}, "
            f"{tuple(k.shape)} and {tuple(v.shape)}"
        )
    if not 16 <= q.shape[3] <= 128:
        raise ValueError(
            f"rcm_attention_int8 takes heads of 16 to 128 elements, got D = {q.shape[3]}: "
            "rcm_attention takes up to 256"
        )


def _refuse_gradients(*tensors: Tensor | None) -> None:
    refuse_tangents("8-bit attention", *tensors)
    if graded(*tensors):
        raise RuntimeError(
            "rcm_attention_int8 has no gradients: call it under torch.no_grad(), or call "
            "rcm_attention, which has"
        )


class _Plan:
    """Calls that differ only in their tensors' addresses: checked once, with prepared launches."""

    def __init__(self, tensors: Inputs, how: How, config: RcmInt8Config | None) -> None:
        q, k, v, x, t = tensors
        sigma_data, parametrization, causal, scale = how
        _check_all(*tensors, *how, _check)
        D = q.shape[3]
        self._formula = formula_of(parametrization, sigma_data, causal, scale, D)
        device = check_device(q=q, k=k, v=v, x=x, t=t)
        self._arch = arch_of(device)
        self._config = config or _choose(q.shape[1], D, self._arch)
        self._repeats = Repeats(device)

    def run(self, tensors: Inputs) -> Tensor:
        q = tensors[0]
        y = q.new_empty(q.shape[0], q.shape[1], q.shape[2] * q.shape[3])
        packed = _empty_packed(q, self._formula.scale, self._config, self._arch)
        memory = *packed.buffers, quantise_scratch(packed)
        self._repeats.run(None, (*tensors, y, *memory), self._launches)
        return y

    def _launches(self, kind: None, tensors: Sequence[Any]) -> Sequence[Launch]:
        q, k, v, x, t, y, *buffers, partial = tensors
        packed = _packed(buffers, q, self._formula.scale, self._config, self._arch)
        attend = _attend_launch(packed, x, t, y, self._formula, self._arch)
        return *quantise_launches(q, k, v, packed, partial), attend


_PLANS: Plans[_Plan] = Plans()


def _run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    x: Tensor | None,
    t: Tensor | None,
    how: How,
    config: RcmInt8Config | None,
) -> Tensor:
    tensors = inputs_of(q, k, v, x, t, how[1])
    key = (*layouts_of(tensors), how, config)
    plan = _PLANS.get(key)
    if plan is None:
        plan = _PLANS.add(key, _Plan(tensors, how, config))
    return plan.run(tensors)


@torch.library.custom_op("kernelbench::rcm_attention_int8", mutates_args=())
def _operator(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    x: Tensor | None,
    t: Tensor | None,
    sigma_data: float | None,
    parametrization: str,
    causal: bool,
    scale: float | None,
    config: list[int],
) -> Tensor:
    """y."""
    how = sigma_data, parametrization, causal, scale
    return _run(q, k, v, x, t, how, of_numbers(RcmInt8Config, config))


@without_data(_operator)
def _(q, k, v, x, t, sigma_data, parametrization, causal, scale, config):
    return q.new_empty(q.shape[0], q.shape[1], q.shape[2] * q.shape[3])


def _ways(q, k, v, x, t, *rest):
    yield (0,), (0, 0, 0, optional(x, 0), optional(t, 0))
    if _heads_fit(q):
        yield (2,), (2, 2, 2, optional(x, 2), optional(t, WHOLE))


sharded(_operator, _ways)


def _refuse_tracing(name: str, *tensors: Tensor | None) -> None:
    plain = all(t is None or is_plain(t) for t in tensors)
    if torch.compiler.is_compiling() or transformed() or not plain:
        raise NotImplementedError(
            f"{name} takes plain tensors, outside torch.compile and functorch's transforms: "
            "rcm_attention_int8, which packs in the call, takes others, too"
        )


def prepack(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    config: RcmInt8Config | None = None,
) -> Packed:
    """The 8-bit copies of q, k and v that `rcm_attention_prepacked` reads: two kernels.

    Arguments and errors are those of `rcm_attention_int8`.
    """
    _check(q, k, v)
    _refuse_gradients(q, k, v)
    _refuse_tracing("prepack", q, k, v)
    scale = formula_of("none", None, False, scale, q.shape[3]).scale
    device = check_device(q=q, k=k, v=v)
    arch = arch_of(device)
    if config is None:
        config = _choose(q.shape[1], q.shape[3], arch)
    q, k, v = packed_rows(q), packed_rows(k), packed_rows(v)
    packed = _empty_packed(q, scale, config, arch)
    with on_device(device):
        for launch in quantise_launches(q, k, v, packed, quantise_scratch(packed)):
            launch.run()
    return packed


def rcm_attention_prepacked(
    packed: Packed,
    x: Tensor | None,
    t: Tensor | None,
    *,
    sigma_data: float | None = None,
    parametrization: str = "edm",
    causal: bool = False,
) -> Tensor:
    """`rcm_attention_int8` of what was packed, with the scale that it was packed for."""
    _refuse_gradients(x, t)
    _refuse_tracing("rcm_attention_prepacked", x, t)
    formula = formula_of(parametrization, sigma_data, causal, packed.scale, packed.D)
    shape = (packed.B, packed.N, packed.H, packed.D)
    if formula.skips:
        _check_skip(torch.empty(shape, dtype=packed.dtype, device="meta"), x, t, parametrization)
    else:
        x = t = None
    device = check_device(packed=packed.q8, x=x, t=t)
    x = None if x is None else packed_rows(x)
    y = packed.q8.new_empty(packed.B, packed.N, packed.H * packed.D, dtype=packed.dtype)
    with on_device(device):
        _attend_launch(packed, x, t, y, formula, arch_of(device)).run()
    return y


def rcm_attention_int8(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    x: Tensor | None,
    t: Tensor | None,
    *,
    sigma_data: float | None = None,
    parametrization: str = "edm",
    causal: bool = False,
    scale: float | None = None,
    config: RcmInt8Config | None = None,
) -> Tensor:
    """y ≈ c_skip(t_b)·x + c_out(t_b)·softmax(q kᵀ·scale) v, with 8-bit products.

    q, k, v: (B,N,H,D) of one dtype, float16 or bfloat16, D from 16 to 128. Any strides; a last
        axis that is not contiguous costs a copy.
    x: (B,N,H·D) of q's dtype, strides likewise. y is like it, contiguous.
    t, parametrization, sigma_data, causal, scale: as for `rcm_attention.rcm_attention`.
    config: how to cut up the work; None for the choice of the table, see `configs`.

    The attention term of normally distributed inputs is off by some 4 % of its norm (relative
    Frobenius error); the skip is exact, so that y equals x where c_out is 0. Values that are not
    finite need not come through. A mean of k over the tokens costs nothing; a channel of q or k
    that is far larger than the others costs them their precision, a channel of v does not.

    torch.compile and torch.export take it as one operator, `kernelbench::rcm_attention_int8`.

    Raises TypeError for other dtypes, nested tensors and a sigma_data or scale that is no number;
    ValueError for shapes that do not fit, an unknown parametrization, or a sigma_data or scale that
    it cannot have; RuntimeError where a gradient is asked for, and for tensors that are not on one
    device where Triton runs, or have no memory; NotImplementedError in forward mode.

    Zhang et al., SageAttention2, 2024 (arXiv:2411.10958).
    """
    if parametrization == "none":
        x = t = None
    tensors = q, k, v, x, t
    _refuse_gradients(*tensors)
    how = sigma_data, parametrization, causal, scale
    if direct(*tensors) and not (q.is_meta and refusal(q.device)):
        try:
            return _run(*tensors, how, config)
        except (RuntimeError, IndexError, TypeError):  # a clearer error comes first
            admit("rcm_attention_int8", *tensors)
            _check_all(*tensors, *how, _check)
            raise
    refuse_some_on_meta("rcm_attention_int8", *tensors)
    admit("rcm_attention_int8", *tensors)
    _check_all(*tensors, *how, _check)
    y: Tensor = _operator(*tensors, *how, numbers_of(config))
    return y
