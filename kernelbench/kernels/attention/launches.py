"""Attention's launches by what a config says of them: the kernels in Gluon, or those of `tl`."""

from typing import Any

from torch import Tensor

from kernelbench.kernels.attention import backward, forward
from kernelbench.kernels.attention.backward import Gradients
from kernelbench.kernels.attention.configs import AttentionConfig
from kernelbench.kernels.attention.forward import Forward
from kernelbench.kernels.attention.hopper import backward as hopper
from kernelbench.kernels.attention.hopper import fused
from kernelbench.kernels.attention.hopper.forward import (
    NO_HOPPER_HOOK,
    HopperHook,
    forward_launches,
    packed_launches,
)
from kernelbench.kernels.attention.places import Packed, Place
from kernelbench.kernels.attention.tiles import NO_HOOK, NO_MASK, Hook, Mask
from kernelbench.kernels.launch import Launch


def attend(
    tensors: Forward,
    *,
    scale: float,
    causal: bool,
    config: AttentionConfig,
    finish: Hook = NO_HOOK,
    hook: HopperHook = NO_HOPPER_HOOK,
    mask: Mask = NO_MASK,
    place: Place | None = None,
    listed: Tensor | None = None,
) -> tuple[Launch, ...]:
    """The launches of a forward. finish, hook: of the one or the other kernel. listed: memory for
    the kernel in Gluon, see `hopper.order`."""
    if config.hopper is not None and isinstance(place, Packed):
        assert listed is not None
        how: dict[str, Any] = {"scale": scale, "causal": causal, "tile": config.hopper}
        return packed_launches(tensors, place, listed, **how)
    if config.hopper is not None:
        return forward_launches(tensors, scale=scale, causal=causal, tile=config.hopper, hook=hook)
    blocks = config.block_m, config.block_n, config.warps, config.stages
    how = {"finish": finish, "mask": mask, "place": place}
    return (forward.forward_launch(tensors, scale=scale, causal=causal, blocks=blocks, **how),)


def sums_queries(config: AttentionConfig, q: Tensor, dq: Tensor | None, dk: Tensor | None) -> bool:
    """Whether these gradients take memory for the sum of dq, (B,H,N,D) of fp32."""
    fused = config.bwd_hopper is not None and config.bwd_hopper.fused is not None
    return fused and q.numel() > 0 and dq is not None and dk is not None


def differentiate(
    tensors: Gradients,
    gradients: tuple[Tensor | None, Tensor | None, Tensor | None],
    total: Tensor | None,
    *,
    scale: float,
    causal: bool,
    config: AttentionConfig,
    read: tuple[Tensor | None, ...],
    factor: Hook = NO_HOOK,
    mask: Mask = NO_MASK,
    place: Place | None = None,
    adds: bool = False,
    listed: Tensor | None = None,
) -> tuple[Launch, ...]:
    """The launches that write dq, and dk and dv, or add to them, where they are wanted, from δ.

    total: zeros, where `sums_queries`. read: see `backward.scale_launch`. listed: memory for the
    kernel in Gluon, of packed sequences, see `hopper.order`.
    """
    dq, dk, dv = gradients
    tile = config.bwd_hopper if tensors.q.numel() else None  # nothing has no descriptor
    how: dict[str, Any] = {"scale": scale, "causal": causal, "factor": factor}
    placed: dict[str, Any] = {"mask": mask, "place": place, "adds": adds}
    blocks = config.bwd_block_m, config.bwd_block_n, config.bwd_warps, config.bwd_stages
    launches: list[Launch] = []
    if total is not None and tile is not None and tile.fused is not None:
        assert dq is not None and dk is not None and dv is not None
        sums = tensors, total, dk, dv
        if isinstance(place, Packed):
            assert listed is not None
            how = {"scale": scale, "causal": causal, "tile": tile.fused}
            launches.extend(fused.packed_launches(sums, place, listed, **how))
        else:
            launches.append(fused.fused_launch(*sums, tile=tile.fused, **how))
        if tile.fused.flat:
            return *launches, fused.unfold_launch(total, dq, scale=scale)
        scaled = backward.scale_launch(total, dq, scale=scale, factor=factor, read=read)
        return *launches, scaled
    if place is not None or tensors.q.shape[2] != tensors.k.shape[2]:
        tile = None  # dq or dk alone, or the same bits on every call: there is no such kernel
    if dk is not None and dv is not None:
        if tile is None:
            launch = backward.keys_launch(tensors, dk, dv, blocks=blocks, **how, **placed)
        else:
            launch = hopper.keys_launch(tensors, dk, dv, tile=tile, **how)
        launches.append(launch)
    if dq is None:
        return tuple(launches)
    if tile is not None and tile.queries is not None:
        launches.append(hopper.queries_launch(tensors, dq, tile=tile.queries, **how))
    else:
        if tile is not None:
            blocks = tile.keys, tile.rows, tile.warps, tile.stages
        launches.append(backward.queries_launch(tensors, dq, blocks=blocks, **how, **placed))
    return tuple(launches)
