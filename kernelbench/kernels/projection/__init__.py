"""An attention's output projection with a skip mixed in, y = c_skip(t)·x + c_out(t)·(a Wᵀ + bias),
in one matrix product, and its gradients.

Shapes: B samples, N tokens, M = B·N rows, K channels of a, C channels of x and y. a is (B,N,K), x
(B,N,C), weight (C,K), bias (C,), t (B,). Tensors are read where they lie, by their strides, as long
as their last axis is contiguous. What is made here is contiguous.

On Hopper, in bf16 and fp16, the forward is `hopper`'s where sizes suit it.

A projection stands between attention and the skip, so the skip cannot move into the attention:
proj(c_skip·x + c_out·A) is another function. Here it costs one read of x where a kernel of its own
costs two reads and a write.

Backward, with F = a Wᵀ + bias and G = c_out·dy: dx = c_skip·dy, da = G W, dweight = Gᵀ a,
dbias = Σ_rows G, dt = c_skip'·Σ dy⊙x + c_out'·Σ dy⊙F. F is not kept: Σ dy⊙F is
Σ (dy W)⊙a + Σ dy⊙bias, so where dt is wanted da is c_out·(dy W). The matrix products are cuBLAS's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernelbench.kernels.attention.tiles import is_wide, widened
from kernelbench.kernels.launch import (
    Launch,
    Plans,
    Repeats,
    arch_of,
    ceil_div,
    check_blocks,
    check_counts,
    check_device,
    check_powers_of_2,
    layout_of,
    layouts_of,
    packed_rows,
    power_of_2,
    refusal,
    shared_memory,
)
from kernelbench.kernels.operators import (
    Transform,
    admit,
    differentiable_once,
    direct,
    empty_gradients,
    final,
    graded,
    gradients_of,
    needed_gradients,
    numbers_of,
    of_numbers,
    refuse_some_on_meta,
    transformed,
    without_data,
)
from kernelbench.kernels.projection.hopper import HopperProjectionTile, suits
from kernelbench.kernels.projection.hopper import forward_launch as hopper_launch
from kernelbench.kernels.rcm import RcmFormula, coefficients, formula_of
from kernelbench.kernels.rcm_attention import skip_launch
from kernelbench.kernels.sharding import PARTIAL, WHOLE, needed_cut, optional, sharded

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@triton.jit
def _grouped(M, tiles_C, BLOCK_M: tl.constexpr, GROUP: tl.constexpr):
    """Row and column tile of a program; GROUP tiles of rows share the columns they read."""
    tiles_M = tl.cdiv(M, BLOCK_M)
    group = tl.program_id(0) // (GROUP * tiles_C)
    within = tl.program_id(0) % (GROUP * tiles_C)
    rows = tl.minimum(tiles_M - group * GROUP, GROUP)
    return group * GROUP + within % rows, within // rows


@triton.jit
def _offsets(b, n, stride_B, stride_N):
    return b.to(tl.int64) * stride_B + n.to(tl.int64) * stride_N


@triton.jit
def _load_skip(x_ptr, offset_M, c_C, mask_MC, MASKED: tl.constexpr):
    ptr_MC = x_ptr + offset_M[:, None] + c_C[None, :]
    return tl.load(ptr_MC, mask=mask_MC, other=0.0) if MASKED else tl.load(ptr_MC)


@triton.jit
def _finish(
    acc_MC,
    x_MC,
    bias_ptr,
    y_ptr,
    row_M,
    c_C,
    factors,
    M,
    C: tl.constexpr,
    MASKED: tl.constexpr,
    SPANS: tl.constexpr,
):
    """y from the product and the skip's tile; factors, c_skip and c_out, are per row if SPANS."""
    if bias_ptr is not None:
        if MASKED:
            bias_C = tl.load(bias_ptr + c_C, mask=c_C < C, other=0.0)
        else:
            bias_C = tl.load(bias_ptr + c_C)
        acc_MC += bias_C.to(tl.float32)[None, :]
    if x_MC is not None:
        c_skip, c_out = factors
        if SPANS:
            c_skip = c_skip[:, None]
            c_out = c_out[:, None]
        skip_MC = c_skip * x_MC.to(tl.float32)
        acc_MC = tl.where(c_out == 0.0, skip_MC, skip_MC + c_out * acc_MC)  # x itself, even -0
    y_MC = y_ptr + row_M[:, None].to(tl.int64) * C + c_C[None, :]
    if MASKED:
        mask_MC = (row_M < M)[:, None] & (c_C < C)[None, :]
        tl.store(y_MC, acc_MC.to(y_ptr.dtype.element_ty), mask=mask_MC)
    else:
        tl.store(y_MC, acc_MC.to(y_ptr.dtype.element_ty))


@triton.jit
def _mix(
    acc_MC,
    x_ptr,
    bias_ptr,
    y_ptr,
    x_offset_M,
    row_M,
    c_C,
    factors,
    M,
    C: tl.constexpr,
    MASKED: tl.constexpr,
    SPANS: tl.constexpr,
):
    """`_finish`, with the skip's tile read now, if there is a skip."""
    if x_ptr is not None:
        mask_MC = (row_M < M)[:, None] & (c_C < C)[None, :]
        x_MC = _load_skip(x_ptr, x_offset_M, c_C, mask_MC, MASKED)
    else:
        x_MC = None
    _finish(acc_MC, x_MC, bias_ptr, y_ptr, row_M, c_C, factors, M, C, MASKED, SPANS)


