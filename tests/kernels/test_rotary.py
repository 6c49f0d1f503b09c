"""Rotary embedding against an fp64 oracle of its own, forward and backward."""

import pytest
import torch

from kernelbench.kernels.rotary import RotaryConfig, apply_rotary, configs

RELATIVE = {torch.float32: 3e-7, torch.float16: 1e-3, torch.bfloat16: 8e-3}


@pytest.fixture(params=[torch.float32, torch.float16, torch.bfloat16], ids=str)
def dtype(request, device):
    if device == "cpu" and request.param is torch.bfloat16:
        pytest.skip("bf16 arithmetic is wrong in Triton's interpreter")
    return request.param


def oracle(x_BSHD, cos, sin, interleaved):
    """Each pair as a complex number times exp(i·angle), in fp64."""
    x = x_BSHD.double()
    D = x.shape[-1]
    pairs = x.unflatten(-1, (D // 2, 2)) if interleaved else x.unflatten(-1, (2, D // 2)).mT
    turned = torch.view_as_complex(pairs.contiguous()) * torch.complex(
        cos.double(), sin.double()
    ).unsqueeze(-2)
    turned = torch.view_as_real(turned)
    return (turned if interleaved else turned.mT).flatten(-2)


def angles(*shape, device, dtype=torch.float32):
    angle = torch.rand(*shape, device=device) * 6.3
    return angle.cos().to(dtype), angle.sin().to(dtype)


def draw(B, S, H, D, dtype, device, storage="BSHD"):
    if storage == "BHSD":
        return torch.randn(B, H, S, D, device=device, dtype=dtype).transpose(1, 2)
    return torch.randn(B, S, H, D, device=device, dtype=dtype)


def close(got, expected):
    assert got.shape == expected.shape
    error = (got.double() - expected).abs().max() / expected.abs().max()
    assert error <= RELATIVE[got.dtype], float(error)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    ("B", "S", "HQ", "HK", "D"),
    [
        (1, 1, 1, 1, 2),
        (2, 7, 3, 1, 64),
        (1, 9, 8, 2, 48),
        (3, 5, 4, 4, 80),
        (1, 3, 12, 3, 96),
        (2, 4, 9, 5, 128),
        (1, 3, 2, 1, 256),
    ],
)
def test_forward_and_gradients(B, S, HQ, HK, D, interleaved, dtype, device):
    torch.manual_seed(D + S)
    q = draw(B, S, HQ, D, dtype, device).requires_grad_()
    k = draw(B, S, HK, D, dtype, device).requires_grad_()
    cos, sin = angles(S, D // 2, device=device)
    dq, dk = torch.randn_like(q), torch.randn_like(k)
    got = apply_rotary(q, k, cos, sin, interleaved=interleaved)
    grads = torch.autograd.grad(got, (q, k), (dq, dk))

    q64, k64 = q.detach().double().requires_grad_(), k.detach().double().requires_grad_()
    expected = tuple(oracle(x, cos, sin, interleaved) for x in (q64, k64))
    expected_grads = torch.autograd.grad(expected, (q64, k64), (dq.double(), dk.double()))
    for one, other in zip((*got, *grads), (*expected, *expected_grads), strict=True):
        assert one.dtype == dtype
        close(one, other)


@pytest.mark.parametrize("storage_q", ["BSHD", "BHSD"])
@pytest.mark.parametrize("storage_k", ["BSHD", "BHSD"])
def test_outputs_keep_the_strides_of_their_inputs(storage_q, storage_k, device):
    q = draw(2, 6, 4, 32, torch.float32, device, storage_q)
    k = draw(2, 6, 2, 32, torch.float32, device, storage_k)
    cos, sin = angles(6, 16, device=device)
    q_out, k_out = apply_rotary(q, k, cos, sin)
    assert (q_out.stride(), k_out.stride()) == (q.stride(), k.stride())
    close(q_out, oracle(q, cos, sin, False))
    close(k_out, oracle(k, cos, sin, False))


@pytest.mark.parametrize("table", [torch.float32, torch.float16])
def test_angles_of_each_sequence_in_either_dtype(table, device):
    q = draw(3, 5, 2, 16, torch.float16, device)
    k = draw(3, 5, 2, 16, torch.float16, device)
    cos, sin = angles(3, 5, 8, device=device, dtype=table)
    for got, x in zip(apply_rotary(q, k, cos, sin), (q, k), strict=True):
        close(got, oracle(x, cos, sin, False))


def test_one_row_of_angles_serves_every_sequence(device):
    q, k = (draw(3, 5, 2, 16, torch.float32, device) for _ in range(2))
    cos, sin = angles(1, 5, 8, device=device)
    close(apply_rotary(q, k, cos, sin)[0], oracle(q, cos, sin, False))


def test_tables_may_be_slices_of_wider_ones(device):
    q, k = (draw(1, 5, 2, 16, torch.float32, device) for _ in range(2))
    cos, sin = angles(5, 16, device=device)
    got = apply_rotary(q, k, cos[:, :8], sin[:, :8])[1]
    close(got, oracle(k, cos[:, :8], sin[:, :8], False))


@pytest.mark.parametrize("shape", [(2, 9, 8, 64), (1, 20, 3, 48), (1, 4, 16, 128)])
def test_every_config_is_right(shape, device):
    B, S, H, D = shape
    q, k = draw(B, S, H, D, torch.float32, device), draw(B, S, 2, D, torch.float32, device)
    cos, sin = angles(S, D // 2, device=device)
    candidates = configs(S, H, D, arch="sm_90")
    assert 1 < len(candidates) <= 12
    assert len(set(candidates)) == len(candidates)
    for config in candidates:
        for got, x in zip(apply_rotary(q, k, cos, sin, config=config), (q, k), strict=True):
            close(got, oracle(x, cos, sin, False))


def test_in_place_on_views_of_a_packed_qkv(device):
    qkv = draw(2, 5, 8, 32, torch.float32, device)
    before = qkv.clone()
    q, k = qkv[:, :, :4], qkv[:, :, 4:6]
    cos, sin = angles(5, 16, device=device)
    version = qkv._version
    q_out, k_out = apply_rotary(q, k, cos, sin, inplace=True)
    assert q_out is q and k_out is k
    assert qkv._version > version, "autograd must know that the memory changed"
    close(qkv[:, :, :4], oracle(before[:, :, :4], cos, sin, False))
    close(qkv[:, :, 4:6], oracle(before[:, :, 4:6], cos, sin, False))
    assert torch.equal(qkv[:, :, 6:], before[:, :, 6:]), "v is not to be touched"


@pytest.mark.parametrize("packed", [True, False])
def test_in_place_is_differentiable(packed, device):
    x = draw(2, 5, 6, 16, torch.float32, device).requires_grad_()
    cos, sin = angles(5, 8, device=device)
    upstream = torch.randn_like(x)

    def rotated(source, rotate):
        whole = source * 2
        q, k = whole[:, :, :4], whole[:, :, 4:]
        if not packed:
            q, k = q.clone(), k.clone()
        q, k = rotate(q, k)
        return torch.cat((q, k), 2)

    got = rotated(x, lambda q, k: apply_rotary(q, k, cos, sin, inplace=True))
    (grad,) = torch.autograd.grad(got, x, upstream)
    x64 = x.detach().double().requires_grad_()
    expected = rotated(x64, lambda q, k: (oracle(q, cos, sin, False), oracle(k, cos, sin, False)))
    (expected_grad,) = torch.autograd.grad(expected, x64, upstream.double())
    close(got, expected)
    close(grad, expected_grad)


def test_a_gradient_that_does_not_arrive_is_none(device):
    q = draw(1, 5, 4, 16, torch.float32, device).requires_grad_()
    k = draw(1, 5, 2, 16, torch.float32, device).requires_grad_()
    cos, sin = angles(5, 8, device=device)
    _, k_out = apply_rotary(q, k, cos, sin)
    upstream = torch.randn_like(k)
    dq, dk = torch.autograd.grad(k_out, (q, k), upstream, allow_unused=True)
    assert dq is None
    close(dk, oracle(upstream, cos, -sin, False))


@pytest.mark.parametrize("layout", ["scalar", "heads", "transposed"])
def test_gradients_of_any_strides(layout, device):
    q = draw(2, 6, 4, 16, torch.float32, device).requires_grad_()
    k = draw(2, 6, 4, 16, torch.float32, device).requires_grad_()
    cos, sin = angles(6, 8, device=device)
    upstream = {
        "scalar": torch.ones((), device=device).expand(2, 6, 4, 16),
        "heads": torch.randn(2, 6, 1, 16, device=device).expand(2, 6, 4, 16),
        "transposed": torch.randn(2, 6, 16, 4, device=device).transpose(2, 3),
    }[layout]
    for grad in torch.autograd.grad(apply_rotary(q, k, cos, sin), (q, k), (upstream, upstream)):
        close(grad, oracle(upstream, cos, -sin, False))


@pytest.mark.parametrize("shape", [(0, 3, 2, 8), (2, 0, 2, 8), (2, 3, 0, 8)])
def test_empty_tensors(shape, device):
    q = torch.empty(shape, device=device, requires_grad=True)
    k = torch.empty(shape, device=device, requires_grad=True)
    cos, sin = angles(shape[1], 4, device=device)
    outs = apply_rotary(q, k, cos, sin)
    assert all(out.shape == shape for out in outs)
    grads = torch.autograd.grad(outs, (q, k), [torch.ones_like(out) for out in outs])
    assert all(grad.shape == shape for grad in grads)


def ok(device, **changed):
    q, k = (torch.ones(2, 3, 4, 8, device=device) for _ in range(2))
    cos, sin = angles(3, 4, device=device)
    return apply_rotary(**({"q": q, "k": k, "cos": cos, "sin": sin} | changed))


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"k": torch.ones(2, 3, 4, 8).half()}, TypeError, "of one dtype.*float32 and torch.float1"),
        ({"q": torch.ones(2, 3, 4, 8).double()}, TypeError, "of one dtype.*float64"),
        ({"k": torch.ones(2, 3, 4, 6)}, ValueError, r"takes q \(B,S,Hq,D\)"),
        ({"q": torch.ones(2, 3, 8)}, ValueError, r"takes q \(B,S,Hq,D\)"),
        ({"q": torch.ones(2, 3, 4, 7), "k": torch.ones(2, 3, 4, 7)}, ValueError, "must be even"),
        ({"cos": torch.ones(3, 8)}, ValueError, r"cos of shape.*here \(3, 4\).*got \(3, 8\)"),
        ({"sin": torch.ones(3, 4).double()}, TypeError, "sin of float32 or q's.*float64"),
        ({"cos": torch.ones(3, 4, requires_grad=True)}, ValueError, "gets none.*detach it"),
        ({"q": torch.ones(2, 3, 8, 4).mT}, ValueError, r"q with its last axis.*\.contiguous\(\)"),
        ({"sin": torch.ones(4, 3).mT}, ValueError, r"sin with its last axis"),
        (
            {"q": torch.ones(2, 3, 1, 8).expand(2, 3, 4, 8), "inplace": True},
            ValueError,
            "q is expanded.*clone it",
        ),
        (
            {"k": torch.ones(2, 3, 4, 8, requires_grad=True), "inplace": True},
            ValueError,
            "k is a leaf that requires grad.*inplace=False",
        ),
    ],
)
def test_errors_say_what_to_do(changed, error, message, device):
    on_device = {
        name: value.detach()
        .to(device)
        .as_strided(value.shape, value.stride())
        .requires_grad_(value.requires_grad)
        if isinstance(value, torch.Tensor)
        else value
        for name, value in changed.items()
    }
    with pytest.raises(error, match=message):
        ok(device, **on_device)


def test_a_config_must_be_powers_of_two():
    with pytest.raises(ValueError, match="RotaryConfig: block_h is 3, not a power of two"):
        RotaryConfig(4, 3, 4)
