"""Rotary position embedding of q and k in one launch, forward and backward.

Shapes: B batch, S tokens, H heads (Hq of q, Hk of k), D head size, C = D/2 angles of a token.
Tensors are read and written where they lie, by their strides: (B,S,H,D) views of (B,H,S,D)
storage or of a packed qkv cost no copy. Bandwidth bounds it: each element is read and written
once for 3 flops; a token's cosines and sines are read once for a tile of heads.
"""

import math
import operator
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernelbench.kernels.launch import (
    Launch,
    Plans,
    Repeats,
    ceil_div,
    check_device,
    check_powers_of_2,
    layout_of,
    packed_rows,
    power_of_2,
    refusal,
)
from kernelbench.kernels.operators import (
    Transform,
    admit,
    direct,
    numbers_of,
    of_numbers,
    refuse_some_on_meta,
    transformed,
    without_data,
)
from kernelbench.kernels.sharding import WHOLE, optional, sharded

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@triton.jit
def _stride(stride, dense: tl.constexpr):
    """None stands for that of dense rows: a constant of which the compiler knows the divisors."""
    return dense if stride is None else stride


@triton.jit
def _rotate(
    q_ptr,
    k_ptr,
    q_out_ptr,
    k_out_ptr,
    cos_ptr,
    sin_ptr,
    offset_ptr,
    q_stride_B,
    q_stride_S,
    q_stride_H,
    k_stride_B,
    k_stride_S,
    k_stride_H,
    q_out_stride_B,
    q_out_stride_S,
    q_out_stride_H,
    k_out_stride_B,
    k_out_stride_S,
    k_out_stride_H,
    cos_stride_B,
    cos_stride_S,
    sin_stride_B,
    sin_stride_S,
    offset_stride,
    B,
    S,
    POSITIONS,
    HQ: tl.constexpr,
    HK: tl.constexpr,
    D: tl.constexpr,
    C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    INVERSE: tl.constexpr,
    HEADS_APART: tl.constexpr,
):
    """BLOCK_S tokens of BLOCK_H heads a program; heads are those of q, then those of k.

    Programs next to each other are next to each other in memory: HEADS_APART says that the tokens
    of a head are, not the heads of a token. Of each head the first 2C of D elements turn; the rest
    is copied, by BLOCK_REST elements, where that is not 0. A token's angles are those of its
    position, which an offset of its sequence may move; of none of the POSITIONS they are NaN.
    """
    dtype: tl.constexpr = q_out_ptr.dtype.element_ty
    HEAD_TILES: tl.constexpr = (HQ + HK + BLOCK_H - 1) // BLOCK_H
    if HEADS_APART:
        token_tiles = tl.cdiv(S, BLOCK_S)
        head_tile = tl.program_id(0) // token_tiles
        token_tile = tl.program_id(0) % token_tiles
    else:
        head_tile = tl.program_id(0) % HEAD_TILES
        token_tile = tl.program_id(0) // HEAD_TILES
    b = tl.program_id(1).to(tl.int64) + tl.program_id(2).to(tl.int64) * tl.num_programs(1)

    token_S = (token_tile * BLOCK_S + tl.arange(0, BLOCK_S)).to(tl.int64)
    head_H = (head_tile * BLOCK_H + tl.arange(0, BLOCK_H)).to(tl.int64)
    of_q_H = head_H < HQ
    x_ptr_H = tl.where(
        of_q_H,
        q_ptr + b * q_stride_B + head_H * _stride(q_stride_H, D),
        k_ptr + b * k_stride_B + (head_H - HQ) * _stride(k_stride_H, D),
    )
    out_ptr_H = tl.where(
        of_q_H,
        q_out_ptr + b * q_out_stride_B + head_H * _stride(q_out_stride_H, D),
        k_out_ptr + b * k_out_stride_B + (head_H - HQ) * _stride(k_out_stride_H, D),
    )
    x_stride_H = tl.where(of_q_H, _stride(q_stride_S, D), _stride(k_stride_S, D))
    out_stride_H = tl.where(of_q_H, _stride(q_out_stride_S, D), _stride(k_out_stride_S, D))
    x_ptr_SH = x_ptr_H[None, :] + token_S[:, None] * x_stride_H[None, :]
    out_ptr_SH = out_ptr_H[None, :] + token_S[:, None] * out_stride_H[None, :]
    mask_SH = ((token_S < S) & (b < B))[:, None] & (head_H < HQ + HK)[None, :]

    # The angles are read anew for each head, from L1: laid out as x is, they need no exchange.
    c_C = tl.arange(0, BLOCK_C)
    mask_SHC = mask_SH[:, :, None] & (c_C < C)[None, None, :]
    token_SH = token_S[:, None] + tl.zeros([BLOCK_H], tl.int64)[None, :]
    if offset_ptr is not None:
        token_SH += tl.load(offset_ptr + b * offset_stride, mask=b < B, other=0).to(tl.int64)
        known_SHC = mask_SHC & ((token_SH >= 0) & (token_SH < POSITIONS))[:, :, None]
    else:
        known_SHC = mask_SHC
    cos_ptr_SH = cos_ptr + b * cos_stride_B + token_SH * _stride(cos_stride_S, C)
    sin_ptr_SH = sin_ptr + b * sin_stride_B + token_SH * _stride(sin_stride_S, C)
    cos_ptr_SHC = cos_ptr_SH[:, :, None] + c_C[None, None, :]
    sin_ptr_SHC = sin_ptr_SH[:, :, None] + c_C[None, None, :]
    cos_SHC = tl.load(cos_ptr_SHC, mask=known_SHC, other=float("nan")).to(tl.float32)
    sin_SHC = tl.load(sin_ptr_SHC, mask=known_SHC, other=float("nan")).to(tl.float32)
    if INVERSE:
        sin_SHC = -sin_SHC

    if INTERLEAVED:
        d_D = tl.arange(0, 2 * BLOCK_C)
        mask_SHD = mask_SH[:, :, None] & (d_D < 2 * C)[None, None, :]
        x_ptr_SHD = x_ptr_SH[:, :, None] + d_D[None, None, :]
        x_SHD = tl.load(x_ptr_SHD, mask=mask_SHD, other=0.0).to(tl.float32)
        x1_SHC, x2_SHC = tl.split(tl.reshape(x_SHD, [BLOCK_S, BLOCK_H, BLOCK_C, 2]))
        out1_SHC = x1_SHC * cos_SHC - x2_SHC * sin_SHC
        out2_SHC = x2_SHC * cos_SHC + x1_SHC * sin_SHC
        out_SHD = tl.reshape(tl.join(out1_SHC, out2_SHC), [BLOCK_S, BLOCK_H, 2 * BLOCK_C])
        tl.store(out_ptr_SH[:, :, None] + d_D[None, None, :], out_SHD.to(dtype), mask=mask_SHD)
    else:
        x_ptr_SHC = x_ptr_SH[:, :, None] + c_C[None, None, :]
        out_ptr_SHC = out_ptr_SH[:, :, None] + c_C[None, None, :]
        x1_SHC = tl.load(x_ptr_SHC, mask=mask_SHC, other=0.0).to(tl.float32)
        x2_SHC = tl.load(x_ptr_SHC + C, mask=mask_SHC, other=0.0).to(tl.float32)
        out1_SHC = x1_SHC * cos_SHC - x2_SHC * sin_SHC
        out2_SHC = x2_SHC * cos_SHC + x1_SHC * sin_SHC
        tl.store(out_ptr_SHC, out1_SHC.to(dtype), mask=mask_SHC)
        tl.store(out_ptr_SHC + C, out2_SHC.to(dtype), mask=mask_SHC)
    if BLOCK_REST:
        d_R = 2 * C + tl.arange(0, BLOCK_REST)
        mask_SHR = mask_SH[:, :, None] & (d_R < D)[None, None, :]
        rest_SHR = tl.load(x_ptr_SH[:, :, None] + d_R[None, None, :], mask=mask_SHR)
        tl.store(out_ptr_SH[:, :, None] + d_R[None, None, :], rest_SHR, mask=mask_SHR)


