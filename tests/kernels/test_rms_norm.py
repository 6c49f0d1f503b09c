"""RMSNorm against an fp64 oracle of its own, forward and all gradients, and bit by bit."""

from itertools import combinations

import pytest
import torch

from kernelbench.kernels import rms_norm as module
from kernelbench.kernels.launch import Plans, watched
from kernelbench.kernels.rms_norm import (
    CASTINGS,
    RmsNormConfig,
    backward_launches,
    backward_scratch,
    configs,
    forward_launch,
    rms_norm,
)

RELATIVE = {torch.float32: 1e-6, torch.float16: 1.5e-3, torch.bfloat16: 1.2e-2}
# The kernels for wide rows, on narrow ones.
BLOCKED = RmsNormConfig(1, 64, 1, 2, 64, 1, 2, 4)
REREAD = RmsNormConfig(1, 512, 1, 2, 512, 1, 2, 4, bwd_reload=True, reread=True)
HELD = RmsNormConfig(1, 32, 1, 2, 64, 1, 2, 4, reread=True, held=64)
SPLIT = RmsNormConfig(1, 64, 1, 1, 64, 1, 2, 1, split=True, stages=2, bwd_split=True)


@pytest.fixture(params=["blocked", "reread", "held", "split"])
def wide_config(request, device):
    if request.param == "split" and device == "cpu":
        pytest.skip("programs that wait for each other cannot run one after another")
    return {"blocked": BLOCKED, "reread": REREAD, "held": HELD, "split": SPLIT}[request.param]


@pytest.fixture(params=[torch.float32, torch.float16, torch.bfloat16], ids=str)
def dtype(request, device):
    if device == "cpu" and request.param is torch.bfloat16:
        pytest.skip("bf16 arithmetic is wrong in Triton's interpreter")
    return request.param


def oracle(x, weight, eps, residual=None, casting="fp32"):
    """The formula in fp64. What is normalised was rounded first, so its gradient passes through."""
    total = x if residual is None else x + residual
    rms = total.square().mean(-1, keepdim=True).add(eps).sqrt()
    factor = weight + 1 if casting == "gemma" else weight
    return total / rms * factor, total


def close(got, expected):
    """Relative Frobenius error within a few roundings of what comes out."""
    assert got.shape == expected.shape
    error = (got.double() - expected).norm() / expected.norm().clamp_min(1e-30)
    assert error <= RELATIVE[got.dtype], float(error)


def check(x, weight, *, residual=None, casting="fp32", eps=1e-6, config=None, seed=0):
    """Compare y, x + residual and every gradient, of random upstream ones, with the oracle."""
    torch.manual_seed(seed + 1000)
    given = [t for t in (x, weight, residual) if t is not None]
    leaves = [t.detach().clone(memory_format=torch.preserve_format) for t in given]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    out = rms_norm(
        leaves[0],
        leaves[1],
        eps,
        residual=None if residual is None else leaves[2],
        casting=casting,
        config=config,
    )
    outs = (out,) if residual is None else out
    upstream = [torch.randn_like(o) for o in outs]
    grads = torch.autograd.grad(outs, leaves, upstream)

    exact = [t.detach().double().requires_grad_() for t in given]
    y, total = oracle(exact[0], exact[1], eps, None if residual is None else exact[2], casting)
    expected = (y,) if residual is None else (y, total)
    expected_grads = torch.autograd.grad(expected, exact, [u.double() for u in upstream])
    assert [o.dtype for o in outs] == [x.dtype] * len(outs)
    assert [g.dtype for g in grads] == [t.dtype for t in given]
    for got, right in zip((*outs, *grads), (*expected, *expected_grads), strict=True):
        close(got, right)


