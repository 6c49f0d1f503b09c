"""Attention with a skip in its epilogue: y = c_skip(t)·x + c_out(t)·softmax(q kᵀ/√D) v.

Shapes: B samples, N tokens, H heads, D head size, C = H·D; q, k, v (B,N,H,D), x and y (B,N,C) in
the case's dtype, t (B,) in fp32. c_skip and c_out are numbers per sample, see `coefficients`. Bound
by matrix multiplication at long N; the skip is 3 of 7 passes over (B,N,C) at short N.
Sources: Dao, FlashAttention-2, 2023 (backward); Karras et al., EDM, 2022 (`edm`); Song et al.,
Consistency Models, 2023 (`cm`); Lu and Song, sCM, 2024, as rCM's denoiser scales it (`trigflow`).
"""

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch

from kernelbench.families._rcm import coefficients, probabilities, slopes
from kernelbench.families.providing import no_autotuner, no_compiler
from kernelbench.families.rcm_attention.case import RCMAttentionCase, grads, inputs
from kernelbench.families.rcm_attention.peers import peers
from kernelbench.families.rcm_attention.providers import (
    baseline,
    compile_max_autotune,
    naive,
    naive_serves,
    naive_traffic,
    ours,
    serves,
    torch_fused,
    triton_configs,
)
from kernelbench.families.rcm_attention.traffic import attention_traffic, unit
from kernelbench.spec import Cost, DType, Family, Mode, Provider, Role, Tensors, Trial

ORACLE_ELEMENTS = 1 << 26  # scores of one chunk: 512 MiB a tensor in fp64


