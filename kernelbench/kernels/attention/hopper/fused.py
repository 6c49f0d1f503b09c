"""The backward of attention for Hopper in one kernel: dq, dk and dv at once.

A program keeps 128 keys, 64 to each of two consumer warpgroups, and takes tiles of query rows, as
`hopper.backward.differentiate_keys` does. There dq has a kernel of its own, which
computes the scores again; here dS goes through shared memory, so that a program has its part of dq
with one product more. The copy engine adds these parts in global memory, in fp32:

    dQ_n = Σ over programs of dS k,  dq = f·scale·dQ,

five products instead of seven. Programs add in the order in which they get there, so the bits of
dq differ from call to call; those of dk and dv do not.

Where heads of q share keys, the program takes the tiles of all of them: dk and dv are summed in
registers. Of packed sequences (see `hopper.walk`) what lies beyond a sequence's end in a tile, and
may be no number, is replaced in shared memory: q, do, k, v and δ by zeros, lse by ∞, which leaves
no weight. Such rows of dq are zeros when they are added to other sequences'.

Shapes: as in `hopper.backward`.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor
from triton._C.libtriton import ir
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language._core import builtin
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from kernelbench.kernels.attention.backward import LIGHT, Gradients
from kernelbench.kernels.attention.hopper.backward import (
    KEPT,
    HopperFusedTile,
    RowBarriers,
)
from kernelbench.kernels.attention.hopper.channel import (
    LOG2E,
    arm,
    descriptor,
    factor_of,
    forget_rows,
    in_gluon,
    load,
    load_statistic,
    new_barrier,
    new_barriers,
    of_statistic,
    publish,
    store,
    store_rows,
)
from kernelbench.kernels.attention.hopper.order import heads_of_section, lies_turned, list_launch
from kernelbench.kernels.attention.hopper.walk import (
    Place,
    Pointers,
    Sequences,
    Span,
    Twice,
    before,
    find_keys,
    find_tile,
    head_of,
    place_of_part,
    row_of,
    span_of,
    step_of,
)
from kernelbench.kernels.attention.places import Packed, most_tiles
from kernelbench.kernels.attention.tiles import NO_HOOK, Hook, pitch
from kernelbench.kernels.launch import Launch, ceil_div

_pitch = in_gluon(pitch)
# 64×64 in shared memory by four elements of a thread, threads, warps, the thread's others
_AS_HELD = gl.constexpr(
    gl.SharedLinearLayout(
        [
            *([0, 1], [8, 0]),
            *([0, 2], [0, 4], [1, 0], [2, 0], [4, 0]),
            *([16, 0], [32, 0]),
            *([0, 8], [0, 16], [0, 32]),
        ]
    )
)
_TILE = 8192  # elements of a tile of query rows: dq of one is 64×64 to each consumer


class Tiles(NamedTuple):
    """Shared memory: buffers of q, do and their statistics, the keys kept, two turns of dS, and dq
    on its way out."""

    q: Any
    do: Any
    k: Any
    v: Any
    lse: Any
    delta: Any
    ds: Any
    dq: Any


class Variant(NamedTuple):
    """What the kernel is compiled for. LATE to FLAT: see `HopperFusedTile`. GROUP: heads of q that
    share one of k and v. FACTOR and KIND: see `attention.backward`."""

    CAUSAL: Any
    RAGGED: Any
    ROTATED: Any
    LATE: Any
    SPLIT: Any
    FRONT: Any
    HALVES: Any
    HOLDS_K: Any
    HOLDS_V: Any
    FLAT: Any
    GROUP: Any
    FACTOR: Any
    KIND: Any


class Descriptors(NamedTuple):
    """What the copy engine reads, writes, and adds to (total)."""

    q: Any
    k: Any
    v: Any
    do: Any
    dk: Any
    dv: Any
    total: Any
    lse: Any
    delta: Any


@builtin
def _add(desc, coord, src, _semantic=None):
    """Queue an addition of `src` to global memory; Gluon has no name for this operation yet."""
    coord = _semantic._convert_to_ir_values(coord, require_i64=False)
    _semantic.builder.create_async_tma_reduce(
        ir.DESCRIPTOR_REDUCE_KIND.ADD, desc.handle, coord, src.handle
    )


@gluon.jit
def _queue_statistic(desc, ptr, bar, smem, bh, row, N):
    """Queue a statistic of the rows of a tile; rows beyond N arrive as zeros. The copy engine takes
    rows that begin at multiples of 16 bytes alone: of packed sequences, which begin anywhere, each
    thread of the warp queues some numbers, and arrives with them."""
    if ptr is not None:
        layout: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
        row_M = row + gl.arange(0, smem.shape[0], layout)
        ptr += bh.to(gl.int64) * _pitch(N)
        async_copy.async_copy_global_to_shared(smem, ptr + row_M, mask=row_M < N)
        async_copy.mbarrier_arrive(bar, increment_count=False)
    else:
        load_statistic(desc, bar, smem, bh, row)


@gluon.jit
def _produce(
    smem,
    bars,
    descs,
    places,
    packed,
    CAUSAL: gl.constexpr,
    ROTATED: gl.constexpr,
    GROUP: gl.constexpr,
):
    """k and v of the program, then q, lse, do and δ of tile after tile of query rows."""
    at, late = places
    b, h, bh, key, _, _, _ = at
    Q_BUFFERS: gl.constexpr = smem.q.shape[0]
    DO_BUFFERS: gl.constexpr = smem.do.shape[0]
    BLOCK_M: gl.constexpr = smem.q.shape[1]
    D: gl.constexpr = smem.q.shape[2]
    lse_ptr = None
    delta_ptr = None
    BYTES: gl.constexpr = BLOCK_M * D * 2 + (BLOCK_M * 4 if packed is None else 0)
    if packed is not None:
        lse_ptr = packed.lse_ptr
        delta_ptr = packed.delta_ptr
    mbarrier.expect(bars.kv_full, 4 * 64 * D * 2)
    for g in gl.static_range(2):
        load(descs.k, bars.kv_full, smem.k.index(g), b, key + g * 64, h)
        load(descs.v, bars.kv_full, smem.v.index(g), b, key + g * 64, h)
    for part in gl.static_range(1 if late is None else 2):
        if part > 0:
            at = late
        for member in range(GROUP):
            q_h = head_of(h, member, GROUP)
            q_bh = head_of(bh, member, GROUP)
            for i in range(at.tiles):
                row = row_of(i, at, BLOCK_M, CAUSAL, ROTATED)
                step = step_of(i, member, at, GROUP)
                buffer = step % Q_BUFFERS
                full = bars.q_full.index(buffer)
                mbarrier.wait(bars.q_empty.index(buffer), ((step // Q_BUFFERS) & 1) ^ 1)
                mbarrier.expect(full, BYTES)
                load(descs.q, full, smem.q.index(buffer), b, row, q_h)
                lse = smem.lse.index(buffer)
                _queue_statistic(descs.lse, lse_ptr, full, lse, q_bh, row, at.N)
                buffer = step % DO_BUFFERS
                full = bars.do_full.index(buffer)
                mbarrier.wait(bars.do_empty.index(buffer), ((step // DO_BUFFERS) & 1) ^ 1)
                mbarrier.expect(full, BYTES)
                load(descs.do, full, smem.do.index(buffer), b, row, q_h)
                delta = smem.delta.index(buffer)
                _queue_statistic(descs.delta, delta_ptr, full, delta, q_bh, row, at.N)


@gluon.jit
def _start_queries(smem, bars, i, G: gl.constexpr):
    """Queues a consumer's 64×64 of tile i's part of dq, once dS of both consumers is there.

    D = 64: half of the 128 query rows. D = 128: half of the columns.
    """
    BLOCK_M: gl.constexpr = smem.q.shape[1]
    D: gl.constexpr = smem.q.shape[2]
    dtype: gl.constexpr = smem.q.dtype
    square_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([64, 64], dtype)
    dq_layout: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 64, 16]
    )
    k = smem.k._reinterpret(dtype, [2 * D // 64, 64, 64], square_layout)
    ds = smem.ds._reinterpret(dtype, [4 * BLOCK_M // 64, 64, 64], square_layout)
    turn = i % 2
    if D == 64:
        ds_0 = turn * 4 + G
        ds_1 = turn * 4 + 2 + G
        k_0 = 0
        k_1 = 1
    else:
        ds_0 = turn * 2
        ds_1 = turn * 2 + 1
        k_0 = G
        k_1 = 2 + G
    mbarrier.wait(bars.ds_full.index(turn), (i // 2) & 1)
    dq = warpgroup_mma(
        ds.index(ds_0).permute((1, 0)),
        k.index(k_0),
        gl.zeros([64, 64], gl.float32, dq_layout),
        use_acc=False,
        is_async=True,
    )
    return warpgroup_mma(ds.index(ds_1).permute((1, 0)), k.index(k_1), dq, is_async=True)


@gluon.jit
def _add_queries(dq, smem, descs, at, i, member, G: gl.constexpr, MASKED: gl.constexpr, variant):
    """Queues the addition of what `_start_queries` computed; that of the tile before has ended.
    MASKED: the tile may have rows of another packed sequence, to which zeros are added."""
    BLOCK_M: gl.constexpr = smem.q.shape[1]
    row = row_of(i, at, BLOCK_M, variant.CAUSAL, variant.ROTATED)
    column = G * 64
    if BLOCK_M == 128:
        row += G * 64
        column = 0
    if MASKED and at.span is not None:
        row_M = row + gl.arange(0, 64, gl.SliceLayout(1, dq.type.layout))
        dq = gl.where(gl.expand_dims(row_M < at.span.end, 1), dq, 0.0)
    head = head_of(at.bh, member, variant.GROUP)
    tma.store_wait(0)
    if variant.FLAT:
        smem.dq.index(G)._reinterpret(gl.float32, [64, 64], _AS_HELD).store(dq)
        fence_async_shared()
        tile = smem.dq.index(G)._reinterpret(gl.float32, [1, 16, 256], descs.total.layout)
        _add(descs.total, [head * ((at.N + 127) // 128 * 2) + row // 64, 0, 0], tile)
    else:
        smem.dq.index(G).store(dq)
        fence_async_shared()
        tile = smem.dq.index(G)._reinterpret(gl.float32, [1, 64, 64], descs.total.layout)
        _add(descs.total, [head, row, column], tile)


@gluon.jit
def _forget_others(smem, bars, step, rows):
    """Rows of a tile from `rows` on, if it has as many, are another packed sequence's: q, do and δ
    become zeros, lse ∞. Both consumers write the same."""
    Q_BUFFERS: gl.constexpr = smem.q.shape[0]
    DO_BUFFERS: gl.constexpr = smem.do.shape[0]
    BLOCK_M: gl.constexpr = smem.q.shape[1]
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    if rows < BLOCK_M:
        mbarrier.wait(bars.do_full.index(step % DO_BUFFERS), (step // DO_BUFFERS) & 1)
        forget_rows(smem.q.index(step % Q_BUFFERS), rows)
        forget_rows(smem.do.index(step % DO_BUFFERS), rows)
        own = gl.arange(0, BLOCK_M, layout) < rows
        lse = smem.lse.index(step % Q_BUFFERS)
        lse.store(gl.where(own, lse.load(layout), float("inf")))
        delta = smem.delta.index(step % DO_BUFFERS)
        delta.store(gl.where(own, delta.load(layout), 0.0))
        publish()


@gluon.jit
def _gather(
    state,
    smem,
    bars,
    descs,
    place,
    i,
    member,
    G: gl.constexpr,
    FIRST: gl.constexpr,
    MASKED: gl.constexpr,
    variant,
):
    """What tile i of query rows adds to dk, dv and dq, all still to be scaled.

    Query rows beyond N are all zeros, which add nothing. Keys beyond N get no weight where MASKED:
    their scores of 0 may be far above those of a row that all lie far below 0. Of packed sequences,
    neither do rows and keys beyond the sequence's. member: number of the head, of those that share
    the keys. LATE: what is added to dq is of the tile before.
    """
    dk_KD, dv_KD = state
    at, scale_2 = place
    CAUSAL: gl.constexpr = variant.CAUSAL
    LATE: gl.constexpr = variant.LATE
    GROUP: gl.constexpr = variant.GROUP
    PACKED: gl.constexpr = at.span is not None
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
    step = step_of(i, member, at, GROUP)
    q_buffer = step % Q_BUFFERS
    do_buffer = step % DO_BUFFERS
    q = smem.q.index(q_buffer)
    do = smem.do.index(do_buffer)
    zero_KM = gl.zeros([64, BLOCK_M], gl.float32, score_layout)
    mbarrier.wait(bars.q_full.index(q_buffer), (step // Q_BUFFERS) & 1)
    if PACKED and MASKED:
        row = row_of(i, at, BLOCK_M, CAUSAL, variant.ROTATED)
        _forget_others(smem, bars, step, at.span.end - row)
    score = warpgroup_mma(smem.k.index(G), q.permute((1, 0)), zero_KM, use_acc=False, is_async=True)
    lse_M = smem.lse.index(q_buffer).load(row_layout)
    if LATE and FIRST:
        score_KM = warpgroup_mma_wait(0, deps=(score,))
    elif LATE:
        dq = _start_queries(smem, bars, step - 1, G)
        score_KM = warpgroup_mma_wait(2, deps=(score,))
    else:
        mbarrier.wait(bars.do_full.index(do_buffer), (step // DO_BUFFERS) & 1)
        dp = warpgroup_mma(
            smem.v.index(G), do.permute((1, 0)), zero_KM, use_acc=False, is_async=True
        )
        score_KM = warpgroup_mma_wait(1, deps=(score,))
    p_KM = gl.exp2(score_KM * scale_2 - gl.expand_dims(lse_M, 0))
    if MASKED:
        key_K = at.key + G * 64 + gl.arange(0, 64, gl.SliceLayout(1, score_layout))
        if PACKED:
            if CAUSAL:
                last_M = row + at.span.shift + gl.arange(0, BLOCK_M, row_layout)
                p_KM = gl.where(gl.expand_dims(key_K, 1) <= gl.expand_dims(last_M, 0), p_KM, 0.0)
            else:
                p_KM = gl.where(gl.expand_dims(key_K < at.span.keys_end, 1), p_KM, 0.0)
        elif CAUSAL:
            row_M = at.key + i * BLOCK_M + gl.arange(0, BLOCK_M, row_layout)
            p_KM = gl.where(gl.expand_dims(key_K, 1) <= gl.expand_dims(row_M, 0), p_KM, 0.0)
        else:
            p_KM = gl.where(gl.expand_dims(key_K < at.N, 1), p_KM, 0.0)
    if LATE:
        mbarrier.wait(bars.do_full.index(do_buffer), (step // DO_BUFFERS) & 1)
        if not FIRST:
            dq = warpgroup_mma_wait(0, deps=(dq,))
            last, head = before(i, member, at, GROUP)
            _add_queries(dq, smem, descs, at, last, head, G, MASKED, variant)
        dp = warpgroup_mma(
            smem.v.index(G), do.permute((1, 0)), zero_KM, use_acc=False, is_async=True
        )
        dv = warpgroup_mma(gl.convert_layout(p_KM.to(dtype), p_layout), do, dv_KD, is_async=True)
        delta_M = smem.delta.index(do_buffer).load(row_layout)
        dp_KM = warpgroup_mma_wait(1, deps=(dp,))
    else:
        if variant.SPLIT:  # it has ended, and the compiler moves no wait over another
            mbarrier.wait(bars.do_full.index(do_buffer), (step // DO_BUFFERS) & 1)
        delta_M = smem.delta.index(do_buffer).load(row_layout)
        weight_KM = gl.convert_layout(p_KM.to(dtype), p_layout)
        dp_KM = warpgroup_mma_wait(0, deps=(dp,))
    ds_KM = (p_KM * (dp_KM - gl.expand_dims(delta_M, 0))).to(dtype)
    smem.ds.index(step % 2 * 2 + G).store(ds_KM)
    if variant.FRONT:
        dv = warpgroup_mma(weight_KM, do, dv_KD, is_async=True)
    fence_async_shared()
    mbarrier.arrive(bars.ds_full.index(step % 2), count=1)
    if LATE:
        dk = warpgroup_mma(gl.convert_layout(ds_KM, p_layout), q, dk_KD, is_async=True)
        dv_KD = warpgroup_mma_wait(1, deps=(dv,))
        mbarrier.arrive(bars.do_empty.index(do_buffer), count=1)
    else:
        operand_KM = gl.convert_layout(ds_KM, p_layout)
        if not variant.FRONT:
            dv = warpgroup_mma(weight_KM, do, dv_KD, is_async=True)
        dq = _start_queries(smem, bars, step, G)
        dk = warpgroup_mma(operand_KM, q, dk_KD, is_async=True)
        dq, dv_KD = warpgroup_mma_wait(1, deps=(dq, dv))
        mbarrier.arrive(bars.do_empty.index(do_buffer), count=1)
        _add_queries(dq, smem, descs, at, i, member, G, MASKED, variant)
    dk_KD = warpgroup_mma_wait(0, deps=(dk,))
    mbarrier.arrive(bars.q_empty.index(q_buffer), count=1)
    return dk_KD, dv_KD


@gluon.jit
def _half_of(rows, number):
    """64 rows of 64, of buffers of 128."""
    COUNT: gl.constexpr = rows.shape[0] * 2
    layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([64, 64], rows.dtype)
    return rows._reinterpret(rows.dtype, [COUNT, 64, 64], layout).index(number)


@gluon.jit
def _half_statistic(rows, number, layout: gl.constexpr):
    """A statistic of 64 rows, of buffers of 128."""
    COUNT: gl.constexpr = rows.shape[0] * 2
    flat: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=0, element_bitwidth=32, rank=1)
    return rows._reinterpret(gl.float32, [COUNT, 64], flat).index(number).load(layout)


@gluon.jit
def _weigh_half(
    score_KM,
    smem,
    place,
    step,
    HALF: gl.constexpr,
    MASKED: gl.constexpr,
    G: gl.constexpr,
    variant,
):
    """The weights of 64 rows of a tile; none where MASKED hides a key."""
    at, scale_2, _, _ = place
    Q_BUFFERS: gl.constexpr = smem.q.shape[0]
    layout: gl.constexpr = score_KM.type.layout
    row_layout: gl.constexpr = gl.SliceLayout(0, layout)
    lse_M = _half_statistic(smem.lse, step % Q_BUFFERS * 2 + HALF, row_layout)
    p_KM = gl.exp2(score_KM * scale_2 - gl.expand_dims(lse_M, 0))
    if MASKED:
        key_K = G * 64 + gl.arange(0, 64, gl.SliceLayout(1, layout))
        if variant.CAUSAL:
            row_M = step * 128 + HALF * 64 + gl.arange(0, 64, row_layout)
            p_KM = gl.where(gl.expand_dims(key_K, 1) <= gl.expand_dims(row_M, 0), p_KM, 0.0)
        else:
            p_KM = gl.where(gl.expand_dims(at.key + key_K < at.N, 1), p_KM, 0.0)
    return p_KM


@gluon.jit
def _slope_half(p_KM, dp_KM, smem, step, HALF: gl.constexpr, G: gl.constexpr):
    """dS of 64 rows of a tile, which goes to shared memory for dq."""
    DO_BUFFERS: gl.constexpr = smem.do.shape[0]
    row_layout: gl.constexpr = gl.SliceLayout(0, p_KM.type.layout)
    delta_M = _half_statistic(smem.delta, step % DO_BUFFERS * 2 + HALF, row_layout)
    ds_KM = (p_KM * (dp_KM - gl.expand_dims(delta_M, 0))).to(smem.q.dtype)
    _half_of(smem.ds, (step % 2 * 2 + G) * 2 + HALF).store(ds_KM)
    return ds_KM


@gluon.jit
def _start_halves(state, smem, bars, place, step, G: gl.constexpr):
    """Queues what a tile's first half, whose weights are there, adds to dk and dv, and the scores
    and dP of the second. dS of the first is computed while these scores and dv are multiplied."""
    dk_KD, dv_KD, p_KM = state
    _, _, k, v = place
    Q_BUFFERS: gl.constexpr = smem.q.shape[0]
    DO_BUFFERS: gl.constexpr = smem.do.shape[0]
    dtype: gl.constexpr = smem.q.dtype
    layout: gl.constexpr = p_KM.type.layout
    p_layout: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=layout, k_width=2)
    q_0 = _half_of(smem.q, step % Q_BUFFERS * 2)
    q_1 = _half_of(smem.q, step % Q_BUFFERS * 2 + 1)
    do_0 = _half_of(smem.do, step % DO_BUFFERS * 2)
    do_1 = _half_of(smem.do, step % DO_BUFFERS * 2 + 1)
    zero_KM = gl.zeros([64, 64], gl.float32, layout)
    mbarrier.wait(bars.do_full.index(step % DO_BUFFERS), (step // DO_BUFFERS) & 1)
    dp = warpgroup_mma(v, do_0.permute((1, 0)), zero_KM, use_acc=False, is_async=True)
    score = warpgroup_mma(k, q_1.permute((1, 0)), zero_KM, use_acc=False, is_async=True)
    dv = warpgroup_mma(gl.convert_layout(p_KM.to(dtype), p_layout), do_0, dv_KD, is_async=True)
    dp_KM = warpgroup_mma_wait(2, deps=(dp,))
    ds_KM = _slope_half(p_KM, dp_KM, smem, step, 0, G)
    dk = warpgroup_mma(gl.convert_layout(ds_KM, p_layout), q_0, dk_KD, is_async=True)
    dp = warpgroup_mma(v, do_1.permute((1, 0)), zero_KM, use_acc=False, is_async=True)
    return dk, dv, dp, score


@gluon.jit
def _end_halves(queued, smem, bars, place, step, G: gl.constexpr, MASKED: gl.constexpr, variant):
    """Queues what the second half adds: its exponentials run while dv and dk of the first and its
    own dP are multiplied, its dS while dv is."""
    dk, dv, dp, score = queued
    Q_BUFFERS: gl.constexpr = smem.q.shape[0]
    DO_BUFFERS: gl.constexpr = smem.do.shape[0]
    dtype: gl.constexpr = smem.q.dtype
    q = _half_of(smem.q, step % Q_BUFFERS * 2 + 1)
    do = _half_of(smem.do, step % DO_BUFFERS * 2 + 1)
    score_KM = warpgroup_mma_wait(3, deps=(score,))
    layout: gl.constexpr = score_KM.type.layout
    p_layout: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=layout, k_width=2)
    p_KM = _weigh_half(score_KM, smem, place, step, 1, MASKED, G, variant)
    dv = warpgroup_mma(gl.convert_layout(p_KM.to(dtype), p_layout), do, dv, is_async=True)
    dp_KM = warpgroup_mma_wait(1, deps=(dp,))
    ds_KM = _slope_half(p_KM, dp_KM, smem, step, 1, G)
    dk = warpgroup_mma(gl.convert_layout(ds_KM, p_layout), q, dk, is_async=True)
    return dk, dv


@gluon.jit
def _gather_halves(
    state,
    smem,
    bars,
    descs,
    place,
    step,
    known,
    G: gl.constexpr,
    LAST: gl.constexpr,
    MASKED: gl.constexpr,
    variant,
):
    """As `_gather`, by halves of 64 rows: the weights of a tile's first half are there, and those
    of the next tile's are computed while dq is multiplied. known: whether there is a next tile; if
    none is, unless LAST, they are of what is in the buffer. Nothing is still being multiplied at
    the end: the compiler would wait for each product if one were carried over an iteration."""
    p_KM = state[2]
    at, _, k, _ = place
    Q_BUFFERS: gl.constexpr = smem.q.shape[0]
    DO_BUFFERS: gl.constexpr = smem.do.shape[0]
    OTHERS: gl.constexpr = variant.RAGGED and not variant.CAUSAL
    layout: gl.constexpr = p_KM.type.layout
    queued = _start_halves(state, smem, bars, place, step, G)
    dk, dv = _end_halves(queued, smem, bars, place, step, G, MASKED, variant)
    if not LAST:
        after = (step + 1) % Q_BUFFERS
        zero_KM = gl.zeros([64, 64], gl.float32, layout)
        mbarrier.wait(bars.q_full.index(after), ((step + 1) // Q_BUFFERS) & 1, pred=known)
        q = _half_of(smem.q, after * 2)
        score = warpgroup_mma(k, q.permute((1, 0)), zero_KM, use_acc=False, is_async=True)
    fence_async_shared()
    mbarrier.arrive(bars.ds_full.index(step % 2), count=1)
    dq = _start_queries(smem, bars, step, G)  # two products
    if LAST:
        dk_KD, dv_KD = warpgroup_mma_wait(2, deps=(dk, dv))
    else:
        score_KM, dk_KD, dv_KD = warpgroup_mma_wait(2, deps=(score, dk, dv))
    mbarrier.arrive(bars.do_empty.index(step % DO_BUFFERS), count=1)
    mbarrier.arrive(bars.q_empty.index(step % Q_BUFFERS), count=1)
    if not LAST:
        p_KM = _weigh_half(score_KM, smem, place, step + 1, 0, OTHERS, G, variant)
        after = (step + 1) % DO_BUFFERS
        mbarrier.wait(bars.do_full.index(after), ((step + 1) // DO_BUFFERS) & 1, pred=known)
    dq = warpgroup_mma_wait(0, deps=(dq,))
    _add_queries(dq, smem, descs, at, step, 0, G, MASKED, variant)
    return dk_KD, dv_KD, p_KM


@gluon.jit
def _gather_all_halves(state, smem, bars, descs, place, G: gl.constexpr, variant):
    """All tiles, of one head."""
    dk_KD, dv_KD = state
    at, scale_2 = place
    MASKED: gl.constexpr = variant.RAGGED or variant.CAUSAL
    layout: gl.constexpr = dk_KD.type.layout
    zero_KM = gl.zeros([64, 64], gl.float32, layout)
    mbarrier.wait(bars.q_full.index(0), 0)
    q = _half_of(smem.q, 0)
    k = smem.k.index(G)
    v = smem.v.index(G)
    key_layout: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=layout, k_width=2)
    if variant.HOLDS_K:
        k = k.load(key_layout)
    if variant.HOLDS_V:
        v = v.load(key_layout)
    place = (at, scale_2, k, v)
    score = warpgroup_mma(k, q.permute((1, 0)), zero_KM, use_acc=False, is_async=True)
    score_KM = warpgroup_mma_wait(0, deps=(score,))
    p_KM = _weigh_half(score_KM, smem, place, 0, 0, MASKED, G, variant)
    state = (dk_KD, dv_KD, p_KM)
    if variant.CAUSAL:
        known = at.tiles > 1
        state = _gather_halves(state, smem, bars, descs, place, 0, known, G, False, True, variant)
        for i in range(1, at.tiles):
            known = i + 1 < at.tiles
            state = _gather_halves(
                state, smem, bars, descs, place, i, known, G, False, False, variant
            )
    else:
        for i in range(at.tiles - 1):
            state = _gather_halves(
                state, smem, bars, descs, place, i, True, G, False, MASKED, variant
            )
        last = at.tiles - 1
        state = _gather_halves(
            state, smem, bars, descs, place, last, False, G, True, MASKED, variant
        )
    return state[0], state[1]


@gluon.jit
def _gather_head(state, smem, bars, descs, place, member, G: gl.constexpr, variant):
    """All tiles of one head of q, but for the first of all where LATE, which has been taken."""
    at, _ = place
    CAUSAL: gl.constexpr = variant.CAUSAL
    BLOCK_M: gl.constexpr = smem.q.shape[1]
    OTHERS: gl.constexpr = variant.RAGGED and not CAUSAL and at.span is None
    done = 0
    if variant.LATE and variant.GROUP == 1:
        done = 1
    elif variant.LATE:
        done = 1 - gl.minimum(member, 1)
    if at.span is not None:
        for i in range(done, at.span.masked):
            state = _gather(state, smem, bars, descs, place, i, member, G, False, True, variant)
        done = gl.maximum(at.span.masked, done)
    elif CAUSAL:
        for i in range(done, 128 // BLOCK_M):
            state = _gather(state, smem, bars, descs, place, i, member, G, False, True, variant)
        done = 128 // BLOCK_M
    for i in range(done, at.tiles):
        state = _gather(state, smem, bars, descs, place, i, member, G, False, OTHERS, variant)
    return state


@gluon.jit
def _store_keys(desc, ptr, smem, tile, at, G: gl.constexpr, SEEN: gl.constexpr):
    """Write what a consumer has of its 64 keys, without those beyond a packed sequence's; zeros
    where that has no queries, whatever its keys are. SEEN: only what has queries was multiplied;
    zeros for what is padded."""
    row = at.key + G * 64
    if at.span is not None:
        if SEEN:
            key_K = row + gl.arange(0, 64, gl.SliceLayout(1, tile.type.layout))
            tile = gl.where(gl.expand_dims(key_K < at.span.keys_end, 1), tile, 0.0)
        else:
            tile = gl.where(at.span.end > at.span.begin, tile, 0.0)
        if row + 64 > at.span.stored:
            store_rows(smem, tile, ptr, row, at.h, at.span.heads, at.span.stored)
        else:
            store(desc, smem, tile, at.b, row, at.h)
    else:
        store(desc, smem, tile, at.b, row, at.h)


@gluon.jit
def _consume(
    smem,
    bars,
    descs,
    places,
    extra,
    packed,
    scale,
    G: gl.constexpr,
    variant,
):
    """dk and dv of 64 keys, and half of what the program adds to dq. places: that of the rows that
    see these keys, and of the others that do, if there are such; not where LATE or HALVES."""
    at, late = places
    LATE: gl.constexpr = variant.LATE
    D: gl.constexpr = smem.q.shape[2]
    acc_layout: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, D, 16]
    )
    dk_KD = gl.zeros([64, D], gl.float32, acc_layout)
    dv_KD = gl.zeros([64, D], gl.float32, acc_layout)
    MASKED: gl.constexpr = variant.CAUSAL or variant.RAGGED
    state = (dk_KD, dv_KD)
    place = (at, scale * LOG2E)
    dk_ptr = None
    dv_ptr = None
    if variant.FACTOR is not None:
        factor = variant.FACTOR(extra, at.b.to(gl.int64), variant.KIND)
    mbarrier.wait(bars.kv_full, 0)
    if packed is not None:
        dk_ptr = packed.dk_ptr
        dv_ptr = packed.dv_ptr
        if at.key + 128 > at.span.keys_end:
            for g in gl.static_range(2):
                forget_rows(smem.k.index(g), at.span.keys_end - at.key - g * 64)
            forget_rows(smem.v.index(G), at.span.keys_end - at.key - G * 64)
            publish()
    if variant.HALVES:
        state = _gather_all_halves(state, smem, bars, descs, place, G, variant)
    else:
        if LATE:
            state = _gather(state, smem, bars, descs, place, 0, 0, G, True, MASKED, variant)
        for member in range(variant.GROUP):
            state = _gather_head(state, smem, bars, descs, place, member, G, variant)
        if late is not None:
            place = (late, scale * LOG2E)
            for member in range(variant.GROUP):
                state = _gather_head(state, smem, bars, descs, place, member, G, variant)
    dk_KD, dv_KD = state
    if LATE:
        last = variant.GROUP - 1
        end = step_of(at.tiles, last, at, variant.GROUP)
        dq = warpgroup_mma_wait(0, deps=(_start_queries(smem, bars, end - 1, G),))
        _add_queries(dq, smem, descs, at, at.tiles - 1, last, G, True, variant)
    tma.store_wait(0)
    if variant.FACTOR is not None:
        dv_KD = dv_KD * factor
        scale = factor * scale
    SEEN: gl.constexpr = late is not None
    _store_keys(descs.dv, dv_ptr, smem.v.index(G), dv_KD, at, G, SEEN)
    _store_keys(descs.dk, dk_ptr, smem.v.index(G), dk_KD * scale, at, G, SEEN)


@gluon.jit
def differentiate(
    q_desc,
    k_desc,
    v_desc,
    do_desc,
    dk_desc,
    dv_desc,
    total_desc,
    lse_desc,
    delta_desc,
    extra,
    packed,
    scale,
    N,
    H,
    Q_BUFFERS: gl.constexpr,
    DO_BUFFERS: gl.constexpr,
    REGISTERS: gl.constexpr,
    CAUSAL: gl.constexpr,
    RAGGED: gl.constexpr,
    ROTATED: gl.constexpr,
    LATE: gl.constexpr,
    SPLIT: gl.constexpr,
    FRONT: gl.constexpr,
    HALVES: gl.constexpr,
    HOLDS_K: gl.constexpr,
    HOLDS_V: gl.constexpr,
    FLAT: gl.constexpr,
    GROUP: gl.constexpr,
    FACTOR: gl.constexpr,
    KIND: gl.constexpr,
    LIES: gl.constexpr,
):
    """dk and dv of 128 keys of one of their H heads a program, and what they add to dq, over tiles
    of query rows. The longest programs come first where causal. packed: see `walk.Sequences`, or
    where LIES, see `walk.place_of_part`, `walk.Twice`.
    """
    BLOCK_M: gl.constexpr = q_desc.block_type.shape[1]
    D: gl.constexpr = q_desc.block_type.shape[3]
    dtype: gl.constexpr = q_desc.dtype
    blocks = (N + 127) // 128
    bh = gl.program_id(0) // blocks
    key = gl.program_id(0) % blocks * 128
    rows = N
    if CAUSAL:
        rows = N - key
    row_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_M, D], dtype)
    key_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([64, D], dtype)
    ds_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([64, BLOCK_M], dtype)
    dq_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([64, 64], gl.float32)
    statistic_layout: gl.constexpr = gl.NVMMASharedLayout(
        swizzle_byte_width=0, element_bitwidth=32, rank=1
    )
    ds_smem = gl.allocate_shared_memory(dtype, [4, 64, BLOCK_M], ds_layout)
    if FLAT:
        flat_layout: gl.constexpr = gl.NVMMASharedLayout(
            swizzle_byte_width=0, element_bitwidth=32, rank=2
        )
        dq_smem = gl.allocate_shared_memory(gl.float32, [2, 16, 256], flat_layout)
    else:
        dq_smem = gl.allocate_shared_memory(gl.float32, [2, 64, 64], dq_layout)
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
    ds_full = new_barriers(2)
    arm(kv_full, 1)
    if packed is not None:  # and each thread that queues a statistic
        arm(q_full, 33)
        arm(do_full, 33)
    else:
        arm(q_full, 1)
        arm(do_full, 1)
    arm(q_empty, 2)
    arm(do_empty, 2)
    arm(ds_full, 2)
    fence_async_shared()
    smem = Tiles(q_smem, do_smem, k_smem, v_smem, lse_smem, delta_smem, ds_smem, dq_smem)
    bars = RowBarriers(kv_full, q_full, q_empty, do_full, do_empty, ds_full)
    descs = Descriptors(
        q_desc,
        k_desc,
        v_desc,
        do_desc,
        dk_desc,
        dv_desc,
        total_desc,
        lse_desc,
        delta_desc,
    )
    if LIES is not None:
        found = find_tile(packed, H)
        at = place_of_part(packed, found, N, H, 0, 0, LIES, BLOCK_M, CAUSAL, ROTATED)
        steps = at.tiles * GROUP
        late = place_of_part(packed, found, N, H, steps, 1, LIES, BLOCK_M, CAUSAL, ROTATED)
        places = (at, late)
        packed = Pointers(packed.dk_ptr, packed.dv_ptr, packed.lse_ptr, packed.delta_ptr)
    elif packed is not None:
        h, q0, k0, rows, keys, number = find_keys(packed, H)
        if CAUSAL:  # the first tile of keys is the longest
            number = gl.maximum((keys + 127) // 128 - 1 - number, 0)
        ahead = keys - rows
        first, tiles, masked, tail, turn = span_of(
            rows, ahead, keys, number, 1, BLOCK_M, CAUSAL, ROTATED
        )
        shift = k0 - q0 + ahead
        ends = k0 + keys, k0 + keys
        span = Span(q0 + first, q0 + rows, *ends, shift, masked, tail, turn, H, 0)
        places = (Place(0, h, h, k0 + number * 128, tiles, N, span), None)
        packed = Pointers(packed.dk_ptr, packed.dv_ptr, packed.lse_ptr, packed.delta_ptr)
    else:
        tiles = (rows + 127) // 128 * (128 // BLOCK_M)  # as many as cross the diagonal, or more
        places = (Place(bh // H, bh % H, bh, key, tiles, N, None), None)
    gl.warp_specialize(
        [
            (
                _consume,
                (
                    smem,
                    bars,
                    descs,
                    places,
                    extra,
                    packed,
                    scale,
                    0,
                    Variant(
                        CAUSAL,
                        RAGGED,
                        ROTATED,
                        LATE,
                        SPLIT,
                        FRONT,
                        HALVES,
                        HOLDS_K,
                        HOLDS_V,
                        FLAT,
                        GROUP,
                        FACTOR,
                        KIND,
                    ),
                ),
            ),
            (
                _consume,
                (
                    smem,
                    bars,
                    descs,
                    places,
                    extra,
                    packed,
                    scale,
                    1,
                    Variant(
                        CAUSAL,
                        RAGGED,
                        ROTATED,
                        LATE,
                        SPLIT,
                        FRONT,
                        HALVES,
                        HOLDS_K,
                        HOLDS_V,
                        FLAT,
                        GROUP,
                        FACTOR,
                        KIND,
                    ),
                ),
            ),
            (_produce, (smem, bars, descs, places, packed, CAUSAL, ROTATED, GROUP)),
        ],
        [4, 1],
        [REGISTERS, 24],
    )


@triton.jit
def unfold_queries(total_ptr, dq_ptr, scale, N, H):
    """dq = scale·total of 64 rows of a head; total has them in the order of `_AS_HELD`."""
    blocks = (N + 63) // 64
    bh = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    start = (bh.to(tl.int64) * ((N + 127) // 128 * 2) + block) * 4096
    held = tl.load(total_ptr + start + tl.arange(0, 4096))
    tile = tl.permute(tl.reshape(held, (8, 4, 8, 4, 2, 2)), (1, 4, 2, 0, 3, 5))
    row_M = block * 64 + tl.arange(0, 64)
    at_M = ((bh // H).to(tl.int64) * N + row_M) * H + bh % H
    at_MD = at_M[:, None] * 64 + tl.arange(0, 64)[None, :]
    dq_MD = (tl.reshape(tile, (64, 64)) * scale).to(dq_ptr.dtype.element_ty)
    tl.store(dq_ptr + at_MD, dq_MD, mask=(row_M < N)[:, None])


def fused_launch(
    tensors: Gradients,
    total: Tensor,
    dk: Tensor,
    dv: Tensor,
    *,
    scale: float,
    causal: bool,
    tile: HopperFusedTile,
    factor: Hook = NO_HOOK,
) -> Launch:
    """The launch that writes dk and dv and adds dq, still to be scaled, to `total`.

    total: (B,H,N,D), fp32 and contiguous, of N a multiple of 128 where `tile.flat`; the rest as
    `backward.keys_launch` takes it, but that heads of q may share those of k.
    """
    B, N, heads, _ = tensors.k.shape
    _check_order(tensors, tile)
    if tile.flat and (total.shape[2] % 128 or factor.function is not None):
        raise ValueError("HopperFusedTile: flat sums have multiples of 128 rows, and no factor")
    args = _arguments(tensors, total, dk, dv, scale, tile.flat)
    args |= {"extra": factor.extra, "packed": None}
    constexprs = _constexprs(tensors, tile, causal, N % KEPT != 0, factor) | {"LIES": None}
    grid = (ceil_div(N, KEPT) * heads * B,)
    return Launch(differentiate, grid, args, constexprs, {"num_warps": 4})


def _check_order(tensors: Gradients, tile: HopperFusedTile) -> None:
    """Raises ValueError for what a tile's order is not made for."""
    D, group = tensors.q.shape[3], tensors.q.shape[2] // tensors.k.shape[2]
    if (tile.halves or tile.flat) and D != 64:
        raise ValueError(f"HopperFusedTile: this order is for heads of 64, got {D}: {tile}")
    if tile.halves and group > 1:
        raise ValueError(f"HopperFusedTile: this order is for keys that no heads share: {tile}")
    if tile.held not in (0, 1, 2) or (tile.held and not tile.halves):
        raise ValueError(f"HopperFusedTile: held is 0, 1 or 2, and 0 without halves, got {tile}")
    if tile.late + (tile.split or tile.front) + tile.halves > 1:
        raise ValueError(f"HopperFusedTile: these orders exclude each other, got {tile}")


