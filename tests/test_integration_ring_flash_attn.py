"""The patch of ring_flash_attn's zigzag llama3 path, on a stub with its function."""

import types
from typing import Any

import pytest
import torch
from torch import Tensor

from kernelbench.integrations.ring_flash_attn import (
    NAMES,
    Flags,
    WrongAttentionError,
    patch,
)


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


def test_what_is_not_there_is_said() -> None:
    with pytest.raises(ImportError, match=f"stub has none of the functions {', '.join(NAMES)}"):
        patch(types.ModuleType("stub"))
    with pytest.raises(ImportError, match="is in forks of ring_flash_attn"):
        patch()


def test_what_our_kernels_do_not_have_is_refused(package: types.ModuleType) -> None:
    given = list(arguments(0, 2, [8]))
    given[10] = (128, 0)
    with patch(package), pytest.raises(NotImplementedError, match="no window_size"):
        package.execute_grouped_attention(*given)
