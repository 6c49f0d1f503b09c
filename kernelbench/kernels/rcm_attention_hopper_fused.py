"""The backward of `rcm_attention` for Hopper (sm_90) in one kernel: dq, dk and dv at once.

A program keeps 128 keys, 64 to each of two consumer warpgroups, and takes tiles of query rows, as
`rcm_attention_hopper_backward.differentiate_keys` does. There dq has a kernel of its own, which
computes the scores again; here dS goes through shared memory, so that a program has its part of dq
with one product more. The copy engine adds these parts in global memory, in fp32:

    dQ_n = Σ over programs of dS k,  dq = c_out·scale·dQ,

five products instead of seven. Programs add in the order in which they get there, so the bits of
dq differ from call to call; those of dk and dv do not. Shah et al., FlashAttention-3, 2024
(arXiv:2407.08608).

Shapes: as in `rcm_attention_hopper_backward`. Gluon has no interpreter.
"""

from typing import Any, NamedTuple

from torch import Tensor
from triton._C.libtriton import ir
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language._core import builtin
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from kernelbench.kernels.launch import Launch, ceil_div
from kernelbench.kernels.rcm import RcmFormula
from kernelbench.kernels.rcm_attention_hopper import _descriptor
from kernelbench.kernels.rcm_attention_hopper_backward import (
    _KEPT,
    _LOG2E,
    HopperFusedTile,
    _coefficients,
    _common,
    _load,
    _load_statistic,
    _of_rows,
    _store,
)

_TILE = 8192  # elements of a tile of query rows: dq of one is 64×64 to each consumer


class Tiles(NamedTuple):
    """Shared memory: buffers of q, dy and their statistics, the keys kept, two turns of dS, and dq
    on its way out."""

    q: Any
    dy: Any
    k: Any
    v: Any
    lse: Any
    delta: Any
    ds: Any
    dq: Any


class Barriers(NamedTuple):
    """Whether tiles are there (full), and whether they have been read (empty)."""

    kv_full: Any
    q_full: Any
    q_empty: Any
    dy_full: Any
    dy_empty: Any
    ds_full: Any


class Descriptors(NamedTuple):
    """What the copy engine reads, writes, and adds to (total)."""

    q: Any
    k: Any
    v: Any
    dy: Any
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
def _row_of(i, key, tiles, BLOCK_M: gl.constexpr, CAUSAL: gl.constexpr, ROTATED: gl.constexpr):
    """First query row of tile i of the program that keeps the keys from `key` on."""
    row = i * BLOCK_M
    if CAUSAL:
        row += key
    elif ROTATED:
        row += key
        if row >= tiles * BLOCK_M:
            row -= tiles * BLOCK_M
    return row