def unfold_launch(total: Tensor, dq: Tensor, *, scale: float) -> Launch:
    """The launch that writes dq, (B,N,H,64) and contiguous, from its sum by a `flat` tile."""
    B, N, H, _ = dq.shape
    args = {"total_ptr": total, "dq_ptr": dq, "scale": scale, "N": N, "H": H}
    return Launch(unfold_queries, (ceil_div(N, 64) * H * B,), args, {}, LIGHT)


def packed_launches(
    sums: tuple[Gradients, Tensor, Tensor, Tensor],
    place: Packed,
    listed: Tensor,
    *,
    scale: float,
    causal: bool,
    tile: HopperFusedTile,
) -> tuple[Launch, Launch]:
    """As `fused_launch`, of packed sequences, which are one sample: their tiles of keys are listed
    by a launch in front. sums: tensors, total, dk and dv. listed: `order.listed_size` of int32."""
    tensors, total, dk, dv = sums
    _check_order(tensors, tile)
    if tile.halves or tile.flat:
        raise ValueError(f"HopperFusedTile: no packed sequences in this order, got {tile}")
    q = tensors.q
    keys, heads = dk.shape[1:3]
    at_once = 4 * q.nbytes // (q.shape[2] // heads)  # q, do, dq in fp32, of one head to each of k
    section = heads_of_section(heads, heads, at_once)
    starts = place.q_starts, place.k_starts, place.S, keys
    args = _arguments(tensors, total, dk, dv, scale)
    found = dk, dv, tensors.lse, tensors.delta
    args |= {"extra": None, "packed": Sequences(*starts, listed, section, *found)}
    args |= {"lse_desc": None, "delta_desc": None}
    constexprs = _constexprs(tensors, tile, causal, True, NO_HOOK) | {"LIES": None}
    turned = place._replace(q_starts=place.k_starts, k_starts=place.q_starts)
    lists = list_launch(turned, lies_turned, listed, keys, KEPT, causal)
    grid = (most_tiles(keys, place.S, KEPT) * heads,)
    return lists, Launch(differentiate, grid, args, constexprs, {"num_warps": 4})


