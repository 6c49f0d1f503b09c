"""Which tiles of causal attention each program takes on Hopper, and in what order."""

import random
from itertools import accumulate
from statistics import mean
from typing import Any

import pytest
import torch
from torch import Tensor

from kernelbench.kernels.attention import attention
from kernelbench.kernels.attention.hopper import order
from kernelbench.kernels.attention.hopper.order import (
    heads_of_section,
    lies_packed,
    list_launch,
    listed_size,
    order_of,
    tiles_of_programs,
)
from kernelbench.kernels.attention.places import Packed
from kernelbench.kernels.launch import INTERPRETED, Target, ceil_div, described_for

SMS = 132
SHAPES = [  # B, N, Hq, Hk, D, rows of a tile
    (4, 4096, 12, 12, 64, 128),
    (8, 2048, 16, 16, 128, 128),
    (4, 8192, 16, 4, 128, 128),
    (32, 512, 16, 16, 64, 128),
    (3, 3000, 10, 2, 128, 192),
]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "_TABLES", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)


def order_for(
    B: int, N: int, H: int, G: int, D: int, rows: int = 128, programs: int = SMS
) -> Tensor | None:
    """In bf16."""
    how = {"causal": True, "rows": rows, "keys": 128, "programs": programs}
    return order_of(torch.empty(0), B * H, N, key_bytes=4 * B * N * G * D, **how)


def blocks(tile: int, N: int, rows: int, keys: int = 128) -> int:
    """Of keys that a tile meets: the first of each head is its last."""
    tiles = ceil_div(N, rows)
    return ceil_div(min((tiles - tile % tiles) * rows, N), keys)


@pytest.mark.parametrize("shape", SHAPES)
def test_each_tile_is_one_program_s_and_programs_end_together(shape: Any) -> None:
    *sizes, rows = shape
    B, N, H, *_ = sizes
    table = order_for(*sizes, rows)
    assert table is not None and table.dtype is torch.int32 and table.is_contiguous()
    total = B * H * ceil_div(N, rows)
    assert (table[-1] == total).all()
    columns = table.T.tolist()
    taken = [column[: column.index(total)] for column in columns]
    ends = [set(column[len(own) :]) for column, own in zip(columns, taken, strict=True)]
    assert all(end == {total} for end in ends)
    assert sorted(i for own in taken for i in own) == [*range(total)]
    costs = [sum(blocks(i, N, rows) + 1 for i in own) for own in taken]
    turns = [sum(blocks(i, N, rows) + 1 for i in range(p, total, SMS)) for p in range(SMS)]
    assert max(costs) < 1.05 * mean(costs) < max(turns)


def test_programs_take_what_comes_next_as_soon_as_they_are_free() -> None:
    assert tiles_of_programs(2, 1, [3.0, 2.0, 1.0], 2) == [[0, 3], [1, 2, 4, 5]]
    assert tiles_of_programs(2, 2, [3.0, 2.0, 1.0], 2) == [[0, 1, 2], [3, 4, 5]]


def test_heads_run_in_sections_whose_keys_and_values_fit_the_cache() -> None:
    """8192 tokens of 128 elements: 4 MiB of k and v a head. With four that share them, four times
    as many at a time."""
    for heads, at_a_time in ((16, 6), (4, 22)):
        table = order_for(4, 8192, 16, heads, 128)
        assert table is not None
        begun = [i // 64 for i in table[:2].flatten().tolist()]
        assert at_a_time - 1 <= max(begun) + 1 <= at_a_time + 1


def test_where_programs_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    assert order_for(1, 512, 8, 8, 64, programs=32) is None  # one tile each
    assert order_for(64, 4096, 16, 16, 64) is None  # so many that it evens
    few = (4, 1024, 8, 8, 64)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert order_for(*few) is None
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    known = order_for(*few)
    assert known is not None
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert order_for(*few) is known  # a graph may read what was made before
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(order, "_MOST_TABLES", 1)
    assert order_for(4, 1152, 8, 8, 64) is None
    assert order_for(*few) is known


@pytest.mark.parametrize("D", [64, 128])
def test_causal_launches_have_an_order_and_others_none(D: int) -> None:
    for causal in (True, False):
        with described_for(Target("sm_90", SMS)) as launches:
            q, k = (torch.empty(4, 4096, 8, D, dtype=torch.bfloat16, device="meta") for _ in "qk")
            attention(q, k, k, causal=causal)
        for launch in launches:
            own = launch.args["order_ptr"]
            assert (own is not None) == causal and launch.own is own


def tiles_of(q_starts: list[int], k_starts: list[int], N: int, rows: int, causal: bool) -> Any:
    """How long each tile is, in tiles, its sequence and its number there; the longest first."""
    found = []
    for s, begin in enumerate(q_starts):
        last = s == len(q_starts) - 1  # the rows behind
        queries = (N if last else q_starts[s + 1]) - begin
        keys = 0 if last else k_starts[s + 1] - k_starts[s]
        for i in range(ceil_div(queries, rows)):
            long = int((keys - queries) / rows) + i if causal else keys // rows
            found.append((-long, s, i))
    return sorted(found)


@pytest.mark.skipif(not INTERPRETED, reason="the interpreter's answer serves any GPU")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_tiles_of_packed_sequences_are_listed_once_each_and_the_longest_first(
    seed: int, causal: bool
) -> None:
    draw = random.Random(seed)
    rows, S = draw.choice([16, 128]), draw.choice([1, 3, 20, 40])

    def length() -> int:
        return draw.choice([0, 1, rows - 1, rows, rows + 1, draw.randrange(6 * rows)])

    of_queries = [length() for _ in range(S)]
    of_keys = of_queries if seed % 2 else [length() for _ in range(S)]
    q_starts = [*accumulate(of_queries, initial=draw.choice([0, 5]))]
    k_starts = [*accumulate(of_keys, initial=0)]
    N = q_starts[-1] + draw.choice([0, 1, 300])
    listed = torch.full((listed_size(N, S, rows),), -7, dtype=torch.int32)
    starts = [torch.tensor(each, dtype=torch.int32) for each in (q_starts, k_starts)]
    place = Packed(*starts, S, k_starts[-1])
    list_launch(place, lies_packed, listed, N, rows, causal).run()
    wanted = tiles_of(q_starts, k_starts, N, rows, causal)
    found = listed[2 : 2 + 2 * len(wanted)].view(-1, 2).tolist()
    assert listed[:2].tolist() == [0, len(wanted)]
    assert sorted(map(tuple, found)) == sorted((s, i) for _, s, i in wanted)
    length_of = {(s, i): -long for long, s, i in wanted}
    lengths = [length_of[s, i] for s, i in found]
    assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize(("H", "G"), [(32, 8), (5, 5), (12, 6), (10, 5), (7, 1), (1, 1)])
def test_sections_of_heads_of_packed_sequences_have_as_many_heads_each(H: int, G: int) -> None:
    for MiB in (0, 1, 30, 60, 100, 10_000):
        heads = heads_of_section(H, G, MiB << 20)
        assert H % heads == 0 and heads % (H // G) == 0
    assert heads_of_section(H, G, 0) == H
    assert heads_of_section(H, G, 10_000 << 20) == H // G
