"""RMSNorm, with or without a residual, forward and backward.

Shapes: M rows (every axis but the last, folded), N columns (the last axis), P programs that each
leave one row of partial sums. Rows are read where they lie: any row stride, columns next to each
other. Bandwidth bounds it: about 10 flops to an element of 2 or 4 bytes.

A row that fits in the registers of a program is read once. A wider one is read block by block,
twice: once for its statistic, once for the result; the second read finds much of it in L2.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernelbench.kernels.launch import (
    Launch,
    arch_of,
    ceil_div,
    check_device,
    check_powers_of_2,
    on_device,
    power_of_2,
    sm_count,
)

CASTINGS = ("fp32", "llama", "gemma", "none")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@triton.jit
def _round(x, dtype: tl.constexpr):
    return x.to(dtype).to(tl.float32)


@triton.jit
def _square(x, dtype: tl.constexpr, CASTING: tl.constexpr):
    square = x * x
    if CASTING == "none":
        square = _round(square, dtype)
    return square


@triton.jit
def _reciprocal_rms(squares, eps, N, dtype: tl.constexpr, CASTING: tl.constexpr):
    mean = squares / N
    if CASTING == "none":
        mean = _round(mean, dtype)
        rstd = _round(tl.rsqrt(_round(mean + eps, dtype)), dtype)
    else:
        rstd = tl.rsqrt(mean + eps)
    return rstd


@triton.jit
def _scale(x, rstd, weight, dtype: tl.constexpr, CASTING: tl.constexpr):
    if CASTING == "fp32":
        y = x * rstd * weight
    elif CASTING == "gemma":
        y = x * rstd * (1.0 + weight)
    else:
        # The product of two 16-bit floats is exact in fp32, so this rounds once, as eager does.
        y = _round(x * rstd, dtype) * _round(weight, dtype)
    return y.to(dtype)


@triton.jit
def _normalise_rows(
    x_ptr,
    residual_ptr,
    weight_ptr,
    y_ptr,
    sum_ptr,
    rstd_ptr,
    x_stride,
    residual_stride,
    eps,
    M,
    N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CASTING: tl.constexpr,
):
    """BLOCK_M whole rows a program."""
    dtype: tl.constexpr = y_ptr.dtype.element_ty
    if x_stride is None:
        x_stride = N
    if residual_stride is None:
        residual_stride = N
    row_M = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    column_N = tl.arange(0, BLOCK_N)
    mask_MN = (row_M < M)[:, None] & (column_N < N)[None, :]
    out_MN = row_M[:, None] * N + column_N[None, :]

    x_MN = tl.load(
        x_ptr + row_M[:, None] * x_stride + column_N[None, :], mask=mask_MN, other=0.0
    ).to(tl.float32)
    if residual_ptr is not None:
        x_MN += tl.load(
            residual_ptr + row_M[:, None] * residual_stride + column_N[None, :],
            mask=mask_MN,
            other=0.0,
        ).to(tl.float32)
        tl.store(sum_ptr + out_MN, x_MN.to(dtype), mask=mask_MN)
        x_MN = _round(x_MN, dtype)

    squares_M = tl.sum(_square(x_MN, dtype, CASTING), axis=1)
    rstd_M = _reciprocal_rms(squares_M, eps, N, dtype, CASTING)
    if rstd_ptr is not None:
        tl.store(rstd_ptr + row_M, rstd_M, mask=row_M < M)
    weight_N = tl.load(
        weight_ptr + column_N, mask=column_N < N, other=0.0, eviction_policy="evict_last"
    ).to(tl.float32)
    y_MN = _scale(x_MN, rstd_M[:, None], weight_N[None, :], dtype, CASTING)
    tl.store(y_ptr + out_MN, y_MN, mask=mask_MN)


@triton.jit
def _normalise_wide_rows(
    x_ptr,
    residual_ptr,
    weight_ptr,
    y_ptr,
    sum_ptr,
    rstd_ptr,
    x_stride,
    residual_stride,
    eps,
    N,
    BLOCK_N: tl.constexpr,
    CASTING: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One row a program, in blocks of columns: squares first, then the result."""
    dtype: tl.constexpr = y_ptr.dtype.element_ty
    if x_stride is None:
        x_stride = N
    if residual_stride is None:
        residual_stride = N
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * x_stride
    y_ptr += row * N
    if residual_ptr is not None:
        residual_ptr += row * residual_stride
        sum_ptr += row * N

    squares_N = tl.zeros([BLOCK_N], tl.float32)
    for start in tl.range(0, N, BLOCK_N, num_stages=STAGES):
        column_N = start + tl.arange(0, BLOCK_N)
        mask_N = column_N < N
        x_N = tl.load(x_ptr + column_N, mask=mask_N, other=0.0).to(tl.float32)
        if residual_ptr is not None:
            x_N += tl.load(residual_ptr + column_N, mask=mask_N, other=0.0).to(tl.float32)
            tl.store(sum_ptr + column_N, x_N.to(dtype), mask=mask_N)
            x_N = _round(x_N, dtype)
        squares_N += _square(x_N, dtype, CASTING)
    rstd = _reciprocal_rms(tl.sum(squares_N, axis=0), eps, N, dtype, CASTING)
    if rstd_ptr is not None:
        tl.store(rstd_ptr + row, rstd)

    if residual_ptr is not None:
        x_ptr = sum_ptr
        tl.debug_barrier()  # other threads of the program wrote what this one reads below
    for start in tl.range(0, N, BLOCK_N, num_stages=STAGES):
        column_N = start + tl.arange(0, BLOCK_N)
        mask_N = column_N < N
        x_N = tl.load(x_ptr + column_N, mask=mask_N, other=0.0).to(tl.float32)
        weight_N = tl.load(
            weight_ptr + column_N, mask=mask_N, other=0.0, eviction_policy="evict_last"
        ).to(tl.float32)
        tl.store(y_ptr + column_N, _scale(x_N, rstd, weight_N, dtype, CASTING), mask=mask_N)


