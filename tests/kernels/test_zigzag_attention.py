"""`zigzag_attention` on every rank against attention of the whole documents in fp64: forward, lse,
gradients; how documents are cut, padded and ordered, and what is refused."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from kernelbench.kernels.launch import Repeats, Target, described_for
from kernelbench.kernels.zigzag_attention import (
    ZigzagConfig,
    zigzag_attention,
    zigzag_attention_kvpacked,
    zigzag_attention_qkvpacked,
)
from kernelbench.kernels.zigzag_attention.configs import configs
from kernelbench.kernels.zigzag_attention.lengths import chunk_rows, rows_of_chunk
from kernelbench.kernels.zigzag_attention.operator import _operator

FLOOR = {torch.float32: 1e-6, torch.float16: 2.5e-4, torch.bfloat16: 2e-3}
SLOW = pytest.mark.slow


class Sample(NamedTuple):
    """Of all documents, in order, without what is padded: inputs, upstream gradients, and what is
    right, in fp64."""

    q: Tensor
    k: Tensor
    v: Tensor
    do: Tensor
    dlse: Tensor
    o: Tensor
    lse: Tensor
    dq: Tensor
    dk: Tensor
    dv: Tensor


def sample(
    lengths: Sequence[int],
    H: int,
    G: int,
    D: int,
    dtype: torch.dtype,
    device: str,
    causal: bool = True,
    seed: int = 0,
) -> Sample:
    T = sum(lengths)
    generator = torch.Generator().manual_seed(seed)
    shapes = (T, H, D), (T, G, D), (T, G, D), (T, H, D), (H, T)
    drawn = [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]
    return Sample(*drawn, *right(*drawn, lengths, causal))


def right(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    do: Tensor,
    dlse: Tensor,
    lengths: Sequence[int],
    causal: bool,
) -> tuple[Tensor, ...]:
    """o, lse, dq, dk and dv in fp64."""
    q, k, v = (x.double().requires_grad_() for x in (q, k, v))
    H, D = q.shape[1:]
    shared = (x.repeat_interleave(H // k.shape[1], 1).split(lengths) for x in (k, v))
    os, lses = [], []
    for q_s, k_s, v_s in zip(q.split(lengths), *shared, strict=True):
        score = torch.einsum("nhd,mhd->hnm", q_s, k_s) / D**0.5
        if causal:
            later = torch.ones_like(score[0], dtype=torch.bool).triu(1)
            score = score.masked_fill(later, -math.inf)
        os.append(torch.einsum("hnm,mhd->nhd", score.softmax(-1), v_s))
        lses.append(score.logsumexp(-1))
    o, lse = torch.cat(os), torch.cat(lses, 1)
    gradients = torch.autograd.grad((o, lse), (q, k, v), (do.double(), dlse.double()))
    return o.detach(), lse.detach(), *gradients


def close(found: Tensor, right: Tensor, dtype: torch.dtype, tolerance: float = 4) -> None:
    assert found.shape == right.shape and found.isfinite().all()
    error = (found.double() - right).norm()
    assert error <= tolerance * FLOOR[dtype] * right.norm().clamp(min=1)


def starts_of(lengths: Sequence[int], device: str) -> Tensor:
    ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return ends.to(device)


def cut_for(
    lengths: Sequence[int], W: int, rank: int, owners: Sequence[int | None], device: str
) -> tuple[Tensor, Tensor]:
    """cu_seqlens of both chunks; owners: who has a document as a whole, None where it is cut."""
    both = []
    for number in (rank, 2 * W - 1 - rank):
        rows = [rows_of_chunk(length, number, 2 * W) for length in lengths]
        for s, owner in enumerate(owners):
            if owner is not None:
                rows[s] = lengths[s] if owner == rank and number == rank else 0
        both.append(starts_of(rows, device))
    early, late = both
    return early, late


def spread(lengths: Sequence[int], W: int) -> Tensor:
    """Which row, in order, each row is in the order of ranks."""
    order = []
    for rank in range(W):
        for start, end in pairwise([0, *torch.tensor(lengths).cumsum(0).tolist()]):
            c = (end - start) // (2 * W)
            order += [
                torch.arange(start + number * c, start + (number + 1) * c)
                for number in (rank, 2 * W - 1 - rank)
            ]
    return torch.cat(order)


def check_all_ranks(
    s: Sample,
    lengths: Sequence[int],
    W: int,
    *,
    padded: Sequence[int] | None = None,
    zigzag: bool = False,
    owners: Sequence[int | None] = (),
    ranks: Sequence[int] | None = None,
    **options: Any,
) -> None:
    """o, lse, dq of every rank, or of `ranks`, and dk and dv summed over them. What is padded is
    NaN."""
    device, dtype = s.q.device, s.q.dtype
    room = lengths if padded is None else padded
    real = torch.cat(
        [
            torch.arange(length) + start
            for length, start in zip(lengths, starts_of(room, "cpu").tolist(), strict=False)
        ]
    )
    order = spread(room, W) if zigzag else torch.arange(sum(room))

    def lying(x: Tensor) -> Tensor:
        """In order, with what is padded."""
        full = x.new_full((sum(room), *x.shape[1:]), math.nan)
        full[real.to(device)] = x
        return full

    q, do, dlse = lying(s.q), lying(s.do), lying(s.dlse.T)
    is_real = torch.zeros(sum(room), dtype=torch.bool, device=device)
    is_real[real.to(device)] = True
    right_o, right_lse, right_dq = lying(s.o), lying(s.lse.T), lying(s.dq)
    sums = [torch.zeros_like(lying(x)).double() for x in (s.k, s.v)]
    asked = torch.zeros_like(is_real)  # rows of these ranks
    starts = starts_of(lengths, str(device))
    lies = None if padded is None else starts_of(padded, str(device))
    for rank in range(W) if ranks is None else ranks:
        early, late = cut_for(room, W, rank, owners, str(device))
        numbers = rank, 2 * W - 1 - rank
        rows = [
            chunk_rows(cu, starts if lies is None else lies, number, 2 * W)
            for cu, number in zip((early, late), numbers, strict=True)
        ]
        k, v = (lying(x)[order.to(device)].requires_grad_() for x in (s.k, s.v))
        qs = [q[each].requires_grad_() for each in rows]
        o0, o1, lse0, lse1 = zigzag_attention(
            *(*qs, k, v, early, late, starts),
            chunk_idx_0=numbers[0],
            chunk_idx_1=numbers[1],
            total_chunks=2 * W,
            cu_seqlens_padded=lies,
            kv_order="zigzag" if zigzag else "sequence",
            **options,
        )
        for each in rows:
            asked[each] = True
        upstream = [*(do[each] for each in rows), *(dlse[each].T for each in rows)]
        grads = torch.autograd.grad((o0, o1, lse0, lse1), (*qs, k, v), upstream)
        for o, lse, dq, each in zip((o0, o1), (lse0, lse1), grads[:2], rows, strict=True):
            here = is_real[each]
            close(o[here], right_o[each][here], dtype)
            close(lse[:, here].T, right_lse[each][here], dtype)
            close(dq[here], right_dq[each][here], dtype)
            assert not o[~here].any() and not dq[~here].any()
            assert (lse[:, ~here] == -math.inf).all()
        for total, grad in zip(sums, grads[2:], strict=True):
            total[order.to(device)] += grad.double()
    do, dlse = (
        x.masked_fill(~asked[real.to(device)][:, None], 0) for x in (s.do.flatten(1), s.dlse.T)
    )
    *_, dk, dv = right(
        s.q, s.k, s.v, do.view(s.do.shape), dlse.T, lengths, options.get("causal", True)
    )
    for total, wanted in zip(sums, (dk, dv), strict=True):
        close(total[is_real], wanted, dtype)
        assert not total[~is_real].any()


@pytest.fixture(
    params=[torch.float32, pytest.param(torch.float16, marks=SLOW), torch.bfloat16], ids=str
)
def dtype(request: Any, device: str) -> torch.dtype:
    if device == "cpu" and request.param is torch.bfloat16:
        pytest.skip("bf16 arithmetic is wrong in Triton's interpreter")
    return request.param


@pytest.mark.parametrize("W, rank", [(3, 1), (4, 2), (8, 5)])
def test_a_rank_of_more(W: int, rank: int, device: str) -> None:
    lengths = [2 * W, 0, 6 * W]
    s = sample(lengths, 4, 1, 16, torch.float32, device)
    check_all_ranks(s, lengths, W, zigzag=True, ranks=[rank])


@pytest.mark.parametrize("order", ["sequence", "zigzag"])
@pytest.mark.parametrize("W", [1, 2, *(pytest.param(W, marks=SLOW) for W in (3, 4, 8))])
def test_every_rank(W: int, order: str, dtype: torch.dtype, device: str) -> None:
    """GQA 4:1, chunks that are no multiple of any block, an empty document, one of 2W tokens."""
    lengths = [2 * W, 0, 10 * W, 6 * W]
    s = sample(lengths, 4, 1, 16, dtype, device)
    check_all_ranks(s, lengths, W, zigzag=order == "zigzag")


SEEDS = {
    "one": [8192],
    "uneven": [256, 7392, 544],
    "halves": [4096, 4096],
    "five": [3104, 3200, 1600, 160, 128],
}


@pytest.mark.parametrize("name", [*SEEDS])
def test_the_documents_of_the_benchmark(name: str, dtype: torch.dtype, device: str) -> None:
    """On a CPU every 32nd of their tokens, which no longer divide by 2W."""
    lengths = SEEDS[name] if device == "cuda" else [n // 32 for n in SEEDS[name]]
    H, G, D = (32, 8, 128) if device == "cuda" else (2, 1, 16)
    s = sample(lengths, H, G, D, dtype, device)
    check_all_ranks(s, lengths, 4, ranks=None if device == "cuda" else [1])


def test_five_heads(dtype: torch.dtype, device: str) -> None:
    lengths = [128, 1136, 2992] if device == "cuda" else [4, 35, 93]
    check_all_ranks(sample(lengths, 5, 5, 8, dtype, device), lengths, 8, ranks=[0, 7])


@pytest.mark.parametrize("W, lengths", [(2, [1, 2, 3, 5, 7, 33]), (3, [13, 4, 41]), (1, [1, 17])])
@pytest.mark.parametrize("causal", [True, False])
def test_lengths_that_are_no_multiple_lose_no_token(
    W: int, lengths: list[int], causal: bool, device: str
) -> None:
    s = sample(lengths, 2, 2, 16, torch.float32, device, causal)
    check_all_ranks(s, lengths, W, causal=causal)


@pytest.mark.parametrize("order", ["sequence", "zigzag"])
def test_padded_rows_may_hold_anything(order: str, device: str) -> None:
    lengths, padded = [5, 0, 24, 35, 1], [8, 4, 24, 40, 4]
    s = sample(lengths, 2, 1, 16, torch.float32, device)
    check_all_ranks(s, lengths, 2, padded=padded, zigzag=order == "zigzag")


def test_short_documents_are_given_whole_to_a_rank(device: str) -> None:
    lengths: list[int] = [40, 7, 3, 24, 9]
    s = sample(lengths, 2, 1, 16, torch.float32, device)
    check_all_ranks(s, lengths, 2, owners=[None, 0, 1, None, 1])


@pytest.mark.parametrize(
    "D", [24, 64, pytest.param(128, marks=SLOW), pytest.param(256, marks=SLOW)]
)
@pytest.mark.parametrize("causal", [True, False])
def test_head_sizes(D: int, causal: bool, device: str) -> None:
    s = sample([48, 80], 2, 1, D, torch.float32, device, causal)
    check_all_ranks(s, [48, 80], 2, ranks=[1], causal=causal)


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize(
    "D, narrow", [(64, False), *(pytest.param(D, True, marks=SLOW) for D in (64, 128))]
)
def test_every_config_that_a_tuner_may_pick(D: int, narrow: bool, number: int, device: str) -> None:
    """In 16 bits fp16 in the interpreter, whose bf16 is wrong."""
    arch, half = ("cpu", torch.float16) if device == "cpu" else ("sm_90", torch.bfloat16)
    known = configs(64, 256, 2, D, arch=arch, itemsize=2 if narrow else 4)
    assert len(known) <= 8
    if number >= len(known):
        pytest.skip(f"there are {len(known)}")
    s = sample([200, 56], 2, 1, D, half if narrow else torch.float32, device)
    check_all_ranks(s, [200, 56], 2, ranks=[1], config=known[number])


def test_a_tile_of_keys_is_read_once_for_both_chunks(device: str) -> None:
    """Shared or not, it is the same function; both see every kind of tile: whole, cut by the one
    diagonal, by the other, behind the early chunk's end."""
    s = sample([144], 1, 1, 16, torch.float32, device)
    for shared in (True, False):
        config = ZigzagConfig(16, 16, 4, 1, 16, 16, 4, 1, shared=shared)
        check_all_ranks(s, [144], 2, config=config)


