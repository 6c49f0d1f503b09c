"""Which tiles each program of a forward takes where tiles differ in length, as causal ones do."""

from heapq import heapreplace

import torch
from torch import Tensor

from kernelbench.kernels.launch import ceil_div

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
