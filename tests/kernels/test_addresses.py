"""Tensors whose tokens lie so far apart that offsets pass 32 bits, against contiguous copies.

On a CPU they are views of a file with holes; on a GPU they take 13 GB. What a product of 32 bits
would read lies in the same memory, in front of them, so that it gives another answer, not a crash.
"""

import pytest
import torch

from kernelbench.kernels.attention.backward import (
    Gradients,
    deltas_launch,
    keys_launch,
    queries_launch,
)
from kernelbench.kernels.attention.forward import Forward, forward_launch
from kernelbench.kernels.attention.places import Packed
from kernelbench.kernels.attention.tiles import statistic_of
from kernelbench.kernels.dilated_attention import dilated_attention
from kernelbench.kernels.launch import Target, described_for
from kernelbench.kernels.projection import ProjectionConfig, project_and_skip
from kernelbench.kernels.rcm_attention import rcm_attention, rcm_attention_unfused
from kernelbench.kernels.rcm_int8 import rcm_attention_int8
from kernelbench.kernels.rms_norm import rms_norm
from kernelbench.kernels.rotary import apply_rotary
from kernelbench.kernels.swiglu import swiglu
from kernelbench.kernels.zigzag_attention import zigzag_attention

TOKENS, APART = 64, 1 << 26  # elements from a token to the next: half of the offsets pass 2^31
FRONT = 1 << 31  # elements before the first token: 32 bits reach no further down
SLOT = 1 << 12  # elements of a token in each of the tensors


@pytest.fixture(scope="module")
def memory(device, tmp_path_factory):
    size = FRONT + TOKENS * APART
    if device == "cpu":
        path = tmp_path_factory.mktemp("holes") / "memory"
        yield torch.from_file(str(path), shared=True, size=size, dtype=torch.float16)
        path.unlink()
        return
    if torch.cuda.mem_get_info()[0] < 3 * size:
        pytest.skip("needs 20 GB of free GPU memory")
    yield torch.zeros(size, dtype=torch.float16, device=device)
    torch.cuda.empty_cache()


@pytest.fixture
def spread(memory):
    """Copies of tensors (B,64,..) or (64,..), one token of each far from the next."""

    def spread(*tensors):
        copies = []
        for slot, tensor in enumerate(tensors):
            axis = 0 if tensor.dim() < 3 else 1
            strides = list(tensor[:, :1].contiguous().stride() if axis else tensor.stride())
            assert tensor.shape[axis] == TOKENS and tensor.numel() // TOKENS <= SLOT
            strides[axis] = APART
            copy = memory.view(tensor.dtype).as_strided(tensor.shape, strides, FRONT + slot * SLOT)
            copies.append(copy.copy_(tensor))
        return copies

    return spread


def draw(*shape, device):
    return torch.randn(*shape, device=device).half()


def attention(B, H, D, device):
    torch.manual_seed(D)
    inputs = [draw(B, TOKENS, H, D, device=device) for _ in "qkv"]
    return [*inputs, draw(B, TOKENS, H * D, device=device)], torch.rand(B, device=device) + 0.3


def packed_attention(q, k, v, do, starts):
    """o, dq, dk and dv of sequences one after another."""
    place = Packed(starts, starts, len(starts) - 1, TOKENS)
    o = torch.empty(1, TOKENS, q.shape[2] * q.shape[3], dtype=q.dtype, device=q.device)
    lse, delta = statistic_of(q), statistic_of(q)
    how = {"scale": 0.3, "causal": True, "place": place, "blocks": (16, 16, 4, 1)}
    forward_launch(Forward(q, k, v, o, lse), **how).run()
    deltas_launch(do, q, o, delta, None).run()
    grads = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v)]
    tensors = Gradients(do, q, k, v, lse, delta, o)
    queries_launch(tensors, grads[0], **how).run()
    keys_launch(tensors, *grads[1:], **how).run()
    return o, *grads


