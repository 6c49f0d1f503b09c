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
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import sdpa_kernel

from kernelbench.families._rcm import (
    SIGMA,
    Function,
    Parametrization,
    backends,
    coefficients,
    probabilities,
    sdpa,
    skip,
    slopes,
    times,
)
from kernelbench.families.providing import DTYPES, MAX_AUTOTUNE, compiled, no_autotuner, no_compiler
from kernelbench.families.rcm_attention.traffic import layer_traffic, sizes
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
    Trial,
    axis,
)

ORACLE_ELEMENTS = 1 << 26  # scores of one chunk: 512 MiB a tensor in fp64
WEIGHTS = ("w_qkv", "b_qkv", "w_proj", "b_proj")
Piece = tuple[Any, ...]
Finish = Callable[[slice, torch.Tensor], Generator[Piece, None, torch.Tensor | None]]


@dataclass(frozen=True, kw_only=True)
class RCMLayerCase(Case):
    """x (B,N,C), weights (3C,C) and (C,C), t (B,)."""

    B: int = axis("batch")
    N: int = axis("tokens")
    C: int = axis("channels")
    H: int = axis("heads")
    parametrization: Parametrization = axis("c_skip and c_out of t", Parametrization.edm)
    sigma_data: float = axis("standard deviation of the data; 0 is the parametrization's own", 0.0)

    def __post_init__(self) -> None:
        if min(self.B, self.N, self.C, self.H) < 1 or self.C % self.H:
            raise ValueError("B, N, C and H must be at least 1, and C a multiple of H")
        if not 0 <= self.sigma_data < math.inf:
            raise ValueError(f"sigma_data must be positive, or 0, got {self.sigma_data}")
        if self.parametrization is Parametrization.trigflow and self.sigma != 1:
            raise ValueError(f"trigflow is defined for sigma_data 1, got {self.sigma_data}")

    @property
    def sigma(self) -> float:
        """sigma_data, or what the parametrization's authors use."""
        return self.sigma_data or SIGMA[self.parametrization]

    @property
    def skips(self) -> bool:
        """Whether t and the skip take part: not with `none`."""
        return self.parametrization is not Parametrization.none


def weights(draw: Draw, C: int) -> dict[str, Any]:
    """Drawn as wide as nn.Linear's, so that activations keep their size."""
    shapes = {"w_qkv": (3 * C, C), "b_qkv": (3 * C,), "w_proj": (C, C), "b_proj": (C,)}
    return {name: draw(*shape) / math.sqrt(C) for name, shape in shapes.items()}


def upstream(case: RCMLayerCase, draw: Draw, a: Tensors, expectation: float = 6) -> Any:
    """A draw, with a little of x and of b_proj in it, so that dt means something.

    dt = c_skip'·Σ dy⊙x + c_out'·Σ dy⊙F: with a dy that knows neither, both sums are noise of
    √(NC) that may cancel to nothing, where rounding alone would look like an error. They are given
    expectations of 6 and ∓6 (trigflow: 12) times √(NC), with which the two terms add up.
    expectation: instead of that 6.
    """
    trigflow = case.parametrization is Parametrization.trigflow
    toward_x = expectation / math.sqrt(case.N * case.C)
    toward_b = (2 if trigflow else -1) * expectation * math.sqrt(case.C / case.N)
    wide = draw(case.B, case.N, case.C) + toward_x * a["x"].float() + toward_b * a["b_proj"].float()
    return wide.to(draw.dtype)


def inputs(case: RCMLayerCase, draw: Draw) -> Tensors:
    found = {"x": draw(case.B, case.N, case.C), "t": times(draw, case.parametrization, case.B)}
    found |= weights(draw, case.C)
    if case.mode is not Mode.fwd:
        found["grad_y"] = upstream(case, draw, found)
    return found


def grads(case: RCMLayerCase) -> tuple[str, ...]:
    return ("x", "t", *WEIGHTS) if case.skips else ("x", *WEIGHTS)