def draw(*shape, dtype=torch.float32, device, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(device=device, dtype=dtype)


@pytest.mark.parametrize("with_residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize(
    "shape", [(1, 1), (3, 7), (2, 5, 33), (67, 128), (9, 384), (4, 1000), (3, 5000), (17,)], ids=str
)
def test_forward_and_gradients(shape, with_residual, dtype, device):
    for seed in range(2 if shape[-1] < 1000 else 1):
        x = draw(*shape, dtype=dtype, device=device, seed=seed)
        weight = draw(shape[-1], dtype=dtype, device=device, seed=seed + 10)
        residual = draw(*shape, dtype=dtype, device=device, seed=seed + 20)
        check(x, weight, residual=residual if with_residual else None, eps=0.5, seed=seed)


@pytest.mark.parametrize("with_residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("N", [65, 64 * 5, 333])
def test_wide_rows(N, with_residual, wide_config, dtype, device):
    x, residual = (draw(7, N, dtype=dtype, device=device, seed=s) for s in (1, 2))
    weight = draw(N, dtype=dtype, device=device, seed=3)
    check(x, weight, residual=residual if with_residual else None, config=wide_config)


def test_more_wide_rows_than_programs(wide_config, device):
    x, dy = (draw(200, 130, device=device, seed=s) for s in (1, 2))
    check(x, draw(130, device=device, seed=3), residual=dy, config=wide_config)


@pytest.mark.slow
def test_a_row_wider_than_any_tile(device):
    x, residual = (draw(2, 70_000, device=device, seed=s) for s in (1, 2))
    chosen = configs(2, 70_000, arch="sm_90", mode="fwd")[0]
    assert chosen.split and chosen.bwd_split and chosen.block < 70_000
    check(x, draw(70_000, device=device, seed=3), residual=residual)


@pytest.mark.parametrize("casting", CASTINGS)
def test_every_casting_has_the_right_gradients(casting, dtype, device):
    x, residual = (draw(5, 200, dtype=dtype, device=device, seed=s) for s in (1, 2))
    check(x, draw(200, dtype=dtype, device=device, seed=3), residual=residual, casting=casting)


@pytest.mark.parametrize("casting", CASTINGS)
def test_every_casting_of_wide_rows(casting, wide_config, dtype, device):
    x, residual = (draw(5, 200, dtype=dtype, device=device, seed=s) for s in (1, 2))
    weight = draw(200, dtype=dtype, device=device, seed=3)
    check(x, weight, residual=residual, casting=casting, config=wide_config)


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.float16])
def test_the_weight_may_have_another_dtype(weight_dtype, device):
    other = torch.float16 if weight_dtype is torch.float32 else torch.float32
    x = draw(6, 48, dtype=other, device=device)
    check(x, draw(48, dtype=weight_dtype, device=device, seed=1), casting="fp32")