def given(device: str, **others: Any) -> tuple[list[Any], dict[str, Any]]:
    """Documents of 8 and 4 keys, chunks 1 and 2 of 4."""
    shapes = (3, 2, 16), (3, 2, 16), (12, 1, 16), (12, 1, 16)
    tensors = dict(zip(("q0", "q1", "k", "v"), (torch.randn(s) for s in shapes), strict=True))
    tensors |= {"q0_starts": torch.tensor([0, 2, 3]), "q1_starts": torch.tensor([0, 2, 3])}
    tensors |= {"k_starts": torch.tensor([0, 8, 12])}
    tensors = {
        name: (x if x.is_floating_point() else x.int()).to(device) for name, x in tensors.items()
    }
    options = {"chunk_idx_0": 1, "chunk_idx_1": 2, "total_chunks": 4}
    for name, value in others.items():
        (tensors if name in tensors else options)[name] = value
    return [*tensors.values()], options


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"total_chunks": 3}, ValueError, "total_chunks as an even number"),
    ({"chunk_idx_0": 4}, ValueError, "chunk_idx_0 from 0 to total_chunks − 1, here 3, got 4"),
    ({"chunk_idx_1": -1}, ValueError, "chunk_idx_1 from 0"),
    ({"chunk_idx_0": 3}, ValueError, "chunk_idx_0 no greater than chunk_idx_1, got 3 and 2"),
    ({"deterministic": torch.tensor(True)}, TypeError, "takes deterministic as True or False"),
    ({"q1_starts": None}, TypeError, "takes cu_seqlens_q1 as a tensor, got NoneType"),
    ({"chunk_idx_1": 1.5}, TypeError, "chunk_idx_1 as a whole number, got float"),
    ({"softmax_scale": 0.0}, ValueError, "a positive, finite softmax_scale, got 0.0"),
    ({"kv_order": "ring"}, ValueError, "one of sequence, zigzag, got 'ring'"),
    ({"causal": torch.tensor(True)}, TypeError, "pass .item()"),
    ({"window_size": (128, 0)}, NotImplementedError, "has no window_size, got"),
    ({"alibi_slopes": torch.ones(2)}, NotImplementedError, "has no alibi_slopes"),
    ({"dropout_p": 0.1}, NotImplementedError, "has no dropout_p, got 0.1"),
    ({"local_k_slice": slice(0, 1)}, NotImplementedError, "has no local_k_slice"),
    ({"block_table": None}, TypeError, "has no argument 'block_table'"),
    ({"q0": torch.randn(3, 2, 8)}, ValueError, "of the same H and D"),
    ({"q0": torch.randn(1, 3, 2, 16)}, ValueError, r"takes q0 \(T0,H,D\)"),
    ({"q1": torch.randn(3, 3, 16)}, ValueError, "of the same H and D"),
    ({"k": torch.randn(12, 1, 16).half()}, TypeError, "of one dtype"),
    ({"v": torch.randn(11, 1, 16)}, ValueError, "takes q0"),
    ({"k": None}, TypeError, "takes k as a tensor, got NoneType"),
    ({"k_starts": torch.tensor([0, 8, 12])}, TypeError, "cu_seqlens_k of int32"),
    ({"q1_starts": torch.tensor([0, 3]).int()}, ValueError, r"cu_seqlens_q1 of shape \(S\+1,\)"),
    ({"q0_starts": torch.tensor([0, 2, 4]).int()}, ValueError, "cu_seqlens_q0 that ends at the"),
    ({"k_starts": torch.tensor([0, 9, 12]).int()}, ValueError, "document 0, of 9 keys, with 3"),
    ({"k_starts": torch.tensor([0, 14, 12]).int()}, ValueError, "cu_seqlens_k that does not fall"),
    ({"k_starts": torch.tensor([4, 8, 12]).int()}, ValueError, "cu_seqlens_k from 0 on, got 4"),
    (
        {"cu_seqlens_padded": torch.tensor([0, 6, 12]).int()},
        ValueError,
        "no longer than cu_seqlens_padded has room for, got 8 keys in 6 rows in document 0",
    ),
    ({"softmax_scale": math.inf}, ValueError, "a positive, finite softmax_scale, got inf"),
    ({"softmax_scale": 10**400}, ValueError, "a positive, finite softmax_scale"),
    ({"validate": torch.tensor(False)}, TypeError, "takes validate as True or False"),
    ({"window_size": np.array([-1, 4])}, NotImplementedError, "has no window_size"),
    ({"alibi_slopes": np.zeros(2)}, NotImplementedError, "has no alibi_slopes"),
    ({"kv_order": np.array(["zigzag"])}, ValueError, "takes kv_order as one of"),
    ({"total_chunks": 2**40}, ValueError, "total_chunks as an even number"),
    ({"q0": torch.randn(3, 0, 16), "q1": torch.randn(3, 0, 16)}, ValueError, "one or more"),
    (
        dict.fromkeys(("q0_starts", "q1_starts", "k_starts"), torch.tensor([0]).int()),
        ValueError,
        r"cu_seqlens_q0 of shape \(S\+1,\) for S documents, got \(1,\)",
    ),
    ({"config": 7}, TypeError, "a ZigzagConfig or None, got int"),
    ({"q0": torch.randn(3, 2, 16, device="meta")}, RuntimeError, "several devices"),
]


