"""A block of a diffusion transformer whose attention has a skip: with h = norm(x),
y1 = c_skip(t)·x + c_out(t)·proj(attention(h)) and y = y1 + gelu(norm(y1) w_upᵀ + b_up) w_downᵀ
+ b_down.

Shapes as in `rcm_layer`, and w_up (4C,C), w_down (C,4C); gelu by tanh. norm is RMSNorm over C with
weights, n = h·rsqrt(mean(h²) + 1e-6)·w, or nothing. Compute-bound by its 24·C² flops a token; what
fusion may gain is the share of skip and norms in its time.
"""

import math
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import sdpa_kernel

from kernelbench.families import rcm_layer
from kernelbench.families._rcm import Function, backends, coefficients, sdpa, slopes, times
from kernelbench.families.providing import DTYPES, MAX_AUTOTUNE, compiled, no_autotuner, no_compiler
from kernelbench.families.rcm_attention.traffic import layer_traffic, sizes
from kernelbench.families.rcm_layer import Piece, RCMLayerCase, through_attention
from kernelbench.families.rms_norm.traffic import f_rms_norm_passes
from kernelbench.spec import (
    Call,
    Cost,
    Device,
    Draw,
    Family,
    Mode,
    Provider,
    Role,
    Tensors,
    Traffic,
    Trial,
    axis,
)

RATIO = 4  # of the hidden width to C
EPS = 1e-6
MLP = ("w_up", "b_up", "w_down", "b_down")
NORMS = ("w_norm1", "w_norm2")


class Norm(StrEnum):
    """What stands before attention and before the MLP."""

    none = "none"
    rms = "rms"


@dataclass(frozen=True, kw_only=True)
class DiTBlockCase(RCMLayerCase):
    """x (B,N,C), the weights of an attention and of an MLP, t (B,)."""

    norm: Norm = axis("before attention and before the MLP", Norm.rms)


def names(case: DiTBlockCase) -> tuple[str, ...]:
    """Of the weights, in the order in which the block takes them."""
    return (*rcm_layer.WEIGHTS, *MLP, *(NORMS if case.norm is Norm.rms else ()))


def inputs(case: DiTBlockCase, draw: Draw) -> Tensors:
    C, hidden = case.C, RATIO * case.C
    found = {"x": draw(case.B, case.N, C), "t": times(draw, case.parametrization, case.B)}
    found |= rcm_layer.weights(draw, C)
    shapes = {"w_up": (hidden, C), "b_up": (hidden,), "w_down": (C, hidden), "b_down": (C,)}
    for name, shape in shapes.items():
        found[name] = draw(*shape) / math.sqrt(hidden if name == "w_down" else C)
    for name in NORMS if case.norm is Norm.rms else ():
        found[name] = draw(C)
    if case.mode is not Mode.fwd:
        # the norm before the MLP multiplies the noise of dy1 by 1/rms(y1), up to 10
        found["grad_y"] = rcm_layer.upstream(case, draw, found, expectation=24)
    return found


def grads(case: DiTBlockCase) -> tuple[str, ...]:
    return ("x", *(("t",) if case.skips else ()), *names(case))


def _normalise(h: torch.Tensor, w: torch.Tensor | None) -> torch.Tensor:
    if w is None:
        return h
    return h * torch.rsqrt(h.square().mean(-1, keepdim=True) + EPS) * w


