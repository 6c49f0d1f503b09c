"""Zigzag attention's launches: of which tensors, cut up how."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from kernelbench.kernels.attention.backward import deltas_launch
from kernelbench.kernels.attention.places import most_tiles
from kernelbench.kernels.attention.tiles import is_wide, load_tile
from kernelbench.kernels.launch import Launch, arch_of, power_of_2
from kernelbench.kernels.zigzag_attention import hopper
from kernelbench.kernels.zigzag_attention.backward import differentiate_chunks, differentiate_keys
from kernelbench.kernels.zigzag_attention.configs import ZigzagConfig, configs
from kernelbench.kernels.zigzag_attention.forward import attend_chunks
from kernelbench.kernels.zigzag_attention.hopper import Room, Together
from kernelbench.kernels.zigzag_attention.lengths import How
from kernelbench.kernels.zigzag_attention.places import Chunk, Keys, load_zigzag


class Tensors(NamedTuple):
    """What launches take: q (T,H,D) and lengths as `checks.Inputs` has them; o (1,T,H,D), dq, dk
    and dv like q and k, heads next to each other; do (1,T,H·D); statistics (1,H,T), see
    `statistic_of`; lse natural forward, to base 2 backward. Where both chunks of a document lie
    next to each other, the second of each pair is None. listed, ordered_k, ordered_v: as
    `hopper.Room` has them."""

    q0: Tensor
    q1: Tensor | None
    k: Tensor
    v: Tensor
    q0_starts: Tensor
    k_starts: Tensor
    q1_starts: Tensor | None
    k_places: Tensor | None
    o0: Tensor | None
    o1: Tensor | None
    lse0: Tensor
    lse1: Tensor | None
    do0: Tensor | None = None
    do1: Tensor | None = None
    dlse0: Tensor | None = None
    dlse1: Tensor | None = None
    delta0: Tensor | None = None
    delta1: Tensor | None = None
    dq0: Tensor | None = None
    dq1: Tensor | None = None
    dk: Tensor | None = None
    dv: Tensor | None = None
    listed: Tensor | None = None
    ordered_k: Tensor | None = None
    ordered_v: Tensor | None = None


class Cut(NamedTuple):
    """What is computed, by which scale of scores, and how the work is cut up."""

    how: How
    scale: float
    config: ZigzagConfig


def settled(given: Sequence[Tensor | None], how: How, config: ZigzagConfig | None) -> Cut:
    """With the usual scale, and the table's choice, where none is given. given: q0, q1, k and v, as
    `Tensors` has them, and what of o is there. Raises ValueError for a config of a kernel that does
    not take these."""
    q, q1, k, *_ = given
    assert q is not None and k is not None
    _, H, D = q.shape
    arch = arch_of(q.device)
    fits = arch == "sm_90" and hopper.takes(*given)
    if config is None:
        rows, size = most_rows(q, q1), q.element_size()
        [config, *_] = configs(rows, len(k), H, D, arch=arch, itemsize=size)
        config = config if fits else replace(config, hopper=None)
    tile = config.hopper or config.bwd_hopper
    if tile is not None and not fits:
        raise ValueError(
            f"{tile} takes bfloat16 or float16, D of 64 or 128, and tensors that are not "
            "empty, whose addresses and strides are multiples of 16 bytes, on sm_90, got "
            f"{q.dtype}, D = {D} on {arch}: pass config=None for a kernel that takes these"
        )
    return Cut(how, D**-0.5 if how.scale is None else how.scale, config)


def room_of(t: Tensors, cut: Cut) -> Room:
    """What the launches of a forward use between them."""
    tile, S = cut.config.hopper, len(t.q0_starts) - 1
    if tile is None:
        return hopper.NO_ROOM
    return hopper.room_for(t.k, most_rows(t.q0, t.q1), S, tile, cut.how.zigzag)


def most_rows(q0: Tensor, q1: Tensor | None) -> int:
    """Of a chunk of all documents."""
    return len(q0) // 2 if q1 is None else max(len(q0), len(q1))


Outs = tuple[Tensor | None, Tensor | None]  # what belongs to the rows of the chunks


def forward_launches(t: Tensors, cut: Cut) -> tuple[Launch, ...]:
    """The launches that write o and lse, the natural one."""
    c, outs = cut.config, (t.o0, t.o1)
    if c.hopper is not None:
        return hopper.forward_launches(
            _chunk(t, 0, cut.how, outs),
            _chunk(t, 1, cut.how, outs),
            _keys(t, cut.how),
            Room(t.listed, t.ordered_k, t.ordered_v),
            scale=cut.scale,
            how=cut.how,
            joined=t.q1 is None,
            tile=c.hopper,
        )
    blocks = {"BLOCK_M": c.block_m, "BLOCK_N": c.block_n, "SHARED": c.shared}
    tiles = _tiles(t, c.block_m) * t.q0.shape[1]
    options = {"num_warps": c.warps, "num_stages": c.stages}
    return (_launch(attend_chunks, t, outs, cut, tiles, blocks, options),)


def deltas_launches(t: Tensors) -> list[Launch]:
    """The launches that write δ."""
    launches = []
    for do, o, delta, dlse in (
        (t.do0, t.o0, t.delta0, t.dlse0),
        (t.do1, t.o1, t.delta1, t.dlse1),
    ):
        if do is not None:
            assert o is not None and delta is not None
            launches.append(deltas_launch(do, o, o, delta, None, dlse))
    return launches


def gradient_launches(t: Tensors, cut: Cut) -> list[Launch]:
    """The launches that write dk and dv, and dq, where they are wanted, from δ."""
    c, launches = cut.config, []
    options = {"num_warps": c.bwd_warps, "num_stages": c.bwd_stages}
    if t.dk is not None:
        blocks = {"BLOCK_M": c.bwd_block_m, "BLOCK_N": c.bwd_block_n}
        tiles = most_tiles(len(t.k), len(t.q0_starts) - 1, c.bwd_block_n) * t.k.shape[1]
        launches.append(_launch(differentiate_keys, t, (None, None), cut, tiles, blocks, options))
    if t.dq0 is not None:
        blocks = {"BLOCK_M": c.bwd_block_n, "BLOCK_N": c.bwd_block_m}
        tiles = _tiles(t, c.bwd_block_n) * t.q0.shape[1]
        outs = t.dq0, t.dq1
        launches.append(_launch(differentiate_chunks, t, outs, cut, tiles, blocks, options))
    return launches


def together_launches(t: Tensors, both: Together, cut: Cut) -> tuple[Launch, ...]:
    """The launches that write all gradients by one kernel, dq to `both`."""
    tile, outs = cut.config.bwd_hopper, (None, None)
    assert tile is not None
    chunks = _chunk(t, 0, cut.how, outs), _chunk(t, 1, cut.how, outs)
    how: dict[str, Any] = {"scale": cut.scale, "how": cut.how, "tile": tile}
    return hopper.gradient_launches(both, *chunks, _keys(t, cut.how), **how)


def _tiles(t: Tensors, block: int) -> int:
    """Of the early rows of a head."""
    return most_tiles(_rows(t, t.q0), len(t.q0_starts) - 1, block)


def _rows(t: Tensors, q: Tensor) -> int:
    return len(q) if t.q1 is not None else len(q) // 2


def _samples(x: Tensor | None) -> Tensor | None:
    return x if x is None or x.dim() == 4 else x.unsqueeze(0)


def _launch(
    kernel: Any,
    t: Tensors,
    outs: Outs,
    cut: Cut,
    programs: int,
    constexprs: dict[str, Any],
    options: dict[str, int],
) -> Launch:
    how, scale, _ = cut
    _, H, D = t.q0.shape
    rows = max(constexprs["BLOCK_M"], constexprs["BLOCK_N"])
    args = {"scale": scale, "early": _chunk(t, 0, how, outs), "late": _chunk(t, 1, how, outs)}
    args["keys"] = _keys(t, how)
    wide = *map(_samples, (t.q0, t.q1, t.k, t.v, *outs, t.dk)), t.do0, t.do1
    constexprs |= {
        "D": D,
        "BLOCK_D": max(16, power_of_2(D)),
        "CAUSAL": how.causal,
        "WIDE": is_wide(rows, *wide),
        "STAGES": options["num_stages"],
        "GROUP": H // t.k.shape[1],
        "ZIGZAG": how.zigzag,
        "JOINED": t.q1 is None,
        "LOAD": load_zigzag if how.zigzag else load_tile,
    }
    return Launch(kernel, (programs,), args, constexprs, options)


def _chunk(t: Tensors, which: int, how: How, outs: Outs) -> Chunk:
    early = t.q0, t.q0_starts, t.lse0, t.do0, t.delta0, outs[0]
    late = (
        t.q1,
        t.q0_starts if t.q1_starts is None else t.q1_starts,
        t.lse1,
        t.do1,
        t.delta1,
        outs[1],
    )
    q, starts, lse, do, delta, out = early if t.q1 is None or which == 0 else late
    assert q is not None
    return Chunk(
        q=q,
        q_stride_T=q.stride(0),
        q_stride_H=q.stride(1),
        do=do,
        do_stride_T=None if do is None else do.stride(1),
        lse=lse,
        delta=delta,
        out=out,
        out_stride_T=None if out is None else out.stride(-3),
        starts=starts,
        number=(how.early, how.late)[which],
        T=_rows(t, q),
    )


def _keys(t: Tensors, how: How) -> Keys:
    starts = t.k_starts if t.k_places is None else t.k_places
    return Keys(
        k=t.k,
        k_stride_T=t.k.stride(0),
        k_stride_H=t.k.stride(1),
        v=t.v,
        v_stride_T=t.v.stride(0),
        v_stride_H=t.v.stride(1),
        dk=t.dk,
        dv=t.dv,
        d_stride_T=None if t.dk is None else t.dk.stride(0),
        real_starts=t.k_starts,
        starts=starts,
        chunks=how.chunks,
        ranks=how.chunks // 2,
        S=len(starts) - 1,
        T=len(t.k),
    )
