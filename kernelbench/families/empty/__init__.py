"""Calls that are nearly all launch: an empty kernel, and a pointwise one, y = 2·x + z.

They show what a launch costs by itself: CPU time to submit it, GPU time, replay in a CUDA graph.
Shapes: M rows (tokens), N columns; x, z and y (M,N). Bound by launches, at large M·N by HBM
bandwidth. Of an empty call x itself is what comes back: that it is as it was is proven, as of any
input. That a kernel was launched no value can show; `graph_nodes` counts it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from kernelbench.families.empty.case import EmptyCase, Kernel, inputs
from kernelbench.families.empty.providers import (
    compile_eager,
    compile_serves,
    eager,
    fused_traffic,
    pointwise_alone,
    size_of,
    torch_fused,
    traffic_of_eager,
    triton_fused,
    triton_plain,
)
from kernelbench.spec import Cost, DType, Family, Mode, Provider, Role, Tensors, Trial


def oracle(case: EmptyCase, a: Tensors) -> Iterator[tuple[str, Any, torch.Tensor]]:
    """In fp64: x as it was, or 2·x + z."""
    x = a["x"].double()
    yield "y", ..., x if case.empty else 2 * x + a["z"].double()


def trials(case: EmptyCase) -> Mapping[str, Trial]:
    """y is linear in x and z together."""
    return {
        "small": Trial(dict.fromkeys(case.names, 2.0**-8)),
        "large": Trial(dict.fromkeys(case.names, 256.0)),
        "outliers": Trial(outliers=case.names),
    }


def cost(case: EmptyCase) -> Cost:
    """x and z in and y out once, an FMA an element; of an empty kernel nothing."""
    if case.empty:
        return Cost(0, 0, 0)
    size = size_of(case)
    return Cost(2 * case.M * case.N, 2 * size, size)


CHECKS = tuple(
    EmptyCase(M=M, N=N, kernel=kernel, dtype=dtype)
    for M, N in ((3, 257), (1, 1), (16, 1024))
    for kernel in Kernel
    for dtype in (DType.fp32, DType.fp16, DType.bf16)
)

FAMILY = Family(
    name="empty",
    title="An empty and a pointwise kernel: what a launch costs",
    case=EmptyCase,
    inputs=inputs,
    outputs=lambda case: ("y",),
    oracle=oracle,
    cost=cost,
    trials=trials,
    checks=CHECKS,
    modes=(Mode.fwd,),
    providers=(
        Provider("eager", Role.baseline, eager, traffic=traffic_of_eager),
        Provider("torch_fused", Role.torch_fused, torch_fused, traffic=fused_traffic,
                 unsupported=pointwise_alone),
        Provider("compile", Role.torch_fused, compile_eager, traffic=fused_traffic,
                 unsupported=compile_serves),
        Provider("triton_fused", Role.triton_fused, triton_fused, traffic=fused_traffic,
                 requires=("triton",)),
        Provider("triton_plain", Role.ablation, triton_plain, traffic=fused_traffic,
                 requires=("triton",)),
    ),
)  # fmt: skip
