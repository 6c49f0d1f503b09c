"""The family `zigzag_parallel` by others: what stands in for flash_attn, which cases they take, and
what they answer on ranks of the CPU."""

import importlib.machinery
import importlib.util
import json
import subprocess
import sys
import types
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from gloo import drawn, exact, together
from torch import Tensor

from kernelbench.families.zigzag_parallel import FAMILY, flash_attn_shim, peers
from kernelbench.families.zigzag_parallel.case import ParallelCase
from kernelbench.spec import Device

INSTALLED = pytest.mark.skipif(
    importlib.util.find_spec("ring_flash_attn") is None, reason="ring_flash_attn is not installed"
)
H200 = Device("cuda", "H200", (9, 0))
REST = {"dropout_p": 0.0, "window_size_left": -1, "window_size_right": -1, "alibi_slopes": None}


def starts_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


def reference(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    """Of one sequence, by its formula: o (n,H,D) and lse (H,n)."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = scale * torch.einsum("nhd,mhd->hnm", q, k)
    if causal:
        sees = torch.arange(len(k)) <= torch.arange(len(q))[:, None] + len(k) - len(q)
        scores = scores.masked_fill(~sees, -torch.inf)
    return torch.einsum("hnm,mhd->nhd", scores.softmax(-1), v), scores.logsumexp(-1)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_what_stands_in_for_flash_attn_is_attention_with_gradients(seed: int, causal: bool) -> None:
    rows, keys, scale = [5, 1, 8], [5, 7, 19], 0.3
    torch.manual_seed(seed)
    q, do = torch.randn(2, sum(rows), 4, 8, dtype=torch.float64)
    k, v = torch.randn(2, sum(keys), 2, 8, dtype=torch.float64)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    parts = zip(q.split(rows), k.split(keys), v.split(keys), strict=True)
    o, lse = zip(*(reference(*part, scale, causal) for part in parts), strict=True)
    wanted = torch.autograd.grad(torch.cat(o), leaves, do)
    q, k, v, do = (x.detach().float() for x in (q, k, v, do))
    documents = {
        "cu_seqlens_q": starts_of(rows),
        "cu_seqlens_k": starts_of(keys),
        "max_seqlen_q": max(rows),
        "max_seqlen_k": max(keys),
    }
    how = {**documents, **REST, "softmax_scale": scale, "causal": causal}
    found = flash_attn_shim.varlen_forward(q, k, v, return_softmax=False, **how)
    torch.testing.assert_close(found[0].double(), torch.cat(o), rtol=0, atol=1e-6)
    torch.testing.assert_close(found[1].double(), torch.cat(lse, 1), rtol=0, atol=1e-5)
    gradients = [torch.full_like(x, torch.nan) for x in (q, k, v)]
    written = dict(zip(("dq", "dk", "dv"), gradients, strict=True))
    more = {**how, **written, "deterministic": False}
    flash_attn_shim.varlen_backward(do, q, k, v, *found[:2], **more)
    for one, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=2e-6)


def test_samples_of_one_length_are_sequences() -> None:
    torch.manual_seed(0)
    q, do = torch.randn(2, 3, 6, 4, 8)
    k, v = torch.randn(2, 3, 6, 2, 8)
    how = {**REST, "softmax_scale": 0.3, "causal": True}
    starts = starts_of([6, 6, 6])
    packed = {"cu_seqlens_q": starts, "cu_seqlens_k": starts, "max_seqlen_q": 6, "max_seqlen_k": 6}
    answers = []
    for tensors, more in (
        ((do, q, k, v), {}),
        ([x.flatten(0, 1) for x in (do, q, k, v)], packed),
    ):
        o, lse, *_ = flash_attn_shim.forward(*tensors[1:], **how, **more)
        gradients = {
            f"d{name}": torch.empty_like(x) for name, x in zip("qkv", tensors[1:], strict=True)
        }
        flash_attn_shim.backward(*tensors, o, lse, **how, **more, **gradients)
        answers.append([o, *gradients.values(), lse if more else lse.transpose(0, 1)])
    for one, other in zip(*answers, strict=True):
        torch.testing.assert_close(one.reshape(other.shape), other)


@pytest.mark.parametrize("packed", [False, True])
def test_pytorchs_operators_take_what_they_are_given(packed: bool) -> None:
    """By their shapes alone, where there is no GPU."""
    how: dict[str, Any] = {**REST, "softmax_scale": 0.3, "causal": True}
    on_meta = {"device": "meta", "dtype": torch.bfloat16}
    q, k = (torch.empty(24, heads, 64, **on_meta) for heads in (4, 2))
    shape = (4, 24)
    if packed:
        starts = starts_of([12, 12]).to("meta")
        how |= {"cu_seqlens_q": starts, "cu_seqlens_k": starts}
        how |= {"max_seqlen_q": 12, "max_seqlen_k": 12}
    else:
        q, k, shape = q.unflatten(0, (2, 12)), k.unflatten(0, (2, 12)), (2, 4, 12)
    o, lse, *_ = flash_attn_shim.forward(q, k, k, **how)
    assert (o.shape, lse.shape, lse.dtype) == (q.shape, shape, torch.float32)
    gradients = {"dq": torch.empty_like(q), "dk": torch.empty_like(k), "dv": torch.empty_like(k)}
    flash_attn_shim.backward(torch.empty_like(q), q, k, k, o, lse, **how, **gradients)


@pytest.mark.parametrize(
    "name, value", [("dropout_p", 0.1), ("window_size_left", 8), ("softcap", 1.0)]
)
def test_what_the_stand_in_does_not_have_is_refused(name: str, value: Any) -> None:
    q = torch.randn(1, 4, 2, 8)
    how = {**REST, "softmax_scale": 1.0, "causal": True, name: value}
    with pytest.raises(NotImplementedError, match=f"takes no {name}={value}"):
        flash_attn_shim.forward(q, q, q, **how)


@pytest.fixture
def fresh() -> Iterator[None]:
    """No test finds the package that another one imported."""
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "ring_flash_attn"]:
        del sys.modules[name]


@INSTALLED
@pytest.mark.parametrize("there", ["nothing", "flash_attn", "FlashAttention-4"])
def test_it_stands_in_only_where_flash_attn_is_missing_and_only_for_the_import(
    there: str, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("flash_attn", flash_attn_shim.INTERFACE)
    real = types.ModuleType(names[0])
    real.__spec__ = importlib.machinery.ModuleSpec(names[0], None)
    real.__path__ = []
    interface = types.ModuleType(names[1])
    for name in ("forward", "backward", "varlen_forward", "varlen_backward"):
        setattr(interface, f"_flash_attn_{name}", print)
    if there != "nothing":
        monkeypatch.setitem(sys.modules, names[0], real)
    if there == "flash_attn":
        monkeypatch.setitem(sys.modules, names[1], interface)
    before = {name: sys.modules.get(name) for name in names}
    package = flash_attn_shim.load()
    bound = package.zigzag_ring_flash_attn_varlen._flash_attn_varlen_forward
    assert bound is (print if there == "flash_attn" else flash_attn_shim.varlen_forward)
    assert {name: sys.modules.get(name) for name in names} == before
    assert flash_attn_shim.load() is package


# Which cases they take.


@pytest.mark.parametrize(
    ("provider", "axes", "why"),
    [
        ("ring_flash_attn_zigzag", {}, None),
        ("ring_flash_attn_zigzag", {"documents": "five", "least": 1}, None),
        ("ring_flash_attn_zigzag", {"documents": "five", "least": 500}, "here 3 of 5 are whole"),
        ("ring_flash_attn_zigzag", {"order": "contiguous"}, "rows in zigzag order"),
        ("ring_flash_attn_zigzag", {"world": 1}, "for several ranks"),
        ("ring_flash_attn_zigzag", {"dtype": "fp32"}, "takes bf16 and fp16, not fp32"),
        ("ring_flash_attn_zigzag", {"D": 12}, "multiples of 8 up to 256, not 12"),
        ("ring_flash_attn_llama3", {"order": "contiguous", "documents": "corpus"}, None),
        ("ring_flash_attn_llama3", {}, "rows in contiguous order"),
        ("torch_context_parallel", {}, None),
        ("torch_context_parallel", {"N": 8190}, "one document in zigzag order, of a multiple"),
        ("torch_context_parallel", {"documents": "two"}, "one document in zigzag order"),
        ("torch_context_parallel", {"order": "contiguous"}, "one document in zigzag order"),
        ("torch_context_parallel", {"world": 1}, "for several ranks"),
        ("triton_fused", {"order": "contiguous"}, "our kernels have rows in zigzag order"),
    ],
)
def test_each_takes_what_it_can_and_says_why_not(
    provider: str, axes: dict[str, Any], why: str | None
) -> None:
    known = {"world": 2, "N": 8192, "Hq": 4, "Hk": 2, "D": 64, "dtype": "bf16"}
    case = ParallelCase.from_axes(known | axes)
    said = FAMILY.provider(provider).unsupported(case, H200)
    assert said is None if why is None else why in (said or "")


def test_context_parallel_is_refused_on_a_cpu() -> None:
    case = ParallelCase.from_axes({"world": 2, "N": 8192, "Hq": 4, "Hk": 2, "D": 64})
    said = peers.context_parallel_takes(case, Device("cpu", "cpu"))
    assert said == "context_parallel has operators of GPUs alone"


@pytest.mark.parametrize("world", [2, 4])
def test_rows_of_pytorchs_load_balancer_are_those_of_zigzag_order(world: int) -> None:
    from torch.distributed.tensor.experimental._context_parallel import _load_balancer

    N = 16 * world
    case = ParallelCase.from_axes({"world": world, "N": N, "Hq": 1, "Hk": 1, "D": 8, "least": 1})
    [order] = _load_balancer._HeadTailLoadBalancer(N, world, "cpu")._generate_indices()
    rows = [case.layout.rows(rank) for rank in range(world)]
    assert torch.equal(torch.cat(rows), order.long())


# What they answer.


def _sdpa_of_a_gpu(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """What PyTorch makes of SDPA on a GPU."""
    o: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, True)[0]
    return o


def _heads_last(*tensors: Tensor) -> list[Tensor]:
    return [x.transpose(1, 2) for x in tensors]


def _flash(query: Any, key: Any, value: Any, is_causal: bool, **rest: Any) -> tuple[Any, ...]:
    """That operator on a CPU."""
    q, k, v = _heads_last(query, key, value)
    how = {"softmax_scale": q.shape[-1] ** -0.5, "causal": is_causal}
    o, lse, *_ = flash_attn_shim.forward(q, k, v, **how)
    seed = [torch.zeros(shape, dtype=torch.uint64) for shape in (2, ())]
    return o.transpose(1, 2), lse, None, None, q.shape[1], k.shape[1], *seed, q.new_empty(0)


def _flash_backward(grad_out: Any, query: Any, key: Any, value: Any, **rest: Any) -> list[Tensor]:
    tensors = _heads_last(grad_out, query, key, value, rest["out"])
    written = {f"d{n}": torch.empty_like(x) for n, x in zip("qkv", tensors[1:4], strict=True)}
    how = {"softmax_scale": query.shape[-1] ** -0.5, "causal": rest["is_causal"]}
    flash_attn_shim.backward(*tensors, rest["logsumexp"], **how, **written)
    return _heads_last(*written.values())


def _in_context(rank: int, ranks: int) -> None:
    from torch.distributed.tensor.experimental._context_parallel import _attention as torchs

    forward, backward = torchs._templated_ring_attention, torchs._templated_ring_attention_backward
    torchs._templated_ring_attention = lambda g, s, op, *a, **o: forward(g, s, _flash, *a, **o)
    torchs._templated_ring_attention_backward = lambda g, s, op, *a, **o: backward(
        g, s, _flash_backward, *a, **o
    )
    _sdpa_of_a_gpu.__name__ = "scaled_dot_product_attention"  # by which it is replaced
    torch.nn.functional.scaled_dot_product_attention = _sdpa_of_a_gpu
    N = 8 * ranks
    axes = {"world": ranks, "N": N, "Hq": 4, "Hk": 2, "D": 16, "dtype": "fp32", "least": 1}
    case = ParallelCase.from_axes(axes)
    call = peers.context_parallel(case, None)
    for seed in (0, 1):
        q, k, v, do = drawn(N, seed)
        wanted = exact((q, k, v, do), [N], True)
        shards = [case.layout.shard(x, rank).requires_grad_() for x in (q, k, v)]
        local = dict(zip("qkv", shards, strict=True))
        with torch.no_grad():
            alone = call(local)
        o = call(local)
        graph = torch.autograd.grad(o, shards, case.layout.shard(do, rank), retain_graph=True)
        again = torch.autograd.grad(o, shards, case.layout.shard(do, rank))
        assert torch.equal(o, alone)
        assert all(map(torch.equal, graph, again))
        for one, other in zip((o, *graph), wanted, strict=True):
            right = case.layout.shard(other, rank)
            torch.testing.assert_close(one.double(), right, rtol=0, atol=1e-5)
    assert torch.nn.functional.scaled_dot_product_attention is _sdpa_of_a_gpu


def test_context_parallel_answers_in_zigzag_order_and_leaves_sdpa_alone() -> None:
    """With operators of a GPU that this test brings to the CPU."""
    together(_in_context, 2)


@INSTALLED
@pytest.mark.slow
def test_ring_flash_attn_over_two_ranks_is_proven(tmp_path: Path) -> None:
    shape = {"world": 2, "Hq": 4, "Hk": 2, "D": 16}
    zigzag, llama3 = (["baseline", f"ring_flash_attn_{path}"] for path in ("zigzag", "llama3"))
    cases = [
        {"N": 40, "dtype": "fp16", "least": 1, "providers": zigzag},
        {
            "N": 43,
            "dtype": "bf16",
            "least": 1,
            "documents": "uneven",
            "providers": zigzag,
        },  # padded
        {"N": 44, "dtype": "fp16", "order": "contiguous", "documents": "five", "providers": llama3},
    ]
    cases = [shape | case for case in cases]
    families = {"zigzag_parallel": {"modes": ["fwd", "bwd"], "cases": cases}}
    path = tmp_path / "two.yaml"
    path.write_text(json.dumps({"name": "two", "device": "cpu", "families": families}))
    words = [sys.executable, "-m", "kernelbench", "check", str(path), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    records = json.loads(done.stdout)
    assert [record["status"] for record in records] == ["ok"] * 12, done.stdout + done.stderr