@triton.jit
def _project_wide_rows(
    dy_ptr,
    x_ptr,
    weight_ptr,
    rstd_ptr,
    projection_ptr,
    dy_stride,
    x_stride,
    N,
    BLOCK_N: tl.constexpr,
    OFFSET: tl.constexpr,
    STAGES: tl.constexpr,
):
    """mean(dy⊙w⊙x)·rstd of one row a program."""
    if dy_stride is None:
        dy_stride = N
    if x_stride is None:
        x_stride = N
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * x_stride
    dy_ptr += row * dy_stride
    products_N = tl.zeros([BLOCK_N], tl.float32)
    for start in tl.range(0, N, BLOCK_N, num_stages=STAGES):
        column_N = start + tl.arange(0, BLOCK_N)
        mask_N = column_N < N
        x_N = tl.load(x_ptr + column_N, mask=mask_N, other=0.0).to(tl.float32)
        dy_N = tl.load(dy_ptr + column_N, mask=mask_N, other=0.0).to(tl.float32)
        weight_N = tl.load(
            weight_ptr + column_N, mask=mask_N, other=0.0, eviction_policy="evict_last"
        ).to(tl.float32)
        products_N += x_N * dy_N * (OFFSET + weight_N)
    projection = tl.sum(products_N, axis=0) / N * tl.load(rstd_ptr + row)
    tl.store(projection_ptr + row, projection)


