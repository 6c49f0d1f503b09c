"""Where a program of zigzag attention finds its rows: both chunks of a document, and its keys.

Shapes: T rows of all documents, H heads, D elements of a head, S documents.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from kernelbench.kernels.attention.tiles import Rows, pitch, widened


class Chunk(NamedTuple):
    """One chunk of each of S documents, one after another. q: (T,H,D) of any strides whose last is
    1; do: (T,H·D), likewise; out: likewise, what a kernel writes. lse, delta: as `statistic_of`
    makes them. starts: (S+1,) of int32, where each document begins. number: of the chunk, from 0
    on. What a kernel does not take is None.

    JOINED: both chunks of a document lie next to each other, in the same tensors; T and starts are
    then of all rows by 2.
    """

    q: Any
    q_stride_T: Any
    q_stride_H: Any
    do: Any
    do_stride_T: Any
    lse: Any
    delta: Any
    out: Any
    out_stride_T: Any
    starts: Any
    number: Any
    T: Any


class Keys(NamedTuple):
    """The keys of S documents, (T,H,D) of any strides whose last is 1.

    real_starts: (S+1,) of int32, the sums of how many keys documents have. starts: likewise, where
    each begins, with what is padded. chunks: into how many a document is cut. ranks: how many have
    two of them each, whose rows lie one after another where ZIGZAG. dk, dv: (T,H,D), heads next to
    each other, d_stride_T from row to row.
    """

    k: Any
    k_stride_T: Any
    k_stride_H: Any
    v: Any
    v_stride_T: Any
    v_stride_H: Any
    dk: Any
    dv: Any
    d_stride_T: Any
    real_starts: Any
    starts: Any
    chunks: Any
    ranks: Any
    S: Any
    T: Any


class Document(NamedTuple):
    """A document: its number, where it begins among the keys, its keys without and with what is
    padded, and those of a chunk."""

    s: Any
    start: Any
    keys: Any
    padded: Any
    chunk: Any


class Place(NamedTuple):
    """Where a document's rows of a chunk begin, how many there are, the position of the first, and
    how many are not padded: their positions are those of keys."""

    start: Any
    rows: Any
    first: Any
    real: Any


class Zigzag(NamedTuple):
    """The N keys of a head of one document, spread over ranks: where a rank's first chunk begins on
    rank 0, how far it is from one rank to the next, the keys of a chunk, and how many ranks."""

    ptr: Any
    stride: Any
    N: Any
    apart: Any
    chunk: Any
    ranks: Any


@triton.jit
def document_of(keys, s):
    """Document s; one without keys where s is S, which stands for the rows behind the last."""
    below = tl.minimum(s + 1, keys.S)
    start = tl.load(keys.starts + s)
    padded = tl.load(keys.starts + below) - start
    length = tl.load(keys.real_starts + below) - tl.load(keys.real_starts + s)
    chunk = tl.maximum(tl.cdiv(padded, keys.chunks), 1)
    return Document(s, start, tl.minimum(length, padded), padded, chunk)


@triton.jit
def rows_of(chunk, document, S, is_late, JOINED: tl.constexpr):
    """The place of a document's rows. A chunk with all of them begins where the document does: that
    is not cut."""
    start = tl.load(chunk.starts + document.s)
    end = tl.load(chunk.starts + tl.minimum(document.s + 1, S))
    rows = tl.where(document.s == S, chunk.T, end) - start
    first = tl.where(rows == document.padded, 0, chunk.number * document.chunk)
    real = tl.maximum(tl.minimum(document.keys - first, rows), 0)
    start = start.to(tl.int64)
    if JOINED:
        start = 2 * start + is_late * rows
    return Place(start, rows, first, real)


@triton.jit
def row_of(starts, s, tile, BLOCK: tl.constexpr):
    """The first row in document s of a tile that `sequence_of` numbers so; beyond all rows of a
    number that no tile has."""
    row = (tile - (tl.load(starts + s) // BLOCK + s)) * BLOCK
    return tl.where(row < 0, 1 << 30, row)


@triton.jit
def statistics_of(chunk, place, h, JOINED: tl.constexpr):
    """From where a statistic begins to that of a place's rows."""
    T = 2 * chunk.T if JOINED else chunk.T
    return h * pitch(T) + place.start


@triton.jit
def keys_of_head(
    ptr, stride_T, stride_H, keys, document, h, WIDE: tl.constexpr, ZIGZAG: tl.constexpr
):
    """The keys of a document, and of a head, for `load_tile` or `load_zigzag`."""
    ptr += h * stride_H
    stride = widened(stride_T, WIDE)
    if ZIGZAG:
        ptr += tl.cast(document.start // keys.ranks, tl.int64) * stride_T
        apart = keys.T // keys.ranks
        head = Zigzag(ptr, stride, document.keys, apart, document.chunk, keys.ranks)
    else:
        ptr += tl.cast(document.start, tl.int64) * stride_T
        head = Rows(ptr, stride, document.keys)  # type: ignore[assignment]
    return head


@triton.jit
def zigzag_row(position, head):
    """Where a key lies, by its position in the document: rank r of W has chunks r and 2W−1−r."""
    number = position // head.chunk
    late = number >= head.ranks
    rank = tl.where(late, 2 * head.ranks - 1 - number, number)
    within = position - number * head.chunk + tl.where(late, head.chunk, 0)
    return rank.to(tl.int64) * head.apart + within


@triton.jit
def load_zigzag(
    head,
    start,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    RAGGED: tl.constexpr,
):
    """As `load_tile`, of keys that are spread over ranks."""
    position_R = start + tl.arange(0, ROWS)
    d_D = tl.arange(0, BLOCK_D)
    ptr_RD = head.ptr + (zigzag_row(position_R, head) * head.stride)[:, None] + d_D[None, :]
    mask_RD = (position_R < head.N)[:, None] & (d_D < D)[None, :]
    return tl.load(ptr_RD, mask=mask_RD, other=0.0)


@triton.jit
def store_keys(
    head,
    tile_RD,
    start,
    N,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ZIGZAG: tl.constexpr,
):
    """Store rows of N from row `start` on, those that are padded, too."""
    position_R = start + tl.arange(0, ROWS)
    d_D = tl.arange(0, BLOCK_D)
    row_R = zigzag_row(position_R, head) if ZIGZAG else position_R.to(tl.int64)
    ptr_RD = head.ptr + (row_R * head.stride)[:, None] + d_D[None, :]
    mask_RD = (position_R < N)[:, None] & (d_D < D)[None, :]
    tl.store(ptr_RD, tile_RD.to(head.ptr.dtype.element_ty), mask=mask_RD)
