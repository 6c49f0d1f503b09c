"""Attention with a skip in its epilogue: y = c_skip(t)·x + c_out(t)·softmax(q kᵀ/√D) v.

Shapes: B samples, N tokens, H heads, D head size, C = H·D; q, k, v (B,N,H,D), x and y (B,N,C) in
the case's dtype, t (B,) in fp32. c_skip and c_out are numbers per sample, see `coefficients`. Bound
by matrix multiplication at long N; the skip is 3 of 7 passes over (B,N,C) at short N.
Sources: Dao, FlashAttention-2, 2023 (backward); Karras et al., EDM, 2022 (`edm`); Song et al.,
Consistency Models, 2023 (`cm`); Lu and Song, sCM, 2024, as rCM's denoiser scales it (`trigflow`).
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch

from kernelbench.families._rcm import (
    SIGMA,
    Function,
    Parametrization,
    coefficients,
    probabilities,
    sdpa,
    skip,
    slopes,
    times,
)
from kernelbench.families.providing import (
    DTYPES,
    MAX_AUTOTUNE,
    compiled,
    eager_traffic,
    no_autotuner,
    no_compiler,
)
from kernelbench.families.rcm_attention.peers import peers
from kernelbench.families.rcm_attention.traffic import attention_traffic, unit
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

ORACLE_ELEMENTS = 1 << 26  # scores of one chunk: 512 MiB a tensor in fp64


@dataclass(frozen=True, kw_only=True)
class RCMAttentionCase(Case):
    """q, k, v (B,N,H,D) and x (B,N,H·D), t (B,)."""

    B: int = axis("batch")
    N: int = axis("tokens")
    H: int = axis("heads")
    D: int = axis("head size")
    causal: bool = axis("a token attends to itself and those before it", False)
    parametrization: Parametrization = axis("c_skip and c_out of t", Parametrization.edm)
    sigma_data: float = axis("standard deviation of the data; 0 is the parametrization's own", 0.0)
    k_mean: float = axis("what every element of k has added to it: 8 bits must take it out", 0.0)

    def __post_init__(self) -> None:
        if min(self.B, self.N, self.H, self.D) < 1:
            raise ValueError("B, N, H and D must be at least 1")
        if not 0 <= self.sigma_data < math.inf:
            raise ValueError(f"sigma_data must be positive, or 0, got {self.sigma_data}")
        if not math.isfinite(self.k_mean):
            raise ValueError(f"k_mean must be finite, got {self.k_mean}")
        if self.parametrization is Parametrization.trigflow and self.sigma != 1:
            raise ValueError(f"trigflow is defined for sigma_data 1, got {self.sigma_data}")

    @property
    def sigma(self) -> float:
        """sigma_data, or what the parametrization's authors use."""
        return self.sigma_data or SIGMA[self.parametrization]

    @property
    def skips(self) -> bool:
        """Whether x and t take part: not with `none`, where y is the attention alone."""
        return self.parametrization is not Parametrization.none


def inputs(case: RCMAttentionCase, draw: Draw) -> Tensors:
    found = {name: draw(case.B, case.N, case.H, case.D) for name in ("q", "k", "v")}
    found["k"] += case.k_mean  # in the case's dtype: k is what it is
    found["x"] = draw(case.B, case.N, case.H * case.D)
    found["t"] = times(draw, case.parametrization, case.B)
    if case.mode is not Mode.fwd:
        found["grad_y"] = _upstream(case, draw, found)
    return found


def _upstream(case: RCMAttentionCase, draw: Draw, a: Tensors) -> Any:
    """A draw, with a little of x and of the mean of v in it, so that dt means something.

    dt = c_skip'·Σ dy⊙x + c_out'·Σ dy⊙attention: with a dy that knows neither, both sums are noise
    of √(NC) that may cancel to nothing, where rounding alone would look like an error. They are
    given expectations of 6 and ∓6 (trigflow: 12) times √(NC), with which the two terms add up.
    """
    C, trigflow = case.H * case.D, case.parametrization is Parametrization.trigflow
    toward_x = 6 / math.sqrt(case.N * C)
    toward_v = (12 if trigflow else -6) * math.sqrt(case.N / C)
    mean = a["v"].float().mean(1, keepdim=True).flatten(2)
    wide = draw(case.B, case.N, C) + toward_x * a["x"].float() + toward_v * mean
    return wide.to(draw.dtype)


