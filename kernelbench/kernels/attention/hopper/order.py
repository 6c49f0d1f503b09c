"""Which tiles each program of a forward takes where tiles differ in length, as causal ones do."""

from heapq import heapreplace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernelbench.kernels.attention.places import most_tiles, sequence_of
from kernelbench.kernels.launch import Launch, ceil_div, power_of_2

_SECTION_BYTES = 24 << 20  # of k and v: what an L2 cache of 50 MiB holds beside other things
_PER_TILE = 1.0  # what a tile costs besides its blocks of keys, in blocks
_MOST_TILES = 1 << 14  # of more, 120 rounds, an order gains little, and takes the host long
_MOST_TABLES = 1024  # 64 KiB at most, each
_TABLES: dict[tuple[object, ...], Tensor] = {}


def tiles_of_programs(
    heads: int, section: int, costs: list[float], programs: int
) -> list[list[int]]:
    """The numbers of the tiles that each program takes, one after another.

    Programs take the tiles of a section of heads, the first tiles of all of them before the second
    ones, each program as soon as it is free: list scheduling (Graham, Bounds on multiprocessing
    timing anomalies, 1969), nearly even where the first tiles are the longest.

    heads: of all samples. section: so many heads at a time. costs: of the tiles of each head in
    their order; tile i of head h is number h·len(costs) + i.
    """
    free = [(0.0, program) for program in range(programs)]
    taken: list[list[int]] = [[] for _ in free]
    for first in range(0, heads, section):
        for i, cost in enumerate(costs):
            for head in range(first, min(first + section, heads)):
                at, program = free[0]
                heapreplace(free, (at + cost, program))
                taken[program].append(head * len(costs) + i)
    return taken


def order_of(
    tensor: Tensor,
    heads: int,
    N: int,
    *,
    causal: bool,
    key_bytes: int,
    rows: int,
    keys: int,
    programs: int,
) -> Tensor | None:
    """The tiles of causal attention as a table: (rounds, programs) of int32, filled up with their
    number, and ending with a round of that. Tile 0 of each head is its last one, the longest.

    tensor: any of a call's. heads: of all samples, of N rows. key_bytes: of all k and v.
    rows, keys: of a tile, and of a block of its keys. programs: no more than tiles.

    None where programs may as well take turns, as where nothing is causal, and while a CUDA graph
    is captured, which would record that a table is made. It stays as long as the process: a kernel
    may be reading it.
    """
    tiles = ceil_div(N, rows)
    total = heads * tiles
    if not causal or total == programs or total > _MOST_TILES:
        return None
    if tensor.is_meta:
        return tensor.new_empty((1, programs), dtype=torch.int32)
    sections = max(1, round(key_bytes / _SECTION_BYTES))
    section = ceil_div(heads, min(sections, heads))
    key = tensor.device, heads, N, rows, keys, programs, section
    if key not in _TABLES:
        if len(_TABLES) >= _MOST_TABLES or torch.cuda.is_current_stream_capturing():
            return None
        costs = [ceil_div(min((tiles - i) * rows, N), keys) + _PER_TILE for i in range(tiles)]
        taken = tiles_of_programs(heads, section, costs, programs)
        rounds = max(map(len, taken)) + 1
        table = torch.tensor([one + [total] * (rounds - len(one)) for one in taken])
        _TABLES[key] = table.T.contiguous().to(tensor.device, torch.int32)
    return _TABLES[key]


@triton.jit
def lies_packed(place, starts, s, late, N):
    """Where sequence s of `places.Packed` lies: its first query, how many there are, how far a
    query's position among the keys is ahead of its number, its first key, and how many. Sequence S
    are the N rows behind the last; what lies behind it has no rows.

    An operator's own place has a function like it. place: its `chunk` may be -1, which says None.
    starts: where queries begin. late: whether sequences are those of `place.late_starts`, see
    `list_tiles`.
    """
    known = s <= place.S
    below = tl.minimum(s + 1, place.S)
    q0 = tl.load(starts + s, mask=known, other=0)
    key = tl.load(place.k_starts + s, mask=known, other=0)
    end = tl.where(s == place.S, N, tl.load(starts + below))
    rows = tl.where(known, tl.maximum(end - q0, 0), 0)
    keys = tl.load(place.k_starts + below) - key
    ahead = keys - rows
    if place.chunk is not None:
        ahead = tl.where(place.chunk < 0, ahead, place.chunk * rows)
    return q0, rows, ahead, key, keys


@triton.jit
def lies_turned(place, starts, s, late, N):
    """`lies_packed` where keys and queries have changed places. Tiles of keys count from the last
    one to the first where causal: each is seen by one more tile of queries than the one before."""
    key, keys, _, q0, rows = lies_packed(place, starts, s, late, N)
    return key, keys, keys * 0, q0, rows


