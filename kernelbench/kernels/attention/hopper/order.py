"""Which tiles each program of a forward takes where tiles differ in length, as causal ones do."""

from heapq import heapreplace

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernelbench.kernels.attention.places import Packed, most_tiles, sequence_of
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
def _tiles_and_ahead(q_starts, k_starts, s_S, S, N, ROWS: tl.constexpr, CAUSAL: tl.constexpr):
    """How many tiles these sequences have, S being the rows behind the last, the slot of the first,
    and how long tile 0 is in tiles, less 1."""
    known_S = s_S <= S
    below_S = tl.minimum(s_S + 1, S)
    q_S = tl.load(q_starts + s_S, mask=known_S, other=0)
    end_S = tl.where(s_S == S, N, tl.load(q_starts + below_S))
    rows_S = tl.where(known_S, tl.maximum(end_S - q_S, 0), 0)
    keys_S = tl.load(k_starts + below_S) - tl.load(k_starts + s_S, mask=known_S, other=0)
    long_S = (keys_S - rows_S) // ROWS if CAUSAL else keys_S // ROWS
    return (rows_S + ROWS - 1) // ROWS, q_S // ROWS + s_S, long_S


@triton.jit
def list_tiles(
    q_starts,
    k_starts,
    listed_ptr,
    S,
    N,
    ROWS: tl.constexpr,
    CAUSAL: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """See `listed_size`. A program is a slot, as `places.sequence_of` numbers them: its tile goes
    behind all longer ones, and those of its length in front of it."""
    s, slot, head = sequence_of(q_starts, S, N, ROWS, False)
    tiles, first, long = _tiles_and_ahead(q_starts, k_starts, s, S, N, ROWS, CAUSAL)
    number = slot - first
    length = long + number if CAUSAL else long
    rank = number * 0 if CAUSAL else number
    count = number * 0
    for begin in range(0, S + 1, BLOCK_S):
        s_S = begin + tl.arange(0, BLOCK_S)
        tiles_S, first_S, long_S = _tiles_and_ahead(q_starts, k_starts, s_S, S, N, ROWS, CAUSAL)
        if CAUSAL:
            at_S = length - long_S  # the number of a tile as long as this one
            longer_S = tl.minimum(tl.maximum(tiles_S - 1 - at_S, 0), tiles_S)
            before_S = ((at_S >= 0) & (at_S < tiles_S) & (s_S < s)).to(tl.int32)
        else:
            longer_S = tl.where(long_S > long, tiles_S, 0)
            before_S = tl.where((long_S == long) & (s_S < s), tiles_S, 0)
        rank += tl.sum(longer_S + before_S)
        count += tl.sum(tiles_S)
    if (number >= 0) & (number < tiles):
        tl.store(listed_ptr + 2 + 2 * rank, s)
        tl.store(listed_ptr + 3 + 2 * rank, number)
    if tl.program_id(0) == 0:
        tl.store(listed_ptr, 0)
        tl.store(listed_ptr + 1, count)


def heads_of_section(H: int, G: int, key_bytes: int) -> int:
    """How many of H heads of q, which share G of keys, are at work at a time: those whose k and v,
    of key_bytes in all, fit the L2 cache. It divides H."""
    most = max(1, G // max(1, round(key_bytes / _SECTION_BYTES)))
    return max(shared for shared in range(1, most + 1) if G % shared == 0) * (H // G)


def listed_size(N: int, S: int, rows: int) -> int:
    """What `list_tiles` writes, in int32: how many tiles of all heads are taken, none; how many
    there are of a head; and of each its sequence and its number there, the longest first."""
    return 2 + 2 * most_tiles(N, S, rows)


def list_launch(place: Packed, listed: Tensor, N: int, rows: int, causal: bool) -> Launch:
    """listed: `listed_size` of int32."""
    args = {
        "q_starts": place.q_starts,
        "k_starts": place.k_starts,
        "listed_ptr": listed,
        "S": place.S,
        "N": N,
    }
    block = min(power_of_2(place.S + 1), 1024)
    constexprs = {"ROWS": rows, "CAUSAL": causal, "BLOCK_S": block}
    return Launch(list_tiles, (most_tiles(N, place.S, rows),), args, constexprs, {"num_warps": 1})