@gluon.jit
def _produce(smem, bars, descs, at, CAUSAL: gl.constexpr, ROTATED: gl.constexpr):
    """k and v of the program, then q, lse, dy and δ of tile after tile of query rows."""
    b, h, bh, key, tiles, N = at
    Q_BUFFERS: gl.constexpr = smem.q.shape[0]
    DY_BUFFERS: gl.constexpr = smem.dy.shape[0]
    BLOCK_M: gl.constexpr = smem.q.shape[1]
    D: gl.constexpr = smem.q.shape[2]
    mbarrier.expect(bars.kv_full, 4 * 64 * D * 2)
    for g in gl.static_range(2):
        _load(descs.k, bars.kv_full, smem.k.index(g), b, key + g * 64, h)
        _load(descs.v, bars.kv_full, smem.v.index(g), b, key + g * 64, h)
    for i in range(tiles):
        row = _row_of(i, key, tiles, BLOCK_M, CAUSAL, ROTATED)
        buffer = i % Q_BUFFERS
        mbarrier.wait(bars.q_empty.index(buffer), ((i // Q_BUFFERS) & 1) ^ 1)
        mbarrier.expect(bars.q_full.index(buffer), BLOCK_M * D * 2 + BLOCK_M * 4)
        _load(descs.q, bars.q_full.index(buffer), smem.q.index(buffer), b, row, h)
        _load_statistic(descs.lse, bars.q_full.index(buffer), smem.lse.index(buffer), bh, row)
        buffer = i % DY_BUFFERS
        mbarrier.wait(bars.dy_empty.index(buffer), ((i // DY_BUFFERS) & 1) ^ 1)
        mbarrier.expect(bars.dy_full.index(buffer), BLOCK_M * D * 2 + BLOCK_M * 4)
        _load(descs.dy, bars.dy_full.index(buffer), smem.dy.index(buffer), b, row, h)
        _load_statistic(descs.delta, bars.dy_full.index(buffer), smem.delta.index(buffer), bh, row)


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
def _add_queries(
    dq, smem, descs, at, i, G: gl.constexpr, CAUSAL: gl.constexpr, ROTATED: gl.constexpr
):
    """Queues the addition of what `_start_queries` computed; that of the tile before has ended."""
    b, h, bh, key, tiles, N = at
    BLOCK_M: gl.constexpr = smem.q.shape[1]
    row = _row_of(i, key, tiles, BLOCK_M, CAUSAL, ROTATED)
    column = G * 64
    if BLOCK_M == 128:
        row += G * 64
        column = 0
    tma.store_wait(0)
    smem.dq.index(G).store(dq)
    fence_async_shared()
    tile = smem.dq.index(G)._reinterpret(gl.float32, [1, 64, 64], descs.total.layout)
    _add(descs.total, [bh, row, column], tile)


@gluon.jit
def _gather(
    state,
    smem,
    bars,
    descs,
    place,
    i,
    G: gl.constexpr,
    FIRST: gl.constexpr,
    MASKED: gl.constexpr,
    CAUSAL: gl.constexpr,
    ROTATED: gl.constexpr,
    LATE: gl.constexpr,
):
    """What tile i of query rows adds to dk, dv and dq, all still to be scaled.

    Query rows beyond N are all zeros, which add nothing. Keys beyond N get no weight where MASKED:
    their scores of 0 may be far above those of a row that all lie far below 0.
    LATE: what is added to dq is of tile i−1.
    """
    dk_KD, dv_KD = state
    at, scale_2 = place
    b, h, bh, key, tiles, N = at
    Q_BUFFERS: gl.constexpr = smem.q.shape[0]
    DY_BUFFERS: gl.constexpr = smem.dy.shape[0]
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
    dy_buffer = i % DY_BUFFERS
    q = smem.q.index(q_buffer)
    dy = smem.dy.index(dy_buffer)
    zero_KM = gl.zeros([64, BLOCK_M], gl.float32, score_layout)
    mbarrier.wait(bars.q_full.index(q_buffer), (i // Q_BUFFERS) & 1)
    score = warpgroup_mma(smem.k.index(G), q.permute((1, 0)), zero_KM, use_acc=False, is_async=True)
    lse_M = smem.lse.index(q_buffer).load(row_layout)
    if LATE and FIRST:
        score_KM = warpgroup_mma_wait(0, deps=(score,))
    elif LATE:
        dq = _start_queries(smem, bars, i - 1, G)
        score_KM = warpgroup_mma_wait(2, deps=(score,))
    else:
        mbarrier.wait(bars.dy_full.index(dy_buffer), (i // DY_BUFFERS) & 1)
        dp = warpgroup_mma(
            smem.v.index(G), dy.permute((1, 0)), zero_KM, use_acc=False, is_async=True
        )
        score_KM = warpgroup_mma_wait(1, deps=(score,))
    p_KM = gl.exp2(score_KM * scale_2 - gl.expand_dims(lse_M, 0))
    if MASKED:
        key_K = key + G * 64 + gl.arange(0, 64, gl.SliceLayout(1, score_layout))
        if CAUSAL:
            row_M = key + i * BLOCK_M + gl.arange(0, BLOCK_M, row_layout)
            p_KM = gl.where(gl.expand_dims(key_K, 1) <= gl.expand_dims(row_M, 0), p_KM, 0.0)
        else:
            p_KM = gl.where(gl.expand_dims(key_K < N, 1), p_KM, 0.0)
    if LATE:
        mbarrier.wait(bars.dy_full.index(dy_buffer), (i // DY_BUFFERS) & 1)
        if not FIRST:
            dq = warpgroup_mma_wait(0, deps=(dq,))
            _add_queries(dq, smem, descs, at, i - 1, G, CAUSAL, ROTATED)
        dp = warpgroup_mma(
            smem.v.index(G), dy.permute((1, 0)), zero_KM, use_acc=False, is_async=True
        )
        dv = warpgroup_mma(gl.convert_layout(p_KM.to(dtype), p_layout), dy, dv_KD, is_async=True)
        delta_M = smem.delta.index(dy_buffer).load(row_layout)
        dp_KM = warpgroup_mma_wait(1, deps=(dp,))
    else:
        delta_M = smem.delta.index(dy_buffer).load(row_layout)
        weight_KM = gl.convert_layout(p_KM.to(dtype), p_layout)
        dp_KM = warpgroup_mma_wait(0, deps=(dp,))
    ds_KM = (p_KM * (dp_KM - gl.expand_dims(delta_M, 0))).to(dtype)
    smem.ds.index(i % 2 * 2 + G).store(ds_KM)
    fence_async_shared()
    mbarrier.arrive(bars.ds_full.index(i % 2), count=1)
    if LATE:
        dk = warpgroup_mma(gl.convert_layout(ds_KM, p_layout), q, dk_KD, is_async=True)
        dv_KD = warpgroup_mma_wait(1, deps=(dv,))
        mbarrier.arrive(bars.dy_empty.index(dy_buffer), count=1)
    else:
        operand_KM = gl.convert_layout(ds_KM, p_layout)
        dv = warpgroup_mma(weight_KM, dy, dv_KD, is_async=True)
        dq = _start_queries(smem, bars, i, G)
        dk = warpgroup_mma(operand_KM, q, dk_KD, is_async=True)
        dq, dv_KD = warpgroup_mma_wait(1, deps=(dq, dv))
        mbarrier.arrive(bars.dy_empty.index(dy_buffer), count=1)
        _add_queries(dq, smem, descs, at, i, G, CAUSAL, ROTATED)
    dk_KD = warpgroup_mma_wait(0, deps=(dk,))
    mbarrier.arrive(bars.q_empty.index(q_buffer), count=1)
    return dk_KD, dv_KD


@gluon.jit
def _consume(
    smem,
    bars,
    descs,
    at,
    mixing,
    t_ptr,
    G: gl.constexpr,
    CAUSAL: gl.constexpr,
    RAGGED: gl.constexpr,
    ROTATED: gl.constexpr,
    LATE: gl.constexpr,
    PARAMETRIZATION: gl.constexpr,
):
    """dk and dv of 64 keys, and half of what the program adds to dq."""
    b, h, bh, key, tiles, N = at
    scale, t_stride, sigma = mixing
    BLOCK_M: gl.constexpr = smem.q.shape[1]
    D: gl.constexpr = smem.q.shape[2]
    acc_layout: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, D, 16]
    )
    dk_KD = gl.zeros([64, D], gl.float32, acc_layout)
    dv_KD = gl.zeros([64, D], gl.float32, acc_layout)
    MASKED: gl.constexpr = CAUSAL or RAGGED
    state = (dk_KD, dv_KD)
    place = (at, scale * _LOG2E)
    _, c_out, _, _ = _coefficients(t_ptr, b.to(gl.int64), t_stride, sigma, PARAMETRIZATION)
    done = 0
    mbarrier.wait(bars.kv_full, 0)
    if LATE:
        state = _gather(state, smem, bars, descs, place, 0, G, True, MASKED, CAUSAL, ROTATED, True)
        done = 1
    if CAUSAL:
        for i in range(done, 128 // BLOCK_M):
            state = _gather(state, smem, bars, descs, place, i, G, False, True, True, ROTATED, LATE)
        done = 128 // BLOCK_M
    for i in range(done, tiles):
        state = _gather(
            state,
            smem,
            bars,
            descs,
            place,
            i,
            G,
            False,
            RAGGED and not CAUSAL,
            CAUSAL,
            ROTATED,
            LATE,
        )
    dk_KD, dv_KD = state
    if LATE:
        dq = warpgroup_mma_wait(0, deps=(_start_queries(smem, bars, tiles - 1, G),))
        _add_queries(dq, smem, descs, at, tiles - 1, G, CAUSAL, ROTATED)
    tma.store_wait(0)
    _store(descs.dv, smem.v.index(G), dv_KD * c_out, b, key + G * 64, h)
    _store(descs.dk, smem.v.index(G), dk_KD * (c_out * scale), b, key + G * 64, h)


@gluon.jit
def differentiate(
    q_desc,
    k_desc,
    v_desc,
    dy_desc,
    dk_desc,
    dv_desc,
    total_desc,
    lse_desc,
    delta_desc,
    t_ptr,
    t_stride,
    scale,
    sigma,
    N,
    H,
    Q_BUFFERS: gl.constexpr,
    DY_BUFFERS: gl.constexpr,
    REGISTERS: gl.constexpr,
    CAUSAL: gl.constexpr,
    RAGGED: gl.constexpr,
    ROTATED: gl.constexpr,
    LATE: gl.constexpr,
    PARAMETRIZATION: gl.constexpr,
):
    """dk and dv of 128 keys of one head a program, and what they add to dq, over tiles of query
    rows. The longest programs come first where causal.
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
    dq_smem = gl.allocate_shared_memory(gl.float32, [2, 64, 64], dq_layout)
    q_smem = gl.allocate_shared_memory(dtype, [Q_BUFFERS, BLOCK_M, D], row_layout)
    dy_smem = gl.allocate_shared_memory(dtype, [DY_BUFFERS, BLOCK_M, D], row_layout)
    k_smem = gl.allocate_shared_memory(dtype, [2, 64, D], key_layout)
    v_smem = gl.allocate_shared_memory(dtype, [2, 64, D], key_layout)
    lse_smem = gl.allocate_shared_memory(gl.float32, [Q_BUFFERS, BLOCK_M], statistic_layout)
    delta_smem = gl.allocate_shared_memory(gl.float32, [DY_BUFFERS, BLOCK_M], statistic_layout)
    kv_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    q_full = gl.allocate_shared_memory(gl.int64, [Q_BUFFERS, 1], mbarrier.MBarrierLayout())
    q_empty = gl.allocate_shared_memory(gl.int64, [Q_BUFFERS, 1], mbarrier.MBarrierLayout())
    dy_full = gl.allocate_shared_memory(gl.int64, [DY_BUFFERS, 1], mbarrier.MBarrierLayout())
    dy_empty = gl.allocate_shared_memory(gl.int64, [DY_BUFFERS, 1], mbarrier.MBarrierLayout())
    ds_full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    mbarrier.init(kv_full, count=1)
    for i in gl.static_range(2):
        mbarrier.init(ds_full.index(i), count=2)
    for i in gl.static_range(Q_BUFFERS):
        mbarrier.init(q_full.index(i), count=1)
        mbarrier.init(q_empty.index(i), count=2)
    for i in gl.static_range(DY_BUFFERS):
        mbarrier.init(dy_full.index(i), count=1)
        mbarrier.init(dy_empty.index(i), count=2)
    fence_async_shared()
    smem = Tiles(q_smem, dy_smem, k_smem, v_smem, lse_smem, delta_smem, ds_smem, dq_smem)
    bars = Barriers(kv_full, q_full, q_empty, dy_full, dy_empty, ds_full)
    descs = Descriptors(
        q_desc,
        k_desc,
        v_desc,
        dy_desc,
        dk_desc,
        dv_desc,
        total_desc,
        lse_desc,
        delta_desc,
    )
    tiles = (rows + 127) // 128 * (128 // BLOCK_M)  # as many as cross the diagonal, or more
    at = (bh // H, bh % H, bh, key, tiles, N)
    mixing = (scale, t_stride, sigma)
    gl.warp_specialize(
        [
            (
                _consume,
                (
                    smem,
                    bars,
                    descs,
                    at,
                    mixing,
                    t_ptr,
                    0,
                    CAUSAL,
                    RAGGED,
                    ROTATED,
                    LATE,
                    PARAMETRIZATION,
                ),
            ),
            (
                _consume,
                (
                    smem,
                    bars,
                    descs,
                    at,
                    mixing,
                    t_ptr,
                    1,
                    CAUSAL,
                    RAGGED,
                    ROTATED,
                    LATE,
                    PARAMETRIZATION,
                ),
            ),
            (_produce, (smem, bars, descs, at, CAUSAL, ROTATED)),
        ],
        [4, 1],
        [REGISTERS, 24],
    )


def fused_launch(
    dy: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    t: Tensor | None,
    lse: Tensor,
    delta: Tensor,
    total: Tensor,
    dk: Tensor,
    dv: Tensor,
    *,
    formula: RcmFormula,
    tile: HopperFusedTile,
) -> Launch:
    """The launch that writes dk and dv and adds dq, still to be scaled, to `total`.

    total: (B,H,N,D), fp32 and contiguous; the rest as `keys_launch` takes it.
    """
    B, N, H, D = q.shape
    rows = _TILE // D
    layout = gl.NVMMASharedLayout.get_default_for([1, 64, 64], gl.float32)
    args: dict[str, Any] = {
        "q_desc": _descriptor(q, rows),
        "k_desc": _descriptor(k, 64),
        "v_desc": _descriptor(v, 64),
        "dy_desc": _descriptor(dy, rows, H),
        "dk_desc": _descriptor(dk, 64),
        "dv_desc": _descriptor(dv, 64),
        "total_desc": TensorDescriptor(total, [B * H, N, D], [N * D, D, 1], [1, 64, 64], layout),
        "lse_desc": _of_rows(lse, rows),
        "delta_desc": _of_rows(delta, rows),
    }
    constexprs = {
        "Q_BUFFERS": tile.q_buffers,
        "DY_BUFFERS": tile.dy_buffers,
        "REGISTERS": tile.registers,
        "CAUSAL": formula.causal,
        "RAGGED": N % _KEPT != 0,
        "ROTATED": tile.rotated,
        "LATE": tile.late,
        "PARAMETRIZATION": formula.parametrization,
    }
    args |= _common(t, N, H, formula)
    grid = (ceil_div(N, _KEPT) * H * B,)
    return Launch(differentiate, grid, args, constexprs, {"num_warps": 4})
