"""A block of a diffusion transformer whose attention has a skip: with h = norm(x),
y1 = c_skip(t)·x + c_out(t)·proj(attention(h)) and y = y1 + gelu(norm(y1) w_upᵀ + b_up) w_downᵀ
+ b_down.

Shapes as in `rcm_layer`, and w_up (4C,C), w_down (C,4C); gelu by tanh. norm is RMSNorm over C with
weights, n = h·rsqrt(mean(h²) + 1e-6)·w, or nothing. Compute-bound by its 24·C² flops a token; what
fusion may gain is the share of skip and norms in its time.
"""

import math
from collections.abc import Generator, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from kernelbench.families import rcm_layer
from kernelbench.families._rcm import coefficients, slopes
from kernelbench.families.dit_block.case import EPS, RATIO, DiTBlockCase, grads, inputs, names
from kernelbench.families.dit_block.providers import (
    baseline,
    compile_block,
    compile_max_autotune,
    on_a_gpu,
    triton_compiled,
    triton_configs,
    triton_fused,
)
from kernelbench.families.dit_block.traffic import block_traffic, mlp_sizes
from kernelbench.families.providing import no_autotuner, no_compiler
from kernelbench.families.rcm_layer import Piece, through_attention
from kernelbench.families.rcm_layer.providers import serves
from kernelbench.spec import Cost, Family, Mode, Provider, Role, Tensors, Trial


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
    """One sample of the oracle: the `finish` of `through_attention`, and the sums that it makes."""

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
        gradients = yield from through_attention(h, self.w, self.case.H, self.finish)
        if gradients is not None:
            dh, weights = gradients
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
    """Those of `rcm_layer`; the MLP's last product is linear, too."""
    last = ("w_down", "b_down")
    return {
        name: replace(trial, scale={**trial.scale, **dict.fromkeys(last, trial.scale["b_proj"])})
        if "b_proj" in trial.scale
        else trial
        for name, trial in rcm_layer.trials(case).items()
    }


def cost(case: DiTBlockCase) -> Cost:
    """That of `rcm_layer` with the MLP's: 4·4·B·N·C² flops forward, 2 × that backward."""
    layer, forward = rcm_layer.cost(case), 4 * RATIO * case.B * case.N * case.C**2
    w, b, norms = mlp_sizes(case)
    times_forward = {Mode.fwd: 1, Mode.bwd: 2, Mode.full: 3}[case.mode]
    read = w + norms + (0 if case.mode is Mode.bwd else b)
    written = 0 if case.mode is Mode.fwd else w + b + norms
    return Cost(layer.flops + times_forward * forward, layer.read + read, layer.write + written)


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
            "baseline",
            Role.baseline,
            baseline,
            traffic=partial(block_traffic, "eager", "back eager"),
        ),
        Provider(
            "compile",
            Role.torch_fused,
            compile_block,
            traffic=partial(block_traffic, "kernel", "back kernel"),
            unsupported=no_compiler,
        ),
        Provider(
            "compile_max_autotune",
            Role.torch_fused,
            compile_max_autotune,
            traffic=partial(block_traffic, "kernel", "back kernel"),
            unsupported=no_autotuner,
        ),
        Provider(
            "triton_fused",
            Role.triton_fused,
            triton_fused,
            traffic=partial(block_traffic, "epilogue", "back ours"),
            configs=triton_configs,
            requires=("triton",),
            unsupported=serves,
        ),
        Provider(
            "triton_compiled",
            Role.ablation,
            triton_compiled,
            traffic=partial(block_traffic, "epilogue", "back ours"),
            configs=triton_configs,
            requires=("triton",),
            unsupported=on_a_gpu,
        ),
    ),
)