@pytest.mark.parametrize(
    ("M", "N", "itemsize"),
    [
        (37, 96, 4),
        pytest.param(150, 24, 4, marks=pytest.mark.slow),
        pytest.param(3, 5000, 2, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("mode", ["fwd", "bwd", "full"])
def test_every_config_is_right(M, N, itemsize, mode, device):
    candidates = configs(M, N, arch="sm_90", mode=mode, itemsize=itemsize, residual=True)
    assert 1 < len(candidates) <= 12
    dtype = torch.float16 if itemsize == 2 else torch.float32
    x, residual = (draw(M, N, dtype=dtype, device=device, seed=s) for s in (1, 2))
    weight = draw(N, dtype=dtype, device=device, seed=3)
    y, total = oracle(x.double(), weight.double(), 1e-6, residual.double())
    for config in candidates:
        if mode == "fwd":
            got = rms_norm(x, weight, residual=residual, casting="fp32", config=config)
            close(got[0], y)
            close(got[1], total)
        else:
            check(x, weight, residual=residual, config=config)


def test_every_config_of_wide_rows_is_right(device):
    arch = "cpu" if device == "cpu" else "sm_90"
    x, weight = draw(2, 33_000, device=device), draw(33_000, device=device, seed=1)
    y, _ = oracle(x.double(), weight.double(), 1e-6)
    for config in configs(2, 33_000, arch=arch, mode="fwd"):
        close(rms_norm(x, weight, casting="fp32", config=config), y)


@pytest.mark.slow
def test_every_config_of_the_backward_of_wide_rows_is_right(device):
    arch = "cpu" if device == "cpu" else "sm_90"
    x, weight = draw(2, 8200, device=device), draw(8200, device=device, seed=1)
    for config in configs(2, 8200, arch=arch, mode="bwd"):
        check(x, weight, residual=x, config=config)


@pytest.mark.parametrize("arch", ["cpu", "sm_80", "sm_86", "sm_90", "sm_100"])
@pytest.mark.parametrize("N", [1, 3, 128, 129, 5000, 16384, 16385, 131072])
def test_the_table_leads_every_list_of_configs(N, arch):
    for M in (1, 300, 1 << 20):
        lists = [configs(M, N, arch=arch, mode=mode) for mode in ("fwd", "bwd", "full")]
        assert len({candidates[0] for candidates in lists}) == 1
        assert all(len(set(candidates)) == len(candidates) <= 12 for candidates in lists)
    assert not any(c.split or c.bwd_split for c in lists[2]) or arch != "cpu"


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("N", [1, 100, 1024, 5000, 16384, 40_000, 131_072])
def test_the_stages_of_a_config_fit_in_shared_memory(N, itemsize, residual):
    for arch, kib in (("sm_80", 164), ("sm_86", 100), ("sm_90", 228), ("sm_999", 100)):
        for c in configs(8192, N, arch=arch, mode="full", itemsize=itemsize, residual=residual):
            tile = c.bwd_rows * c.bwd_block * itemsize * (2 + residual + c.bwd_reload)
            assert (c.bwd_stages - 1) * tile * c.bwd_programs < kib * 1024
            programs = 16 // c.warps if c.split else 1
            tile = c.block * itemsize * (1 + residual)
            assert (c.stages - 1) * tile * programs < kib * 1024


def test_rows_of_more_parts_than_multiprocessors_are_refused(monkeypatch):
    monkeypatch.setattr(module, "sm_count", lambda device: 4)
    x, weight = torch.empty(2, 65 * 64, device="meta"), torch.empty(65 * 64, device="meta")
    words = module.forward_words(x, 65 * 64, SPLIT)
    with pytest.raises(ValueError, match="65 programs at once, more than the 64 that 4 multiproc"):
        forward_launch(x, None, weight, x, None, None, words, eps=0.0, casting="fp32", config=SPLIT)


def exact_rows(dtype, device):
    """Rows of multiples of 1/256 and an eps with mean(x²) + eps = 9, so that rstd is 1/3."""
    numbers = torch.randint(-127, 128, (64,), generator=torch.Generator().manual_seed(5))
    x = torch.stack([numbers.roll(i) * (-1) ** i for i in range(8)]) / 256
    eps = 9.0 - float(x[0].double().square().mean())
    weight = torch.randint(-127, 128, (64,), generator=torch.Generator().manual_seed(6)) / 64
    return x.to(device, dtype), weight.to(device, dtype), eps


def eager(x, weight, eps, casting):
    """What people write in PyTorch for each casting."""
    if casting == "none":
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps) * weight
    x32 = x.float()
    normalised = x32 * torch.rsqrt((x32 * x32).mean(-1, keepdim=True) + eps)
    if casting == "llama":
        return normalised.to(x.dtype) * weight
    factor = weight.float() + 1 if casting == "gemma" else weight.float()
    return (normalised * factor).to(x.dtype)


@pytest.mark.parametrize("config", [None, RmsNormConfig(1, 32, 1, 1, 32, 1, 1, 1)])
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_castings_round_where_they_say_bit_by_bit(half, config, device):
    if device == "cpu" and half is torch.bfloat16:
        pytest.skip("bf16 arithmetic is wrong in Triton's interpreter")
    x, weight, eps = exact_rows(half, device)
    results = {c: rms_norm(x, weight, eps, casting=c, config=config) for c in CASTINGS}
    for casting, y in results.items():
        assert torch.equal(y, eager(x, weight, eps, casting)), casting
    for one, other in combinations(CASTINGS, 2):
        assert not torch.equal(results[one], results[other]), (one, other)


def test_the_sum_is_rounded_before_it_is_normalised(device):
    x = torch.full((2, 16), 2048.0, dtype=torch.float16, device=device)
    residual = torch.ones_like(x)  # 2049 is no fp16 number: it rounds to 2048
    weight = torch.ones(16, dtype=torch.float16, device=device)
    for config in (None, RmsNormConfig(1, 8, 1, 1, 8, 1, 1, 1)):
        y, total = rms_norm(x, weight, 0.0, residual=residual, casting="fp32", config=config)
        assert torch.equal(total, x)
        assert torch.equal(y, torch.ones_like(x))


def strided(kind, device):
    wide = draw(6, 4, 40, device=device)
    return {
        "row stride": wide.flatten(0, 1)[:, :24],
        "every other row": wide.flatten(0, 1)[::2],
        "no common row stride": wide[:, :3],
        "transposed": wide.transpose(1, 2),
        "one row many times": wide[:1, :1].expand(6, 4, 40),
        "expanded columns": wide[..., :1].expand(6, 4, 40),
        "one column": wide[..., :1],
    }[kind]


KINDS = (
    "row stride",
    "every other row",
    "no common row stride",
    "transposed",
    "one row many times",
    "expanded columns",
    "one column",
)


@pytest.mark.parametrize("kind", KINDS)
def test_any_strides_of_x_residual_and_upstream(kind, device):
    x = strided(kind, device)
    weight = draw(x.shape[-1], device=device, seed=1)
    leaf = x.detach().requires_grad_()
    y, total = rms_norm(leaf, weight, residual=x, casting="fp32")
    (dx,) = torch.autograd.grad((y, total), leaf, (x, x))
    leaf64 = x.detach().double().requires_grad_()
    y64, total64 = oracle(leaf64, weight.double(), 1e-6, x.double())
    (dx64,) = torch.autograd.grad((y64, total64), leaf64, (x.double(), x.double()))
    close(y, y64)
    close(total, total64)
    close(dx, dx64)


@pytest.mark.parametrize("kind", ["row stride", "every other row", "one row many times"])
def test_rows_at_one_distance_are_not_copied(kind, device):
    x = strided(kind, device)
    assert module._as_rows(x, x.shape[-1]).data_ptr() == x.data_ptr()


def test_rows_that_have_no_common_distance_are_copied_once(device):
    x = strided("transposed", device)
    rows = module._as_rows(x, x.shape[-1])
    assert rows.is_contiguous() and rows.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("shape", [(0, 8), (3, 0, 8)])
def test_no_rows(shape, device):
    x = torch.empty(shape, device=device, requires_grad=True)
    weight = torch.ones(8, device=device, requires_grad=True)
    y, total = rms_norm(x, weight, residual=x.detach())
    dx, dweight = torch.autograd.grad((y, total), (x, weight), (y.detach(), y.detach()))
    assert y.shape == total.shape == dx.shape == shape
    assert torch.equal(dweight, torch.zeros_like(weight))


def same_bits(config, device):
    x = draw(70, 96, device=device, seed=1).requires_grad_()
    weight = draw(96, device=device, seed=2).requires_grad_()
    dy = draw(70, 96, device=device, seed=3)
    one, other = (
        torch.autograd.grad(rms_norm(x, weight, config=config), (x, weight), dy) for _ in range(2)
    )
    return all(map(torch.equal, one, other))


def test_the_gradients_have_the_same_bits_on_every_call(device):
    assert same_bits(None, device)


def test_the_gradients_of_wide_rows_have_the_same_bits_on_every_call(wide_config, device):
    assert same_bits(wide_config, device)


def test_upstream_gradients_that_do_not_arrive(device):
    x, residual = (draw(4, 24, device=device, seed=s).requires_grad_() for s in (1, 2))
    weight = draw(24, device=device, seed=3).requires_grad_()
    upstream = draw(4, 24, device=device, seed=4)
    y, total = rms_norm(x, weight, residual=residual)
    of_total = torch.autograd.grad(
        total, (x, weight, residual), upstream, retain_graph=True, allow_unused=True
    )
    assert torch.equal(of_total[0], upstream) and torch.equal(of_total[2], upstream)
    assert of_total[1] is None
    dx, dresidual = torch.autograd.grad(y, (x, residual), upstream)
    x64 = (x + residual).detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(
        oracle(x64, weight.detach().double(), 1e-6)[0], x64, upstream.double()
    )
    close(dx, expected)
    assert torch.equal(dx, dresidual)


@pytest.fixture
def launches(monkeypatch):
    """Every launch of a forward pass that is described, as none is ready."""
    monkeypatch.setattr(module, "_PLANS", Plans())
    made = []

    def recorded(*args, **named):
        made.append(forward_launch(*args, **named))
        return made[-1]

    monkeypatch.setattr(module, "forward_launch", recorded)
    return made


def test_without_a_gradient_to_come_nothing_is_kept(launches, device):
    x = draw(3, 16, device=device).requires_grad_()
    weight = torch.ones(16, device=device)
    with torch.no_grad():
        y = rms_norm(x, weight)
    assert y.grad_fn is None
    assert rms_norm(x.detach()[:2], weight).grad_fn is None
    assert [launch.args["rstd_ptr"] for launch in launches] == [None, None]
    assert rms_norm(x, weight).grad_fn is not None
    assert launches[-1].args["rstd_ptr"].shape == (3,)


def test_launches_are_described_without_a_device_and_launch_nothing():
    x = torch.empty(64, 256, device="meta")
    weight, rstd = torch.empty(256, device="meta"), torch.empty(64, device="meta")
    config = configs(64, 256, arch="sm_90", mode="full")[0]
    forward = forward_launch(
        x, None, weight, x, None, rstd, None, eps=0.0, casting="none", config=config
    )
    assert forward.constexprs["CASTING"] == "none"
    assert forward.grid == (64 // config.rows,)


@pytest.mark.parametrize(
    ("config", "wants_dweight", "names"),
    [
        (None, True, ["differentiate", "sum_partials"]),
        (None, False, ["differentiate"]),
        (BLOCKED, True, ["project_wide_rows", "differentiate", "sum_partials"]),
        (SPLIT, True, ["differentiate_split_rows", "sum_partials"]),
    ],
)
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_backward_launches_are_described_without_a_device(config, wants_dweight, names, arch):
    config = config or configs(64, 256, arch=arch, mode="full")[0]
    x, rstd = torch.empty(64, 256, device="meta"), torch.empty(64, device="meta")
    weight = torch.empty(256, device="meta")
    dweight = torch.empty_like(weight) if wants_dweight else None
    scratch = backward_scratch(rstd, 256, config, wants_dx=True, wants_dweight=wants_dweight)
    launches = backward_launches(
        x, x, weight, rstd, None, x, dweight, scratch, casting="llama", arch=arch, config=config
    )
    assert [launch.kernel.__name__ for launch in launches] == names
    if wants_dweight:  # the sums may start early where the GPU knows how
        assert launches[-1].options["launch_pdl"] is (arch == "sm_90")
    assert ("launch_cooperative_grid" in launches[0].options) is config.bwd_split


@pytest.mark.parametrize("eps", [None, 1e-5, 0.5])
@pytest.mark.parametrize("weighted", [True, False])
def test_arguments_may_be_left_out_as_in_pytorch(weighted, eps, dtype, device):
    x = draw(7, 48, dtype=dtype, device=device)
    weight = draw(48, dtype=dtype, device=device, seed=1) if weighted else None
    for size in (1.0, 1e-3):  # of the smaller an eps of 16 bits would leave nothing
        expected = torch.nn.functional.rms_norm(x * size, (48,), weight, eps)
        close(rms_norm(x * size, weight, eps), expected.double())


@pytest.mark.parametrize("casting", CASTINGS)
def test_without_a_weight_the_factor_is_1(casting, wide_config, dtype, device):
    one = (torch.zeros if casting == "gemma" else torch.ones)(333, dtype=dtype, device=device)
    for config in (None, wide_config):
        x, dy = (draw(5, 333, dtype=dtype, device=device, seed=s).requires_grad_() for s in (1, 2))
        results = [rms_norm(x, w, casting=casting, config=config) for w in (one, None)]
        gradients = [torch.autograd.grad(y, x, dy.detach())[0] for y in results]
        for one_way, other in (results, gradients):  # rows may lie otherwise over the threads
            close(one_way, other.double())
            torch.testing.assert_close(one_way, other, rtol=4 * RELATIVE[dtype], atol=1e-5)


@pytest.mark.parametrize("N", [1, 16, 32, 77, 333, 2048])
def test_y_has_the_same_bits_whether_gradients_are_wanted_or_not(N, dtype, device):
    for seed in range(8):
        x, residual, weight = (
            draw(*shape, dtype=dtype, device=device, seed=3 * seed + i)
            for i, shape in enumerate(((9, N), (9, N), (N,)))
        )
        for added in (None, residual):
            without, saved = (
                rms_norm(x.detach().requires_grad_(wanted), weight, residual=added)
                for wanted in (False, True)
            )
            without, saved = ((y,) if added is None else y for y in (without, saved))
            assert all(map(torch.equal, without, saved))


def test_what_is_frozen_costs_no_work(wide_config, device):
    """dweight alone: no kernel projects rows or writes dx."""
    x = draw(7, 333, device=device)
    weight = draw(333, device=device, seed=1).requires_grad_()
    dy = draw(7, 333, device=device, seed=2)
    for config in (None, wide_config):
        y = rms_norm(x, weight, config=config)
        launches = []
        with (  # a GPU's backward has a thread of its own else, which nothing watches
            torch.autograd.set_multithreading_enabled(False),
            watched(lambda launch, made=launches: (made.append(launch), launch.queue())[1]),
        ):
            (found,) = torch.autograd.grad(y, weight, dy)
        assert launches and all(launch.args.get("dx_ptr") is None for launch in launches)
        assert not any("project" in launch.kernel.__name__ for launch in launches)
        exact = weight.detach().double().requires_grad_()
        right, _ = oracle(x.double(), exact, 1e-6)
        close(found, torch.autograd.grad(right, exact, dy.double())[0])


def test_a_second_derivative_raises_for_rows_that_are_a_view(device):
    base = draw(4, 64, device=device).requires_grad_()
    y = rms_norm(base[:, :32], draw(32, device=device))
    (dx,) = torch.autograd.grad(y.square().sum(), base, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(dx.square().sum() + base.pow(3).sum(), base)


def test_the_tangent_of_the_sum_is_its_own(device):
    x, tangent, r = (draw(4, 32, device=device, seed=s) for s in range(3))
    kept = tangent.clone()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        _, total = rms_norm(dual, None, residual=r)
        total.mul_(3)
        assert torch.equal(torch.autograd.forward_ad.unpack_dual(dual).tangent, kept)


def test_a_tensor_as_eps_is_refused(device):
    x = draw(2, 8, device=device)
    with pytest.raises(TypeError, match="eps as a number or None, got Tensor"):
        rms_norm(x, None, torch.tensor(1e-6))


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"casting": "lama"}, ValueError, "no casting 'lama'; did you mean 'llama'\\? Known: fp32"),
        ({"casting": "zzz"}, ValueError, "no casting 'zzz'. Known: fp32, llama, gemma, none"),
        ({"x": torch.ones(2, 8).double()}, TypeError, "x of torch.float64.*convert them"),
        ({"weight": torch.ones(8).long()}, TypeError, "weight of torch.int64"),
        ({"weight": torch.ones(7)}, ValueError, r"got \(2, 8\) and \(7,\)"),
        ({"weight": torch.ones(8, 1)}, ValueError, r"got \(2, 8\) and \(8, 1\)"),
        ({"x": torch.ones(2, 0), "weight": torch.ones(0)}, ValueError, "N >= 1"),
        ({"x": torch.tensor(1.0), "weight": torch.ones(1)}, ValueError, r"got \(\) and \(1,\)"),
        ({"residual": torch.ones(8)}, ValueError, r"residual of x's shape.*got \(8,\)"),
        ({"residual": torch.ones(2, 8).half()}, ValueError, "got.*float16: expand or convert"),
    ],
)
def test_errors_say_what_to_do(changed, error, message, device):
    given = {"x": torch.ones(2, 8), "weight": torch.ones(8)} | changed
    given = {n: v.to(device) if isinstance(v, torch.Tensor) else v for n, v in given.items()}
    with pytest.raises(error, match=message):
        rms_norm(**given)


def test_an_unknown_mode_names_the_known_ones():
    with pytest.raises(ValueError, match=r"no mode 'forward'\. Known: fwd, bwd, full"):
        configs(1, 1, arch="cpu", mode="forward")


def test_a_config_must_be_powers_of_two():
    with pytest.raises(ValueError, match="RmsNormConfig: bwd_block is 48, not a power of two"):
        RmsNormConfig(1, 64, 4, 1, 48, 4, 1, 1)
