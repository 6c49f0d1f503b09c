"""The forward of zigzag attention: both chunks of a document meet each tile of keys together.

Shapes: as in `places`; M query rows of a tile, N keys of one.
"""

import triton
import triton.language as tl

from kernelbench.kernels.attention.forward import LOG2E, attend_keys, keys_of, weigh
from kernelbench.kernels.attention.places import sequence_of
from kernelbench.kernels.attention.tiles import (
    Rows,
    Variant,
    load_tile,
    store_tile,
    widened,
)
from kernelbench.kernels.zigzag_attention.places import (
    document_of,
    keys_of_head,
    row_of,
    rows_of,
    statistics_of,
)


@triton.jit
def _attend_both(
    states,
    qs_MD,
    k,
    v,
    lasts,
    first,
    end,
    scale,
    variant,
    MASKED: tl.constexpr,
    STAGES: tl.constexpr,
):
    """`attend_keys` of two tiles of queries, which see these keys one after the other; each comes
    once. lasts: the last key that each row sees, where causal."""
    early, late = states
    early_acc_MD, early_sum_M, early_max_M = early
    late_acc_MD, late_sum_M, late_max_M = late
    early_q_MD, late_q_MD = qs_MD
    early_last_M, late_last_M = lasts
    D: tl.constexpr = variant.D
    BLOCK_N: tl.constexpr = variant.BLOCK
    BLOCK_D: tl.constexpr = variant.BLOCK_D
    for start in tl.range(first, end, BLOCK_N, num_stages=STAGES):
        k_ND = variant.LOAD(k, start, D, BLOCK_N, BLOCK_D, MASKED)
        v_ND = variant.LOAD(v, start, D, BLOCK_N, BLOCK_D, MASKED)
        weight_MN, decay_M, early_max_M = weigh(
            early_q_MD, k_ND, early_max_M, (early_last_M, None), start, k.N, scale, variant, MASKED
        )
        early_sum_M = early_sum_M * decay_M + tl.sum(weight_MN, axis=1)
        early_acc_MD = early_acc_MD * decay_M[:, None]
        early_acc_MD = tl.dot(weight_MN.to(v_ND.dtype), v_ND, early_acc_MD, input_precision="ieee")
        weight_MN, decay_M, late_max_M = weigh(
            late_q_MD, k_ND, late_max_M, (late_last_M, None), start, k.N, scale, variant, MASKED
        )
        late_sum_M = late_sum_M * decay_M + tl.sum(weight_MN, axis=1)
        late_acc_MD = late_acc_MD * decay_M[:, None]
        late_acc_MD = tl.dot(weight_MN.to(v_ND.dtype), v_ND, late_acc_MD, input_precision="ieee")
    early = (early_acc_MD, early_sum_M, early_max_M)
    late = (late_acc_MD, late_sum_M, late_max_M)
    return early, late


@triton.jit
def span_of(place, row, keys, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr):
    """As `keys_of`; no keys for a tile of padded rows alone."""
    keys = tl.where(row < place.real, keys, 0)
    row_M = row + tl.arange(0, BLOCK_M)
    return keys_of(row, row_M, place.first, keys, BLOCK_M, BLOCK_N, CAUSAL, False)


@triton.jit
def _begin(chunk, place, row, h, keys, variant, BLOCK_M: tl.constexpr, WIDE: tl.constexpr):
    """A tile of query rows, zeros for what is padded; the keys that it sees, see `keys_of`; and the
    state before any of them."""
    q = chunk.q + place.start * chunk.q_stride_T + h * chunk.q_stride_H
    rows = Rows(q, widened(chunk.q_stride_T, WIDE), place.real)
    q_MD = load_tile(rows, row, variant.D, BLOCK_M, variant.BLOCK_D, True)
    span = span_of(place, row, keys, BLOCK_M, variant.BLOCK, variant.CAUSAL)
    acc_MD = tl.zeros([BLOCK_M, variant.BLOCK_D], tl.float32)
    sum_M = tl.zeros([BLOCK_M], tl.float32)
    max_M = tl.full([BLOCK_M], float("-inf"), tl.float32)
    return q_MD, span, (acc_MD, sum_M, max_M)


