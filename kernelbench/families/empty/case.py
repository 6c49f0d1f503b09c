"""A call that is nearly all launch: one point of a sweep, and its inputs."""

from dataclasses import dataclass
from enum import StrEnum

from kernelbench.spec import Case, Draw, Tensors, axis


class Kernel(StrEnum):
    """empty: nothing is computed, y is x itself. pointwise: y = 2·x + z."""

    empty = "empty"
    pointwise = "pointwise"


@dataclass(frozen=True, kw_only=True)
class EmptyCase(Case):
    """x, z and y (M,N)."""

    M: int = axis("rows (tokens)")
    N: int = axis("columns")
    kernel: Kernel = axis("what is launched: nothing to do, or y = 2x + z", Kernel.pointwise)

    def __post_init__(self) -> None:
        if min(self.M, self.N) < 1:
            raise ValueError("M and N must be at least 1")

    @property
    def empty(self) -> bool:
        """Whether nothing is computed."""
        return self.kernel is Kernel.empty

    @property
    def names(self) -> tuple[str, ...]:
        """The inputs that the kernel takes."""
        return ("x",) if self.empty else ("x", "z")


def inputs(case: EmptyCase, draw: Draw) -> Tensors:
    return {name: draw(case.M, case.N) for name in case.names}
