"""The gradients of zigzag attention: dk and dv in one pass over both chunks' queries, dq of both
chunks in one pass over the keys.

Shapes: as in `places`; M query rows of a tile, N keys of one.
"""

import triton
import triton.language as tl

from kernelbench.kernels.attention.backward import gather_keys, gather_queries, seeing
from kernelbench.kernels.attention.forward import LOG2E
from kernelbench.kernels.attention.places import sequence_of
from kernelbench.kernels.attention.tiles import (
    Rows,
    Variant,
    load_rows,
    load_tile,
    store_tile,
    widened,
)
from kernelbench.kernels.zigzag_attention.forward import span_of
from kernelbench.kernels.zigzag_attention.places import (
    Chunk,
    document_of,
    keys_of_head,
    row_of,
    rows_of,
    statistics_of,
    store_keys,
)


@triton.jit
def _of_head(chunk, place, h, D: tl.constexpr, WIDE: tl.constexpr, JOINED: tl.constexpr):
    """Rows of q and do of a head, without what is padded, and its statistics, lse and δ."""
    q = chunk.q + place.start * chunk.q_stride_T + h * chunk.q_stride_H
    do = chunk.do + place.start * chunk.do_stride_T + h * D
    statistic = statistics_of(chunk, place, h, JOINED)
    return (
        Rows(q, widened(chunk.q_stride_T, WIDE), place.real),
        Rows(do, widened(chunk.do_stride_T, WIDE), place.real),
        (
            Rows(chunk.lse + statistic, 1, place.real),
            Rows(chunk.delta + statistic, 1, place.real),
        ),
    )


@triton.jit
def _chosen(early, late, is_late):
    """One of two chunks, by a value at run time: one loop over both takes half the code, and the
    registers of one."""
    return Chunk(
        tl.where(is_late, late.q, early.q),
        tl.where(is_late, late.q_stride_T, early.q_stride_T),
        tl.where(is_late, late.q_stride_H, early.q_stride_H),
        tl.where(is_late, late.do, early.do),
        tl.where(is_late, late.do_stride_T, early.do_stride_T),
        tl.where(is_late, late.lse, early.lse),
        tl.where(is_late, late.delta, early.delta),
        0,  # a tuple that is returned holds no None: Triton 3.6
        0,
        tl.where(is_late, late.starts, early.starts),
        tl.where(is_late, late.number, early.number),
        tl.where(is_late, late.T, early.T),
    )


@triton.jit
def _seen(place, document, CAUSAL: tl.constexpr):
    """How many keys of a document any row of a place sees."""
    end = place.first + place.real if CAUSAL else document.keys
    return tl.where(place.real > 0, end, 0)


@triton.jit
def _gather_chunk(
    state,
    kept,
    chunk,
    place,
    key,
    h,
    scale,
    variant,
    BLOCK_N: tl.constexpr,
    WIDE: tl.constexpr,
    JOINED: tl.constexpr,
    STAGES: tl.constexpr,
):
    """What the queries of a chunk, of one head, add to dk and dv of BLOCK_N keys from `key` on."""
    q, do, statistics = _of_head(chunk, place, h, variant.D, WIDE, JOINED)
    BLOCK_M: tl.constexpr = variant.BLOCK
    seen_by = (key - place.first + tl.arange(0, BLOCK_N), 0, None)
    whole = 0
    if variant.CAUSAL:
        begin = tl.maximum(key - place.first, 0) // BLOCK_M * BLOCK_M
        beyond = tl.maximum(key + BLOCK_N - place.first, 0)
        whole = tl.minimum(tl.cdiv(beyond, BLOCK_M) * BLOCK_M, place.real)
        state = gather_queries(
            state, kept, q, do, statistics, seen_by, begin, whole, scale, variant, True, STAGES
        )
    return gather_queries(
        state, kept, q, do, statistics, seen_by, whole, place.real, scale, variant, False, STAGES
    )


