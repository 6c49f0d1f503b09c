"""What the rCM kernels share: coefficients in all of fp32's range, the numbers that a formula
takes, and which tensors Hopper's copy engine reads."""

from fractions import Fraction

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from kernelbench.kernels.launch import Target, described_for
from kernelbench.kernels.projection import project_and_skip
from kernelbench.kernels.rcm import coefficients_of, formula_of
from kernelbench.kernels.rcm_attention import rcm_attention
from kernelbench.kernels.rcm_int8 import rcm_attention_int8
from kernelbench.nn.skip import coefficients as eager_coefficients

EPSILON = {"edm": 0.0, "cm": float(np.float32(0.002))}
TIMES = [0.0, 1e-30, 1e-12, 0.002, 0.5, 80.0, 1e12, 9e18, 1e19, 1.9e19, 1e30, 3e38]
SIGMAS = [2.0**-48, 1e-10, 0.5, 1.0, 1e10, 2.0**48]


@triton.jit
def evaluate(t_ptr, found_ptr, sigma, T: tl.constexpr, PARAMETRIZATION: tl.constexpr):
    at_T = tl.arange(0, T)
    t_T = tl.load(t_ptr + at_T)
    c_skip_T, c_out_T, d_skip_T, d_out_T = coefficients_of(t_T, sigma, PARAMETRIZATION)
    tl.store(found_ptr + at_T, c_skip_T)
    tl.store(found_ptr + T + at_T, c_out_T)
    tl.store(found_ptr + 2 * T + at_T, d_skip_T)
    tl.store(found_ptr + 3 * T + at_T, d_out_T)


def of_kernel(times, sigma, kind, device):
    t = torch.tensor(times, dtype=torch.float32, device=device)
    padded = torch.nn.functional.pad(t, (0, triton.next_power_of_2(len(t)) - len(t)))
    found = torch.empty(4, len(padded), device=device)
    evaluate[(1,)](padded, found, sigma, len(padded), kind)
    return found[:, : len(t)].double().cpu()


def exact(times, sigma, kind):
    """By fractions, with the numbers that fp32 has; roots in fp64."""
    rows = []
    epsilon, s = Fraction(EPSILON[kind]), Fraction(float(np.float32(sigma)))
    for time in times:
        t = Fraction(float(np.float32(time)))
        u = Fraction(float(np.float32(float(t - epsilon))))  # its rounding is of the formula
        past, later = s * s + u * u, s * s + t * t
        unit = max(s, t)
        root = float(later / unit**2) ** 0.5  # of squares relative to the larger
        slope = float(s / unit) / root
        rows.append(
            [
                float(s * s / past),
                float(u / unit) / root * float(s),
                float(-2 * u * s * s / past**2),
                slope * float((s * s + epsilon * t) / later),
            ]
        )
    return torch.tensor(rows, dtype=torch.float64).T


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("kind", ["edm", "cm"])
def test_coefficients_at_any_time(kind, sigma, device):
    found, expected = of_kernel(TIMES, sigma, kind, device), exact(TIMES, sigma, kind)
    scales = torch.tensor([1.0, sigma, 1 / sigma, 1.0], dtype=torch.float64)  # when t is near sigma
    assert ((found - expected).abs() <= 1e-6 * expected.abs() + 2**-30 * scales[:, None]).all()
    torch.testing.assert_close(found[1], expected[1], rtol=1e-6, atol=1.5e-38)
    t = torch.tensor(TIMES, dtype=torch.float32, device=device)
    eager = torch.stack(eager_coefficients(t, kind, sigma)).double().cpu()
    torch.testing.assert_close(eager, expected[:2], rtol=1e-6, atol=1.5e-38)


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize(("kind", "t"), EPSILON.items())
def test_x_stays_as_it_is_where_time_begins(kind, t, sigma, device):
    c_skip, c_out, _, _ = of_kernel([t], sigma, kind, device)
    assert c_skip.item() == 1.0 and c_out.item() == 0.0
    c_skip, c_out = eager_coefficients(torch.tensor([t], device=device), kind, sigma)
    assert c_skip.item() == 1.0 and c_out.item() == 0.0


def test_a_time_that_is_no_number_is_seen(device):
    assert of_kernel([float("nan")], 1.0, "edm", device).isnan().all()


@pytest.mark.parametrize("name", ["sigma_data", "scale"])
@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (torch.tensor(0.5), "Tensor"),
        (np.array(0.5), "ndarray"),
        ("0.5", "str"),
        (0.5 + 0j, "complex"),
    ],
)
def test_what_is_no_number_is_refused(name, value, kind):
    given = {"sigma_data": 0.5, "scale": 0.5} | {name: value}
    with pytest.raises(TypeError, match=rf"takes {name} as a number, got {kind}.*\.item\(\)"):
        formula_of("edm", causal=False, D=64, **given)


