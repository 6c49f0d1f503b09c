"""A self-attention layer with a skip: y = c_skip(t)·x + c_out(t)·(A w_projᵀ + b_proj), where A is
softmax(q kᵀ/√D) v and q, k, v = x w_qkvᵀ + b_qkv.

Shapes: B samples, N tokens, C channels, H heads, D = C / H; x and y (B,N,C), w_qkv (3C,C), w_proj
(C,C) in the case's dtype, t (B,) in fp32; A is not causal. The projection stands between attention
and skip, so the skip is fused into its matrix product, not into the attention. In passes over
(B,N,C), forward, an eager skip makes 17, a kernel of its own 13, that epilogue 11: see
`traffic`.
Sources: Karras et al., EDM, 2022 (`edm`); Song et al., Consistency Models, 2023 (`cm`); Lu and
Song, sCM, 2024 (`trigflow`).
"""

import math
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import partial
from typing import Any

import torch

from kernelbench.families._rcm import coefficients, probabilities, slopes
from kernelbench.families.providing import no_autotuner, no_compiler
from kernelbench.families.rcm_layer.case import WEIGHTS, RCMLayerCase, grads, inputs
from kernelbench.families.rcm_layer.providers import (
    baseline,
    compile_layer,
    compile_max_autotune,
    ours,
    serves,
    triton_configs,
)
from kernelbench.families.rcm_layer.traffic import layer_traffic, sizes
from kernelbench.spec import Cost, Family, Mode, Provider, Role, Tensors, Trial

ORACLE_ELEMENTS = 1 << 26  # scores of one chunk: 512 MiB a tensor in fp64


Piece = tuple[Any, ...]


Finish = Callable[[slice, torch.Tensor], Generator[Piece, None, torch.Tensor | None]]


