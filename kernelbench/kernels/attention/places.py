"""Where a program of attention finds its rows: one sequence a sample, or sequences packed one after
another; or as an operator's own place has it."""

from typing import Any, NamedTuple, Protocol

import triton
import triton.language as tl
from torch import Tensor

from kernelbench.kernels.attention.tiles import Rows, tile_of_head, widened
from kernelbench.kernels.launch import ceil_div


class Place(Protocol):
    """Where sequences lie, if not one a sample: what kernels get as `place`, a NamedTuple of
    tensors and numbers."""

    def tiles(self, rows: int, block: int, of_keys: bool) -> int:
        """Programs along so many queries, or keys, of a head and sample."""

    def reach(self, rows: int) -> int:
        """Over how many rows of a tensor that many of a sequence extend."""

    def hooks(self) -> dict[str, Any]:
        """Constexprs of a kernel: PLACE and WALK as `one_a_sample` and `one_by_one` are. SHARES:
        None where all heads that share keys see the same keys; else SHARES(place, N, h, start)
        says whether head h of q sees those of the sequence that begins there, see `one_a_sample`.
        SQUARE: whether sequences have as many queries as keys."""


class Packed(NamedTuple):
    """Sequences one after another: where each begins, and the last one ends, among queries and
    among keys, (S+1,) of int32; how many sequences, one or more; how many keys there are in all.
    chunk: the queries are chunk number so many, from 0 on, of a sequence that is cut into chunks as
    long as they are, as zigzag's are; None for its end: the last query is at the last key.

    Rows behind the last sequence are one more, which has no keys, or no queries: what belongs to
    them is zeros. What belongs to rows in front of the first is not written."""

    q_starts: Any
    k_starts: Any
    S: Any
    keys: Any
    chunk: Any = None

    def tiles(self, rows: int, block: int, of_keys: bool) -> int:
        return most_tiles(rows, self.S, block)

    def reach(self, rows: int) -> int:
        return rows

    def hooks(self) -> dict[str, Any]:
        return {"PLACE": packed, "WALK": one_by_one, "SHARES": None, "SQUARE": False}


@triton.jit
def one_by_one(place, ptr, stride, start, N, WIDE: tl.constexpr):
    """The N rows of a sequence that begins at ptr, in a tensor or a statistic of one head. start:
    the last that PLACE returns."""
    return Rows(ptr, widened(stride, WIDE), N)


@triton.jit
def one_a_sample(place, N, H, BLOCK: tl.constexpr, REVERSED: tl.constexpr, OF_KEYS: tl.constexpr):
    """First row of a program, head, sample and row of (B,H); where the sequence begins, and its
    lengths, among queries and among keys; how far a query's position among the keys is ahead of its
    number; and where the sequence begins in a list of rows, if there is one. place: the number of
    keys, None for that of queries."""
    keys = N if place is None else place
    row, h, b, bh = tile_of_head(keys if OF_KEYS else N, H, BLOCK, REVERSED)
    return row, h, b, bh, 0, 0, N, keys, keys - N, 0


@triton.jit
def sequence_of(starts, S, rows, BLOCK: tl.constexpr, REVERSED: tl.constexpr):
    """The sequence that a program is in, S behind the last; which of all tiles is the program's;
    the head. starts: where sequences begin among the rows.

    Tile number start_s // BLOCK + s is the first of sequence s: that many there are before it at
    most, and these numbers rise with s, so that they can be searched without a table.
    """
    tiles = rows // BLOCK + S + 1
    tile = tl.program_id(0) % tiles
    if REVERSED:
        tile = tiles - 1 - tile
    h = (tl.program_id(0) // tiles).to(tl.int64)
    low = 0
    high = S
    while low < high:  # the last sequence whose first tile is not behind this one
        middle = (low + high + 1) // 2
        if tl.load(starts + middle) // BLOCK + middle <= tile:
            low = middle
        else:
            high = middle - 1
    return low, tile, h


@triton.jit
def packed(place, N, H, BLOCK: tl.constexpr, REVERSED: tl.constexpr, OF_KEYS: tl.constexpr):
    """The same of a sequence of `Packed`, or of the rows behind the last one; of a tile with no row
    of it the lengths are 0."""
    q_starts, k_starts, S, keys, chunk = place
    starts = k_starts if OF_KEYS else q_starts
    all_rows = keys if OF_KEYS else N
    low, tile, h = sequence_of(starts, S, all_rows, BLOCK, REVERSED)
    q0 = tl.load(q_starts + low)
    k0 = tl.load(k_starts + low)
    start = k0 if OF_KEYS else q0
    row = (tile - (start // BLOCK + low)) * BLOCK
    behind = low == S
    below = tl.minimum(low + 1, S)
    rows = tl.load(q_starts + below) - q0
    keys = tl.load(k_starts + below) - k0
    if OF_KEYS:
        keys = tl.where(behind, all_rows - k0, keys)
    else:
        rows = tl.where(behind, all_rows - q0, rows)
    none = (row < 0) | (row >= (keys if OF_KEYS else rows))
    row = tl.where(none, 0, row)
    rows = tl.where(none, 0, rows)
    keys = tl.where(none, 0, keys)
    ahead = keys - rows if chunk is None else chunk * rows
    return row, h, h * 0, h, q0.to(tl.int64), k0.to(tl.int64), rows, keys, ahead, 0


def tiles_of(rows: int, place: Place | None, block: int, of_keys: bool = False) -> int:
    """Programs along the rows of a head and sample."""
    return ceil_div(rows, block) if place is None else place.tiles(rows, block, of_keys)


def reach_of(rows: int, place: Place | None) -> int:
    """Over how many rows of a tensor that many of a sequence extend."""
    return rows if place is None else place.reach(rows)


def most_tiles(rows: int, S: int, block: int) -> int:
    """Tiles of S sequences with so many rows, as `sequence_of` numbers them."""
    return rows // block + S + 1


def placing(
    q: Tensor, k: Tensor, place: Place | None, rows: int
) -> tuple[Place | int | None, dict[str, Any]]:
    """A kernel's argument `place`, and the constexprs that go with it. rows: of the larger tile."""
    N, keys = q.shape[1], k.shape[1]
    constexprs = {
        "RAGGED": place is not None or N % rows != 0 or keys % rows != 0,
        "GROUP": q.shape[2] // k.shape[2] if k.shape[2] else 1,
    }
    if place is not None:
        return place, constexprs | place.hooks()
    hooks = {"PLACE": one_a_sample, "WALK": one_by_one, "SHARES": None, "SQUARE": keys == N}
    return None if keys == N else keys, constexprs | hooks
