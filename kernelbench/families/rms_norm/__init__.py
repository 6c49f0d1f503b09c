"""RMSNorm: y = x·rsqrt(mean(x²) + eps)·w over the last dimension, bound by HBM bandwidth.

Shapes: M rows, N columns. Castings (where a low-precision value is rounded) follow Liger-Kernel's
names: `fp32` as F.rms_norm, `llama` as Hugging Face's LlamaRMSNorm, `gemma` with weight 1 + w,
`none` with every operation in the input dtype. With `residual`, r' = x + r is returned, too, and
the norm is that of r'. Reference: Zhang and Sennrich, Root Mean Square Layer Normalization, 2019.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F

from kernelbench.families.providing import (
    MAX_AUTOTUNE,
    compiled,
    eager_traffic,
    no_autotuner,
    no_compiler,
    pushed,
)
from kernelbench.families.rms_norm.peers import (
    liger,
    liger_serves,
    quack,
    quack_serves,
    quack_tuned,
)
from kernelbench.families.rms_norm.traffic import (
    compiled_traffic,
    f_rms_norm_traffic,
    fused_traffic,
    ours_traffic,
)
from kernelbench.spec import (
    Call,
    Case,
    Cost,
    Device,
    Draw,
    DType,
    Family,
    Mode,
    Provider,
    Role,
    Tensors,
    Traffic,
    Trial,
    axis,
)

ORACLE_ELEMENTS = 1 << 26  # of one chunk: 512 MiB a tensor in fp64


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
    found = {"x": draw(case.M, case.N), "weight": draw(case.N)}
    if case.residual:
        found["residual"] = draw(case.M, case.N)
    if case.mode.graded:
        for name in outputs(case):
            found[f"grad_{name}"] = draw(case.M, case.N)
    if case.mode is Mode.jvp:
        found |= {f"tangent_{name}": draw(*found[name].shape) for name in grads(case)}
    return found


def outputs(case: RMSNormCase) -> tuple[str, ...]:
    found = ("y", "r") if case.residual else ("y",)
    pushed_on = tuple(f"tangent_{name}" for name in found) if case.mode is Mode.jvp else ()
    return found + pushed_on


def grads(case: RMSNormCase) -> tuple[str, ...]:
    return ("x", "weight", "residual") if case.residual else ("x", "weight")


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
        if case.residual:  # what comes down from r' passes through
            whole = dh + a["grad_r"][rows].double()
            yield "dresidual", rows, whole, dh
            yield "dx", rows, whole, dh
        else:
            yield "dx", rows, dh
        dw += (dy * h * rs).sum(0)
    if case.mode.graded:
        yield "dweight", ..., dw


def _tangents(
    case: RMSNormCase, a: Tensors, rows: slice, h: Any, rs: Any, w: Any
) -> Iterator[tuple[Any, ...]]:
    pushed_on = a["tangent_x"][rows].double()
    if case.residual:
        pushed_on = pushed_on + a["tangent_residual"][rows].double()
        yield "tangent_r", rows, pushed_on
    along = rs * pushed_on - rs**3 * h * (h * pushed_on).mean(-1, keepdim=True)
    yield "tangent_y", rows, along * w + h * rs * a["tangent_weight"].double()


def trials(case: RMSNormCase) -> Mapping[str, Trial]:
    """Scaled down until the mean square is about eps, and up by 256, whose square fp16 lacks."""
    drawn = ("x", "residual") if case.residual else ("x",)
    rounds_squares = case.casting is Casting.none and case.dtype is DType.fp16
    why = "casting=none rounds squares to fp16, which holds none of them well"
    found = {
        "small": Trial(dict.fromkeys(drawn, math.sqrt(case.eps) or 2.0**-10)),
        "large": Trial(dict.fromkeys(drawn, 256.0)),
        "outliers": Trial(outliers=drawn),
    }
    if case.residual and case.mode.graded:  # dx of a large h is small beside grad_r
        found["large"] = Trial({**found["large"].scale, "grad_r": 1 / 256})
        found["amplified"] = Trial({"grad_r": 2.0**-10})
    if case.N == 1:  # y is a sign: its dx is what rounding leaves of a difference
        found = {name: replace(trial, apart=("dx", "dresidual")) for name, trial in found.items()}
    if rounds_squares:
        found |= {name: Trial(refused=why) for name in ("small", "large", "outliers")}
    return found


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


def _eager(casting: Casting, residual: bool, eps: float) -> Callable[..., Any]:
    """RMSNorm as people write it in PyTorch."""

    def norm(h: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if casting is Casting.none:
            return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps) * weight
        wide = h.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        if casting is Casting.llama:
            return weight * wide.to(h.dtype)
        if casting is Casting.gemma:
            return (wide * (1.0 + weight.float())).to(h.dtype)
        return (wide * weight.float()).to(h.dtype)

    def add_norm(
        x: torch.Tensor, weight: torch.Tensor, r: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        h = x + r
        return norm(h, weight), h

    return add_norm if residual else norm


def _spread(case: RMSNormCase, function: Callable[..., Any]) -> Call:
    def plain(a: Tensors) -> Any:
        return function(a["x"], a["weight"])

    def added(a: Tensors) -> Any:
        return function(a["x"], a["weight"], a["residual"])

    call = added if case.residual else plain
    return pushed(call, grads(case)) if case.mode is Mode.jvp else call


def _compiled(case: RMSNormCase, function: Callable[..., Any], mode: str = "default") -> Call:
    if case.mode is Mode.jvp:
        return compiled(_spread(case, function), mode)
    return _spread(case, compiled(function, mode))


def eager(case: RMSNormCase, config: Any) -> Call:
    return _spread(case, _eager(case.casting, case.residual, case.eps))


def compile_eager(case: RMSNormCase, config: Any) -> Call:
    return _compiled(case, _eager(case.casting, case.residual, case.eps))


def compile_max_autotune(case: RMSNormCase, config: Any) -> Call:
    """As `compile`, its kernels chosen by trial."""
    return _compiled(case, _eager(case.casting, case.residual, case.eps), MAX_AUTOTUNE)


def torch_fused(case: RMSNormCase, config: Any) -> Call:
    """F.rms_norm, which rounds once; after an add when there is a residual."""
    shape, eps = (case.N,), case.eps

    def add_norm(
        x: torch.Tensor, weight: torch.Tensor, r: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        h = x + r
        return F.rms_norm(h, shape, weight, eps), h

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, shape, weight, eps)

    return _spread(case, add_norm if case.residual else norm)


def rounds_once(case: RMSNormCase, device: Device) -> str | None:
    """F.rms_norm answers `fp32`, and `llama` with one rounding less."""
    if case.casting in (Casting.fp32, Casting.llama):
        return None
    return f"F.rms_norm has no casting={case.casting}"


def triton_fused(case: RMSNormCase, config: Any) -> Call:
    from kernelbench.kernels.rms_norm import rms_norm

    eps, casting = case.eps, case.casting.value

    def add_norm(x: torch.Tensor, weight: torch.Tensor, r: torch.Tensor) -> Any:
        return rms_norm(x, weight, eps, residual=r, casting=casting, config=config)

    norm = partial(rms_norm, eps=eps, casting=casting, config=config)
    return _spread(case, add_norm if case.residual else norm)


def triton_configs(case: RMSNormCase, device: Device) -> tuple[Any, ...]:
    from kernelbench.kernels.rms_norm import configs

    return configs(
        case.M,
        case.N,
        arch=device.arch,
        mode="fwd" if case.mode is Mode.jvp else case.mode.value,
        itemsize=case.dtype.bytes,
        residual=case.residual,
        sms=device.sms or None,
    )


@cache
def _traffic_of_eager(case: RMSNormCase) -> tuple[Traffic, ...]:
    """One operator of the backward, pow(h, 1), is a copy by the driver: it moves what its row says,
    but profilers of kernels do not see it (512 of 7936 MiB at (16384, 8192))."""
    return eager_traffic(case, inputs, eager(case, None), outputs(case), grads(case))


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
        Provider("eager", Role.baseline, eager, traffic=_traffic_of_eager),
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
