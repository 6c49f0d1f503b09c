"""SwiGLU: one point of a sweep, and its inputs."""

from dataclasses import dataclass

from kernelbench.spec import Case, Draw, Mode, Tensors, axis


@dataclass(frozen=True, kw_only=True)
class SwigluCase(Case):
    """M rows of F."""

    M: int = axis("rows (tokens)")
    F: int = axis("columns of gate and of up (intermediate size)")
    packed: bool = axis("gate and up as halves of one tensor (M,2F)", False)

    def __post_init__(self) -> None:
        if self.M < 1 or self.F < 1:
            raise ValueError(f"M and F must be at least 1, got M={self.M}, F={self.F}")


def inputs(case: SwigluCase, draw: Draw) -> Tensors:
    width = 2 * case.F if case.packed else case.F
    tensors = {name: draw(case.M, width) for name in grads(case)}
    if case.mode.graded:
        tensors["grad_y"] = draw(case.M, case.F)
    if case.mode is Mode.jvp:
        tensors |= {f"tangent_{name}": draw(case.M, width) for name in grads(case)}
    return tensors


def outputs(case: SwigluCase) -> tuple[str, ...]:
    return ("y", "tangent_y") if case.mode is Mode.jvp else ("y",)


def grads(case: SwigluCase) -> tuple[str, ...]:
    return ("gate_up",) if case.packed else ("gate", "up")
