"""Which tiles of causal attention each program takes on Hopper, and in what order."""

from statistics import mean
from typing import Any

import pytest
import torch
from torch import Tensor

from kernelbench.kernels.attention import attention
from kernelbench.kernels.attention.hopper import order
from kernelbench.kernels.attention.hopper.order import order_of, tiles_of_programs
from kernelbench.kernels.launch import Target, ceil_div, described_for

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
