"""Rotary embedding: one point of a sweep, and its inputs."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch

from kernelbench.spec import Case, Draw, Mode, Tensors, axis

BASE = 10000.0


class Layout(StrEnum):
    """The storage order of q and k; their shape is (B,S,H,D) either way."""

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
    tensors = {"q": _stored(case, draw, case.Hq), "k": _stored(case, draw, case.Hk)}
    start = draw.integers(0, 4096, case.B, 1) if case.tables is Tables.bs else 0
    positions = torch.arange(case.S, device=draw.device) + start
    rates = BASE ** (-torch.arange(0, case.D, 2, device=draw.device, dtype=torch.float64) / case.D)
    angles = positions[..., None] * rates
    tensors["cos"], tensors["sin"] = angles.cos().to(draw.dtype), angles.sin().to(draw.dtype)
    if case.mode.graded:
        tensors["grad_q_out"] = _stored(case, draw, case.Hq)
        tensors["grad_k_out"] = _stored(case, draw, case.Hk)
    if case.mode is Mode.jvp:
        tensors["tangent_q"] = _stored(case, draw, case.Hq)
        tensors["tangent_k"] = _stored(case, draw, case.Hk)
    return tensors


def _stored(case: RotaryCase, draw: Draw, heads: int) -> Any:
    if case.layout is Layout.bshd:
        return draw(case.B, case.S, heads, case.D)
    return draw(case.B, heads, case.S, case.D).transpose(1, 2)


def outputs(case: RotaryCase) -> tuple[str, ...]:
    names = ("q_out", "k_out")
    return (*names, "tangent_q_out", "tangent_k_out") if case.mode is Mode.jvp else names


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