def twice_launches(
    sums: tuple[Gradients, Tensor, Tensor, Tensor],
    place: Any,
    lies: Any,
    starts: tuple[Tensor, int],
    listed: Tensor,
    *,
    scale: float,
    causal: bool,
    tile: HopperFusedTile,
) -> tuple[Launch, Launch]:
    """As `packed_launches`, of keys that two sequences of queries see, both in the same tensors,
    one sample. place, lies: see `walk.place_of_part`. starts: where sequences of keys begin, and
    how many there are. dk and dv of keys that none of them has are not written."""
    tensors, total, dk, dv = sums
    _check_order(tensors, tile)
    if tile.late or tile.halves or tile.flat:
        raise ValueError(f"HopperFusedTile: no keys that are seen twice in this order, got {tile}")
    keys, heads = dk.shape[1:3]
    at_once = 4 * tensors.q.nbytes // (tensors.q.shape[2] // heads)
    section = heads_of_section(heads, heads, at_once)
    args = _arguments(tensors, total, dk, dv, scale)
    found = dk, dv, tensors.lse, tensors.delta
    args |= {"extra": None, "packed": Twice(place, listed, section, *found)}
    args |= {"lse_desc": None, "delta_desc": None}
    constexprs = _constexprs(tensors, tile, causal, True, NO_HOOK) | {"LIES": in_gluon(lies)}
    of_keys = Packed(starts[0], starts[0], starts[1], keys)
    lists = list_launch(of_keys, lies_turned, listed, keys, KEPT, causal)
    grid = (most_tiles(keys, starts[1], KEPT) * heads,)
    return lists, Launch(differentiate, grid, args, constexprs, {"num_warps": 4})


