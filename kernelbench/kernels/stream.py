"""Kernels that only move memory: they clear the L2 between samples, and probe a machine's rates;
and one that compares two results without a wait of the host.

Lines that a kernel loads with `evict_last`, or through a persisting access window, survive any
amount of ordinary traffic in the part of the L2 that the driver reserves for them (11.25 of 60 MiB
on an H200 by default). To evict them, `claim` fills that part with its own lines, and
`write_and_release` then makes those ordinary again.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernelbench.kernels.launch import Launch, ceil_div

LINE = 128  # bytes of a line, the unit whose priority can be reset
_BLOCK, _WARPS = 4096, 8


@triton.jit
def _claim(source, sink, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.sum(tl.load(source + at, eviction_policy="evict_last"), 0)
    tl.store(sink, total, mask=total == 12345)


@triton.jit
def _write_and_release(target, claimed, lines, BLOCK: tl.constexpr, PER_LINE: tl.constexpr):
    program = tl.program_id(0)
    line = program * (BLOCK // PER_LINE) + tl.arange(0, BLOCK // PER_LINE)
    tl.inline_asm_elementwise(
        """{
        .reg .pred owned;
        setp.ne.s32 owned, $2, 0;
        @owned applypriority.global.L2::evict_normal [$1], 128;
        mov.u32 $0, 0;
        }""",
        "=r,l,r",
        [claimed + line * PER_LINE, (line < lines).to(tl.int32)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
    tl.store(target + program * BLOCK + tl.arange(0, BLOCK), 0.0)


@triton.jit
def _read(source, sink, n, BLOCK: tl.constexpr, TIMES: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * (BLOCK * TIMES)
    partial = tl.zeros((BLOCK,), tl.float32)
    for i in tl.static_range(TIMES):
        at = start + i * BLOCK + tl.arange(0, BLOCK)
        partial += tl.load(source + at, mask=at < n, other=0.0)
    total = tl.sum(partial, 0)
    tl.store(sink, total, mask=total == 12345)


@triton.jit
def _copy(source, target, n, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + at, tl.load(source + at, mask=at < n), mask=at < n)


@triton.jit
def _write(target, n, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + at, 1.0, mask=at < n)


@triton.jit
def _differ(out, proven, into, n, element, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    a = tl.load(out + at, mask=inside, other=0).to(WIDE)
    b = tl.load(proven + at, mask=inside, other=0).to(WIDE)
    gap = tl.where(a == b, 0.0, (a - b).to(tl.float32))
    bad = tl.sum(tl.where(tl.abs(gap) <= element, 0.0, 1.0), 0)
    square = tl.sum(gap * gap, 0)
    product = tl.sum(tl.where(gap == 0.0, 0.0, gap * b.to(tl.float32)), 0)
    tl.atomic_add(into, bad, mask=bad != 0.0)
    tl.atomic_add(into + 1, square, mask=square != 0.0)
    tl.atomic_add(into + 2, product, mask=product != 0.0)


def claim(source: Tensor, sink: Tensor) -> Launch:
    """Read `source` so that its lines replace all other persisting ones.

    source: float32, a multiple of 16 KiB, as large as the part that can be reserved.
    sink: float32, one element; not written, but the compiler cannot know.
    """
    assert source.numel() % _BLOCK == 0
    grid = (source.numel() // _BLOCK,)
    args = {"source": source, "sink": sink}
    return Launch(_claim, grid, args, {"BLOCK": _BLOCK}, {"num_warps": _WARPS})


def write_and_release(target: Tensor, claimed: Tensor) -> Launch:
    """Write `target`, and make the lines of `claimed` ordinary again.

    target, claimed: float32, a multiple of 16 KiB; target the larger.
    """
    assert target.numel() % _BLOCK == 0 and claimed.numel() % _BLOCK == 0
    constexprs = {"BLOCK": _BLOCK, "PER_LINE": LINE // 4}
    args = {"target": target, "claimed": claimed, "lines": claimed.numel() * 4 // LINE}
    grid = (target.numel() // _BLOCK,)
    return Launch(_write_and_release, grid, args, constexprs, {"num_warps": _WARPS})


def read(source: Tensor, sink: Tensor, block: int = _BLOCK, times: int = 1) -> Launch:
    """Read float32 `source` in pieces of `times` × `block` elements a program, 16 KiB by default.

    sink: float32, one element; not written, but the compiler cannot know.
    """
    n = source.numel()
    grid = (ceil_div(n, block * times),)
    constexprs = {"BLOCK": block, "TIMES": times}
    args = {"source": source, "sink": sink, "n": n}
    return Launch(_read, grid, args, constexprs, {"num_warps": 8 if block > 2048 else 4})


def copy(source: Tensor, target: Tensor, block: int, num_warps: int) -> Launch:
    """Copy `source` to `target`, of the same dtype and size, `block` elements a program."""
    n = source.numel()
    args = {"source": source, "target": target, "n": n}
    return Launch(_copy, (ceil_div(n, block),), args, {"BLOCK": block}, {"num_warps": num_warps})


def write(target: Tensor, block: int) -> Launch:
    """Fill `target` with ones, `block` elements a program."""
    n = target.numel()
    args = {"target": target, "n": n}
    return Launch(_write, (ceil_div(n, block),), args, {"BLOCK": block}, {"num_warps": 4})


_WIDE = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.float32,
    torch.float16: tl.float32,
}


def differ(out: Tensor, proven: Tensor, element: float, into: Tensor) -> Launch:
    """Add to `into`, three float32: how many elements differ by more than `element` or are NaN,
    Σ (out − proven)², Σ (out − proven)·proven. Equal infinities do not differ.

    out, proven: of one dtype, shape and strides, dense; fp8 is not served.
    """
    if out.dtype is torch.bool:
        out, proven = out.view(torch.uint8), proven.view(torch.uint8)
    n = out.numel()
    wide = _WIDE[out.dtype] if out.is_floating_point() else tl.int64
    args = {"out": out, "proven": proven, "into": into, "n": n, "element": element}
    constexprs = {"BLOCK": _BLOCK, "WIDE": wide}
    return Launch(_differ, (ceil_div(n, _BLOCK),), args, constexprs, {"num_warps": 4})
