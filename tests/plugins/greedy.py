"""A family whose kernels take more than there is, for the tests of `kernelbench inspect`."""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from kernelbench.kernels.launch import Launch
from kernelbench.spec import Case, Cost, Family, Provider, Role, axis


@dataclass(frozen=True, kw_only=True)
class GreedyCase(Case):
    N: int = axis("elements")


@triton.jit
def hoard(x, y, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    a = tl.load(x + at)
    b = tl.dot(a, tl.trans(a))
    c = tl.dot(b.to(a.dtype), a)
    tl.store(y + at, (b + c + a).to(a.dtype))


@triton.jit
def cram(x, y, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for i in tl.range(0, 64):
        a = tl.load(x + at + i * BLOCK * BLOCK)
        total += tl.dot(a, tl.load(y + at + i * BLOCK * BLOCK))
    tl.store(y + at, total.to(x.dtype.element_ty))


@triton.jit
def refuse(x, y, BLOCK: tl.constexpr):
    tl.static_assert(BLOCK < 0, "not for any block")
    tl.store(y, tl.load(x))


def launches(x: torch.Tensor, y: torch.Tensor) -> tuple[Launch, ...]:
    args = {"x": x, "y": y}
    return (
        Launch(hoard, (1,), args, {"BLOCK": 64}, {"num_warps": 1}),
        Launch(cram, (1,), args, {"BLOCK": 128}, {"num_warps": 8, "num_stages": 6}),
        Launch(refuse, (1,), args, {"BLOCK": 16}, {}),
    )


def greedy(case: GreedyCase, config: Any) -> Any:
    def call(a: Any) -> torch.Tensor:
        y = torch.empty_like(a["x"])
        for launch in launches(a["x"], y):
            launch.run()
        return y

    return call


FAMILY = Family(
    name="greedy",
    title="Takes more than there is",
    case=GreedyCase,
    inputs=lambda case, draw: {"x": draw(case.N)},
    outputs=lambda case: ("y",),
    oracle=lambda case, a: [("y", ..., a["x"].double())],
    cost=lambda case: Cost(0, 2 * case.N, 2 * case.N),
    checks=(GreedyCase(N=1 << 20),),
    providers=(
        Provider("eager", Role.baseline, lambda case, config: lambda a: a["x"].clone()),
        Provider("triton_fused", Role.triton_fused, greedy, requires=("triton",)),
    ),
)