@triton.jit
def _differentiate(
    dy_ptr,
    x_ptr,
    weight_ptr,
    rstd_ptr,
    projection_ptr,
    dsum_ptr,
    dx_ptr,
    partial_ptr,
    dy_stride,
    x_stride,
    dsum_stride,
    M,
    N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    OFFSET: tl.constexpr,
    STAGES: tl.constexpr,
    RELOAD: tl.constexpr,
):
    """A block of columns (axis 0 of the grid), tiles of rows strided over axis 1; dw in registers.

    Without projections of the rows, the block of columns is all of them.
    """
    if dy_stride is None:
        dy_stride = N
    if x_stride is None:
        x_stride = N
    if dsum_stride is None:
        dsum_stride = N
    column_N = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    if not RELOAD:
        weight_N = OFFSET + tl.load(weight_ptr + column_N, mask=column_N < N, other=0.0).to(
            tl.float32
        )
    dw_MN = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for tile in tl.range(
        tl.program_id(1), tl.cdiv(M, BLOCK_M), tl.num_programs(1), num_stages=STAGES
    ):
        row_M = tl.cast(tile, tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
        mask_MN = (row_M < M)[:, None] & (column_N < N)[None, :]
        x_MN = tl.load(
            x_ptr + row_M[:, None] * x_stride + column_N[None, :], mask=mask_MN, other=0.0
        ).to(tl.float32)
        dy_MN = tl.load(
            dy_ptr + row_M[:, None] * dy_stride + column_N[None, :], mask=mask_MN, other=0.0
        ).to(tl.float32)
        rstd_M = tl.load(rstd_ptr + row_M, mask=row_M < M, other=0.0)
        unit_MN = x_MN * rstd_M[:, None]
        if partial_ptr is not None:
            dw_MN += dy_MN * unit_MN
        if RELOAD:
            weight_N = OFFSET + tl.load(weight_ptr + column_N, mask=column_N < N, other=0.0).to(
                tl.float32
            )
        m_MN = dy_MN * weight_N[None, :]
        if projection_ptr is None:
            projection_M = tl.sum(m_MN * unit_MN, axis=1) / N
        else:
            projection_M = tl.load(projection_ptr + row_M, mask=row_M < M, other=0.0)
        dx_MN = (m_MN - unit_MN * projection_M[:, None]) * rstd_M[:, None]
        if dsum_ptr is not None:
            dx_MN += tl.load(
                dsum_ptr + row_M[:, None] * dsum_stride + column_N[None, :], mask=mask_MN, other=0.0
            ).to(tl.float32)
        tl.store(
            dx_ptr + row_M[:, None] * N + column_N[None, :],
            dx_MN.to(dx_ptr.dtype.element_ty),
            mask=mask_MN,
        )
    if partial_ptr is not None:
        partial_ptr += tl.program_id(1).to(tl.int64) * N
        tl.store(partial_ptr + column_N, tl.sum(dw_MN, axis=0), mask=column_N < N)


@triton.jit
def _sum_partials(
    partial_ptr, dweight_ptr, P, N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr
):
    """dw = Σ over the P rows of partial sums, always in the same order."""
    column_N = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    total_PN = tl.zeros([BLOCK_P, BLOCK_N], tl.float32)
    for start in tl.range(0, P, BLOCK_P):
        row_P = (start + tl.arange(0, BLOCK_P)).to(tl.int64)
        mask_PN = (row_P < P)[:, None] & (column_N < N)[None, :]
        total_PN += tl.load(
            partial_ptr + row_P[:, None] * N + column_N[None, :], mask=mask_PN, other=0.0
        )
    dweight_N = tl.sum(total_PN, axis=0).to(dweight_ptr.dtype.element_ty)
    tl.store(dweight_ptr + column_N, dweight_N, mask=column_N < N)


@dataclass(frozen=True)
class RmsNormConfig:
    """How the kernels cut up their work. Rows, blocks and warps are powers of two.

    rows, block: the forward tile, in rows and columns; where N > block, rows are read one a
        program, block by block, in a software pipeline of `stages`.
    warps: of a forward program.
    bwd_*: the same of the backward, whose row loop is a pipeline of `bwd_stages` on
        `bwd_programs` programs a multiprocessor.
    bwd_reload: read the weight again for every tile of rows, which saves registers.
    """

    rows: int
    block: int
    warps: int
    stages: int
    bwd_rows: int
    bwd_block: int
    bwd_warps: int
    bwd_stages: int
    bwd_programs: int
    bwd_reload: bool = False

    def __post_init__(self) -> None:
        check_powers_of_2(self, "rows", "block", "warps", "bwd_rows", "bwd_block", "bwd_warps")


@dataclass(frozen=True)
class _Choice:
    """A row of the table: the config for at most `N` columns of at most `itemsize` bytes."""

    N: int
    itemsize: int
    config: RmsNormConfig


# Tiles of 16 to 32 elements a thread forward and 16 backward, as many as registers allow without
# a spill on sm_80 and sm_90 (triton 3.6); the last row holds for any N.
_TABLE = (
    _Choice(128, 4, RmsNormConfig(32, 128, 4, 1, 16, 128, 4, 2, 4)),
    _Choice(256, 4, RmsNormConfig(16, 256, 4, 1, 8, 256, 4, 2, 4)),
    _Choice(512, 4, RmsNormConfig(8, 512, 4, 1, 4, 512, 4, 2, 4)),
    _Choice(1024, 4, RmsNormConfig(4, 1024, 4, 1, 2, 1024, 4, 2, 4)),
    _Choice(2048, 4, RmsNormConfig(4, 2048, 8, 1, 1, 2048, 4, 2, 4)),
    _Choice(4096, 4, RmsNormConfig(2, 4096, 8, 1, 1, 4096, 8, 2, 2)),
    _Choice(8192, 4, RmsNormConfig(1, 8192, 8, 1, 1, 8192, 16, 2, 1, True)),
    _Choice(16384, 2, RmsNormConfig(1, 16384, 16, 1, 1, 16384, 32, 2, 1, True)),
    _Choice(16384, 4, RmsNormConfig(1, 16384, 16, 1, 2, 2048, 8, 2, 3)),
    _Choice(32768, 4, RmsNormConfig(1, 32768, 32, 1, 2, 2048, 8, 2, 3)),
    _Choice(0, 4, RmsNormConfig(1, 4096, 8, 3, 2, 2048, 8, 2, 3)),
)
_SMALL_SHARED_MEMORY = ("sm_86", "sm_89", "sm_120")  # 99 KiB a program: no room for pipelines
_FEWEST_PROGRAMS = 256  # below this many forward programs, smaller tiles fill the GPU better
_FORWARD_ELEMENTS = 64  # of a tile to a thread, at most, and half of it for 32 warps


def configs(
    M: int, N: int, *, arch: str, mode: str, itemsize: int = 4
) -> tuple[RmsNormConfig, ...]:
    """The table's choice for M rows of N columns, then the others that a tuner may pick.

    arch: `sm_90` and the like, or `cpu` for the interpreter. mode: `fwd` and `bwd` vary what that
    pass uses, `full` varies both. itemsize: bytes of an element of x; a config for 4 is valid for
    2 as well. Raises ValueError for an unknown mode.
    """
    varied = {"fwd": _forward_variants, "bwd": _backward_variants, "full": _variants}
    if mode not in varied:
        raise ValueError(f"no mode {mode!r}. Known: {', '.join(varied)}")
    chosen = _choose(M, N, arch, itemsize)
    return tuple(dict.fromkeys((chosen, *varied[mode](chosen, N))))


@lru_cache(maxsize=4096)
def _choose(M: int, N: int, arch: str, itemsize: int) -> RmsNormConfig:
    fits = (c.config for c in _TABLE if c.N >= N and c.itemsize >= itemsize)
    config = next(fits, _TABLE[-1].config)
    if arch in _SMALL_SHARED_MEMORY:
        config = replace(config, stages=1, bwd_stages=1)
    rows = config.rows
    while rows > 1 and rows * _FEWEST_PROGRAMS > M:
        rows //= 2
    whole = power_of_2(N)
    return replace(
        config, rows=rows, block=min(config.block, whole), bwd_block=min(config.bwd_block, whole)
    )


def _forward_variants(config: RmsNormConfig, N: int) -> Iterator[RmsNormConfig]:
    if config.block < N:
        for block, warps in ((2048, 8), (4096, 16), (8192, 16), (8192, 32)):
            for stages in sorted({1, config.stages}):
                yield replace(config, block=block, warps=warps, stages=stages)
        return
    for rows in (config.rows, config.rows * 2, config.rows // 2):
        for warps in (config.warps, config.warps * 2, config.warps // 2):
            a_thread = rows * config.block // (32 * max(warps, 1))
            most = _FORWARD_ELEMENTS // (2 if warps == 32 else 1)
            if rows >= 1 and 1 <= warps <= 32 and a_thread <= most:
                yield replace(config, rows=rows, warps=warps)


def _backward_variants(config: RmsNormConfig, N: int) -> Iterator[RmsNormConfig]:
    for rows in (config.bwd_rows, config.bwd_rows // 2):
        for stages in sorted({1, config.bwd_stages}):
            for programs in (config.bwd_programs, 2 * config.bwd_programs):
                if rows >= 1:
                    yield replace(config, bwd_rows=rows, bwd_stages=stages, bwd_programs=programs)
    if config.bwd_warps < 16:  # the registers suffice for either
        yield replace(config, bwd_reload=not config.bwd_reload)


def _variants(config: RmsNormConfig, N: int) -> Iterator[RmsNormConfig]:
    """Each forward variant with a backward one, every one of either used at least once."""
    forward = tuple(_forward_variants(config, N)) or (config,)
    backward = tuple(_backward_variants(config, N)) or (config,)
    for i in range(max(len(forward), len(backward))):
        fwd, bwd = forward[i % len(forward)], backward[i % len(backward)]
        yield replace(bwd, rows=fwd.rows, block=fwd.block, warps=fwd.warps, stages=fwd.stages)


def _row_stride(rows: Tensor | None) -> int | None:
    """None stands for N, as a constant of which the compiler knows the divisors."""
    return None if rows is None or rows.is_contiguous() else rows.stride(0)


def _as_rows(x: Tensor, N: int) -> Tensor:
    """x itself when contiguous, else a view of shape (M, N), copied only when there is no view."""
    if x.is_contiguous():
        return x
    x_MN = x.reshape(x.numel() // N, N)
    return x_MN if x_MN.stride(1) == 1 or N == 1 else x_MN.contiguous()


def forward_launch(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    y: Tensor,
    total: Tensor | None,
    rstd_M: Tensor | None,
    *,
    eps: float,
    casting: str,
    config: RmsNormConfig,
) -> Launch:
    """The launch that writes y, and `total` = x + residual and rstd where they are wanted.

    x and residual are contiguous, or of shape (M, N) with columns next to each other; y and
    total are contiguous.
    """
    N = weight.numel()
    M = x.numel() // N
    args: dict[str, Any] = {
        "x_ptr": x,
        "residual_ptr": residual,
        "weight_ptr": weight,
        "y_ptr": y,
        "sum_ptr": total,
        "rstd_ptr": rstd_M,
        "x_stride": _row_stride(x),
        "residual_stride": _row_stride(residual),
        "eps": eps,
    }
    options = {"num_warps": config.warps, "num_stages": config.stages}
    constexprs = {"BLOCK_N": config.block, "CASTING": casting}
    if config.block < N:
        args["N"] = N
        constexprs["STAGES"] = config.stages
        return Launch(_normalise_wide_rows, (M,), args, constexprs, options)
    args["M"] = M
    constexprs |= {"N": N, "BLOCK_M": config.rows}
    return Launch(_normalise_rows, (ceil_div(M, config.rows),), args, constexprs, options)


def backward_launches(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    rstd_M: Tensor,
    dtotal: Tensor | None,
    dx: Tensor,
    dweight: Tensor | None,
    *,
    casting: str,
    config: RmsNormConfig,
) -> tuple[Launch, ...]:
    """The launches, in order, that write dx, and dweight where it is wanted.

    x is what was normalised; dy, x and dtotal (the gradient of x + residual from elsewhere) are
    laid out like `forward_launch`'s x; dx is contiguous. Scratch memory is allocated here.
    """
    N = weight.numel()
    M = x.numel() // N
    wide = config.bwd_block < N
    blocks = ceil_div(N, config.bwd_block)
    programs = max(1, config.bwd_programs * sm_count(x.device) // blocks)
    programs = min(programs, ceil_div(M, config.bwd_rows))
    projection_M = torch.empty_like(rstd_M) if wide else None
    partial_PN = None if dweight is None else rstd_M.new_empty(programs, N)
    read: dict[str, Any] = {
        "dy_ptr": dy,
        "x_ptr": x,
        "weight_ptr": weight,
        "rstd_ptr": rstd_M,
        "projection_ptr": projection_M,
        "dy_stride": _row_stride(dy),
        "x_stride": _row_stride(x),
    }
    written = {
        "dsum_ptr": dtotal,
        "dx_ptr": dx,
        "partial_ptr": partial_PN,
        "dsum_stride": _row_stride(dtotal),
        "M": M,
    }
    constexprs = {
        "BLOCK_N": config.bwd_block,
        "OFFSET": 1.0 if casting == "gemma" else 0.0,
        "STAGES": config.bwd_stages,
    }
    options = {"num_warps": config.bwd_warps, "num_stages": config.bwd_stages}
    launches = []
    if wide:
        launches.append(Launch(_project_wide_rows, (M,), read | {"N": N}, constexprs, options))
    tiled = constexprs | {"N": N, "BLOCK_M": config.bwd_rows, "RELOAD": config.bwd_reload}
    launches.append(Launch(_differentiate, (blocks, programs), read | written, tiled, options))
    if partial_PN is not None and dweight is not None:
        launches.append(_sum_launch(partial_PN, dweight))
    return tuple(launches)


def _sum_launch(partial_PN: Tensor, dweight: Tensor) -> Launch:
    P, N = partial_PN.shape
    block_N = 32 if N <= 4096 else 128
    block_P = min(4096 // block_N, power_of_2(P))
    return Launch(
        _sum_partials,
        (ceil_div(N, block_N),),
        {"partial_ptr": partial_PN, "dweight_ptr": dweight, "P": P},
        {"N": N, "BLOCK_P": block_P, "BLOCK_N": block_N},
        {"num_warps": 8, "num_stages": 2},
    )


def _run_forward(
    x: Tensor,
    weight: Tensor,
    residual: Tensor | None,
    eps: float,
    casting: str,
    config: RmsNormConfig,
    save: bool,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """y, x + residual, what was normalised as rows, and rstd when it is to be saved."""
    N = weight.numel()
    rows = _as_rows(x, N)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    total = None if residual is None else torch.empty_like(y)
    rstd_M = x.new_empty(x.numel() // N, dtype=torch.float32) if save else None
    launch = forward_launch(
        rows,
        None if residual is None else _as_rows(residual, N),
        weight.contiguous(),
        y,
        total,
        rstd_M,
        eps=eps,
        casting=casting,
        config=config,
    )
    with on_device(x.device):
        launch.run()
    return y, total, rows if total is None else total, rstd_M


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, residual, eps, casting, config):
        ctx.set_materialize_grads(False)
        ctx.casting, ctx.config = casting, config
        y, total, rows, rstd_M = _run_forward(x, weight, residual, eps, casting, config, save=True)
        ctx.save_for_backward(rows, weight, rstd_M)
        return y if total is None else (y, total)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dtotal=None):
        if dy is None:  # only x + residual was used
            return dtotal, None, dtotal, None, None, None
        x, weight, rstd_M = ctx.saved_tensors
        N = weight.numel()
        dx = torch.empty_like(dy, memory_format=torch.contiguous_format)
        dweight = None
        if ctx.needs_input_grad[1]:
            dweight = torch.empty_like(weight, memory_format=torch.contiguous_format)
        with on_device(x.device):
            for launch in backward_launches(
                _as_rows(dy, N),
                x,
                weight.contiguous(),
                rstd_M,
                None if dtotal is None else _as_rows(dtotal, N),
                dx,
                dweight,
                casting=ctx.casting,
                config=ctx.config,
            ):
                launch.run()
        return dx, dweight, dx if ctx.needs_input_grad[2] else None, None, None, None


def _check(x: Tensor, weight: Tensor, residual: Tensor | None, casting: str) -> None:
    if x.dtype not in DTYPES or weight.dtype not in DTYPES:
        raise TypeError(
            f"rms_norm takes float32, float16 and bfloat16, got x of {x.dtype} and weight of "
            f"{weight.dtype}: convert them with .to()"
        )
    if x.dim() == 0 or weight.dim() != 1 or weight.numel() != x.shape[-1] or not weight.numel():
        raise ValueError(
            f"rms_norm takes x of shape (..., N) and weight of shape (N,) with N >= 1, got "
            f"{tuple(x.shape)} and {tuple(weight.shape)}"
        )
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        raise ValueError(
            f"rms_norm takes a residual of x's shape and dtype, {tuple(x.shape)} {x.dtype}, got "
            f"{tuple(residual.shape)} {residual.dtype}: expand or convert it"
        )
    if casting not in CASTINGS:
        near = get_close_matches(str(casting), CASTINGS, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"no casting {casting!r}{hint} Known: {', '.join(CASTINGS)}")


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float = 1e-6,
    *,
    residual: Tensor | None = None,
    casting: str = "llama",
    config: RmsNormConfig | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """y = x · rsqrt(mean(x²) + eps) · weight over the last axis, in one read and one write.

    x: (..., N) of float32, float16 or bfloat16, any strides; rows that do not lie at one
        distance from each other, columns next to each other, cost a copy.
    weight: (N,) of any of these dtypes.
    residual: of x's shape and dtype. Then r = x + residual, rounded to x's dtype, is what is
        normalised, and (y, r) is returned instead of y. Both have x's shape and dtype.
    casting: where the forward rounds to x's dtype.
        `fp32`: once, at the end, as `torch.nn.functional.rms_norm`.
        `llama`: x · rstd, then its product with the weight in x's dtype.
        `gemma`: once, at the end; the factor is 1 + weight.
        `none`: after every operation, as eager PyTorch in x's dtype.
    config: how to cut up the work; None for the choice of the table, see `configs`.

    The gradients of x, residual and weight are exact for every casting up to the rounding of
    what comes out: the backward computes in fp32, sums dweight in fp32 in a fixed order (the
    same bits on every call), and is not differentiable itself. With m = dy⊙weight,
    dx = rstd·m − rstd³·x·mean(m⊙x) + dr and dweight = Σ_rows dy⊙(x·rstd). Without a gradient to
    come, nothing is kept for one.

    Raises TypeError for other dtypes, ValueError for shapes that do not fit or an unknown
    casting, RuntimeError for tensors that are not on one device where Triton runs.

    Zhang and Sennrich, Root Mean Square Layer Normalization, 2019 (arXiv:1910.07467).
    """
    device = check_device(x=x, weight=weight, residual=residual)
    _check(x, weight, residual, casting)
    if config is None:
        N = weight.numel()
        config = _choose(x.numel() // N, N, arch_of(device), x.element_size())
    if torch.is_grad_enabled() and (
        x.requires_grad or weight.requires_grad or (residual is not None and residual.requires_grad)
    ):
        result: Tensor | tuple[Tensor, Tensor] = _RmsNorm.apply(
            x, weight, residual, eps, casting, config
        )
        return result
    y, total, _, _ = _run_forward(x, weight, residual, eps, casting, config, save=False)
    return y if total is None else (y, total)
