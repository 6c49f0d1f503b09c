"""What `attention` takes, and what is said of the rest."""

from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MOST_D = 256
# q, k, v, where sequences begin among queries and, unless there, too, among keys.
Inputs = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]


class How(NamedTuple):
    """What is computed, apart from sizes: see `attention`; left, right: of the window."""

    causal: bool = False
    scale: float | None = None
    left: int = -1
    right: int = -1


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
    if how.scale is not None:
        if not isinstance(how.scale, Real):
            raise TypeError(
                f"attention takes scale as a number, got {type(how.scale).__name__}: of a tensor "
                "or array, pass .item()"
            )
        if not 2.0**-126 <= how.scale <= 2.0**126:
            raise ValueError(f"attention takes a positive, finite scale, got {how.scale}")
    for side in (how.left, how.right):
        if not isinstance(side, int) or isinstance(side, bool) or side < -1:
            raise ValueError(
                f"attention takes window as two numbers of keys, −1 for no limit, got "
                f"{(how.left, how.right)}"
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
    for name, starts in (("cu_seqlens_q", q_starts), ("cu_seqlens_k", k_starts)):
        if starts is None:
            continue
        if starts.dtype is not torch.int32:
            raise TypeError(
                f"attention takes {name} of int32, got {starts.dtype}: convert it with .int()"
            )
        if starts.dim() != 1 or len(starts) != len(q_starts) or len(starts) < 2:
            raise ValueError(
                f"attention takes {name} of shape (S+1,) for S sequences, as many for keys as for "
                f"queries, got {tuple(starts.shape)} beside {tuple(q_starts.shape)}"
            )
