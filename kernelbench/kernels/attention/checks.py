"""What `attention` takes, and what is said of the rest."""

import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernelbench.kernels.attention.configs import AttentionConfig
from kernelbench.kernels.operators import as_flag, as_scale

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MOST_D = 256
# q, k, v, where sequences begin among queries and, unless there, too, among keys.
Inputs = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]


class How(NamedTuple):
    """What is computed, apart from sizes: see `attention`; left, right: of the window; chunk: of
    packed sequences, see `Packed`."""

    causal: bool = False
    scale: float | None = None
    left: int = -1
    right: int = -1
    chunk: int | None = None


PLAIN = How()


def check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_starts: Tensor | None,
    k_starts: Tensor | None,
    how: How,
) -> None:
    """Raise TypeError or ValueError unless `attention` takes these, wherever they are."""
    if q.dtype not in DTYPES or k.dtype != q.dtype or v.dtype != q.dtype:
        raise TypeError(
            "attention takes q, k and v of one dtype, float32, float16 or bfloat16, got "
            f"{q.dtype}, {k.dtype} and {v.dtype}: convert them with .to()"
        )
    _check_shapes(q, k, v, packed=q_starts is not None)
    _check_starts(q_starts, k_starts)
    as_scale("attention", "scale", how.scale)


def how_of(causal: Any, scale: Any, window: Any) -> How:
    """The arguments as `How` has them. Raises TypeError or ValueError for what they cannot be."""
    causal = as_flag("attention", "causal", causal)
    scale = as_scale("attention", "scale", scale)
    if window is None:
        return How(causal, scale)
    try:
        left, right = (_side(side) for side in window)
    except (TypeError, ValueError):
        raise TypeError(
            "attention takes window as (left, right), two numbers of keys, −1 for no limit, got "
            f"{window!r}"
        ) from None
    return How(causal, scale, left, right)


def _side(side: Any) -> int:
    """As a whole number that fits 32 bits: no sequence is longer."""
    if isinstance(side, bool) or (number := operator.index(side)) < -1:
        raise ValueError
    return min(number, 2**31 - 1)


def check_types(tensors: Inputs, config: Any) -> None:
    """Raise TypeError for arguments that are of no kind that `attention` takes."""
    names = ("q", "k", "v", "cu_seqlens_q", "cu_seqlens_k")
    for name, tensor in zip(names, tensors, strict=True):
        if not isinstance(tensor, Tensor) and (name in "qkv" or tensor is not None):
            raise TypeError(f"attention takes {name} as a tensor, got {type(tensor).__name__}")
    if config is not None and not isinstance(config, AttentionConfig):
        raise TypeError(
            f"attention takes config as an AttentionConfig or None, got {type(config).__name__}"
        )


def _check_shapes(q: Tensor, k: Tensor, v: Tensor, packed: bool) -> None:
    wanted = (
        "q (T,H,D), k and v (U,G,D) with cu_seqlens" if packed else "q (B,N,H,D), k and v (B,K,G,D)"
    )
    axes = 3 if packed else 4
    got = f"got {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
    if q.dim() != axes or k.dim() != axes or v.shape != k.shape:
        other = "" if packed or q.dim() != 3 else ": sequences that are packed need cu_seqlens_q"
        raise ValueError(f"attention takes {wanted}, {got}{other}")
    if k.shape[-1] != q.shape[-1] or (not packed and k.shape[0] != q.shape[0]):
        raise ValueError(f"attention takes {wanted} of the same B and D, {got}")
    heads, shared = q.shape[-2], k.shape[-2]
    if shared == 0 or heads % shared:
        raise ValueError(
            f"attention takes a number of heads of k and v that divides that of q, got {shared} "
            f"and {heads}"
        )
    if not 1 <= q.shape[-1] <= MOST_D:
        raise ValueError(f"attention takes heads of 1 to {MOST_D} elements, got D = {q.shape[-1]}")


def _check_starts(q_starts: Tensor | None, k_starts: Tensor | None) -> None:
    if q_starts is None:
        if k_starts is not None:
            raise ValueError(
                "attention takes cu_seqlens_k together with cu_seqlens_q, got it alone"
            )
        return
    named = {"cu_seqlens_q": q_starts, "cu_seqlens_k": k_starts}
    check_starts("attention", "S sequences, as many for keys as for queries", named)


def check_starts(function: str, what: str, named: Mapping[str, Tensor | None]) -> None:
    """Raise TypeError or ValueError unless each is as cu_seqlens are, and as the first, or None."""
    first = next(iter(named.values()))
    assert first is not None
    for name, starts in named.items():
        if starts is None:
            continue
        if starts.dtype is not torch.int32:
            raise TypeError(
                f"{function} takes {name} of int32, got {starts.dtype}: convert it with .int()"
            )
        if starts.dim() != 1 or starts.shape != first.shape or starts.shape[0] < 2:
            raise ValueError(
                f"{function} takes {name} of shape (S+1,) for {what}, got {tuple(starts.shape)} "
                f"beside {tuple(first.shape)}"
            )
