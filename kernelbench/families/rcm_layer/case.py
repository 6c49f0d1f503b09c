"""A layer around attention: one point of a sweep, and its inputs."""

import math
from dataclasses import dataclass
from typing import Any

from kernelbench.families._rcm import SIGMA, Parametrization, times
from kernelbench.spec import Case, Draw, Mode, Tensors, axis

WEIGHTS = ("w_qkv", "b_qkv", "w_proj", "b_proj")


@dataclass(frozen=True, kw_only=True)
class RCMLayerCase(Case):
    """x (B,N,C), weights (3C,C) and (C,C), t (B,)."""

    B: int = axis("batch")
    N: int = axis("tokens")
    C: int = axis("channels")
    H: int = axis("heads")
    parametrization: Parametrization = axis("c_skip and c_out of t", Parametrization.edm)
    sigma_data: float = axis("standard deviation of the data; 0 is the parametrization's own", 0.0)

    def __post_init__(self) -> None:
        if min(self.B, self.N, self.C, self.H) < 1 or self.C % self.H:
            raise ValueError("B, N, C and H must be at least 1, and C a multiple of H")
        if not 0 <= self.sigma_data < math.inf:
            raise ValueError(f"sigma_data must be positive, or 0, got {self.sigma_data}")
        if self.parametrization is Parametrization.trigflow and self.sigma != 1:
            raise ValueError(f"trigflow is defined for sigma_data 1, got {self.sigma_data}")

    @property
    def sigma(self) -> float:
        """sigma_data, or what the parametrization's authors use."""
        return self.sigma_data or SIGMA[self.parametrization]

    @property
    def skips(self) -> bool:
        """Whether t and the skip take part: not with `none`."""
        return self.parametrization is not Parametrization.none


def weights(draw: Draw, C: int) -> dict[str, Any]:
    """Weights with the scale of nn.Linear's, so that activations keep their size."""
    shapes = {"w_qkv": (3 * C, C), "b_qkv": (3 * C,), "w_proj": (C, C), "b_proj": (C,)}
    return {name: draw(*shape) / math.sqrt(C) for name, shape in shapes.items()}


def upstream(case: RCMLayerCase, draw: Draw, a: Tensors, expectation: float = 6) -> Any:
    """dy: a draw plus a little of x and of b_proj, so that dt is not all cancellation.

    dt = c_skip'·Σ dy⊙x + c_out'·Σ dy⊙F. With a dy independent of both, the sums are noise of √(NC)
    that may cancel, where rounding alone would look like an error. Here they have expectations of 6
    and ∓6 (trigflow: 12) times √(NC), so that the two terms add up. expectation: replaces the 6.
    """
    trigflow = case.parametrization is Parametrization.trigflow
    toward_x = expectation / math.sqrt(case.N * case.C)
    toward_b = (2 if trigflow else -1) * expectation * math.sqrt(case.C / case.N)
    wide = draw(case.B, case.N, case.C) + toward_x * a["x"].float() + toward_b * a["b_proj"].float()
    return wide.to(draw.dtype)


def inputs(case: RCMLayerCase, draw: Draw) -> Tensors:
    tensors = {"x": draw(case.B, case.N, case.C), "t": times(draw, case.parametrization, case.B)}
    tensors |= weights(draw, case.C)
    if case.mode is not Mode.fwd:
        tensors["grad_y"] = upstream(case, draw, tensors)
    return tensors


def grads(case: RCMLayerCase) -> tuple[str, ...]:
    return ("x", "t", *WEIGHTS) if case.skips else ("x", *WEIGHTS)
