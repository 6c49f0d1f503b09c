"""Dilated attention over ranks of the CPU: the whole is what one process computes."""

import gc
import pickle
from copy import deepcopy
from runpy import run_path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from gloo import together
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from kernelbench.nn import DilatedAttention
from kernelbench.parallel import RingDilatedAttention, collectives, dilated, segments
from kernelbench.parallel.segments import Ranks, branch_of

Case = tuple[int, list[int], list[int], int, bool, dict[str, Any]]  # N, w, r, heads of k, causal


def drawn(N: int, G: int, dtype: torch.dtype) -> list[Tensor]:
    """q, k, v and do, 4 heads of 8."""
    generator = torch.Generator().manual_seed(N + G)
    shapes = (2, N, 4, 8), (2, N, G, 8), (2, N, G, 8), (2, N, 4, 8)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def _agree(rank: int, ranks: int, cases: list[Case], impl: Any, dtype: torch.dtype) -> None:
    for N, lengths, rates, G, causal, ways in cases:
        *inputs, do = drawn(N, G, dtype)
        whole = [x.double().requires_grad_() for x in inputs]
        right = DilatedAttention(lengths, rates, impl="eager", **ways)(*whole, is_causal=causal)
        wanted = [right, *torch.autograd.grad(right, whole, do.double())]
        mine = slice(rank * N // ranks, (rank + 1) * N // ranks)
        local = [x[:, mine].clone().requires_grad_() for x in inputs]
        ring = RingDilatedAttention(lengths, rates, impl=impl, **ways)
        for _ in range(2):  # no message of the call before is left
            o = ring(*local, is_causal=causal)
            found = [o, *torch.autograd.grad(o, local, do[:, mine])]
            for one, other in zip(found, wanted, strict=True):
                error = (one.double() - other[:, mine]).norm() / other.norm().clamp(min=1e-3)
                assert error < (1e-12 if dtype is torch.float64 else 1e-5), (N, lengths, error)


FEW: list[Case] = [
    (24, [6, 24], [1, 3], 2, True, {}),
    (24, [3, 12, 99], [2, 3, 5], 4, False, {"offset_rule": "segment_index", "combine": "mean"}),
]
MANY: list[Case] = [
    *FEW,
    (24, [24], [1], 1, True, {}),
    (24, [3, 24], [2, 8], 4, True, {"offset_rule": "head_group"}),
    (24, [12, 24], [4, 7], 2, False, {"offset_rule": "head_group"}),
    (24, [12, 24], [5, 2], 4, True, {"offset_rule": "segment_index"}),
    (24, [6, 12], [1, 2], 2, True, {"combine": "mean"}),
    (24, [24], [24], 4, True, {}),  # one rank has all rows
    (24, [12], [11], 4, False, {}),
]


@pytest.mark.parametrize(
    ("ranks", "cases"),
    [
        pytest.param(2, FEW, id="2"),
        *(pytest.param(n, MANY, id=f"{n} more", marks=pytest.mark.slow) for n in (1, 2, 4)),
    ],
)
def test_ranks_make_the_whole_in_fp64(ranks: int, cases: list[Case]) -> None:
    together(_agree, ranks, cases, "eager", torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_make_the_whole_by_the_kernels(ranks: int) -> None:
    together(_agree, ranks, FEW, "triton", torch.float32)


def _three(rank: int, ranks: int) -> None:
    """The last segment is shorter: one rank's, which sends nothing."""
    _agree(rank, ranks, [(18, [6, 12], [2, 3], 2, True, {})], "eager", torch.float64)


@pytest.mark.slow
def test_a_last_segment_of_fewer_ranks() -> None:
    together(_three, 3)


def _in_two_groups(rank: int, ranks: int) -> None:
    """Three of four ranks, whose segments are of two: groups that not all ranks know."""
    some = dist.new_group([0, 1, 2])
    if rank == 3:
        return
    q, k, v, _ = drawn(18, 2, torch.float64)
    ring = RingDilatedAttention([12, 18], [1, 3], impl="eager", group=some)
    mine = slice(rank * 6, rank * 6 + 6)
    o = ring(*(x[:, mine] for x in (q, k, v)), is_causal=True)
    wanted = DilatedAttention([12, 18], [1, 3], impl="eager")(q, k, v, is_causal=True)
    torch.testing.assert_close(o, wanted[:, mine])


@pytest.mark.slow
def test_a_group_that_is_a_part_of_the_ranks() -> None:
    together(_in_two_groups, 4)


@pytest.mark.parametrize("rank", [0, 1])
def test_only_kept_rows_of_segments_that_span_ranks_travel(
    rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    gather = dilated.all_gather_single

    def counted(every: Tensor, message: Tensor, **more: Any) -> Any:
        sent.append(message.numel())
        return gather(every, message, **more)

    monkeypatch.setattr(dilated, "all_gather_single", counted)
    dist.init_process_group("fake", rank=rank, world_size=2, store=FakeStore())
    *inputs, _ = drawn(48, 4, torch.float32)
    local = [x.chunk(2, 1)[rank] for x in inputs]
    RingDilatedAttention([24, 48], [1, 4], impl="eager")(*local)
    dist.destroy_process_group()
    # 24 tokens are a rank's own; of 48, each of 4 heads sends a fourth of its 24, of k and v
    assert sent == [2 * 2 * 6 * 4 * 8]


def test_one_process_has_everything_and_bad_input_is_told(device: str) -> None:
    q, k, v, _ = (x.to(device) for x in drawn(24, 2, torch.float64))
    one = RingDilatedAttention([8, 24], [1, 3], impl="eager")(q, k, v, is_causal=True)
    other = DilatedAttention([8, 24], [1, 3], impl="eager")(q, k, v, is_causal=True)
    torch.testing.assert_close(one, other)
    with pytest.raises(ValueError, match="a rank's 24 tokens, or are a multiple of them, got 7"):
        RingDilatedAttention([7], [1])(q, k, v)
    with pytest.raises(ValueError, match="no impl 'cuda'"):
        RingDilatedAttention([8], [1], impl="cuda")  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError, match="dropout"):
        RingDilatedAttention([8], [1], 0.5)
    with pytest.raises(TypeError, match=r"is of torch.float16, got q of torch.float64"):
        RingDilatedAttention([8], [1], dtype=torch.float16)(q, k, v)


def test_tokens_in_no_branch_have_zeros_and_no_gradient_is_nan(device: str) -> None:
    local = [x.to(device).requires_grad_() for x in drawn(24, 2, torch.float64)[:3]]
    module = RingDilatedAttention([8, 24], [2, 4], offset_rule="segment_index", impl="eager")
    o = module(*local)
    gradients = torch.autograd.grad(o.sum(), local)
    alone = (o == 0).all(-1)
    assert alone.any() and not alone.all()
    assert all(x.isfinite().all() for x in (o, *gradients))
    assert (gradients[0][alone] == 0).all()


def test_elements_of_a_head_may_lie_apart(device: str) -> None:
    local = [x.to(device) for x in drawn(24, 2, torch.float64)[:3]]
    apart = [x.transpose(-1, -2).contiguous().transpose(-1, -2) for x in local]
    module = RingDilatedAttention([8, 24], [1, 2], impl="eager")
    assert apart[0].stride(-1) != 1 and module(*apart).equal(module(*local))


def test_groups_that_would_wait_for_ever_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where PyTorch splits a group that is bound to a device: that of all ranks alone has all."""
    local = drawn(6, 2, torch.float64)[:3]
    dist.init_process_group("fake", rank=2, world_size=3, store=FakeStore())
    try:
        with pytest.raises(ValueError, match="is none of its group's"):
            outside = dist.GroupMember.NON_GROUP_MEMBER
            RingDilatedAttention([6], [1], group=outside, impl="eager")(*local)
        RingDilatedAttention([12], [1], impl="eager")(*local)
        monkeypatch.setattr(segments, "_is_bound", lambda: True)
        RingDilatedAttention([6, 18], [1, 2], impl="eager")(*local)
        with pytest.raises(ValueError, match="groups of 2 of 3 ranks, which would wait for ever"):
            RingDilatedAttention([12], [1], impl="eager")(*local)
    finally:
        dist.destroy_process_group()


def test_modules_share_the_groups_of_some_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A communicator for each set of ranks, of all layers; none is left when there are others."""
    made: list[list[int]] = []
    new: Any = dist.new_group

    def counted(ranks: list[int], **more: Any) -> Any:
        made.append(ranks)
        return new(ranks, **more)

    monkeypatch.setattr(dist, "new_group", counted)
    local = drawn(6, 2, torch.float64)[:3]
    for _ in range(2):
        dist.init_process_group("fake", rank=3, world_size=4, store=FakeStore())
        for lengths in ([12], [12, 24], [6, 12]):
            RingDilatedAttention(lengths, [2] * len(lengths), impl="eager")(*local)
        dist.destroy_process_group()
        gc.collect()
    assert made == [[2, 3]] * 2


def test_a_module_can_be_copied_and_pickled_after_calls() -> None:
    dist.init_process_group("fake", rank=1, world_size=4, store=FakeStore())
    local = drawn(6, 2, torch.float64)[:3]
    for group in (None, dist.group.WORLD):
        module = RingDilatedAttention([12, 24], [2, 3], impl="eager", group=group)
        y = module(*local)
        copy = deepcopy(torch.nn.Sequential(module))[0]
        assert copy is not module and copy.group is group
        assert copy(*local).shape == y.shape
        if group is None:
            assert pickle.loads(pickle.dumps(module))(*local).shape == y.shape
    dist.destroy_process_group()


def test_no_tokens_have_no_result(device: str) -> None:
    q, k, v = (torch.ones(2, 0, 4, 8, device=device, requires_grad=True) for _ in range(3))
    o = RingDilatedAttention([8], [2], impl="eager")(q, k, v)
    assert o.shape == q.shape
    assert all(x.shape == q.shape for x in torch.autograd.grad(o.sum(), (q, k, v)))


class _OnTheGpu(TorchDispatchMode):
    """Nothing comes from the host, for which it would wait for the GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in ("index", "index_put", "lift_fresh", "_local_scalar_dense"), name
        return func(*args, **(kwargs or {}))


@pytest.mark.filterwarnings("error::FutureWarning")
@pytest.mark.parametrize("G", [4, 2, 1])
@pytest.mark.parametrize("rule", ["head_mod", "head_group", "segment_index"])
def test_a_call_is_queued_without_waiting(G: int, rule: str) -> None:
    dist.init_process_group("fake", rank=1, world_size=4, store=FakeStore())
    *local, do = drawn(12, G, torch.float32)
    leaves = [x.requires_grad_() for x in local]
    branches = [6, 24, 48], [1, 3, 2]
    ring = RingDilatedAttention(*branches, impl="eager", offset_rule=rule)
    with _OnTheGpu():
        torch.autograd.grad(ring(*leaves, is_causal=True), leaves, do)
    dist.destroy_process_group()


def test_before_pytorch_2_13_collectives_have_their_names_of_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And a torch that has none of them loads what needs none."""
    for now, then in (("all_gather", "all_gather_into"), ("reduce_scatter", "reduce_scatter")):
        monkeypatch.delattr(dist, f"{now}_single", raising=False)
        monkeypatch.setattr(dist, f"{then}_tensor", lambda *given, async_op: (given, async_op))
        found = run_path(collectives.__file__)[f"{now}_single"]
        assert found(1, 2, async_op=True) == ((1, 2), True)
        monkeypatch.delattr(dist, f"{then}_tensor")
        with pytest.raises(AttributeError, match=f"{then}_tensor"):
            run_path(collectives.__file__)[f"{now}_single"](1, 2)


@pytest.mark.parametrize(("G", "r"), [(12, 5), (4, 3), (4, 2), (2, 5), (3, 12), (1, 7)])
@pytest.mark.parametrize("rule", ["head_mod", "head_group", "segment_index"])
def test_heads_that_share_keys_send_them_once_where_they_can(G: int, r: int, rule: str) -> None:
    """Also where those of an offset share them unequally: then one for each head of q."""
    H = L = 12
    k = torch.randn(1, L, G, 1)
    branch = branch_of(H, G, Ranks(dist.group.WORLD, 0, 1, L), 2 * L, r, rule, False)
    assert sorted(h for one in branch.classes for h in range(H)[one.piece.heads]) == [*range(H)]
    for one in branch.classes:
        heads = range(H)[one.piece.heads]
        each = [h * G // H for h in heads]
        sent = one.taken(k, H)
        rows = k[:, one.piece.first :: r]
        assert torch.equal(sent.repeat_interleave(len(heads) // one.sent, 2), rows[:, :, each])
        back, sums = torch.randn_like(sent), torch.zeros_like(k)
        one.add(sums, back, H)
        torch.testing.assert_close((sums * k).sum(), (back * sent).sum())