@pytest.mark.parametrize(
    "others, error, words", REFUSED, ids=[next(iter(each[0])) for each in REFUSED]
)
def test_what_it_does_not_take_is_said(
    others: dict[str, Any], error: type[Exception], words: str, device: str
) -> None:
    moved = {
        name: x.to(device) if isinstance(x, Tensor) and not x.is_meta else x
        for name, x in others.items()
    }
    tensors, options = given(device, **moved)
    with pytest.raises(error, match=words):
        zigzag_attention(*tensors, **options)


def test_keys_in_zigzag_order_need_a_multiple(device: str) -> None:
    tensors, options = given(device, kv_order="zigzag", k_starts=torch.tensor([0, 7, 12]).int())
    tensors[6] = tensors[6].to(device)
    with pytest.raises(ValueError, match="padded to a multiple of total_chunks, 4, got 7 rows"):
        zigzag_attention(*tensors, **options)


def test_values_are_read_once_for_a_tensor_or_always_or_never(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors, options = given(device)
    reads = []
    real = Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda x: reads.append(x) or real(x))
    for validate, wanted in ((False, 0), (None, 3), (None, 3), (True, 6), (False, 6)):
        zigzag_attention(*tensors, **options, validate=validate)
        assert len(reads) == wanted
    tensors[4] += 0  # written to
    zigzag_attention(*tensors, **options)
    assert len(reads) == 7
    tensors[4][-1] = 2
    with pytest.raises(ValueError, match="ends at the number of rows, 3, got 2"):
        zigzag_attention(*tensors, **options)


