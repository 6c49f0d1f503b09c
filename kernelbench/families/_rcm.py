"""Shared by the families around rCM's skip: its coefficients, PyTorch's attention, the mixing."""

import math
from collections.abc import Callable
from enum import StrEnum
from functools import partial

import torch

from kernelbench.nn.sdpa import sdpa
from kernelbench.spec import Draw

CM_EPSILON = 0.002  # the smallest t of a consistency model
SIGMA = {"edm": 1.0, "cm": 0.5, "trigflow": 1.0, "none": 1.0}  # as the authors have it
Function = Callable[..., torch.Tensor]  # attention: q, k, v → (B,N,C); skip: attention, x, t → y


class Parametrization(StrEnum):
    """What c_skip and c_out are as functions of t."""

    edm = "edm"
    cm = "cm"
    trigflow = "trigflow"
    none = "none"


def coefficients(t: torch.Tensor, kind: Parametrization, sigma: float) -> tuple[torch.Tensor, ...]:
    """c_skip and c_out of t, in t's dtype.

    edm: σ²/(t²+σ²), σt/√(t²+σ²); cm: σ²/((t−ε)²+σ²), σ(t−ε)/√(t²+σ²), ε = 0.002;
    trigflow: 1/(cos t+sin t), −sin t/(cos t+sin t); none: 0, 1.
    """
    if kind is Parametrization.none:
        return torch.zeros_like(t), torch.ones_like(t)
    if kind is Parametrization.trigflow:
        sine = t.sin()
        c_skip = (t.cos() + sine).reciprocal()
        return c_skip, -sine * c_skip
    u = t - CM_EPSILON if kind is Parametrization.cm else t
    weight = sigma * (u * u + sigma**2).rsqrt()
    slope = weight if u is t else sigma * (t * t + sigma**2).rsqrt()
    return weight * weight, slope * u


def slopes(t: torch.Tensor, kind: Parametrization, sigma: float) -> tuple[torch.Tensor, ...]:
    """dc_skip/dt and dc_out/dt.

    edm and cm, u = t − ε (ε = 0 for edm): −2σ²u/(u²+σ²)², σ(σ²+εt)/(t²+σ²)^1.5;
    trigflow: (sin t−cos t)/(cos t+sin t)², −1/(cos t+sin t)².
    """
    if kind is Parametrization.trigflow:
        square = (t.cos() + t.sin()) ** 2
        return (t.sin() - t.cos()) / square, -1 / square
    var, epsilon = sigma**2, CM_EPSILON if kind is Parametrization.cm else 0.0
    u = t - epsilon
    return -2 * var * u / (u * u + var) ** 2, sigma * (var + epsilon * t) / (t * t + var) ** 1.5


def times(draw: Draw, kind: Parametrization, B: int) -> torch.Tensor:
    """t (B,) in fp32, uniform in [0.002, 3] (trigflow [0, π/2]), whatever the draw's kind."""
    trigflow = kind is Parametrization.trigflow
    low, high = (0.0, math.pi / 2) if trigflow else (CM_EPSILON, 3.0)
    steps: torch.Tensor = draw.integers(0, 1 << 24, B).double() / (1 << 24)
    return (low + (high - low) * steps).float()


def probabilities(q: torch.Tensor, k: torch.Tensor, first: int, causal: bool) -> torch.Tensor:
    """softmax(q kᵀ/√D) of the query rows (…,M,D) from `first` on, for keys (…,N,D): (…,M,N)."""
    scores = (q / math.sqrt(q.shape[-1])) @ k.mT
    if causal:
        key = torch.arange(k.shape[-2], device=k.device)
        scores = scores.masked_fill(key > key[first : first + q.shape[-2], None], -math.inf)
    return scores.softmax(-1)


def attention(causal: bool = False) -> Function:
    """PyTorch's, of q, k, v (B,N,H,D) on the best backend, on views of them."""
    return partial(sdpa, causal=causal)


def skip(kind: Parametrization, sigma: float, dtype: torch.dtype) -> Function:
    """c_skip·x + c_out·attention in a dtype, with coefficients computed in fp32. Eager takes the
    case's dtype, to move as few bytes as possible; compiled, it is one fp32 kernel that rounds
    once."""

    def mix(attention: torch.Tensor, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        c_skip, c_out = (c.to(dtype)[:, None, None] for c in coefficients(t, kind, sigma))
        return (c_skip * x + c_out * attention).to(x.dtype)

    return mix