def _differentiate_norm(
    dn: torch.Tensor, h: torch.Tensor, w: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """dh = rs·m − rs³·h·mean(m·h) with m = dn·w, and dw = Σ_rows dn·h·rs."""
    if w is None:
        return dn, None
    rs, m = torch.rsqrt(h.square().mean(-1, keepdim=True) + EPS), dn * w
    return rs * m - rs**3 * h * (m * h).mean(-1, keepdim=True), (dn * h * rs).sum(0)


def _gelu(u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """½u(1 + tanh κ(u + 0.044715u³)), κ = √(2/π), and its derivative."""
    kappa = math.sqrt(2 / math.pi)
    tanh = torch.tanh(kappa * (u + 0.044715 * u**3))
    slope = kappa * (1 + 3 * 0.044715 * u * u)
    return u * (1 + tanh) / 2, (1 + tanh) / 2 + u * (1 - tanh * tanh) * slope / 2


class _Sample:
    """One sample of the oracle: what `through_attention` hands rows of F to, and its sums."""

    def __init__(self, case: DiTBlockCase, a: Tensors, w: dict[str, torch.Tensor], b: int) -> None:
        self.case, self.w, self.b = case, w, b
        self.x, t = a["x"][b].double(), a["t"][b].double()
        self.dy = None if case.mode is Mode.fwd else a["grad_y"][b].double()
        self.c_skip, self.c_out = coefficients(t, case.parametrization, case.sigma)
        self.slopes = slopes(t, case.parametrization, case.sigma)
        self.dt = torch.zeros_like(t)
        self.skipped: list[torch.Tensor] = []  # c_skip·dy1
        self.sums = {name: torch.zeros_like(weight) for name, weight in w.items()}

    def finish(self, rows: slice, f: torch.Tensor) -> Generator[Piece, None, torch.Tensor | None]:
        """Yields y of the rows; returns dF = c_out·dy1."""
        w, norm2 = self.w, self.w.get("w_norm2")
        y1 = self.c_skip * self.x[rows] + self.c_out * f
        n = _normalise(y1, norm2)
        g, slope = _gelu(n @ w["w_up"].mT + w["b_up"])
        mlp = g @ w["w_down"].mT
        part = self.c_out * (f - w["b_proj"])  # x and the biases pass through
        yield "y", (self.b, rows), y1 + mlp + w["b_down"], part, mlp
        if self.dy is None:
            return None
        dy = self.dy[rows]
        du = (dy @ w["w_down"]) * slope
        through_norm, dw_norm = _differentiate_norm(du @ w["w_up"], y1, norm2)
        dy1 = dy + through_norm
        self.add(w_up=du.mT @ n, b_up=du.sum(0), w_down=dy.mT @ g, b_down=dy.sum(0))
        self.add(w_norm2=dw_norm)
        d_skip, d_out = self.slopes
        self.dt = self.dt + d_skip * (dy1 * self.x[rows]).sum() + d_out * (dy1 * f).sum()
        self.skipped.append(self.c_skip * dy1)
        df: torch.Tensor = self.c_out * dy1
        return df

    def add(self, **gradients: torch.Tensor | None) -> None:
        for name, gradient in gradients.items():
            if gradient is not None:
                self.sums[name] += gradient

    def pieces(self) -> Iterator[Piece]:
        norm1 = self.w.get("w_norm1")
        h = _normalise(self.x, norm1)
        found = yield from through_attention(h, self.w, self.case.H, self.finish)
        if found is not None:
            dh, weights = found
            dx, dw_norm = _differentiate_norm(dh, self.x, norm1)
            self.add(w_norm1=dw_norm, **weights)
            yield "dx", self.b, torch.cat(self.skipped) + dx, dx
            yield "dt", self.b, self.dt


def oracle(case: DiTBlockCase, a: Tensors) -> Iterator[Piece]:
    """In fp64, a sample at a time; with norm, gelu and MLP row by row, dF = c_out·dy1,
    dy1 = dy + norm'(gelu'(dy w_down) w_up), dx = c_skip·dy1 + norm'(dh)."""
    w = {name: a[name].double() for name in names(case)}
    totals = {name: torch.zeros_like(weight) for name, weight in w.items()}
    for b in range(case.B):
        sample = _Sample(case, a, w, b)
        yield from sample.pieces()
        totals = {name: total + sample.sums[name] for name, total in totals.items()}
    if case.mode is not Mode.fwd:
        yield from ((f"d{name}", ..., total) for name, total in totals.items())


def trials(case: DiTBlockCase) -> Mapping[str, Trial]:
    """As of `rcm_layer`; the MLP's last product is linear, too."""
    last = ("w_down", "b_down")
    return {
        name: replace(trial, scale={**trial.scale, **dict.fromkeys(last, trial.scale["b_proj"])})
        if "b_proj" in trial.scale
        else trial
        for name, trial in rcm_layer.trials(case).items()
    }


def _more(case: DiTBlockCase) -> tuple[int, int, int]:
    """Bytes of the MLP's matrices, of its biases, of the norms' weights."""
    item, C = case.dtype.bytes, case.C
    norms = 2 * C * item if case.norm is Norm.rms else 0
    return 2 * RATIO * C * C * item, (RATIO + 1) * C * item, norms


def cost(case: DiTBlockCase) -> Cost:
    """That of `rcm_layer` with the MLP's: 4·4·B·N·C² flops forward, 2 × that backward."""
    layer, forward = rcm_layer.cost(case), 4 * RATIO * case.B * case.N * case.C**2
    w, b, norms = _more(case)
    times_forward = {Mode.fwd: 1, Mode.bwd: 2, Mode.full: 3}[case.mode]
    read = w + norms + (0 if case.mode is Mode.bwd else b)
    made = 0 if case.mode is Mode.fwd else w + b + norms
    return Cost(layer.flops + times_forward * forward, layer.read + read, layer.write + made)


def _block(case: DiTBlockCase, attend: Function, finish: Function, norm: Function) -> Function:
    """x, t and the weights in the order of `names`, to y."""
    layer_of = rcm_layer.WEIGHTS

    def block(x: torch.Tensor, t: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        w_qkv, b_qkv, w_proj, b_proj, w_up, b_up, w_down, b_down = weights[: len(layer_of) + 4]
        w_norm1, w_norm2 = weights[len(layer_of) + 4 :] or (None, None)
        h = x if w_norm1 is None else norm(x, w_norm1)
        q, k, v = F.linear(h, w_qkv, b_qkv).unflatten(2, (3, case.H, -1)).unbind(2)
        y1 = finish(attend(q, k, v), w_proj, b_proj, x, t)
        n = y1 if w_norm2 is None else norm(y1, w_norm2)
        return y1 + F.linear(F.gelu(F.linear(n, w_up, b_up), approximate="tanh"), w_down, b_down)

    return block


def _rms(h: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(h, (h.shape[-1],), w, EPS)


def _spread(case: DiTBlockCase, block: Function) -> Call:
    order = names(case)
    return lambda a: block(a["x"], a["t"], *(a[name] for name in order))


def baseline(case: DiTBlockCase, config: Any) -> Call:
    """PyTorch's operators, SDPA on the backend that `backends` puts first; eager."""
    finish = rcm_layer.skipping(case, DTYPES[case.dtype])
    return _spread(case, _block(case, sdpa(), finish, _rms))


def compile_block(case: DiTBlockCase, config: Any, mode: str = "default") -> Call:
    """The whole block compiled, on the baseline's SDPA backend."""
    finish = rcm_layer.skipping(case, torch.float32)
    call = _spread(case, compiled(_block(case, rcm_layer.plain, finish, _rms), mode))

    def on_backend(a: Tensors) -> Any:
        with sdpa_kernel(backends(a["x"].device), set_priority=True):
            return call(a)

    return on_backend


def compile_max_autotune(case: DiTBlockCase, config: Any) -> Call:
    """As `compile`, its matrix products and their epilogues chosen by trial."""
    return compile_block(case, config, MAX_AUTOTUNE)


def _ours(case: DiTBlockCase, config: Any) -> Function:
    from kernelbench.kernels.projection import project_and_skip
    from kernelbench.kernels.rms_norm import rms_norm
    from kernelbench.nn.attend import attend

    kind, sigma = case.parametrization.value, case.sigma
    finish = partial(project_and_skip, parametrization=kind, sigma_data=sigma, config=config)
    norm: Any = partial(rms_norm, eps=EPS, casting="fp32")
    return _block(case, attend, finish, norm)


def triton_fused(case: DiTBlockCase, config: Any) -> Call:
    """Our norms and our projection with the skip, our attention or PyTorch's, whichever is faster;
    the other products and gelu are PyTorch's."""
    return _spread(case, _ours(case, config))


def triton_compiled(case: DiTBlockCase, config: Any) -> Call:
    """`triton_fused` inside torch.compile: our kernels are operators of its graph, and what lies
    between them is Inductor's to fuse."""
    return _spread(case, compiled(_ours(case, config)))


def on_a_gpu(case: DiTBlockCase, device: Device) -> str | None:
    if device.kind == "cpu":
        return "what torch.compile makes of interpreted kernels tells nothing"
    return rcm_layer.serves(case, device)


def triton_configs(case: DiTBlockCase, device: Device) -> tuple[Any, ...]:
    return rcm_layer.triton_configs(case, device)


_UP_AND_DOWN = (("n", 1, 0), ("u", 4, 4), ("g", 4, 4), ("y1", 1, 0), ("y", 0, 1))
_BACK = (  # of down, gelu and up
    ("grad_y", 2, 0), ("dg", 4, 4), ("g", 4, 0), ("u", 4, 0), ("du", 8, 4), ("n", 1, 0),
    ("dn", 1, 1), ("du, db", 4, 0), ("grad_y, db", 1, 0),
)  # fmt: skip
_SUM_BACK = (("grad_y", 1, 0), ("dy1", 0, 1))


def _traffic(kind: str, back: str, case: DiTBlockCase) -> tuple[Traffic, ...]:
    """That of `rcm_layer`, whose y is y1 here, with norms and MLP; kind and back as there.

    As measured in `rcm_layer`, biases are summed by kernels of their own. Not measured: matrix
    products of the MLP are taken to read each operand once, compiled norms h and dn once, too.
    """
    u = sizes(case)[0]
    w, b, norms = _more(case)
    weights = names(case)[len(rcm_layer.WEIGHTS) :]
    fused = back == "back kernel"
    rows: list[tuple[str, int, int]] = []
    found = [*layer_traffic(kind, back, case)]
    if case.mode is not Mode.bwd:
        rows += _UP_AND_DOWN if fused else (*_UP_AND_DOWN, ("down", 1, 1))
        if norms:
            rows += [("norm1", 1, 1), ("norm2", 0 if fused else 1, 1)]
        found.append(Traffic(", ".join(weights), w + b + norms))
    if case.mode is not Mode.fwd:
        rows += _BACK if fused else (*_BACK, *_SUM_BACK)
        if norms:
            passes = f_rms_norm_passes(case.C, case.dtype.bytes) if back == "back eager" else 1
            read = 2 * passes
            rows += [("norm1, backward", read, 1), ("norm2, backward", read, 1)]
        found.append(Traffic(", ".join(weights), w + norms))
        found.append(Traffic(", ".join(f"d{name}" for name in weights), write=w + b + norms))
    return (*found, *(Traffic(name, read * u, write * u) for name, read, write in rows))


def _check(B: int, N: int, C: int, H: int, dtypes: str, modes: str, **axes: Any) -> list[Any]:
    kinds = {"dtype": dtypes.split(), "mode": modes.split()}
    return [*DiTBlockCase.grid(B=B, N=N, C=C, H=H, **kinds, **axes)]


CHECKS = (
    *_check(2, 17, 32, 2, "fp32 fp16 bf16", "fwd bwd full"),
    *_check(2, 9, 32, 2, "fp32 fp16", "full", norm="none", parametrization="trigflow"),
    *_check(1, 9, 48, 3, "fp32", "full", parametrization="none"),
)

FAMILY = Family(
    name="dit_block",
    title="A transformer block whose attention is mixed with its input by the sample's time",
    case=DiTBlockCase,
    inputs=inputs,
    outputs=lambda case: ("y",),
    grads=grads,
    oracle=oracle,
    cost=cost,
    trials=trials,
    checks=CHECKS,
    providers=(
        Provider(
            "baseline", Role.baseline, baseline, traffic=partial(_traffic, "eager", "back eager")
        ),
        Provider(
            "compile",
            Role.torch_fused,
            compile_block,
            traffic=partial(_traffic, "kernel", "back kernel"),
            unsupported=no_compiler,
        ),
        Provider(
            "compile_max_autotune",
            Role.torch_fused,
            compile_max_autotune,
            traffic=partial(_traffic, "kernel", "back kernel"),
            unsupported=no_autotuner,
        ),
        Provider(
            "triton_fused",
            Role.triton_fused,
            triton_fused,
            traffic=partial(_traffic, "epilogue", "back ours"),
            configs=triton_configs,
            requires=("triton",),
            unsupported=rcm_layer.serves,
        ),
        Provider(
            "triton_compiled",
            Role.ablation,
            triton_compiled,
            traffic=partial(_traffic, "epilogue", "back ours"),
            configs=triton_configs,
            requires=("triton",),
            unsupported=on_a_gpu,
        ),
    ),
)