@triton.jit
def differentiate_keys(
    early,
    late,
    keys,
    scale,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CAUSAL: tl.constexpr,
    WIDE: tl.constexpr,
    STAGES: tl.constexpr,
    GROUP: tl.constexpr,
    ZIGZAG: tl.constexpr,
    JOINED: tl.constexpr,
    LOAD: tl.constexpr,
):
    """dk and dv of BLOCK_N keys of one of their heads a program, over the rows of both chunks of
    every head that shares it; zeros for what is padded. The last three: as in
    `forward.attend_chunks`."""
    s, tile, h = sequence_of(keys.starts, keys.S, keys.T, BLOCK_N, False)
    document = document_of(keys, s)
    padded = document.padded
    if not ZIGZAG:  # there nothing is behind the last
        padded = tl.where(s == keys.S, keys.T - document.start, padded)
    key = row_of(keys.starts, s, tile, BLOCK_N)
    k = keys_of_head(keys.k, keys.k_stride_T, keys.k_stride_H, keys, document, h, WIDE, ZIGZAG)
    v = keys_of_head(keys.v, keys.v_stride_T, keys.v_stride_H, keys, document, h, WIDE, ZIGZAG)
    early_place = rows_of(early, document, keys.S, 0, JOINED)
    late_place = rows_of(late, document, keys.S, 1, JOINED)
    seen = tl.maximum(_seen(early_place, document, CAUSAL), _seen(late_place, document, CAUSAL))
    state = (tl.zeros([BLOCK_N, BLOCK_D], tl.float32), tl.zeros([BLOCK_N, BLOCK_D], tl.float32))
    scale_2 = scale * LOG2E
    if key < seen:
        kept = (LOAD(k, key, D, BLOCK_N, BLOCK_D, True), LOAD(v, key, D, BLOCK_N, BLOCK_D, True))
        for visit in tl.range(0, 2 * GROUP):
            chunk = _chosen(early, late, visit >= GROUP)
            place = rows_of(chunk, document, keys.S, visit // GROUP, JOINED)
            state = _gather_chunk(
                state,
                kept,
                chunk,
                place,
                key,
                h * GROUP + visit % GROUP,
                scale_2,
                Variant(D, BLOCK_M, BLOCK_D, CAUSAL, True, True, None, LOAD),
                BLOCK_N,
                WIDE,
                JOINED,
                STAGES,
            )
    dk_ND, dv_ND = state
    real_N1 = (key + tl.arange(0, BLOCK_N) < document.keys)[:, None]
    dk_ND = tl.where(real_N1, dk_ND * scale, 0.0)
    dv_ND = tl.where(real_N1, dv_ND, 0.0)
    dk = keys_of_head(keys.dk, keys.d_stride_T, D, keys, document, h, WIDE, ZIGZAG)
    dv = keys_of_head(keys.dv, keys.d_stride_T, D, keys, document, h, WIDE, ZIGZAG)
    store_keys(dk, dk_ND, key, padded, D, BLOCK_N, BLOCK_D, ZIGZAG)
    store_keys(dv, dv_ND, key, padded, D, BLOCK_N, BLOCK_D, ZIGZAG)


@triton.jit
def _differentiate_tile(
    chunk,
    place,
    row,
    h,
    k,
    v,
    scale,
    variant,
    BLOCK_M: tl.constexpr,
    WIDE: tl.constexpr,
    JOINED: tl.constexpr,
    STAGES: tl.constexpr,
):
    """dq of BLOCK_M rows of a chunk, of one head; zeros for what is padded."""
    q, do, statistics = _of_head(chunk, place, h, variant.D, WIDE, JOINED)
    lse, delta = statistics
    D: tl.constexpr = variant.D
    BLOCK_D: tl.constexpr = variant.BLOCK_D
    q_MD = load_tile(q, row, D, BLOCK_M, BLOCK_D, True)
    do_MD = load_tile(do, row, D, BLOCK_M, BLOCK_D, True)
    lse_M = seeing(load_rows(lse, row, BLOCK_M, True))
    kept = (q_MD, do_MD, lse_M, load_rows(delta, row, BLOCK_M, True))
    whole, end, last_M = span_of(place, row, k.N, BLOCK_M, variant.BLOCK, variant.CAUSAL)
    dq_MD = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    at = (last_M, None)
    dq_MD = gather_keys(dq_MD, kept, k, v, at, 0, whole, scale * LOG2E, variant, False, STAGES)
    dq_MD = gather_keys(dq_MD, kept, k, v, at, whole, end, scale * LOG2E, variant, True, 1)
    out = chunk.out + place.start * chunk.out_stride_T + h * D
    dq = Rows(out, widened(chunk.out_stride_T, WIDE), place.rows)
    store_tile(dq, dq_MD * scale, row, D, BLOCK_M, BLOCK_D, True)


@triton.jit
def differentiate_chunks(
    early,
    late,
    keys,
    scale,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CAUSAL: tl.constexpr,
    WIDE: tl.constexpr,
    STAGES: tl.constexpr,
    GROUP: tl.constexpr,
    ZIGZAG: tl.constexpr,
    JOINED: tl.constexpr,
    LOAD: tl.constexpr,
):
    """dq of the same BLOCK_M rows of both chunks of a document, of one head, a program, one chunk
    after the other. The last three: as in `forward.attend_chunks`."""
    s, tile, h = sequence_of(early.starts, keys.S, early.T, BLOCK_M, CAUSAL)
    document = document_of(keys, s)
    kv_h = h // GROUP
    k = keys_of_head(keys.k, keys.k_stride_T, keys.k_stride_H, keys, document, kv_h, WIDE, ZIGZAG)
    v = keys_of_head(keys.v, keys.v_stride_T, keys.v_stride_H, keys, document, kv_h, WIDE, ZIGZAG)
    early_place = rows_of(early, document, keys.S, 0, JOINED)
    late_place = rows_of(late, document, keys.S, 1, JOINED)
    row = row_of(early.starts, s, tile, BLOCK_M)
    _differentiate_tile(
        early,
        early_place,
        row,
        h,
        k,
        v,
        scale,
        Variant(D, BLOCK_N, BLOCK_D, CAUSAL, True, True, None, LOAD),
        BLOCK_M,
        WIDE,
        JOINED,
        STAGES,
    )
    _differentiate_tile(
        late,
        late_place,
        row,
        h,
        k,
        v,
        scale,
        Variant(D, BLOCK_N, BLOCK_D, CAUSAL, True, True, None, LOAD),
        BLOCK_M,
        WIDE,
        JOINED,
        STAGES,
    )
