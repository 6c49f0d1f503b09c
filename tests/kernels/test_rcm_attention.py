"""Attention with a fused skip against an fp64 oracle of its own, forward and all five gradients."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from kernelbench.kernels import rcm_attention as kernel
from kernelbench.kernels.attention.configs import AttentionConfig, choose, configs
from kernelbench.kernels.attention.forward import Forward
from kernelbench.kernels.attention.hopper.forward import HopperTile, forward_launches
from kernelbench.kernels.attention.tiles import statistic_of
from kernelbench.kernels.launch import Plans
from kernelbench.kernels.rcm import PARAMETRIZATIONS, SIGMA_DATA, Backward, formula_of
from kernelbench.kernels.rcm_attention import (
    backward_launches,
    backward_scratch,
    rcm_attention,
    rcm_attention_unfused,
)

FLOOR = {torch.float32: 1e-6, torch.float16: 2.5e-4, torch.bfloat16: 2e-3}
NAMES = ("q", "k", "v", "x", "t")
LARGE = AttentionConfig(32, 64, 4, 1, 64, 32, 4, 1)  # few programs, one after another on a CPU


@pytest.fixture(params=[torch.float32, torch.float16, torch.bfloat16], ids=str)
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
    total = t.cos() + t.sin()
    return 1 / total, -t.sin() / total


def reference(q, k, v, x, t, *, parametrization="edm", sigma_data=None, causal=False, scale=None):
    """Every operation in the dtype of its inputs, t apart: the oracle when that is fp64."""
    B, N, H, D = q.shape
    scores = torch.einsum("bmhd,bnhd->bhmn", q, k) * (D**-0.5 if scale is None else scale)
    if causal:
        later = torch.ones(N, N, dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, -math.inf)
    attention = torch.einsum("bhmn,bnhd->bmhd", scores.softmax(-1), v).reshape(B, N, H * D)
    if parametrization == "none":
        return attention
    sigma = SIGMA_DATA[parametrization] if sigma_data is None else sigma_data
    c_skip, c_out = (c[:, None, None] for c in coefficients(t, parametrization, sigma))
    return c_skip.to(q.dtype) * x + c_out.to(q.dtype) * attention


def draw(B, N, H, D, dtype, device, seed=0):
    """q, k, v, x, t, all to be differentiated, and dy."""
    torch.manual_seed(seed)
    q, k, v = (torch.randn(B, N, H, D, device=device, dtype=dtype) for _ in range(3))
    x, dy = (torch.randn(B, N, H * D, device=device, dtype=dtype) for _ in range(2))
    t = torch.rand(B, device=device) * 1.5 + 0.01
    return [a.requires_grad_() for a in (q, k, v, x, t)], dy


def with_gradients(function, inputs, dy, **options):
    """What comes out, then a gradient for each input that takes part."""
    y = function(*inputs, **options)
    wanted = inputs[:3] if options.get("parametrization") == "none" else inputs
    return (y, *torch.autograd.grad(y, wanted, dy))


def in_fp64(inputs):
    return [a.detach().double().requires_grad_() for a in inputs]


def relative(got, expected):
    error = (got.detach().double() - expected.detach()).norm()
    return float(error / expected.detach().norm().clamp_min(1e-300))


def size_of_dt_terms(inputs64, dy, options):
    """‖terms whose sum is dt‖: dt itself may be as small as you please beside their rounding."""
    q, k, v, x, t = (a.detach() for a in inputs64)
    step = 1e-5
    later, earlier = (reference(q, k, v, x, moved, **options) for moved in (t + step, t - step))
    return float(((later - earlier) / (2 * step) * dy.double()).norm())


def check(inputs, dy, function=rcm_attention, config=None, **options):
    """Within 3 × the error of plain PyTorch in the same dtype, or the dtype's floor."""
    got = with_gradients(function, inputs, dy, config=config, **options)
    plain = with_gradients(reference, inputs, dy, **options)
    inputs64 = in_fp64(inputs)
    expected = with_gradients(reference, inputs64, dy.double(), **options)
    expected = [one.detach() for one in expected]
    floor = FLOOR[dy.dtype]
    for name, one, other, right in zip(("y", *NAMES), got, plain, expected, strict=False):
        assert one.shape == right.shape and one.dtype == other.dtype, name
        assert torch.isfinite(one).all(), name
        if name == "t":
            budget = max(
                3 * float((other.double() - right).norm()),
                4 * floor * size_of_dt_terms(inputs64, dy, options),  # 4 σ of one random sum
                2 * FLOOR[torch.float32] * float(right.norm()),
            )
            assert float((one.double() - right).norm()) <= budget
        else:
            budget = max(3 * relative(other, right), floor)
            # A gradient that is all cancellation (a single key) is held to what it cancels.
            slack = floor * float(dy.double().norm()) if right.norm() < 1e-6 * dy.norm() else 0.0
            error = float((one.detach().double() - right.detach()).norm())
            assert error <= budget * float(right.norm()) + slack, (name, relative(one, right))


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
@pytest.mark.parametrize(
    ("B", "N", "H", "D"),
    [(1, 1, 1, 16), (2, 7, 3, 40), (1, 33, 1, 64), (1, 65, 3, 16), (1, 64, 1, 24)],
)
def test_forward_and_gradients(B, N, H, D, parametrization, causal, dtype, device):
    inputs, dy = draw(B, N, H, D, dtype, device, seed=N)
    check(inputs, dy, config=LARGE, parametrization=parametrization, causal=causal)


