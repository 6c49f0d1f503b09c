"""RMSNorm: y = x·rsqrt(mean(x²) + eps)·w over the last dimension, bound by HBM bandwidth.

Shapes: M rows, N columns. Castings (where a low-precision value is rounded) follow Liger-Kernel's
names: `fp32` as F.rms_norm, `llama` as Hugging Face's LlamaRMSNorm, `gemma` with weight 1 + w,
`none` with every operation in the input dtype. With `residual`, r' = x + r is returned, too, and
the norm is that of r'. Reference: Zhang and Sennrich, Root Mean Square Layer Normalization, 2019.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from kernelbench.families.providing import no_autotuner, no_compiler
from kernelbench.families.rms_norm.case import Casting, RMSNormCase, grads, inputs, outputs
from kernelbench.families.rms_norm.peers import (
    liger,
    liger_serves,
    quack,
    quack_serves,
    quack_tuned,
)
from kernelbench.families.rms_norm.providers import (
    compile_eager,
    compile_max_autotune,
    eager,
    rounds_once,
    torch_fused,
    traffic_of_eager,
    triton_configs,
    triton_fused,
)
from kernelbench.families.rms_norm.traffic import (
    compiled_traffic,
    f_rms_norm_traffic,
    fused_traffic,
    ours_traffic,
)
from kernelbench.spec import Cost, DType, Family, Mode, Provider, Role, Tensors, Trial

ORACLE_ELEMENTS = 1 << 26  # of one chunk: 512 MiB a tensor in fp64


def oracle(case: RMSNormCase, a: Tensors) -> Iterator[tuple[Any, ...]]:
    """In fp64, a chunk of rows at a time.

    With h = x (+ r), rs = rsqrt(mean(h²) + eps), m = dy·w:
    dh = rs·m − rs³·h·mean(m·h) (+ dr'), dw = Σ_rows dy·h·rs. With tangents h', w' of h and w:
    y' = (rs·h' − rs³·h·mean(h·h'))·w + h·rs·w'.
    """
    w = a["weight"].double() + (1 if case.casting is Casting.gemma else 0)
    dw = torch.zeros_like(w)
    step = max(1, ORACLE_ELEMENTS // case.N)
    for start in range(0, case.M, step):
        rows = slice(start, start + step)
        h = a["x"][rows].double()
        if case.residual:
            h = h + a["residual"][rows].double()
            yield "r", rows, h
        rs = torch.rsqrt(h.square().mean(-1, keepdim=True) + case.eps)
        yield "y", rows, h * rs * w
        if case.mode is Mode.jvp:
            yield from _tangents(case, a, rows, h, rs, w)
        if not case.mode.graded:
            continue
        dy = a["grad_y"][rows].double()
        m = dy * w
        dh = rs * m - rs**3 * h * (m * h).mean(-1, keepdim=True)
        if case.residual:  # the gradient of r' passes through
            dx = dh + a["grad_r"][rows].double()
            yield "dresidual", rows, dx, dh
            yield "dx", rows, dx, dh
        else:
            yield "dx", rows, dh
        dw += (dy * h * rs).sum(0)
    if case.mode.graded:
        yield "dweight", ..., dw


def _tangents(
    case: RMSNormCase, a: Tensors, rows: slice, h: Any, rs: Any, w: Any
) -> Iterator[tuple[Any, ...]]:
    tangent = a["tangent_x"][rows].double()
    if case.residual:
        tangent = tangent + a["tangent_residual"][rows].double()
        yield "tangent_r", rows, tangent
    tangent_h = rs * tangent - rs**3 * h * (h * tangent).mean(-1, keepdim=True)
    yield "tangent_y", rows, tangent_h * w + h * rs * a["tangent_weight"].double()


def trials(case: RMSNormCase) -> Mapping[str, Trial]:
    """Scaled down until the mean square is about eps, and up by 256, whose square fp16 lacks."""
    scaled = ("x", "residual") if case.residual else ("x",)
    rounds_squares = case.casting is Casting.none and case.dtype is DType.fp16
    why = "casting=none rounds squares to fp16, which holds none of them well"
    by_name = {
        "small": Trial(dict.fromkeys(scaled, math.sqrt(case.eps) or 2.0**-10)),
        "large": Trial(dict.fromkeys(scaled, 256.0)),
        "outliers": Trial(outliers=scaled),
    }
    if case.residual and case.mode.graded:  # dx of a large h is small beside grad_r
        by_name["large"] = Trial({**by_name["large"].scale, "grad_r": 1 / 256})
        by_name["amplified"] = Trial({"grad_r": 2.0**-10})
    if case.N == 1:  # y is a sign, so dx is a difference that only rounding leaves
        by_name = {
            name: replace(trial, apart=("dx", "dresidual")) for name, trial in by_name.items()
        }
    if rounds_squares:
        by_name |= {name: Trial(refused=why) for name in ("small", "large", "outliers")}
    return by_name


def _size(case: RMSNormCase) -> int:
    return case.M * case.N * case.dtype.bytes


def cost(case: RMSNormCase) -> Cost:
    """fwd: x (and r) in, y (and r') out; jvp: their tangents, too. bwd: h and the upstream
    gradients in, dx and dw out."""
    size, w, more = _size(case), case.N * case.dtype.bytes, int(case.residual)
    elements = case.M * case.N
    forward = Cost((4 + more) * elements, size * (1 + more) + w, size * (1 + more))
    backward = Cost((10 + more) * elements, size * (2 + more) + w, size + w)
    if case.mode is Mode.fwd:
        return forward
    if case.mode is Mode.jvp:  # twice of everything, and a second mean
        return Cost(forward.flops + (8 + more) * elements, 2 * forward.read, 2 * forward.write)
    if case.mode is Mode.bwd:
        return backward
    return Cost(
        forward.flops + backward.flops,
        forward.read + size * (1 + more),  # h is at hand when both run at once
        forward.write + backward.write,
    )


def _check(M: int, N: int, **axes: Any) -> list[RMSNormCase]:
    return [
        RMSNormCase(M=M, N=N, mode=mode, dtype=dtype, **axes)
        for mode in (Mode.fwd, Mode.bwd, Mode.full)
        for dtype in (DType.fp32, DType.fp16, DType.bf16)
    ]


CHECKS = (
    *_check(5, 64),
    *_check(3, 257, residual=True),
    *_check(4, 96, casting=Casting.llama),
    *_check(4, 96, casting=Casting.gemma, residual=True),
    *_check(2, 33, casting=Casting.none),
    RMSNormCase(M=1, N=1, dtype=DType.fp32, mode=Mode.full, eps=0.5),
    RMSNormCase(M=37, N=1000, dtype=DType.fp16, mode=Mode.full, eps=1e-5),
    RMSNormCase(M=5, N=64, dtype=DType.fp32, mode=Mode.jvp),
    RMSNormCase(M=4, N=257, dtype=DType.bf16, mode=Mode.jvp),
    RMSNormCase(M=4, N=257, dtype=DType.fp16, mode=Mode.jvp, residual=True, casting=Casting.gemma),
)


FAMILY = Family(
    name="rms_norm",
    title="RMSNorm, optionally with a fused residual add",
    case=RMSNormCase,
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
        Provider("torch_fused", Role.torch_fused, torch_fused, traffic=f_rms_norm_traffic,
                 unsupported=rounds_once),
        Provider("compile", Role.torch_fused, compile_eager, traffic=compiled_traffic,
                 unsupported=no_compiler),
        Provider("compile_max_autotune", Role.torch_fused, compile_max_autotune,
                 traffic=compiled_traffic, unsupported=no_autotuner),
        Provider("triton_fused", Role.triton_fused, triton_fused, traffic=ours_traffic,
                 configs=triton_configs, requires=("triton",)),
        Provider("liger", Role.peer, liger, traffic=fused_traffic,
                 requires=("triton", "liger_kernel"), unsupported=liger_serves),
        Provider("quack", Role.peer, quack, traffic=fused_traffic, requires=("quack",),
                 unsupported=quack_serves),
        Provider("quack_tuned", Role.peer, quack_tuned, traffic=fused_traffic,
                 requires=("quack",), unsupported=quack_serves, on_request=True),
    ),
)  # fmt: skip
