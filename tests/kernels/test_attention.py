"""The core that attention kernels are hooks on: packed sequences, shared heads, other numbers of
keys than of queries, all against fp64."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import prefix_attention
import pytest
import torch
import triton
import triton.language as tl
from test_attention_function import right as exactly
from torch import Tensor

from kernelbench.kernels.attention.backward import (
    Gradients,
    deltas_launch,
    keys_launch,
    queries_launch,
    scale_launch,
)
from kernelbench.kernels.attention.forward import Forward, forward_launch
from kernelbench.kernels.attention.places import Packed
from kernelbench.kernels.attention.tiles import Hook, Rows, load_tile, statistic_of, store_tile
from kernelbench.kernels.launch import watched
from kernelbench.profile.touched.kernels import Kernels
from kernelbench.profile.touched.operators import Use

SCALE = 0.3
BLOCKS = (32, 16, 4, 1)
CAUSAL = pytest.mark.parametrize("causal", [False, True])
# Samples, queries, keys, heads, heads that share one of k and v, head size.
SHAPES = [
    (2, 40, 40, 2, 1, 16),
    (1, 40, 40, 4, 2, 32),
    (1, 33, 70, 4, 4, 16),
    (2, 70, 33, 2, 1, 40),
    (1, 1, 50, 2, 2, 16),
    (1, 50, 1, 2, 1, 16),
]
# Lengths among queries and among keys.
PACKED = [
    ((5, 0, 33, 1), (5, 0, 33, 1)),
    ((3, 64, 20), (70, 64, 7)),
    ((0, 0, 8), (4, 0, 8)),
    ((16,), (16,)),
    ((31, 1, 0, 32, 33), (1, 40, 3, 0, 33)),
]


def draw(shape: tuple[int, ...], device: str) -> tuple[Tensor, ...]:
    """q, k, v and the upstream gradient."""
    B, N, keys, H, group, D = shape
    generator = torch.Generator().manual_seed(N * keys)
    shapes = (B, N, H, D), *((B, keys, H // group, D),) * 2, (B, N, H * D)
    return tuple(torch.randn(*each, generator=generator).to(device) for each in shapes)


def right(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """o and its statistics in fp64; rows that see no key are zeros, and −∞."""
    o, lse = exactly(q, k, v, causal, scale=SCALE)
    return o.flatten(2), lse / math.log(2)


def forward(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    o = q.new_full((*q.shape[:2], q.shape[2] * q.shape[3]), math.nan)
    lse = statistic_of(q)
    launch = forward_launch(Forward(q, k, v, o, lse), scale=SCALE, blocks=BLOCKS, **options)
    launch.run()
    return o, lse


def backward(q: Tensor, k: Tensor, v: Tensor, do: Tensor, **options: Any) -> list[Tensor]:
    """dq, dk, dv, less what was there before where they add."""
    o, lse = forward(q, k, v, causal=options["causal"], place=options.get("place"))
    delta, before = statistic_of(q), 0.5 if options.get("adds") else math.nan
    deltas_launch(do, q, o, delta, None).run()
    dq, dk, dv = (torch.full_like(tensor, before) for tensor in (q, k, v))
    tensors = Gradients(do, q, k, v, lse, delta, o)
    options |= {"scale": SCALE, "blocks": (16, 32, 4, 1)}
    keys_launch(tensors, dk, dv, **options).run()
    queries_launch(tensors, dq, **options).run()
    return [tensor - before if options.get("adds") else tensor for tensor in (dq, dk, dv)]


def gradients(q: Tensor, k: Tensor, v: Tensor, do: Tensor, causal: bool) -> tuple[Tensor, ...]:
    leaves = [tensor.double().requires_grad_() for tensor in (q, k, v)]
    o, _ = right(*leaves, causal)
    return torch.autograd.grad(o, leaves, do.double())


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-5, atol=1e-5)


@CAUSAL
@pytest.mark.parametrize("shape", SHAPES)
def test_heads_may_share_keys_and_keys_be_more_or_fewer(
    shape: tuple[int, ...], causal: bool, device: str
) -> None:
    q, k, v, do = draw(shape, device)
    o, lse = forward(q, k, v, causal=causal)
    expected_o, expected_lse = right(q.double(), k.double(), v.double(), causal)
    close(o, expected_o)
    close(lse, expected_lse)
    expected = gradients(q, k, v, do, causal)
    for adds in (False, True):
        for found, wanted in zip(
            backward(q, k, v, do, causal=causal, adds=adds), expected, strict=True
        ):
            close(found, wanted)


def packed_draw(
    lengths: tuple[tuple[int, ...], tuple[int, ...]], device: str
) -> tuple[Packed, tuple[Tensor, ...]]:
    starts = [
        torch.tensor([0, *torch.tensor(each).cumsum(0)], dtype=torch.int32, device=device)
        for each in lengths
    ]
    rows, keys = map(sum, lengths)
    tensors = draw((1, rows, keys, 2, 2, 16), device)
    return Packed(*starts, len(lengths[0]), keys), tensors


@CAUSAL
@pytest.mark.parametrize(
    "lengths", [*PACKED[:1], *(pytest.param(each, marks=pytest.mark.slow) for each in PACKED[1:])]
)
def test_packed_sequences_know_nothing_of_each_other(
    lengths: tuple[tuple[int, ...], tuple[int, ...]], causal: bool, device: str
) -> None:
    """Neither of a neighbour's NaN."""
    place, (q, k, v, do) = packed_draw(lengths, device)
    starts = place.q_starts, place.k_starts
    o, lse = forward(q, k, v, causal=causal, place=place)
    found = backward(q, k, v, do, causal=causal, place=place)
    for number in range(len(lengths[0])):
        at, of_keys = (slice(s[number].item(), s[number + 1].item()) for s in starts)
        own = q[:, at], k[:, of_keys], v[:, of_keys]
        expected_o, expected_lse = right(*(tensor.double() for tensor in own), causal)
        close(o[:, at], expected_o)
        close(lse[:, :, at], expected_lse)
        expected = gradients(*own, do[:, at], causal)
        for gradient, part, wanted in zip(found, (at, of_keys, of_keys), expected, strict=True):
            close(gradient[:, part], wanted)
        others = [tensor.clone() for tensor in (q, k, v)]
        for tensor, part in zip(others, (at, of_keys, of_keys), strict=True):
            tensor[:, : part.start] = tensor[:, part.stop :] = math.nan
        again, _ = forward(*others, causal=causal, place=place)
        assert torch.equal(again[:, at], o[:, at])


