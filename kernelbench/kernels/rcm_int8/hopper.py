"""The attention and skip of `rcm_int8` for Hopper (sm_90): INT8 scores, FP8 values, one kernel.

The programs are those of `attention.hopper.forward`: one warp that loads and two warpgroups of 64
query rows each that multiply, tile after tile. The scores of a block of keys are INT32 sums of INT8
products; the weights go from the registers that they come from into the FP8 product, as `rcm_int8`
has permuted the keys of v8. A block's product is summed on its own and joins the result in fp32
once the next block's scores and their maxima are there.

Shapes: as in `rcm_int8`; M is 64. Gluon has no interpreter: on a CPU the `tl` kernel of `rcm_int8`
computes the same function.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from kernelbench.kernels.attention.hopper.channel import (
    arm,
    first_tile,
    listed,
    load,
    new_barrier,
    new_barriers,
    next_tile,
    of_heads,
    store,
)
from kernelbench.kernels.attention.hopper.forward import Barriers, HopperHook, Tiles
from kernelbench.kernels.attention.hopper.order import order_of
from kernelbench.kernels.attention.tiles import copy_engine_takes
from kernelbench.kernels.launch import Launch, ceil_div, sm_count
from kernelbench.kernels.rcm_int8.packed import Packed

_LOG2_FULL = gl.constexpr(8.807354922057604)  # of 448, the largest e4m3
_LEAST = gl.constexpr(-1e30)  # below any score; unlike -inf it can be subtracted from itself
_GROUPS = gl.constexpr(2)  # consumer warpgroups of 64 query rows each


class Descriptors(NamedTuple):
    """What the copy engine reads and writes."""

    q: Any
    k: Any
    v: Any
    x: Any
    y: Any


class Call(NamedTuple):
    """What is the same for every tile: sizes, scales, and what the skip is made of. order: as in
    `attention.hopper.forward`."""

    N: Any
    H: Any
    total: Any
    order: Any
    q_rows: Any
    q_tiles: Any
    k_tiles: Any
    q_scale_ptr: Any
    k_scale_ptr: Any
    v_scale_ptr: Any
    extra: Any


class Variant(NamedTuple):
    """What a kernel is compiled for."""

    Q_BLOCK: Any
    CAUSAL: Any
    RAGGED: Any
    BEGIN: Any
    SETTLE: Any
    FINISH: Any
    KIND: Any


@gluon.jit
def _products(q, k, score_layout: gl.constexpr):
    """The scores q k^T in INT32, under way."""
    BLOCK_N: gl.constexpr = k.shape[0]
    start_MN = gl.zeros([64, BLOCK_N], gl.int32, score_layout)
    return warpgroup_mma(q, k.permute((1, 0)), start_MN, use_acc=False, is_async=True)


@gluon.jit
def _largest(
    score_MN,
    max_M,
    scale,
    first_M,
    N,
    start,
    MASKED: gl.constexpr,
    CAUSAL: gl.constexpr,
):
    """Scores in fp32, still without a scale, and the new maximum, with it."""
    layout: gl.constexpr = score_MN.type.layout
    BLOCK_N: gl.constexpr = score_MN.shape[1]
    product_MN = score_MN.to(gl.float32)
    if MASKED:
        key_N = start + gl.arange(0, BLOCK_N, gl.SliceLayout(0, layout))
        if CAUSAL:
            row_M = first_M + gl.arange(0, 64, gl.SliceLayout(1, layout))
            seen_MN = gl.expand_dims(key_N, 0) <= gl.expand_dims(row_M, 1)
        else:
            seen_MN = gl.expand_dims(key_N, 0) < gl.expand_dims(
                gl.full([64], 0, gl.int32, gl.SliceLayout(1, layout)) + N, 1
            )
        product_MN = gl.where(seen_MN, product_MN, float("-inf"))
    return product_MN, gl.maximum(max_M, gl.max(product_MN, 1) * scale)


@gluon.jit
def _weigh(product_MN, max_M, new_M, sum_M, scale):
    """Weights of these keys, the decay of what was before, and the new sum."""
    shift_M = (scale * 0.0 + _LOG2_FULL) - new_M  # without the 0, code that nobody has timed
    weight_MN = gl.exp2(product_MN * scale + gl.expand_dims(shift_M, 1))
    decay_M = gl.exp2(max_M - new_M)
    sum_M = sum_M * decay_M + gl.sum(weight_MN, 1)
    return weight_MN, decay_M, sum_M


@gluon.jit
def _operand(weight_MN, p_layout: gl.constexpr):
    """Weights as e4m3, in the registers that they are in.

    Not before a loop's turn ends: bytes that outlive it are taken apart and packed again.
    """
    BLOCK_N: gl.constexpr = weight_MN.shape[1]
    split = weight_MN.reshape([64, BLOCK_N // 16, 2, 4, 2]).permute((0, 1, 3, 2, 4))
    swapped_MN = gl.convert_layout(split.reshape([64, BLOCK_N]), p_layout)
    return swapped_MN.to(gl.float8e4nv)


@gluon.jit
def _join(acc_MD, decay_M, fresh_MD):
    """What was summed before, decayed, and the last block's product."""
    layout: gl.constexpr = gl.SliceLayout(1, acc_MD.type.layout)
    return acc_MD * gl.expand_dims(gl.convert_layout(decay_M, layout), 1) + fresh_MD


