"""8-bit attention with a skip against an fp64 oracle of its own.

On a CPU the weights and v are fp16, as below sm_89; q and k are INT8 everywhere.
"""

import math

import pytest
import torch

from kernelbench.kernels.rcm import PARAMETRIZATIONS, SIGMA_DATA
from kernelbench.kernels.rcm_int8 import (
    RcmInt8Config,
    configs,
    prepack,
    rcm_attention_int8,
    rcm_attention_prepacked,
)

SMALL = RcmInt8Config(64, 64, 4, 2)


@pytest.fixture(params=[torch.float16, torch.bfloat16], ids=str)
def dtype(request, device):
    if device == "cpu" and request.param is torch.bfloat16:
        pytest.skip("bf16 arithmetic is wrong in Triton's interpreter")
    return request.param


def coefficients(t, parametrization, sigma):
    if parametrization == "edm":
        return sigma**2 / (t**2 + sigma**2), sigma * t / (sigma**2 + t**2).sqrt()
    if parametrization == "cm":
        later = t - 0.002
        return sigma**2 / (later**2 + sigma**2), sigma * later / (sigma**2 + t**2).sqrt()
    if parametrization == "trigflow":
        total = t.cos() + t.sin()
        return 1 / total, -t.sin() / total
    return torch.zeros_like(t), torch.ones_like(t)


def oracle(q, k, v, x, t, *, parametrization="edm", sigma_data=None, causal=False, scale=None):
    q, k, v, x, t = (a.double() for a in (q, k, v, x, t))
    B, N, H, D = q.shape
    scores = torch.einsum("bmhd,bnhd->bhmn", q, k) * (D**-0.5 if scale is None else scale)
    if causal:
        later = torch.ones(N, N, dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, -math.inf)
    attention = torch.einsum("bhmn,bnhd->bmhd", scores.softmax(-1), v).reshape(B, N, H * D)
    sigma = SIGMA_DATA[parametrization] if sigma_data is None else sigma_data
    c_skip, c_out = (c[:, None, None] for c in coefficients(t, parametrization, sigma))
    return c_skip * x + c_out * attention


def draw(B, N, H, D, dtype, device, seed=0):
    torch.manual_seed(seed)
    q, k, v = (torch.randn(B, N, H, D, device=device).to(dtype) for _ in range(3))
    x = torch.randn(B, N, H * D, device=device).to(dtype)
    return q, k, v, x, torch.rand(B, device=device) * 1.5 + 0.01


def distance(got, expected):
    """Relative Frobenius error and cosine."""
    got = got.double()
    cosine = (got * expected).sum() / (got.norm() * expected.norm())
    return float((got - expected).norm() / expected.norm()), float(cosine)


def check(inputs, config=None, most=0.05, **options):
    """Both of the mix and of attention alone, whose error the skip would hide."""
    for changed in (options, options | {"parametrization": "none", "sigma_data": None}):
        y = rcm_attention_int8(*inputs, config=config, **changed)
        assert y.shape == inputs[3].shape and y.dtype == inputs[3].dtype
        error, cosine = distance(y, oracle(*inputs, **changed))
        assert error <= most, (error, changed)
        assert cosine >= 1 - most**2 / 2.5, (cosine, changed)


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
@pytest.mark.parametrize(("B", "N", "H", "D"), [(1, 1, 2, 64), (2, 7, 3, 64), (2, 100, 1, 128)])
def test_forward(B, N, H, D, parametrization, causal, dtype, device):
    inputs = draw(B, N, H, D, dtype, device, seed=N)
    check(inputs, parametrization=parametrization, causal=causal)


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 2))])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("D", [16, 64, 96])
def test_several_draws(seed, causal, D, dtype, device):
    check(draw(1, 257, 1, D, dtype, device, seed), causal=causal, sigma_data=0.7)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("D", [64, 128])
def test_every_config_is_right(arch, D, dtype, device):
    if device == "cuda" and arch == "sm_90" and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("tiles for another architecture")
    inputs = draw(1, 150, 1, D, dtype, device)
    candidates = configs(150, D, arch=arch)
    assert 1 < len(candidates) == len(set(candidates)) <= 12
    for config in candidates:
        got = rcm_attention_int8(*inputs, config=config, causal=True, parametrization="none")
        expected = oracle(*inputs, causal=True, parametrization="none")
        assert distance(got, expected)[0] <= 0.05, config