@dataclass(frozen=True)
class RotaryConfig:
    """A program's tile, `block_s` tokens of `block_h` heads, and its warps; all powers of two."""

    block_s: int
    block_h: int
    warps: int

    def __post_init__(self) -> None:
        check_powers_of_2(self, "block_s", "block_h", "warps")


_PAIRS = 512  # of a program of one warp: 16 a thread, in 16-byte loads for 2-byte elements


def configs(
    S: int, heads: int, D: int, *, arch: str, heads_apart: bool = False
) -> tuple[RotaryConfig, ...]:
    """What is chosen for S tokens of heads of D elements, then others that a tuner may pick.

    heads: of q and k together. arch: `sm_90` and the like, or `cpu`; the tiles use little shared
    memory, so that one choice serves every architecture and dtype. heads_apart: the tokens of a
    head are next to each other in memory, not the heads of a token.
    """
    chosen = _choose(S, heads, D, heads_apart)
    return tuple(dict.fromkeys((chosen, *_variants(chosen, S, heads))))[:12]


@lru_cache(maxsize=4096)
def _choose(S: int, heads: int, D: int, heads_apart: bool) -> RotaryConfig:
    """A tile of neighbours in memory: tokens, or heads where no more than a third stays idle."""
    tile = max(1, _PAIRS // power_of_2(D // 2))
    block_h = 1 if heads_apart else min(tile, power_of_2(heads))
    while 3 * ceil_div(heads, block_h) * block_h > 4 * max(heads, 1):
        block_h //= 2
    block_s = min(tile // block_h, power_of_2(S))
    return RotaryConfig(block_s, min(tile // block_s, power_of_2(heads)), 1)


def _variants(config: RotaryConfig, S: int, heads: int) -> Iterator[RotaryConfig]:
    """The same tile cut otherwise, and tiles of 2 and 4 times as much on as many warps."""
    tile = config.block_s * config.block_h
    for times in (1, 2, 4):
        block_h = 1
        while block_h <= min(times * tile, power_of_2(heads)):
            block_s = times * tile // block_h
            if block_s <= power_of_2(S):
                yield RotaryConfig(block_s, block_h, times)
            block_h *= 2


def rotary_launch(
    q: Tensor,
    k: Tensor,
    q_out: Tensor,
    k_out: Tensor,
    cos: Tensor,
    sin: Tensor,
    offsets: Tensor | None = None,
    *,
    interleaved: bool,
    inverse: bool,
    config: RotaryConfig,
) -> Launch:
    """The launch that rotates q into q_out and k into k_out, by -angle when `inverse`.

    Shapes and strides as `apply_rotary` takes them; out may be the same tensor as in. Either of q
    and k may have no heads. As many elements of a head turn as cos and sin have columns for.
    """
    B, S, HQ, D = q.shape
    HK, C = k.shape[2], cos.shape[-1]
    rest = 0 if q_out is q else D - 2 * C
    tiles = ceil_div(HQ + HK, config.block_h)
    args: dict[str, Any] = {
        "q_ptr": q,
        "k_ptr": k,
        "q_out_ptr": q_out,
        "k_out_ptr": k_out,
        "cos_ptr": cos,
        "sin_ptr": sin,
        "offset_ptr": offsets,
        "offset_stride": None if offsets is None else offsets.stride(0),
        "POSITIONS": cos.shape[-2],
        "cos_stride_B": _batch_stride(cos),
        "cos_stride_S": _sparse(cos.stride(-2), C),
        "sin_stride_B": _batch_stride(sin),
        "sin_stride_S": _sparse(sin.stride(-2), C),
        "B": B,
        "S": S,
    }
    args |= _strides(q=q, k=k, q_out=q_out, k_out=k_out)
    constexprs = {
        "HQ": HQ,
        "HK": HK,
        "D": D,
        "C": C,
        "BLOCK_S": config.block_s,
        "BLOCK_H": config.block_h,
        "BLOCK_C": power_of_2(C),
        "BLOCK_REST": power_of_2(rest) if rest else 0,
        "INTERLEAVED": interleaved,
        "INVERSE": inverse,
        "HEADS_APART": _heads_apart(q),
    }
    grid = (ceil_div(S, config.block_s) * tiles, min(B, _MOST_ALONG), ceil_div(B, _MOST_ALONG))
    return Launch(_rotate, grid, args, constexprs, {"num_warps": config.warps, "num_stages": 1})


def _strides(**tensors: Tensor) -> dict[str, int | None]:
    """Of q, k and what they become, by the kernel's names."""
    strides = dict[str, int | None]()
    for name, x in tensors.items():
        stride_B, stride_S, stride_H, _ = x.stride()
        D = x.shape[-1]
        strides[f"{name}_stride_B"] = stride_B
        strides[f"{name}_stride_S"] = _sparse(stride_S, D)
        strides[f"{name}_stride_H"] = _sparse(stride_H, D)
    return strides


_MOST_ALONG = 65535  # programs along the second and third axis of a grid


def _heads_apart(q: Tensor) -> bool:
    return q.stride(1) < q.stride(2)


def _sparse(stride: int, dense: int) -> int | None:
    return None if stride == dense else stride


def _batch_stride(table: Tensor) -> int:
    return table.stride(0) if table.dim() == 3 and table.shape[0] > 1 else 0


def _check(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, offsets: Tensor | None) -> None:
    if q.dtype not in DTYPES or k.dtype != q.dtype:
        raise TypeError(
            f"apply_rotary takes q and k of one dtype, float32, float16 or bfloat16, got "
            f"{q.dtype} and {k.dtype}: convert them with .to()"
        )
    q_shape, k_shape = q.shape, k.shape
    if (
        len(q_shape) != 4
        or len(k_shape) != 4
        or q_shape[:2] != k_shape[:2]
        or q_shape[3] != k_shape[3]
    ):
        raise ValueError(
            f"apply_rotary takes q (B,S,Hq,D) and k (B,S,Hk,D), got {tuple(q_shape)} and "
            f"{tuple(k_shape)}"
        )
    B, S, _, D = q_shape
    rows = S if offsets is None or cos.dim() < 2 else cos.shape[-2]
    pairs = min(cos.shape[-1], D // 2) if cos.dim() else 0
    _check_table("cos", cos, q.dtype, B, rows, pairs)
    _check_table("sin", sin, q.dtype, B, rows, pairs)
    if offsets is not None and (offsets.shape != (B,) or offsets.dtype not in _INTEGERS):
        raise ValueError(
            f"apply_rotary takes offsets of shape (B,), here {(B,)}, of int32 or int64, got "
            f"{tuple(offsets.shape)} of {offsets.dtype}"
        )
    for name, x in (("q", q), ("k", k), ("cos", cos), ("sin", sin)):
        if x.stride(-1) != 1 and x.shape[-1] > 1:
            raise ValueError(
                f"apply_rotary takes {name} with its last axis contiguous, got strides "
                f"{x.stride()}: call .contiguous() on it"
            )


_INTEGERS = (torch.int32, torch.int64)


def _has_pairs(q: Tensor, table: Tensor) -> bool:
    """Whether a table has one column for each pair of a head."""
    return bool(q.dim() and table.dim() and 2 * table.shape[-1] == q.shape[-1])


def _tables(
    q: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
    rotary_dim: int | None,
    offsets: int | Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """cos and sin with one column for each pair that turns, and the offsets of sequences.

    Tables of as many columns as elements turn, each angle twice, are those of Hugging Face.
    """
    if q.dim() != 4:
        return cos, sin, None  # `_check` refuses it
    if offsets is not None and not isinstance(offsets, (Tensor, int, torch.SymInt)):
        try:
            offsets = operator.index(offsets)
        except TypeError:
            raise TypeError(
                "apply_rotary takes offsets as a whole number or a tensor (B,), got "
                f"{type(offsets).__name__}"
            ) from None
    S, D = q.shape[1], q.shape[3]
    turned = D if rotary_dim is None else rotary_dim
    if turned % 2 or not 0 < turned <= D:
        size_name = "D" if rotary_dim is None else "rotary_dim"
        raise ValueError(
            f"apply_rotary rotates pairs, so that {size_name} must be even and from 2 to D = {D}, "
            f"got {turned}"
        )
    tables = []
    for name, table in (("cos", cos), ("sin", sin)):
        if table.dim() < 2 or table.shape[-1] not in (turned // 2, turned):
            rows = f"{S}" if offsets is None else "rows"
            raise ValueError(
                f"apply_rotary takes {name} of shape (S, D/2) or (B, S, D/2), here "
                f"({rows}, {turned // 2}), or with each angle twice ({rows}, {turned}), got "
                f"{tuple(table.shape)}: one column for each pair"
            )
        if table.shape[-1] == turned:
            table = table[..., ::2].contiguous() if interleaved else table[..., : turned // 2]
        if isinstance(offsets, (int, torch.SymInt)):
            if not 0 <= offsets <= table.shape[-2] - S:
                raise ValueError(
                    f"apply_rotary takes offsets from 0 to {table.shape[-2] - S}, as {name} has "
                    f"{table.shape[-2]} positions and there are {S} tokens, got {offsets}"
                )
            table = table[..., offsets : offsets + S, :]
        tables.append(table)
    return tables[0], tables[1], offsets if isinstance(offsets, Tensor) else None


def _check_table(name: str, table: Tensor, dtype: torch.dtype, B: int, S: int, C: int) -> None:
    if table.dtype not in (torch.float32, dtype):
        raise TypeError(
            f"apply_rotary takes {name} of float32 or q's {dtype}, got {table.dtype}: "
            "convert it with .to()"
        )
    if table.shape not in ((S, C), (B, S, C), (1, S, C)):
        raise ValueError(
            f"apply_rotary takes {name} of shape (S, D/2) or (B, S, D/2), here {(S, C)} or "
            f"{(B, S, C)}, got {tuple(table.shape)}: one column for each pair"
        )
    if table.requires_grad:
        raise ValueError(f"{name} requires grad but gets none from apply_rotary: detach it")


def _check_leaves(q: Tensor, k: Tensor) -> None:
    for name, x in (("q", q), ("k", k)):
        if x.is_leaf and x.requires_grad:
            raise ValueError(
                f"{name} is a leaf that requires grad, so that it cannot be rotated in place: "
                "pass inplace=False"
            )


def _check_apart(q: Tensor, k: Tensor) -> None:
    """The checks that need no addresses. Raises ValueError for expanded tensors, and for a q that
    is k."""
    for name, x in (("q", q), ("k", k)):
        if any(s == 0 and n > 1 for s, n in zip(x.stride(), x.shape, strict=True)):
            raise ValueError(f"{name} is expanded, so that it cannot be rotated in place: clone it")
    if k is q:
        raise ValueError(
            "q and k are one tensor, which would be rotated twice in place: clone one of them, "
            "or pass inplace=False"
        )


def _check_writable(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Raise ValueError where an element would be written twice, or a table overwritten."""
    _check_apart(q, k)
    for name, x in (("q", q), ("k", k)):
        if _overlaps_itself(x):
            raise ValueError(
                f"{name} has elements that share memory (strides {x.stride()} of shape "
                f"{tuple(x.shape)}), so that it cannot be rotated in place: clone it, or pass "
                "inplace=False"
            )
    tensors = {"q": q, "k": k, "cos": cos, "sin": sin}
    for first, second in (("q", "k"), ("q", "cos"), ("q", "sin"), ("k", "cos"), ("k", "sin")):
        if _overlap(tensors[first], tensors[second]):
            raise ValueError(
                f"{first} and {second} share memory, so that they cannot be rotated in place: "
                "clone one of them, or pass inplace=False"
            )


_Term = tuple[int, int]  # a stride in bytes, and the largest index along it
_MOST_STEPS = 10_000  # tensors of packed layouts take less than a hundred


def _terms(x: Tensor) -> list[_Term]:
    """Each byte of x lies at a sum of stride·index; the last axis is one run of bytes."""
    size = x.element_size()
    axes = zip(x.stride()[:-1], x.shape[:-1], strict=True)
    return [(stride * size, n - 1) for stride, n in axes] + [(1, x.shape[-1] * size - 1)]


def _overlap(x: Tensor, y: Tensor) -> bool:
    """Whether a byte of x is one of y: its place is a sum of x's terms and one of y's, and y's
    indices count down from the largest."""
    if x.numel() == 0 or y.numel() == 0:
        return False
    back = sum(stride * most for stride, most in _terms(y))
    return _is_sum(y.data_ptr() - x.data_ptr() + back, _terms(x) + _terms(y))


def _overlaps_itself(x: Tensor) -> bool:
    """Whether two elements of x share an address: some difference of two indices, at least 1 along
    one axis and anything along the others, has offset 0."""
    if x.numel() == 0:
        return False
    terms = [(stride, most) for stride, most in _terms(x) if most > 0]
    for number, (stride, most) in enumerate(terms):
        others = terms[:number] + terms[number + 1 :]
        back = sum(other * many for other, many in others)
        differences = [(other, 2 * many) for other, many in others]
        if _is_sum(back - stride, [(stride, most - 1), *differences]):
            return True
    return False


def _is_sum(target: int, terms: Sequence[_Term]) -> bool:
    """Whether target is Σ stride·index for some 0 ≤ index ≤ most of each term.

    Also True where the search takes too many steps.
    """
    merged: dict[int, int] = {}
    for stride, most in terms:
        merged[stride] = merged.get(stride, 0) + most
    order = sorted((term for term in merged.items() if all(term)), reverse=True)
    reach = [sum(stride * most for stride, most in order[i:]) for i in range(len(order) + 1)]
    divisor = [math.gcd(*(stride for stride, _ in order[i:])) for i in range(len(order) + 1)]
    stack = [(0, target)]
    for _ in range(_MOST_STEPS):
        if not stack:
            return False
        i, rest = stack.pop()
        if rest == 0:
            return True
        if not 0 < rest <= reach[i] or rest % divisor[i]:
            continue
        stride, most = order[i]
        fewest = max(0, ceil_div(rest - reach[i + 1], stride))
        most = min(most, rest // stride, fewest + _MOST_STEPS)
        stack += [(i + 1, rest - stride * index) for index in range(fewest, most + 1)]
    return True


_Angles = tuple[Tensor, Tensor, Tensor | None]  # cos, sin, offsets


class _RotaryPlan:
    """Calls that differ only in their tensors' addresses: checked once, with prepared launches."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        cos: Tensor,
        sin: Tensor,
        offsets: Tensor | None,
        interleaved: bool,
        config: RotaryConfig | None,
    ) -> None:
        device = check_device(q=q, k=k, cos=cos, sin=sin, offsets=offsets)
        _check(q, k, cos, sin, offsets)
        self.interleaved = interleaved
        _, S, HQ, D = q.shape
        self.config = config or _choose(S, HQ + k.shape[2], D, _heads_apart(q))
        self.repeats = Repeats(device)
        self._apart: set[tuple[int, int, int]] = set()

    def check_writable(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> None:
        """As `_check_writable`, once for each set of distances between the tensors."""
        at = q.data_ptr()
        distances = k.data_ptr() - at, cos.data_ptr() - at, sin.data_ptr() - at
        if distances in self._apart or q.device.type == "meta":
            return
        _check_writable(q, k, cos, sin)
        if len(self._apart) >= _MOST_DISTANCES:
            self._apart.clear()
        self._apart.add(distances)

    def overwrite(self, kind: Hashable, xs: Sequence[Tensor], angles: _Angles) -> None:
        """Rotate in place outside of autograd, and increment the version counters."""
        self.rotate(kind, xs, None, angles)
        tracked = [x for x in xs if not x.is_inference()]
        torch.autograd.graph.increment_version(tracked)

    def rotate(
        self,
        kind: Hashable,
        xs: Sequence[Tensor],
        outs: Sequence[Tensor] | None,
        angles: _Angles,
        *,
        inverse: bool = False,
    ) -> None:
        """Rotate q and k, or one of them, into `outs` or in place. kind: see `Repeats`."""
        q, k = xs if len(xs) == 2 else (xs[0], xs[0][:, :, :0])
        q_out, k_out = (None, None) if outs is None else outs if len(outs) == 2 else (*outs, None)
        self.repeats.run((inverse, kind), (q, k, q_out, k_out, *angles), self._launches)

    def _launches(
        self, kind: tuple[bool, Hashable], tensors: Sequence[Tensor | None]
    ) -> tuple[Launch, ...]:
        """One alone is rotated with another that has no heads."""
        q, k, q_out, k_out, cos, sin, offsets = tensors
        assert q is not None and k is not None and cos is not None and sin is not None
        q_out = q if q_out is None else q_out
        k_out = k if k_out is None else k_out
        how: Any = {"interleaved": self.interleaved, "inverse": kind[0], "config": self.config}
        return (rotary_launch(q, k, q_out, k_out, cos, sin, offsets, **how),)


_MOST_DISTANCES = 256
_PLANS: Plans[_RotaryPlan] = Plans()
# The same by the arguments of calls that were made, where the tables are read as they were given.
_CALLS: Plans[_RotaryPlan] = Plans()


def _key(
    q: Tensor, k: Tensor, angles: _Angles, interleaved: bool, config: RotaryConfig | None
) -> Hashable:
    """All that decides about a plan. Of most devices the number suffices: a plan is of one device,
    and memory that is elsewhere is no CUDA device's."""
    cos, sin, offsets = angles
    return (
        (q.shape, q.stride(), q.dtype, q.device),
        (k.shape, k.stride(), k.dtype, k.get_device()),
        (cos.shape, cos.stride(), cos.dtype, cos.get_device(), cos.requires_grad),
        (sin.shape, sin.stride(), sin.dtype, sin.get_device(), sin.requires_grad),
        offsets
        if offsets is None
        else (offsets.shape, offsets.stride(), offsets.dtype, offsets.get_device()),
        interleaved,
        config,
    )


def _plan(
    q: Tensor, k: Tensor, angles: _Angles, interleaved: bool, config: RotaryConfig | None
) -> _RotaryPlan:
    key = _key(q, k, angles, interleaved, config)
    plan = _PLANS.get(key)
    if plan is None:
        plan = _PLANS.add(key, _RotaryPlan(q, k, *angles, interleaved, config))
    return plan


class _Rotary(torch.autograd.Function):
    """Of q and k, or of one of them alone, the other being None; returns a tuple of as many.

    Autograd wants the view that a function overwrites as its first argument and only output.
    """

    @staticmethod
    def forward(ctx, x, k, cos, sin, offsets, inplace, name, plan):
        ctx.set_materialize_grads(False)
        ctx.plan = plan
        ctx.save_for_backward(cos, sin, offsets)
        xs = (x,) if k is None else (x, k)
        outs = None if inplace else tuple(torch.empty_like(x) for x in xs)
        plan.rotate((name, inplace), xs, outs, (cos, sin, offsets))
        if outs is None:
            ctx.mark_dirty(*xs)
            return xs
        return outs

    @staticmethod
    def backward(ctx, *grads):
        cos, sin, offsets = ctx.saved_tensors
        needed = [g if of_x else None for g, of_x in zip(grads, ctx.needs_input_grad, strict=False)]
        if torch.is_grad_enabled() or not direct(*grads):  # differentiated again, or in a batch
            config = numbers_of(ctx.plan.config)
            rest = cos, sin, offsets, ctx.plan.interleaved, config
            call = _rotated if transformed() else _operator
            dq, dk = _rotate_gradients(call, needed, *rest)
            return dq, dk, *[None] * 6
        upstream = [packed_rows(g) for g in needed if g is not None]
        outs = [torch.empty_like(g) for g in upstream]
        if upstream:
            # Hooks on saved tensors may return the tables with other strides.
            cos, sin = packed_rows(cos), packed_rows(sin)
            tables = layout_of(cos), layout_of(sin), layout_of(offsets)
            kind = *tables, *map(layout_of, upstream)
            ctx.plan.rotate(kind, upstream, outs, (cos, sin, offsets), inverse=True)
        rotated = iter(outs)
        dq, dk = (None if g is None else next(rotated) for g in (*needed, None)[:2])
        return dq, dk, *[None] * 6


@torch.library.custom_op("kernelbench::rotary", mutates_args=())
def _operator(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    offsets: Tensor | None,
    interleaved: bool,
    config: list[int],
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    """q and k rotated, by -angle when inverse; with the strides of q and k."""
    angles = cos, sin, offsets
    plan = _plan(q, k, angles, interleaved, of_numbers(RotaryConfig, config))
    outs = torch.empty_like(q), torch.empty_like(k)
    plan.rotate(
        ("turned back" if inverse else "both", False), (q, k), outs, angles, inverse=inverse
    )
    return outs


@without_data(_operator)
def _(q, k, cos, sin, offsets, interleaved, config, inverse):
    return torch.empty_like(q), torch.empty_like(k)


def _rotate_gradients(call, grads, *rest, inverse=True):
    """The gradients of q and k, by the opposite rotation of the upstream ones; None where there is
    none."""
    upstream = [packed_rows(g) for g in grads if g is not None]
    if not upstream:
        return None, None
    q_k = [upstream[0][:, :, :0] if g is None else packed_rows(g) for g in (*grads, None)[:2]]
    cos, sin, *others = rest
    results = call(*q_k, packed_rows(cos), packed_rows(sin), *others, inverse)
    return [None if g is None else t for g, t in zip((*grads, None), results, strict=False)]


def _keep(ctx, inputs, output):
    q, k, cos, sin, offsets, *ctx.how, ctx.inverse = inputs
    ctx.shapes = q.shape, k.shape
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(cos, sin, offsets)
    ctx.save_for_forward(cos, sin, offsets)


def _gradients(ctx, *grads, call=_operator):
    of_q, of_k, *others = ctx.needs_input_grad
    needed = [g if of_x else None for g, of_x in zip(grads, (of_q, of_k), strict=True)]
    saved = *ctx.saved_tensors, *ctx.how
    results = _rotate_gradients(call, needed, *saved, inverse=not ctx.inverse)
    return *results, *(None for _ in others)


_operator.register_autograd(_gradients, setup_context=_keep)


def _rotated(*args):
    """The operator under a transform: a rotation is linear in q and k, so that its derivatives of
    any order are rotations."""
    return _TRANSFORM(args[:5], args[5:])


def _tangents(ctx, q, k, cos, sin, _):
    if cos is not None or sin is not None:
        raise NotImplementedError(
            "apply_rotary has no forward-mode derivative by cos and sin: detach them"
        )
    saved = *ctx.saved_tensors, *ctx.how
    results = _rotate_gradients(_rotated, (q, k), *saved, inverse=ctx.inverse)
    like = q if k is None else k
    return tuple(
        like.new_zeros(shape) if x is None else x
        for x, shape in zip(results, ctx.shapes, strict=True)
    )


def _ways(q, k, cos, sin, offsets, interleaved, config, inverse):
    def batch(table):
        return 0 if table.ndim == 3 and table.shape[0] == q.shape[0] > 1 else WHOLE

    yield (0, 0), (0, 0, batch(cos), batch(sin), optional(offsets, 0))
    yield (2, 2), (2, 2, WHOLE, WHOLE, optional(offsets, WHOLE))
    if offsets is None:
        yield (1, 1), (1, 1, cos.ndim - 2, sin.ndim - 2, None)


sharded(_operator, _ways)
_TRANSFORM = Transform(
    "apply_rotary", _operator, _keep, partial(_gradients, call=_rotated), _tangents
)


def _by_operator(
    q: Tensor,
    k: Tensor,
    angles: _Angles,
    interleaved: bool,
    inplace: bool,
    config: RotaryConfig | None,
) -> tuple[Tensor, Tensor]:
    refuse_some_on_meta("apply_rotary", q, k, *angles)
    _check(q, k, *angles)
    arguments = q, k, *angles, interleaved, numbers_of(config), False
    if inplace:
        _check_apart(q, k)
    if inplace and torch.is_grad_enabled():
        _check_leaves(q, k)
    outs: tuple[Tensor, Tensor] = _rotated(*arguments) if transformed() else _operator(*arguments)
    return (q.copy_(outs[0]), k.copy_(outs[1])) if inplace else outs


def apply_rotary(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    interleaved: bool = False,
    inplace: bool = False,
    rotary_dim: int | None = None,
    offsets: int | Tensor | None = None,
    config: RotaryConfig | None = None,
) -> tuple[Tensor, Tensor]:
    """Rotate pairs of elements of each head by its token's angles: x1' = x1·cos - x2·sin,
    x2' = x2·cos + x1·sin, in fp32 with one rounding at the end.

    q: (B,S,Hq,D), k: (B,S,Hk,D), of one dtype, float32, float16 or bfloat16. Any strides
        whose last is 1; those of q and k need not agree, and outputs keep those of their input.
    cos, sin: (S,D/2), or (B,S,D/2) for angles of each sequence, of float32 or q's dtype. They get
        no gradient. Tables (S,D) or (B,S,D) that hold each angle twice are taken, too, and the
        first of the two is read: halves of a row alike, as Hugging Face's Llama has them, or, where
        `interleaved`, neighbours, as its GPT-J. (GLM's are halves though it turns neighbours: pass
        the first half.)
    interleaved: pairs are (x[2i], x[2i+1]); otherwise (x[i], x[i+D/2]), as in GPT-NeoX and Llama.
    inplace: overwrite q and k, which may be views of one packed qkv, and return them. It takes
        one launch for each when views are differentiated: autograd has no other way.
    rotary_dim: how many elements of a head, the first ones, turn; the others stay, and D is this
        number above. Even; all unless given.
    offsets: of positions: token s of sequence b has the angles of row offsets + s, or, with a
        tensor (B,) of int32 or int64, offsets[b] + s. The tables may then have more rows than S.
        Rows that they lack are refused with a number, and give NaN with a tensor.
    config: how to cut up the work; None for the choice of the table, see `configs`.

    The gradient is the inverse rotation of the upstream one, never in place; a rotation is linear
    in q and k, so that they have derivatives of any order, in reverse and in forward mode.

    torch.compile and torch.export take it as one operator, `kernelbench::rotary`, and copy for
    `inplace`.

    Raises TypeError for other dtypes and nested tensors; ValueError for shapes that do not fit, a
    last axis that is not contiguous, cos or sin that require grad, or where a leaf that requires
    grad, expanded memory, or memory that q, k, cos and sin share would be overwritten; RuntimeError
    for tensors that are not on one device where Triton runs, or have no memory; NotImplementedError
    for tangents of cos or sin.

    Su et al., RoFormer: Enhanced Transformer with Rotary Position Embedding, 2021
    (arXiv:2104.09864).
    """
    plain = direct(q, k, cos, sin)
    if not plain:
        admit("apply_rotary", q, k, cos, sin)
    angles: _Angles = cos, sin, None
    try:
        whole = plain and rotary_dim is None and offsets is None
        key = _key(q, k, angles, interleaved, config) if whole else None
        plan = None if key is None else _CALLS.get(key)
        if plan is None:
            as_given = rotary_dim is None and offsets is None and _has_pairs(q, cos)
            if not as_given:
                angles = _tables(q, cos, sin, interleaved, rotary_dim, offsets)
            if not plain or (q.is_meta and refusal(q.device)):
                return _by_operator(q, k, angles, interleaved, inplace, config)
            plan = _plan(q, k, angles, interleaved, config)
            if as_given:
                _CALLS.add(key, plan)
    except RuntimeError:
        admit("apply_rotary", q, k, cos, sin)  # may raise a clearer error
        raise
    differentiable = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad)
    if inplace:
        plan.check_writable(q, k, *angles[:2])
        if not differentiable:
            plan.overwrite(("both", True), (q, k), angles)
            return q, k
        _check_leaves(q, k)
        return _rotate_in_place(q, k, angles, plan)
    if differentiable:
        q, k = _Rotary.apply(q, k, *angles, False, "both", plan)
        return q, k
    outs = torch.empty_like(q), torch.empty_like(k)
    plan.rotate(("both", False), (q, k), outs, angles)
    return outs


def _rotate_in_place(
    q: Tensor, k: Tensor, angles: _Angles, plan: _RotaryPlan
) -> tuple[Tensor, Tensor]:
    """In place with autograd: only those that require grad become part of the graph."""
    graded = q.requires_grad, k.requires_grad
    if all(graded) and not (q._is_view() or k._is_view()):
        q, k = _Rotary.apply(q, k, *angles, True, "both", plan)
        return q, k
    if graded[0]:
        (q,) = _Rotary.apply(q, None, *angles, True, "q", plan)
    else:
        plan.overwrite(("q", True), (q,), angles)
    if graded[1]:
        (k,) = _Rotary.apply(k, None, *angles, True, "k", plan)
    else:
        plan.overwrite(("k", True), (k,), angles)
    return q, k
