"""SwiGLU: y = silu(gate)·up with silu(g) = g·σ(g), the activation of a gated MLP.

Bound by HBM bandwidth. Shapes: M rows, F columns; gate and up (M,F), or `packed` in one (M,2F).
PyTorch has no fused operator for it. Reference: Shazeer, GLU Variants Improve Transformer, 2020.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from kernelbench.families.providing import no_autotuner, no_compiler
from kernelbench.families.swiglu.case import SwigluCase, grads, inputs, outputs
from kernelbench.families.swiglu.providers import (
    compile_eager,
    compile_max_autotune,
    eager,
    fused_traffic,
    liger,
    liger_overwrites,
    liger_serves,
    ours_traffic,
    traffic_of_eager,
    triton_configs,
    triton_fused,
)
from kernelbench.spec import Cost, DType, Family, Mode, Provider, Role, Tensors, Trial

ORACLE_ELEMENTS = 1 << 26  # of one chunk: 512 MiB a tensor in fp64


def oracle(case: SwigluCase, a: Tensors) -> Iterator[tuple[str, Any, torch.Tensor]]:
    """In fp64, a chunk of rows at a time. With s = σ(g) and the slope s·(1 + g·(1 − s)) of silu:
    dgate = dy·up·slope, dup = dy·g·s; with tangents g', u': y' = g'·up·slope + u'·g·s."""
    step = max(1, ORACLE_ELEMENTS // case.F)
    for start in range(0, case.M, step):
        rows = slice(start, start + step)
        g, up = _halves(case, a, "", rows)
        s = g.sigmoid()
        silu, slope = g * s, s * (1 + g * (1 - s))
        yield "y", rows, silu * up
        if case.mode is Mode.jvp:
            of_gate, of_up = _halves(case, a, "tangent_", rows)
            yield "tangent_y", rows, of_gate * up * slope + of_up * silu
        if case.mode.graded:
            dy = a["grad_y"][rows].double()
            dgate, dup = dy * up * slope, dy * silu
            if case.packed:
                yield "dgate_up", rows, torch.cat([dgate, dup], -1)
            else:
                yield "dgate", rows, dgate
                yield "dup", rows, dup


def _halves(case: SwigluCase, a: Tensors, prefix: str, rows: slice) -> list[torch.Tensor]:
    """gate and up, or tensors of theirs, in fp64."""
    parts = [a[prefix + name][rows].double() for name in grads(case)]
    return [*parts[0].chunk(2, -1)] if case.packed else parts


def trials(case: SwigluCase) -> Mapping[str, Trial]:
    """Small gates, where silu(g) is g/2, and large ones, where it is g or 0."""
    gate = grads(case)[0]
    return {
        "small": Trial({gate: 2.0**-3 if case.packed else 2.0**-6}),
        "large": Trial(dict.fromkeys(grads(case), 32.0)),
        "outliers": Trial(outliers=grads(case)),
    }


def cost(case: SwigluCase) -> Cost:
    """fwd: gate and up in, y out; jvp: their tangents, too. bwd: both and dy in, their gradients
    out. σ counts as 3 flops."""
    n = case.M * case.F
    size = n * case.dtype.bytes
    flops, read, write = {
        Mode.fwd: (5, 2, 1),
        Mode.bwd: (11, 3, 2),
        Mode.full: (16, 3, 3),  # gate and up are at hand when both run at once
        Mode.jvp: (13, 4, 2),
    }[case.mode]
    return Cost(flops * n, read * size, write * size)


def _check(M: int, F: int, **axes: Any) -> list[SwigluCase]:
    return [
        SwigluCase(M=M, F=F, mode=mode, dtype=dtype, **axes)
        for mode in (Mode.fwd, Mode.bwd, Mode.full)
        for dtype in (DType.fp32, DType.fp16, DType.bf16)
    ]


CHECKS = (
    *_check(5, 257),
    *_check(4, 96, packed=True),
    SwigluCase(M=1, F=1, dtype=DType.fp32, mode=Mode.full),
    SwigluCase(M=7, F=1100, dtype=DType.fp16, mode=Mode.full, packed=True),
    SwigluCase(M=5, F=257, dtype=DType.fp32, mode=Mode.jvp),
    SwigluCase(M=4, F=96, dtype=DType.fp16, mode=Mode.jvp, packed=True),
)


FAMILY = Family(
    name="swiglu",
    title="SwiGLU, silu(gate) times up",
    case=SwigluCase,
    inputs=inputs,
    outputs=outputs,
    grads=grads,
    oracle=oracle,
    cost=cost,
    trials=trials,
    checks=CHECKS,
    modes=tuple(Mode),
    providers=(
        Provider("eager", Role.baseline, eager, traffic=traffic_of_eager),
        Provider("compile", Role.torch_fused, compile_eager, traffic=fused_traffic,
                 unsupported=no_compiler),
        Provider("compile_max_autotune", Role.torch_fused, compile_max_autotune,
                 traffic=fused_traffic, unsupported=no_autotuner),
        Provider("triton_fused", Role.triton_fused, triton_fused, traffic=ours_traffic,
                 configs=triton_configs, requires=("triton",)),
        Provider("liger", Role.peer, liger, traffic=fused_traffic, mutates=liger_overwrites,
                 requires=("triton", "liger_kernel"), unsupported=liger_serves),
    ),
)  # fmt: skip
