"""A family whose calls are made by several ranks together: sums over the ranks, and mistakes that
one of them makes."""

import os
import signal
from dataclasses import dataclass

import torch
import torch.distributed as dist

from kernelbench.spec import Case, Cost, DType, Family, Provider, Role, axis


@dataclass(frozen=True, kw_only=True)
class SumCase(Case):
    """n numbers of each rank."""

    world: int = axis("ranks")
    n: int = axis("how many numbers")


def summed(x):
    y = x.clone()
    if dist.is_initialized():
        dist.all_reduce(y)
    return y


def factor():
    return 1 + (dist.get_rank() if dist.is_initialized() else 0)


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def oracle(case, a):
    yield "y", ..., a["x"].double() * sum(range(1, case.world + 1))


def of(call):
    return lambda case, config: call


def right(a):
    return summed(a["x"] * factor())


def wrong_on_one(a):
    return right(a) + rank()


def says_no(a):
    y = right(a)
    if rank() == 1:
        raise ValueError("rank 1 will not")
    return y


def another_shape(a):
    y = right(a)
    return y[:-1] if rank() == 1 else y


def before_the_others(a):
    if rank() == 1:
        raise ValueError("and the others wait")
    return right(a)


def dies(a):
    if rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return right(a)


CALLS = (wrong_on_one, says_no, another_shape, dies, before_the_others, right)

FAMILY = Family(
    name="ranked",
    title="Sums over ranks",
    case=SumCase,
    inputs=lambda case, draw: {"x": draw(case.n)},
    outputs=lambda case: ("y",),
    grads=lambda case: (),
    oracle=oracle,
    cost=lambda case: Cost(case.n, 4 * case.n, 4 * case.n),
    providers=(
        Provider("eager", Role.baseline, of(right)),
        *(Provider(call.__name__, Role.triton_fused, of(call)) for call in CALLS),
        Provider("alone", Role.ablation, of(lambda a: torch.zeros_like(a["x"]))),
    ),
    checks=(*SumCase.grid(world=1, n=8, dtype=DType.fp32),),
)
