"""Zigzag attention over ranks of the CPU (gloo, Triton's interpreter): o and gradients of the whole
are those of one process in fp64."""

import math
import os
import socket
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor

from kernelbench.kernels.launch import INTERPRETED
from kernelbench.parallel import ZigzagAttention, ZigzagLayout, zigzag_attention_func

H, G, D = 4, 2, 16
Case = tuple[list[int], int, int, bool, str]  # lengths, least, heads at a time, causal, how


def whole(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], causal: bool) -> Tensor:
    """In fp64, document by document."""
    parts = []
    for q_s, k_s, v_s in zip(*(x.split(list(lengths)) for x in (q, k, v)), strict=True):
        k_s, v_s = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k_s, v_s))
        score = torch.einsum("nhd,mhd->hnm", q_s, k_s) / D**0.5
        if causal:
            score = score.masked_fill(torch.ones_like(score[0]).triu(1).bool(), -math.inf)
        parts.append(torch.einsum("hnm,mhd->nhd", score.softmax(-1), v_s))
    return torch.cat(parts)


def drawn(T: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = (T, H, D), (T, G, D), (T, G, D), (T, H, D)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def _of_rank(rank: int, port: int, ranks: int, cases: list[Case]) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank)}
    os.environ["WORLD_SIZE"] = str(ranks)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for lengths, least, stride, causal, comm in cases:
        layout = ZigzagLayout.of(lengths, ranks, least)
        for seed in (0, 1):  # the second one has other keys: nothing stale may be left
            q, k, v, do = drawn(sum(lengths), seed)
            leaves = [x.double().requires_grad_() for x in (q, k, v)]
            right = whole(*leaves, lengths, causal)
            wanted = [right, *torch.autograd.grad(right, leaves, do.double())]
            local = [layout.shard(x, rank).requires_grad_() for x in (q, k, v)]
            operator = ZigzagAttention(heads_k_stride=stride, causal=causal, cp_comm_type=comm)
            o = operator(*local, layout)
            found = [o, *torch.autograd.grad(o, local, layout.shard(do, rank))]
            for one, other in zip(found, wanted, strict=True):
                error = (layout.unshard(one).double() - other).norm() / other.norm()
                assert error < 2e-6, (lengths, least, stride, causal, comm, error)
                assert not one[layout.rows(rank) < 0].any()
    dist.destroy_process_group()


FEW: list[Case] = [
    ([20, 3, 9], 4, 1, True, "all_gather"),
    ([20, 3, 9], 4, 1, True, "p2p"),
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
def test_ranks_make_the_whole(
    ranks: int, cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not INTERPRETED:
        pytest.skip("ranks of the CPU need Triton's interpreter")
    here = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(here), str(here.parent)]))
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    torch.multiprocessing.spawn(_of_rank, (port, ranks, cases), nprocs=ranks)  # type: ignore[no-untyped-call]


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
    with pytest.raises(ValueError, match="takes all 8 tokens along axis 0, got 2"):
        layout.shard(x, 0)


def test_what_does_not_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda group: 2)
    monkeypatch.setattr(dist, "get_rank", lambda group: 1)
    starts = torch.tensor([0, 600, 610], dtype=torch.int32)
    q, k = torch.randn(300, 4, 16), torch.randn(300, 2, 16)
    with pytest.raises(ValueError, match="rank 1 has L = 300 rows of these documents, got"):
        zigzag_attention_func(q[:-1], k[:-1], k[:-1], starts)
    with pytest.raises(ValueError, match="heads_k_stride that divides them, got 4 of q, 2, and 3"):
        zigzag_attention_func(q, k, k, starts, heads_k_stride=3)
    for wrong in ({"cp_comm_type": "ring"}, {"cp_comm_type": "p2p", "causal": False}):
        with pytest.raises(ValueError, match="cp_comm_type as one of all_gather, p2p"):
            zigzag_attention_func(q, k, k, starts, **wrong)
    with pytest.raises(ValueError, match="the layout is of 3 ranks, the group has 2"):
        zigzag_attention_func(q, k, k, ZigzagLayout.of([600, 10], 3))
