"""Between global and shared memory on Hopper: what the copy engine reads and writes, the barriers
that tell when it has, and which tensors it takes.

Shapes: as in `attention.forward`.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from kernelbench.kernels.attention.tiles import Hook, copy_engine_takes

LOG2E = gl.constexpr(1.4426950408889634)
HEADS = (64, 128)  # elements of one, for which these kernels are made
_barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier  # since 3.7, and before


@gluon.jit
def new_barrier():
    return gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())


@gluon.jit
def new_barriers(BATCH: gl.constexpr):
    return gl.allocate_shared_memory(gl.int64, [BATCH, 1], mbarrier.MBarrierLayout())


@gluon.jit
def arm(bars, COUNT: gl.constexpr):
    """Let a phase of a barrier, or of each of some barriers, end once COUNT have arrived."""
    BATCH: gl.constexpr = bars.shape[0]
    if len(bars.shape) == 1:
        mbarrier.init(bars, count=COUNT)
    else:
        for i in gl.static_range(BATCH):
            mbarrier.init(bars.index(i), count=COUNT)


@gluon.jit
def listed(order, done):
    """The tile that `order` has for this program when it has done so many: see `order.order_of`.
    Without one nothing that is used."""
    index = done
    if order is not None:
        index = gl.load(order + done * gl.num_programs(0) + gl.program_id(0))
    return index


@gluon.jit
def first_tile(order):
    """The tile that a program begins with: by `order`, or where there is none in turn."""
    index = gl.program_id(0)
    if order is not None:
        index = listed(order, 0)
    return index


@gluon.jit
def next_tile(order, index, after):
    """The tile behind tile `index`. after: what `listed` told while that one was worked on."""
    if order is not None:
        index = after
    else:
        index += gl.num_programs(0)
    return index


@gluon.jit
def load(desc, bar, smem, b, row, h):
    """Queue a tile (rows, D) of one head; rows beyond N arrive as zeros."""
    tma.async_copy_global_to_shared(
        desc,
        [b, row, h, 0],
        bar,
        smem._reinterpret(desc.dtype, [1, smem.shape[0], 1, smem.shape[1]], desc.layout),
    )


@gluon.jit
def store(desc, smem, tile, b, row, h):
    """Write a tile (rows, D) of one head by way of `smem`; rows beyond N are left out."""
    smem.store(tile.to(smem.dtype))
    fence_async_shared()
    tma.async_copy_shared_to_global(
        desc,
        [b, row, h, 0],
        smem._reinterpret(desc.dtype, [1, smem.shape[0], 1, smem.shape[1]], desc.layout),
    )
    tma.store_wait(0)


@gluon.jit
def store_rows(smem, tile, ptr, row, h, H, end):
    """Write the rows of a tile that are in front of `end` to ptr, (N,H,D), by way of `smem`."""
    D: gl.constexpr = tile.shape[1]
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    smem.store(tile.to(smem.dtype))
    row_M = row + gl.arange(0, 64, gl.SliceLayout(1, layout))
    column_D = gl.arange(0, D, gl.SliceLayout(0, layout))
    start_M = (row_M.to(gl.int64) * H + h) * D
    at = gl.expand_dims(start_M, 1) + gl.expand_dims(column_D, 0)
    inside = gl.expand_dims(row_M < end, 1) & gl.expand_dims(column_D < D, 0)
    gl.store(ptr + at, smem.load(layout), mask=inside)


@gluon.jit
def publish():
    """What the threads of a warpgroup have written, for products that it queues from here on: each
    fences what it wrote, and then all have."""
    fence_async_shared()
    _barrier()


@gluon.jit
def forget_rows(smem, rows):
    """Zeros in the rows of a tile (R,D), swizzled by 128 bytes, from `rows` on; `publish` them. A
    loop, and not unrolled: its addresses would fill the registers of what comes after."""
    COLUMNS: gl.constexpr = smem.shape[1] // 64
    PARTS: gl.constexpr = smem.shape[0] // 16
    part_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([16, 64], smem.dtype)
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    parts = smem._reinterpret(smem.dtype, [COLUMNS * PARTS, 16, 64], part_layout)
    zeros = gl.full([16, 64], 0, smem.dtype, layout)
    row = gl.expand_dims(gl.arange(0, 16, gl.SliceLayout(1, layout)), 1)
    for i in range(gl.maximum(rows, 0) // 16, PARTS):
        for column in gl.static_range(COLUMNS):
            part = parts.index(column * PARTS + i)
            part.store(gl.where(i * 16 + row < rows, part.load(layout), zeros))


@gluon.jit
def load_statistic(desc, bar, smem, bh, row):
    """Queue a statistic of the rows of a tile; rows beyond N arrive as zeros."""
    tma.async_copy_global_to_shared(
        desc, [bh, row], bar, smem._reinterpret(desc.dtype, [1, smem.shape[0]], desc.layout)
    )


@cache
def in_gluon(function: Any) -> Any:
    """A function made by `triton.jit` for a kernel in Gluon; None for None."""
    return function and gluon.jit(function.fn)


def factor_of(hook: Hook) -> dict[str, Any]:
    """The constexprs of a kernel whose gradients a hook multiplies."""
    return {"FACTOR": in_gluon(hook.function), "KIND": hook.kind}


def suits(*tensors: Tensor | None) -> bool:
    """Whether these kernels take q, the first, and the copy engine takes all of the tensors."""
    q = tensors[0]
    assert q is not None
    if q.dtype not in (torch.bfloat16, torch.float16) or q.shape[3] not in HEADS:
        return False
    return all(tensor is None or copy_engine_takes(tensor) for tensor in tensors)


def descriptor(tensor: Tensor, rows: int, H: int | None = None) -> TensorDescriptor:
    """Of `rows` rows of a head at a time. tensor: (B,N,H,D), (N,H,D), or (B,N,H·D) where H is
    given."""
    view = tensor if H is None else tensor.unflatten(2, (H, -1))
    view = view if view.dim() == 4 else view.unsqueeze(0)
    B, N, H, D = view.shape
    block = [1, rows, 1, D]
    sizes = zip(view.shape, view.stride(), strict=True)
    strides = [step if n > 1 else D for n, step in sizes]  # the stride of an axis of 1 is arbitrary
    strides[-1] = 1
    element = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}[tensor.dtype]
    layout = gl.NVMMASharedLayout.get_default_for(block, element)
    return TensorDescriptor(tensor, [B, N, H, D], strides, block, layout)


def of_heads(tensor: Tensor | None, H: int) -> TensorDescriptor | None:
    """Of 64 rows of a head of (B,N,H·D), or (B,N,H,D), at a time; None for None."""
    if tensor is None:
        return None
    return descriptor(tensor, 64, H if tensor.dim() == 3 else None)


def of_statistic(statistic: Tensor, rows: int) -> TensorDescriptor:
    """Of so many rows of a head's statistic, (B,H,N), at a time."""
    B, H, N = statistic.shape
    layout = gl.NVMMASharedLayout(swizzle_byte_width=0, element_bitwidth=32, rank=2)
    return TensorDescriptor(statistic, [B * H, N], [statistic.stride(1), 1], [1, rows], layout)
