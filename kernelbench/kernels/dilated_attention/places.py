"""Where a program of dilated attention finds its rows, and what it does with their results.

Shapes: B samples, N rows, H heads of D elements; M rows of a tile.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from kernelbench.kernels.attention.tiles import (
    Listed,
    Mask,
    Rows,
    load_rows,
    load_tile,
    store_tile,
    where_rows,
    widened,
)
from kernelbench.kernels.launch import ceil_div


class Dilated(NamedTuple):
    """Segments of `length` rows. Head h of q has, in segment i, every `rate`-th row from offset
    (h // heads + i·turn) mod rate on.

    group: heads of q that share one of k and v, which have at most `classes` different offsets.
    rows: see `orders.list_rows`; None for the order in which they lie.
    """

    length: Any
    rate: Any
    heads: Any
    turn: Any
    group: Any
    classes: Any
    rows: Any

    def tiles(self, rows: int, block: int, of_keys: bool) -> int:
        tiles = ceil_div(ceil_div(self.length, self.rate), block)
        programs: int = tiles * ceil_div(rows, self.length)
        return programs * int(self.classes) if of_keys else programs

    def reach(self, rows: int) -> int:
        return rows * int(self.rate)

    def hooks(self) -> dict[str, Any]:
        shares = shares_rows if self.classes > 1 else None
        return {"PLACE": dilated, "WALK": walk, "SHARES": shares, "SQUARE": True}


@triton.jit
def offset_of(place, h, segment):
    return (h.to(tl.int32) // place.heads + segment * place.turn) % place.rate


@triton.jit
def begin_of(place, N, segment, offset):
    """Where the rows of an offset begin, among all or in the list, and how many there are."""
    start = segment * place.length
    length = tl.minimum(place.length, N - start)
    rows = (tl.maximum(length - offset, 0) + place.rate - 1) // place.rate
    if place.rows is None:
        start += offset
    else:
        start += offset * (length // place.rate) + tl.minimum(offset, length % place.rate)
    return start.to(tl.int64), rows


@triton.jit
def dilated(place, N, H, BLOCK: tl.constexpr, REVERSED: tl.constexpr, OF_KEYS: tl.constexpr):
    """As `places.one_a_sample`, of a segment's rows that a head sees; of keys, those of each offset
    that heads of q which share them have, so that no two programs have the same. Without any row of
    it the lengths are 0."""
    tiles = tl.cdiv(tl.cdiv(place.length, place.rate), BLOCK)
    segments = tl.cdiv(N, place.length)
    tile = tl.program_id(0) % tiles
    if REVERSED:
        tile = tiles - 1 - tile
    rest = tl.program_id(0) // tiles
    segment = rest % segments
    rest = rest // segments
    number = 0
    if OF_KEYS:
        number = rest % place.classes
        rest = rest // place.classes
    h = rest % H
    b = (rest // H).to(tl.int64)
    q_h = h * place.group if OF_KEYS else h
    offset = (offset_of(place, q_h, segment) + number) % place.rate
    start, rows = begin_of(place, N, segment, offset)
    if OF_KEYS:
        most = (q_h + place.group - 1) // place.heads - q_h // place.heads
        rows = tl.where(number > tl.minimum(most, place.rate - 1), 0, rows)
    row = tile * BLOCK
    none = row >= rows
    row = tl.where(none, 0, row)
    rows = tl.where(none, 0, rows)
    first = start if place.rows is None else start * 0
    return row, h.to(tl.int64), b, b * H + h, first, first, rows, rows, 0, start


@triton.jit
def walk(place, ptr, stride, start, N, WIDE: tl.constexpr):
    """As `places.one_by_one`."""
    if place.rows is None:
        rows = Rows(ptr, widened(stride, WIDE) * place.rate, N)
    else:
        rows = Listed(ptr, stride, N, place.rows + start)  # type: ignore[assignment]
    return rows


@triton.jit
def shares_rows(place, N, h, start):
    """Whether head h of q has the rows that begin at `start`."""
    segment = (start // place.length).to(tl.int32)
    begin, _ = begin_of(place, N, segment, offset_of(place, h, segment))
    return begin == start


@triton.jit
def _sees(keys, query, key):
    query_at = tl.load(keys.rows + query, mask=query < keys.N, other=0)
    key_at = tl.load(keys.rows + key, mask=key < keys.N, other=0)
    return key_at <= query_at


@triton.jit
def _all(keys, first, end):
    return 0, keys.N


BY_POSITION = Mask(_sees, _all, _all)  # causal, of rows that are listed


class Merge(NamedTuple):
    """What `merge` reads and writes. before: the result so far, (B,N,H,D), None where there is
    none. after: what takes it with this branch's. lse: likewise, of both, as `statistic_of` makes
    it, −∞ where no branch has been; None where it is not wanted. share: of a branch in their mean,
    None for a softmax."""

    place: Any
    before: Any
    after: Any
    lse: Any
    share: Any


@triton.jit
def merge(extra, o_MD, tile, KIND: tl.constexpr, work):
    """The results so far with those of this branch's tile: by their lse, or their mean."""
    D: tl.constexpr = work.D
    M: tl.constexpr = work.ROWS
    place = extra.place
    if extra.before is not None:
        before = walk(place, extra.before + tile.out, tile.H * D, tile.start, tile.N, work.WIDE)
        before_MD = load_tile(before, tile.row, D, M, work.BLOCK_D, True)
    if extra.share is not None:
        o_MD *= extra.share
        if extra.before is not None:
            o_MD += before_MD
    elif extra.lse is not None:
        lse = walk(place, extra.lse + tile.statistic, 1, tile.start, tile.N, False)
        lse_M = tile.lse
        if extra.before is not None:
            old_M = load_rows(lse, tile.row, M, True)
            most_M = tl.maximum(old_M, lse_M)
            sum_M = tl.exp2(old_M - most_M) + tl.exp2(lse_M - most_M)
            total_M = most_M + tl.log2(sum_M)
            before_MD *= tl.exp2(old_M - total_M)[:, None]
            before_MD = tl.where((old_M == float("-inf"))[:, None], 0.0, before_MD)  # never written
            o_MD = o_MD * tl.exp2(lse_M - total_M)[:, None] + before_MD
            lse_M = total_M
        row_M = tile.row + tl.arange(0, M)
        tl.store(where_rows(lse, row_M), lse_M, mask=row_M < tile.N)
    after = walk(place, extra.after + tile.out, tile.H * D, tile.start, tile.N, work.WIDE)
    store_tile(after, o_MD, tile.row, D, M, work.BLOCK_D, True)


class Own(NamedTuple):
    """What `own_statistics` reads, do (B,N,H·D), and writes, as `statistic_of` makes it."""

    place: Any
    do: Any
    do_stride_B: Any
    do_stride_N: Any
    lse: Any
    delta: Any


@triton.jit
def own_statistics(extra, o_MD, tile, KIND: tl.constexpr, work):
    """lse, and δ = rowsum(dO⊙O), of this branch alone."""
    D: tl.constexpr = work.D
    M: tl.constexpr = work.ROWS
    place = extra.place
    do_ptr = extra.do + tile.b * extra.do_stride_B + tile.h * D
    if place.rows is None:
        do_ptr += tile.start * extra.do_stride_N
    do = walk(place, do_ptr, extra.do_stride_N, tile.start, tile.N, work.WIDE)
    do_MD = load_tile(do, tile.row, D, M, work.BLOCK_D, True).to(tl.float32)
    row_M = tile.row + tl.arange(0, M)
    lse = walk(place, extra.lse + tile.statistic, 1, tile.start, tile.N, False)
    tl.store(where_rows(lse, row_M), tile.lse, mask=row_M < tile.N)
    delta = walk(place, extra.delta + tile.statistic, 1, tile.start, tile.N, False)
    tl.store(where_rows(delta, row_M), tl.sum(do_MD * o_MD, axis=1), mask=row_M < tile.N)


class Share(NamedTuple):
    """Of a branch in the mean of all."""

    share: Any


@triton.jit
def share_of(extra, b, KIND: tl.constexpr):
    return extra.share