@CAUSAL
@pytest.mark.parametrize("lengths", PACKED)
def test_nothing_beyond_the_tensors_is_read_or_written(
    lengths: tuple[tuple[int, ...], tuple[int, ...]], causal: bool
) -> None:
    """Programs for which there are no rows are among them."""
    if torch.cuda.is_available():
        pytest.skip("accesses are seen in the interpreter alone")
    place, tensors = packed_draw(lengths, "cpu")
    uses: list[Use] = []
    with watched(Kernels(uses.append)):
        backward(*tensors, causal=causal, place=place)
    assert {use.by.rpartition(".")[2] for use in uses} == {
        "attend",
        "find_deltas",
        "differentiate_keys",
        "differentiate_queries",
    }


@CAUSAL
@pytest.mark.parametrize("W", [1, *(pytest.param(W, marks=pytest.mark.slow) for W in (2, 3, 4, 8))])
def test_chunks_of_sequences_as_zigzag_cuts_them(W: int, causal: bool, device: str) -> None:
    """Rank r of W has chunks r and 2W−1−r of 2W of every sequence; keys are whole sequences."""
    chunks = (5, 0, 1, 17)  # tokens of a chunk of each sequence
    lengths = [2 * W * n for n in chunks]
    q, k, v, do = draw((1, sum(lengths), sum(lengths), 4, 2, 16), device)
    k_starts = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32, device=device)
    q_starts = torch.tensor([0, *torch.tensor(chunks).cumsum(0)], dtype=torch.int32, device=device)
    begins, parts = k_starts.tolist(), [x.double().requires_grad_() for x in (q, k, v)]
    whole = [
        right(*(x[:, start : start + n] for x in parts), causal)[0]
        for start, n in zip(begins, lengths, strict=False)
    ]
    expected_o = torch.cat(whole, 1)
    wanted = torch.autograd.grad(expected_o, parts, do.double())
    dk, dv = torch.zeros_like(k), torch.zeros_like(v)
    for rank in range(W):
        for chunk in (rank, 2 * W - 1 - rank):
            rows = [
                start + chunk * n + i
                for start, n in zip(begins, chunks, strict=False)
                for i in range(n)
            ]
            place = Packed(q_starts, k_starts, len(chunks), k.shape[1], chunk)
            given = q[:, rows], k, v
            o, _ = forward(*given, causal=causal, place=place)
            close(o, expected_o[:, rows])
            found = backward(*given, do[:, rows], causal=causal, place=place)
            close(found[0], wanted[0][:, rows])
            dk += found[1]
            dv += found[2]
    close(dk, wanted[1])
    close(dv, wanted[2])


