"""The skip that the rCM kernels mix in, y = c_skip(t)·x + c_out(t)·F: its formula and coefficients;
and how statistics of attention's rows lie in memory.

Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, 2022
(arXiv:2206.00364) has `edm`; Song et al., Consistency Models, 2023 (arXiv:2303.01469) `cm`;
Lu and Song, Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models, 2024
(arXiv:2410.11081) `trigflow`.
"""

from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernelbench.kernels.operators import as_flag, check_number

SIGMA_DATA = {"edm": 1.0, "cm": 0.5, "trigflow": 1.0, "none": 1.0}
PARAMETRIZATIONS = tuple(SIGMA_DATA)


@triton.jit
def coefficients_of(t, sigma, PARAMETRIZATION: tl.constexpr):
    """c_skip, c_out and their derivatives at t, in fp32."""
    if PARAMETRIZATION == "trigflow":
        sine = tl.sin(t)
        cosine = tl.cos(t)
        c_skip = tl.div_rn(1.0, cosine + sine)
        c_out = -sine * c_skip
        d_skip = (sine - cosine) * c_skip * c_skip
        d_out = -c_skip * c_skip
    else:
        EPSILON: tl.constexpr = 0.002 if PARAMETRIZATION == "cm" else 0.0
        # Squares stay in fp32's range. Sigma is 2^48 at most: later on c_out is sigma, and c_skip
        # is 2^-30 at most. NaN stays NaN.
        LATEST: tl.constexpr = 9223372036854775808.0  # 2^63
        t = tl.where(t > LATEST, LATEST, t)
        u = t - EPSILON
        variance = sigma * sigma
        total = u * u + variance
        slope = tl.div_rn(sigma, tl.sqrt_rn(variance + t * t))
        c_skip = tl.div_rn(variance, total)
        c_out = u * slope
        d_skip = -2.0 * u * tl.div_rn(c_skip, total)
        d_out = slope * tl.div_rn(variance + EPSILON * t, variance + t * t)
    return c_skip, c_out, d_skip, d_out


@triton.jit
def coefficients(t_ptr, b, t_stride, sigma, PARAMETRIZATION: tl.constexpr):
    """`coefficients_of` the t of sample b; those of attention alone for `none`, which has no t.

    b, or t_stride, is in 64 bits where their product may pass 32.
    """
    if PARAMETRIZATION == "none":
        c_skip, c_out, d_skip, d_out = 0.0, 1.0, 0.0, 0.0
    else:
        t = tl.load(t_ptr + b * t_stride).to(tl.float32)
        c_skip, c_out, d_skip, d_out = coefficients_of(t, sigma, PARAMETRIZATION)
    return c_skip, c_out, d_skip, d_out


class Forward(NamedTuple):
    """The tensors of a forward. q, k, v: (B,N,H,D), x: (B,N,C), of any strides whose last is 1; t:
    (B,). x and t are needed for y alone. y and o: (B,N,C) and contiguous. lse: as `statistic_of`
    makes it, gets the logarithms to base 2 of the sums of 2^(score·log2 e). What is not wanted is
    None."""

    q: Tensor
    k: Tensor
    v: Tensor
    x: Tensor | None
    t: Tensor | None
    y: Tensor | None
    o: Tensor | None
    lse: Tensor | None


class Backward(NamedTuple):
    """The tensors of a backward: dy, like x, what `Forward` took and left, and the gradients that
    are wanted, contiguous, in the shapes of what they are of. x is needed for dt alone; dk and dv
    go together."""

    dy: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    x: Tensor | None
    t: Tensor | None
    o: Tensor
    lse: Tensor
    dq: Tensor | None
    dk: Tensor | None
    dv: Tensor | None
    dx: Tensor | None
    dt: Tensor | None


@dataclass(frozen=True)
class RcmFormula:
    """What is computed, apart from sizes: see `rcm_attention.rcm_attention` for the fields.

    sigma_data: positive, and 1 for `trigflow`; without effect on `none`. scale: positive. Both are
        used in fp32: from 2^-48 to 2^48, as of squares, and from 2^-126 to 2^126.
    """

    parametrization: str
    sigma_data: float
    causal: bool
    scale: float

    def __post_init__(self) -> None:
        if self.parametrization not in PARAMETRIZATIONS:
            near = get_close_matches(str(self.parametrization), PARAMETRIZATIONS, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise ValueError(
                f"no parametrization {self.parametrization!r}{hint} "
                f"Known: {', '.join(PARAMETRIZATIONS)}"
            )
        for name, value, most in (("sigma_data", self.sigma_data, 48), ("scale", self.scale, 126)):
            if not 2.0**-most <= value <= 2.0**most:
                raise ValueError(
                    f"rcm_attention takes a positive, finite {name}, got {value}: it is used in "
                    f"fp32, from 2^-{most} to 2^{most}"
                )
        if self.parametrization == "trigflow" and self.sigma_data != 1:
            raise ValueError(
                f"trigflow is defined for sigma_data = 1, got {self.sigma_data}: scale the data "
                "to unit deviation"
            )

    @property
    def skips(self) -> bool:
        """Whether x and t take part."""
        return self.parametrization != "none"


def formula_of(
    parametrization: str, sigma_data: float | None, causal: bool, scale: float | None, D: int
) -> RcmFormula:
    """The formula, with defaults filled in. Raises TypeError for what is no Python or NumPy number,
    or flag."""
    check_number("rcm_attention", "sigma_data", sigma_data)
    check_number("rcm_attention", "scale", scale)
    causal = as_flag("rcm_attention", "causal", causal)
    # torch.compile warns about tracing through a cache.
    make = _formula if torch.compiler.is_compiling() else _cached_formula
    return make(parametrization, sigma_data, causal, scale, D)


def _formula(
    parametrization: str, sigma_data: float | None, causal: bool, scale: float | None, D: int
) -> RcmFormula:
    if sigma_data is None:
        sigma_data = SIGMA_DATA.get(parametrization, 1.0)
    scale = D**-0.5 if scale is None else float(scale)
    return RcmFormula(parametrization, float(sigma_data), causal, scale)


_cached_formula = lru_cache(maxsize=256)(_formula)
