"""Zigzag attention over ranks of the CPU: o and gradients of the whole are those of one process in
fp64."""

from functools import cache
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from gloo import drawn, exact, together, worst_token
from torch import Tensor

from kernelbench.kernels.attention import attention
from kernelbench.parallel import ZigzagAttention, ZigzagLayout, zigzag_attention_func

Case = tuple[list[int], int, int, bool, str]  # lengths, least, heads at a time, causal, how


def _agree(rank: int, ranks: int, cases: list[Case]) -> None:
    for case in cases:
        _make_the_whole(rank, ranks, case)
        _are_as_precise_as_one(rank, ranks, case)


def _make_the_whole(rank: int, ranks: int, case: Case) -> None:
    lengths, least, stride, causal, comm = case
    layout = ZigzagLayout.of(lengths, ranks, least)
    operator = ZigzagAttention(heads_k_stride=stride, causal=causal, cp_comm_type=comm)
    draws = [drawn(sum(lengths), seed) for seed in (0, 1)]
    calls = []
    for q, k, v, do in draws:
        local = [layout.shard(x, rank).requires_grad_() for x in (q, k, v)]
        calls.append((operator(*local, layout), local, layout.shard(do, rank)))
    # The first call's gradients come after the second one's o: neither may have the other's keys.
    for draw, (o, local, do) in zip(draws, calls, strict=True):
        found = [o, *torch.autograd.grad(o, local, do)]
        for one, other in zip(found, exact(draw, lengths, causal), strict=True):
            error = worst_token(layout.unshard(one), other)
            assert error < 4e-6, (case, error)
            assert not one[layout.rows(rank) < 0].any()


def _are_as_precise_as_one(rank: int, ranks: int, case: Case) -> None:
    """In fp16, errors are at most 2.5 times those of the kernels in one process, and 2e-3; of the
    norm, at most 1.5 times."""
    lengths, least, stride, causal, comm = case
    layout = ZigzagLayout.of(lengths, ranks, least)
    draw = drawn(sum(lengths), 2, torch.float16)
    local = [layout.shard(x, rank).requires_grad_() for x in draw[:3]]
    o = zigzag_attention_func(
        *local, layout, heads_k_stride=stride, causal=causal, cp_comm_type=comm
    )
    found = [o, *torch.autograd.grad(o, local, layout.shard(draw[3], rank))]
    alone, wanted = _alone(tuple(lengths), causal), exact(draw, lengths, causal)
    for one, other, right in zip(found, alone, wanted, strict=True):
        ours, theirs = layout.unshard(one).double() - right, other.double() - right
        assert ours.abs().max() <= 2.5 * theirs.abs().max() + 2e-3, case
        assert ours.norm() <= 1.5 * theirs.norm(), case


@cache
def _alone(lengths: tuple[int, ...], causal: bool) -> list[Tensor]:
    draw = drawn(sum(lengths), 2, torch.float16)
    local = [x.requires_grad_() for x in draw[:3]]
    starts = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    o = attention(*local, cu_seqlens_q=starts, causal=causal)
    assert isinstance(o, Tensor)
    return [o, *torch.autograd.grad(o, local, draw[3])]


FEW: list[Case] = [
    ([21, 3], 4, 1, True, "all_gather"),  # the last token is alone in what 2W leaves
    ([21, 3], 4, 1, True, "p2p"),
]
MANY: list[Case] = [
    ([40, 7, 24, 9, 33], 4, 1, True, "all_gather"),
    ([40, 7, 24, 9, 33], 0, 2, True, "all_gather"),
    ([3, 5, 2], 64, 1, True, "all_gather"),  # all of them whole, some ranks without a row
    ([21], 0, 2, False, "all_gather"),
    ([40, 7, 24, 9, 33], 4, 1, True, "p2p"),
    ([33], 0, 1, True, "p2p"),
]


