"""What kernels of attention share: rows of a head in memory, tiles of them, statistics of rows.

Shapes: R rows of a tile, D elements of a head, H heads, B samples, N rows of a head.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Rows(NamedTuple):
    """The N rows of a head in memory, `stride` elements apart."""

    ptr: Any
    stride: Any
    N: Any


class Listed(NamedTuple):
    """N rows of a head in memory that a list names: `rows`, of int32, in multiples of `stride`."""

    ptr: Any
    stride: Any
    N: Any
    rows: Any


class Variant(NamedTuple):
    """What a loop over tiles is compiled for: BLOCK rows at a time, of D elements. BLIND: some
    query may see no key. VISIBLE: see `Mask`. LOAD: what reads the tiles of keys, as `load_tile`
    does, from what has N, how many there are, and all else that LOAD needs."""

    D: Any
    BLOCK: Any
    BLOCK_D: Any
    CAUSAL: Any
    RAGGED: Any
    BLIND: Any
    VISIBLE: Any
    LOAD: Any


class Tile(NamedTuple):
    """The rows of a head that a program computes: the first of them, head, sample; where the head
    begins in what is contiguous; how many rows and heads there are. statistic: where the head
    begins in a statistic. start: see `places.one_a_sample`. lse: of these rows, to base 2. A kernel
    whose hooks need none of these three leaves them out."""

    row: Any
    h: Any
    b: Any
    out: Any
    N: Any
    H: Any
    statistic: Any = None
    start: Any = None
    lse: Any = None


class Work(NamedTuple):
    """What a hook is compiled for: ROWS rows of D elements."""

    D: Any
    ROWS: Any
    BLOCK_D: Any
    RAGGED: Any
    WIDE: Any


@dataclass(frozen=True)
class Hook:
    """What a kernel of attention does besides.

    function: made by `triton.jit`, called where the kernel says; None for nothing.
    extra: what it reads and writes, a NamedTuple of tensors and numbers. kind: what it is compiled
        for. rows: the (B,N,..) tensors among `extra`, by whose strides rows are found.
    """

    function: Any = None
    extra: tuple[Any, ...] | None = None
    kind: str = ""
    rows: tuple[Tensor | None, ...] = ()


NO_HOOK = Hook()


@dataclass(frozen=True)
class Mask:
    """Which keys a query sees, besides that it sees none beyond the last and, where causal, none
    behind its own.

    Functions made by `triton.jit`, of positions among keys: the last query's is that of the last
    key, or, of as many queries as keys, a query's is its number.
    visible: VISIBLE(extra, query, key), whether; both are tensors that broadcast.
    keys: KEYS(extra, first, end), which keys, first (at least 0) and end, any of those queries may
        see.
    queries: QUERIES(extra, first, end), which queries may see any of those keys.
    extra: what they read, a NamedTuple of tensors and numbers; None for the rows of the keys, as
        WALK (see `places`) has them.
    """

    visible: Any = None
    keys: Any = None
    queries: Any = None
    extra: tuple[Any, ...] | None = None


NO_MASK = Mask()


@triton.jit
def tile_at(rows, start, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    """Where the elements of ROWS rows are, from number `start` on, of `Rows` or `Listed`."""
    row_R = tl.arange(0, ROWS)
    d_D = tl.arange(0, BLOCK_D)
    if len(rows) == 4:  # `Listed`
        row_R += start
        at_R = tl.load(rows.rows + row_R, mask=row_R < rows.N, other=0).to(tl.int64)
        ptr_RD = rows.ptr + (at_R * rows.stride)[:, None] + d_D[None, :]
    else:
        first = rows.ptr + tl.cast(start, tl.int64) * rows.stride
        ptr_RD = first + (row_R[:, None] * rows.stride + d_D[None, :])
    return ptr_RD


@triton.jit
def load_tile(
    rows,
    start,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    RAGGED: tl.constexpr,
):
    """ROWS rows of D elements from row `start` on, of `Rows` or `Listed`; zeros beyond N, where
    RAGGED, and beyond D."""
    row_R = tl.arange(0, ROWS)
    d_D = tl.arange(0, BLOCK_D)
    ptr_RD = tile_at(rows, start, ROWS, BLOCK_D)
    if RAGGED:
        mask_RD = (start + row_R < rows.N)[:, None] & (d_D < D)[None, :]
        tile_RD = tl.load(ptr_RD, mask=mask_RD, other=0.0)
    elif D < BLOCK_D:
        tile_RD = tl.load(ptr_RD, mask=(d_D < D)[None, :], other=0.0)
    else:
        tile_RD = tl.load(ptr_RD)
    return tile_RD


@triton.jit
def store_tile(
    rows,
    tile_RD,
    start,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    RAGGED: tl.constexpr,
):
    row_R = tl.arange(0, ROWS)
    d_D = tl.arange(0, BLOCK_D)
    ptr_RD = tile_at(rows, start, ROWS, BLOCK_D)
    tile_RD = tile_RD.to(rows.ptr.dtype.element_ty)
    if RAGGED:
        tl.store(ptr_RD, tile_RD, mask=(start + row_R < rows.N)[:, None] & (d_D < D)[None, :])
    elif D < BLOCK_D:
        tl.store(ptr_RD, tile_RD, mask=(d_D < D)[None, :])
    else:
        tl.store(ptr_RD, tile_RD)


@triton.jit
def finish(o_ptr, o_MD, extra, tile, FINISH: tl.constexpr, KIND: tl.constexpr, work):
    """Store a tile's result where it is wanted, and hand it to the hook, if there is one."""
    if o_ptr is not None:
        o = Rows(o_ptr + tile.out, widened(tile.H * work.D, work.WIDE), tile.N)
        store_tile(o, o_MD, tile.row, work.D, work.ROWS, work.BLOCK_D, work.RAGGED)
    if FINISH is not None:
        FINISH(extra, o_MD, tile, KIND, work)