def through_attention(
    h: torch.Tensor, w: Tensors, H: int, finish: Finish
) -> Generator[Piece, None, tuple[torch.Tensor, dict[str, torch.Tensor]] | None]:
    """F = proj(attention(qkv(h))) of one sample h (N,C) in fp64, chunks of rows at a time.

    finish: is handed rows and their F, yields pieces of the oracle, and returns dF, or None when
    no gradient is wanted. Yields those pieces; returns dh and the gradients of the weights.

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
    found = {"w_qkv": dqkv.mT @ h, "b_qkv": dqkv.sum(0), "w_proj": dw, "b_proj": db}
    return dqkv @ w["w_qkv"], found


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

        found = yield from through_attention(x, w, case.H, finish)
        if found is not None:
            yield "dx", b, c_skip[b] * a["grad_y"][b].double() + found[0], found[0]
            yield "dt", b, torch.stack(dts).sum()
            totals = {name: total + found[1][name] for name, total in totals.items()}
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
    made = u + w + b + t
    if case.mode is Mode.bwd:
        return Cost(backward, 2 * u + w + t, made)
    return Cost(forward + backward, 2 * u + w + b + t, made + u)


def joined(H: int, attend: Function, finish: Function) -> Function:
    """The layer of attention on views of a packed qkv and what makes y of A, x and t."""

    def layer(
        x: torch.Tensor,
        t: torch.Tensor,
        w_qkv: torch.Tensor,
        b_qkv: torch.Tensor,
        w_proj: torch.Tensor,
        b_proj: torch.Tensor,
    ) -> torch.Tensor:
        q, k, v = F.linear(x, w_qkv, b_qkv).unflatten(2, (3, H, -1)).unbind(2)
        return finish(attend(q, k, v), w_proj, b_proj, x, t)

    return layer


def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """SDPA on whatever backend the context that it is traced in puts first."""
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).flatten(2)


def skipping(case: RCMLayerCase, dtype: torch.dtype) -> Function:
    """PyTorch's projection, then the skip in a dtype (see `_rcm.skip`), if there is one."""
    mix = skip(case.parametrization, case.sigma, dtype)

    def finish(a: Any, w: Any, b: Any, x: Any, t: Any) -> torch.Tensor:
        f = F.linear(a, w, b)
        return mix(f, x, t) if case.skips else f

    return finish


def _spread(layer: Function) -> Call:
    return lambda a: layer(a["x"], a["t"], *(a[name] for name in WEIGHTS))


def _on_backend(graph: Function) -> Call:
    """Traced and run where the baseline's SDPA backend is first."""

    def call(a: Tensors) -> torch.Tensor:
        with sdpa_kernel(backends(a["x"].device), set_priority=True):
            return graph(a["x"], a["t"], *(a[name] for name in WEIGHTS))

    return call


def baseline(case: RCMLayerCase, config: Any) -> Call:
    """F.linear, SDPA on the backend that `backends` puts first, F.linear, the skip; eager."""
    return _spread(joined(case.H, sdpa(), skipping(case, DTYPES[case.dtype])))


def compile_layer(case: RCMLayerCase, config: Any) -> Call:
    """The whole layer compiled, on the baseline's SDPA backend."""
    return _on_backend(compiled(joined(case.H, plain, skipping(case, torch.float32))))


def compile_max_autotune(case: RCMLayerCase, config: Any) -> Call:
    """As `compile`, its matrix products and their epilogues chosen by trial."""
    layer = joined(case.H, plain, skipping(case, torch.float32))
    return _on_backend(compiled(layer, MAX_AUTOTUNE))


def _ours(fused: bool) -> Callable[[RCMLayerCase, Any], Call]:
    """Our projection; attention by our kernel or PyTorch's, whichever is faster there."""

    def build(case: RCMLayerCase, config: Any) -> Call:
        from kernelbench.kernels import projection
        from kernelbench.nn.attend import attend

        whole, apart = projection.project_and_skip, projection.project_and_skip_unfused
        kind, sigma = case.parametrization.value, case.sigma
        options = {"parametrization": kind, "sigma_data": sigma, "config": config}
        return _spread(joined(case.H, attend, partial(whole if fused else apart, **options)))

    return build


def triton_configs(case: RCMLayerCase, device: Device) -> tuple[Any, ...]:
    from kernelbench.kernels.projection import configs

    M, C, item = case.B * case.N, case.C, case.dtype.bytes
    found = configs(M, C, C, arch=device.arch, itemsize=item, N=case.N)
    return found[:1] if case.mode is Mode.bwd else found


def serves(case: Case, device: Device) -> str | None:
    if case.dtype is DType.tf32:
        return "our kernels multiply fp32 exactly, never as TF32"
    return None


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
        _provider("triton_fused", Role.triton_fused, _ours(fused=True), "epilogue", "ours"),
        _provider("triton_unfused", Role.ablation, _ours(fused=False), "kernel", "ours"),
    ),
)  # fmt: skip
