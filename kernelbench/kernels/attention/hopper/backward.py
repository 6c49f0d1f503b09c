"""The backward of attention for Hopper that has the same bits on every call.

Two kernels, each of one producer warp and two consumer warpgroups a program. `differentiate_keys`
keeps 128 keys, 64 to a consumer, and takes tiles of query rows; `differentiate_queries` keeps 128
query rows and takes tiles of keys. Per sample and head, with P = 2^(S·scale·log2 e − lse) the
probabilities, S = q kᵀ, δ = rowsum(dO⊙O), and f the factor of a sample, if there is such a hook:

    dS = P⊙(dO vᵀ − δ),  dv = f·PᵀdO,  dk = f·scale·dSᵀ q,  dq = f·scale·dS k.

Every sum is taken in one order by one warpgroup, so the gradients have the same bits on every
call.

Shapes: as in `attention.backward`; K is 64 of the keys kept, L 64 of the query rows kept, M and N
are the rows and keys of a tile that is taken.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from kernelbench.kernels.attention.backward import Gradients
from kernelbench.kernels.attention.hopper.channel import (
    LOG2E,
    arm,
    descriptor,
    factor_of,
    load,
    load_statistic,
    new_barrier,
    new_barriers,
    of_statistic,
    store,
)
from kernelbench.kernels.attention.tiles import NO_HOOK, Hook, pitch
from kernelbench.kernels.launch import Launch, ceil_div

KEPT = 128  # keys or query rows of a program, 64 to each of its two consumers
_pitch = gluon.jit(pitch.fn)


class RowTiles(NamedTuple):
    """Shared memory of `differentiate_keys`: buffers of q, do and their statistics, and the keys
    kept."""

    q: Any
    do: Any
    k: Any
    v: Any
    lse: Any
    delta: Any


class RowBarriers(NamedTuple):
    """Of `RowTiles`: whether tiles are there (full), and whether they have been read (empty);
    whether dS is there, where it goes through shared memory."""

    kv_full: Any
    q_full: Any
    q_empty: Any
    do_full: Any
    do_empty: Any
    ds_full: Any


class RowDescriptors(NamedTuple):
    """What the copy engine reads and writes for `differentiate_keys`."""

    q: Any
    k: Any
    v: Any
    do: Any
    dk: Any
    dv: Any
    lse: Any
    delta: Any


class KeyTiles(NamedTuple):
    """Shared memory of `differentiate_queries`: the query rows kept, and buffers of k and v."""

    q: Any
    do: Any
    k: Any
    v: Any


class KeyBarriers(NamedTuple):
    """Of `KeyTiles`, as `RowBarriers`."""

    rows_full: Any
    k_full: Any
    k_empty: Any
    v_full: Any
    v_empty: Any


class KeyDescriptors(NamedTuple):
    """What the copy engine reads and writes for `differentiate_queries`."""

    q: Any
    k: Any
    v: Any
    do: Any
    dq: Any


class Variant(NamedTuple):
    """What a kernel is compiled for; FACTOR and KIND: see `attention.backward`."""

    CAUSAL: Any
    RAGGED: Any
    FACTOR: Any
    KIND: Any


@gluon.jit
def _produce_rows(smem, bars, descs, at):
    """k and v of the program, then q, lse, do and δ of tile after tile of query rows."""
    b, h, bh, key, first, N = at
    Q_BUFFERS: gl.constexpr = smem.q.shape[0]
    DO_BUFFERS: gl.constexpr = smem.do.shape[0]
    BLOCK_M: gl.constexpr = smem.q.shape[1]
    D: gl.constexpr = smem.q.shape[2]
    mbarrier.expect(bars.kv_full, 4 * 64 * D * 2)
    for g in gl.static_range(2):
        load(descs.k, bars.kv_full, smem.k.index(g), b, key + g * 64, h)
        load(descs.v, bars.kv_full, smem.v.index(g), b, key + g * 64, h)
    taken = 0
    for row in range(first, N, BLOCK_M):
        buffer = taken % Q_BUFFERS
        mbarrier.wait(bars.q_empty.index(buffer), ((taken // Q_BUFFERS) & 1) ^ 1)
        mbarrier.expect(bars.q_full.index(buffer), BLOCK_M * D * 2 + BLOCK_M * 4)
        load(descs.q, bars.q_full.index(buffer), smem.q.index(buffer), b, row, h)
        load_statistic(descs.lse, bars.q_full.index(buffer), smem.lse.index(buffer), bh, row)
        buffer = taken % DO_BUFFERS
        mbarrier.wait(bars.do_empty.index(buffer), ((taken // DO_BUFFERS) & 1) ^ 1)
        mbarrier.expect(bars.do_full.index(buffer), BLOCK_M * D * 2 + BLOCK_M * 4)
        load(descs.do, bars.do_full.index(buffer), smem.do.index(buffer), b, row, h)
        load_statistic(descs.delta, bars.do_full.index(buffer), smem.delta.index(buffer), bh, row)
        taken += 1


@gluon.jit
def _gather_rows(
    state,
    smem,
    bars,
    i,
    row,
    first_key,
    scale,
    G: gl.constexpr,
    MASKED: gl.constexpr,
):
    """What tile i of query rows, from `row` on, adds to dk and dv, both still to be scaled.

    Rows beyond N are all zeros, which add nothing.
    """
    dk_KD, dv_KD = state
    Q_BUFFERS: gl.constexpr = smem.q.shape[0]
    DO_BUFFERS: gl.constexpr = smem.do.shape[0]
    BLOCK_M: gl.constexpr = smem.q.shape[1]
    dtype: gl.constexpr = smem.q.dtype
    score_layout: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BLOCK_M, 16]
    )
    p_layout: gl.constexpr = gl.DotOperandLayout(
        operand_index=0, parent=dk_KD.type.layout, k_width=2
    )
    row_layout: gl.constexpr = gl.SliceLayout(0, score_layout)
    q_buffer = i % Q_BUFFERS
    do_buffer = i % DO_BUFFERS
    mbarrier.wait(bars.q_full.index(q_buffer), (i // Q_BUFFERS) & 1)
    score = warpgroup_mma(
        smem.k.index(G),
        smem.q.index(q_buffer).permute((1, 0)),
        gl.zeros([64, BLOCK_M], gl.float32, score_layout),
        use_acc=False,
        is_async=True,
    )
    lse_M = smem.lse.index(q_buffer).load(row_layout)
    mbarrier.wait(bars.do_full.index(do_buffer), (i // DO_BUFFERS) & 1)
    dp = warpgroup_mma(
        smem.v.index(G),
        smem.do.index(do_buffer).permute((1, 0)),
        gl.zeros([64, BLOCK_M], gl.float32, score_layout),
        use_acc=False,
        is_async=True,
    )
    score_KM = warpgroup_mma_wait(1, deps=(score,))
    p_KM = gl.exp2(score_KM * scale - gl.expand_dims(lse_M, 0))
    if MASKED:
        row_M = row + gl.arange(0, BLOCK_M, row_layout)
        key_K = first_key + gl.arange(0, 64, gl.SliceLayout(1, score_layout))
        p_KM = gl.where(gl.expand_dims(key_K, 1) <= gl.expand_dims(row_M, 0), p_KM, 0.0)
    delta_M = smem.delta.index(do_buffer).load(row_layout)
    weight_KM = gl.convert_layout(p_KM.to(dtype), p_layout)
    dp_KM = warpgroup_mma_wait(0, deps=(dp,))
    ds_KM = gl.convert_layout((p_KM * (dp_KM - gl.expand_dims(delta_M, 0))).to(dtype), p_layout)
    dv = warpgroup_mma(weight_KM, smem.do.index(do_buffer), dv_KD, is_async=True)
    dk = warpgroup_mma(ds_KM, smem.q.index(q_buffer), dk_KD, is_async=True)
    dv_KD = warpgroup_mma_wait(1, deps=(dv,))
    mbarrier.arrive(bars.do_empty.index(do_buffer), count=1)
    dk_KD = warpgroup_mma_wait(0, deps=(dk,))
    mbarrier.arrive(bars.q_empty.index(q_buffer), count=1)
    return dk_KD, dv_KD


@gluon.jit
def _consume_rows(
    smem,
    bars,
    descs,
    at,
    extra,
    scale,
    G: gl.constexpr,
    variant,
):
    """dk and dv of 64 keys."""
    b, h, bh, key, first, N = at
    CAUSAL: gl.constexpr = variant.CAUSAL
    BLOCK_M: gl.constexpr = smem.q.shape[1]
    D: gl.constexpr = smem.q.shape[2]
    acc_layout: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, D, 16]
    )
    dk_KD = gl.zeros([64, D], gl.float32, acc_layout)
    dv_KD = gl.zeros([64, D], gl.float32, acc_layout)
    state = (dk_KD, dv_KD)
    scale_2 = scale * LOG2E
    first_key = key + G * 64
    first_whole = first
    mbarrier.wait(bars.kv_full, 0)
    if CAUSAL:
        first_whole = gl.minimum(first + 128, N)
        for row in range(first, first_whole, BLOCK_M):
            i = (row - first) // BLOCK_M
            state = _gather_rows(state, smem, bars, i, row, first_key, scale_2, G, True)
    for row in range(first_whole, N, BLOCK_M):
        i = (row - first) // BLOCK_M
        state = _gather_rows(state, smem, bars, i, row, first_key, scale_2, G, False)
    dk_KD, dv_KD = state
    if variant.FACTOR is not None:
        factor = variant.FACTOR(extra, b.to(gl.int64), variant.KIND)
        dv_KD = dv_KD * factor
        scale = factor * scale
    store(descs.dv, smem.v.index(G), dv_KD, b, first_key, h)
    store(descs.dk, smem.v.index(G), dk_KD * scale, b, first_key, h)


@gluon.jit
def differentiate_keys(
    q_desc,
    k_desc,
    v_desc,
    do_desc,
    dk_desc,
    dv_desc,
    lse_desc,
    delta_desc,
    extra,
    scale,
    N,
    H,
    Q_BUFFERS: gl.constexpr,
    DO_BUFFERS: gl.constexpr,
    REGISTERS: gl.constexpr,
    CAUSAL: gl.constexpr,
    FACTOR: gl.constexpr,
    KIND: gl.constexpr,
):
    """dk and dv of 128 keys of one head a program, over tiles of query rows, q's first.

    The longest programs come first where causal.
    """
    BLOCK_M: gl.constexpr = q_desc.block_type.shape[1]
    D: gl.constexpr = q_desc.block_type.shape[3]
    dtype: gl.constexpr = q_desc.dtype
    tiles = (N + 127) // 128
    bh = gl.program_id(0) // tiles
    key = gl.program_id(0) % tiles * 128
    first = 0
    if CAUSAL:
        first = key
    row_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_M, D], dtype)
    key_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([64, D], dtype)
    statistic_layout: gl.constexpr = gl.NVMMASharedLayout(
        swizzle_byte_width=0, element_bitwidth=32, rank=1
    )
    q_smem = gl.allocate_shared_memory(dtype, [Q_BUFFERS, BLOCK_M, D], row_layout)
    do_smem = gl.allocate_shared_memory(dtype, [DO_BUFFERS, BLOCK_M, D], row_layout)
    k_smem = gl.allocate_shared_memory(dtype, [2, 64, D], key_layout)
    v_smem = gl.allocate_shared_memory(dtype, [2, 64, D], key_layout)
    lse_smem = gl.allocate_shared_memory(gl.float32, [Q_BUFFERS, BLOCK_M], statistic_layout)
    delta_smem = gl.allocate_shared_memory(gl.float32, [DO_BUFFERS, BLOCK_M], statistic_layout)
    kv_full = new_barrier()
    q_full = new_barriers(Q_BUFFERS)
    q_empty = new_barriers(Q_BUFFERS)
    do_full = new_barriers(DO_BUFFERS)
    do_empty = new_barriers(DO_BUFFERS)
    arm(kv_full, 1)
    arm(q_full, 1)
    arm(q_empty, 2)
    arm(do_full, 1)
    arm(do_empty, 2)
    fence_async_shared()
    smem = RowTiles(q_smem, do_smem, k_smem, v_smem, lse_smem, delta_smem)
    bars = RowBarriers(kv_full, q_full, q_empty, do_full, do_empty, None)
    descs = RowDescriptors(q_desc, k_desc, v_desc, do_desc, dk_desc, dv_desc, lse_desc, delta_desc)
    at = (bh // H, bh % H, bh, key, first, N)
    gl.warp_specialize(
        [
            (
                _consume_rows,
                (smem, bars, descs, at, extra, scale, 0, Variant(CAUSAL, False, FACTOR, KIND)),
            ),
            (
                _consume_rows,
                (smem, bars, descs, at, extra, scale, 1, Variant(CAUSAL, False, FACTOR, KIND)),
            ),
            (_produce_rows, (smem, bars, descs, at)),
        ],
        [4, 1],
        [REGISTERS, 24],
    )


@gluon.jit
def _produce_keys(smem, bars, descs, at):
    """q and do of the program, then k and v of tile after tile of keys."""
    b, h, bh, row, blocks, N = at
    BUFFERS: gl.constexpr = smem.k.shape[0]
    BLOCK_N: gl.constexpr = smem.k.shape[1]
    D: gl.constexpr = smem.k.shape[2]
    mbarrier.expect(bars.rows_full, 4 * 64 * D * 2)
    for g in gl.static_range(2):
        load(descs.q, bars.rows_full, smem.q.index(g), b, row + g * 64, h)
        load(descs.do, bars.rows_full, smem.do.index(g), b, row + g * 64, h)
    for i in range(blocks):
        buffer = i % BUFFERS
        turn = (i // BUFFERS) & 1
        mbarrier.wait(bars.k_empty.index(buffer), turn ^ 1)
        mbarrier.expect(bars.k_full.index(buffer), BLOCK_N * D * 2)
        load(descs.k, bars.k_full.index(buffer), smem.k.index(buffer), b, i * BLOCK_N, h)
        mbarrier.wait(bars.v_empty.index(buffer), turn ^ 1)
        mbarrier.expect(bars.v_full.index(buffer), BLOCK_N * D * 2)
        load(descs.v, bars.v_full.index(buffer), smem.v.index(buffer), b, i * BLOCK_N, h)


@gluon.jit
def _start_scores(smem, bars, i, G: gl.constexpr, score_layout: gl.constexpr):
    """Queues q kᵀ and do vᵀ of tile i of keys, not to be waited for here."""
    BUFFERS: gl.constexpr = smem.k.shape[0]
    BLOCK_N: gl.constexpr = smem.k.shape[1]
    buffer = i % BUFFERS
    turn = (i // BUFFERS) & 1
    mbarrier.wait(bars.k_full.index(buffer), turn)
    score = warpgroup_mma(
        smem.q.index(G),
        smem.k.index(buffer).permute((1, 0)),
        gl.zeros([64, BLOCK_N], gl.float32, score_layout),
        use_acc=False,
        is_async=True,
    )
    mbarrier.wait(bars.v_full.index(buffer), turn)
    dp = warpgroup_mma(
        smem.do.index(G),
        smem.v.index(buffer).permute((1, 0)),
        gl.zeros([64, BLOCK_N], gl.float32, score_layout),
        use_acc=False,
        is_async=True,
    )
    return score, dp


@gluon.jit
def _differentiate_scores(
    score,
    dp,
    statistics,
    first_row,
    start,
    scale,
    N,
    PENDING: gl.constexpr,
    MASKED: gl.constexpr,
    CAUSAL: gl.constexpr,
):
    """dS, from products behind which PENDING others are under way.

    Where causal, rows beyond N see keys beyond N: their scores, lse and δ are zeros, and so is dS.
    """
    lse_L, delta_L = statistics
    score_LN = warpgroup_mma_wait(1 + PENDING, deps=(score,))
    p_LN = gl.exp2(score_LN * scale - gl.expand_dims(lse_L, 1))
    if MASKED:
        BLOCK_N: gl.constexpr = score_LN.shape[1]
        layout: gl.constexpr = score_LN.type.layout
        key_N = start + gl.arange(0, BLOCK_N, gl.SliceLayout(0, layout))
        if CAUSAL:
            last_L = first_row + gl.arange(0, 64, gl.SliceLayout(1, layout))
        else:
            last_L = gl.full([64], 0, gl.int32, gl.SliceLayout(1, layout)) + N - 1
        p_LN = gl.where(gl.expand_dims(key_N, 0) <= gl.expand_dims(last_L, 1), p_LN, 0.0)
    dp_LN = warpgroup_mma_wait(PENDING, deps=(dp,))
    return p_LN * (dp_LN - gl.expand_dims(delta_L, 1))


@gluon.jit
def _gather_keys(
    state,
    smem,
    bars,
    i,
    statistics,
    first_row,
    scale,
    N,
    G: gl.constexpr,
    score_layout: gl.constexpr,
    MASKED: gl.constexpr,
    CAUSAL: gl.constexpr,
):
    """dS of tile i of keys while the tile before adds its part to dq.

    state: dq so far, and dS of the tile before. statistics: lse and δ of the rows.
    """
    dq_LD, ds_LN = state
    BUFFERS: gl.constexpr = smem.k.shape[0]
    BLOCK_N: gl.constexpr = smem.k.shape[1]
    last = (i - 1) % BUFFERS
    score, dp = _start_scores(smem, bars, i, G, score_layout)
    dq = warpgroup_mma(ds_LN, smem.k.index(last), dq_LD, is_async=True)
    next_LN = _differentiate_scores(
        score, dp, statistics, first_row, i * BLOCK_N, scale, N, 1, MASKED, CAUSAL
    )
    mbarrier.arrive(bars.v_empty.index(i % BUFFERS), count=1)
    dq_LD = warpgroup_mma_wait(0, deps=(dq,))
    mbarrier.arrive(bars.k_empty.index(last), count=1)
    return dq_LD, gl.convert_layout(next_LN.to(smem.k.dtype), ds_LN.type.layout)


@gluon.jit
def _consume_keys(
    smem,
    bars,
    descs,
    at,
    extra,
    scale,
    lse_ptr,
    delta_ptr,
    G: gl.constexpr,
    variant,
):
    """dq of 64 query rows."""
    b, h, bh, row, blocks, N = at
    CAUSAL: gl.constexpr = variant.CAUSAL
    RAGGED: gl.constexpr = variant.RAGGED
    BUFFERS: gl.constexpr = smem.k.shape[0]
    BLOCK_N: gl.constexpr = smem.k.shape[1]
    D: gl.constexpr = smem.k.shape[2]
    score_layout: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BLOCK_N, 16]
    )
    acc_layout: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, D, 16]
    )
    ds_layout: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=acc_layout, k_width=2)
    first_row = row + G * 64
    row_L = first_row + gl.arange(0, 64, gl.SliceLayout(1, score_layout))
    first_of_head = bh.to(gl.int64) * _pitch(N)
    lse_L = gl.load(lse_ptr + first_of_head + row_L, mask=row_L < N, other=0.0)
    delta_L = gl.load(delta_ptr + first_of_head + row_L, mask=row_L < N, other=0.0)
    statistics = (lse_L, delta_L)
    scale_2 = scale * LOG2E
    dq_LD = gl.zeros([64, D], gl.float32, acc_layout)
    mbarrier.wait(bars.rows_full, 0)
    score, dp = _start_scores(smem, bars, 0, G, score_layout)
    next_LN = _differentiate_scores(
        score, dp, statistics, first_row, 0, scale_2, N, 0, CAUSAL or RAGGED, CAUSAL
    )
    mbarrier.arrive(bars.v_empty.index(0), count=1)
    state = (dq_LD, gl.convert_layout(next_LN.to(smem.k.dtype), ds_layout))
    whole = N // BLOCK_N
    if CAUSAL:
        whole = row // BLOCK_N
    whole = gl.maximum(whole, 1)
    for i in range(1, whole):
        state = _gather_keys(
            state, smem, bars, i, statistics, first_row, scale_2, N, G, score_layout, False, CAUSAL
        )
    if CAUSAL or RAGGED:
        for i in range(whole, blocks):
            state = _gather_keys(
                state,
                smem,
                bars,
                i,
                statistics,
                first_row,
                scale_2,
                N,
                G,
                score_layout,
                True,
                CAUSAL,
            )
    dq_LD, ds_LN = state
    dq_LD = warpgroup_mma(ds_LN, smem.k.index((blocks - 1) % BUFFERS), dq_LD)
    if variant.FACTOR is not None:
        scale = variant.FACTOR(extra, b.to(gl.int64), variant.KIND) * scale
    store(descs.dq, smem.q.index(G), dq_LD * scale, b, first_row, h)


@gluon.jit
def differentiate_queries(
    q_desc,
    k_desc,
    v_desc,
    do_desc,
    dq_desc,
    extra,
    lse_ptr,
    delta_ptr,
    scale,
    N,
    H,
    BUFFERS: gl.constexpr,
    REGISTERS: gl.constexpr,
    CAUSAL: gl.constexpr,
    RAGGED: gl.constexpr,
    FACTOR: gl.constexpr,
    KIND: gl.constexpr,
):
    """dq of 128 query rows of one head a program, over tiles of keys; longest first if causal."""
    BLOCK_N: gl.constexpr = k_desc.block_type.shape[1]
    D: gl.constexpr = q_desc.block_type.shape[3]
    dtype: gl.constexpr = q_desc.dtype
    tiles = (N + 127) // 128
    bh = gl.program_id(0) // tiles
    row = gl.program_id(0) % tiles * 128
    end = N
    if CAUSAL:
        row = (tiles - 1) * 128 - row
        end = gl.minimum(row + 128, N)
    row_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([64, D], dtype)
    key_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_N, D], dtype)
    q_smem = gl.allocate_shared_memory(dtype, [2, 64, D], row_layout)
    do_smem = gl.allocate_shared_memory(dtype, [2, 64, D], row_layout)
    k_smem = gl.allocate_shared_memory(dtype, [BUFFERS, BLOCK_N, D], key_layout)
    v_smem = gl.allocate_shared_memory(dtype, [BUFFERS, BLOCK_N, D], key_layout)
    rows_full = new_barrier()
    k_full = new_barriers(BUFFERS)
    k_empty = new_barriers(BUFFERS)
    v_full = new_barriers(BUFFERS)
    v_empty = new_barriers(BUFFERS)
    arm(rows_full, 1)
    arm(k_full, 1)
    arm(k_empty, 2)
    arm(v_full, 1)
    arm(v_empty, 2)
    fence_async_shared()
    smem = KeyTiles(q_smem, do_smem, k_smem, v_smem)
    bars = KeyBarriers(rows_full, k_full, k_empty, v_full, v_empty)
    descs = KeyDescriptors(q_desc, k_desc, v_desc, do_desc, dq_desc)
    at = (bh // H, bh % H, bh, row, (end + BLOCK_N - 1) // BLOCK_N, N)
    gl.warp_specialize(
        [
            (
                _consume_keys,
                (
                    smem,
                    bars,
                    descs,
                    at,
                    extra,
                    scale,
                    lse_ptr,
                    delta_ptr,
                    0,
                    Variant(CAUSAL, RAGGED, FACTOR, KIND),
                ),
            ),
            (
                _consume_keys,
                (
                    smem,
                    bars,
                    descs,
                    at,
                    extra,
                    scale,
                    lse_ptr,
                    delta_ptr,
                    1,
                    Variant(CAUSAL, RAGGED, FACTOR, KIND),
                ),
            ),
            (_produce_keys, (smem, bars, descs, at)),
        ],
        [4, 1],
        [REGISTERS, 24],
    )


@dataclass(frozen=True)
class HopperQueriesTile:
    """How `differentiate_queries` cuts up its work.

    block_n: keys at a time, 64 or 128, in `buffers` buffers of k and of v.
    registers: of a consumer's thread.
    """

    block_n: int
    buffers: int
    registers: int = 240


@dataclass(frozen=True)
class HopperFusedTile:
    """How `hopper.fused` cuts up its work.

    q_buffers, do_buffers: buffers of q and of do, each of 8192/D query rows.
    registers: of a consumer's thread.
    late: a tile's part of dq is multiplied during the exponentials of the next tile.
    rotated: programs of a head, unless causal, begin at query rows of their own, so that they do
        not add to the same rows of dq all at once.
    split to flat: the table takes none of these; studies/attention/backward.py checks and times
        them.
    split: a tile's exponentials come before the wait for dP; the compiler has them behind it.
    front: dv is queued before the other consumer's dS is waited for.
    halves: tiles are taken by halves, so that there are registers for products that run during all
        exponentials, the next tile's scores among them. For D = 64, and heads that share no keys.
    held: where `halves`, a consumer has k in registers (1), or k and v (2).
    flat: parts of dq are added in the order in which threads have them, for `unfold_launch`. For
        D = 64.
    """

    q_buffers: int
    do_buffers: int
    registers: int = 240
    late: bool = False
    rotated: bool = False
    split: bool = False
    front: bool = False
    halves: bool = False
    held: int = 0
    flat: bool = False


@dataclass(frozen=True)
class HopperBackwardTile:
    """How the Hopper backward cuts up its work.

    block_m: query rows at a time that dk and dv take, 64 or 128, in `q_buffers` buffers of q and
        `do_buffers` of do.
    registers: of a thread of their consumers.
    queries: of dq; None for the `tl` kernel, of `rows` query rows a program,
        `keys` keys at a time, `warps` warps and `stages` stages, which say nothing otherwise.
    fused: of dq, dk and dv where all are wanted, in one kernel whose bits differ from call to
        call; None for two kernels, whose bits do not. Those are the `tl` kernels of the config
        where heads share keys, and of packed sequences.
    """

    block_m: int
    q_buffers: int
    do_buffers: int
    registers: int = 240
    queries: HopperQueriesTile | None = None
    rows: int = 128
    keys: int = 64
    warps: int = 8
    stages: int = 3
    fused: HopperFusedTile | None = None


def keys_launch(
    tensors: Gradients,
    dk: Tensor,
    dv: Tensor,
    *,
    scale: float,
    causal: bool,
    tile: HopperBackwardTile,
    factor: Hook = NO_HOOK,
) -> Launch:
    """The launch that writes dk and dv, (B,N,H,D) and contiguous, of tensors that `suits` all."""
    do, q, k, v, lse, delta, _ = tensors
    B, N, H, _ = q.shape
    args: dict[str, Any] = {
        "q_desc": descriptor(q, tile.block_m),
        "k_desc": descriptor(k, 64),
        "v_desc": descriptor(v, 64),
        "do_desc": descriptor(do, tile.block_m, H),
        "dk_desc": descriptor(dk, 64),
        "dv_desc": descriptor(dv, 64),
        "lse_desc": of_statistic(lse, tile.block_m),
        "delta_desc": of_statistic(delta, tile.block_m),
        "extra": factor.extra,
        "scale": scale,
        "N": N,
        "H": H,
    }
    constexprs = {
        "Q_BUFFERS": tile.q_buffers,
        "DO_BUFFERS": tile.do_buffers,
        "REGISTERS": tile.registers,
        "CAUSAL": causal,
        **factor_of(factor),
    }
    grid = (ceil_div(N, KEPT) * H * B,)
    return Launch(differentiate_keys, grid, args, constexprs, {"num_warps": 4})


def queries_launch(
    tensors: Gradients,
    dq: Tensor,
    *,
    scale: float,
    causal: bool,
    tile: HopperQueriesTile,
    factor: Hook = NO_HOOK,
) -> Launch:
    """The launch that writes dq, (B,N,H,D) and contiguous, of tensors that `suits` all."""
    do, q, k, v, lse, delta, _ = tensors
    B, N, H, _ = q.shape
    args: dict[str, Any] = {
        "q_desc": descriptor(q, 64),
        "k_desc": descriptor(k, tile.block_n),
        "v_desc": descriptor(v, tile.block_n),
        "do_desc": descriptor(do, 64, H),
        "dq_desc": descriptor(dq, 64),
        "extra": factor.extra,
        "lse_ptr": lse,
        "delta_ptr": delta,
        "scale": scale,
        "N": N,
        "H": H,
    }
    constexprs = {
        "BUFFERS": tile.buffers,
        "REGISTERS": tile.registers,
        "CAUSAL": causal,
        "RAGGED": N % tile.block_n != 0,
        **factor_of(factor),
    }
    grid = (ceil_div(N, KEPT) * H * B,)
    return Launch(differentiate_queries, grid, args, constexprs, {"num_warps": 4})