@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_several_draws(seed, causal, dtype, device):
    inputs, dy = draw(2, 65, 1, 48, dtype, device, seed)
    check(inputs, dy, causal=causal, sigma_data=0.7, scale=0.3)


@pytest.mark.parametrize("D", [80, 96, 128, 160, 256])
def test_larger_heads(D, dtype, device):
    inputs, dy = draw(1, 33, 1, D, dtype, device, seed=D)
    check(inputs, dy, causal=True)


@pytest.mark.parametrize("mode", ["fwd", "bwd"])
@pytest.mark.parametrize(
    ("arch", "N", "D"), [("sm_80", 128, 64), ("sm_90", 150, 64), ("sm_90", 390, 128)]
)
def test_every_config_is_right(arch, N, D, mode, dtype, device):
    if device == "cpu" and (D == 128 or dtype is torch.float32):
        pytest.skip("minutes in the interpreter; run on a GPU")
    inputs, dy = draw(1, N, 1, D, dtype, device, seed=N)
    candidates = configs(1, N, 1, D, arch=arch, mode=mode, itemsize=dtype.itemsize)
    assert 1 < len(candidates) == len(set(candidates)) <= 12
    for config in candidates:
        if (config.hopper or config.bwd_hopper) and (device == "cpu" or not is_hopper()):
            continue
        check(inputs, dy, config=config, causal=True)
    check(inputs, dy, config=candidates[-1], causal=False)


def is_hopper():
    return torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)


@pytest.mark.skipif(not is_hopper(), reason="needs a Hopper GPU: Gluon has no interpreter")
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("B", "N", "H", "D"),
    [(2, 1, 3, 64), (3, 7, 2, 128), (16, 1000, 12, 64), (2, 1021, 3, 64), (1, 8191, 1, 128)],
)
def test_hopper_kernels_at_any_length(B, N, H, D, kind, causal):
    """As the table picks them for large sizes, which these are not."""
    large = partial(configs, 64, 4096, 64, D, arch="sm_90", causal=causal)
    for tile in dict.fromkeys((*large(mode="fwd"), *large(mode="full"))):
        if tile.hopper is None:
            continue
        for parametrization in PARAMETRIZATIONS:
            options = {"config": tile, "causal": causal, "parametrization": parametrization}
            inputs, dy = draw(B, N, H, D, kind, "cuda", seed=N)
            check(inputs, dy, **options)
            with torch.no_grad():
                plain = rcm_attention(*inputs, **options)
            assert relative(plain, rcm_attention(*inputs, **options).double()) <= FLOOR[kind]


def test_the_table_picks_by_rounds_of_tiles():
    """A wide tile needs full rounds; sizes too small for one round of 64 rows take none."""

    def groups(*shape, mode="fwd"):
        first = configs(*shape, arch="sm_90", mode=mode)[0]
        return first.hopper and first.hopper.groups

    assert groups(1, 1024, 8, 64) is None
    assert groups(2, 2048, 8, 64) == 2
    assert groups(4, 4096, 12, 64) == groups(8, 2048, 16, 64) == 3
    assert groups(4, 4096, 12, 64, mode="full") == 3
    assert groups(4, 8192, 16, 128) == 2
    assert groups(4, 4096, 12, 96) is None


