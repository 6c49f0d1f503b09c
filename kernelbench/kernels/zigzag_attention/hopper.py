"""Zigzag attention by attention's kernels for Hopper: chunks of documents are twice as many
sequences there, in one launch; of gradients, keys are seen by two sequences. Keys that lie in
zigzag order are copied into that of documents first, and their gradients back: the copy engine
reads and writes rows that follow each other.

Shapes: as in `places`.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernelbench.kernels.attention.backward import Gradients, deltas_launch, scale_launch
from kernelbench.kernels.attention.forward import Forward
from kernelbench.kernels.attention.hopper.backward import KEPT, HopperFusedTile
from kernelbench.kernels.attention.hopper.channel import suits
from kernelbench.kernels.attention.hopper.forward import HopperTile, placed_launches
from kernelbench.kernels.attention.hopper.fused import twice_launches
from kernelbench.kernels.attention.hopper.order import listed_size
from kernelbench.kernels.attention.places import most_tiles, sequence_of
from kernelbench.kernels.attention.tiles import NO_HOOK, Rows, load_tile
from kernelbench.kernels.launch import Launch
from kernelbench.kernels.zigzag_attention.lengths import How
from kernelbench.kernels.zigzag_attention.places import (
    Chunk,
    Keys,
    document_of,
    keys_of_head,
    load_zigzag,
    row_of,
    store_keys,
)

_BLOCK = 128  # rows of a tile that is copied


class Cuts(NamedTuple):
    """Where the chunks of S documents lie, see `places.Chunk` and `places.Keys`: of each kind its
    number and its rows, T; `step` is 2 where both chunks of a document lie next to each other."""

    q_starts: Any
    late_starts: Any
    real_starts: Any
    k_starts: Any
    S: Any
    number: Any
    late_number: Any
    T: Any
    late_T: Any
    chunks: Any
    step: Any


@triton.jit
def lies_cut(place, starts, s, late, N):
    """As `attention.hopper.order.lies_packed`: a chunk of document s."""
    known = s <= place.S
    below = tl.minimum(s + 1, place.S)
    start = tl.load(place.k_starts + s, mask=known, other=0)
    padded = tl.load(place.k_starts + below) - start
    real = tl.load(place.real_starts + s, mask=known, other=0)
    keys = tl.minimum(tl.load(place.real_starts + below) - real, padded)
    q0 = tl.load(starts + s, mask=known, other=0)
    T = place.T + late * (place.late_T - place.T)
    end = tl.where(s == place.S, T, tl.load(starts + below))
    rows = tl.where(known, tl.maximum(end - q0, 0), 0)
    number = place.number + late * (place.late_number - place.number)
    chunk = tl.maximum((padded + place.chunks - 1) // place.chunks, 1)
    ahead = tl.where(rows == padded, 0, number * chunk)
    return place.step * q0 + (place.step - 1) * late * rows, rows, ahead, start, keys


class Seen(NamedTuple):
    """Chunks in the same tensors, as gradients take them: late ones lie `shift` rows further than
    cuts say. keys: of all documents, and behind them."""

    cuts: Any
    keys: Any
    shift: Any


@triton.jit
def sees_cut(place, s, late):
    """As `attention.hopper.walk.place_of_part`: the rows of a chunk of document s that are not
    padded."""
    cuts = place.cuts
    starts = cuts.q_starts
    if late:
        starts = cuts.late_starts
    q0, rows, ahead, start, keys = lies_cut(cuts, starts, s, late, 0)
    rows = tl.maximum(tl.minimum(keys - ahead, rows), 0)
    below = tl.minimum(s + 1, cuts.S)
    stored = tl.where(s == cuts.S, place.keys, tl.load(cuts.k_starts + below)) - start
    return q0 + late * place.shift, rows, ahead, start, keys, stored


@triton.jit
def order_keys(
    keys,
    k_out,
    v_out,
    G,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Copy a tile of k and v of one head from zigzag order to that of documents, (T,G,D), with
    zeros for what is padded."""
    s, tile, h = sequence_of(keys.starts, keys.S, keys.T, BLOCK, False)
    row = row_of(keys.starts, s, tile, BLOCK)
    document = document_of(keys, s)
    if row < document.padded:
        at = (document.start.to(tl.int64) * G + h) * D
        k = keys_of_head(keys.k, keys.k_stride_T, keys.k_stride_H, keys, document, h, False, True)
        v = keys_of_head(keys.v, keys.v_stride_T, keys.v_stride_H, keys, document, h, False, True)
        k_rows = Rows(k_out + at, G * D, document.padded)
        v_rows = Rows(v_out + at, G * D, document.padded)
        k_tile = load_zigzag(k, row, D, BLOCK, D, True)
        v_tile = load_zigzag(v, row, D, BLOCK, D, True)
        store_keys(k_rows, k_tile, row, document.padded, D, BLOCK, D, False)
        store_keys(v_rows, v_tile, row, document.padded, D, BLOCK, D, False)


