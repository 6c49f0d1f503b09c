"""A family whose providers cost what a case says, and next to nothing else."""

import time
from dataclasses import dataclass

from kernelbench.spec import Case, Cost, DType, Family, Provider, Role, axis


@dataclass(frozen=True, kw_only=True)
class SteadyCase(Case):
    """n numbers to double."""

    n: int = axis("how many")
    pause: float = axis("seconds that a call of the first provider sleeps", 0.0)


def oracle(case, a):
    yield "y", ..., 2 * a["x"].double()


def double(pauses):
    """A provider that sleeps so many pauses a call."""

    def build(case, config):
        def call(a):
            time.sleep(pauses * case.pause)
            return a["x"] * 2

        return call

    return build


FAMILY = Family(
    name="steady",
    title="Doubling, at a known cost",
    case=SteadyCase,
    inputs=lambda case, draw: {"x": draw(case.n)},
    outputs=lambda case: ("y",),
    oracle=oracle,
    cost=lambda case: Cost(case.n, 4 * case.n, 4 * case.n),
    checks=(SteadyCase(n=8, dtype=DType.fp32),),
    providers=(
        Provider("first", Role.baseline, double(1)),
        Provider("second", Role.peer, double(2)),
        Provider("third", Role.peer, double(3)),
    ),
)