def test_the_table_splits_rows_where_that_fills_the_rounds():
    """At (1,8192,8) 256 wide tiles take two rounds, and 128 narrow ones a third."""

    def tiles(*shape, **changed):
        found = configs(*shape, **({"arch": "sm_90", "mode": "fwd", "mixes": True} | changed))
        return [c.hopper for c in found if c.hopper]

    first, *others = tiles(1, 8192, 8, 64)
    assert (first.groups, first.tiles, first.rest.groups) == (3, 32, 2)
    assert {tile.groups for tile in others if tile.rest is None} == {2, 3}
    assert tiles(4, 4096, 12, 64, mode="full")[0].rest is None
    assert not any(tile.rest for tile in tiles(1, 8192, 8, 64, causal=True))
    assert first.rest.polynomial == 8
    assert tiles(1, 8192, 8, 64, mode="full")[0].rest.polynomial == 4
    rest = tiles(1, 8192, 8, 64, mixes=False)[0].rest
    assert rest.held and not rest.polynomial


@pytest.mark.parametrize("early", [False, True], ids=["after", "early"])
@pytest.mark.parametrize("N", [1, 192, 193, 1000, 6336, 6337, 8192])
def test_the_launches_of_a_split_share_out_every_row(N, early):
    narrow = HopperTile(2, 128, 4, 240)
    q, o = torch.empty(2, N, 3, 64).half(), torch.empty(2, N, 192).half()
    launches = forward_launches(
        Forward(q, q, q, o, None),
        scale=1.0,
        causal=False,
        tile=HopperTile(3, 128, 4, 160, tiles=33, rest=narrow, early=early),
    )
    end = 0
    for launch in launches:
        args, rows = launch.args, launch.constexprs["GROUPS"] * 64
        assert args["begin"] == end < N and args["total"] == args["tiles"] * 6
        end += args["tiles"] * rows
        assert end <= N or rows == 128, "but for the last, tiles are whole"
        follows = early and launch is not launches[0]
        assert launch.options["launch_pdl"] == launch.constexprs["FOLLOWS"] == follows
        assert not follows or launches[0].constexprs["LEADS"]
    assert N <= end < N + 128


def test_tiles_that_there_cannot_be_are_refused():
    with pytest.raises(ValueError, match="tiles and rest go together"):
        HopperTile(3, 128, 4, 160, tiles=33)
    with pytest.raises(ValueError, match="early is for one rest"):
        HopperTile(3, 128, 4, 160, early=True)
    with pytest.raises(ValueError, match="polynomial is 0, 4 or 8"):
        HopperTile(3, 128, 4, 160, polynomial=2)
    with pytest.raises(ValueError, match="groups is 2 or 3"):
        HopperTile(4, 128, 4, 160)
    with pytest.raises(ValueError, match="block_n is 64 or 128"):
        HopperTile(3, 96, 4, 160)
    with pytest.raises(ValueError, match="buffers is 2 or more"):
        HopperTile(3, 128, 1, 160)
    with pytest.raises(ValueError, match="tiles is 1 or more"):
        HopperTile(3, 128, 4, 160, tiles=0, rest=HopperTile(2, 128, 4, 240))


def test_hopper_tiles_are_refused_where_they_cannot_run(device):
    inputs, _ = draw(1, 64, 1, 32, torch.float16, device)
    full = configs(64, 4096, 64, 64, arch="sm_90", mode="full")[0]
    for config, name in ((full, "HopperTile"), (replace(full, hopper=None), "HopperBackwardTile")):
        with pytest.raises(ValueError, match=rf"^{name}.*D = 32.*config=None"):
            rcm_attention(*inputs, config=config)


@pytest.mark.parametrize("mode", ["bwd", "full"])
@pytest.mark.parametrize("D", [64, 128])
def test_the_hopper_backward_comes_first_where_it_runs(D, mode):
    def backwards(D=D, **changed):
        found = configs(4, 2048, 12, D, **({"arch": "sm_90", "mode": mode} | changed))
        return [c.bwd_hopper for c in found]

    fused, pair, *others = backwards()
    assert fused.fused is not None and pair == replace(fused, fused=None)
    assert (pair.queries is None) == (D == 64)
    assert others and not any(others)
    assert backwards(deterministic=True) == [pair, fused, *others]
    for other in ({"mode": "fwd"}, {"arch": "sm_80"}, {"itemsize": 4}, {"D": 96}):
        assert not any(backwards(**other))


