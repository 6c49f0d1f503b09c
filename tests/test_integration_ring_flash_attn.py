"""The patch of ring_flash_attn: of its forks' zigzag llama3 path, on a stub with its function; of
the released package itself, over what stands in for flash_attn, on ranks of the CPU."""

import importlib.util
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.multiprocessing
from gloo import drawn, exact, together
from torch import Tensor

from kernelbench.families.zigzag_parallel import flash_attn_shim
from kernelbench.integrations.ring_flash_attn import (
    NAMES,
    Flags,
    WrongAttentionError,
    patch,
    released,
)
from kernelbench.parallel import ZigzagLayout


def own(
    chunk_q_list: list[Tensor],
    chunk_cu_seqlens_q_list: list[Tensor],
    chunk_indices_list: list[Tensor],
    kv_buffer: Tensor,
    kv_slices: Any,
    nheads: int,
    head_dim: int,
    softmax_scale: float,
    dropout_p: float,
    causal: bool,
    window_size: tuple[int, int],
    alibi_slopes: Any,
    deterministic: bool,
    world_size: int,
    cu_seqlens_k: Tensor,
    use_triton_kernel: bool = True,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """The stub's: each group of queries to the keys of its slices, in order of documents."""
    order = in_order([n * world_size for n in cu_seqlens_k.diff().tolist()], world_size)
    keys = torch.empty_like(kv_buffer)
    keys[:, order] = kv_buffer
    rows = sum(map(len, chunk_q_list))
    out, lse = torch.zeros(rows, nheads, head_dim), torch.zeros(nheads, rows)
    groups = zip(chunk_q_list, chunk_cu_seqlens_q_list, chunk_indices_list, kv_slices, strict=True)
    for q, starts, places, (ranges, _) in groups:
        parts = q.split(starts.diff().tolist()), places.split(starts.diff().tolist())
        for q_s, place, (start, end) in zip(*parts, ranges, strict=True):
            k, v = (x.repeat_interleave(nheads // x.shape[1], 1) for x in keys[:, start:end])
            score = torch.einsum("nhd,mhd->hnm", q_s, k) * softmax_scale
            later = torch.ones(score.shape[1:]).triu(1 + len(k) - len(q_s)).bool()
            score = score.masked_fill(later, -torch.inf) if causal else score
            out[place] = torch.einsum("hnm,mhd->nhd", score.softmax(-1), v)
            lse[:, place] = score.logsumexp(-1)
    return out, lse, {"kv_slices": kv_slices}


def in_order(lengths: list[int], ranks: int) -> Tensor:
    """Which row, in order, each row is in the order of ranks."""
    order = []
    for rank in range(ranks):
        start = 0
        for length in lengths:
            c = length // (2 * ranks)
            order += [start + n * c + torch.arange(c) for n in (rank, 2 * ranks - 1 - rank)]
            start += length
    return torch.cat(order)


def arguments(rank: int, ranks: int, lengths: list[int]) -> tuple[Any, ...]:
    """As the package calls it. lengths: of a rank's rows of each document."""
    torch.manual_seed(rank)
    H, G, D = 4, 2, 16
    chunks = [n // 2 for n in lengths]
    starts = torch.tensor([0, *chunks]).cumsum(0, dtype=torch.int32)
    places = torch.arange(sum(lengths)).split([c for c in chunks for _ in range(2)])
    slices = []
    for number in (rank, 2 * ranks - 1 - rank):
        begins = [ranks * sum(lengths[:s]) for s in range(len(lengths))]
        ends = [(number + 1) * c for c in chunks]
        ranges = [(start, start + end) for start, end in zip(begins, ends, strict=True)]
        slices.append((ranges, torch.tensor([0, *ends]).cumsum(0, dtype=torch.int32)))
    q = [torch.randn(sum(chunks), H, D) for _ in range(2)]
    kv = torch.randn(2, ranks * sum(lengths), G, D)
    local = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
    indices = [torch.cat(places[::2]), torch.cat(places[1::2])]
    rest = H, D, D**-0.5, 0.0, True, (-1, -1), None, False, ranks, local
    return q, [starts, starts], indices, kv, slices, *rest


@pytest.fixture
def package() -> types.ModuleType:
    module = types.ModuleType("stub")
    module.execute_grouped_attention = own  # type: ignore[attr-defined]
    return module


@pytest.mark.parametrize("rank, ranks", [(0, 2), (1, 2), (2, 3)])
def test_it_is_the_same_function_and_can_be_undone(
    rank: int, ranks: int, package: types.ModuleType
) -> None:
    given = arguments(rank, ranks, [12, 4])
    right = own(*given)
    patched = patch(package, Flags(verifies=True, profiles=True))
    found = package.execute_grouped_attention(*given, use_triton_kernel=False)
    for one, other in zip(found[:2], right[:2], strict=True):
        torch.testing.assert_close(one, other)
    assert found[2]["kv_slices"] is given[4] and package.execute_grouped_attention is not own
    patched.undo()
    assert package.execute_grouped_attention is own
    patched.undo()
    with patch(package):
        assert package.execute_grouped_attention is not own
    assert package.execute_grouped_attention is own


def test_what_differs_from_the_packages_own_raises(package: types.ModuleType) -> None:
    def wrong(*args: Any, **options: Any) -> Any:
        o, lse, info = own(*args, **options)
        return o * 1.001, lse, info

    package.execute_grouped_attention = wrong  # type: ignore[attr-defined]
    words = r"o differs from the package's own by 0\.001"
    with patch(package, Flags(verifies=True)), pytest.raises(WrongAttentionError, match=words):
        package.execute_grouped_attention(*arguments(0, 2, [8]))


def test_the_environment_says_what_is_wanted(
    package: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Flags.of({}) == Flags(True, False, False)
    monkeypatch.setenv("ZIGZAG_USE_FUSED_TRITON_V2", "0")
    with patch(package):
        assert package.execute_grouped_attention is own
    monkeypatch.setenv("ZIGZAG_USE_FUSED_TRITON_V2", "yes")
    with pytest.raises(ValueError, match="ZIGZAG_USE_FUSED_TRITON_V2 is 0 or 1, got 'yes'"):
        patch(package)


def test_what_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImportError, match=f"stub has none of the functions {', '.join(NAMES)}"):
        patch(types.ModuleType("stub"))
    monkeypatch.setitem(sys.modules, "ring_flash_attn", None)
    with pytest.raises(ImportError, match=r"ring_flash_attn cannot be imported \(.*pip install"):
        patch()


def test_what_our_kernels_do_not_have_is_refused(package: types.ModuleType) -> None:
    given = list(arguments(0, 2, [8]))
    given[10] = (128, 0)
    with patch(package), pytest.raises(NotImplementedError, match="no window_size"):
        package.execute_grouped_attention(*given)


# The released package.

INSTALLED = pytest.mark.skipif(
    importlib.util.find_spec("ring_flash_attn") is None, reason="ring_flash_attn is not installed"
)
# Which of its functions, the lengths of documents, the dtype, how keys travel.
Released = tuple[str, list[int], torch.dtype, str]
FEW: list[Released] = [("varlen_func", [12, 4], torch.float16, "all_gather")]
EVERY = [Flags(), Flags(verifies=True)]
NAMED = ("o", "dq", "dk", "dv")
MANY: list[Released] = [
    ("func", [24, 24, 24], torch.float16, "all_gather"),
    ("kvpacked_func", [16, 16], torch.float16, "p2p"),
    ("varlen_func", [24], torch.float32, "all_gather"),
    ("varlen_kvpacked_func", [24, 64, 8], torch.float16, "all_gather"),
    ("varlen_qkvpacked_func", [40, 16], torch.float16, "p2p"),
    ("qkvpacked_func", [48], torch.float32, "all_gather"),
]


def released_call(package: Any, form: str, local: list[Tensor], lengths: list[int]) -> Tensor:
    """o of a rank's rows by one of the package's functions. lengths: of its rows."""
    q, k, v = local
    documents: tuple[Any, ...] = ()
    if form.startswith("varlen"):
        starts = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
        documents = starts, max(lengths)
    else:
        q, k, v = (x.unflatten(0, (len(lengths), -1)) for x in (q, k, v))
    tensors: tuple[Tensor, ...] = q, k, v
    if "qkvpacked" in form:
        tensors = (torch.stack([q, k, v], -3),)
    elif "kvpacked" in form:
        tensors = q, torch.stack([k, v], -3)
    function = getattr(package, f"zigzag_ring_flash_attn_{form}")
    o: Tensor = function(*tensors, *documents, causal=True)
    return o.reshape(local[0].shape)


def apart(one: Tensor, other: Tensor) -> float:
    return ((one.double() - other.double()).norm() / other.double().norm()).item()


def _right_on_a_rank(
    package: Any, rank: int, ranks: int, case: Released, flags: list[Flags]
) -> None:
    form, lengths, dtype, comm = case
    layout = ZigzagLayout(tuple(lengths), (None,) * len(lengths), ranks)
    q, k, v, do = (x.to(dtype) for x in drawn(sum(lengths), seed=len(lengths)))
    if "qkvpacked" in form:
        q, do = q[:, :2], do[:, :2]
    right = [layout.shard(x, rank) for x in exact((q, k, v, do), lengths, True)]

    def answer() -> list[Tensor]:
        local = [layout.shard(x, rank).requires_grad_() for x in (q, k, v)]
        o = released_call(package, form, local, [n // ranks for n in lengths])
        return [o, *torch.autograd.grad(o, local, layout.shard(do, rank))]

    theirs, modules = answer(), [package.zigzag_ring_flash_attn]
    modules.append(package.zigzag_ring_flash_attn_varlen)
    originals = [modules[0].ZigZagRingFlashAttnFunc, modules[1].ZigZagRingFlashAttnVarlenFunc]
    budget, in_fp32 = (2e-3, False) if dtype is torch.float16 else (2e-6, True)
    # In fp32, which flash_attn does not take, the package adds gradients to what it overwrites.
    for each in flags[:1] if in_fp32 else flags:
        with patch(flags=each, cp_comm_type=comm):
            ours = answer()
            assert isinstance(modules[0].ZigZagRingFlashAttnFunc, released.Zigzag)
        for name, one, other, oracle in zip(NAMED, ours, theirs, right, strict=True):
            assert apart(one, oracle) < budget, (case, each, name)
            assert (in_fp32 and name != "o") or apart(one, other) < budget, (case, each, name)
    assert modules[0].ZigZagRingFlashAttnFunc is originals[0]
    assert modules[1].ZigZagRingFlashAttnVarlenFunc is originals[1]


def _verification_finds(package: Any, rank: int, ranks: int) -> None:
    """What is wrong on rank 1 alone is raised on every rank: o, and gradients where o is right."""
    layout, ours = ZigzagLayout((8,), (None,), ranks), released.zigzag_attention_func

    def wrong_o(*args: Any, **options: Any) -> Tensor:
        return ours(*args, **options) * (1 + 0.02 * (rank == 1))

    def wrong_gradients(q: Tensor, *args: Any, **options: Any) -> Tensor:
        return ours(q + 0.02 * (rank == 1) * (q - q.detach()), *args, **options)

    tensors = [layout.shard(x.half(), rank) for x in drawn(8, 3)]
    for name, wrong in (("o", wrong_o), ("dq", wrong_gradients)):
        local = [x.requires_grad_() for x in tensors[:3]]
        released.zigzag_attention_func = wrong  # type: ignore[assignment]
        with patch(flags=Flags(verifies=True)):
            try:
                o = released_call(package, "varlen_func", local, [8 // ranks])
                assert name != "o"
                torch.autograd.grad(o, local, tensors[3])
            except WrongAttentionError as error:
                assert f"{name} differs from the package's own by 0.02 of" in str(error), error
            else:
                raise AssertionError(f"{name} was not found wrong")
        released.zigzag_attention_func = ours


def _released(rank: int, ranks: int, cases: list[Released], flags: list[Flags]) -> None:
    package = flash_attn_shim.load()
    for case in cases:
        _right_on_a_rank(package, rank, ranks, case, flags)
    _verification_finds(package, rank, ranks)


@INSTALLED
@pytest.mark.parametrize(
    "ranks, cases, flags",
    [
        pytest.param(2, FEW, [Flags(profiles=True)], id="2"),
        pytest.param(2, MANY, EVERY, id="2 more", marks=pytest.mark.slow),
        pytest.param(4, MANY[-2:], EVERY, id="4", marks=pytest.mark.slow),
    ],
)
def test_released_zigzag_paths_are_the_same_functions(
    ranks: int, cases: list[Released], flags: list[Flags]
) -> None:
    together(_released, ranks, cases, flags)


@pytest.fixture
def released_package() -> Iterator[Any]:
    yield flash_attn_shim.load()
    for name in [name for name in sys.modules if name.partition(".")[0] == "ring_flash_attn"]:
        del sys.modules[name]


@INSTALLED
def test_what_released_paths_do_not_have_here_is_refused(released_package: Any) -> None:
    q = torch.randn(1, 8, 2, 16)
    refused: list[dict[str, Any]] = [
        {"dropout_p": 0.1},
        {"causal": False},
        {"window_size": (4, 0)},
        {"alibi_slopes": torch.ones(2)},
        {"return_attn_probs": True},
    ]
    with patch():
        for options in refused:
            [name] = options
            with pytest.raises(NotImplementedError, match=f"takes no {name}=.*: undo the patch"):
                released_package.zigzag_ring_flash_attn_func(q, q, q, **{"causal": True} | options)
        starts = torch.tensor([0, 3, 8], dtype=torch.int32)
        with pytest.raises(ValueError, match=r"an even number of rows, got \[3, 5\]"):
            released_package.zigzag_ring_flash_attn_varlen_func(
                *(q[0], q[0], q[0], starts, 5), causal=True
            )
