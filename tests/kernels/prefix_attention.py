"""An operator of hooks alone: the first keys are seen by all, others causally; it is gated."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from kernelbench.kernels.attention.tiles import Hook, Mask, Rows, load_tile, store_tile


class Gated(NamedTuple):
    gate: Any
    out: Any


@triton.jit
def _sees(prefix, query, key):
    return (key < prefix[0]) | (key <= query)


@triton.jit
def _keys(prefix, first, end):
    return 0, tl.maximum(prefix[0], end)


@triton.jit
def _queries(prefix, first, end):
    return tl.where(first < prefix[0], 0, first), 1 << 30


@triton.jit
def _gate(gated, o_MD, tile, KIND: tl.constexpr, work):
    rows = Rows(gated.gate + tile.out, tile.H * work.D, tile.N)
    gate_MD = load_tile(rows, tile.row, work.D, work.ROWS, work.BLOCK_D, work.RAGGED)
    rows = Rows(gated.out + tile.out, tile.H * work.D, tile.N)
    store_tile(rows, o_MD * gate_MD, tile.row, work.D, work.ROWS, work.BLOCK_D, work.RAGGED)


def hooks(prefix, gate, out):
    return Mask(_sees, _keys, _queries, (prefix,)), Hook(_gate, Gated(gate, out), "", (gate, out))
