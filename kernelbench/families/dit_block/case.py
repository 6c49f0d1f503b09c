"""A DiT block: one point of a sweep, and its inputs."""

import math
from dataclasses import dataclass
from enum import StrEnum

from kernelbench.families._rcm import times
from kernelbench.families.rcm_layer.case import WEIGHTS, RCMLayerCase, upstream, weights
from kernelbench.spec import Draw, Mode, Tensors, axis

RATIO = 4  # of the hidden width to C
EPS = 1e-6
MLP = ("w_up", "b_up", "w_down", "b_down")
NORMS = ("w_norm1", "w_norm2")


class Norm(StrEnum):
    """What stands before attention and before the MLP."""

    none = "none"
    rms = "rms"


@dataclass(frozen=True, kw_only=True)
class DiTBlockCase(RCMLayerCase):
    """x (B,N,C), the weights of an attention and of an MLP, t (B,)."""

    norm: Norm = axis("before attention and before the MLP", Norm.rms)


def names(case: DiTBlockCase) -> tuple[str, ...]:
    """Of the weights, in the order in which the block takes them."""
    return (*WEIGHTS, *MLP, *(NORMS if case.norm is Norm.rms else ()))


def inputs(case: DiTBlockCase, draw: Draw) -> Tensors:
    C, hidden = case.C, RATIO * case.C
    tensors = {"x": draw(case.B, case.N, C), "t": times(draw, case.parametrization, case.B)}
    tensors |= weights(draw, C)
    shapes = {"w_up": (hidden, C), "b_up": (hidden,), "w_down": (C, hidden), "b_down": (C,)}
    for name, shape in shapes.items():
        tensors[name] = draw(*shape) / math.sqrt(hidden if name == "w_down" else C)
    for name in NORMS if case.norm is Norm.rms else ():
        tensors[name] = draw(C)
    if case.mode is not Mode.fwd:
        # the norm before the MLP multiplies the noise of dy1 by 1/rms(y1), up to 10
        tensors["grad_y"] = upstream(case, draw, tensors, expectation=24)
    return tensors


def grads(case: DiTBlockCase) -> tuple[str, ...]:
    return ("x", *(("t",) if case.skips else ()), *names(case))