def test_rows_behind_the_last_sequence_are_zeros_and_those_before_the_first_left_alone(
    device: str,
) -> None:
    q, k, v, do = draw((1, 80, 80, 2, 1, 16), device)
    starts = torch.tensor([40, 47, 60], dtype=torch.int32, device=device)
    place = Packed(starts, starts, 2, 80)
    for tensor in (forward(q, k, v, causal=True, place=place)[0], *backward(
        q, k, v, do, causal=True, place=place
    )):  # fmt: skip
        assert tensor[:, :40].isnan().all() and not tensor[:, 40:].isnan().any()
        assert (tensor[:, 60:] == 0).all()


class Added(NamedTuple):
    bias: Any
    factors: Any
    out: Any


@triton.jit
def _biased(added, o_MD, tile, KIND: tl.constexpr, work):
    """out = factor·O + bias."""
    bias_ptr, factor_ptr, out_ptr = added
    D: tl.constexpr = work.D
    stride = tile.H * D
    bias = Rows(bias_ptr + tile.out, stride, tile.N)
    bias_MD = load_tile(bias, tile.row, D, work.ROWS, work.BLOCK_D, work.RAGGED)
    result = Rows(out_ptr + tile.out, stride, tile.N)
    result_MD = tl.load(factor_ptr + tile.b) * o_MD + bias_MD
    store_tile(result, result_MD, tile.row, D, work.ROWS, work.BLOCK_D, work.RAGGED)


@triton.jit
def _factor(added, b, KIND: tl.constexpr):
    return tl.load(added.factors + b)


def test_an_operator_is_two_hooks(device: str) -> None:
    q, k, v, do = draw(SHAPES[0], device)
    bias, out = torch.randn_like(do), torch.full_like(do, math.nan)
    factors = torch.tensor([0.5, -2.0], device=device)
    added = Added(bias, factors, out)
    tensors = Forward(q, k, v, None, None)
    finish = Hook(_biased, added, "", (bias, out))
    forward_launch(tensors, scale=SCALE, causal=True, blocks=BLOCKS, finish=finish).run()
    o, _ = right(q.double(), k.double(), v.double(), True)
    close(out, factors[:, None, None] * o + bias)
    factor = Hook(_factor, added)
    expected = gradients(q, k, v, factors[:, None, None] * do, True)
    for found, wanted in zip(
        backward(q, k, v, do, causal=True, factor=factor), expected, strict=True
    ):
        close(found, wanted)
    total, dq = torch.randn(2, 2, 40, 16, device=device), torch.full_like(q, math.nan)
    scale_launch(total, dq, scale=SCALE, factor=factor, read=(do,)).run()
    close(dq, total.transpose(1, 2) * SCALE * factors[:, None, None, None])


def test_an_operator_of_a_mask_and_an_epilogue_of_its_own_takes_forty_lines(device: str) -> None:
    q, k, v, do = draw((1, 70, 70, 2, 1, 16), device)
    gate, out, prefix = torch.randn_like(do), torch.full_like(do, math.nan), 21
    mask, finish = prefix_attention.hooks(prefix, gate, out)
    how: dict[str, Any] = {"scale": SCALE, "causal": False, "mask": mask}
    o, lse = torch.empty_like(do), statistic_of(q)
    forward_launch(Forward(q, k, v, o, lse), blocks=BLOCKS, finish=finish, **how).run()
    place = torch.arange(70, device=device)
    seen = (place < prefix) | (place <= place[:, None])
    leaves = [tensor.double().requires_grad_() for tensor in (q, k, v)]
    score = torch.einsum("bnhd,bmhd->bhnm", *leaves[:2]) * SCALE
    weight = torch.softmax(score.masked_fill(~seen, -torch.inf), -1)
    right_o = torch.einsum("bhnm,bmhd->bnhd", weight, leaves[2]).flatten(2)
    close(out, right_o * gate)
    delta = statistic_of(q)
    deltas_launch(do, q, o, delta, None).run()
    grads = [torch.empty_like(tensor) for tensor in (q, k, v)]
    tensors = Gradients(do, q, k, v, lse, delta, o)
    keys_launch(tensors, *grads[1:], blocks=(16, 32, 4, 1), **how).run()
    queries_launch(tensors, grads[0], blocks=(16, 32, 4, 1), **how).run()
    for found, wanted in zip(grads, torch.autograd.grad(right_o, leaves, do.double()), strict=True):
        close(found, wanted)
    lines = Path(prefix_attention.__file__).read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line.strip()]) < 40


def test_what_is_to_be_summed_begins_as_zeros(device: str) -> None:
    q, k, v, do = draw(SHAPES[0], device)
    o, _ = forward(q, k, v, causal=False)
    delta, total = statistic_of(q), torch.full((2, 2, 40, 16), math.nan, device=device)
    deltas_launch(do, q, o, delta, total).run()
    assert torch.equal(total, torch.zeros_like(total))
    close(delta, (do * o).unflatten(2, (2, 16)).sum(3).transpose(1, 2))
