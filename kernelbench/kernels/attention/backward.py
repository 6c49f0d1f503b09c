"""The gradients of attention on any GPU, and in the interpreter.

With O = softmax(q kᵀ·scale) v, P the probabilities and δ = rowsum(dO⊙O): dv = Pᵀ dO,
dS = P⊙(dO vᵀ − δ), dq = scale·dS k, dk = scale·dSᵀ q. P is computed again from the statistics that
the forward saved. What else a sample's gradients are multiplied by, its factor, is applied once, to
fp32 sums.

Shapes: as in `forward`; N keys of a tile.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from kernelbench.kernels.attention.forward import LOG2E, keys_of, seen
from kernelbench.kernels.attention.places import Place, placing, reach_of, tiles_of
from kernelbench.kernels.attention.tiles import (
    NO_HOOK,
    NO_MASK,
    Hook,
    Mask,
    Rows,
    Variant,
    is_wide,
    load_rows,
    load_tile,
    pitch,
    store_tile,
    strides_of,
    tile_of_head,
    widened,
)
from kernelbench.kernels.launch import Launch, ceil_div, power_of_2


class Gradients(NamedTuple):
    """The tensors of a backward. do: (B,N,H·D) of any strides whose last is 1; q, k, v and lse: as
    the forward took and left them. delta: as `statistic_of` makes it. wide: a tensor laid out as
    the gradients are, by whose strides their rows are found."""

    do: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    lse: Tensor
    delta: Tensor
    wide: Tensor


@triton.jit
def find_deltas(
    do_ptr,
    o_ptr,
    delta_ptr,
    total_ptr,
    dlse_ptr,
    do_stride_B,
    do_stride_N,
    N,
    H,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    RAGGED: tl.constexpr,
    WIDE: tl.constexpr,
):
    """δ of BLOCK_M tokens of one head, less the gradient of lse, which changes dS as δ does. Where
    dq is to be summed, it begins as zeros here."""
    row, h, b, bh = tile_of_head(N, H, BLOCK_M, False)
    do = Rows(do_ptr + b * do_stride_B + h * D, widened(do_stride_N, WIDE), N)
    do_MD = load_tile(do, row, D, BLOCK_M, BLOCK_D, RAGGED).to(tl.float32)
    if total_ptr is not None:
        zero_MD = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        store_tile(Rows(total_ptr + bh * N * D, D, N), zero_MD, row, D, BLOCK_M, BLOCK_D, RAGGED)
    o = Rows(o_ptr + (b * N * H * D + h * D), widened(H * D, WIDE), N)
    o_MD = load_tile(o, row, D, BLOCK_M, BLOCK_D, RAGGED)
    row_M = row + tl.arange(0, BLOCK_M)
    delta_M = tl.sum(do_MD * o_MD.to(tl.float32), axis=1)
    if dlse_ptr is not None:
        dlse_M = tl.load(dlse_ptr + bh * N + row_M, mask=row_M < N, other=0.0)
        delta_M -= dlse_M * LOG2E
    tl.store(delta_ptr + bh * pitch(N) + row_M, delta_M, mask=row_M < N)


@triton.jit
def seeing(lse_M):
    """Statistics by which all weights of a row that sees no key are 0: its own is −∞."""
    return tl.where(lse_M == float("-inf"), float("inf"), lse_M)


@triton.jit
def gather_queries(
    state,
    kept,
    q,
    do,
    statistics,
    keys,
    first,
    end,
    scale,
    variant,
    MASKED: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Query rows `first` to `end`: what they add to dk and dv, both still to be scaled.

    kept: tiles of k and v. statistics: rows of lse and δ. keys: for each key, the first row that
    sees it where causal; how far a row's position is ahead of its number, and what a mask reads.
    Rows beyond N are all zeros, which add nothing.
    """
    dk_ND, dv_ND = state
    k_ND, v_ND = kept
    lse, delta = statistics
    key_N, ahead, mask = keys
    D: tl.constexpr = variant.D
    BLOCK_M: tl.constexpr = variant.BLOCK
    BLOCK_D: tl.constexpr = variant.BLOCK_D
    RAGGED: tl.constexpr = variant.RAGGED
    for start in tl.range(first, end, BLOCK_M, num_stages=STAGES):
        q_MD = load_tile(q, start, D, BLOCK_M, BLOCK_D, RAGGED)
        lse_M = load_rows(lse, start, BLOCK_M, RAGGED)
        score_NM = tl.dot(k_ND, tl.trans(q_MD), input_precision="ieee")
        if MASKED:
            row_M = start + tl.arange(0, BLOCK_M)
            if variant.CAUSAL:
                score_NM = tl.where(key_N[:, None] <= row_M[None, :], score_NM, float("-inf"))
            if variant.VISIBLE is not None:
                seen_NM = variant.VISIBLE(mask, (row_M + ahead)[None, :], (key_N + ahead)[:, None])
                score_NM = tl.where(seen_NM, score_NM, float("-inf"))
            if variant.BLIND:
                lse_M = seeing(lse_M)
        p_NM = tl.exp2(score_NM * scale - lse_M[None, :])
        do_MD = load_tile(do, start, D, BLOCK_M, BLOCK_D, RAGGED)
        dv_ND = tl.dot(p_NM.to(do_MD.dtype), do_MD, dv_ND, input_precision="ieee")
        delta_M = load_rows(delta, start, BLOCK_M, RAGGED)
        dp_NM = tl.dot(v_ND, tl.trans(do_MD), input_precision="ieee")
        ds_NM = p_NM * (dp_NM - delta_M[None, :])
        dk_ND = tl.dot(ds_NM.to(q_MD.dtype), q_MD, dk_ND, input_precision="ieee")
    return dk_ND, dv_ND