@pytest.mark.parametrize(
    "number", [np.float32(0.5), np.float64(0.5), Fraction(1, 2), np.int64(2), 2]
)
def test_numbers_of_any_kind_are_taken(number):
    formula = formula_of("edm", number, False, number, 64)
    assert formula.sigma_data == formula.scale == number and type(formula.scale) is float


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), 1e39, 1e-39])
def test_numbers_that_fp32_does_not_hold_are_refused(value):
    with pytest.raises(ValueError, match=r"sigma_data, got .*from 2\^-48 to 2\^48"):
        formula_of("edm", value, False, 0.5, 64)
    with pytest.raises(ValueError, match=r"scale, got .*from 2\^-126 to 2\^126"):
        formula_of("edm", 0.5, False, value, 64)


# Which tensors reach Hopper's copy engine: a Gluon kernel where all do, else a `tl` kernel.

LAYOUTS = {
    "contiguous": (lambda x: x, True),
    "of wider rows": (lambda x: torch.cat((x, x), -1)[..., : x.shape[-1]], True),
    "windows of tokens": (lambda x: x.as_strided(x.shape, (x.stride(1), *x.stride()[1:])), True),
    "one sample for all": (lambda x: x[:1].expand_as(x), False),
    "one token for all": (lambda x: x[:, :1].expand_as(x), False),
    "rows over each other": (
        lambda x: x.as_strided(x.shape, (x.stride(0), 8, *x.stride()[2:])),
        False,
    ),
    "at 8 bytes": (lambda x: torch.cat((x, x[..., :4]), -1)[..., : x.shape[-1]], False),
}


@pytest.fixture(params=LAYOUTS)
def layout(request):
    return LAYOUTS[request.param]


def by_copy_engine(function, *given, **options):
    with described_for(Target("sm_90", 132)) as launches, torch.no_grad():
        function(*given, **options)
    return any(name.endswith("_desc") for name in launches[-1].args)


def meta(*shape):
    return torch.empty(shape, dtype=torch.bfloat16, device="meta")


@pytest.mark.parametrize("D", [64, 128])
@pytest.mark.parametrize("name", ["q", "k", "v", "x"])
def test_what_attention_hands_the_copy_engine(name, D, layout):
    change, suits = layout
    given = {each: meta(4, 1024, 8, D) for each in "qkv"} | {"x": meta(4, 1024, 8 * D)}
    given[name] = change(given[name])
    t = torch.empty(4, device="meta")
    assert by_copy_engine(rcm_attention, *given.values(), t) == suits


@pytest.mark.parametrize("name", ["q", "k", "v", "x"])
def test_what_8_bit_attention_hands_the_copy_engine(name, layout):
    """Its q, k and v are copies of ours."""
    change, suits = layout
    given = {each: meta(4, 1024, 8, 128) for each in "qkv"} | {"x": meta(4, 1024, 8 * 128)}
    given[name] = change(given[name])
    t = torch.empty(4, device="meta")
    assert by_copy_engine(rcm_attention_int8, *given.values(), t) == (suits or name != "x")


@pytest.mark.parametrize("name", ["a", "x"])
def test_what_the_projection_hands_the_copy_engine(name, layout):
    change, suits = layout
    given = {each: meta(4, 4096, 512) for each in "ax"}
    given[name] = change(given[name])
    weight, bias, t = meta(512, 512), meta(512), torch.empty(4, device="meta")
    assert by_copy_engine(project_and_skip, given["a"], weight, bias, given["x"], t) == suits


@pytest.mark.parametrize("function", [rcm_attention, rcm_attention_int8])
def test_a_flag_is_no_tensor_whose_value_may_change(function, device):
    """A plan is kept by its arguments: a tensor's later value would be answered as its first."""
    q, k, v = (torch.randn(1, 8, 1, 16, device=device).half() for _ in range(3))
    x, t = torch.randn(1, 8, 16, device=device).half(), torch.ones(1, device=device)
    for causal in (torch.tensor(True), np.array([True]), "no"):
        with pytest.raises(TypeError, match="takes causal as True or False"):
            function(q, k, v, x, t, causal=causal)
    right = function(q, k, v, x, t, causal=True)
    for causal in (np.bool_(True), 1):
        assert torch.equal(function(q, k, v, x, t, causal=causal), right)