@pytest.mark.skipif(not is_hopper(), reason="needs a Hopper GPU: Gluon has no interpreter")
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("D", [64, 128])
@pytest.mark.parametrize("N", [1024, 1000])
def test_hopper_gradients_have_the_same_bits_on_every_call(N, D, causal):
    inputs, dy = draw(4, N, 12, D, torch.bfloat16, "cuda")
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (with_gradients(rcm_attention, inputs, dy, causal=causal) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.skipif(not is_hopper(), reason="needs a Hopper GPU: Gluon has no interpreter")
@pytest.mark.parametrize("early", [False, True], ids=["after", "early"])
@pytest.mark.parametrize("N", [1000, 8192])
def test_a_split_is_right(N, early):
    narrow = HopperTile(2, 128, 4, 240)
    split = HopperTile(3, 128, 4, 160, tiles=N // 256, rest=narrow, early=early)
    plain = configs(1, N, 8, 64, arch="sm_90", mode="full")[0]
    inputs, dy = draw(1, N, 8, 64, torch.bfloat16, "cuda")
    check(inputs, dy, config=replace(plain, hopper=split))
    first, second = (rcm_attention(*inputs, config=replace(plain, hopper=split)) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.skipif(not is_hopper(), reason="needs a Hopper GPU: Gluon has no interpreter")
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("D", [64, 128])
def test_a_sample_of_nan_leaves_the_others_alone(D, causal):
    """Tiles that reach beyond the last token of a sample must not see the next one."""
    inputs, dy = draw(3, 72, 2, D, torch.bfloat16, "cuda")
    for config in configs(3, 72, 2, D, arch="sm_90", mode="full")[:2]:
        options = {"causal": causal, "config": config}
        clean = [a.detach().clone().requires_grad_() for a in inputs]
        before = with_gradients(rcm_attention, clean, dy, **options)
        with torch.no_grad():
            clean[1][1] = math.nan
        after = with_gradients(rcm_attention, clean, dy, **options)
        for one, other in zip(before, after, strict=True):
            assert torch.equal(one[[0, 2]], other[[0, 2]])


@pytest.mark.skipif(not is_hopper(), reason="needs a Hopper GPU: Gluon has no interpreter")
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("D", [64, 128])
def test_scores_far_below_zero_beside_keys_that_are_not_there(D, causal):
    """A key beyond the last has a score of 0, which must not weigh 2^500 and more."""
    inputs, dy = draw(2, 70, 2, D, torch.bfloat16, "cuda")
    with torch.no_grad():
        inputs[1].copy_(-100 * inputs[0].abs())
        inputs[0].abs_()
    for config in configs(2, 70, 2, D, arch="sm_90", mode="full")[:2]:
        got = with_gradients(rcm_attention, inputs, dy, causal=causal, config=config)
        expected = with_gradients(reference, in_fp64(inputs), dy.double(), causal=causal)
        for one, right in zip(got, expected, strict=True):
            assert relative(one, right) <= 0.05


@pytest.mark.skipif(not is_hopper(), reason="needs a Hopper GPU: Gluon has no interpreter")
@pytest.mark.parametrize("layout", ["tokens", "samples", "address", "strides"])
@pytest.mark.parametrize("D", [64, 128])
def test_hopper_gradients_of_any_dy(D, layout):
    """What the copy engine does not take is copied; a view that it takes is not."""
    B, N, C = 2, 72, 3 * D
    inputs, _ = draw(B, N, 3, D, torch.bfloat16, "cuda")
    many = torch.randn(B, N, 2 * C, device="cuda", dtype=torch.bfloat16)
    dy = {
        "tokens": many[:, :1, :C].expand(B, N, C),
        "samples": many[:1, :, :C].expand(B, N, C),
        "address": many[..., 3 : C + 3],
        "strides": many[..., C:],
    }[layout]
    for config in configs(B, N, 3, D, arch="sm_90", mode="full")[:2]:
        check(inputs, dy, config=config)


def strided(x):
    """x again, its last axis not contiguous."""
    if x.dim() < 2:
        return x
    return torch.stack([x, x], dim=-1)[..., 0]


def shifted(x):
    """x again, at an address that is no multiple of 16 bytes."""
    wide = x.new_empty(x.numel() + 3)
    return wide[3:].view(x.shape).copy_(x)


@pytest.mark.parametrize("unpack", [torch.clone, torch.Tensor.contiguous, strided, shifted])
@pytest.mark.parametrize("packed", [False, True], ids=["alone", "views"])
@pytest.mark.parametrize("D", [32, pytest.param(64, marks=pytest.mark.slow)])
def test_saved_tensors_that_come_back_laid_out_otherwise(unpack, packed, D, device):
    """Hooks on saved tensors, as `save_on_cpu` sets them, keep values and not strides."""
    B, N, H = 2, 33, 2
    kind = torch.float16 if device == "cpu" else torch.bfloat16
    inputs, dy = draw(B, N, H, D, kind, device)
    if packed:
        qkv = torch.randn(B, N, 3, H, D, device=device, dtype=kind)
        inputs[:3] = (a.detach().requires_grad_() for a in qkv.unbind(2))
        wide = torch.randn(B, N, H * D + 8, device=device, dtype=kind)
        inputs[3] = wide[..., 8:].detach().requires_grad_()
    expected = with_gradients(rcm_attention, inputs, dy)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, unpack):
        got = with_gradients(rcm_attention, inputs, dy)
    for one, right in zip(got, expected, strict=True):
        assert relative(one, right.double()) <= FLOOR[kind]
    with torch.autograd.graph.save_on_cpu(pin_memory=False):
        got = with_gradients(rcm_attention, inputs, dy)
    for one, right in zip(got, expected, strict=True):
        assert relative(one, right.double()) <= FLOOR[kind]


@pytest.mark.parametrize(
    ("asked", "warn_only", "expected"),
    [(False, False, False), (True, False, True), (True, True, False)],
)
def test_torch_says_whether_bits_must_be_the_same(asked, warn_only, expected, monkeypatch, device):
    seen = []

    def chosen_by(shape, arch, itemsize, graded, suits, causal, mixes, deterministic):
        seen.append(deterministic)
        return LARGE

    monkeypatch.setattr(kernel, "choose", chosen_by)
    monkeypatch.setattr(kernel, "_PLANS", Plans())
    inputs, _ = draw(1, 16, 1, 64, torch.float16, device)
    torch.use_deterministic_algorithms(asked, warn_only=warn_only)
    try:
        rcm_attention(*inputs)
    finally:
        torch.use_deterministic_algorithms(False)
    assert seen == [expected]
    chosen = choose((1, 16, 1, 64), "sm_90", 2, True, True, False, True, expected)
    assert chosen.bwd_hopper is not None and (chosen.bwd_hopper.fused is None) == expected


@pytest.mark.parametrize("parametrization", ["edm", "none"])
@pytest.mark.parametrize("N", [37, 64])
def test_a_sum_of_dq_begins_as_zeros_and_is_scaled(N, parametrization, device):
    """By the kernels around the fused one, which itself has no interpreter."""
    B, H, D = 2, 3, 64
    (q, k, v, x, t), dy = draw(B, N, H, D, torch.float16, device)
    formula = formula_of(parametrization, None, False, None, D)
    dq, dk, dv = (torch.empty_like(q) for _ in range(3))
    config = configs(B, N, H, D, arch="sm_90", mode="bwd")[0]
    tensors = Backward(
        dy, q, k, v, x, t, torch.ones_like(dy), statistic_of(q), dq, dk, dv, None, None
    )
    scratch = backward_scratch(tensors, config)
    zeros, fused, scaled = backward_launches(tensors, scratch, formula=formula, config=config)
    total = fused.args["total_desc"].base.fill_(math.nan)
    zeros.run()
    assert torch.equal(total, torch.zeros_like(total))
    delta = fused.args["delta_desc"].base
    assert delta.stride(1) % 4 == 0 and torch.allclose(
        delta, dy.view(B, N, H, D).float().sum(3).transpose(1, 2), atol=1e-4
    )
    total.normal_()
    scaled.run()
    c_out = torch.ones_like(t) if parametrization == "none" else coefficients(t, "edm", 1.0)[1]
    expected = total.transpose(1, 2) * c_out[:, None, None, None] * D**-0.5
    assert relative(dq, expected.double()) <= FLOOR[dq.dtype]


@pytest.mark.parametrize("wanted", ["q", "k"])
def test_one_kernel_computes_all_or_is_not_taken(wanted, device):
    """A gradient that nobody wants is not paid for."""
    (q, k, v, x, t), dy = draw(1, 16, 2, 128, torch.float16, device)
    dq = torch.empty_like(q) if wanted == "q" else None
    dk, dv = (torch.empty_like(k) if wanted == "k" else None for _ in range(2))
    config = configs(1, 16, 2, 128, arch="sm_90", mode="bwd")[0]
    tensors = Backward(dy, q, k, v, x, t, dy, statistic_of(q), dq, dk, dv, None, None)
    formula = formula_of("edm", None, False, None, 128)
    scratch = backward_scratch(tensors, config)
    _, launch = backward_launches(tensors, scratch, formula=formula, config=config)
    expected = "differentiate_queries" if wanted == "q" else "differentiate_keys"
    assert launch.kernel.fn.__name__ == expected


@pytest.mark.parametrize("stride", ["keys wider", "keys narrower"])
@pytest.mark.parametrize("N", [64, 70, 97])
def test_causal_tiles_of_either_shape(stride, N, device):
    inputs, dy = draw(1, N, 1, 16, torch.float32, device, seed=N)
    m, n = (16, 64) if stride == "keys wider" else (64, 16)
    config = AttentionConfig(m, n, 4, 1, m, n, 4, 1)
    check(inputs, dy, config=config, causal=True)
    check(inputs, dy, config=config, causal=False)


def test_each_mode_varies_its_own_pass():
    def parts(mode):
        found = configs(4, 4096, 16, 128, arch="sm_90", mode=mode)
        forward = {(c.block_m, c.block_n, c.warps, c.stages, c.hopper) for c in found}
        backward = {
            (c.bwd_block_m, c.bwd_block_n, c.bwd_warps, c.bwd_stages, c.bwd_hopper) for c in found
        }
        return found, forward, backward

    fwd, forward, one = parts("fwd")
    bwd, other, backward = parts("bwd")
    full, both_forward, both_backward = parts("full")
    assert len(one) == len(other) == 1
    assert (both_forward, both_backward) == (forward, backward)
    assert bwd[0] == full[0]
    assert fwd[0] == replace(full[0], bwd_hopper=None)
    with pytest.raises(ValueError, match="no mode 'forward'"):
        configs(1, 64, 1, 64, arch="sm_90", mode="forward")


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_90", "sm_120", "cpu"])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_every_head_size_has_a_config_everywhere(arch, itemsize):
    for D in range(16, 257):
        for N in (1, 100, 8192):
            assert configs(1, N, 1, D, arch=arch, mode="full", itemsize=itemsize)


def test_views_of_a_packed_qkv(dtype, device):
    (*_, x, t), dy = draw(2, 33, 3, 32, dtype, device)
    qkv = torch.randn(2, 33, 3, 3, 32, device=device, dtype=dtype)
    check([*(a.detach().requires_grad_() for a in qkv.unbind(2)), x, t], dy, causal=True)
    heads_first = torch.randn(3, 2, 3, 33, 32, device=device, dtype=dtype).transpose(2, 3)
    check([*(a.detach().requires_grad_() for a in heads_first.unbind(0)), x, t], dy)


@pytest.mark.parametrize("layout", ["scalar", "last axis", "tokens", "slice"])
def test_x_and_dy_of_any_strides(layout, device):
    inputs, _ = draw(2, 20, 2, 16, torch.float32, device)
    other = {
        "scalar": torch.ones((), device=device).expand(2, 20, 32),
        "last axis": torch.randn(2, 32, 20, device=device).mT,
        "tokens": torch.randn(2, 1, 32, device=device).expand(2, 20, 32),
        "slice": torch.randn(2, 20, 50, device=device)[..., 3:35],
    }[layout]
    inputs[3] = other.detach().requires_grad_()
    check(inputs, other)
    check(inputs, other, function=rcm_attention_unfused)


def test_one_time_expanded_over_the_samples(device):
    inputs, dy = draw(3, 9, 1, 16, torch.float32, device)
    one = torch.tensor(0.4, device=device, requires_grad=True)
    (dt,) = torch.autograd.grad(rcm_attention(*inputs[:4], one.expand(3)), one, dy)
    inputs64 = in_fp64([*inputs[:4], one])
    y64 = reference(*inputs64[:4], inputs64[4].expand(3))
    (dt64,) = torch.autograd.grad(y64, inputs64[4], dy.double())
    assert abs(float(dt) - float(dt64)) < 1e-4


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
@pytest.mark.parametrize("N", [pytest.param(65, marks=pytest.mark.slow), 64])
def test_unfused_equals_fused_within_rounding(N, parametrization, dtype, device):
    inputs, dy = draw(2, N, 1, 40, dtype, device)
    options = {"parametrization": parametrization, "causal": True}
    check(inputs, dy, function=rcm_attention_unfused, config=LARGE, **options)
    options["config"] = LARGE
    fused = with_gradients(rcm_attention, inputs, dy, **options)
    unfused = with_gradients(rcm_attention_unfused, inputs, dy, **options)
    for one, other in zip(fused[1:], unfused[1:], strict=True):
        assert relative(one, other.double()) <= FLOOR[dtype], "the backward is the same code"
    assert relative(unfused[0], fused[0].double()) <= 4 * FLOOR[dtype]
    with torch.no_grad():
        for function, graded in ((rcm_attention, fused), (rcm_attention_unfused, unfused)):
            assert relative(function(*inputs, **options), graded[0].double()) <= FLOOR[dtype]


@pytest.mark.parametrize(("parametrization", "t"), [("edm", 0), ("trigflow", 0), ("cm", 0.002)])
def test_x_comes_back_where_time_begins(parametrization, t, dtype, device):
    inputs, _ = draw(2, 33, 2, 16, dtype, device)
    inputs[4] = torch.tensor([t, 0.9], device=device)
    for function in (rcm_attention, rcm_attention_unfused):
        y = function(*inputs, parametrization=parametrization)
        assert torch.equal(y[0], inputs[3][0])
        assert not torch.equal(y[1], inputs[3][1]), "each sample has its own t"


@pytest.mark.parametrize("sigma", [1.0, 0.5, 2.0])
def test_late_edm_tends_to_sigma_times_attention(sigma, device):
    inputs, _ = draw(2, 33, 2, 16, torch.float32, device)
    inputs[4] = torch.full((2,), 1e4, device=device)
    late = rcm_attention(*inputs, sigma_data=sigma)
    attention = rcm_attention(*inputs, parametrization="none")
    assert relative(late, sigma * attention.double()) < 1e-6


def test_large_scores_do_not_overflow(dtype, device):
    inputs, dy = draw(1, 65, 1, 16, dtype, device)
    with torch.no_grad():
        inputs[0] *= 40
    got = with_gradients(rcm_attention, inputs, dy, causal=True)
    expected = with_gradients(reference, in_fp64(inputs), dy.double(), causal=True)
    for one, right in zip(got, expected, strict=True):
        assert relative(one, right) <= 20 * FLOOR[dtype]


@pytest.mark.parametrize("parametrization", ["edm", "cm", "trigflow"])
def test_dt_is_the_slope_of_the_oracle(parametrization, device):
    inputs, dy = draw(2, 17, 2, 16, torch.float32, device, seed=5)
    dt = with_gradients(rcm_attention, inputs, dy, parametrization=parametrization)[5]
    q, k, v, x, t = (a.detach() for a in in_fp64(inputs))
    step = 1e-5
    for b in range(2):
        shift = torch.zeros_like(t)
        shift[b] = step
        later, earlier = (
            reference(q, k, v, x, moved, parametrization=parametrization)
            for moved in (t + shift, t - shift)
        )
        slope = float(((later - earlier) * dy.double()).sum()) / (2 * step)
        assert abs(float(dt[b]) - slope) < 2e-5 * max(1.0, abs(slope))


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3,), (4,), (0, 3), (1, 4)], ids=str)
def test_only_the_gradients_that_are_wanted(wanted, device):
    inputs, dy = draw(2, 33, 2, 16, torch.float32, device)
    every = with_gradients(rcm_attention, inputs, dy)[1:]
    some = [a.detach().requires_grad_(i in wanted) for i, a in enumerate(inputs)]
    rcm_attention(*some).backward(dy)
    for i, a in enumerate(some):
        assert (a.grad is not None) == (i in wanted)
        assert i not in wanted or torch.equal(a.grad, every[i])