@triton.jit
def differentiate_keys(
    do_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    extra,
    lse_ptr,
    delta_ptr,
    dk_ptr,
    dv_ptr,
    place,
    mask,
    do_stride_B,
    do_stride_N,
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
    QUERIES: tl.constexpr,
    ADDS: tl.constexpr,
    FACTOR: tl.constexpr,
    KIND: tl.constexpr,
):
    """dk and dv of BLOCK_N keys of one of their heads a program, over tiles of BLOCK_M query rows
    of every head that shares it.

    GROUP, PLACE, WALK, SHARES, SQUARE, VISIBLE: as in `forward.attend`. QUERIES: see `Mask`. ADDS:
    to what is there. FACTOR(extra, b, KIND) is the factor of sample b, if there is such a hook.
    """
    kv_H = H // GROUP
    key, h, b, bh, q0, k0, rows, keys, ahead, begin = PLACE(place, N, kv_H, BLOCK_N, False, True)
    k_ptr += b * k_stride_B + k0 * k_stride_N + h * k_stride_H
    v_ptr += b * v_stride_B + k0 * v_stride_N + h * v_stride_H
    k = WALK(place, k_ptr, k_stride_N, begin, keys, WIDE)
    v = WALK(place, v_ptr, v_stride_N, begin, keys, WIDE)
    k_ND = load_tile(k, key, D, BLOCK_N, BLOCK_D, RAGGED)
    v_ND = load_tile(v, key, D, BLOCK_N, BLOCK_D, RAGGED)
    kept = (k_ND, v_ND)
    if SQUARE:
        ahead = 0
    key_N = key - ahead + tl.arange(0, BLOCK_N)
    dk_ND = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv_ND = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    state = (dk_ND, dv_ND)
    scale_2 = scale * LOG2E
    for member in tl.range(0, GROUP):
        q_h = h * GROUP + member
        q_bh = bh if GROUP == 1 else b * H + q_h
        do_start = do_ptr + b * do_stride_B + q0 * do_stride_N + q_h * D
        q_start = q_ptr + b * q_stride_B + q0 * q_stride_N + q_h * q_stride_H
        seeing_rows = rows if SHARES is None else tl.where(SHARES(place, N, q_h, begin), rows, 0)
        do = WALK(place, do_start, do_stride_N, begin, seeing_rows, WIDE)
        q = WALK(place, q_start, q_stride_N, begin, seeing_rows, WIDE)
        lse = WALK(place, lse_ptr + q_bh * pitch(N) + q0, 1, begin, seeing_rows, False)
        delta = WALK(place, delta_ptr + q_bh * pitch(N) + q0, 1, begin, seeing_rows, False)
        statistics = (lse, delta)
        first_whole = 0
        if CAUSAL:
            if SQUARE:
                first = key // BLOCK_M * BLOCK_M
                beyond = key + BLOCK_N
            else:
                first = tl.maximum(key - ahead, 0) // BLOCK_M * BLOCK_M
                beyond = tl.maximum(key + BLOCK_N - ahead, 0)
            first_whole = tl.minimum(tl.cdiv(beyond, BLOCK_M) * BLOCK_M, seeing_rows)
        if VISIBLE is not None:  # any tile may be masked
            least, stop = QUERIES(k if mask is None else mask, key, key + BLOCK_N)
            least = tl.maximum(least - ahead, 0) // BLOCK_M * BLOCK_M
            first = tl.maximum(first, least) if CAUSAL else least
            first_whole = tl.minimum(stop - ahead, seeing_rows)
        if CAUSAL or VISIBLE is not None:
            state = gather_queries(
                state,
                kept,
                q,
                do,
                statistics,
                (key_N, ahead, k if mask is None else mask),
                first,
                first_whole,
                scale_2,
                Variant(
                    D,
                    BLOCK_M,
                    BLOCK_D,
                    CAUSAL,
                    RAGGED,
                    not SQUARE or VISIBLE is not None,
                    VISIBLE,
                    load_tile,
                ),
                True,
                STAGES,
            )
        if VISIBLE is None:
            state = gather_queries(
                state,
                kept,
                q,
                do,
                statistics,
                (key_N, 0, None),
                first_whole,
                seeing_rows,
                scale_2,
                Variant(D, BLOCK_M, BLOCK_D, CAUSAL, RAGGED, not SQUARE, None, load_tile),
                False,
                STAGES,
            )
    dk_ND, dv_ND = state
    if FACTOR is not None:
        factor = FACTOR(extra, b, KIND)
        dk_ND *= factor * scale
        dv_ND *= factor
    else:
        dk_ND *= scale
    out = (b * (N if SQUARE else keys) + k0) * kv_H * D + h * D
    dk = WALK(place, dk_ptr + out, kv_H * D, begin, keys, WIDE)
    dv = WALK(place, dv_ptr + out, kv_H * D, begin, keys, WIDE)
    if ADDS:
        dk_ND += load_tile(dk, key, D, BLOCK_N, BLOCK_D, RAGGED)
        dv_ND += load_tile(dv, key, D, BLOCK_N, BLOCK_D, RAGGED)
    store_tile(dk, dk_ND, key, D, BLOCK_N, BLOCK_D, RAGGED)
    store_tile(dv, dv_ND, key, D, BLOCK_N, BLOCK_D, RAGGED)