@triton.jit
def where_rows(rows, row_R):
    """Where a statistic of these rows is, of `Rows` or `Listed`."""
    if len(rows) == 4:  # `Listed`
        at_R = tl.load(rows.rows + row_R, mask=row_R < rows.N, other=0)
        ptr_R = rows.ptr + at_R * rows.stride
    else:
        ptr_R = rows.ptr + row_R * rows.stride
    return ptr_R


@triton.jit
def load_rows(rows, start, ROWS: tl.constexpr, RAGGED: tl.constexpr):
    """A statistic of ROWS rows from row `start` on; zeros beyond N."""
    row_R = start + tl.arange(0, ROWS)
    ptr_R = where_rows(rows, row_R)
    return tl.load(ptr_R, mask=row_R < rows.N, other=0.0) if RAGGED else tl.load(ptr_R)


@triton.jit
def tile_of_head(N, H, BLOCK: tl.constexpr, REVERSED: tl.constexpr):
    """First row, head, sample and row of (B,H) of a program; tiles of a head follow each other."""
    tiles = tl.cdiv(N, BLOCK)
    tile = tl.program_id(0) % tiles
    if REVERSED:
        tile = tiles - 1 - tile
    bh = (tl.program_id(0) // tiles).to(tl.int64)
    return tile * BLOCK, bh % H, bh // H, bh


@triton.jit
def visible(row_M, key_N, N, CAUSAL: tl.constexpr):
    last_M = row_M[:, None] if CAUSAL else N - 1
    return key_N[None, :] <= last_M


@triton.jit
def widened(stride, WIDE: tl.constexpr):
    """The stride of rows for products with their number in a tile: see `is_wide`."""
    return tl.cast(stride, tl.int64) if WIDE else stride


def is_wide(rows: int, *tensors: Tensor | None) -> bool:
    """Whether offsets within a tile of `rows` tokens exceed 32 bits, in any (B,N,..) tensor.

    Few do, and 64 bits cost registers: kernels are compiled for one or the other.
    """
    return any(x is not None and rows * x.stride(1) >= 1 << 31 for x in tensors)


def strides_of(**tensors: Tensor | None) -> dict[str, int | None]:
    """Kernel arguments `<name>_stride_B`, `_N` and, of four axes, `_H`; None for None."""
    strides: dict[str, int | None] = {}
    for name, tensor in tensors.items():
        if tensor is None:
            strides |= {f"{name}_stride_B": None, f"{name}_stride_N": None}
            continue
        for axis, stride in zip("BNH", tensor.stride()[:-1], strict=False):
            strides[f"{name}_stride_{axis}"] = stride
    return strides


def copy_engine_takes(x: Tensor) -> bool:
    """Whether Hopper's copy engine reads a tensor of 16-bit elements: rows, along its last axis,
    begin at multiples of 16 bytes, and none lies over another, as in expanded tensors.

    NVIDIA, CUDA Driver API, cuTensorMapEncodeTiled.
    """
    row = x.shape[-1]
    steps = zip(x.shape[:-1], x.stride()[:-1], strict=True)
    disjoint = all(n <= 1 or (step >= row and step % 8 == 0) for n, step in steps)
    return disjoint and x.data_ptr() % 16 == 0


@triton.jit
def pitch(N):
    """From one head's statistics to the next: the copy engine takes multiples of 16 bytes."""
    return (N + 3) // 4 * 4


def to_base_2(lse: Tensor, q: Tensor) -> Tensor:
    """Natural logarithms, (B,H,N), to base 2, laid out as `statistic_of` q is."""
    statistic = statistic_of(q)
    torch.mul(lse, 1 / math.log(2), out=statistic)
    return statistic


def statistic_of(q: Tensor) -> Tensor:
    """An empty tensor for one fp32 number per row of q, (B,N,H,D): (B,H,N), heads `pitch(N)`
    apart."""
    B, N, H, _ = q.shape
    stride_H = pitch.fn(N)
    return q.new_empty_strided((B, H, N), (H * stride_H, stride_H, 1), dtype=torch.float32)