def through_attention(
    h: torch.Tensor, w: Tensors, H: int, finish: Finish
) -> Generator[Piece, None, tuple[torch.Tensor, dict[str, torch.Tensor]] | None]:
    """F = proj(attention(qkv(h))) of one sample h (N,C) in fp64, chunks of rows at a time.

    finish: takes rows and their F, yields pieces of the oracle, and returns dF, or None without
    gradients. Yields those pieces; returns dh and the gradients of the weights.

    With P = softmax(q kᵀ/√D), A = P v, dA = dF w_proj: dv = Pᵀ dA,
    dS = P⊙(dA vᵀ − rowsum(dA⊙A))/√D, dq = dS k, dk = dSᵀ q, dw = d(out)ᵀ in, db = Σ_rows d(out).
    """
    qkv = (h @ w["w_qkv"].mT + w["b_qkv"]).unflatten(-1, (3, H, -1)).permute(1, 2, 0, 3)
    q, k, v = qkv  # (H,N,D)
    dqs, dk, dv = [], torch.zeros_like(k), torch.zeros_like(v)
    dw, db = torch.zeros_like(w["w_proj"]), torch.zeros_like(w["b_proj"])
    step = max(1, ORACLE_ELEMENTS // (H * h.shape[0]))
    for start in range(0, h.shape[0], step):
        rows = slice(start, min(start + step, h.shape[0]))
        p = probabilities(q[:, rows], k, start, False)
        o = p @ v
        a = o.transpose(0, 1).flatten(1)
        df = yield from finish(rows, a @ w["w_proj"].mT + w["b_proj"])
        if df is None:
            continue
        do = (df @ w["w_proj"]).unflatten(-1, (H, -1)).transpose(0, 1)
        ds = p * (do @ v.mT - (do * o).sum(-1, keepdim=True)) / math.sqrt(q.shape[-1])
        dqs.append(ds @ k)
        dk, dv = dk + ds.mT @ q[:, rows], dv + p.mT @ do
        dw, db = dw + df.mT @ a, db + df.sum(0)
    if not dqs:
        return None
    dqkv = torch.stack([torch.cat(dqs, 1), dk, dv]).permute(2, 0, 1, 3).flatten(1)
    gradients = {"w_qkv": dqkv.mT @ h, "b_qkv": dqkv.sum(0), "w_proj": dw, "b_proj": db}
    return dqkv @ w["w_qkv"], gradients


def oracle(case: RCMLayerCase, a: Tensors) -> Iterator[Piece]:
    """In fp64, a sample at a time, by `through_attention`, with dF = c_out·dy and
    dx = c_skip·dy + dh, dt = c_skip'·Σ dy⊙x + c_out'·Σ dy⊙F."""
    w = {name: a[name].double() for name in WEIGHTS}
    totals = {name: torch.zeros_like(weight) for name, weight in w.items()}
    t = a["t"].double()
    c_skip, c_out = coefficients(t, case.parametrization, case.sigma)
    d_skip, d_out = slopes(t, case.parametrization, case.sigma)
    for b in range(case.B):
        x, dts = a["x"][b].double(), [torch.zeros_like(t[b])]

        def finish(
            rows: slice, f: torch.Tensor, b: int = b, x: Any = x, dts: Any = dts
        ) -> Generator[Piece, None, torch.Tensor | None]:
            part = c_out[b] * (f - w["b_proj"])  # x and the bias pass through
            yield "y", (b, rows), c_skip[b] * x[rows] + c_out[b] * f, part
            if case.mode is Mode.fwd:
                return None
            dy = a["grad_y"][b, rows].double()
            dts.append(d_skip[b] * (dy * x[rows]).sum() + d_out[b] * (dy * f).sum())
            df: torch.Tensor = c_out[b] * dy
            return df

        gradients = yield from through_attention(x, w, case.H, finish)
        if gradients is not None:
            yield "dx", b, c_skip[b] * a["grad_y"][b].double() + gradients[0], gradients[0]
            yield "dt", b, torch.stack(dts).sum()
            totals = {name: total + gradients[1][name] for name, total in totals.items()}
    if case.mode is not Mode.fwd:
        yield from ((f"d{name}", ..., total) for name, total in totals.items())


def trials(case: RCMLayerCase) -> Mapping[str, Trial]:
    """Scores are quadratic in x, so x keeps its size; what follows the softmax is linear in the
    projection, which is scaled instead, and has the outliers. dt is a sum that cancels there."""
    projection = ("w_proj", "b_proj")
    return {
        "small": Trial(dict.fromkeys(projection, 2.0**-4), apart=("dt",)),
        "large": Trial(dict.fromkeys(projection, 2.0**4), apart=("dt",)),
        "outliers": Trial(outliers=projection, apart=("dt",)),
        "amplified": Trial({"w_proj": 2.0**6}, apart=("dt",)),
    }


def cost(case: RCMLayerCase) -> Cost:
    """Flops: projections 8·B·N·C² and attention 4·B·N²·C forward, 2 and 2.5 × that backward; the
    skip's are left out. Bytes: each input and output once; a backward needs no bias."""
    linear, attention = 8 * case.B * case.N * case.C**2, 4 * case.B * case.N**2 * case.C
    forward, backward = linear + attention, 2 * linear + attention * 5 // 2
    u, w, b = sizes(case)
    t = 4 * case.B if case.skips else 0
    if case.mode is Mode.fwd:
        return Cost(forward, u + w + b + t, u)
    written = u + w + b + t
    if case.mode is Mode.bwd:
        return Cost(backward, 2 * u + w + t, written)
    return Cost(forward + backward, 2 * u + w + b + t, written + u)


def _check(B: int, N: int, C: int, H: int, dtypes: str, modes: str, **axes: Any) -> list[Any]:
    kinds = {"dtype": dtypes.split(), "mode": modes.split()}
    return [*RCMLayerCase.grid(B=B, N=N, C=C, H=H, **kinds, **axes)]


CHECKS = (
    *_check(2, 33, 48, 3, "fp32 fp16 bf16", "fwd bwd full"),
    *_check(3, 16, 32, 2, "fp32 fp16", "full", parametrization="cm", sigma_data=0.7),
    *_check(2, 7, 32, 1, "fp32 fp16", "full", parametrization="trigflow"),
    *_check(1, 19, 48, 2, "fp32 fp16", "full", parametrization="none"),
    *_check(1, 1, 16, 1, "fp32", "fwd"),
)


def _provider(
    name: str, role: Role, build: Any, kind: str, back: str, **more: Any
) -> Provider[Any]:
    if name.startswith("triton"):
        more = {"configs": triton_configs, "requires": ("triton",), "unsupported": serves}
    return Provider(name, role, build, traffic=partial(layer_traffic, kind, f"back {back}"), **more)


FAMILY = Family(
    name="rcm_layer",
    title="A self-attention layer mixed with its input by coefficients of the sample's time",
    case=RCMLayerCase,
    inputs=inputs,
    outputs=lambda case: ("y",),
    grads=grads,
    oracle=oracle,
    cost=cost,
    trials=trials,
    checks=CHECKS,
    providers=(
        _provider("baseline", Role.baseline, baseline, "eager", "eager"),
        _provider("compile", Role.torch_fused, compile_layer, "kernel", "kernel",
                  unsupported=no_compiler),
        _provider("compile_max_autotune", Role.torch_fused, compile_max_autotune, "kernel",
                  "kernel", unsupported=no_autotuner),
        _provider("triton_fused", Role.triton_fused, ours(fused=True), "epilogue", "ours"),
        _provider("triton_unfused", Role.ablation, ours(fused=False), "kernel", "ours"),
    ),
)  # fmt: skip