@pytest.mark.parametrize(
    "ranks, cases",
    [
        pytest.param(2, FEW, id="2"),
        *(pytest.param(n, MANY, id=f"{n} more", marks=pytest.mark.slow) for n in (1, 2, 4)),
    ],
)
def test_ranks_make_the_whole_as_precisely_as_one(ranks: int, cases: list[Case]) -> None:
    together(_agree, ranks, cases)


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_ranks_have_every_token_once_and_as_much_work(ranks: int) -> None:
    lengths = [1000, 3, 517, 40, 64, 0, 2048]
    layout = ZigzagLayout.of(lengths, ranks, least=16)
    rows = torch.cat([layout.rows(rank) for rank in range(ranks)])
    assert sorted(rows[rows >= 0].tolist()) == list(range(sum(lengths)))
    assert len({int((layout.rows(r)[: layout.cut_rows]).numel()) for r in range(ranks)}) == 1
    starts = [0, *accumulate(lengths)]
    work = [0] * ranks
    for rank in range(ranks):
        for row in layout.rows(rank).tolist():
            start = max(s for s in starts if s <= row) if row >= 0 else row
            work[rank] += row - start + 1 if row >= 0 else 0
    assert max(work) <= 1.04 * min(work)  # but for what is padded


def test_shards_are_rows_in_any_axis_and_padding_is_zero() -> None:
    layout = ZigzagLayout.of([6, 2], 2, least=1)
    assert layout.rows(0).tolist() == [0, 1, -1, -1, 6, -1]
    assert layout.rows(1).tolist() == [2, 3, 4, 5, 7, -1]
    x = torch.arange(1.0, 17.0).view(2, 8)
    assert layout.shard(x, 0, dim=1).tolist() == [[1, 2, 0, 0, 7, 0], [9, 10, 0, 0, 15, 0]]
    assert layout.shard(x.long()[0], 0, fill=-100).tolist() == [1, 2, -100, -100, 7, -100]
    with pytest.raises(ValueError, match="takes all 8 tokens along axis 0, got 2"):
        layout.shard(x, 0)


@pytest.mark.parametrize(
    "lengths", [[6.0, 2], [True, 2], ["6"], "62", None, 8, [None], torch.tensor([6, 2])], ids=repr
)
def test_lengths_are_whole_numbers(lengths: Any) -> None:
    with pytest.raises(TypeError, match="takes lengths as a sequence of whole numbers, got "):
        ZigzagLayout.of(lengths, 2)


def test_whole_numbers_of_other_types_are_taken() -> None:
    numbers = np.array([600, 2]), iter([600, 2])
    assert {ZigzagLayout.of(each, 2) for each in numbers} == {ZigzagLayout.of([600, 2], 2)}  # type: ignore[arg-type]


def test_what_does_not_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda group: 2)
    monkeypatch.setattr(dist, "get_rank", lambda group: 1)
    starts = torch.tensor([0, 600, 610], dtype=torch.int32)
    q, k = torch.randn(300, 4, 16), torch.randn(300, 2, 16)
    with pytest.raises(ValueError, match="rank 1 has L = 300 rows of these documents, got"):
        zigzag_attention_func(q[:-1], k[:-1], k[:-1], starts)
    with pytest.raises(ValueError, match="rank 1 has L = 300 rows of these documents, got"):
        zigzag_attention_func(q, k[..., :8], k[..., :8], starts)
    with pytest.raises(TypeError, match=r"one dtype, .* torch.float32, torch.float16: conv"):
        zigzag_attention_func(q, k, k.half(), starts)
    with pytest.raises(ValueError, match="heads_k_stride that divides them, got 4 of q, 2, and 3"):
        zigzag_attention_func(q, k, k, starts, heads_k_stride=3)
    for wrong in ({"cp_comm_type": "ring"}, {"cp_comm_type": "p2p", "causal": False}):
        with pytest.raises(ValueError, match="cp_comm_type as one of all_gather, p2p"):
            zigzag_attention_func(q, k, k, starts, **wrong)
    with pytest.raises(TypeError, match="zigzag_attention_func takes cu_seqlens of int32, got"):
        zigzag_attention_func(q, k, k, starts.float())
    with pytest.raises(ValueError, match=r"func takes cu_seqlens of shape \(S\+1,\)"):
        zigzag_attention_func(q, k, k, starts[:1])
    for values, said in (([5, 605], "from 0 on, got 5"), ([0, 610, 600], "that does not fall")):
        with pytest.raises(ValueError, match=f"zigzag_attention_func takes cu_seqlens {said}"):
            zigzag_attention_func(q, k, k, torch.tensor(values, dtype=torch.int32))
    with pytest.raises(ValueError, match="the layout is of 3 ranks, the group has 2"):
        zigzag_attention_func(q, k, k, ZigzagLayout.of([600, 10], 3))
