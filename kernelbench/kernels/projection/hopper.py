"""The forward of `project_and_skip` for Hopper (sm_90): warps that load and warps that multiply.

A program is one producer warp and two consumer warpgroups of 64 rows each, which share the weights.
The producer copies tiles of a, the weights and x to shared memory (TMA), as far ahead as buffers
allow. y leaves by the buffer that its x tile came in. Programs stay and take tile after tile, so
that the next tile's loads run during this one's epilogue.

Shapes: as in `projection`; the rows of a group are of one sample. Gluon has no interpreter: on a
CPU the `tl` kernel of `projection` computes the same function.
"""

from dataclasses import dataclass
from typing import Any

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

from kernelbench.kernels.attention.tiles import copy_engine_takes
from kernelbench.kernels.launch import Launch, ceil_div, sm_count
from kernelbench.kernels.rcm import RcmFormula, coefficients

ROWS = 64  # of a consumer warpgroup
GROUPS = 2
STEP = 64  # channels of a at a time, and of x and y in one copy
REGISTERS = 240  # of a consumer's thread
_ROWS = gl.constexpr(ROWS)
_GROUPS = gl.constexpr(GROUPS)
_STEP = gl.constexpr(STEP)
_REGISTERS = gl.constexpr(REGISTERS)
_coefficients = gluon.jit(coefficients.fn)


@gluon.jit
def _place(index, C, BLOCK_C: gl.constexpr):
    """First row and first channel of a tile; those of the same rows follow each other."""
    tiles_C = (C + BLOCK_C - 1) // BLOCK_C
    return index // tiles_C * (_GROUPS * _ROWS), index % tiles_C * BLOCK_C