@triton.jit
def _project(
    a_ptr,
    weight_ptr,
    bias_ptr,
    x_ptr,
    t_ptr,
    y_ptr,
    a_stride_B,
    a_stride_N,
    weight_stride,
    x_stride_B,
    x_stride_N,
    t_stride,
    sigma,
    M,
    N,
    C: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    STAGES: tl.constexpr,
    PARAMETRIZATION: tl.constexpr,
    EARLY: tl.constexpr,
    HALVES: tl.constexpr,
    SPANS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """BLOCK_M rows and BLOCK_C channels of y a program; rows may be of several samples if SPANS."""
    tile_M, tile_C = _grouped(M, tl.cdiv(C, BLOCK_C), BLOCK_M, GROUP)
    first = tile_M * BLOCK_M
    row_M = first + tl.arange(0, BLOCK_M)
    c_C = tile_C * BLOCK_C + tl.arange(0, BLOCK_C)
    k_K = tl.arange(0, BLOCK_K)
    MASKED: tl.constexpr = SPANS or C % BLOCK_C != 0
    if SPANS:
        safe_M = tl.minimum(row_M, M - 1)
        b = safe_M // N
        a_offset_M = _offsets(b, safe_M % N, a_stride_B, a_stride_N)
    else:
        b = first // N
        a_ptr += _offsets(b, first % N, a_stride_B, a_stride_N)
        a_offset_M = tl.arange(0, BLOCK_M) * widened(a_stride_N, WIDE)
    if x_ptr is not None:
        if SPANS:
            x_offset_M = _offsets(b, safe_M % N, x_stride_B, x_stride_N)
        else:
            x_ptr += _offsets(b, first % N, x_stride_B, x_stride_N)
            x_offset_M = tl.arange(0, BLOCK_M) * widened(x_stride_N, WIDE)
        if EARLY:
            mask_MC = (row_M < M)[:, None] & (c_C < C)[None, :]
            x_MC = _load_skip(x_ptr, x_offset_M, c_C, mask_MC, MASKED)

    a_MK = a_ptr + a_offset_M[:, None] + k_K[None, :]
    safe_C = tl.minimum(c_C, C - 1) if C % BLOCK_C != 0 else c_C
    weight_KC = weight_ptr + safe_C[None, :].to(tl.int64) * weight_stride + k_K[:, None]
    acc_MC = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        if K % BLOCK_K == 0:
            left_MK = tl.load(a_MK)
            right_KC = tl.load(weight_KC)
        else:
            left_MK = tl.load(a_MK, mask=(start + k_K < K)[None, :], other=0.0)
            right_KC = tl.load(weight_KC, mask=(start + k_K < K)[:, None], other=0.0)
        acc_MC = tl.dot(left_MK, right_KC, acc_MC, input_precision="ieee")
        a_MK += BLOCK_K
        weight_KC += BLOCK_K

    if x_ptr is not None:
        c_skip, c_out, _, _ = coefficients(
            t_ptr, b, widened(t_stride, WIDE), sigma, PARAMETRIZATION
        )
    else:
        c_skip, c_out, x_offset_M = 0.0, 1.0, a_offset_M
    factors = (c_skip, c_out)
    if HALVES:
        HALF: tl.constexpr = BLOCK_C // 2
        acc_MHC = tl.permute(tl.reshape(acc_MC, (BLOCK_M, 2, HALF)), (0, 2, 1))
        left_MC, right_MC = tl.split(acc_MHC)
        half_C = tile_C * BLOCK_C + tl.arange(0, HALF)
        _mix(
            left_MC, x_ptr, bias_ptr, y_ptr, x_offset_M, row_M, half_C, factors, M, C, MASKED, SPANS
        )
        _mix(
            right_MC,
            x_ptr,
            bias_ptr,
            y_ptr,
            x_offset_M,
            row_M,
            half_C + HALF,
            factors,
            M,
            C,
            MASKED,
            SPANS,
        )
    elif EARLY:
        _finish(acc_MC, x_MC, bias_ptr, y_ptr, row_M, c_C, factors, M, C, MASKED, SPANS)
    else:
        _mix(acc_MC, x_ptr, bias_ptr, y_ptr, x_offset_M, row_M, c_C, factors, M, C, MASKED, SPANS)


@triton.jit
def _differentiate_skip(
    dy_ptr,
    x_ptr,
    bias_ptr,
    t_ptr,
    dx_ptr,
    g_ptr,
    dbias_ptr,
    part_ptr,
    dy_stride_B,
    dy_stride_N,
    x_stride_B,
    x_stride_N,
    t_stride,
    sigma,
    part_stride,
    N,
    C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PARAMETRIZATION: tl.constexpr,
):
    """dx, G and parts of dbias and dt, of BLOCK_N tokens and BLOCK_C channels a program."""
    tiles = tl.cdiv(N, BLOCK_N)
    chunks = tl.cdiv(C, BLOCK_C)
    tile = tl.program_id(0) % tiles
    chunk = tl.program_id(0) // tiles % chunks
    b = (tl.program_id(0) // (tiles * chunks)).to(tl.int64)
    n_N = (tile * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    c_C = chunk * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_NC = (n_N < N)[:, None] & (c_C < C)[None, :]
    c_skip, c_out, d_skip, d_out = coefficients(t_ptr, b, t_stride, sigma, PARAMETRIZATION)
    dy_NC = tl.load(
        dy_ptr + b * dy_stride_B + n_N[:, None] * dy_stride_N + c_C[None, :],
        mask=mask_NC,
        other=0.0,
    ).to(tl.float32)
    out_NC = (b * N + n_N)[:, None] * C + c_C[None, :]
    if dx_ptr is not None:
        tl.store(dx_ptr + out_NC, (c_skip * dy_NC).to(dx_ptr.dtype.element_ty), mask=mask_NC)
    g_NC = c_out * dy_NC
    if g_ptr is not None:
        tl.store(g_ptr + out_NC, g_NC.to(g_ptr.dtype.element_ty), mask=mask_NC)
    if dbias_ptr is not None:
        row = (b * tiles + tile) * C
        tl.store(dbias_ptr + row + c_C, tl.sum(g_NC, axis=0), mask=c_C < C)
    if part_ptr is not None:
        x_NC = tl.load(
            x_ptr + b * x_stride_B + n_N[:, None] * x_stride_N + c_C[None, :],
            mask=mask_NC,
            other=0.0,
        )
        term_NC = d_skip * (dy_NC * x_NC.to(tl.float32))
        if bias_ptr is not None:
            bias_C = tl.load(bias_ptr + c_C, mask=c_C < C, other=0.0).to(tl.float32)
            term_NC += d_out * (dy_NC * bias_C[None, :])
        part = tl.sum(tl.sum(term_NC, axis=1), axis=0)
        tl.store(part_ptr + b * part_stride + chunk * tiles + tile, part)


@triton.jit
def _scale(
    h_ptr,
    a_ptr,
    t_ptr,
    part_ptr,
    a_stride_B,
    a_stride_N,
    t_stride,
    sigma,
    part_stride,
    N,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PARAMETRIZATION: tl.constexpr,
    STORES: tl.constexpr,
):
    """h = dy W in place to da = c_out·h where it STORES, and parts of c_out'·Σ h⊙a of dt."""
    tiles = tl.cdiv(N, BLOCK_N)
    chunks = tl.cdiv(K, BLOCK_K)
    tile = tl.program_id(0) % tiles
    chunk = tl.program_id(0) // tiles % chunks
    b = (tl.program_id(0) // (tiles * chunks)).to(tl.int64)
    n_N = (tile * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    k_K = chunk * BLOCK_K + tl.arange(0, BLOCK_K)
    mask_NK = (n_N < N)[:, None] & (k_K < K)[None, :]
    _, c_out, _, d_out = coefficients(t_ptr, b, t_stride, sigma, PARAMETRIZATION)
    h_NK = h_ptr + (b * N + n_N)[:, None] * K + k_K[None, :]
    product_NK = tl.load(h_NK, mask=mask_NK, other=0.0).to(tl.float32)
    a_NK = tl.load(
        a_ptr + b * a_stride_B + n_N[:, None] * a_stride_N + k_K[None, :], mask=mask_NK, other=0.0
    )
    part = tl.sum(tl.sum(product_NK * a_NK.to(tl.float32), axis=1), axis=0)
    tl.store(part_ptr + b * part_stride + chunk * tiles + tile, d_out * part)
    if STORES:
        tl.store(h_NK, (c_out * product_NK).to(h_ptr.dtype.element_ty), mask=mask_NK)


@dataclass(frozen=True)
class ProjectionConfig:
    """How the matrix product is cut up. Blocks, at least 16, and warps are powers of two.

    block_m, block_c: rows and channels of y that a program makes. block_k: channels of a that it
        takes at a time, in a software pipeline of `stages`.
    warps: of a program. group: tiles of rows that programs next to each other go through before
        they take the next channels.
    early: x is read before the product, not after it: its latency hides, its registers are taken.
    halves: y is made in two halves, in fewer registers; not together with `early`.
    hopper: the forward by `hopper`, which all of the above then say nothing about; for
        tensors that it `suits`.
    """

    block_m: int
    block_c: int
    block_k: int
    warps: int
    stages: int
    group: int = 8
    early: bool = False
    halves: bool = False
    hopper: HopperProjectionTile | None = None

    def __post_init__(self) -> None:
        check_blocks(self, "block_m", "block_c", "block_k")
        check_powers_of_2(self, "warps")
        check_counts(self, "group", "stages")
        if self.early and self.halves:
            raise ValueError("ProjectionConfig: early and halves exclude each other")


@dataclass(frozen=True)
class _Choice:
    """A row of the table: a tile, for an output that makes at least `least` such tiles.

    archs: where the row holds; everywhere when empty.
    """

    least: int
    config: ProjectionConfig
    archs: tuple[str, ...] = ()


# None of these spills registers on the architectures of its row (triton 3.6). The first row that
# holds is the choice; the last of each part takes what is left.
_NARROW = (
    _Choice(132, ProjectionConfig(128, 128, 64, 8, 3), ("sm_90",)),
    _Choice(132, ProjectionConfig(64, 128, 64, 4, 4), ("sm_90",)),
    _Choice(0, ProjectionConfig(64, 64, 128, 4, 3), ("sm_90",)),
    _Choice(216, ProjectionConfig(128, 128, 32, 8, 4)),
    _Choice(108, ProjectionConfig(128, 64, 64, 4, 3)),
    _Choice(0, ProjectionConfig(64, 64, 64, 4, 4)),
)
_WIDE = (
    _Choice(132, ProjectionConfig(64, 64, 16, 8, 3)),
    _Choice(0, ProjectionConfig(32, 32, 32, 4, 3)),
)
# What a tuner may pick besides.
_MORE_NARROW = (
    _Choice(0, ProjectionConfig(128, 256, 64, 8, 4, halves=True), ("sm_90",)),
    _Choice(0, ProjectionConfig(128, 128, 64, 8, 4, halves=True), ("sm_90",)),
    _Choice(0, ProjectionConfig(128, 256, 64, 8, 3, halves=True), ("sm_90",)),
    _Choice(0, ProjectionConfig(128, 128, 64, 8, 3, halves=True), ("sm_90",)),
    _Choice(0, ProjectionConfig(128, 128, 64, 8, 3, early=True), ("sm_90",)),
    _Choice(0, ProjectionConfig(128, 128, 64, 4, 3, halves=True), ("sm_90",)),
    _Choice(0, ProjectionConfig(128, 128, 64, 4, 4, halves=True), ("sm_90",)),
    _Choice(0, ProjectionConfig(64, 256, 64, 4, 3, halves=True), ("sm_90",)),
    _Choice(0, ProjectionConfig(64, 256, 64, 4, 4, halves=True), ("sm_90",)),
    _Choice(0, ProjectionConfig(64, 256, 64, 8, 4, halves=True), ("sm_90",)),
    _Choice(0, ProjectionConfig(256, 128, 64, 8, 3, halves=True), ("sm_90",)),
    _Choice(0, ProjectionConfig(64, 128, 64, 4, 4, halves=True), ("sm_90",)),
    _Choice(0, ProjectionConfig(64, 128, 64, 4, 4)),
    _Choice(0, ProjectionConfig(64, 128, 64, 4, 3, early=True)),
    _Choice(0, ProjectionConfig(64, 128, 128, 4, 3), ("sm_90",)),
    _Choice(0, ProjectionConfig(64, 64, 128, 4, 3)),
    _Choice(0, ProjectionConfig(64, 64, 64, 4, 4, early=True)),
    _Choice(0, ProjectionConfig(128, 64, 64, 4, 4)),
    _Choice(0, ProjectionConfig(128, 64, 64, 4, 3, early=True), ("sm_90",)),
    _Choice(0, ProjectionConfig(64, 32, 128, 4, 3)),
)
_MORE_WIDE = (
    _Choice(0, ProjectionConfig(64, 32, 32, 4, 3)),
    _Choice(0, ProjectionConfig(32, 64, 32, 4, 3)),
)


_HOPPER_LEAST = 96  # tiles of the Hopper kernel, below which the smaller ones are faster
# The first is faster at every shape measured on an H200.
_HOPPER_TILES = (HopperProjectionTile(128, 6), HopperProjectionTile(256, 3))


def configs(
    M: int, C: int, K: int, *, arch: str, itemsize: int = 2, N: int | None = None
) -> tuple[ProjectionConfig, ...]:
    """The table's choice for M rows of K channels to C, then others that a tuner may pick.

    arch: `sm_90` and the like, or `cpu` for the interpreter. itemsize: bytes of an element of a,
    2 or 4. N: tokens of a sample, all M rows unless given. The backward has nothing to choose.
    """
    table, more = (_NARROW, _MORE_NARROW) if itemsize == 2 else (_WIDE, _MORE_WIDE)
    limit = shared_memory(arch, 1)

    def fits(row: _Choice) -> bool:
        return (not row.archs or arch in row.archs) and _bytes(row.config, itemsize) <= limit

    rows = [row for row in table if fits(row)]
    choice = next((r for r in rows if _tiles(r.config, M, C) >= r.least), rows[-1])
    candidates = [choice, *rows, *(row for row in more if fits(row))]
    plain = [_capped(row.config, M, C, K) for row in candidates]
    runs = arch == "sm_90" and itemsize == 2 and (N or M) % 64 == K % 64 == C % 64 == 0
    hopper = [replace(plain[0], hopper=tile) for tile in _HOPPER_TILES if runs]
    hopper_first = runs and _HOPPER_TILES[0].tiles(M, C) >= _HOPPER_LEAST
    return tuple(dict.fromkeys([*hopper, *plain] if hopper_first else [plain[0], *hopper, *plain]))


@lru_cache(maxsize=4096)
def _choose(
    M: int, C: int, K: int, arch: str, itemsize: int, hopper_suits: bool
) -> ProjectionConfig:
    candidates = configs(M, C, K, arch=arch, itemsize=itemsize)
    return next(config for config in candidates if hopper_suits or config.hopper is None)


def _bytes(config: ProjectionConfig, itemsize: int) -> int:
    """Shared memory: the pipeline's tiles, or the tile of y on its way out, if that is more."""
    pipeline = config.stages * (config.block_m + config.block_c) * config.block_k * itemsize
    return max(pipeline, config.block_m * config.block_c * itemsize)


def _tiles(config: ProjectionConfig, M: int, C: int) -> int:
    return ceil_div(M, config.block_m) * ceil_div(C, config.block_c)


def _capped(config: ProjectionConfig, M: int, C: int, K: int) -> ProjectionConfig:
    """The config with blocks no larger than the shape needs."""
    sizes = ((config.block_m, M), (config.block_c, C), (config.block_k, K))
    block_m, block_c, block_k = (min(block, max(16, power_of_2(size))) for block, size in sizes)
    return replace(config, block_m=block_m, block_c=block_c, block_k=block_k)


def _rows_strides(name: str, tensor: Tensor | None) -> dict[str, int | None]:
    strides = (None, None) if tensor is None else tensor.stride()[:2]
    return {f"{name}_stride_B": strides[0], f"{name}_stride_N": strides[1]}


def _mixing(t: Tensor | None, formula: RcmFormula) -> dict[str, Any]:
    stride, sigma = (None, None) if t is None else (t.stride(0), formula.sigma_data)
    return {"t_ptr": t, "t_stride": stride, "sigma": sigma}


def forward_launch(
    a: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor | None,
    t: Tensor | None,
    y: Tensor,
    *,
    formula: RcmFormula,
    config: ProjectionConfig,
) -> Launch:
    """The launch that writes y; without x and t, y = a Wᵀ + bias.

    a: (B,N,K), x: (B,N,C), weight: (C,K), all of any strides whose last is 1; bias: (C,) and
    contiguous; t: (B,). y: (B,N,C) and contiguous.
    """
    if config.hopper is not None:
        return hopper_launch(a, weight, bias, x, t, y, formula=formula, tile=config.hopper)
    B, N, K = a.shape
    C = weight.shape[0]
    args: dict[str, Any] = {
        "a_ptr": a,
        "weight_ptr": weight,
        "bias_ptr": bias,
        "x_ptr": x,
        "y_ptr": y,
        "weight_stride": weight.stride(0),
        "M": B * N,
        "N": N,
    }
    args |= _rows_strides("a", a) | _rows_strides("x", x) | _mixing(t, formula)
    constexprs = {
        "C": C,
        "K": K,
        "BLOCK_M": config.block_m,
        "BLOCK_C": config.block_c,
        "BLOCK_K": config.block_k,
        "GROUP": config.group,
        "STAGES": config.stages,
        "PARAMETRIZATION": formula.parametrization if x is not None else "none",
        "EARLY": config.early and x is not None,
        "HALVES": config.halves and config.block_c >= 32,
        "SPANS": N % config.block_m != 0,
        "WIDE": is_wide(config.block_m, a, x) or (t is not None and B * t.stride(0) >= 1 << 31),
    }
    options = {"num_warps": config.warps, "num_stages": config.stages}
    return Launch(_project, (_tiles(config, B * N, C),), args, constexprs, options)


def _cut(channels: int, N: int) -> tuple[int, int]:
    """Tokens and channels of a program that goes through a tensor once: 4096 elements."""
    block = min(128, power_of_2(channels))
    return min(32, power_of_2(N)), block


def _parts(channels: int, N: int) -> int:
    block_N, block = _cut(channels, N)
    return ceil_div(N, block_N) * ceil_div(channels, block)


def skip_backward_launch(
    dy: Tensor,
    x: Tensor | None,
    bias: Tensor | None,
    t: Tensor,
    dx: Tensor | None,
    g: Tensor | None,
    dbias_parts: Tensor | None,
    dt_parts: Tensor | None,
    *,
    formula: RcmFormula,
) -> Launch:
    """The launch that writes dx, G = c_out·dy and parts of dbias and dt, each where it is wanted.

    dy, x: (B,N,C) of any strides whose last is 1; x and bias are needed for dt alone. dx and g:
    (B,N,C) and contiguous. dbias_parts: (B·tiles,C), dt_parts: (B,≥parts), both fp32.
    """
    B, N, C = dy.shape
    block_N, block_C = _cut(C, N)
    if dt_parts is None:
        x = bias = None
    args: dict[str, Any] = {
        "dy_ptr": dy,
        "x_ptr": x,
        "bias_ptr": bias,
        "dx_ptr": dx,
        "g_ptr": g,
        "dbias_ptr": dbias_parts,
        "part_ptr": dt_parts,
        "part_stride": None if dt_parts is None else dt_parts.stride(0),
        "N": N,
    }
    args |= _rows_strides("dy", dy) | _rows_strides("x", x) | _mixing(t, formula)
    constexprs = {
        "C": C,
        "BLOCK_N": block_N,
        "BLOCK_C": block_C,
        "PARAMETRIZATION": formula.parametrization,
    }
    options = {"num_warps": 4, "num_stages": 1}
    return Launch(_differentiate_skip, (_parts(C, N) * B,), args, constexprs, options)


def scale_launch(
    h: Tensor,
    a: Tensor,
    t: Tensor,
    dt_parts: Tensor,
    *,
    formula: RcmFormula,
    stores: bool,
) -> Launch:
    """The launch that turns h = dy W into da = c_out·h if it `stores`, and writes parts of dt.

    h: (B,N,K) and contiguous; a: (B,N,K) of any strides whose last is 1; dt_parts: (B,≥parts) fp32.
    """
    B, N, K = a.shape
    block_N, block_K = _cut(K, N)
    args: dict[str, Any] = {
        "h_ptr": h,
        "a_ptr": a,
        "part_ptr": dt_parts,
        "part_stride": dt_parts.stride(0),
        "N": N,
    }
    args |= _rows_strides("a", a) | _mixing(t, formula)
    constexprs = {
        "K": K,
        "BLOCK_N": block_N,
        "BLOCK_K": block_K,
        "PARAMETRIZATION": formula.parametrization,
        "STORES": stores,
    }
    options = {"num_warps": 4, "num_stages": 1}
    return Launch(_scale, (_parts(K, N) * B,), args, constexprs, options)


_Inputs = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]  # a to t


class _Plan:
    """Calls that differ only in their tensors' addresses: checked once, with prepared launches."""

    def __init__(
        self,
        tensors: _Inputs,
        sigma_data: float | None,
        parametrization: str,
        config: ProjectionConfig | None,
        fused: bool,
    ) -> None:
        a, weight, _, x, _ = tensors
        self._formula = _check_all(*tensors, sigma_data, parametrization)
        device = check_device(**dict(zip(("a", "weight", "bias", "x", "t"), tensors, strict=True)))
        self._config = _suited_config(a, weight, x, arch_of(device), config)
        self._fused = fused or not self._formula.skips
        self._repeats = Repeats(device)

    def forward(self, tensors: _Inputs) -> Tensor:
        a, weight, _, x, _ = tensors
        like = a if x is None else x
        y = like.new_empty(*a.shape[:2], weight.shape[0])
        F = None if self._fused else a.new_empty(y.shape)
        self._repeats.run("forward", (*tensors, y, F), self._forward_launches)
        return y

    def _forward_launches(self, kind: str, tensors: Sequence[Any]) -> Sequence[Launch]:
        a, weight, bias, x, t, y, F = tensors
        formula, config = self._formula, self._config
        if F is None:
            return (forward_launch(a, weight, bias, x, t, y, formula=formula, config=config),)
        return (
            forward_launch(a, weight, bias, None, None, F, formula=formula, config=config),
            skip_launch(F, x, t, y, formula=formula),
        )

    def backward(
        self, dy: Tensor, tensors: _Inputs, needs: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        """da, dweight, dbias, dx, dt, each where it is needed; bias and x are read for dt alone.

        Hooks on saved tensors may return them with other strides.
        """
        a, weight, bias, x, t = _packed(tensors)
        dy = packed_rows(dy)
        dx = dt = parts = None
        if t is None:
            dy_MC = g_MC = dy.reshape(-1, dy.shape[2]).to(a.dtype)
            dbias = g_MC.sum(0) if needs[2] else None
        else:
            dx, g_MC, dbias, parts = self._skip_backward(dy, a, bias, x, t, needs)
            dy_MC = dy.reshape(-1, dy.shape[2]).to(a.dtype) if needs[4] else g_MC
        da = torch.mm(dy_MC, weight).view(a.shape) if needs[0] or needs[4] else None
        dweight = torch.mm(g_MC.t(), a.reshape(-1, a.shape[2])) if needs[1] else None
        if t is not None and da is not None and parts is not None:
            scale_parts = parts[:, _parts(dy.shape[2], dy.shape[1]) :]
            kind = "scale", needs[0], layout_of(a), layout_of(t)
            self._repeats.run(kind, (da, a, t, scale_parts), self._scale_launches)
            dt = parts.sum(1).to(t.dtype)
        return da if needs[0] else None, dweight, dbias, dx, dt

    def _skip_backward(
        self,
        dy: Tensor,
        a: Tensor,
        bias: Tensor | None,
        x: Tensor | None,
        t: Tensor,
        needs: Sequence[bool],
    ) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor | None]:
        """dx, G = c_out·dy of (B·N,C), dbias, and memory for all parts of dt, half of it filled."""
        B, N, C = dy.shape
        count = _parts(C, N) + _parts(a.shape[2], N)
        parts = a.new_empty(B, count, dtype=torch.float32) if needs[4] else None
        dx = a.new_empty(B, N, C, dtype=dy.dtype) if needs[3] else None
        g = a.new_empty(B, N, C) if needs[1] or (needs[0] and not needs[4]) else None
        rows = B * ceil_div(N, _cut(C, N)[0])
        sums = dy.new_empty(rows, C, dtype=torch.float32) if needs[2] else None
        read = (x, bias) if needs[4] else (None, None)
        kind = "skip", *needs, dy.stride(), *map(layout_of, (*read, t))
        self._repeats.run(kind, (dy, *read, t, dx, g, sums, parts), self._skip_launches)
        dbias = None if sums is None else sums.sum(0).to(a.dtype)
        return dx, dy.new_empty(0, C) if g is None else g.view(-1, C), dbias, parts

    def _skip_launches(self, kind: Any, tensors: Sequence[Any]) -> Sequence[Launch]:
        return (skip_backward_launch(*tensors, formula=self._formula),)

    def _scale_launches(self, kind: Any, tensors: Sequence[Any]) -> Sequence[Launch]:
        return (scale_launch(*tensors, formula=self._formula, stores=kind[1]),)


def _packed(tensors: _Inputs) -> _Inputs:
    """The tensors with rows as the kernels read them."""
    a, weight, bias, x, t = tensors
    bias = bias if bias is None else bias.contiguous()
    x = x if x is None else packed_rows(x)
    return packed_rows(a), packed_rows(weight), bias, x, t


def _suited_config(
    a: Tensor, weight: Tensor, x: Tensor | None, arch: str, config: ProjectionConfig | None
) -> ProjectionConfig:
    """The table's config for None. Raises ValueError for one that does not take these tensors."""
    suited = suits(a, weight, x)
    if config is None:
        rows = a.shape[0] * a.shape[1]
        return _choose(rows, *weight.shape, arch, a.element_size(), suited)
    if config.hopper is not None and not (suited and arch == "sm_90"):
        raise ValueError(
            f"{config.hopper} takes bfloat16 or float16, x of a's dtype, N, K and C in multiples "
            "of 64, and tensors, none of them expanded, whose addresses and strides are multiples "
            "of 16 bytes, on sm_90, "
            f"got {a.dtype}, N, K = {tuple(a.shape[1:])}, C = {weight.shape[0]} on "
            f"{arch}: pass config=None for a kernel that takes these"
        )
    return config


_PLANS: Plans[_Plan] = Plans()


def _plan(
    tensors: _Inputs,
    sigma_data: float | None,
    parametrization: str,
    config: ProjectionConfig | None,
    fused: bool,
) -> _Plan:
    """tensors: `_packed`."""
    key = (*layouts_of(tensors), sigma_data, parametrization, config, fused)
    plan = _PLANS.get(key)
    if plan is None:
        plan = _PLANS.add(key, _Plan(tensors, sigma_data, parametrization, config, fused))
    return plan


class _ProjectAndSkip(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, weight, bias, x, t, plan):
        ctx.plan = plan
        wants_dt = ctx.needs_input_grad[4]
        ctx.save_for_backward(a, weight, bias if wants_dt else None, x if wants_dt else None, t)
        return plan.forward((a, weight, bias, x, t))

    @staticmethod
    @differentiable_once
    def backward(ctx, dy):
        return *ctx.plan.backward(dy, ctx.saved_tensors, ctx.needs_input_grad[:5]), None


@torch.library.custom_op("kernelbench::project_and_skip", mutates_args=())
def _operator(
    a: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor | None,
    t: Tensor | None,
    sigma_data: float | None,
    parametrization: str,
    config: list[int],
    fused: bool,
) -> Tensor:
    """y."""
    tensors = _packed((a, weight, bias, *_mixed(x, t, parametrization)))
    parsed = of_numbers(ProjectionConfig, config)
    return _plan(tensors, sigma_data, parametrization, parsed, fused).forward(tensors)


@without_data(_operator)
def _(a, weight, bias, x, t, sigma_data, parametrization, config, fused):
    like = a if x is None or parametrization == "none" else x
    return like.new_empty(a.shape[0], a.shape[1], weight.shape[0])


@torch.library.custom_op("kernelbench::project_and_skip_backward", mutates_args=())
def _operator_backward(
    dy: Tensor,
    a: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor | None,
    t: Tensor | None,
    sigma_data: float | None,
    parametrization: str,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """da, dweight, dbias, dx, dt; `absent` for what is not needed."""
    tensors = _packed((a, weight, bias, *_mixed(x, t, parametrization)))
    gradients = _plan(tensors, sigma_data, parametrization, None, True).backward(dy, tensors, needs)
    da, dweight, dbias, dx, dt = gradients_of(gradients, a)
    return da, dweight, dbias, dx, dt


@without_data(_operator_backward)
def _(dy, a, weight, bias, x, t, sigma_data, parametrization, needs):
    likes = a, weight, weight[:, 0], dy, dy if t is None else t
    return empty_gradients(likes, needs, a)


def _keep(ctx, inputs, output):
    a, weight, bias, x, t, ctx.sigma_data, ctx.parametrization, _, _ = inputs
    if ctx.parametrization == "none":
        x = t = None
    ctx.save_for_backward(a, weight, bias, x, t)


def _gradients(ctx, dy, call=_operator_backward):
    rest = {"sigma_data": ctx.sigma_data, "parametrization": ctx.parametrization}
    return needed_gradients(ctx, 5, call, dy, *ctx.saved_tensors, **rest)


_operator.register_autograd(_gradients, setup_context=_keep)


def _ways(a, weight, bias, x, t, *rest):
    whole = WHOLE, optional(bias, WHOLE)
    yield (0,), (0, *whole, optional(x, 0), optional(t, 0))
    yield (1,), (1, *whole, optional(x, 1), optional(t, WHOLE))
    if _columns_fit(weight):
        yield (2,), (WHOLE, 0, optional(bias, 0), optional(x, 2), optional(t, WHOLE))


def _columns_fit(weight):
    """Whether every rank would have columns, equally many."""
    return weight.shape[0] % weight.mesh.size() == 0


def _ways_backward(dy, a, weight, bias, x, t, *rest):
    def cuts_of(*cuts):
        return [needed_cut(needed, cut) for needed, cut in zip(rest[-1], cuts, strict=True)]

    whole = WHOLE, optional(bias, WHOLE)
    yield cuts_of(0, PARTIAL, PARTIAL, 0, 0), (0, 0, *whole, optional(x, 0), optional(t, 0))
    rows = 1, 1, *whole, optional(x, 1), optional(t, WHOLE)
    yield cuts_of(1, PARTIAL, PARTIAL, 1, PARTIAL), rows
    if _columns_fit(weight):
        columns = 2, WHOLE, 0, optional(bias, 0), optional(x, 2), optional(t, WHOLE)
        yield cuts_of(PARTIAL, 0, 0, 2, PARTIAL), columns


sharded(_operator, _ways)
sharded(_operator_backward, _ways_backward)
_TRANSFORM = Transform(
    "project_and_skip", _operator, _keep, partial(_gradients, call=final(_operator_backward))
)


def _check(a: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if a.dtype not in DTYPES or weight.dtype != a.dtype:
        raise TypeError(
            "project_and_skip takes a and weight of one dtype, float32, float16 or bfloat16, got "
            f"{a.dtype} and {weight.dtype}: convert them with .to()"
        )
    if bias is not None and bias.dtype != a.dtype:
        raise TypeError(
            f"project_and_skip takes bias of a's {a.dtype}, got {bias.dtype}: convert it with .to()"
        )
    if a.dim() != 3:
        raise ValueError(f"project_and_skip takes a of shape (B,N,K), got {tuple(a.shape)}")
    if weight.dim() != 2 or weight.shape[1] != a.shape[2] or 0 in weight.shape:
        raise ValueError(
            f"project_and_skip takes weight of shape (C, K), here (C, {a.shape[2]}), got "
            f"{tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"project_and_skip takes bias of shape (C,), here ({weight.shape[0]},), got "
            f"{tuple(bias.shape)}"
        )


def _check_skip(a: Tensor, C: int, x: Tensor | None, t: Tensor | None, kind: str) -> None:
    B, N, _ = a.shape
    if x is None or t is None:
        raise ValueError(
            f"project_and_skip mixes x and t in under {kind!r}, got None: pass both, or "
            "parametrization='none' for the projection alone"
        )
    if x.dtype not in DTYPES:
        raise TypeError(
            f"project_and_skip takes x of float32, float16 or bfloat16, got {x.dtype}: convert it"
        )
    if x.shape != (B, N, C):
        raise ValueError(
            f"project_and_skip takes x of shape (B, N, C), here {(B, N, C)}, got {tuple(x.shape)}"
        )
    if not t.is_floating_point():
        raise TypeError(f"project_and_skip takes t of a floating dtype, got {t.dtype}: convert it")
    if t.shape != (B,):
        raise ValueError(
            f"project_and_skip takes t of shape (B,), here {(B,)}, got {tuple(t.shape)}: one time "
            "for each sample"
        )


def _check_all(
    a: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor | None,
    t: Tensor | None,
    sigma_data: float | None,
    parametrization: str,
) -> RcmFormula:
    """Check everything except devices; returns the formula."""
    _check(a, weight, bias)
    formula = formula_of(parametrization, sigma_data, False, 1.0, 1)
    if formula.skips:
        _check_skip(a, weight.shape[0], x, t, parametrization)
    return formula


def _mixed(
    x: Tensor | None, t: Tensor | None, parametrization: str
) -> tuple[Tensor | None, Tensor | None]:
    """x and t where they take part."""
    return (None, None) if parametrization == "none" else (x, t)


def _project_and_skip(
    a: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor | None,
    t: Tensor | None,
    sigma_data: float | None,
    parametrization: str,
    config: ProjectionConfig | None,
    fused: bool,
) -> Tensor:
    tensors: _Inputs = (a, weight, bias, *_mixed(x, t, parametrization))
    if direct(*tensors) and not (a.is_meta and refusal(a.device)):
        try:
            packed = _packed(tensors)
            plan = _plan(packed, sigma_data, parametrization, config, fused)
            if graded(*packed):
                y: Tensor = _ProjectAndSkip.apply(*packed, plan)
                return y
            return plan.forward(packed)
        except (RuntimeError, IndexError, TypeError):  # a clearer error comes first
            admit("project_and_skip", *tensors)
            _check_all(*tensors, sigma_data, parametrization)
            raise
    refuse_some_on_meta("project_and_skip", *tensors)
    admit("project_and_skip", *tensors)
    _check_all(*tensors, sigma_data, parametrization)
    rest = sigma_data, parametrization, numbers_of(config), fused
    result: Tensor = _TRANSFORM(tensors, rest) if transformed() else _operator(*tensors, *rest)
    return result


def project_and_skip(
    a: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor | None,
    t: Tensor | None,
    *,
    sigma_data: float | None = None,
    parametrization: str = "edm",
    config: ProjectionConfig | None = None,
) -> Tensor:
    """y = c_skip(t_b)·x + c_out(t_b)·(a Wᵀ + bias), projection and skip in one kernel.

    a: (B,N,K), float32, float16 or bfloat16. float32 is multiplied exactly, never as TF32 (the
        backward, which is cuBLAS's, follows torch.backends.cuda.matmul).
    weight: (C,K), as nn.Linear has it, and bias: (C,) or None, of a's dtype.
    x: (B,N,C), of any of these dtypes; y is like it, contiguous. The sum is made in fp32 and
        rounded once. Any strides; a last axis that is not contiguous costs a copy.
    t: (B,) of a floating dtype, read as fp32: a time for each sample.
    sigma_data, parametrization: as `rcm_attention` has them; with `none`, y is the projection
        alone, in a's dtype, and x and t may be None.
    config: how to cut up the work; None for the choice of the table, see `configs`.

    Where c_out is 0 (t = 0 under `edm`) y equals x. The gradients, of all five tensors, have the
    same bits on every call and are not differentiable themselves. torch.compile takes this as one
    operator, without a break in the graph.

    Raises TypeError for other dtypes, nested tensors and a sigma_data that is no number; ValueError
    for shapes that do not fit, an unknown parametrization, or a sigma_data that it cannot have;
    RuntimeError for tensors that are not on one device where Triton runs, or have no memory;
    NotImplementedError in forward mode.
    """
    return _project_and_skip(a, weight, bias, x, t, sigma_data, parametrization, config, fused=True)


def project_and_skip_unfused(
    a: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor | None,
    t: Tensor | None,
    *,
    sigma_data: float | None = None,
    parametrization: str = "edm",
    config: ProjectionConfig | None = None,
) -> Tensor:
    """`project_and_skip` in two kernels: the projection, rounded to a's dtype, then the skip.

    The same code but for the fusion, so that the two of them differ by what fusion is worth.
    """
    return _project_and_skip(
        a, weight, bias, x, t, sigma_data, parametrization, config, fused=False
    )
