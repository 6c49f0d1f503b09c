"""PyTorch's attention operators that also return lse = ln Σ exp(scores), and their gradients for an
o and lse that are of more keys than these.

Shapes: q, o (B,H,N,D), k, v (B,H,M,D) of any strides whose last is 1, with M = N where causal; lse
(B,H,N), fp32, of fp64 fp64.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

Tensor = torch.Tensor
Forward = Callable[..., tuple[Tensor, Tensor]]
Backward = Callable[..., tuple[Tensor, Tensor, Tensor]]


class Operator(NamedTuple):
    """forward(q, k, v, causal) → o, lse; backward(do, q, k, v, o, lse, causal) → dq, dk, dv, with
    P = exp(q kᵀ/√D − lse) and δ = rowsum(do⊙o) of what is given."""

    forward: Forward
    backward: Backward


_ATEN: Any = torch.ops.aten


def _cpu(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    o, lse = _ATEN._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal)
    return o, lse


def _cpu_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, c: bool
) -> Any:
    return _ATEN._scaled_dot_product_flash_attention_for_cpu_backward(do, q, k, v, o, lse, 0.0, c)


def _flash(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    o, lse, *_ = _ATEN._scaled_dot_product_flash_attention(q, k, v, 0.0, causal)
    return o, lse


def _flash_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, c: bool
) -> Any:
    N, M, seed = q.shape[2], k.shape[2], torch.zeros(2, dtype=torch.uint64, device=q.device)
    return _ATEN._scaled_dot_product_flash_attention_backward(
        do, q, k, v, o, lse, None, None, N, M, 0.0, c, seed, seed[:0]
    )


def _cudnn(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    o, lse, *_ = _ATEN._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, causal)
    return o, lse.reshape(q.shape[:3])


def _cudnn_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, c: bool
) -> Any:
    N, M, seed = q.shape[2], k.shape[2], torch.zeros((), dtype=torch.int64, device=q.device)
    return _ATEN._scaled_dot_product_cudnn_attention_backward(
        do, q, k, v, o, lse.unsqueeze(-1), seed, seed, None, None, None, N, M, 0.0, c
    )


def _efficient(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    o, lse, *_ = _ATEN._scaled_dot_product_efficient_attention(q, k, v, None, True, 0.0, causal)
    return o, lse[:, :, : q.shape[2]]  # rows are padded


def _efficient_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, c: bool
) -> Any:
    seed = torch.zeros((), dtype=torch.int64, device=q.device)
    padded = torch.nn.functional.pad(lse, (0, -q.shape[2] % 32), value=torch.inf)
    wanted = [True, True, True, False]
    dq, dk, dv, _ = _ATEN._scaled_dot_product_efficient_attention_backward(
        do, q, k, v, None, o, padded, seed, seed, 0.0, wanted, c
    )
    return dq, dk, dv


def plain(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """o and lse in products of matrices, in fp32 or wider, with all scores in memory; autograd
    differentiates both. Keys may be of any number; causal: the last query sees the last key."""
    q, k, v = (x.to(summed_in(x.dtype)) for x in (q, k, v))
    s = _scores(q, k, causal)
    return s.softmax(-1) @ v, s.logsumexp(-1)


def _scores(q: Tensor, k: Tensor, causal: bool) -> Tensor:
    s: Tensor = q @ k.mT * q.shape[-1] ** -0.5
    if not causal:
        return s
    hidden = torch.ones(s.shape[-2:], dtype=torch.bool, device=s.device)
    return s.masked_fill(hidden.triu(1 + s.shape[-1] - s.shape[-2]), -torch.inf)


def _plain_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, c: bool
) -> Any:
    do, q, k, v, o = (x.to(lse.dtype) for x in (do, q, k, v, o))
    p = (_scores(q, k, c) - lse.unsqueeze(-1)).exp()
    ds = p * (do @ v.mT - (do * o).sum(-1, keepdim=True)) * q.shape[-1] ** -0.5
    return ds @ k, ds.mT @ q, p.mT @ do


_PLAIN = Operator(plain, _plain_backward)
_CPU, _FLASH = Operator(_cpu, _cpu_backward), Operator(_flash, _flash_backward)
_CUDNN = Operator(_cudnn, _cudnn_backward)
_EFFICIENT = Operator(_efficient, _efficient_backward)


_MOST_SAMPLES = 65535  # of one launch of these operators


def operator_of(q: Tensor) -> Operator:
    """The fastest that takes such q, and k and v like it: cuDNN on GPUs from Hopper on, of 2 rows
    or more and heads of up to 128; else FlashAttention-2; in fp32, which these do not take, the
    memory-efficient one, whose gradients in 16 bits are wrong for an o and lse of more keys (an
    H200, torch 2.11). Products of matrices for what none of them takes: fp64, heads of no
    multiple of 8 elements, more than 65535 samples."""
    if not q.is_cuda:
        return _CPU
    samples, _, rows, D = q.shape
    if q.dtype is torch.float64 or takes(D) is not None or samples > _MOST_SAMPLES:
        return _PLAIN
    if q.dtype is torch.float32:
        return _EFFICIENT
    newer = torch.cuda.get_device_capability(q.device) >= (9, 0)
    return _CUDNN if newer and rows > 1 and D <= 128 else _FLASH


def summed_in(dtype: torch.dtype) -> torch.dtype:
    """That of lse, and of sums."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def takes(D: int) -> str | None:
    """Why heads of D elements have no operator on a GPU, or None."""
    return None if D % 8 == 0 else f"PyTorch's operators take D of multiples of 8, not {D}"