@triton.jit
def gather_keys(
    dq_MD,
    kept,
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
    """Keys `first` to `end`: what they add to dq, still to be scaled.

    kept: tiles of q and do, lse and δ of their rows. rows: see `forward.seen`.
    """
    q_MD, do_MD, lse_M, delta_M = kept
    D: tl.constexpr = variant.D
    BLOCK_N: tl.constexpr = variant.BLOCK
    BLOCK_D: tl.constexpr = variant.BLOCK_D
    RAGGED: tl.constexpr = MASKED and variant.RAGGED
    for start in tl.range(first, end, BLOCK_N, num_stages=STAGES):
        k_ND = variant.LOAD(k, start, D, BLOCK_N, BLOCK_D, RAGGED)
        v_ND = variant.LOAD(v, start, D, BLOCK_N, BLOCK_D, RAGGED)
        score_MN = tl.dot(q_MD, tl.trans(k_ND), input_precision="ieee")
        if MASKED:
            visible_MN = seen(rows, start + tl.arange(0, BLOCK_N), k.N, variant)
            score_MN = tl.where(visible_MN, score_MN, float("-inf"))
        p_MN = tl.exp2(score_MN * scale - lse_M[:, None])
        dp_MN = tl.dot(do_MD, tl.trans(v_ND), input_precision="ieee")
        ds_MN = p_MN * (dp_MN - delta_M[:, None])
        dq_MD = tl.dot(ds_MN.to(k_ND.dtype), k_ND, dq_MD, input_precision="ieee")
    return dq_MD


@triton.jit
def differentiate_queries(
    do_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    extra,
    lse_ptr,
    delta_ptr,
    dq_ptr,
    place,
    mask,
    do_stride_B,
    do_stride_N,
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
    ADDS: tl.constexpr,
    FACTOR: tl.constexpr,
    KIND: tl.constexpr,
):
    """dq of BLOCK_M query rows of one head a program, over tiles of BLOCK_N keys. The last ten: as
    in `differentiate_keys`. KEYS: see `Mask`."""
    row, h, b, bh, q0, k0, rows, keys, ahead, begin = PLACE(place, N, H, BLOCK_M, CAUSAL, False)
    kv_h = h // GROUP
    do_ptr += b * do_stride_B + q0 * do_stride_N + h * D
    q_ptr += b * q_stride_B + q0 * q_stride_N + h * q_stride_H
    k_ptr += b * k_stride_B + k0 * k_stride_N + kv_h * k_stride_H
    v_ptr += b * v_stride_B + k0 * v_stride_N + kv_h * v_stride_H
    do = WALK(place, do_ptr, do_stride_N, begin, rows, WIDE)
    q = WALK(place, q_ptr, q_stride_N, begin, rows, WIDE)
    k = WALK(place, k_ptr, k_stride_N, begin, keys, WIDE)
    v = WALK(place, v_ptr, v_stride_N, begin, keys, WIDE)
    q_MD = load_tile(q, row, D, BLOCK_M, BLOCK_D, RAGGED)
    do_MD = load_tile(do, row, D, BLOCK_M, BLOCK_D, RAGGED)
    lse = WALK(place, lse_ptr + bh * pitch(N) + q0, 1, begin, rows, False)
    delta = WALK(place, delta_ptr + bh * pitch(N) + q0, 1, begin, rows, False)
    lse_M = load_rows(lse, row, BLOCK_M, RAGGED)
    delta_M = load_rows(delta, row, BLOCK_M, RAGGED)
    if not SQUARE or VISIBLE is not None:
        lse_M = seeing(lse_M)
    kept = (q_MD, do_MD, lse_M, delta_M)
    row_M = row + tl.arange(0, BLOCK_M)
    dq_MD = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    scale_2 = scale * LOG2E
    whole, end, last_M = keys_of(row, row_M, ahead, keys, BLOCK_M, BLOCK_N, CAUSAL, SQUARE)
    if VISIBLE is not None:  # as in `forward.attend`
        first, stop = KEYS(k if mask is None else mask, row + ahead, row + ahead + BLOCK_M)
        whole = first // BLOCK_N * BLOCK_N
        end = tl.minimum(end, stop)
        last_M = row_M + ahead
    else:
        dq_MD = gather_keys(
            dq_MD,
            kept,
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
    if CAUSAL or RAGGED or VISIBLE is not None:
        dq_MD = gather_keys(
            dq_MD,
            kept,
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
    dq_MD *= _scaled(extra, b, scale, FACTOR, KIND)
    dq = WALK(place, dq_ptr + ((b * N + q0) * H * D + h * D), H * D, begin, rows, WIDE)
    if ADDS:
        dq_MD += load_tile(dq, row, D, BLOCK_M, BLOCK_D, RAGGED)
    store_tile(dq, dq_MD, row, D, BLOCK_M, BLOCK_D, RAGGED)


@triton.jit
def _scaled(extra, b, scale, FACTOR: tl.constexpr, KIND: tl.constexpr):
    """The scale, by the factor of sample b."""
    if FACTOR is not None:
        scale = FACTOR(extra, b, KIND) * scale
    return scale


@triton.jit
def scale_queries(
    total_ptr,
    extra,
    dq_ptr,
    scale,
    N,
    H,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    RAGGED: tl.constexpr,
    WIDE: tl.constexpr,
    FACTOR: tl.constexpr,
    KIND: tl.constexpr,
):
    """dq = factor·scale·total of BLOCK_M tokens of one head; total is (B,H,N,D), in fp32. FACTOR:
    as in `differentiate_keys`."""
    row, h, b, bh = tile_of_head(N, H, BLOCK_M, False)
    total_MD = load_tile(Rows(total_ptr + bh * N * D, D, N), row, D, BLOCK_M, BLOCK_D, RAGGED)
    dq = Rows(dq_ptr + (b * N * H * D + h * D), widened(H * D, WIDE), N)
    dq_MD = total_MD * _scaled(extra, b, scale, FACTOR, KIND)
    store_tile(dq, dq_MD, row, D, BLOCK_M, BLOCK_D, RAGGED)


LIGHT = {"num_warps": 4, "num_stages": 1}  # of kernels that go through all rows once


def rows_once(q: Tensor) -> tuple[int, int]:
    """The rows of a program that goes through them once, and how many programs a sample has."""
    _, N, H, D = q.shape
    block_M = min(max(8, 2048 // max(16, power_of_2(D))), power_of_2(N))
    return block_M, ceil_div(N, block_M) * H


def once(q: Tensor, *read: Tensor | None) -> tuple[tuple[int], dict[str, Any]]:
    """The grid and constexprs of such a kernel. read: tensors with the strides that it goes by."""
    B, N, _, D = q.shape
    block_M, programs = rows_once(q)
    constexprs = {
        "D": D,
        "BLOCK_D": max(16, power_of_2(D)),
        "BLOCK_M": block_M,
        "RAGGED": N % block_M != 0,
        "WIDE": is_wide(block_M, *read),
    }
    return (programs * B,), constexprs


def deltas_launch(
    do: Tensor,
    q: Tensor,
    o: Tensor,
    delta: Tensor,
    total: Tensor | None,
    dlse: Tensor | None = None,
) -> Launch:
    """The launch that writes δ, and zeros to `total`, if that is given.

    do: (B,N,H·D) of any strides whose last is 1. q: of the shape of the queries. o: as the forward
    left it. total: (B,H,N,D), fp32. dlse: of lse to base 2, (B,H,N) and contiguous.
    """
    _, N, H, _ = q.shape
    grid, constexprs = once(q, do, o)
    args: dict[str, Any] = {"do_ptr": do, "o_ptr": o, "delta_ptr": delta, "total_ptr": total}
    args["dlse_ptr"] = dlse
    args |= {"N": N, "H": H} | strides_of(do=do)
    return Launch(find_deltas, grid, args, constexprs, LIGHT)


def scale_launch(
    total: Tensor, dq: Tensor, *, scale: float, factor: Hook, read: tuple[Tensor | None, ...]
) -> Launch:
    """The launch that writes dq, (B,N,H,D) and contiguous, from its sum over all keys.

    read: tensors by whose strides the launch that finds δ goes, whose grid this has, too.
    """
    _, N, H, _ = dq.shape
    grid, constexprs = once(dq, *read)
    args = {"total_ptr": total, "dq_ptr": dq, "extra": factor.extra, "scale": scale}
    args |= {"N": N, "H": H}
    constexprs |= {"FACTOR": factor.function, "KIND": factor.kind}
    return Launch(scale_queries, grid, args, constexprs, LIGHT)


def keys_launch(
    tensors: Gradients,
    dk: Tensor,
    dv: Tensor,
    *,
    scale: float,
    causal: bool,
    blocks: tuple[int, int, int, int],
    factor: Hook = NO_HOOK,
    mask: Mask = NO_MASK,
    place: Place | None = None,
    adds: bool = False,
) -> Launch:
    """The launch that writes dk and dv, (B,keys,heads,D) and contiguous, or adds to them.

    blocks: query rows at a time, keys of a program, warps, stages. place: see
    `forward.forward_launch`.
    """
    rows, keys, *_ = blocks
    _, N, heads, _ = dk.shape
    constexprs = {"BLOCK_M": rows, "BLOCK_N": keys, "CAUSAL": causal, "ADDS": adds}
    constexprs |= {"VISIBLE": mask.visible, "QUERIES": mask.queries}
    return _gradient_launch(
        differentiate_keys,
        tensors,
        {"dk_ptr": dk, "dv_ptr": dv},
        {"mask": mask.extra, "scale": scale},
        constexprs,
        blocks,
        factor,
        place,
        tiles_of(N, place, keys, of_keys=True) * heads,
    )


def queries_launch(
    tensors: Gradients,
    dq: Tensor,
    *,
    scale: float,
    causal: bool,
    blocks: tuple[int, int, int, int],
    factor: Hook = NO_HOOK,
    mask: Mask = NO_MASK,
    place: Place | None = None,
    adds: bool = False,
) -> Launch:
    """The launch that writes dq, (B,N,H,D) and contiguous, or adds to it.

    blocks: keys at a time, query rows of a program, warps, stages.
    """
    keys, rows, *_ = blocks
    _, N, H, _ = dq.shape
    constexprs = {"BLOCK_M": rows, "BLOCK_N": keys, "CAUSAL": causal, "ADDS": adds}
    constexprs |= {"VISIBLE": mask.visible, "KEYS": mask.keys}
    return _gradient_launch(
        differentiate_queries,
        tensors,
        {"dq_ptr": dq},
        {"mask": mask.extra, "scale": scale},
        constexprs,
        blocks,
        factor,
        place,
        tiles_of(N, place, rows) * H,
    )


def _gradient_launch(
    kernel: Any,
    tensors: Gradients,
    written: Mapping[str, Tensor],
    given: Mapping[str, Any],
    constexprs: dict[str, Any],
    blocks: tuple[int, int, int, int],
    factor: Hook,
    place: Place | None,
    programs: int,
) -> Launch:
    """blocks: what it takes at a time, what it keeps, warps, stages. programs: of a sample."""
    do, q, k, v, lse, delta, wide = tensors
    B, N, H, D = q.shape
    taken, kept, warps, stages = blocks
    rows = max(taken, kept)
    where, placed = placing(q, k, place, rows)
    args: dict[str, Any] = {
        "do_ptr": do,
        "q_ptr": q,
        "k_ptr": k,
        "v_ptr": v,
        "extra": factor.extra,
        "lse_ptr": lse,
        "delta_ptr": delta,
        **written,
        "place": where,
        **given,
        "N": N,
        "H": H,
    }
    constexprs |= {
        "D": D,
        "BLOCK_D": max(16, power_of_2(D)),
        "WIDE": is_wide(reach_of(rows, place), do, q, k, v, wide),
        "STAGES": stages,
        **placed,
        "FACTOR": factor.function,
        "KIND": factor.kind,
    }
    options = {"num_warps": warps, "num_stages": stages}
    args |= strides_of(do=do, q=q, k=k, v=v)
    return Launch(kernel, (programs * B,), args, constexprs, options)