@triton.jit
def restore_keys(
    keys,
    dk_in,
    dv_in,
    G,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Copy a tile of dk and dv of one head, (T,G,D) in the order of documents, to zigzag order."""
    s, tile, h = sequence_of(keys.starts, keys.S, keys.T, BLOCK, False)
    row = row_of(keys.starts, s, tile, BLOCK)
    document = document_of(keys, s)
    if row < document.padded:
        at = (document.start.to(tl.int64) * G + h) * D
        dk = load_tile(Rows(dk_in + at, G * D, document.padded), row, D, BLOCK, D, True)
        dv = load_tile(Rows(dv_in + at, G * D, document.padded), row, D, BLOCK, D, True)
        k_out = keys_of_head(keys.dk, keys.d_stride_T, D, keys, document, h, True, True)
        v_out = keys_of_head(keys.dv, keys.d_stride_T, D, keys, document, h, True, True)
        store_keys(k_out, dk, row, document.padded, D, BLOCK, D, True)
        store_keys(v_out, dv, row, document.padded, D, BLOCK, D, True)


class Room(NamedTuple):
    """Memory that the launches use between them: the list of tiles, and k and v in the order of
    documents where they lie in another."""

    listed: Tensor | None
    k: Tensor | None
    v: Tensor | None


NO_ROOM = Room(None, None, None)


def room_for(k: Tensor, rows: int, S: int, tile: HopperTile, zigzag: bool) -> Room:
    """rows: the most of a chunk."""
    size = listed_size(rows, S, tile.groups * 64, twice=True)
    orders = [k.new_empty(k.shape) if zigzag else None for _ in range(2)]
    return Room(k.new_empty(size, dtype=torch.int32), *orders)


def takes(*given: Tensor | None) -> bool:
    """Whether the kernel takes these, (T,H,D), q the first. Nothing has no descriptor."""
    tensors = [x for x in given if x is not None]
    if not all(x.numel() for x in tensors):
        return False
    whole_heads = all(x.stride(0) % x.shape[2] == 0 for x in tensors)
    return whole_heads and suits(*(x.unsqueeze(0) for x in tensors))


def forward_launches(
    early: Chunk,
    late: Chunk,
    keys: Keys,
    room: Room,
    *,
    scale: float,
    how: How,
    joined: bool,
    tile: HopperTile,
) -> tuple[Launch, ...]:
    """The launches that write o, `out` of the chunks, and lse, the natural one. joined: both chunks
    of a document lie next to each other, in the same tensors."""
    assert room.listed is not None
    k, v, ordering = keys.k, keys.v, []
    if how.zigzag:
        assert room.k is not None and room.v is not None
        k, v = room.k, room.v
        ordering = [ordering_launch(keys, k, v)]
    first, second = (Forward(c.q, k, v, c.out, c.lse) for c in (early, late))
    launches = placed_launches(
        first,
        _cuts(early, late, keys, joined),
        lies_cut,
        room.listed,
        scale=scale,
        causal=how.causal,
        tile=tile,
        late=first if joined else second,
        rows=max(early.T, late.T),
    )
    return *ordering, *launches


def _cuts(early: Chunk, late: Chunk, keys: Keys, joined: bool) -> Cuts:
    starts = early.starts, late.starts, keys.real_starts, keys.starts
    numbers = keys.S, early.number, late.number, early.T, late.T, keys.chunks
    return Cuts(*starts, *numbers, 2 if joined else 1)


def ordering_launch(keys: Keys, k: Tensor, v: Tensor) -> Launch:
    """The launch that copies keys and values to k and v, in the order of documents."""
    return _copy(order_keys, keys, {"k_out": k, "v_out": v}, k)


def restoring_launch(keys: Keys, dk: Tensor, dv: Tensor) -> Launch:
    """The launch that copies dk and dv, in the order of documents, to those of keys."""
    return _copy(restore_keys, keys, {"dk_in": dk, "dv_in": dv}, dk)


def _copy(kernel: Any, keys: Keys, tensors: dict[str, Tensor], like: Tensor) -> Launch:
    G, D = like.shape[-2:]
    args = {"keys": keys, **tensors, "G": G}
    constexprs = {"D": D, "BLOCK": _BLOCK}
    programs = most_tiles(keys.T, keys.S, _BLOCK) * G
    return Launch(kernel, (programs,), args, constexprs, {"num_warps": 8})


class Together(NamedTuple):
    """What the launches of gradients take: both chunks of all documents in the same tensors, late
    ones behind all early ones. do: (1,T,H·D), q, o and dq (1,T,H,D), k, v, dk and dv (1,Tk,G,D) in
    the order of documents; lse to base 2, dlse and delta (1,H,T), total (1,H,T,D) of fp32; listed:
    as `rows_listed` makes it."""

    do: Tensor
    q: Tensor
    o: Tensor
    k: Tensor
    v: Tensor
    lse: Tensor
    dlse: Tensor | None
    delta: Tensor
    total: Tensor
    dq: Tensor
    dk: Tensor
    dv: Tensor
    listed: Tensor


def rows_listed(k: Tensor, S: int) -> Tensor:
    """Memory for the list of tiles of keys, (Tk,G,D)."""
    return k.new_empty(listed_size(len(k), S, KEPT), dtype=torch.int32)


def gradient_launches(
    t: Together,
    early: Chunk,
    late: Chunk,
    keys: Keys,
    *,
    scale: float,
    how: How,
    tile: HopperFusedTile,
) -> tuple[Launch, ...]:
    """The launches that write dq, dk and dv, the latter to `keys`, too, where they lie in zigzag
    order there."""
    before: list[Launch] = []
    after: list[Launch] = []
    if how.zigzag:
        before = [ordering_launch(keys, t.k, t.v)]
        after = [restoring_launch(keys, t.dk, t.dv)]
    launches = twice_launches(
        (Gradients(t.do, t.q, t.k, t.v, t.lse, t.delta, t.dq), t.total, t.dk, t.dv),
        Seen(_cuts(early, late, keys, False), keys.T, early.T),
        sees_cut,
        (keys.starts, keys.S),
        t.listed,
        scale=scale,
        causal=how.causal,
        tile=tile,
    )
    return (
        *before,
        deltas_launch(t.do, t.q, t.o, t.delta, t.total, t.dlse),
        *launches,
        scale_launch(t.total, t.dq, scale=scale, factor=NO_HOOK, read=(t.do, t.o)),
        *after,
    )
