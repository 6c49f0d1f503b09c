"""Rotary position embedding of q and k: each pair (x1, x2) turned by its position's angle.

x1' = x1·cos − x2·sin, x2' = x2·cos + x1·sin; the pairs are the two halves of a head (as in
GPT-NeoX and Llama) or neighbours (`interleaved`, as in RoFormer). Bound by HBM bandwidth.
Shapes: B batch, S sequence, Hq and Hk heads, D head size; q (B,S,Hq,D), k (B,S,Hk,D), cos and
sin (S,D/2) or (B,S,D/2). Reference: Su et al., RoFormer, 2021.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, partial
from typing import Any

import torch

from kernelbench.families.providing import (
    MAX_AUTOTUNE,
    compiled,
    eager_traffic,
    no_autotuner,
    no_compiler,
    no_jvp,
    pushed,
)
from kernelbench.families.rotary.traffic import (
    compiled_traffic,
    fused_traffic,
    liger_traffic,
    quack_traffic,
    size_of,
    table_size,
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

BASE = 10000.0


class Layout(StrEnum):
    """In which order q and k lie in memory; their shape is (B,S,H,D) either way."""

    bshd = "bshd"
    bhsd = "bhsd"


class Tables(StrEnum):
    """Whether all sequences share their positions: cos and sin (S,D/2), or (B,S,D/2)."""

    s = "s"
    bs = "bs"


@dataclass(frozen=True, kw_only=True)
class RotaryCase(Case):
    """q (B,S,Hq,D) and k (B,S,Hk,D), turned together."""

    B: int = axis("batch")
    S: int = axis("sequence length")
    Hq: int = axis("query heads")
    Hk: int = axis("key heads")
    D: int = axis("head size, even")
    layout: Layout = axis("storage order of q and k", Layout.bshd)
    interleaved: bool = axis("pairs are neighbours, not halves", False)
    inplace: bool = axis("overwrite q and k (mode fwd)", False)
    tables: Tables = axis("cos and sin per position, or per sequence and position", Tables.s)

    def __post_init__(self) -> None:
        if min(self.B, self.S, self.Hq, self.Hk, self.D) < 1:
            raise ValueError("B, S, Hq, Hk and D must be at least 1")
        if self.D % 2:
            raise ValueError(f"D must be even, got D={self.D}")


def inputs(case: RotaryCase, draw: Draw) -> Tensors:
    found = {"q": _stored(case, draw, case.Hq), "k": _stored(case, draw, case.Hk)}
    start = draw.integers(0, 4096, case.B, 1) if case.tables is Tables.bs else 0
    positions = torch.arange(case.S, device=draw.device) + start
    rates = BASE ** (-torch.arange(0, case.D, 2, device=draw.device, dtype=torch.float64) / case.D)
    angles = positions[..., None] * rates
    found["cos"], found["sin"] = angles.cos().to(draw.dtype), angles.sin().to(draw.dtype)
    if case.mode.graded:
        found["grad_q_out"] = _stored(case, draw, case.Hq)
        found["grad_k_out"] = _stored(case, draw, case.Hk)
    if case.mode is Mode.jvp:
        found["tangent_q"] = _stored(case, draw, case.Hq)
        found["tangent_k"] = _stored(case, draw, case.Hk)
    return found


def _stored(case: RotaryCase, draw: Draw, heads: int) -> Any:
    if case.layout is Layout.bshd:
        return draw(case.B, case.S, heads, case.D)
    return draw(case.B, heads, case.S, case.D).transpose(1, 2)


def outputs(case: RotaryCase) -> tuple[str, ...]:
    found = ("q_out", "k_out")
    return (*found, "tangent_q_out", "tangent_k_out") if case.mode is Mode.jvp else found


def grads(case: RotaryCase) -> tuple[str, ...]:
    return ("q", "k")


def turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """Turn every pair of x (B,S,H,D) by the angle of its position; cos, sin (…,S,D/2)."""
    cos, sin = cos[..., None, :], sin[..., None, :]
    if interleaved:
        x1, x2 = x[..., 0::2], x[..., 1::2]
        return torch.stack([x1 * cos - x2 * sin, x2 * cos + x1 * sin], -1).flatten(-2)
    x1, x2 = x.chunk(2, -1)
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], -1)


def oracle(case: RotaryCase, a: Tensors) -> Iterator[tuple[str, Any, torch.Tensor]]:
    """In fp64, a sequence at a time; the gradient is the inverse rotation of what comes down, and a
    tangent is turned like what it is of."""
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
    """A rotation is linear in q and k; angles stay what they are."""
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


def _eager(case: RotaryCase) -> Callable[..., Any]:
    interleaved = case.interleaved

    def both(
        q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return turn(q, cos, sin, interleaved), turn(k, cos, sin, interleaved)

    def both_in_place(
        q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return q.copy_(turn(q, cos, sin, interleaved)), k.copy_(turn(k, cos, sin, interleaved))

    return both_in_place if case.inplace else both


def _spread(case: RotaryCase, function: Callable[..., Any]) -> Call:
    def call(a: Tensors) -> Any:
        return function(a["q"], a["k"], a["cos"], a["sin"])

    return pushed(call, grads(case)) if case.mode is Mode.jvp else call


def _compiled(case: RotaryCase, mode: str = "default") -> Call:
    if case.mode is Mode.jvp:
        return compiled(_spread(case, _eager(case)), mode)
    return _spread(case, compiled(_eager(case), mode))


def eager(case: RotaryCase, config: Any) -> Call:
    return _spread(case, _eager(case))


def torch_fused(case: RotaryCase, config: Any) -> Call:
    """torch.compile of the eager form: one kernel for each of q and k, or one for both."""
    return _compiled(case)


def compile_max_autotune(case: RotaryCase, config: Any) -> Call:
    """As `torch_fused`, its kernels chosen by trial."""
    return _compiled(case, MAX_AUTOTUNE)


def torch_complex(case: RotaryCase, config: Any) -> Call:
    """Neighbours as complex numbers in fp32, as Meta's Llama has it: (x1 + i·x2)·(cos + i·sin), a
    kernel for each of q and k (three in 16 bits), and one that puts cos and sin together."""

    def both(
        q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        turns = torch.complex(cos.float(), sin.float())[..., None, :]
        pairs = (torch.view_as_complex(x.float().unflatten(-1, (-1, 2))) for x in (q, k))
        return tuple(torch.view_as_real(x * turns).flatten(-2).type_as(q) for x in pairs)

    return _spread(case, both)


def triton_fused(case: RotaryCase, config: Any) -> Call:
    from kernelbench.kernels.rotary import apply_rotary

    interleaved, inplace = case.interleaved, case.inplace
    function = partial(apply_rotary, interleaved=interleaved, inplace=inplace, config=config)
    return _spread(case, function)


def triton_configs(case: RotaryCase, device: Device) -> tuple[Any, ...]:
    from kernelbench.kernels.rotary import configs

    apart = case.layout is Layout.bhsd
    return configs(case.S, case.Hq + case.Hk, case.D, arch=device.arch, heads_apart=apart)


def liger(case: RotaryCase, config: Any) -> Call:
    """LigerRopeFunction takes (B,H,S,D) views and works in place where their storage allows."""
    from liger_kernel.ops.rope import LigerRopeFunction

    def both(a: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        q, k = a["q"].transpose(1, 2), a["k"].transpose(1, 2)
        q, k = LigerRopeFunction.apply(q, k, a["cos"], a["sin"], None, 1, case.D)
        return q.transpose(1, 2), k.transpose(1, 2)

    return both


def liger_overwrites(case: RotaryCase) -> tuple[str, ...]:
    return ("q", "k", "grad_q_out", "grad_k_out")


def quack(case: RotaryCase, config: Any) -> Call:
    """QuACK turns one tensor a launch: two launches."""
    from quack.rotary import apply_rotary_emb

    def both(a: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        q = apply_rotary_emb(a["q"], a["cos"], a["sin"], case.interleaved, case.inplace)
        k = apply_rotary_emb(a["k"], a["cos"], a["sin"], case.interleaved, case.inplace)
        return q, k

    return both


def overwrites(case: RotaryCase) -> tuple[str, ...]:
    return ("q", "k") if case.inplace else ()


def forward_in_place(case: RotaryCase, device: Device) -> str | None:
    """In place, there is a forward to time; its backward is the one out of place."""
    if case.inplace and case.mode is not Mode.fwd:
        return "inplace is timed in mode fwd: a gradient is not overwritten"
    return None


def complex_serves(case: RotaryCase, device: Device) -> str | None:
    if not case.interleaved or case.inplace:
        return "complex numbers are pairs of neighbours, turned out of place"
    return forward_in_place(case, device)


def compile_serves(case: RotaryCase, device: Device) -> str | None:
    return forward_in_place(case, device) or no_compiler(case, device)


def autotune_serves(case: RotaryCase, device: Device) -> str | None:
    return forward_in_place(case, device) or no_autotuner(case, device)


def gpu_only(device: Device) -> str | None:
    return None if device.kind == "cuda" else "a GPU package; there is no GPU here"


def liger_serves(case: RotaryCase, device: Device) -> str | None:
    if case.interleaved:
        return "Liger turns halves, not neighbours"
    if case.inplace and case.layout is Layout.bhsd:
        return "Liger copies (B,H,S,D) storage; it is not in place there"
    return forward_in_place(case, device) or no_jvp(case, device) or gpu_only(device)


def quack_serves(case: RotaryCase, device: Device) -> str | None:
    if case.D % 8:
        return f"QuACK needs D divisible by 8, got {case.D}"
    if case.tables is Tables.bs:
        return "QuACK takes cos and sin of (S,D/2) alone"
    if device.capability is not None and device.capability < (9, 0):
        return f"QuACK needs sm_90 or newer, this GPU is {device.arch}"
    return forward_in_place(case, device) or no_jvp(case, device) or gpu_only(device)


@cache
def _traffic_of_eager(case: RotaryCase) -> tuple[Traffic, ...]:
    return eager_traffic(case, inputs, eager(case, None), outputs(case), grads(case))


@cache
def _traffic_of_complex(case: RotaryCase) -> tuple[Traffic, ...]:
    return eager_traffic(case, inputs, torch_complex(case, None), outputs(case), grads(case))


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
        Provider("eager", Role.baseline, eager, traffic=_traffic_of_eager, mutates=overwrites,
                 unsupported=forward_in_place),
        Provider("torch_fused", Role.torch_fused, torch_fused, traffic=compiled_traffic,
                 mutates=overwrites, unsupported=compile_serves),
        Provider("torch_complex", Role.torch_fused, torch_complex, traffic=_traffic_of_complex,
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
