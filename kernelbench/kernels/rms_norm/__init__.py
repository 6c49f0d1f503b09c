"""RMSNorm, with or without a residual, forward and backward.

Shapes: M rows (every axis but the last, folded), N columns (the last axis), P programs that each
leave one row of partial sums. Rows are read where they lie: any row stride, columns next to each
other. Bandwidth bounds it: about 10 flops to an element of 2 or 4 bytes.

Narrow rows fit in the registers of a program, several at a time. Wider ones are read twice, the
second time from L1; still wider ones are shared by several programs, which exchange their parts of
the sum. The backward reads once, too, through a pipeline in shared memory.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache, partial
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernelbench.kernels.launch import (
    Launch,
    Plans,
    Repeats,
    arch_of,
    ceil_div,
    check_counts,
    check_device,
    check_powers_of_2,
    on_device,
    power_of_2,
    refusal,
    refused_at_once,
    shared_memory,
    sm_count,
    starts_early,
)
from kernelbench.kernels.operators import (
    Transform,
    absent,
    admit,
    differentiable_once,
    direct,
    final,
    graded,
    numbers_of,
    of_numbers,
    refuse_some_on_meta,
    transformed,
    without_data,
)
from kernelbench.kernels.rms_norm.device import (
    differentiate,
    differentiate_split_rows,
    normalise_rows,
    normalise_split_rows,
    normalise_wide_rows,
    project_wide_rows,
    push_rows,
    sum_partials,
)
from kernelbench.kernels.sharding import PARTIAL, WHOLE, needed_cut, optional, sharded

CASTINGS = ("fp32", "llama", "gemma", "none")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class RmsNormConfig:
    """How the kernels cut up their work. Rows, blocks and warps are powers of two.

    rows, block, warps: the forward tile, in rows and columns, and the warps of its program.
    reread: one row a program, block by block, read twice; so are rows wider than a block.
    held: columns of such a row, the first ones, that are read once and kept in registers.
    split: one row a group of programs, each with one block, in a software pipeline of `stages`;
        needs a GPU where all of them run at once: 16 warps a multiprocessor. Where they cannot, a
        config of the table is not split, and one that was given is refused.
    bwd_*: the same of the backward, whose row loop is a pipeline of `bwd_stages` on
        `bwd_programs` programs a multiprocessor. Rows wider than a block, unless split, are read
        by two kernels.
    bwd_reload: read the weight again for every tile of rows, which saves registers.
    """

    rows: int
    block: int
    warps: int
    bwd_rows: int
    bwd_block: int
    bwd_warps: int
    bwd_stages: int
    bwd_programs: int
    bwd_reload: bool = False
    reread: bool = False
    held: int = 0
    split: bool = False
    stages: int = 1
    bwd_split: bool = False

    def __post_init__(self) -> None:
        check_powers_of_2(self, "rows", "block", "warps", "bwd_rows", "bwd_block", "bwd_warps")
        check_counts(self, "stages", "bwd_stages")
        if self.held:
            check_powers_of_2(self, "held")


@dataclass(frozen=True)
class _Choice:
    """A row of the table: the config for rows of at most `N` elements of 2 bytes."""

    N: float
    config: RmsNormConfig


def _narrow(N: int, bwd_rows: int, bwd_stages: int) -> _Choice:
    """Tiles of 1024 elements a warp forward: 32 a thread, and no exchange between warps."""
    config = RmsNormConfig(1024 // N, N, 1, bwd_rows, N, 4, bwd_stages, 2)
    return _Choice(N, config)


# The fastest of what was swept on an H200 (docs/rms_norm.md), for rows of 2-byte elements; rows of
# 4-byte elements take that of twice as many, with blocks of as many bytes.
_TABLE = (
    _narrow(64, 32, 4),
    _narrow(128, 16, 4),
    _narrow(256, 8, 4),
    _narrow(512, 4, 3),
    _Choice(1024, RmsNormConfig(2, 1024, 2, 2, 1024, 4, 5, 2)),
    _Choice(2048, RmsNormConfig(1, 2048, 4, 1, 2048, 4, 5, 2, reread=True)),
    _Choice(4096, RmsNormConfig(1, 2048, 8, 1, 4096, 16, 5, 1, reread=True)),
    _Choice(8192, RmsNormConfig(1, 4096, 16, 1, 8192, 16, 3, 1, reread=True)),
    _Choice(16384, RmsNormConfig(1, 4096, 32, 1, 16384, 16, 3, 1, True, reread=True)),
    _Choice(32768, RmsNormConfig(1, 8192, 32, 1, 4096, 8, 3, 2, reread=True, bwd_split=True)),
    _Choice(
        65536,
        RmsNormConfig(1, 4096, 32, 1, 4096, 8, 3, 2, reread=True, held=16384, bwd_split=True),
    ),
    _Choice(
        float("inf"),
        RmsNormConfig(1, 8192, 8, 1, 4096, 8, 3, 2, split=True, stages=3, bwd_split=True),
    ),
)
_FORWARD = ("rows", "block", "warps", "reread", "held", "split", "stages")
_FEWEST_PROGRAMS = 256  # below this many forward programs, smaller tiles fill the GPU better
_FORWARD_ELEMENTS = 64  # of a tile to a thread, at most, and half of it for 32 warps
_MOST_REREAD = 8192  # columns of a block of a row that is read twice


def configs(
    M: int,
    N: int,
    *,
    arch: str,
    mode: str,
    itemsize: int = 4,
    residual: bool = False,
    sms: int | None = None,
) -> tuple[RmsNormConfig, ...]:
    """The table's choice for M rows of N columns, then the others that a tuner may pick.

    arch: `sm_90` and the like, or `cpu` for the interpreter. mode: `fwd` and `bwd` vary what that
    pass uses, `full` varies both. itemsize: bytes of an element of x; a config for 4 is valid for
    2 as well. residual: one is added; a config for True is valid without it. sms: multiprocessors
    of the GPU; None for enough of them that rows of any width can be split. Raises ValueError for
    an unknown mode.
    """
    varied = {"fwd": _forward_variants, "bwd": _backward_variants, "full": _variants}
    if mode not in varied:
        raise ValueError(f"no mode {mode!r}. Known: {', '.join(varied)}")
    chosen = _choose(M, N, arch, itemsize, residual, sms)
    candidates = (
        _fit(c, N, arch, itemsize, residual, sms) for c in (chosen, *varied[mode](chosen, N))
    )
    return tuple(dict.fromkeys(candidates))


@lru_cache(maxsize=4096)
def _choose(
    M: int, N: int, arch: str, itemsize: int, residual: bool, sms: int | None
) -> RmsNormConfig:
    wide = max(1, itemsize // 2)
    config = _look_up(N * wide)
    if config.bwd_reload and not _whole_row_fits(N, arch, itemsize):
        wider = _look_up(2 * power_of_2(N) * wide)
        config = replace(wider, **{name: getattr(config, name) for name in _FORWARD})
    if config.reread and residual and not config.held:  # twice as much under way
        config = replace(config, block=2 * config.block, warps=min(2 * config.warps, 32))
    row_block = power_of_2(N)
    most = _MOST_REREAD if config.reread else row_block
    rows = config.rows
    while rows > 1 and rows * _FEWEST_PROGRAMS > M:
        rows //= 2
    config = replace(
        config,
        rows=rows,
        block=min(max(config.block // wide, 32), most, row_block),
        held=config.held // wide,
        bwd_block=min(max(config.bwd_block // wide, 32), row_block),
    )
    return _fit(config, N, arch, itemsize, residual, sms)


def _look_up(N: int) -> RmsNormConfig:
    return next(choice.config for choice in _TABLE if N <= choice.N)


def _whole_row_fits(N: int, arch: str, itemsize: int) -> bool:
    """Whether a backward program can hold the widest rows: without a mask, which needs too many
    registers, and with two rows of x, dy and weight in shared memory."""
    return power_of_2(N) == N and 6 * N * itemsize <= shared_memory(arch, 1)


def _fit(
    config: RmsNormConfig, N: int, arch: str, itemsize: int, residual: bool, sms: int | None
) -> RmsNormConfig:
    """The config with as many stages as shared memory holds, and rows split only where all
    programs of a row run at once."""
    if arch == "cpu":
        sms = 0  # the interpreter runs one program after another: none may wait
    if config.split and not _run_at_once(N, config.block, config.warps, sms):
        config = _reread(config)
    if config.bwd_split and not _run_at_once(N, config.bwd_block, config.bwd_warps, sms):
        config = _two_kernels(config)
    tile = config.bwd_rows * config.bwd_block * itemsize
    stage = tile * (2 + residual + (config.bwd_reload or config.bwd_split))
    stages = min(config.bwd_stages, 1 + shared_memory(arch, config.bwd_programs) // stage)
    if config.split:
        stage = config.block * itemsize * (1 + residual)
        room = shared_memory(arch, _split_programs(config.warps))
        config = replace(config, stages=min(config.stages, 1 + room // stage))
    return replace(config, bwd_stages=stages)


def _split_programs(warps: int) -> int:
    """Programs a multiprocessor that share rows: 512 threads, which may have 128 registers each."""
    return max(1, 16 // warps)


def _run_at_once(N: int, block: int, warps: int, sms: int | None) -> bool:
    """Whether all programs of a split row run at once; None stands for any number of sms."""
    return sms is None or ceil_div(N, block) <= _split_programs(warps) * sms


def _forward_variants(config: RmsNormConfig, N: int) -> Iterator[RmsNormConfig]:
    row_block = power_of_2(N)
    if config.split:
        yield replace(config, block=2 * config.block, warps=2 * config.warps)
        config = replace(config, split=False, stages=1, reread=True)
    if config.reread:
        for block, warps in ((1024, 4), (2048, 8), (4096, 16), (4096, 32), (8192, 16), (8192, 32)):
            yield replace(config, block=min(block, row_block), warps=warps, held=0)
        if row_block <= 16384:
            yield replace(config, block=row_block, warps=max(4, row_block // 1024), reread=False)
        return
    for rows in (config.rows, config.rows * 2, config.rows // 2):
        for warps in (config.warps, config.warps * 2, config.warps // 2):
            a_thread = rows * config.block // (32 * max(warps, 1))
            most = _FORWARD_ELEMENTS // (2 if warps == 32 else 1)
            if rows >= 1 and 1 <= warps <= 32 and a_thread <= most:
                yield replace(config, rows=rows, warps=warps)


def _backward_variants(config: RmsNormConfig, N: int) -> Iterator[RmsNormConfig]:
    stages = sorted({2, config.bwd_stages, config.bwd_stages + 1})
    if config.bwd_split:
        for stage in stages:
            yield replace(config, bwd_stages=stage)
            yield replace(config, bwd_stages=stage, bwd_block=2 * config.bwd_block, bwd_warps=16)
        yield _two_kernels(config)
        return
    for rows in {config.bwd_rows: None, max(1, config.bwd_rows // 2): None}:
        for stage in stages:
            yield replace(config, bwd_rows=rows, bwd_stages=stage)
    yield replace(config, bwd_programs=2 * config.bwd_programs)
    yield replace(config, bwd_warps=2 * config.bwd_warps if config.bwd_warps < 16 else 8)
    if config.bwd_block < 16384:  # the registers suffice for either
        yield replace(config, bwd_reload=not config.bwd_reload)


def _reread(config: RmsNormConfig) -> RmsNormConfig:
    """The forward of split rows, without programs that wait for each other: of what was measured
    at N = 131072, the fastest that reads a row twice."""
    return replace(config, warps=32, reread=True, split=False, stages=1)


def _two_kernels(config: RmsNormConfig) -> RmsNormConfig:
    """The backward of rows wider than a block, without programs that wait for each other."""
    return replace(
        config,
        bwd_rows=2,
        bwd_block=min(config.bwd_block, 2048),
        bwd_warps=8,
        bwd_stages=3,
        bwd_programs=2,
        bwd_split=False,
    )


def _variants(config: RmsNormConfig, N: int) -> Iterator[RmsNormConfig]:
    """Each forward variant with a backward one, every one of either used at least once."""
    forward = tuple(_forward_variants(config, N))
    backward = tuple(_backward_variants(config, N))
    for i in range(max(len(forward), len(backward))):
        fwd, bwd = forward[i % len(forward)], backward[i % len(backward)]
        yield replace(bwd, **{name: getattr(fwd, name) for name in _FORWARD})


def _row_stride(rows: Tensor | None) -> int | None:
    """None stands for N, as a constant of which the compiler knows the divisors."""
    return None if rows is None or rows.is_contiguous() else rows.stride(0)


def _as_rows(x: Tensor, N: int) -> Tensor:
    """x itself when contiguous, else a view of shape (M, N), copied only when there is no view."""
    if x.is_contiguous():
        return x
    x_MN = x.reshape(x.numel() // N, N)
    return x_MN if x_MN.stride(1) == 1 or N == 1 else x_MN.contiguous()


def _split_grid(
    M: int, N: int, config: RmsNormConfig, device: torch.device, *, backward: bool = False
) -> tuple[int, int]:
    """Groups of programs, and programs of a group: no more in all than run at once.

    Raises ValueError when a row has more blocks than that.
    """
    prefix = "bwd_" if backward else ""
    block, warps = getattr(config, f"{prefix}block"), getattr(config, f"{prefix}warps")
    parts, sms = ceil_div(N, block), sm_count(device)
    if not _run_at_once(N, block, warps, sms):
        raise ValueError(
            f"rms_norm: {prefix}split rows of {N} columns in blocks of {prefix}block={block} take "
            f"{parts} programs at once, more than the {_split_programs(warps) * sms} that {sms} "
            f"multiprocessors run: give a config with {prefix}split=False, or none for the table's"
        )
    return min(M, _split_programs(warps) * sms // parts), parts


_TOGETHER = {"launch_cooperative_grid": True, "maxnreg": 128}  # see `_split_programs`


def forward_words(x: Tensor, N: int, config: RmsNormConfig) -> Tensor | None:
    """Memory through which the programs of a row exchange sums: (M, parts) of zeros, or None."""
    if not config.split:
        return None
    return x.new_zeros((x.numel() // N, ceil_div(N, config.block)), dtype=torch.int64)


def forward_launch(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    y: Tensor,
    total: Tensor | None,
    rstd_M: Tensor | None,
    words: Tensor | None,
    *,
    eps: float,
    casting: str,
    config: RmsNormConfig,
) -> Launch:
    """The launch that writes y, and `total` = x + residual and rstd where they are wanted.

    x and residual are contiguous, or of shape (M, N) with columns next to each other; y and
    total are contiguous; words as `forward_words` makes them. Raises ValueError when the rows
    cannot be split here, or not in the backward that a wanted rstd is for.
    """
    N = x.shape[-1]
    M = x.numel() // N
    if rstd_M is not None and config.bwd_split:
        _split_grid(M, N, config, x.device, backward=True)
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
    constexprs = {"N": N, "BLOCK_N": config.block, "CASTING": casting}
    options = {"num_warps": config.warps, "num_stages": config.stages}
    if config.split:
        groups, parts = _split_grid(M, N, config, x.device)
        args |= {"word_ptr": words, "M": M}
        constexprs |= {"PARTS": parts, "WORDS": power_of_2(parts), "STAGES": config.stages}
        grid = (groups * parts,)
        return Launch(normalise_split_rows, grid, args, constexprs, options | _TOGETHER)
    if config.reread or config.block < N:
        constexprs["HELD"] = config.held
        return Launch(normalise_wide_rows, (M,), args, constexprs, options)
    args["M"] = M
    constexprs["BLOCK_M"] = config.rows
    if config.block <= 32 * config.warps:
        # A lane may hold one element of a row. Its square would be fused into the first sum with
        # another lane's, rounded here and not there: lanes of a row would have another rstd, and y
        # other last bits with rstd saved than without.
        options["enable_fp_fusion"] = False
    return Launch(normalise_rows, (ceil_div(M, config.rows),), args, constexprs, options)


class Scratch(NamedTuple):
    """Memory that the backward's kernels share.

    partial_PN: sums of dweight over the rows of one of P programs each, None where not wanted.
    projection_M: of rows read by two kernels. words: of rows split over programs, zeros.
    """

    partial_PN: Tensor | None
    projection_M: Tensor | None
    words: Tensor | None


def _backward_grid(M: int, N: int, config: RmsNormConfig, device: torch.device) -> tuple[int, int]:
    """Programs along rows, each a row of partial sums, and along columns."""
    if config.bwd_split:
        return _split_grid(M, N, config, device, backward=True)
    blocks = ceil_div(N, config.bwd_block)
    programs = max(1, config.bwd_programs * sm_count(device) // blocks)
    return min(programs, ceil_div(M, config.bwd_rows)), blocks


def _for_gradients(config: RmsNormConfig, wants_dx: bool) -> RmsNormConfig:
    """The config; for dweight alone one in which no program waits for another."""
    return config if wants_dx or not config.bwd_split else _two_kernels(config)


def backward_scratch(
    rstd_M: Tensor, N: int, config: RmsNormConfig, *, wants_dx: bool, wants_dweight: bool
) -> Scratch:
    """Scratch memory for `backward_launches`."""
    M = rstd_M.numel()
    config = _for_gradients(config, wants_dx)
    programs, blocks = _backward_grid(M, N, config, rstd_M.device)
    two_kernels = config.bwd_block < N and wants_dx and not config.bwd_split
    return Scratch(
        rstd_M.new_empty((programs, N)) if wants_dweight else None,
        torch.empty_like(rstd_M) if two_kernels else None,
        rstd_M.new_zeros((M, blocks), dtype=torch.int64) if config.bwd_split else None,
    )


def backward_launches(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    rstd_M: Tensor,
    dtotal: Tensor | None,
    dx: Tensor | None,
    dweight: Tensor | None,
    scratch: Scratch,
    *,
    casting: str,
    arch: str,
    config: RmsNormConfig,
) -> tuple[Launch, ...]:
    """The launches, in order, that write dx and dweight, each where it is wanted.

    x is what was normalised; dy, x and dtotal (the gradient of x + residual from elsewhere) are
    laid out like `forward_launch`'s x; dx is contiguous.
    """
    N = x.shape[-1]
    M = x.numel() // N
    config = _for_gradients(config, dx is not None)
    programs, blocks = _backward_grid(M, N, config, x.device)
    read: dict[str, Any] = {"dy_ptr": dy, "x_ptr": x, "weight_ptr": weight, "rstd_ptr": rstd_M}
    strides = {"dy_stride": _row_stride(dy), "x_stride": _row_stride(x)}
    written = {"dsum_ptr": dtotal, "dx_ptr": dx, "partial_ptr": scratch.partial_PN}
    tiled = strides | {"dsum_stride": _row_stride(dtotal), "M": M}
    constexprs: dict[str, Any] = {
        "BLOCK_N": config.bwd_block,
        "OFFSET": 1.0 if casting == "gemma" else 0.0,
        "STAGES": config.bwd_stages,
    }
    options = {"num_warps": config.bwd_warps, "num_stages": config.bwd_stages}
    launches = []
    if config.bwd_split:
        args = read | {"word_ptr": scratch.words} | written | tiled
        split = constexprs | {"N": N, "PARTS": blocks, "WORDS": power_of_2(blocks)}
        grid = (programs * blocks,)
        launches.append(Launch(differentiate_split_rows, grid, args, split, options | _TOGETHER))
    else:
        projection = {"projection_ptr": scratch.projection_M}
        if scratch.projection_M is not None:
            args = read | projection | strides | {"N": N}
            launches.append(Launch(project_wide_rows, (M,), args, constexprs, options))
        args = read | projection | written | tiled
        rows = constexprs | {"N": N, "BLOCK_M": config.bwd_rows, "RELOAD": config.bwd_reload}
        launches.append(Launch(differentiate, (blocks, programs), args, rows, options))
    if scratch.partial_PN is not None:
        launches.append(_sum_launch(scratch.partial_PN, dweight, arch))
    return tuple(launches)


def _sum_launch(partial_PN: Tensor, dweight: Tensor | None, arch: str) -> Launch:
    P, N = partial_PN.shape
    early = starts_early(arch)
    return Launch(
        sum_partials,
        (ceil_div(N, 8),),
        {"partial_ptr": partial_PN, "dweight_ptr": dweight, "P": P},
        {"N": N, "BLOCK_P": min(512, power_of_2(P)), "BLOCK_N": 8, "DEPENDENT": early},
        {"num_warps": 8, "num_stages": 2, "launch_pdl": early},
    )


def push_launch(
    x: Tensor,
    tangent: Tensor | None,
    weight: Tensor | None,
    weight_tangent: Tensor | None,
    rstd_M: Tensor,
    out: Tensor,
    *,
    casting: str,
) -> Launch:
    """The launch that writes the tangent of y. x and its tangent are laid out like
    `forward_launch`'s x; out is contiguous."""
    N = x.shape[-1]
    block = min(power_of_2(N), _MOST_REREAD)
    args = {
        "x_ptr": x,
        "tangent_ptr": tangent,
        "weight_ptr": weight,
        "weight_tangent_ptr": weight_tangent,
        "rstd_ptr": rstd_M,
        "out_ptr": out,
        "x_stride": _row_stride(x),
        "tangent_stride": _row_stride(tangent),
        "N": N,
    }
    constexprs = {"BLOCK_N": block, "OFFSET": 1.0 if casting == "gemma" else 0.0}
    options = {"num_warps": min(16, max(1, block // 512)), "num_stages": 1}
    return Launch(push_rows, (x.numel() // N,), args, constexprs, options)


def _check(
    x: Tensor, weight: Tensor | None, residual: Tensor | None, eps: float | None, casting: str
) -> None:
    if x.dtype not in DTYPES or (weight is not None and weight.dtype not in DTYPES):
        of_weight = "" if weight is None else f" and weight of {weight.dtype}"
        raise TypeError(
            f"rms_norm takes float32, float16 and bfloat16, got x of {x.dtype}{of_weight}: "
            "convert them with .to()"
        )
    if x.dim() == 0 or not x.shape[-1] or (weight is not None and weight.shape != x.shape[-1:]):
        of_weight = "" if weight is None else f" and {tuple(weight.shape)}"
        raise ValueError(
            "rms_norm takes x of shape (..., N) and weight of shape (N,) with N >= 1, got "
            f"{tuple(x.shape)}{of_weight}"
        )
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        raise ValueError(
            f"rms_norm takes a residual of x's shape and dtype, {tuple(x.shape)} {x.dtype}, got "
            f"{tuple(residual.shape)} {residual.dtype}: expand or convert it"
        )
    if not (eps is None or isinstance(eps, Real)):
        raise TypeError(f"rms_norm takes eps as a number or None, got {type(eps).__name__}")
    if casting not in CASTINGS:
        near = get_close_matches(str(casting), CASTINGS, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"no casting {casting!r}{hint} Known: {', '.join(CASTINGS)}")


class _NormPlan:
    """Calls that differ only in their tensors' addresses: checked once, with prepared launches."""

    def __init__(
        self,
        x: Tensor,
        weight: Tensor | None,
        residual: Tensor | None,
        eps: float | None,
        casting: str,
        config: RmsNormConfig | None,
    ) -> None:
        device = check_device(x=x, weight=weight, residual=residual)
        _check(x, weight, residual, eps, casting)
        self.N = x.shape[-1]
        self.M = x.numel() // self.N
        self.arch = arch_of(device)
        self.eps = torch.finfo(torch.float32).eps if eps is None else float(eps)
        self.casting = casting
        self.config = config or _choose(
            self.M, self.N, self.arch, x.element_size(), residual is not None, sm_count(device)
        )
        self.repeats = Repeats(device)

    def forward(
        self, x: Tensor, weight: Tensor | None, residual: Tensor | None, save: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """y, x + residual, and rstd when it is to be saved."""
        rows = _as_rows(x, self.N)
        if residual is not None:
            residual = _as_rows(residual, self.N)
        if weight is not None:
            weight = weight.contiguous()
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        total = None if residual is None else torch.empty_like(y)
        rstd_M = x.new_empty(self.M, dtype=torch.float32) if save else None
        words = forward_words(x, self.N, self.config)
        tensors = rows, residual, weight, y, total, rstd_M, words
        self.repeats.run(save, tensors, self._forward_launches)
        return y, total, rstd_M

    def _forward_launches(self, save: bool, tensors: Sequence[Any]) -> tuple[Launch, ...]:
        how: Any = {"eps": self.eps, "casting": self.casting, "config": self.config}
        return (forward_launch(*tensors, **how),)

    def backward(
        self,
        dy: Tensor,
        dtotal: Tensor | None,
        x: Tensor,
        weight: Tensor | None,
        rstd_M: Tensor,
        wants_dx: bool,
        wants_dweight: bool,
    ) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of what was normalised and of the weight, each where it is needed.

        Hooks on saved tensors may return them with other strides.
        """
        dx = dweight = None
        if wants_dx:
            dx = torch.empty_like(dy, memory_format=torch.contiguous_format)
        if weight is not None:
            weight = weight.contiguous()
            dweight = torch.empty_like(weight) if wants_dweight else None
        dy, x, rstd_M = _as_rows(dy, self.N), _as_rows(x, self.N), rstd_M.contiguous()
        dtotal = None if dtotal is None or dx is None else _as_rows(dtotal, self.N)
        of_total = "none" if dtotal is None else _row_stride(dtotal)
        saved = x.dtype, x.device, rstd_M.dtype, rstd_M.device, weight is not None and weight.dtype
        kind = (_row_stride(dy), _row_stride(x), of_total, wants_dx, dweight is not None, *saved)
        scratch = backward_scratch(
            rstd_M, self.N, self.config, wants_dx=wants_dx, wants_dweight=dweight is not None
        )
        tensors = dy, x, weight, rstd_M, dtotal, dx, dweight, *scratch
        self.repeats.run(kind, tensors, self._backward_launches)
        return dx, dweight

    def _backward_launches(self, kind: Hashable, tensors: Sequence[Any]) -> tuple[Launch, ...]:
        arguments: Any = *tensors[:-3], Scratch(*tensors[-3:])
        how: Any = {"casting": self.casting, "arch": self.arch, "config": self.config}
        return backward_launches(*arguments, **how)


class _SplitPlan:
    """A plan with split rows, and a fallback for when the driver refuses to launch them.

    How many multiprocessors a launch may use is no property of the device: a green context has
    some of them, whether it is current or only its stream is, and the next call may run elsewhere.
    The driver refuses a cooperative launch whose programs cannot all run at once, in the call
    itself and with nothing queued (see `refused_at_once`). The split kernel is the first of its
    pass, so that only scratch memory was written and the fallback can do the whole pass. Every call
    tries again.
    """

    def __init__(self, plan: _NormPlan, fallback: _NormPlan | None, sms: int) -> None:
        self._plan = plan
        self._fallback = fallback  # None where the config was given
        self._sms = sms

    def forward(self, *args: Any, **options: Any) -> Any:
        try:
            return self._plan.forward(*args, **options)
        except RuntimeError as error:
            other = self._other(error)
        return other.forward(*args, **options)  # here, what the error's frames held is free again

    def backward(self, *args: Any, **options: Any) -> Any:
        try:
            return self._plan.backward(*args, **options)
        except RuntimeError as error:
            other = self._other(error)
        return other.backward(*args, **options)  # here, what the error's frames held is free again

    def _other(self, error: RuntimeError) -> _NormPlan:
        if not refused_at_once(error):
            raise error
        if self._fallback is None:
            raise ValueError(
                f"rms_norm: split rows of {self._plan.N} columns take more programs at once than "
                f"run on the current stream, which may have fewer than the GPU's {self._sms} "
                "multiprocessors (a green context): give a config with split=False and "
                "bwd_split=False, or none for the table's"
            ) from error
        return self._fallback


def _make_plan(
    x: Tensor,
    weight: Tensor | None,
    residual: Tensor | None,
    eps: float | None,
    casting: str,
    config: RmsNormConfig | None,
) -> _NormPlan | _SplitPlan:
    plan = _NormPlan(x, weight, residual, eps, casting, config)
    if not (plan.config.split or plan.config.bwd_split):
        return plan
    fallback = None
    if config is None:
        unsplit = _fit(
            plan.config, plan.N, plan.arch, x.element_size(), residual is not None, sms=0
        )
        fallback = _NormPlan(x, weight, residual, eps, casting, unsplit)
    return _SplitPlan(plan, fallback, sm_count(x.device))


_PLANS: Plans[_NormPlan | _SplitPlan] = Plans()


def _plan(
    x: Tensor,
    weight: Tensor | None,
    residual: Tensor | None,
    eps: float | None,
    casting: str,
    config: RmsNormConfig | None,
) -> _NormPlan | _SplitPlan:
    key = (
        (x.shape, x.stride(), x.dtype, x.device),
        weight
        if weight is None
        else (weight.shape, weight.stride(), weight.dtype, weight.get_device()),
        residual
        if residual is None
        else (residual.shape, residual.stride(), residual.dtype, residual.get_device()),
        eps,
        casting,
        config,
    )
    plan = _PLANS.get(key)
    if plan is None:
        plan = _PLANS.add(key, _make_plan(x, weight, residual, eps, casting, config))
    return plan


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, residual, plan):
        ctx.set_materialize_grads(False)
        ctx.plan = plan
        y, total, rstd_M = plan.forward(x, weight, residual, save=True)
        ctx.save_for_backward(x if total is None else total, weight, rstd_M)
        return y if total is None else (y, total)

    @staticmethod
    @differentiable_once
    def backward(ctx, dy, dtotal=None):
        of_x, of_weight, of_residual, _ = ctx.needs_input_grad
        if dy is None:  # only x + residual was used
            dx, dweight = dtotal, None
        else:
            dx, dweight = ctx.plan.backward(
                dy, dtotal, *ctx.saved_tensors, of_x or of_residual, of_weight
            )
        return dx if of_x else None, dweight, dx if of_residual else None, None


@torch.library.custom_op("kernelbench::rms_norm", mutates_args=())
def _operator(
    x: Tensor,
    weight: Tensor | None,
    residual: Tensor | None,
    eps: float | None,
    casting: str,
    config: list[int],
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, x + residual, and rstd of x's shape but the last axis; `absent` for what is not wanted."""
    plan = _plan(x, weight, residual, eps, casting, of_numbers(RmsNormConfig, config))
    y, total, rstd_M = plan.forward(x, weight, residual, save)
    return (
        y,
        absent(x) if total is None else total,
        absent(x).float() if rstd_M is None else rstd_M.view(x.shape[:-1]),
    )


@without_data(_operator)
def _(x, weight, residual, eps, casting, config, save):
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    total = absent(x) if residual is None else torch.empty_like(y)
    return y, total, x.new_empty(x.shape[:-1] if save else 0, dtype=torch.float32)


@torch.library.custom_op("kernelbench::rms_norm_backward", mutates_args=())
def _operator_backward(
    dy: Tensor,
    dtotal: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    rstd: Tensor,
    summed: bool,
    casting: str,
    config: list[int],
    wants_dx: bool,
    wants_dweight: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of what was normalised, x, and of the weight; summed: of x and a residual."""
    residual = x if summed else None
    plan = _plan(x, weight, residual, 0.0, casting, of_numbers(RmsNormConfig, config))
    dx, dweight = plan.backward(dy, dtotal, x, weight, rstd.reshape(-1), wants_dx, wants_dweight)
    return absent(x) if dx is None else dx, absent(x) if dweight is None else dweight


@without_data(_operator_backward)
def _(dy, dtotal, x, weight, rstd, summed, casting, config, wants_dx, wants_dweight):
    packed = torch.contiguous_format
    dx = torch.empty_like(x, memory_format=packed) if wants_dx else absent(x)
    if weight is None or not wants_dweight:
        return dx, absent(x)
    return dx, torch.empty_like(weight, memory_format=packed)


@torch.library.custom_op("kernelbench::rms_norm_jvp", mutates_args=())
def _operator_jvp(
    x: Tensor,
    tangent: Tensor | None,
    weight: Tensor | None,
    weight_tangent: Tensor | None,
    rstd: Tensor,
    casting: str,
) -> Tensor:
    """The tangent of y by those of what was normalised, x, and of the weight."""
    N = x.shape[-1]
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    rows = _as_rows(x, N)
    tangent = None if tangent is None else _as_rows(tangent, N)
    weight = None if weight is None else weight.contiguous()
    weight_tangent = None if weight_tangent is None else weight_tangent.contiguous()
    arguments = rows, tangent, weight, weight_tangent, rstd.reshape(-1), out
    with on_device(x.device):
        push_launch(*arguments, casting=casting).run()
    return out


@without_data(_operator_jvp)
def _(x, tangent, weight, weight_tangent, rstd, casting):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _keep(ctx, inputs, output):
    x, weight, residual, _, ctx.casting, ctx.config, _ = inputs
    _, total, rstd = output
    ctx.summed = residual is not None
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*((rstd,) if ctx.summed else (rstd, total)))
    saved = total if ctx.summed else x, weight, rstd
    ctx.save_for_backward(*saved)
    ctx.save_for_forward(*saved)


def _gradients(ctx, dy, dtotal, _, call=_operator_backward):
    of_x, of_weight, of_residual, *others = ctx.needs_input_grad
    dx, dweight = dtotal, None
    if dy is not None:  # else only x + residual was used
        rest = {"summed": ctx.summed, "casting": ctx.casting, "config": ctx.config}
        rest |= {"wants_dx": of_x or of_residual, "wants_dweight": of_weight}
        dx, dweight = call(dy, dtotal, *ctx.saved_tensors, **rest)
    dx_dweight_dr = (
        dx if of_x else None,
        dweight if of_weight else None,
        dx if of_residual else None,
    )
    return *dx_dweight_dr, *(None for _ in others)


_operator.register_autograd(_gradients, setup_context=_keep)


def _tangents(ctx, x, weight, residual):
    source, factors, rstd = ctx.saved_tensors
    if x is None or residual is None:
        only = residual if x is None else x
        # The tangent of r must not alias an input's.
        total = only.clone() if only is not None and ctx.summed else only
    else:
        total = x + residual
    push = final(_operator_jvp)
    y = push(source, total, factors, weight, rstd, casting=ctx.casting)
    if ctx.summed and total is None:
        total = torch.zeros_like(source)
    return y, total if ctx.summed else None, None


def _ways(x, weight, residual, eps, casting, config, save):
    for axis in range(x.ndim - 1):
        results = axis, needed_cut(residual is not None, axis), needed_cut(save, axis)
        yield results, (axis, optional(weight, WHOLE), optional(residual, axis))


def _ways_backward(dy, dtotal, x, weight, rstd, summed, casting, config, wants_dx, wants_dweight):
    for axis in range(x.ndim - 1):
        results = (
            needed_cut(wants_dx, axis),
            needed_cut(weight is not None and wants_dweight, PARTIAL),
        )
        yield results, (axis, optional(dtotal, axis), axis, optional(weight, WHOLE), axis)


sharded(_operator, _ways)
sharded(_operator_backward, _ways_backward)
_TRANSFORM = Transform(
    "rms_norm",
    _operator,
    _keep,
    partial(_gradients, call=final(_operator_backward)),
    _tangents,
)


def _by_operator(
    x: Tensor,
    weight: Tensor | None,
    residual: Tensor | None,
    eps: float | None,
    casting: str,
    config: RmsNormConfig | None,
) -> Tensor | tuple[Tensor, Tensor]:
    refuse_some_on_meta("rms_norm", x, weight, residual)
    admit("rms_norm", x, weight, residual)
    _check(x, weight, residual, eps, casting)
    numbers = numbers_of(config)
    if transformed():
        y, total, _ = _TRANSFORM((x, weight, residual), (eps, casting, numbers, True))
    else:
        save = graded(x, weight, residual)
        y, total, _ = _operator(x, weight, residual, eps, casting, numbers, save)
    return y if residual is None else (y, total)


def rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    eps: float | None = 1e-6,
    *,
    residual: Tensor | None = None,
    casting: str = "fp32",
    config: RmsNormConfig | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """y = x · rsqrt(mean(x²) + eps) · weight over the last axis, in one read and one write.

    x: (..., N) of float32, float16 or bfloat16, any strides; rows that do not lie at one
        distance from each other, columns next to each other, cost a copy.
    weight: (N,) of any of these dtypes, or None for a factor of 1.
    eps: a number, or None for that of fp32, as `torch.nn.functional.rms_norm` has it.
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
    come, nothing is kept for one. Forward mode (jvp) is in fp32, too, and as final.

    torch.compile and torch.export take it as one operator, `kernelbench::rms_norm`.

    Raises TypeError for other dtypes, nested tensors or an eps that is no number; ValueError for
    shapes that do not fit or an unknown casting; RuntimeError for tensors that are not on one
    device where Triton runs, or have no memory.

    Zhang and Sennrich, Root Mean Square Layer Normalization, 2019 (arXiv:1910.07467).
    """
    if not direct(x, weight, residual) or (x.is_meta and refusal(x.device)):
        return _by_operator(x, weight, residual, eps, casting, config)
    try:
        plan = _plan(x, weight, residual, eps, casting, config)
    except RuntimeError:
        admit("rms_norm", x, weight, residual)  # may raise a clearer error
        raise
    if torch.is_grad_enabled() and (
        x.requires_grad
        or (weight is not None and weight.requires_grad)
        or (residual is not None and residual.requires_grad)
    ):
        result: Tensor | tuple[Tensor, Tensor] = _RmsNorm.apply(x, weight, residual, plan)
        return result
    y, total, _ = plan.forward(x, weight, residual, save=False)
    return y if total is None else (y, total)
