"""Rotary embedding by others."""

from typing import Any

import torch

from kernelbench.families.providing import no_jvp
from kernelbench.families.rotary.case import Layout, RotaryCase, Tables
from kernelbench.families.rotary.providers import forward_in_place
from kernelbench.spec import Call, Device, Tensors


def liger(case: RotaryCase, config: Any) -> Call:
    """LigerRopeFunction takes (B,H,S,D) views and works in place where their storage allows."""
    from liger_kernel.ops.rope import LigerRopeFunction

    def turn_both(a: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        q, k = a["q"].transpose(1, 2), a["k"].transpose(1, 2)
        q, k = LigerRopeFunction.apply(q, k, a["cos"], a["sin"], None, 1, case.D)
        return q.transpose(1, 2), k.transpose(1, 2)

    return turn_both


def liger_overwrites(case: RotaryCase) -> tuple[str, ...]:
    return ("q", "k", "grad_q_out", "grad_k_out")


def quack(case: RotaryCase, config: Any) -> Call:
    """QuACK turns one tensor a launch: two launches."""
    from quack.rotary import apply_rotary_emb

    def turn_both(a: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        q = apply_rotary_emb(a["q"], a["cos"], a["sin"], case.interleaved, case.inplace)
        k = apply_rotary_emb(a["k"], a["cos"], a["sin"], case.interleaved, case.inplace)
        return q, k

    return turn_both


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