@gluon.jit
def _tile(index, N, H, BLOCK_N: gl.constexpr, CAUSAL: gl.constexpr):
    """First row, head of all, and blocks of keys of a tile; the longest first where causal."""
    ROWS: gl.constexpr = _GROUPS * 64
    tiles = (N + ROWS - 1) // ROWS
    bh = index // tiles
    row = index % tiles * ROWS
    end = N
    if CAUSAL:
        row = (tiles - 1) * ROWS - row
        end = gl.minimum(row + ROWS, N)
    return row, bh, (end + BLOCK_N - 1) // BLOCK_N


@gluon.jit
def _produce(smem, bars, descs, call, CAUSAL: gl.constexpr, SKIPS: gl.constexpr):
    BUFFERS: gl.constexpr = smem.k.shape[0]
    BLOCK_N: gl.constexpr = smem.k.shape[1]
    D: gl.constexpr = smem.k.shape[2]
    taken = 0
    done = 0
    index = first_tile(call.order)
    while index < call.total:
        after = listed(call.order, done + 1)  # it arrives during this tile
        row, bh, blocks = _tile(index, call.N, call.H, BLOCK_N, CAUSAL)
        phase = done & 1
        mbarrier.wait(bars.q_empty, phase ^ 1)
        mbarrier.expect(bars.q_full, _GROUPS * 64 * D)
        for g in gl.static_range(_GROUPS):
            tma.async_copy_global_to_shared(
                descs.q, [bh * call.q_rows + row + g * 64, 0], bars.q_full, smem.q.index(g)
            )
        for i in range(blocks):
            block = bh * call.k_tiles + blocks - 1 - i
            buffer = taken % BUFFERS
            turn = (taken // BUFFERS) & 1
            mbarrier.wait(bars.k_empty.index(buffer), turn ^ 1)
            mbarrier.expect(bars.k_full.index(buffer), BLOCK_N * D)
            tma.async_copy_global_to_shared(
                descs.k, [block * BLOCK_N, 0], bars.k_full.index(buffer), smem.k.index(buffer)
            )
            mbarrier.wait(bars.v_empty.index(buffer), turn ^ 1)
            mbarrier.expect(bars.v_full.index(buffer), BLOCK_N * D)
            tma.async_copy_global_to_shared(
                descs.v, [block * D, 0], bars.v_full.index(buffer), smem.v.index(buffer)
            )
            taken += 1
        if SKIPS:
            for g in gl.static_range(_GROUPS):
                mbarrier.wait(bars.x_empty.index(g), phase ^ 1)
                mbarrier.expect(bars.x_full.index(g), 64 * D * 2)
                load(
                    descs.x,
                    bars.x_full.index(g),
                    smem.y.index(g),
                    bh // call.H,
                    row + g * 64,
                    bh % call.H,
                )
        done += 1
        index = next_tile(call.order, index, after)


@gluon.jit
def _step(
    state,
    q,
    smem,
    bars,
    taken,
    k_scale_ptr,
    block,
    q_scale,
    bounds,
    score_layout: gl.constexpr,
    MASKED: gl.constexpr,
    CAUSAL: gl.constexpr,
):
    """The scores of one block of keys while the one before meets its values.

    `state` has the products of the block before, what they are scaled by and their maximum,
    new_M; sum_M and acc_MD are of the blocks in front of it, relative to max_M. bounds: the first
    row, and the number of keys.
    """
    acc_MD, new_M, product_MN, max_M, sum_M, k_scale, scale = state
    first_M, N = bounds
    BUFFERS: gl.constexpr = smem.k.shape[0]
    BLOCK_N: gl.constexpr = smem.k.shape[1]
    acc_layout: gl.constexpr = acc_MD.type.layout
    p_layout: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=acc_layout, k_width=4)
    none_MD = gl.zeros(acc_MD.shape, gl.float32, acc_layout)
    weight_MN, decay_M, sum_M = _weigh(product_MN, max_M, new_M, sum_M, scale)
    max_M = new_M
    p_MN = _operand(weight_MN, p_layout)
    scale = q_scale * k_scale
    k_scale = gl.load(k_scale_ptr + gl.maximum(block - 1, 0))  # of the next step
    buffer = taken % BUFFERS
    last = (taken - 1) % BUFFERS
    v = smem.v.index(last).permute((1, 0))
    mbarrier.wait(bars.k_full.index(buffer), (taken // BUFFERS) & 1)
    score = _products(q, smem.k.index(buffer), score_layout)
    mbarrier.wait(bars.v_full.index(last), ((taken - 1) // BUFFERS) & 1)
    fresh = warpgroup_mma(p_MN, v, none_MD, use_acc=False, is_async=True)
    score_MN = warpgroup_mma_wait(1, deps=(score,))
    mbarrier.arrive(bars.k_empty.index(buffer), count=1)
    product_MN, new_M = _largest(
        score_MN, max_M, scale, first_M, N, block * BLOCK_N, MASKED, CAUSAL
    )
    fresh_MD = warpgroup_mma_wait(0, deps=(fresh,))
    acc_MD = _join(acc_MD, decay_M, fresh_MD)
    mbarrier.arrive(bars.v_empty.index(last), count=1)
    return acc_MD, new_M, product_MN, max_M, sum_M, k_scale, scale


@gluon.jit
def _attend_tile(
    smem,
    bars,
    descs,
    call,
    tile,
    taken,
    phase,
    G: gl.constexpr,
    variant,
):
    """64 query rows against all their keys, from the last block to the first."""
    row, bh, blocks = tile
    BUFFERS: gl.constexpr = smem.k.shape[0]
    BLOCK_N: gl.constexpr = smem.k.shape[1]
    D: gl.constexpr = smem.k.shape[2]
    score_layout: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BLOCK_N, 32]
    )
    acc_layout: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, D, 32]
    )
    p_layout: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=acc_layout, k_width=4)
    row_layout: gl.constexpr = gl.SliceLayout(1, score_layout)
    first_M = row + G * 64
    k_scale_ptr = call.k_scale_ptr + bh * call.k_tiles
    q_scale = gl.load(
        call.q_scale_ptr
        + bh * call.q_tiles
        + gl.minimum(first_M // variant.Q_BLOCK, call.q_tiles - 1)
    )
    block = blocks - 1
    scale = q_scale * gl.load(k_scale_ptr + block)
    k_scale = gl.load(k_scale_ptr + gl.maximum(block - 1, 0))
    max_M = gl.full([64], _LEAST, gl.float32, row_layout)
    sum_M = gl.full([64], 0.0, gl.float32, row_layout)
    acc_MD = gl.zeros([64, D], gl.float32, acc_layout)
    q = smem.q.index(G)
    mbarrier.wait(bars.q_full, phase)
    buffer = taken % BUFFERS
    mbarrier.wait(bars.k_full.index(buffer), (taken // BUFFERS) & 1)
    score = _products(q, smem.k.index(buffer), score_layout)
    score_MN = warpgroup_mma_wait(0, deps=(score,))
    mbarrier.arrive(bars.k_empty.index(buffer), count=1)
    product_MN, new_M = _largest(
        score_MN,
        max_M,
        scale,
        first_M,
        call.N,
        block * BLOCK_N,
        variant.CAUSAL or variant.RAGGED,
        variant.CAUSAL,
    )
    taken += 1
    state = (acc_MD, new_M, product_MN, max_M, sum_M, k_scale, scale)
    bounds = (first_M, call.N)
    if variant.CAUSAL and (_GROUPS * 64 > BLOCK_N or _GROUPS * 64 % BLOCK_N != 0):
        while block * BLOCK_N > row:
            block -= 1
            state = _step(
                state,
                q,
                smem,
                bars,
                taken,
                k_scale_ptr,
                block,
                q_scale,
                bounds,
                score_layout,
                True,
                True,
            )
            taken += 1
    for i in range(block):
        block -= 1
        state = _step(
            state,
            q,
            smem,
            bars,
            taken,
            k_scale_ptr,
            block,
            q_scale,
            bounds,
            score_layout,
            False,
            variant.CAUSAL,
        )
        taken += 1
    acc_MD, new_M, product_MN, max_M, sum_M, k_scale, scale = state
    mbarrier.arrive(bars.q_empty, count=1)
    last = (taken - 1) % BUFFERS
    weight_MN, decay_M, sum_M = _weigh(product_MN, max_M, new_M, sum_M, scale)
    mbarrier.wait(bars.v_full.index(last), ((taken - 1) // BUFFERS) & 1)
    fresh_MD = warpgroup_mma(
        _operand(weight_MN, p_layout),
        smem.v.index(last).permute((1, 0)),
        gl.zeros([64, D], gl.float32, acc_layout),
        use_acc=False,
    )
    mbarrier.arrive(bars.v_empty.index(last), count=1)
    acc_MD = _join(acc_MD, decay_M, fresh_MD)
    d_D = gl.arange(0, D, gl.SliceLayout(0, acc_layout))
    worth_D = gl.load(call.v_scale_ptr + bh * D + d_D)
    share_M = gl.convert_layout(1.0 / sum_M, gl.SliceLayout(1, acc_layout))
    o_MD = acc_MD * gl.expand_dims(share_M, 1) * gl.expand_dims(worth_D, 0)
    y = smem.y.index(G)
    if variant.FINISH is not None:
        begun = variant.BEGIN(call.extra, bh // call.H, variant.KIND)
        settled = variant.SETTLE(begun, call.extra, variant.KIND)
        mbarrier.wait(bars.x_full.index(G), phase)
        o_MD = variant.FINISH(settled, o_MD, y.load(acc_layout).to(gl.float32))
    store(descs.y, y, o_MD, bh // call.H, first_M, bh % call.H)
    if variant.FINISH is not None:
        mbarrier.arrive(bars.x_empty.index(G), count=1)
    return taken


@gluon.jit
def _consume(
    smem,
    bars,
    descs,
    call,
    G: gl.constexpr,
    variant,
):
    """Tile after tile, in step with the producer."""
    BLOCK_N: gl.constexpr = smem.k.shape[1]
    taken = 0
    done = 0
    index = first_tile(call.order)
    while index < call.total:
        after = listed(call.order, done + 1)  # it arrives during this tile
        row, bh, blocks = _tile(index, call.N, call.H, BLOCK_N, variant.CAUSAL)
        taken = _attend_tile(
            smem,
            bars,
            descs,
            call,
            (row, bh, blocks),
            taken,
            done & 1,
            G,
            variant,
        )
        done += 1
        index = next_tile(call.order, index, after)


@gluon.jit(do_not_specialize=("N", "H", "total", "q_rows", "q_tiles", "k_tiles"))
def attend(
    q_desc,
    k_desc,
    v_desc,
    x_desc,
    y_desc,
    q_scale_ptr,
    k_scale_ptr,
    v_scale_ptr,
    order_ptr,
    extra,
    N,
    H,
    total,
    q_rows,
    q_tiles,
    k_tiles,
    BUFFERS: gl.constexpr,
    REGISTERS: gl.constexpr,
    Q_BLOCK: gl.constexpr,
    CAUSAL: gl.constexpr,
    RAGGED: gl.constexpr,
    BEGIN: gl.constexpr,
    SETTLE: gl.constexpr,
    FINISH: gl.constexpr,
    KIND: gl.constexpr,
):
    D: gl.constexpr = k_desc.block_type.shape[1]
    BLOCK_N: gl.constexpr = k_desc.block_type.shape[0]
    dtype: gl.constexpr = y_desc.dtype
    y_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([64, D], dtype)
    q_smem = gl.allocate_shared_memory(gl.int8, [_GROUPS, 64, D], q_desc.layout)
    k_smem = gl.allocate_shared_memory(gl.int8, [BUFFERS, BLOCK_N, D], k_desc.layout)
    v_smem = gl.allocate_shared_memory(gl.float8e4nv, [BUFFERS, D, BLOCK_N], v_desc.layout)
    y_smem = gl.allocate_shared_memory(dtype, [_GROUPS, 64, D], y_layout)
    q_full = new_barrier()
    q_empty = new_barrier()
    k_full = new_barriers(BUFFERS)
    k_empty = new_barriers(BUFFERS)
    v_full = new_barriers(BUFFERS)
    v_empty = new_barriers(BUFFERS)
    x_full = new_barriers(_GROUPS)
    x_empty = new_barriers(_GROUPS)
    arm(q_full, 1)
    arm(q_empty, _GROUPS)
    arm(k_full, 1)
    arm(k_empty, _GROUPS)
    arm(v_full, 1)
    arm(v_empty, _GROUPS)
    arm(x_full, 1)
    arm(x_empty, 1)
    fence_async_shared()
    smem = Tiles(q_smem, k_smem, v_smem, y_smem, None)
    bars = Barriers(q_full, q_empty, k_full, k_empty, v_full, v_empty, x_full, x_empty, None, None)
    descs = Descriptors(q_desc, k_desc, v_desc, x_desc, y_desc)
    call = Call(
        N,
        H,
        total,
        order_ptr,
        q_rows,
        q_tiles,
        k_tiles,
        q_scale_ptr,
        k_scale_ptr,
        v_scale_ptr,
        extra,
    )
    SKIPS: gl.constexpr = FINISH is not None
    gl.warp_specialize(
        [
            (
                _consume,
                (
                    smem,
                    bars,
                    descs,
                    call,
                    0,
                    Variant(Q_BLOCK, CAUSAL, RAGGED, BEGIN, SETTLE, FINISH, KIND),
                ),
            ),
            (
                _consume,
                (
                    smem,
                    bars,
                    descs,
                    call,
                    1,
                    Variant(Q_BLOCK, CAUSAL, RAGGED, BEGIN, SETTLE, FINISH, KIND),
                ),
            ),
            (_produce, (smem, bars, descs, call, CAUSAL, SKIPS)),
        ],
        [4, 1],
        [REGISTERS, 24],
    )


@dataclass(frozen=True)
class Int8HopperTile:
    """How the 8-bit Hopper forward cuts up its work; keys at a time are the blocks of `Packed`.

    buffers: blocks of k and of v that fit in shared memory at a time.
    registers: of a consumer's thread.
    """

    buffers: int
    registers: int


TILE = Int8HopperTile(4, 240)  # 1.3 times the `tl` kernel at D = 128; none beats that at 64


def suits(packed: Packed, x: Tensor | None, y: Tensor) -> bool:
    """Whether the copy engine takes these and the kernel has such blocks."""
    if packed.D not in (64, 128) or packed.config.block_n not in (64, 128):
        return False
    if packed.config.block_m % 64 or packed.v8.dtype != torch.float8_e4m3fn:
        return False
    return all(tensor is None or copy_engine_takes(tensor) for tensor in (x, y))


def _of_rows(tensor: Tensor, rows: int) -> TensorDescriptor:
    """All rows of a contiguous 8-bit tensor, `rows` at a time."""
    N = tensor.shape[-1]
    block = [rows, N]
    element = {torch.int8: gl.int8, torch.float8_e4m3fn: gl.float8e4nv}[tensor.dtype]
    layout = gl.NVMMASharedLayout.get_default_for(block, element)
    return TensorDescriptor(tensor, [tensor.numel() // N, N], [N, 1], block, layout)


def attend_launch(
    packed: Packed,
    y: Tensor,
    *,
    causal: bool,
    hook: HopperHook,
    tile: Int8HopperTile,
) -> Launch:
    """The launch that `rcm_int8.attend_launch` describes, by the kernel for Hopper."""
    config, rows, heads = packed.config, _GROUPS.value * 64, packed.H * packed.B
    total = ceil_div(packed.N, rows) * heads
    programs = min(total, sm_count(packed.q8.device))
    cut: dict[str, int] = {"rows": rows, "keys": config.block_n, "programs": programs}
    size = packed.k8.numel() + packed.v8.numel()
    order = order_of(packed.q8, heads, packed.N, causal=causal, key_bytes=size, **cut)
    args: dict[str, Any] = {
        "q_desc": _of_rows(packed.q8, 64),
        "k_desc": _of_rows(packed.k8, config.block_n),
        "v_desc": _of_rows(packed.v8, packed.D),
        "x_desc": of_heads(hook.x, packed.H),
        "y_desc": of_heads(y, packed.H),
        "q_scale_ptr": packed.q_scale,
        "k_scale_ptr": packed.k_scale,
        "v_scale_ptr": packed.v_scale,
        "order_ptr": order,
        "extra": hook.extra,
        "N": packed.N,
        "H": packed.H,
        "total": total,
        "q_rows": packed.q8.shape[1],
        "q_tiles": packed.q_scale.shape[1],
        "k_tiles": packed.k_scale.shape[1],
    }
    constexprs = {
        "BUFFERS": tile.buffers,
        "REGISTERS": tile.registers,
        "Q_BLOCK": config.block_m,
        "CAUSAL": causal,
        "RAGGED": not causal and packed.N % config.block_n != 0,
        **hook.constexprs(),
    }
    return Launch(attend, (programs,), args, constexprs, {"num_warps": 4}, own=order)