def oracle(case: RCMAttentionCase, a: Tensors) -> Iterator[tuple[Any, ...]]:
    """In fp64, a sample at a time and chunks of its query rows, all heads of them.

    With P = softmax(q kᵀ/√D), O = P v and dO = c_out·dy: dv = Pᵀ dO, dP = dO vᵀ,
    dS = P⊙(dP − rowsum(dO⊙O))/√D, dq = dS k, dk = dSᵀ q, dx = c_skip·dy,
    dt = c_skip'·Σ dy⊙x + c_out'·Σ dy⊙O.
    """
    step = max(1, ORACLE_ELEMENTS // (case.H * case.N))
    t = a["t"].double()
    c_skip, c_out = coefficients(t, case.parametrization, case.sigma)
    d_skip, d_out = slopes(t, case.parametrization, case.sigma)
    for b in range(case.B):
        q, k, v = (a[name][b].double().transpose(0, 1) for name in ("q", "k", "v"))  # (H,N,D)
        dk, dv, dt = torch.zeros_like(k), torch.zeros_like(v), torch.zeros_like(t[b])
        for start in range(0, case.N, step):
            rows = slice(start, min(start + step, case.N))
            p = probabilities(q[:, rows], k, start, case.causal)
            o = p @ v
            x = a["x"][b, rows].double()
            part = c_out[b] * o.transpose(0, 1).flatten(1)  # x passes through
            yield "y", (b, rows), c_skip[b] * x + part, part
            if case.mode is Mode.fwd:
                continue
            dy = a["grad_y"][b, rows].double()
            dy_heads = dy.unflatten(-1, (case.H, case.D)).transpose(0, 1)
            do = c_out[b] * dy_heads
            ds = p * (do @ v.mT - (do * o).sum(-1, keepdim=True)) / math.sqrt(case.D)
            dv += p.mT @ do
            dk += ds.mT @ q[:, rows]
            dt = dt + d_skip[b] * (dy * x).sum() + d_out[b] * (dy_heads * o).sum()
            yield "dq", (b, rows), (ds @ k).transpose(0, 1)
            yield "dx", (b, rows), c_skip[b] * dy
        if case.mode is not Mode.fwd:
            yield "dk", b, dk.transpose(0, 1)
            yield "dv", b, dv.transpose(0, 1)
            yield "dt", b, dt


def trials(case: RCMAttentionCase) -> Mapping[str, Trial]:
    """y is linear in v and x together. q and k keep their size: with larger scores the softmax
    picks one key, and rounding decides which; outliers do the same in fp32.
    dt is a sum that cancels where x or v alone is not what dy was drawn for, and that overflows
    fp16 where both are large."""
    linear = ("v", "x") if case.skips else ("v",)
    refused = "scores of 10⁴ leave fp32 too few digits for its budget"
    exact, narrow = case.dtype in (DType.fp32, DType.tf32), case.dtype is DType.fp16
    # One-hot rows of a softmax: dq and dk cancel, and only rounding is left.
    outliers = ("q", "k", *linear) if case.mode is Mode.fwd else linear
    by_name = {
        "small": Trial(dict.fromkeys(linear, 2.0**-4 if narrow else 2.0**-10)),
        "large": Trial(dict.fromkeys(linear, 2.0**6), apart=("dt",) if narrow else ()),
        "outliers": Trial(refused=refused) if exact else Trial(outliers=outliers, apart=("dt",)),
    }
    if case.skips:
        by_name["amplified"] = Trial({"x": 2.0**-10}, apart=("dt",))
    return by_name


def cost(case: RCMAttentionCase) -> Cost:
    """Flops: two matrix products forward, 4·B·H·N²·D; five backward (the scores again, dP, dv, dq,
    dk), 2.5 ×; half if causal; the skip's are left out. Bytes: each input and output once."""
    forward = 4 * case.B * case.H * case.N**2 * case.D // (2 if case.causal else 1)
    flops = {Mode.fwd: forward, Mode.bwd: forward * 5 // 2, Mode.full: forward * 7 // 2}
    u, t = unit(case), 4 * case.B if case.skips else 0
    read = (4 if case.skips else 3) * u + t
    if case.mode is Mode.fwd:
        return Cost(flops[case.mode], read, u)
    return Cost(flops[case.mode], read + u, read + (u if case.mode is Mode.full else 0))


def _check(B: int, N: int, H: int, D: int, dtypes: str, modes: str, **axes: Any) -> list[Any]:
    kinds = {"dtype": dtypes.split(), "mode": modes.split()}
    return [*RCMAttentionCase.grid(B=B, N=N, H=H, D=D, **kinds, **axes)]


CHECKS = (
    *_check(2, 33, 1, 16, "fp32 fp16 bf16", "fwd bwd full"),
    *_check(2, 19, 1, 24, "fp32 fp16", "fwd full", parametrization="cm", causal=True),
    *_check(1, 70, 1, 32, "fp16", "bwd", causal=True, sigma_data=2.0),
    *_check(3, 16, 2, 16, "fp32 fp16", "full", parametrization="trigflow"),
    *_check(1, 21, 3, 16, "fp32 fp16", "full", parametrization="none"),
    *_check(1, 1, 1, 16, "fp32", "fwd"),
)


def _provider(name: str, role: Role, build: Any, skip: str, **fields: Any) -> Provider[Any]:
    ours = name.startswith("triton")
    if ours:
        tiles = partial(triton_configs, skip == "epilogue")
        fields |= {"configs": tiles, "requires": ("triton",), "unsupported": serves}
    return Provider(name, role, build, traffic=partial(attention_traffic, skip, ours), **fields)


FAMILY = Family(
    name="rcm_attention",
    title="Attention mixed with a skip by coefficients of the sample's time",
    case=RCMAttentionCase,
    inputs=inputs,
    outputs=lambda case: ("y",),
    grads=grads,
    oracle=oracle,
    cost=cost,
    trials=trials,
    checks=CHECKS,
    providers=(
        _provider("baseline", Role.baseline, baseline, "eager"),
        _provider("torch_fused", Role.torch_fused, torch_fused, "kernel", unsupported=no_compiler),
        _provider(
            "compile_max_autotune",
            Role.torch_fused,
            compile_max_autotune,
            "kernel",
            unsupported=no_autotuner,
        ),
        _provider("triton_fused", Role.triton_fused, ours(fused=True), "epilogue"),
        _provider("triton_unfused", Role.ablation, ours(fused=False), "kernel"),
        Provider(
            "naive",
            Role.ablation,
            naive,
            traffic=naive_traffic,
            unsupported=naive_serves,
            promises={"outliers": "scores of 10⁴ are rounded in memory"},
        ),
        *peers(partial(attention_traffic, "kernel", False)),
    ),
)
