"""RMSNorm: one point of a sweep, and its inputs."""

from dataclasses import dataclass
from enum import StrEnum

from kernelbench.spec import Case, Draw, Mode, Tensors, axis


class Casting(StrEnum):
    """Where values are rounded to the input dtype."""

    fp32 = "fp32"
    llama = "llama"
    gemma = "gemma"
    none = "none"


@dataclass(frozen=True, kw_only=True)
class RMSNormCase(Case):
    """M rows of N."""

    M: int = axis("rows (tokens)")
    N: int = axis("columns (hidden size)")
    eps: float = axis("added to the mean square", 1e-6)
    casting: Casting = axis("where values are rounded", Casting.fp32)
    residual: bool = axis("add a residual first, and return the sum, too", False)

    def __post_init__(self) -> None:
        if self.M < 1 or self.N < 1:
            raise ValueError(f"M and N must be at least 1, got M={self.M}, N={self.N}")


def inputs(case: RMSNormCase, draw: Draw) -> Tensors:
    tensors = {"x": draw(case.M, case.N), "weight": draw(case.N)}
    if case.residual:
        tensors["residual"] = draw(case.M, case.N)
    if case.mode.graded:
        for name in outputs(case):
            tensors[f"grad_{name}"] = draw(case.M, case.N)
    if case.mode is Mode.jvp:
        tensors |= {f"tangent_{name}": draw(*tensors[name].shape) for name in grads(case)}
    return tensors


def outputs(case: RMSNormCase) -> tuple[str, ...]:
    names = ("y", "r") if case.residual else ("y",)
    tangents = tuple(f"tangent_{name}" for name in names) if case.mode is Mode.jvp else ()
    return names + tangents


def grads(case: RMSNormCase) -> tuple[str, ...]:
    return ("x", "weight", "residual") if case.residual else ("x", "weight")
