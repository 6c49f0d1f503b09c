"""What a rank holds at most, beside what it is given. Of zigzag attention: its own rows, and keys
of all tokens for two groups of heads; of dilated attention: its own rows, and what branches keep of
others'. Tensors are counted as PyTorch's operators make them. The other ranks are not there: they
send nothing, which takes as much memory."""

from collections.abc import Iterator
from typing import Any
from weakref import finalize

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernelbench.kernels.launch import INTERPRETED
from kernelbench.parallel import (
    RingDilatedAttention,
    ZigzagLayout,
    ring,
    zigzag,
    zigzag_attention_func,
)

H, D, FP32 = 4, 16, 4  # as many heads of keys as of queries; bytes
LITTLE = 256  # bytes: where documents begin, and the like


class Held(TorchDispatchMode):
    """Bytes of what operators make, as long as it lives, and the most of them at a time."""

    def __init__(self, *given: Tensor) -> None:
        super().__init__()
        self._known = {x.untyped_storage()._cdata for x in given}
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for each in tree_leaves(results):
            if isinstance(each, Tensor):
                self._see(each.untyped_storage())
        return results

    def _see(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        finalize(storage, self._gone, storage._cdata, storage.nbytes())

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@pytest.fixture(params=[2, 4, 8])
def ranks(request: pytest.FixtureRequest) -> Iterator[int]:
    dist.init_process_group("fake", rank=1, world_size=request.param, store=FakeStore())
    yield request.param
    dist.destroy_process_group()


@pytest.fixture(autouse=INTERPRETED)
def _no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter keeps tensors until garbage is collected; kernels themselves take none."""

    def part(q: Tensor, k: Tensor, v: Tensor, starts: Any, how: Any) -> tuple[Tensor, Tensor]:
        return torch.empty_like(q), q.new_empty(1, q.shape[1], len(q))

    def gradients(do: Tensor, *inputs: Tensor, starts: Any, how: Any) -> list[Tensor]:
        return [torch.empty_like(x, dtype=torch.float32) for x in inputs[:3]]

    for name in ("forward", "backward"):
        monkeypatch.setattr(zigzag.parts, name, lambda *tensors, how: None)
    monkeypatch.setattr(ring.parts, "forward", part)
    monkeypatch.setattr(ring.parts, "backward", gradients)


def most(n: int, ranks: int, device: str, **options: Any) -> list[int]:
    """Of the forward, and of the backward with what the forward leaves, for n rows of a rank."""
    layout = ZigzagLayout.of([n * ranks], ranks, least=0)
    q, k, v, do = (torch.randn(n, H, D, device=device) for _ in range(4))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    with Held(*leaves, do) as held:
        o = zigzag_attention_func(*leaves, layout, **options)
        forward, held.most = held.most, 0
        torch.autograd.grad(o, leaves, do)
    return [forward, held.most]


def bounds(n: int, ranks: int, step: int) -> list[int]:
    """For so many heads of keys at a time."""
    o, statistic = n * H * D * FP32, n * H * FP32
    groups = 2 * (n * ranks + n) * 2 * step * D * FP32  # two, of k and v: what comes, what is sent
    forward = o + statistic + groups
    return [forward + LITTLE, forward + 2 * statistic + 3 * o + groups + LITTLE]


def test_a_rank_holds_its_rows_and_two_groups_of_heads(ranks: int, device: str) -> None:
    n = 96 // ranks
    for step in (1, 2):
        found = most(n, ranks, device, heads_k_stride=step)
        assert all(x <= y for x, y in zip(found, bounds(n, ranks, step), strict=True)), (
            step,
            found,
        )
    whole = most(n, ranks, device, heads_k_stride=H)
    assert all(x > y for x, y in zip(whole, bounds(n, ranks, 1), strict=True)), whole


def test_a_ring_holds_some_ranks_rows_however_many_there_are(ranks: int, device: str) -> None:
    n = 48
    found = most(n, ranks, device, cp_comm_type="p2p")
    rows = n * H * D * FP32
    assert found[0] <= 9 * rows and found[1] <= 17 * rows, [x / rows for x in found]


def most_dilated(n: int, lengths: list[int], rates: list[int], combine: str) -> list[float]:
    """As `most`, of a rank's n tokens, by PyTorch's operators; in rows of q in fp32."""
    q, k, v, do = (torch.randn(1, n, H, D) for _ in range(4))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    module = RingDilatedAttention(lengths, rates, impl="eager", combine=combine)
    with Held(*leaves, do) as held:
        o = module(*leaves, is_causal=True)
        forward, held.most = held.most, 0
        torch.autograd.grad(o, leaves, do)
    return [most / (n * H * D * FP32) for most in (forward, held.most)]


@pytest.mark.parametrize(("combine", "bounds"), [("lse", (4.5, 12.5)), ("mean", (7.5, 16.5))])
def test_a_rank_of_dilated_attention_holds_as_much_however_many_there_are(
    ranks: int, combine: str, bounds: tuple[float, float]
) -> None:
    n = 48
    N = n * ranks
    branches = [n // 2, 2 * n, N], [1, 4, 2 * ranks]
    found = most_dilated(n, *branches, combine)
    assert all(x <= most for x, most in zip(found, bounds, strict=True)), found
    dense = most_dilated(n, [N], [1], combine)  # k and v of all ranks, and their gradients
    assert dense[0] > 2 * ranks and dense[1] > 4 * ranks and dense > found, dense