def test_the_same_bits_on_every_call(dtype, device):
    inputs, dy = draw(2, 65, 2, 32, dtype, device)
    first, second = (with_gradients(rcm_attention, inputs, dy) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_attention_alone_needs_neither_x_nor_t(device):
    (q, k, v, _, _), dy = draw(1, 33, 2, 16, torch.float32, device)
    y = rcm_attention(q, k, v, None, None, parametrization="none")
    grads = torch.autograd.grad(y, (q, k, v), dy)
    q64, k64, v64 = in_fp64((q, k, v))
    y64 = reference(q64, k64, v64, None, None, parametrization="none")
    for one, other in zip(
        grads, torch.autograd.grad(y64, (q64, k64, v64), dy.double()), strict=True
    ):
        assert relative(one, other) < 2e-6


@pytest.mark.parametrize("shape", [(0, 5, 2, 16), (2, 0, 2, 16), (2, 5, 0, 16)])
def test_empty_tensors(shape, device):
    inputs, dy = draw(*shape, torch.float32, device)
    y, *grads = with_gradients(rcm_attention, inputs, dy)
    assert y.shape == dy.shape
    assert [g.shape for g in grads] == [a.shape for a in inputs]
    assert (grads[4] == 0).all()


@pytest.mark.parametrize("t", [torch.float64, torch.float16])
def test_times_of_other_dtypes(t, device):
    inputs, dy = draw(2, 9, 1, 16, torch.float32, device)
    inputs[4] = inputs[4].detach().to(t).requires_grad_()
    got = with_gradients(rcm_attention, inputs, dy)
    expected = with_gradients(reference, in_fp64(inputs), dy.double())
    assert got[5].dtype == t
    assert relative(got[0], expected[0]) < 1e-6
    assert relative(got[5], expected[5]) < (2e-3 if t is torch.float16 else 1e-5)


def ok(device, **changed):
    q, k, v = (torch.ones(2, 3, 4, 16, device=device) for _ in range(3))
    x, t = torch.ones(2, 3, 64, device=device), torch.ones(2, device=device)
    return rcm_attention(**({"q": q, "k": k, "v": v, "x": x, "t": t} | changed))


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"q": torch.ones(2, 3, 4, 16).double()}, TypeError, "of one dtype.*float64"),
        ({"v": torch.ones(2, 3, 4, 16).half()}, TypeError, "of one dtype.*float16: convert"),
        ({"k": torch.ones(2, 3, 4, 32)}, ValueError, r"of one shape \(B,N,H,D\).*\(2, 3, 4, 32\)"),
        ({"q": torch.ones(2, 3, 64)}, ValueError, r"of one shape \(B,N,H,D\)"),
        (dict.fromkeys("qkv", torch.ones(2, 3, 4, 8)), ValueError, "16 to 256.*D = 8"),
        (dict.fromkeys("qkv", torch.ones(2, 3, 1, 512)), ValueError, "16 to 256.*D = 512"),
        ({"x": torch.ones(2, 3, 4, 16)}, ValueError, r"x of shape.*here \(2, 3, 64\), got \(2, 3"),
        ({"x": torch.ones(2, 3, 64).half()}, TypeError, "x of q's torch.float32.*convert"),
        ({"x": None}, ValueError, "mixes x and t in under 'edm'.*parametrization='none'"),
        ({"t": torch.ones(())}, ValueError, r"t of shape \(B,\), here \(2,\), got \(\)"),
        ({"t": torch.ones(2).long()}, TypeError, "t of a floating dtype, got torch.int64"),
        ({"parametrization": "trigflw"}, ValueError, "did you mean 'trigflow'.*edm, cm"),
        ({"parametrization": "trigflow", "sigma_data": 0.5}, ValueError, "sigma_data = 1, got 0.5"),
        ({"sigma_data": 0.0}, ValueError, "positive, finite sigma_data, got 0.0"),
        ({"scale": -1.0}, ValueError, "positive, finite scale, got -1.0"),
        ({"x": torch.ones(2, 3, 64, device="meta")}, RuntimeError, "x on meta.*one device"),
    ],
)
def test_errors_say_what_to_do(changed, error, message, device):
    moved = {
        name: value.to(device) if isinstance(value, torch.Tensor) and not value.is_meta else value
        for name, value in changed.items()
    }
    with pytest.raises(error, match=message):
        ok(device, **moved)


def test_a_config_must_be_powers_of_two_that_a_dot_takes():
    with pytest.raises(ValueError, match="AttentionConfig: block_n is 48, not a power of two"):
        AttentionConfig(64, 48, 4, 2, 64, 64, 4, 2)
    with pytest.raises(ValueError, match="bwd_block_m is 8, but a dot takes 16"):
        AttentionConfig(64, 64, 4, 2, 8, 64, 4, 2)


def test_it_is_not_differentiable_twice(device):
    inputs, _ = draw(1, 5, 1, 16, torch.float32, device)
    y = rcm_attention(*inputs)
    (dq,) = torch.autograd.grad(y.pow(2).sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        dq.sum().backward()