def _arguments(
    tensors: Gradients, total: Tensor, dk: Tensor, dv: Tensor, scale: float, flat: bool = False
) -> dict[str, Any]:
    """What both have."""
    do, q, k, v, lse, delta, _ = tensors
    _, N, H, D = q.shape
    rows = _TILE // D
    return {
        "q_desc": descriptor(q, rows),
        "k_desc": descriptor(k, 64),
        "v_desc": descriptor(v, 64),
        "do_desc": descriptor(do, rows, H),
        "dk_desc": descriptor(dk, 64),
        "dv_desc": descriptor(dv, 64),
        "total_desc": _total_descriptor(total, flat),
        "lse_desc": of_statistic(lse, rows),
        "delta_desc": of_statistic(delta, rows),
        "scale": scale,
        "N": N,
        "H": k.shape[2],
    }


def _total_descriptor(total: Tensor, flat: bool) -> TensorDescriptor:
    """Of 64×64 of a head's rows, or 4096 elements in a row."""
    B, H, N, D = total.shape
    if flat:
        layout = gl.NVMMASharedLayout(swizzle_byte_width=0, element_bitwidth=32, rank=3)
        shape, strides = [B * H * N * D // 4096, 16, 256], [4096, 256, 1]
        return TensorDescriptor(total, shape, strides, [1, 16, 256], layout)
    layout = gl.NVMMASharedLayout.get_default_for([1, 64, 64], gl.float32)
    return TensorDescriptor(total, [B * H, N, D], [N * D, D, 1], [1, 64, 64], layout)


def _constexprs(
    tensors: Gradients, tile: HopperFusedTile, causal: bool, ragged: bool, factor: Hook
) -> dict[str, Any]:
    return {
        "Q_BUFFERS": tile.q_buffers,
        "DO_BUFFERS": tile.do_buffers,
        "REGISTERS": tile.registers,
        "CAUSAL": causal,
        "RAGGED": ragged,
        "ROTATED": tile.rotated,
        "LATE": tile.late,
        "SPLIT": tile.split,
        "FRONT": tile.front,
        "HALVES": tile.halves,
        "HOLDS_K": tile.held > 0,
        "HOLDS_V": tile.held > 1,
        "FLAT": tile.flat,
        "GROUP": tensors.q.shape[2] // tensors.k.shape[2],
        **factor_of(factor),
    }