def grads(case: RCMAttentionCase) -> tuple[str, ...]:
    return ("q", "k", "v", "x", "t") if case.skips else ("q", "k", "v")


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
    picks one key, and how they are rounded decides which; outliers do the same to fp32.
    dt is a sum that cancels where x or v alone differ from what dy was drawn for, and one that
    fp16 cannot hold where both are large."""
    linear = ("v", "x") if case.skips else ("v",)
    loses = "scores of 10⁴ leave fp32 too few digits for its budget"
    exact, narrow = case.dtype in (DType.fp32, DType.tf32), case.dtype is DType.fp16
    # One-hot rows of a softmax: dq and dk cancel to nothing, and rounding is what is left.
    spread = ("q", "k", *linear) if case.mode is Mode.fwd else linear
    found = {
        "small": Trial(dict.fromkeys(linear, 2.0**-4 if narrow else 2.0**-10)),
        "large": Trial(dict.fromkeys(linear, 2.0**6), apart=("dt",) if narrow else ()),
        "outliers": Trial(refused=loses) if exact else Trial(outliers=spread, apart=("dt",)),
    }
    if case.skips:
        found["amplified"] = Trial({"x": 2.0**-10}, apart=("dt",))
    return found


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


def _materialised(case: RCMAttentionCase) -> Function:
    def attend(*qkv: torch.Tensor) -> torch.Tensor:
        q, k, v = (tensor.transpose(1, 2) for tensor in qkv)
        return (probabilities(q, k, 0, case.causal) @ v).transpose(1, 2).flatten(2)

    return attend


def _joined(case: RCMAttentionCase, attend: Function, mix: Function) -> Call:
    if not case.skips:
        return lambda a: attend(a["q"], a["k"], a["v"])
    return lambda a: mix(attend(a["q"], a["k"], a["v"]), a["x"], a["t"])


def baseline(case: RCMAttentionCase, config: Any) -> Call:
    """SDPA on the backend that `backends` puts first (cuDNN on Hopper), then the skip, eager."""
    return _joined(
        case, sdpa(case.causal), skip(case.parametrization, case.sigma, DTYPES[case.dtype])
    )


def torch_fused(case: RCMAttentionCase, config: Any) -> Call:
    """The same SDPA, then one compiled kernel."""
    return _joined(
        case, sdpa(case.causal), compiled(skip(case.parametrization, case.sigma, torch.float32))
    )


def compile_max_autotune(case: RCMAttentionCase, config: Any) -> Call:
    """As `torch_fused`, its kernel chosen by trial."""
    mix = skip(case.parametrization, case.sigma, torch.float32)
    return _joined(case, sdpa(case.causal), compiled(mix, MAX_AUTOTUNE))


def naive(case: RCMAttentionCase, config: Any) -> Call:
    """Two matrix products with the scores in memory, then the skip, eager."""
    return _joined(
        case, _materialised(case), skip(case.parametrization, case.sigma, DTYPES[case.dtype])
    )


def _ours(fused: bool) -> Callable[[RCMAttentionCase, Any], Call]:
    def build(case: RCMAttentionCase, config: Any) -> Call:
        from kernelbench.kernels.rcm_attention import rcm_attention, rcm_attention_unfused

        function = rcm_attention if fused else rcm_attention_unfused
        kind, sigma, causal = case.parametrization.value, case.sigma, case.causal
        axes = {"parametrization": kind, "sigma_data": sigma, "causal": causal, "config": config}
        return lambda a: function(a["q"], a["k"], a["v"], a["x"], a["t"], **axes)

    return build


def triton_configs(fused: bool, case: RCMAttentionCase, device: Device) -> tuple[Any, ...]:
    from kernelbench.kernels.rcm_attention import configs

    return configs(
        case.B,
        case.N,
        case.H,
        case.D,
        arch=device.arch,
        mode=case.mode.value,
        itemsize=case.dtype.bytes,
        causal=case.causal,
        mixes=fused and case.skips,
    )


def naive_serves(case: RCMAttentionCase, device: Device) -> str | None:
    """Forward, scores and probabilities are alive at once; backward a third of their size.

    A score of 8 rounded to bf16 is off by up to 2⁻⁶, which its probability, then dS, takes over.
    """
    if case.dtype is DType.bf16 and case.mode is not Mode.fwd:
        return "scores rounded to bf16 in memory: elements of dq and dk miss the error budget"
    scores = case.B * case.H * case.N**2 * case.dtype.bytes
    alive = (2 if case.mode is Mode.fwd else 3) * scores
    if device.total_bytes == 0 or alive <= 0.8 * device.total_bytes:
        return None
    return f"scores of {scores / 1e9:.0f} GB: too large for {device.total_bytes / 1e9:.0f} GB"


def serves(case: RCMAttentionCase, device: Device) -> str | None:
    if case.dtype is DType.tf32:
        return "our kernels multiply fp32 exactly, never as TF32"
    return None if 16 <= case.D <= 256 else f"our kernels take D from 16 to 256, not {case.D}"


@cache
def naive_traffic(case: RCMAttentionCase) -> tuple[Traffic, ...]:
    rows = eager_traffic(case, inputs, naive(case, None), ("y",), grads(case))
    return tuple(row for row in rows if "view" not in row.tensor)  # `_unsafe_view` moves nothing


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
        _provider("triton_fused", Role.triton_fused, _ours(fused=True), "epilogue"),
        _provider("triton_unfused", Role.ablation, _ours(fused=False), "kernel"),
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