def test_where_packed_sequences_begin(spread, device):
    (q, k, v, do), _ = attention(1, 2, 16, device)
    starts = torch.tensor([0, 20, 47, TOKENS], dtype=torch.int32, device=device)
    near = packed_attention(q, k, v, do, starts)
    far = packed_attention(*spread(q, k, v, do), starts)
    for found, expected in zip(far, near, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "order, early, late",
    [("sequence", [20, 32], [20, 32]), ("zigzag", [20, 32], [20, 32]), ("sequence", [TOKENS], [0])],
    ids=["sequence", "zigzag", "whole"],  # of one that is whole a tile has more than 32 rows
)
def test_chunks_of_documents(order, early, late, spread, device):
    q0, q1, k, v, do = (draw(1, TOKENS, 2, 16, device=device) for _ in range(5))
    starts = [torch.tensor([0, *ends], dtype=torch.int32, device=device) for ends in (early, late)]
    numbers = {"chunk_idx_0": 0, "chunk_idx_1": 1, "total_chunks": 2, "kv_order": order}
    T0, T1 = early[-1], late[-1]

    def found(q0, q1, k, v, do):
        q0, q1, k, v, do = (x[0] for x in (q0, q1, k, v, do))
        leaves = [x.detach().requires_grad_() for x in (q0[:T0], q1[:T1], k, v)]
        o0, o1, *_ = zigzag_attention(*leaves, *starts, starts[0] + starts[1], **numbers)
        return o0, o1, *torch.autograd.grad((o0, o1), leaves, (do[:T0], do[TOKENS - T1 :]))

    far = spread(q0, q1, k, v, do)
    for got, expected in zip(found(*far), found(q0, q1, k, v, do), strict=True):
        torch.testing.assert_close(got, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("order", ["identity", "random"])
def test_rows_of_branches(order, spread, device):
    q, k, v, do = (draw(1, TOKENS, 1, 16, device=device) for _ in "qkvd")

    def found(q, k, v, do):
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        o = dilated_attention(*leaves, [64, 40], [5, 1], order=order, causal=True)
        return o, *torch.autograd.grad(o, leaves, do)

    for got, expected in zip(found(*spread(q, k, v, do)), found(q, k, v, do), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("function", "D", "causal"),
    [
        (rcm_attention, 32, False),
        (rcm_attention, 64, False),
        (rcm_attention, 128, True),
        (rcm_attention_unfused, 32, True),
        (rcm_attention_int8, 32, True),
        (rcm_attention_int8, 128, False),
    ],
)
def test_attention(function, D, causal, spread, device):
    inputs, t = attention(2, 2, D, device)
    expected = function(*inputs, t, causal=causal)
    assert torch.equal(function(*spread(*inputs), t, causal=causal), expected)


@pytest.mark.parametrize("D", [32, 128])
def test_gradients_of_attention(D, spread, device):
    inputs, t = attention(2, 2, D, device)
    dy = draw(*inputs[3].shape, device=device)

    def gradients(*inputs, dy):
        leaves = [tensor.detach().requires_grad_() for tensor in (*inputs, t)]
        return torch.autograd.grad(rcm_attention(*leaves), leaves, dy)

    *wide, wide_dy = spread(*inputs, dy)
    assert wide_dy.stride(1) == APART
    for got, expected in zip(gradients(*wide, dy=wide_dy), gradients(*inputs, dy=dy), strict=True):
        torch.testing.assert_close(got, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    "config",
    [None, ProjectionConfig(64, 32, 32, 4, 2), ProjectionConfig(32, 32, 32, 4, 2)],
    ids=["chosen", "64 rows", "32 rows"],
)
def test_projection(config, spread, device):
    torch.manual_seed(0)
    a, x = (draw(2, TOKENS, 64, device=device) for _ in "ax")
    weight, bias, t = draw(64, 64, device=device), draw(64, device=device), torch.rand(2).to(device)
    dy = draw(2, TOKENS, 64, device=device)

    def found(a, x, dy):
        leaves = [tensor.detach().requires_grad_() for tensor in (a, weight, bias, x, t)]
        y = project_and_skip(*leaves, config=config)
        return y, *torch.autograd.grad(y, leaves, dy)

    for got, expected in zip(found(*spread(a, x, dy)), found(a, x, dy), strict=True):
        torch.testing.assert_close(got, expected, rtol=2e-3, atol=2e-3)


def test_times_of_a_projection(spread, device):
    a, x = (draw(TOKENS, 16, 16, device=device) for _ in "ax")
    weight, t = draw(16, 16, device=device), torch.rand(TOKENS, device=device).half() + 0.3
    config = ProjectionConfig(16, 16, 16, 4, 2)
    wide = spread(t[:, None])[0][:, 0]
    assert wide.stride() == (APART,)
    y, expected = (project_and_skip(a, weight, None, x, t, config=config) for t in (wide, t))
    assert torch.equal(y, expected)


def test_rotary_and_rms_norm(spread, device):
    q, k = (draw(1, TOKENS, 2, 16, device=device) for _ in "qk")
    angles = torch.rand(TOKENS, 8, device=device)
    given = q, k, angles.cos(), angles.sin()
    for got, expected in zip(
        apply_rotary(*spread(q, k), *given[2:]), apply_rotary(*given), strict=True
    ):
        assert torch.equal(got, expected)
    x, residual = (draw(TOKENS, 256, device=device) for _ in "xr")
    weight = draw(256, device=device)
    wide = spread(x, residual)
    assert torch.equal(rms_norm(wide[0], weight), rms_norm(x, weight))
    for got, expected in zip(
        rms_norm(wide[0], weight, residual=wide[1]),
        rms_norm(x, weight, residual=residual),
        strict=True,
    ):
        assert torch.equal(got, expected)


def test_swiglu(spread, device):
    given = [draw(TOKENS, 256, device=device) for _ in "gud"]

    def found(gate, up, dy):
        y, gradients = torch.func.vjp(swiglu, gate, up)
        return swiglu(gate), y, *gradients(dy)

    for got, expected in zip(found(*spread(*given)), found(*given), strict=True):
        assert torch.equal(got, expected)


def test_only_what_needs_64_bits_is_compiled_for_them():
    """Also for outputs, which are contiguous, of very many heads."""

    def wide(apart, heads):
        shape, strides = (1, 128, heads, 32), (0, apart, 32, 1)
        q = torch.empty_strided(shape, strides, dtype=torch.float16, device="meta")
        with described_for(Target("sm_80", 108)) as launches, torch.no_grad():
            rcm_attention(q, q, q, None, None, parametrization="none")
        return launches[0].constexprs["WIDE"]

    assert not wide(32, 1) and not wide(1 << 23, 1)
    assert wide(1 << 24, 1) and wide(0, 1 << 19)