@triton.jit
def _end(
    chunk,
    place,
    begun,
    row,
    h,
    kv,
    done,
    scale,
    variant,
    WIDE: tl.constexpr,
    JOINED: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The keys from number `done` on alone; then store the tile's result, zeros for rows that are
    padded or see no key, and the natural logarithm of its sums."""
    k, v = kv
    q_MD, span, state = begun
    whole, end, last_M = span
    whole = tl.maximum(whole, done)
    seen_by = (last_M, None)
    state = attend_keys(state, q_MD, k, v, seen_by, done, whole, scale, variant, False, STAGES)
    acc_MD, sum_M, max_M = attend_keys(
        state, q_MD, k, v, seen_by, whole, end, scale, variant, True, 1
    )
    D: tl.constexpr = variant.D
    BLOCK_M: tl.constexpr = q_MD.shape[0]
    row_M = row + tl.arange(0, BLOCK_M)
    blind_M = (sum_M == 0.0) | (row_M >= place.real)
    sum_M = tl.where(blind_M, 1.0, sum_M)
    o_MD = tl.where(blind_M[:, None], 0.0, acc_MD * (1.0 / sum_M)[:, None])
    out = chunk.out + place.start * chunk.out_stride_T + h * D
    o = Rows(out, widened(chunk.out_stride_T, WIDE), place.rows)
    store_tile(o, o_MD, row, D, BLOCK_M, variant.BLOCK_D, True)
    lse_M = tl.where(blind_M, float("-inf"), (max_M + tl.log2(sum_M)) / LOG2E)
    lse = chunk.lse + statistics_of(chunk, place, h, JOINED)
    tl.store(lse + row_M, lse_M, mask=row_M < place.rows)


@triton.jit
def _share(early, late, kv, scale, variant, STAGES: tl.constexpr):
    """Both tiles, as `_begin` leaves them, after the keys that both see; how many these were."""
    k, v = kv
    early_q_MD, early_span, early_state = early
    late_q_MD, late_span, late_state = late
    whole = tl.minimum(early_span[0], late_span[0])
    end = tl.minimum(early_span[1], late_span[1])
    states = (early_state, late_state)
    qs_MD = (early_q_MD, late_q_MD)
    lasts = (early_span[2], late_span[2])
    states = _attend_both(states, qs_MD, k, v, lasts, 0, whole, scale, variant, False, STAGES)
    states = _attend_both(states, qs_MD, k, v, lasts, whole, end, scale, variant, True, 1)
    early_state, late_state = states
    BLOCK_N: tl.constexpr = variant.BLOCK
    done = whole + tl.cdiv(tl.maximum(end - whole, 0), BLOCK_N) * BLOCK_N
    return (early_q_MD, early_span, early_state), (late_q_MD, late_span, late_state), done


@triton.jit
def attend_chunks(
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
    SHARED: tl.constexpr,
    ZIGZAG: tl.constexpr,
    JOINED: tl.constexpr,
    LOAD: tl.constexpr,
):
    """The same BLOCK_M rows of both chunks of a document, of one head, a program.

    Where causal, chunk c of 2W has (c+½)·c_s keys a row on average, and a rank has chunks r and
    2W−1−r, so that the work of all programs of a document is about the same, on every rank.
    GROUP: heads of q that share one of k and v. SHARED: keys that both chunks see are read once for
    both; else the chunks come one after the other. JOINED: see `Chunk`. ZIGZAG, LOAD: how the keys
    lie.
    """
    s, tile, h = sequence_of(early.starts, keys.S, early.T, BLOCK_M, CAUSAL)
    document = document_of(keys, s)
    k = keys_of_head(
        keys.k, keys.k_stride_T, keys.k_stride_H, keys, document, h // GROUP, WIDE, ZIGZAG
    )
    v = keys_of_head(
        keys.v, keys.v_stride_T, keys.v_stride_H, keys, document, h // GROUP, WIDE, ZIGZAG
    )
    early_place = rows_of(early, document, keys.S, 0, JOINED)
    late_place = rows_of(late, document, keys.S, 1, JOINED)
    row = row_of(early.starts, s, tile, BLOCK_M)
    kv = (k, v)
    scale_2 = scale * LOG2E
    early_begun = _begin(
        early,
        early_place,
        row,
        h,
        document.keys,
        Variant(D, BLOCK_N, BLOCK_D, CAUSAL, True, True, None, LOAD),
        BLOCK_M,
        WIDE,
    )
    done = 0
    if SHARED:
        late_begun = _begin(
            late,
            late_place,
            row,
            h,
            document.keys,
            Variant(D, BLOCK_N, BLOCK_D, CAUSAL, True, True, None, LOAD),
            BLOCK_M,
            WIDE,
        )
        early_begun, late_begun, done = _share(
            early_begun,
            late_begun,
            kv,
            scale_2,
            Variant(D, BLOCK_N, BLOCK_D, CAUSAL, True, True, None, LOAD),
            STAGES,
        )
    _end(
        early,
        early_place,
        early_begun,
        row,
        h,
        kv,
        done,
        scale_2,
        Variant(D, BLOCK_N, BLOCK_D, CAUSAL, True, True, None, LOAD),
        WIDE,
        JOINED,
        STAGES,
    )
    if not SHARED:  # one tile's registers at a time
        late_begun = _begin(
            late,
            late_place,
            row,
            h,
            document.keys,
            Variant(D, BLOCK_N, BLOCK_D, CAUSAL, True, True, None, LOAD),
            BLOCK_M,
            WIDE,
        )
    _end(
        late,
        late_place,
        late_begun,
        row,
        h,
        kv,
        done,
        scale_2,
        Variant(D, BLOCK_N, BLOCK_D, CAUSAL, True, True, None, LOAD),
        WIDE,
        JOINED,
        STAGES,
    )
