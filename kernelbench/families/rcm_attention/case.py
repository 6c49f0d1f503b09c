"""Attention with a skip: one point of a sweep, and its inputs."""

import math
from dataclasses import dataclass
from typing import Any

from kernelbench.families._rcm import SIGMA, Parametrization, times
from kernelbench.spec import Case, Draw, Mode, Tensors, axis


@dataclass(frozen=True, kw_only=True)
class RCMAttentionCase(Case):
    """q, k, v (B,N,H,D) and x (B,N,H·D), t (B,)."""

    B: int = axis("batch")
    N: int = axis("tokens")
    H: int = axis("heads")
    D: int = axis("head size")
    causal: bool = axis("a token attends to itself and those before it", False)
    parametrization: Parametrization = axis("c_skip and c_out of t", Parametrization.edm)
    sigma_data: float = axis("standard deviation of the data; 0 is the parametrization's own", 0.0)
    k_mean: float = axis("what every element of k has added to it: 8 bits must take it out", 0.0)

    def __post_init__(self) -> None:
        if min(self.B, self.N, self.H, self.D) < 1:
            raise ValueError("B, N, H and D must be at least 1")
        if not 0 <= self.sigma_data < math.inf:
            raise ValueError(f"sigma_data must be positive, or 0, got {self.sigma_data}")
        if not math.isfinite(self.k_mean):
            raise ValueError(f"k_mean must be finite, got {self.k_mean}")
        if self.parametrization is Parametrization.trigflow and self.sigma != 1:
            raise ValueError(f"trigflow is defined for sigma_data 1, got {self.sigma_data}")

    @property
    def sigma(self) -> float:
        """sigma_data, or what the parametrization's authors use."""
        return self.sigma_data or SIGMA[self.parametrization]

    @property
    def skips(self) -> bool:
        """Whether x and t take part: not with `none`, where y is the attention alone."""
        return self.parametrization is not Parametrization.none


def inputs(case: RCMAttentionCase, draw: Draw) -> Tensors:
    tensors = {name: draw(case.B, case.N, case.H, case.D) for name in ("q", "k", "v")}
    tensors["k"] += case.k_mean  # rounded to the case's dtype
    tensors["x"] = draw(case.B, case.N, case.H * case.D)
    tensors["t"] = times(draw, case.parametrization, case.B)
    if case.mode is not Mode.fwd:
        tensors["grad_y"] = _upstream(case, draw, tensors)
    return tensors


def _upstream(case: RCMAttentionCase, draw: Draw, a: Tensors) -> Any:
    """dy: a draw plus a little of x and of the mean of v, so that dt is not all cancellation.

    dt = c_skip'·Σ dy⊙x + c_out'·Σ dy⊙attention. With a dy independent of both, the sums are noise
    of √(NC) that may cancel, where rounding alone would look like an error. Here they have
    expectations of 6 and ∓6 (trigflow: 12) times √(NC), so that the two terms add up.
    """
    C, trigflow = case.H * case.D, case.parametrization is Parametrization.trigflow
    toward_x = 6 / math.sqrt(case.N * C)
    toward_v = (12 if trigflow else -6) * math.sqrt(case.N / C)
    mean = a["v"].float().mean(1, keepdim=True).flatten(2)
    wide = draw(case.B, case.N, C) + toward_x * a["x"].float() + toward_v * mean
    return wide.to(draw.dtype)


def grads(case: RCMAttentionCase) -> tuple[str, ...]:
    return ("q", "k", "v", "x", "t") if case.skips else ("q", "k", "v")