@pytest.mark.parametrize("tiles", [(16, 64), (128, 32), (32, 32)], ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_causal_tiles_of_either_shape(tiles, biased, dtype, device):
    check(draw(1, 150, 1, 64, dtype, device), RcmInt8Config(*tiles, 4, 2, biased), causal=True)


def test_views_of_a_packed_qkv(dtype, device):
    torch.manual_seed(0)
    qkv = torch.randn(2, 70, 3, 2, 64, device=device).to(dtype)
    wide = torch.randn(2, 70, 3 * 128, device=device).to(dtype)
    inputs = (*qkv.unbind(2), wide[..., 128:256], torch.rand(2, device=device))
    check(inputs, config=SMALL)
    narrow = [a.contiguous() for a in inputs]
    assert torch.equal(rcm_attention_int8(*inputs), rcm_attention_int8(*narrow))


def test_a_last_axis_that_is_not_contiguous_is_copied(dtype, device):
    q, k, v, x, t = draw(1, 33, 1, 64, dtype, device)
    strided = (*(a.mT.contiguous().mT for a in (q, k, v, x)), t)
    assert torch.equal(rcm_attention_int8(*strided), rcm_attention_int8(q, k, v, x, t))


def test_a_mean_of_k_costs_nothing(dtype, device):
    q, k, v, x, t = draw(1, 257, 2, 64, dtype, device)
    mean = 8 * torch.randn(1, 1, 2, 64, device=device).to(dtype)
    check((q, k + mean, v, x, t), config=SMALL)


def keys_in_order(block_n, permuted, device):
    """Of the keys of a tile of v8, in the order in which they are written."""
    n = torch.arange(block_n, device=device)
    return n // 16 * 16 + n % 2 + n // 2 % 2 * 8 + n // 4 % 4 * 2 if permuted else n


@pytest.mark.parametrize("tiles", [(64, 128), (64, 64), (128, 64), (16, 32)], ids=str)
@pytest.mark.parametrize(("B", "N", "H", "D"), [(1, 128, 2, 64), (2, 333, 3, 96), (1, 70, 1, 16)])
def test_copies_are_within_half_a_unit(B, N, H, D, tiles, dtype, device):
    q, k, v, _, _ = draw(B, N, H, D, dtype, device)
    k = k + 3
    config = RcmInt8Config(*tiles, 4, 2)
    packed = prepack(q, k, v, scale=0.25, config=config)
    G, _, E = packed.q8.shape
    q, k, v = (a.double().transpose(1, 2).reshape(G, N, D) for a in (q, k, v))
    k = k - k.mean(1, keepdim=True)
    for x, x8, x_scale in (
        (q * (0.25 * math.log2(math.e)), packed.q8, packed.q_scale),
        (k, packed.k8, packed.k_scale),
    ):
        unit = x_scale.double().repeat_interleave(x8.shape[1] // x_scale.shape[1], 1)[..., None]
        off = (x8[:, :N, :D] * unit[:, :N] - x).abs() / unit[:, :N]
        assert off.max() <= 0.501
        assert not x8[:, N:].any() and not x8[..., D:].any()
    order = keys_in_order(config.block_n, packed.permuted, device)
    worth = packed.v8.double() * packed.v_scale.double()[:, None, :, None]
    back = torch.empty_like(worth)
    back[..., order] = worth
    back = back.transpose(2, 3).reshape(G, -1, E)
    unit = packed.v_scale.double()[:, None, :D]
    bits = 3 if packed.v8.dtype is torch.float8_e4m3fn else 10
    most = torch.maximum(v.abs() * 2 ** -(bits + 1), unit * 2**-10)
    assert ((back[:, :N, :D] - v).abs() <= 1.01 * most).all()
    assert not back[:, N:].any() and not back[..., D:].any()


def test_a_channel_of_v_that_is_larger_keeps_the_others(dtype, device):
    q, k, v, x, t = draw(1, 257, 1, 64, dtype, device)
    v[..., 5] *= 1000
    got = rcm_attention_int8(q, k, v, x, t, parametrization="none", config=SMALL)
    expected = oracle(q, k, v, x, t, parametrization="none")
    others = [i for i in range(64) if i != 5]
    assert distance(got, expected)[0] <= 0.1  # one channel's error, not averaged over others
    assert distance(got[..., others], expected[..., others])[0] <= 0.05


def test_a_channel_of_k_that_is_larger_stays_in_bounds(dtype, device):
    q, k, v, x, t = draw(1, 257, 1, 64, dtype, device)
    k[..., 3] *= 8
    check((q, k, v, x, t), config=SMALL, most=0.15)


def test_times_of_zero_give_x(dtype, device):
    q, k, v, x, _ = draw(2, 70, 2, 64, dtype, device)
    x[:, ::3] = -0.0
    for config in (None, SMALL):
        y = rcm_attention_int8(q, k, v, x, torch.zeros(2, device=device), config=config)
        assert torch.equal(y.view(torch.int16), x.view(torch.int16))


@pytest.mark.parametrize("biased", [False, True])
def test_large_and_equal_scores(biased, dtype, device):
    """A weight of one key alone; then the mean of v, from k without a spread."""
    config = RcmInt8Config(64, 64, 4, 2, biased)
    q, k, v, x, t = draw(1, 130, 1, 64, dtype, device)
    got = rcm_attention_int8(k, k, v, x, t, scale=20.0, parametrization="none", config=config)
    assert distance(got, v.double().flatten(2))[0] <= 0.05
    got = rcm_attention_int8(q, 0 * k, v, x, t, parametrization="none", config=config)
    assert distance(got, v.double().flatten(2).mean(1, keepdim=True).expand_as(got))[0] <= 0.1


def test_the_numbers_of_both_conversions_agree(dtype, device):
    inputs = draw(1, 200, 1, 128, dtype, device)
    ways = (RcmInt8Config(64, 64, 4, 2, biased) for biased in (False, True))
    plain, biased = (rcm_attention_int8(*inputs, config=config).double() for config in ways)
    assert distance(biased, plain)[0] <= 1e-2  # of weights on the edge between two e4m3


def test_prepacked_has_the_same_bits(dtype, device):
    q, k, v, x, t = draw(2, 70, 2, 64, dtype, device)
    packed = prepack(q, k, v, scale=0.2)
    for options in ({"causal": True}, {"parametrization": "cm"}, {"parametrization": "none"}):
        expected = rcm_attention_int8(q, k, v, x, t, scale=0.2, **options)
        assert torch.equal(rcm_attention_prepacked(packed, x, t, **options), expected)


@pytest.mark.parametrize("shape", [(0, 5, 2, 64), (2, 0, 2, 64)], ids=str)
def test_nothing_to_do(shape, device):
    y = rcm_attention_int8(*draw(*shape, torch.float16, device))
    assert y.shape == (*shape[:2], 128)


def test_refuses_gradients(device):
    q, k, v, x, t = draw(1, 16, 1, 64, torch.float16, device)
    x.requires_grad_()
    with pytest.raises(RuntimeError, match="no gradients"):
        rcm_attention_int8(q, k, v, x, t)
    with torch.no_grad():
        rcm_attention_int8(q, k, v, x, t)


def test_refuses_what_does_not_fit(device):
    q, k, v, x, t = draw(1, 16, 1, 64, torch.float16, device)
    with pytest.raises(TypeError, match="float16 or bfloat16"):
        rcm_attention_int8(q.float(), k.float(), v.float(), x.float(), t)
    with pytest.raises(ValueError, match="one shape"):
        rcm_attention_int8(q, k[:, :8], v, x, t)
    with pytest.raises(ValueError, match="16 to 128"):
        rcm_attention_int8(*draw(1, 16, 1, 160, torch.float16, device))
    with pytest.raises(ValueError, match="mixes x and t"):
        rcm_attention_int8(q, k, v, None, None)
    with pytest.raises(ValueError, match="did you mean 'edm'"):
        rcm_attention_int8(q, k, v, x, t, parametrization="edn")
    with pytest.raises(ValueError, match="a dot takes 32"):
        RcmInt8Config(64, 16, 4, 2)