@gluon.jit
def _load_step(smem, bars, descs, row, c, k, taken, N):
    a_smem, weight_smem, y_smem = smem
    full, empty, x_full, x_empty = bars
    a_desc, weight_desc, x_desc, y_desc = descs
    STAGES: gl.constexpr = weight_smem.shape[0]
    BLOCK_C: gl.constexpr = weight_smem.shape[1]
    dtype: gl.constexpr = a_smem.dtype
    layout: gl.constexpr = a_desc.layout
    stage = taken % STAGES
    mbarrier.wait(empty.index(stage), ((taken // STAGES) & 1) ^ 1)
    mbarrier.expect(full.index(stage), (_GROUPS * _ROWS + BLOCK_C) * _STEP * 2)
    for g in gl.static_range(_GROUPS):
        first = row + g * _ROWS
        tma.async_copy_global_to_shared(
            a_desc,
            [first // N, first % N, k * _STEP],
            full.index(stage),
            a_smem.index(stage * _GROUPS + g)._reinterpret(dtype, [1, _ROWS, _STEP], layout),
        )
    tma.async_copy_global_to_shared(
        weight_desc, [c, k * _STEP], full.index(stage), weight_smem.index(stage)
    )


@gluon.jit
def _produce(smem, bars, descs, scalars, STEPS: gl.constexpr):
    a_smem, weight_smem, y_smem = smem
    full, empty, x_full, x_empty = bars
    a_desc, weight_desc, x_desc, y_desc = descs
    B, N, C, total, t_stride, sigma = scalars
    STAGES: gl.constexpr = weight_smem.shape[0]
    BLOCK_C: gl.constexpr = weight_smem.shape[1]
    CHUNKS: gl.constexpr = BLOCK_C // _STEP
    AHEAD: gl.constexpr = min(STAGES, STEPS)
    dtype: gl.constexpr = a_smem.dtype
    layout: gl.constexpr = a_desc.layout
    taken = 0
    done = 0
    for index in range(gl.program_id(0), total, gl.num_programs(0)):
        row, c = _place(index, C, BLOCK_C)
        for k in range(AHEAD):
            _load_step(smem, bars, descs, row, c, k, taken + k, N)
        if x_desc is not None:
            for g in gl.static_range(_GROUPS):
                first = row + g * _ROWS
                mbarrier.wait(x_empty.index(g), done & 1)
                mbarrier.expect(x_full.index(g), _ROWS * BLOCK_C * 2)
                for i in gl.static_range(CHUNKS):
                    tma.async_copy_global_to_shared(
                        x_desc,
                        [first // N, first % N, c + i * _STEP],
                        x_full.index(g),
                        y_smem.index(g * CHUNKS + i)._reinterpret(dtype, [1, _ROWS, _STEP], layout),
                    )
        for k in range(AHEAD, STEPS):
            _load_step(smem, bars, descs, row, c, k, taken + k, N)
        taken += STEPS
        done += 1


@gluon.jit
def _halved(acc_MC):
    """The left and the right channels of a tile, each laid out as a product of its width."""
    HALF: gl.constexpr = acc_MC.shape[1] // 2
    layout: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, HALF, 16]
    )
    left_MC, right_MC = acc_MC.reshape([_ROWS, 2, HALF]).permute(0, 2, 1).split()
    return (
        gl.convert_layout(left_MC, layout, assert_trivial=True),
        gl.convert_layout(right_MC, layout, assert_trivial=True),
    )


@gluon.jit
def _finish(acc_MC, bias_C, y, y_desc, b, n, c, c_skip, c_out, SKIPS: gl.constexpr):
    """_STEP channels of y from the product and from what lies in y's buffer, x."""
    layout: gl.constexpr = acc_MC.type.layout
    y_layout: gl.constexpr = y_desc.layout
    dtype: gl.constexpr = y.dtype
    if bias_C is not None:
        acc_MC += gl.expand_dims(bias_C.to(gl.float32), 0)
    if SKIPS:
        y_MC = c_skip * y.load(layout).to(gl.float32)
        acc_MC = gl.where(c_out == 0.0, y_MC, y_MC + c_out * acc_MC)  # x itself, even -0
    y.store(acc_MC.to(dtype))
    fence_async_shared()
    tma.async_copy_shared_to_global(
        y_desc, [b, n, c], y._reinterpret(dtype, [1, _ROWS, _STEP], y_layout)
    )


@gluon.jit
def _bias(bias_ptr, c, C):
    """The bias of _STEP channels, laid out as what it is added to; beyond C it does not matter."""
    if bias_ptr is not None:
        layout: gl.constexpr = gl.NVMMADistributedLayout(
            version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, _STEP, 16]
        )
        bias_C = gl.load(
            bias_ptr + gl.minimum(c, C - _STEP) + gl.arange(0, _STEP, gl.SliceLayout(0, layout))
        )
    else:
        bias_C = None
    return bias_C


@gluon.jit
def _consume(
    smem,
    bars,
    descs,
    scalars,
    bias_ptr,
    t_ptr,
    STEPS: gl.constexpr,
    PARAMETRIZATION: gl.constexpr,
    G: gl.constexpr,
):
    """Tile after tile, in step with the producer."""
    a_smem, weight_smem, y_smem = smem
    full, empty, x_full, x_empty = bars
    a_desc, weight_desc, x_desc, y_desc = descs
    B, N, C, total, t_stride, sigma = scalars
    STAGES: gl.constexpr = weight_smem.shape[0]
    BLOCK_C: gl.constexpr = weight_smem.shape[1]
    CHUNKS: gl.constexpr = BLOCK_C // _STEP
    SKIPS: gl.constexpr = PARAMETRIZATION != "none"
    layout: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BLOCK_C, 16]
    )
    taken = 0
    done = 0
    for index in range(gl.program_id(0), total, gl.num_programs(0)):
        row, c = _place(index, C, BLOCK_C)
        first = row + G * _ROWS
        b = first // N
        n = first % N
        stage = taken % STAGES
        mbarrier.wait(full.index(stage), (taken // STAGES) & 1)
        acc = warpgroup_mma(
            a_smem.index(stage * _GROUPS + G),
            weight_smem.index(stage).permute((1, 0)),
            gl.zeros([_ROWS, BLOCK_C], gl.float32, layout),
            use_acc=False,
            is_async=True,
        )
        tma.store_wait(0)  # the last y has left its buffer
        if SKIPS:
            mbarrier.arrive(x_empty.index(G), count=1)
            last_b = gl.minimum(b, B - 1)  # rows beyond the last sample are not stored
            c_skip, c_out, _, _ = _coefficients(
                t_ptr, last_b.to(gl.int64), t_stride, sigma, PARAMETRIZATION
            )
        else:
            c_skip = 0.0
            c_out = 1.0
        acc = warpgroup_mma_wait(1, deps=(acc,))
        for k in range(1, STEPS):
            last = stage
            stage = (taken + k) % STAGES
            mbarrier.wait(full.index(stage), ((taken + k) // STAGES) & 1)
            acc = warpgroup_mma(
                a_smem.index(stage * _GROUPS + G),
                weight_smem.index(stage).permute((1, 0)),
                acc,
                is_async=True,
            )
            acc = warpgroup_mma_wait(1, deps=(acc,))
            mbarrier.arrive(empty.index(last), count=1)
        taken += STEPS
        bias0_C = _bias(bias_ptr, c, C)
        bias1_C = _bias(bias_ptr, c + _STEP, C)
        if CHUNKS == 4:
            bias2_C = _bias(bias_ptr, c + 2 * _STEP, C)
            bias3_C = _bias(bias_ptr, c + 3 * _STEP, C)
        acc_MC = warpgroup_mma_wait(0, deps=(acc,))
        mbarrier.arrive(empty.index(stage), count=1)
        if SKIPS:
            mbarrier.wait(x_full.index(G), done & 1)
        y0 = y_smem.index(G * CHUNKS)
        y1 = y_smem.index(G * CHUNKS + 1)
        left_MC, right_MC = _halved(acc_MC)
        if CHUNKS == 4:
            y2 = y_smem.index(G * CHUNKS + 2)
            y3 = y_smem.index(G * CHUNKS + 3)
            acc0_MC, acc1_MC = _halved(left_MC)
            acc2_MC, acc3_MC = _halved(right_MC)
            _finish(acc0_MC, bias0_C, y0, y_desc, b, n, c, c_skip, c_out, SKIPS)
            _finish(acc1_MC, bias1_C, y1, y_desc, b, n, c + _STEP, c_skip, c_out, SKIPS)
            _finish(acc2_MC, bias2_C, y2, y_desc, b, n, c + 2 * _STEP, c_skip, c_out, SKIPS)
            _finish(acc3_MC, bias3_C, y3, y_desc, b, n, c + 3 * _STEP, c_skip, c_out, SKIPS)
        else:
            _finish(left_MC, bias0_C, y0, y_desc, b, n, c, c_skip, c_out, SKIPS)
            _finish(right_MC, bias1_C, y1, y_desc, b, n, c + _STEP, c_skip, c_out, SKIPS)
        done += 1
    tma.store_wait(0)


@gluon.jit
def project(
    a_desc,
    weight_desc,
    x_desc,
    y_desc,
    bias_ptr,
    t_ptr,
    t_stride,
    sigma,
    B,
    N,
    C,
    total,
    BLOCK_C: gl.constexpr,
    STAGES: gl.constexpr,
    STEPS: gl.constexpr,
    PARAMETRIZATION: gl.constexpr,
):
    """Tiles of two times 64 rows and BLOCK_C channels of y, 128 or 256; K is STEPS times 64."""
    dtype: gl.constexpr = a_desc.dtype
    CHUNKS: gl.constexpr = BLOCK_C // _STEP
    a_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([_ROWS, _STEP], dtype)
    a_smem = gl.allocate_shared_memory(dtype, [STAGES * _GROUPS, _ROWS, _STEP], a_layout)
    weight_smem = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_C, _STEP], weight_desc.layout)
    y_smem = gl.allocate_shared_memory(dtype, [_GROUPS * CHUNKS, _ROWS, _STEP], a_layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    x_full = gl.allocate_shared_memory(gl.int64, [_GROUPS, 1], mbarrier.MBarrierLayout())
    x_empty = gl.allocate_shared_memory(gl.int64, [_GROUPS, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=_GROUPS)
    for g in gl.static_range(_GROUPS):
        mbarrier.init(x_full.index(g), count=1)
        mbarrier.init(x_empty.index(g), count=1)
    fence_async_shared()
    smem = (a_smem, weight_smem, y_smem)
    bars = (full, empty, x_full, x_empty)
    descs = (a_desc, weight_desc, x_desc, y_desc)
    scalars = (B, N, C, total, t_stride, sigma)
    gl.warp_specialize(
        [
            (_consume, (smem, bars, descs, scalars, bias_ptr, t_ptr, STEPS, PARAMETRIZATION, 0)),
            (_consume, (smem, bars, descs, scalars, bias_ptr, t_ptr, STEPS, PARAMETRIZATION, 1)),
            (_produce, (smem, bars, descs, scalars, STEPS)),
        ],
        [4, 1],
        [_REGISTERS, 24],
    )


@dataclass(frozen=True)
class HopperProjectionTile:
    """How the Hopper forward cuts up its work.

    block_c: channels of y that a tile of 128 rows has, 128 or 256.
    stages: 64 channels of a and of the weights each, that are on their way or in use.
    """

    block_c: int
    stages: int

    def __post_init__(self) -> None:
        if self.block_c not in (128, 256) or self.stages < 2:
            raise ValueError(f"{self}: block_c must be 128 or 256 and stages at least 2")

    @property
    def shared_bytes(self) -> int:
        """Of its buffers: 2 bytes an element."""
        rows = GROUPS * ROWS
        return 2 * (self.stages * (rows + self.block_c) * STEP + rows * self.block_c)

    def tiles(self, M: int, C: int) -> int:
        return ceil_div(M, GROUPS * ROWS) * ceil_div(C, self.block_c)


def suits(a: Tensor, weight: Tensor, x: Tensor | None) -> bool:
    """Whether the kernel takes tensors: bf16 or fp16, N, K and C in multiples of 64, x like a, and
    such as the copy engine takes."""
    if a.dtype not in (torch.bfloat16, torch.float16) or a.numel() == 0:
        return False
    if a.shape[1] % ROWS or a.shape[2] % STEP or weight.shape[0] % STEP:
        return False
    if x is not None and x.dtype != a.dtype:
        return False
    return all(tensor is None or copy_engine_takes(tensor) for tensor in (a, weight, x))


def _descriptor(tensor: Tensor, block: list[int]) -> TensorDescriptor:
    strides = [  # that of one of its kind means nothing
        step if n > 1 else tensor.shape[-1]
        for n, step in zip(tensor.shape, tensor.stride(), strict=True)
    ]
    strides[-1] = 1
    element = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}[tensor.dtype]
    layout = gl.NVMMASharedLayout.get_default_for(block, element)
    return TensorDescriptor(tensor, list(tensor.shape), strides, block, layout)


def forward_launch(
    a: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor | None,
    t: Tensor | None,
    y: Tensor,
    *,
    formula: RcmFormula,
    tile: HopperProjectionTile,
) -> Launch:
    """The launch that `projection.forward_launch` describes, by the kernel for Hopper."""
    B, N, K = a.shape
    C = weight.shape[0]
    rows = [1, ROWS, STEP]
    total = tile.tiles(B * N, C)
    args: dict[str, Any] = {
        "a_desc": _descriptor(a, rows),
        "weight_desc": _descriptor(weight, [tile.block_c, STEP]),
        "x_desc": None if x is None else _descriptor(x, rows),
        "y_desc": _descriptor(y, rows),
        "bias_ptr": bias,
        "t_ptr": t,
        "t_stride": None if t is None else t.stride(0),
        "sigma": None if t is None else formula.sigma_data,
        "B": B,
        "N": N,
        "C": C,
        "total": total,
    }
    constexprs = {
        "BLOCK_C": tile.block_c,
        "STAGES": tile.stages,
        "STEPS": K // STEP,
        "PARAMETRIZATION": "none" if x is None else formula.parametrization,
    }
    return Launch(project, (min(total, sm_count(a.device)),), args, constexprs, {"num_warps": 4})