@triton.jit
def starts_of(place, late, TWICE: tl.constexpr):
    """Where queries of sequences begin: of the late ones, where there are such."""
    starts = place.q_starts
    if TWICE and late > 0:
        starts = place.late_starts
    return starts


@triton.jit
def _tiles_and_ahead(
    place, starts, s_S, late, N, ROWS: tl.constexpr, CAUSAL: tl.constexpr, LIES: tl.constexpr
):
    """How many tiles these sequences have, and how long tile 0 is in tiles, less 1."""
    _, rows_S, ahead_S, _, keys_S = LIES(place, starts, s_S, late, N)
    long_S = (ahead_S if CAUSAL else keys_S) // ROWS
    return (rows_S + ROWS - 1) // ROWS, long_S


@triton.jit
def list_tiles(
    place,
    listed_ptr,
    N,
    ROWS: tl.constexpr,
    CAUSAL: tl.constexpr,
    BLOCK_S: tl.constexpr,
    TWICE: tl.constexpr,
    LIES: tl.constexpr,
):
    """See `listed_size`. A program is a slot, as `places.sequence_of` numbers them: its tile goes
    behind all longer ones, and those of its length in front of it. TWICE: whether there are
    sequences twice, whose queries begin at `q_starts` and at `late_starts`. N: rows, of those that
    have more."""
    slots = N // ROWS + place.S + 1
    late = tl.program_id(0) // slots if TWICE else 0
    starts = starts_of(place, late, TWICE)
    s, slot, _ = sequence_of(starts, place.S, N, ROWS, False)
    number = slot - (tl.load(starts + s) // ROWS + s)
    tiles, long = _tiles_and_ahead(place, starts, s, late, N, ROWS, CAUSAL, LIES)
    length = long + number if CAUSAL else long
    rank = number * 0 if CAUSAL else number
    count = number * 0
    for other in tl.static_range(2 if TWICE else 1):
        starts_S = place.late_starts if other > 0 else place.q_starts
        for begin in range(0, place.S + 1, BLOCK_S):
            s_S = begin + tl.arange(0, BLOCK_S)
            tiles_S, long_S = _tiles_and_ahead(place, starts_S, s_S, other, N, ROWS, CAUSAL, LIES)
            first_S = (s_S < s) & (other == late) | (other < late)
            if CAUSAL:
                at_S = length - long_S  # the number of a tile as long as this one
                longer_S = tl.minimum(tl.maximum(tiles_S - 1 - at_S, 0), tiles_S)
                before_S = ((at_S >= 0) & (at_S < tiles_S) & first_S).to(tl.int32)
            else:
                longer_S = tl.where(long_S > long, tiles_S, 0)
                before_S = tl.where((long_S == long) & first_S, tiles_S, 0)
            rank += tl.sum(longer_S + before_S)
            count += tl.sum(tiles_S)
    if (number >= 0) & (number < tiles):
        tl.store(listed_ptr + 2 + 2 * rank, s + late * (place.S + 1))
        tl.store(listed_ptr + 3 + 2 * rank, number)
    if tl.program_id(0) == 0:
        tl.store(listed_ptr, 0)
        tl.store(listed_ptr + 1, count)


def heads_of_section(H: int, G: int, key_bytes: int) -> int:
    """How many of H heads of q, which share G of keys, are at work at a time: those whose k and v,
    of key_bytes in all, fit the L2 cache. It divides H."""
    most = max(1, G // max(1, round(key_bytes / _SECTION_BYTES)))
    return max(shared for shared in range(1, most + 1) if G % shared == 0) * (H // G)


def listed_size(N: int, S: int, rows: int, twice: bool = False) -> int:
    """What `list_tiles` writes, in int32: how many tiles of all heads are taken, none; how many
    there are of a head; and of each its sequence, late ones behind the S+1 others, and its number
    there, the longest first."""
    return 2 + 2 * most_tiles(N, S, rows) * (2 if twice else 1)


def list_launch(
    place: Any, lies: Any, listed: Tensor, N: int, rows: int, causal: bool, twice: bool = False
) -> Launch:
    """place, lies: see `lies_packed`. listed: `listed_size` of int32."""
    args = {"place": place, "listed_ptr": listed, "N": N}
    constexprs = {
        "ROWS": rows,
        "CAUSAL": causal,
        "BLOCK_S": min(power_of_2(place.S + 1), 1024),
        "TWICE": twice,
        "LIES": lies,
    }
    programs = most_tiles(N, place.S, rows) * (2 if twice else 1)
    return Launch(list_tiles, (programs,), args, constexprs, {"num_warps": 1})