def test_neutral_values_of_what_it_does_not_have_are_taken(device: str) -> None:
    tensors, options = given(device)
    neutral = {"window_size": [-1, -1], "alibi_slopes": None, "dropout_p": 0, "local_k_slice": None}
    found = zigzag_attention(*tensors, **options, **neutral)
    assert all(map(torch.equal, found, zigzag_attention(*tensors, **options)))


def test_strided_and_inference_tensors_of_starts(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The former are read once, too; of the latter nobody sees writes."""
    tensors, options = given(device)
    for i in (4, 5, 6):
        tensors[i] = tensors[i].repeat_interleave(2)[::2]
    reads = []
    real = Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda x: reads.append(x) or real(x))
    for _ in range(3):
        zigzag_attention(*tensors, **options)
    assert len(reads) == 3
    with torch.inference_mode():
        tensors[4] = tensors[4] + 0
        zigzag_attention(*tensors, **options)
        tensors[4][-1] = 30
        with pytest.raises(ValueError, match="ends at the number of rows, 3, got 30"):
            zigzag_attention(*tensors, **options)


def test_results_may_be_written_in_place(device: str) -> None:
    tensors, options = given(device)
    for x in tensors[:4]:
        x.requires_grad_()
    for result in zigzag_attention(*tensors, **options):
        result.mul_(2)


def test_tiles_that_there_are_not_are_no_config() -> None:
    for changed in ({"stages": 0}, {"stages": 1.5}, {"block_m": 16.0}, {"warps": "4"}):
        known = dict(zip(ZigzagConfig.__dataclass_fields__, (16, 16, 4, 1) * 2, strict=False))
        with pytest.raises(
            ValueError, match=f"{next(iter(changed))} is .*, not a whole number, at least 1"
        ):
            ZigzagConfig(**known | changed)
    for D, size in ((257, 2), (64, 8)):
        with pytest.raises(ValueError, match=f"no tiles for heads of {D} elements of {size} bytes"):
            configs(64, 64, 1, D, arch="sm_90", itemsize=size)


def test_packed_forms(device: str) -> None:
    tensors, options = given(device)
    q0, q1, k, v, *starts = tensors
    right = zigzag_attention(*tensors, **options)
    found = zigzag_attention_kvpacked(q0, q1, torch.stack([k, v], 1), *starts, **options)
    assert all(map(torch.equal, found, right))
    with pytest.raises(ValueError, match=r"takes kv \(Tk,2,G,D\)"):
        zigzag_attention_kvpacked(q0, q1, k, *starts, **options)

    qkv = torch.randn(12, 3, 2, 16, device=device)
    rows = [2, 3, 9], [4, 5, 10]
    q, k, v = qkv.unbind(1)
    right = zigzag_attention(*(q[list(each)] for each in rows), k, v, *starts, **options)
    found = zigzag_attention_qkvpacked(qkv, *starts, **options)
    assert all(map(torch.equal, found, right))
    order = spread([8, 4], 2).to(device)
    found = zigzag_attention_qkvpacked(qkv[order], *starts, **options, kv_order="zigzag")
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other)
    with pytest.raises(ValueError, match=r"takes qkv \(Tk,3,H,D\)"):
        zigzag_attention_qkvpacked(q, *starts, **options)
    starts[2] = starts[2] + torch.tensor([0, 1, 0], dtype=torch.int32, device=device)
    with pytest.raises(ValueError, match="chunks 1 and 2 of 4 of document 0, of 9 keys"):
        zigzag_attention_qkvpacked(qkv, *starts, **options)
    for wrong, error in (
        (starts[2][:2], ValueError),
        (starts[2].float(), TypeError),
        (None, TypeError),
        (starts[2][0], ValueError),
        (starts[2] - 1, ValueError),
        (starts[2].to("meta"), RuntimeError),
    ):
        with pytest.raises(error, match="zigzag_attention"):
            zigzag_attention_qkvpacked(qkv, *starts[:2], wrong, **options)
    with pytest.raises(TypeError, match="takes qkv as a tensor, got NoneType"):
        zigzag_attention_qkvpacked(None, *starts, **options)  # type: ignore[arg-type]


def test_strides_and_one_tensor_twice(device: str) -> None:
    s = sample([24, 40], 2, 2, 16, torch.float32, device)
    wide = torch.randn(64, 4, 40, device=device)
    k = wide[:, ::2, 3:19]
    k.copy_(s.k)
    starts, cu = starts_of([24, 40], device), starts_of([6, 10], device)
    q = s.q[chunk_rows(cu, starts, 1, 4)].transpose(1, 2).contiguous().transpose(1, 2)
    options = {"chunk_idx_0": 1, "chunk_idx_1": 1, "total_chunks": 4}
    found = zigzag_attention(q, q, k, k, cu, cu, starts, **options)
    right = zigzag_attention(
        *(q.contiguous(), q.clone(), s.k, s.k.clone(), cu, cu.clone(), starts), **options
    )
    assert all(map(torch.equal, found, right))
    assert torch.equal(found[0], found[1])


def test_gradients_have_the_same_bits(device: str) -> None:
    tensors, options = given(device)
    leaves = [x.requires_grad_() for x in tensors[:4]]
    runs = []
    for _ in range(3):
        o0, o1, lse0, _ = zigzag_attention(*tensors, **options, deterministic=True)
        total = o0.square().sum() + o1.sum() + lse0.sum()
        runs.append(torch.autograd.grad(total, leaves))
    for again in runs[1:]:
        assert all(map(torch.equal, again, runs[0]))


def test_prepared_launches_serve_other_tensors(device: str) -> None:
    for seed in range(3):
        s = sample([24, 40], 2, 1, 64, torch.float32, device, seed=seed)
        check_all_ranks(s, [24, 40], 2, ranks=[1])


@pytest.mark.parametrize("arch", ["sm_90", "sm_80"])
def test_what_is_launched_for_a_gpu(arch: str) -> None:
    """One launch forward; δ of both, dk and dv, dq of both backward."""
    tensors, options = given("meta")
    for x in tensors[:4]:
        x.requires_grad_()
    with described_for(Target(arch, 132)) as launches:
        o0, o1, _, _ = zigzag_attention(*tensors, **options)
        torch.autograd.backward((o0, o1), (torch.empty_like(o0), torch.empty_like(o1)))
    names = [launch.kernel.__name__ for launch in launches]
    assert names == [
        *("attend_chunks", "find_deltas", "find_deltas"),
        *("differentiate_keys", "differentiate_chunks"),
    ]


def test_prepared_gradients_know_the_strides_of_what_was_saved(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hooks on saved tensors may change them: that is another launch."""
    tensors, options = given(device)
    kinds = []
    run = Repeats.run

    def watch(self: Repeats, kind: Any, *rest: Any) -> None:
        kinds.append(kind)
        run(self, kind, *rest)

    monkeypatch.setattr(Repeats, "run", watch)
    for turned in (False, True):
        leaves = [x.detach().requires_grad_() for x in tensors[:4]]
        turn = (lambda x: x.transpose(0, 1).contiguous().transpose(0, 1)) if turned else torch.clone
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x: x, lambda x, turn=turn: turn(x) if x.dim() == 3 else x
        ):
            o0, *_ = zigzag_attention(*leaves, *tensors[4:], **options)
        o0.sum().backward()
    forward, backward, forward_again, other = kinds
    assert forward == forward_again and backward != other


