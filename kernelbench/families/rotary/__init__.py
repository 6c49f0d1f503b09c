"""Rotary position embedding of q and k: each pair (x1, x2) turned by its position's angle.

x1' = x1·cos − x2·sin, x2' = x2·cos + x1·sin; the pairs are the two halves of a head (as in
GPT-NeoX and Llama) or neighbours (`interleaved`, as in RoFormer). Bound by HBM bandwidth.
Shapes: B batch, S sequence, Hq and Hk heads, D head size; q (B,S,Hq,D), k (B,S,Hk,D), cos and
sin (S,D/2) or (B,S,D/2). Reference: Su et al., RoFormer, 2021.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from kernelbench.families.rotary.case import (
    Layout,
    RotaryCase,
    Tables,
    grads,
    inputs,
    outputs,
    turn,
)
from kernelbench.families.rotary.peers import (
    liger,
    liger_overwrites,
    liger_serves,
    quack,
    quack_serves,
)
from kernelbench.families.rotary.providers import (
    autotune_serves,
    compile_max_autotune,
    compile_serves,
    complex_serves,
    eager,
    forward_in_place,
    overwrites,
    torch_complex,
    torch_fused,
    traffic_of_complex,
    traffic_of_eager,
    triton_configs,
    triton_fused,
)
from kernelbench.families.rotary.traffic import (
    compiled_traffic,
    fused_traffic,
    liger_traffic,
    quack_traffic,
    size_of,
    table_size,
)
from kernelbench.spec import Cost, DType, Family, Mode, Provider, Role, Tensors, Trial


def oracle(case: RotaryCase, a: Tensors) -> Iterator[tuple[str, Any, torch.Tensor]]:
    """In fp64, a sequence at a time. The gradient is the inverse rotation of the upstream one; a
    tangent is rotated like its tensor."""
    for b in range(case.B):
        cos, sin = (a[name][b] if a[name].ndim == 3 else a[name] for name in ("cos", "sin"))
        cos, sin = cos.double(), sin.double()
        for name in ("q", "k"):
            yield f"{name}_out", b, turn(a[name][b].double(), cos, sin, case.interleaved)
            if case.mode is Mode.jvp:
                tangent = a[f"tangent_{name}"][b].double()
                yield f"tangent_{name}_out", b, turn(tangent, cos, sin, case.interleaved)
            if case.mode.graded:
                upstream = a[f"grad_{name}_out"][b].double()
                yield f"d{name}", b, turn(upstream, cos, -sin, case.interleaved)


def trials(case: RotaryCase) -> Mapping[str, Trial]:
    """A rotation is linear in q and k; the angles stay the same."""
    return {
        "small": Trial({"q": 2.0**-8, "k": 2.0**-8}),
        "large": Trial({"q": 256.0, "k": 256.0}),
        "outliers": Trial(outliers=("q", "k")),
    }


def cost(case: RotaryCase) -> Cost:
    """Both tensors in and out once, and the tables; a pair takes 4 multiplications and 2 adds."""
    size, table = size_of(case), table_size(case)
    flops = 3 * size // case.dtype.bytes
    once = Cost(flops, size + table, size)
    if case.mode is Mode.jvp:
        return Cost(2 * flops, 2 * size + table, 2 * size)
    if case.mode is not Mode.full:
        return once
    return Cost(2 * flops, 2 * size + table, 2 * size)


def _check(B: int, S: int, Hq: int, Hk: int, D: int, **axes: Any) -> list[RotaryCase]:
    return [
        RotaryCase(B=B, S=S, Hq=Hq, Hk=Hk, D=D, mode=mode, dtype=dtype, **axes)
        for mode in (Mode.fwd, Mode.bwd, Mode.full)
        for dtype in (DType.fp32, DType.fp16, DType.bf16)
    ]


CHECKS = (
    *_check(2, 9, 4, 2, 64),
    *_check(1, 5, 3, 1, 48, layout=Layout.bhsd, interleaved=True),
    *_check(2, 7, 2, 2, 16, tables=Tables.bs, layout=Layout.bhsd),
    RotaryCase(B=2, S=5, Hq=4, Hk=1, D=32, dtype=DType.fp32, inplace=True),
    RotaryCase(B=1, S=3, Hq=2, Hk=2, D=6, dtype=DType.fp16, inplace=True, interleaved=True),
    RotaryCase(B=1, S=1, Hq=1, Hk=1, D=2, dtype=DType.fp32, mode=Mode.full),
    RotaryCase(B=2, S=9, Hq=4, Hk=2, D=64, dtype=DType.fp32, mode=Mode.jvp),
    RotaryCase(
        B=1,
        S=5,
        Hq=3,
        Hk=1,
        D=48,
        dtype=DType.fp16,
        mode=Mode.jvp,
        layout=Layout.bhsd,
        interleaved=True,
        tables=Tables.bs,
    ),
)


FAMILY = Family(
    name="rotary",
    title="Rotary position embedding of q and k",
    case=RotaryCase,
    inputs=inputs,
    outputs=outputs,
    grads=grads,
    oracle=oracle,
    cost=cost,
    trials=trials,
    checks=CHECKS,
    modes=tuple(Mode),
    providers=(
        Provider("eager", Role.baseline, eager, traffic=traffic_of_eager, mutates=overwrites,
                 unsupported=forward_in_place),
        Provider("torch_fused", Role.torch_fused, torch_fused, traffic=compiled_traffic,
                 mutates=overwrites, unsupported=compile_serves),
        Provider("torch_complex", Role.torch_fused, torch_complex, traffic=traffic_of_complex,
                 unsupported=complex_serves),
        Provider("compile_max_autotune", Role.torch_fused, compile_max_autotune,
                 traffic=compiled_traffic, mutates=overwrites, unsupported=autotune_serves),
        Provider("triton_fused", Role.triton_fused, triton_fused, traffic=fused_traffic,
                 configs=triton_configs, mutates=overwrites, requires=("triton",),
                 unsupported=forward_in_place),
        Provider("liger", Role.peer, liger, traffic=liger_traffic, mutates=liger_overwrites,
                 requires=("triton", "liger_kernel"), unsupported=liger_serves),
        Provider("quack", Role.peer, quack, traffic=quack_traffic, mutates=overwrites,
                 requires=("quack",), unsupported=quack_serves),
    ),
)  # fmt: skip