def test_compiled_it_still_checks_what_it_is_given(device: str) -> None:
    tensors, options = given(device)
    tensors[4] = torch.tensor([0, 1, 3], dtype=torch.int32, device=device)
    rest = [1, 2, 4], None, True, False, None, []
    with pytest.raises(ValueError, match="of document 0, of 8 keys, with 2 and 2 rows"):
        _operator(*tensors[:5], tensors[6], tensors[5], None, *rest)
    assert set(options) == {"chunk_idx_0", "chunk_idx_1", "total_chunks"}


def test_the_number_of_documents_may_be_dynamic(device: str) -> None:
    class Rank(torch.nn.Module):
        def forward(self, q0: Tensor, q1: Tensor, k: Tensor, starts: Tensor, all_: Tensor) -> Any:
            number = {"chunk_idx_0": 0, "chunk_idx_1": 3, "total_chunks": 4}
            return zigzag_attention(q0, q1, k, k, starts, starts, all_, **number)[:2]

    def drawn(*lengths: int) -> tuple[Tensor, ...]:
        chunks = torch.tensor([0, *lengths], device=device).cumsum(0).int() // 4
        T = int(chunks[-1])
        q0, q1, k = (torch.randn(n, 2, 16, device=device) for n in (T, T, 4 * T))
        return q0, q1, k, chunks, chunks * 4

    S, auto = torch.export.Dim("S", min=2), torch.export.Dim.AUTO
    sizes = {name: {0: auto} for name in ("q0", "q1", "k")} | {"starts": {0: S}, "all_": {0: S}}
    program = torch.export.export(Rank(), drawn(8, 16), dynamic_shapes=sizes).module()
    other = drawn(8, 4, 16, 12)
    assert all(map(torch.equal, program(*other), Rank()(*other)))
