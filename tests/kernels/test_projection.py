"""The projection with a skip in its epilogue against an fp64 oracle, forward and all gradients."""

from dataclasses import replace

import pytest
import torch

from kernelbench.kernels import projection
from kernelbench.kernels.operators import numbers_of, of_numbers
from kernelbench.kernels.projection import (
    ProjectionConfig,
    configs,
    project_and_skip,
    project_and_skip_unfused,
)
from kernelbench.kernels.projection.hopper import HopperProjectionTile, suits
from kernelbench.kernels.rcm import SIGMA_DATA, formula_of

FLOOR = {torch.float32: 1e-6, torch.float16: 2.5e-4, torch.bfloat16: 2e-3}
NAMES = ("a", "weight", "bias", "x", "t")


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


def reference(a, weight, bias, x, t, *, parametrization="edm", sigma_data=None):
    """Every operation in the dtype of its inputs, t apart: the oracle when that is fp64."""
    f = a @ weight.mT if bias is None else a @ weight.mT + bias
    if parametrization == "none":
        return f
    sigma = SIGMA_DATA[parametrization] if sigma_data is None else sigma_data
    c_skip, c_out = (c[:, None, None] for c in coefficients(t, parametrization, sigma))
    return c_skip.to(x.dtype) * x + c_out.to(x.dtype) * f


def draw(B, N, C, dtype, device, seed=0, K=None):
    """a, weight, bias, x, t, all to be differentiated, and dy.

    dy has something of x and bias in it, so that dt is more than noise that cancels.
    """
    torch.manual_seed(seed)
    K = K or C
    a, weight = torch.randn(B, N, K), torch.randn(C, K) / K**0.5
    bias, x, t = torch.randn(C), torch.randn(B, N, C), torch.rand(B) * 1.4 + 0.1
    dy = torch.randn(B, N, C) + 0.5 * x - 0.5 * bias
    made = [each.to(device, dtype) for each in (a, weight, bias, x)]
    return [each.requires_grad_() for each in (*made, t.to(device))], dy.to(device, dtype)


def with_gradients(function, inputs, dy, **options):
    y = function(*inputs, **options)
    parts = inputs[:3] if options.get("parametrization") == "none" else inputs
    return (y, *torch.autograd.grad(y, [part for part in parts if part is not None], dy))


def check(inputs, dy, function=project_and_skip, config=None, **options):
    """Within 3 × the error of plain PyTorch in the same dtype, or the dtype's floor."""
    got = with_gradients(function, inputs, dy, config=config, **options)
    plain = with_gradients(reference, inputs, dy, **options)
    wide = [None if i is None else i.detach().double().requires_grad_() for i in inputs]
    expected = with_gradients(reference, wide, dy.double(), **options)
    for i, (one, other, right) in enumerate(zip(got, plain, expected, strict=True)):
        assert one.shape == right.shape and one.dtype == other.dtype and one.is_contiguous(), i
        error, baseline = ((e.detach().double() - right).norm() for e in (one, other))
        if not baseline.isfinite():  # eager PyTorch's own sum of dt overflows fp16
            baseline = torch.zeros_like(error)
        assert error <= max(3 * baseline, FLOOR[dy.dtype] * right.norm()), (i, error, baseline)


@pytest.mark.parametrize("parametrization", ["edm", "cm", "trigflow", "none"])
@pytest.mark.parametrize(
    ("B", "N", "C"), [(1, 1, 48), (3, 1, 16), (3, 7, 80), (3, 33, 48), (1, 33, 80), (1, 16, 512)]
)
def test_forward_and_gradients(B, N, C, parametrization, dtype, device):
    inputs, dy = draw(B, N, C, dtype, device, seed=N)
    check(inputs, dy, parametrization=parametrization)


@pytest.mark.parametrize("function", [project_and_skip, project_and_skip_unfused])
def test_without_bias_and_to_another_width(function, dtype, device):
    inputs, dy = draw(2, 21, 48, dtype, device, K=40)
    check([*inputs[:2], None, *inputs[3:]], dy, function, sigma_data=0.6)


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_every_config_is_right(arch, itemsize, device):
    """Two samples in one tile of rows, and tiles that reach beyond the last row and channel."""
    dtype = torch.float16 if itemsize == 2 else torch.float32
    inputs, _ = draw(2, 97, 72, dtype, device)
    candidates = configs(2 * 97, 72, 72, arch=arch, itemsize=itemsize, N=97)
    assert len(candidates) == len(set(candidates)) > 2
    with torch.no_grad():
        right = reference(*(i.double() for i in inputs))
        for config in candidates:
            error = (project_and_skip(*inputs, config=config).double() - right).norm()
            assert error <= FLOOR[dtype] * right.norm() * 2, config


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize(("N", "C"), [(64, 64), (64, 72), (40, 64)])
def test_tiles_in_one_sample_and_across_samples(N, C, early, halves, device):
    if early and halves:
        pytest.skip("they exclude each other")
    config = ProjectionConfig(32, 32, 32, 4, 2, group=3, early=early, halves=halves)
    inputs, dy = draw(3, N, C, torch.float32, device, seed=N)
    check(inputs, dy, config=config)


def test_strides(device):
    inputs, dy = draw(2, 9, 32, torch.float32, device)
    expected = with_gradients(project_and_skip, inputs, dy)
    wide = torch.randn(2, 18, 3, 32, device=device)
    views = []
    for i, given in enumerate(inputs[:4]):
        with torch.no_grad():
            if given.dim() == 3:
                view = wide.clone()[:, ::2, i % 3]
                views.append(view.copy_(given).requires_grad_())
            else:
                views.append(given.repeat(2, *[1] * (given.dim() - 1))[: len(given)])
                views[-1].requires_grad_()
    one = inputs[4].detach().repeat_interleave(2)[::2].requires_grad_()
    dy2 = torch.stack([dy, dy], -1)[..., 0]
    for got, right in zip(
        with_gradients(project_and_skip, [*views, one], dy2), expected, strict=True
    ):
        assert torch.equal(got, right)
    transposed = inputs[1].detach().mT.contiguous().mT
    y = project_and_skip(inputs[0], transposed, *inputs[2:])
    assert torch.equal(y, expected[0])
    same = torch.full((), 0.7, device=device).expand(2)
    check([*inputs[:4], same.requires_grad_()], dy)


def test_at_time_zero_y_is_x(dtype, device):
    inputs, dy = draw(3, 7, 48, dtype, device)
    inputs[4] = torch.tensor([0.0, 0.5, 0.0], device=device, requires_grad=True)
    y, da, _, _, dx, dt = with_gradients(project_and_skip, inputs, dy)
    for b in (0, 2):
        assert torch.equal(y[b], inputs[3][b])
        assert torch.equal(dx[b], dy[b]) and not da[b].any()
    assert dt.all(), "c_out' is not 0 where c_out is"
    check(inputs, dy)


@pytest.mark.parametrize(("N", "options"), [(32, {}), (7, {}), (32, {"halves": True})])
def test_at_time_zero_even_the_sign_of_zero_is_kept(N, options, device):
    inputs, _ = draw(2, N, 32, torch.float16, device)
    with torch.no_grad():
        inputs[3][:, ::3] = -0.0
        inputs[4].zero_()
        config = ProjectionConfig(32, 32, 32, 4, 2, **options)
        y = project_and_skip(*inputs, config=config)
    assert torch.equal(y.view(torch.int16), inputs[3].view(torch.int16))


def is_hopper():
    return torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)


HOPPER = [
    HopperProjectionTile(256, 3),
    HopperProjectionTile(128, 6),
    HopperProjectionTile(128, 2),
]


@pytest.mark.skipif(not is_hopper(), reason="needs a Hopper GPU: Gluon has no interpreter")
@pytest.mark.parametrize("parametrization", ["edm", "trigflow", "none"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("B", "N", "C", "K"),
    [(3, 64, 64, 64), (2, 192, 320, 128), (1, 8192, 512, 512), (150, 128, 256, 192)],
)
@pytest.mark.parametrize("tile", HOPPER, ids=str)
def test_hopper_tiles(tile, B, N, C, K, dtype, parametrization, device):
    """Rows and channels that fill no tile, one round of programs and several."""
    inputs, dy = draw(B, N, C, dtype, device, K=K)
    config = replace(configs(B * N, C, K, arch="sm_90")[0], hopper=tile)
    options = {"parametrization": parametrization, "config": config}
    check(inputs, dy, **options)
    check([*inputs[:2], None, *inputs[3:]], dy, project_and_skip_unfused, **options)


@pytest.mark.skipif(not is_hopper(), reason="needs a Hopper GPU: Gluon has no interpreter")
@pytest.mark.parametrize("tile", HOPPER, ids=str)
def test_hopper_keeps_x_bit_by_bit_where_c_out_is_0_and_takes_strides(tile, device):
    inputs, _ = draw(3, 128, 192, torch.bfloat16, device)
    config = replace(configs(384, 192, 192, arch="sm_90")[0], hopper=tile)
    with torch.no_grad():
        inputs[3][:, ::3] = -0.0
        inputs[4][1] = 0.0
        y = project_and_skip(*inputs, config=config)
        assert torch.equal(y[1].view(torch.int16), inputs[3][1].view(torch.int16))
        wide = torch.randn(3, 256, 2, 192, device=device, dtype=torch.bfloat16)
        a, x = wide[:, ::2, 0].copy_(inputs[0]), wide[:, 1::2, 1].copy_(inputs[3])
        assert torch.equal(project_and_skip(a, *inputs[1:3], x, inputs[4], config=config), y)
    graph = torch.compile(project_and_skip, fullgraph=True, backend="aot_eager", dynamic=False)
    with torch.no_grad():
        assert torch.equal(graph(*inputs, config=config), y)


def test_hopper_tiles_come_first_where_they_pay():
    def first(M, C, **changed):
        found = configs(M, C, C, **({"arch": "sm_90"} | changed))
        return found[0].hopper and found[0].hopper.block_c

    shapes = [(16384, 1024), (16384, 768), (8192, 512), (8192, 768), (4096, 512), (1024, 512)]
    assert [first(*shape) for shape in shapes] == [128, 128, 128, 128, 128, None]
    for changed in ({"arch": "sm_80"}, {"itemsize": 4}, {"N": 100}):
        assert first(8192, 512, **changed) is None
        assert not any(c.hopper for c in configs(8192, 512, 512, **({"arch": "sm_90"} | changed)))
    assert first(8192, 520) is None
    assert any(c.hopper for c in configs(1024, 512, 512, arch="sm_90")), "a tuner may pick it"


def test_hopper_tiles_are_refused_where_they_cannot_run(device):
    inputs, _ = draw(2, 40, 64, torch.float16, device)
    config = configs(8192, 512, 512, arch="sm_90")[0]
    with pytest.raises(ValueError, match=r"HopperProjectionTile.* takes bfloat16 or float16"):
        project_and_skip(*inputs, config=config)
    with pytest.raises(ValueError, match="block_c must be 128 or 256"):
        HopperProjectionTile(64, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_what_suits_the_hopper_kernel(dtype):
    def fits(N=128, K=64, C=64, dtype=dtype, **changed):
        given = {"a": torch.empty(2, N, K), "weight": torch.empty(C, K), "x": torch.empty(2, N, C)}
        given = {name: tensor.to(dtype) for name, tensor in given.items()} | changed
        return suits(given["a"], given["weight"], given["x"])

    assert fits() and fits(x=None) and fits(K=128, C=192)
    assert not (fits(N=96) or fits(K=80) or fits(C=80) or fits(dtype=torch.float32))
    assert not fits(x=torch.empty(2, 128, 64))
    assert not fits(a=torch.empty(2, 128, 65, dtype=dtype)[..., 1:])
    assert not fits(x=torch.empty(64, dtype=dtype).expand(2, 128, 64))


def test_a_launch_for_hopper_is_described_without_one():
    inputs, _ = draw(2, 192, 320, torch.float16, "cpu", K=128)
    a, weight, bias, x, t = (tensor.detach() for tensor in inputs)
    formula = formula_of("edm", None, False, 1.0, 1)
    for config, tiles in zip(configs(384, 320, 128, arch="sm_90")[1:3], (9, 6), strict=True):
        launch = projection.forward_launch(a, weight, bias, x, t, x, formula=formula, config=config)
        assert launch.constexprs["STEPS"] == 2 and launch.args["total"] == tiles
        alone = projection.forward_launch(
            a, weight, None, None, None, x, formula=formula, config=config
        )
        assert alone.constexprs["PARAMETRIZATION"] == "none" and alone.args["x_desc"] is None


def test_configs_as_numbers_and_back():
    for arch in ("sm_80", "sm_90"):
        for config in configs(8192, 512, 512, arch=arch):
            assert of_numbers(ProjectionConfig, numbers_of(config)) == config


def test_each_sample_has_its_time(device):
    inputs, _ = draw(3, 20, 32, torch.float32, device)
    a, weight, bias, x, t = inputs
    with torch.no_grad():
        together = project_and_skip(*inputs)
        for b in range(3):
            own = slice(b, b + 1)
            alone = project_and_skip(a[own], weight, bias, x[own], t[own])
            torch.testing.assert_close(together[own], alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("wanted", range(5))
def test_one_gradient_alone_is_the_same(wanted, device):
    inputs, dy = draw(2, 9, 32, torch.float32, device)
    every = with_gradients(project_and_skip, inputs, dy)[1 + wanted]
    alone = [each.detach() for each in inputs]
    alone[wanted].requires_grad_()
    [got] = torch.autograd.grad(project_and_skip(*alone), alone[wanted], dy)
    torch.testing.assert_close(got, every, rtol=1e-5, atol=1e-5)


def test_the_skip_may_be_wider_than_the_product(device):
    """As under autocast: y and dx are like x, the rest like a."""
    inputs, dy = draw(2, 9, 32, torch.float16, device)
    mixed = [*inputs[:3], inputs[3].detach().float().requires_grad_(), inputs[4]]
    y, da, dweight, dbias, dx, _ = with_gradients(project_and_skip, mixed, dy.float())
    assert y.dtype == dx.dtype == torch.float32
    assert {da.dtype, dweight.dtype, dbias.dtype} == {torch.float16}
    wide = [each.detach().double().requires_grad_() for each in mixed]
    for got, right in zip(
        (y, da, dweight, dbias, dx), with_gradients(reference, wide, dy.double()), strict=False
    ):
        assert (got.double() - right).norm() <= 1e-3 * right.norm()


def test_gradients_have_the_same_bits_every_time(device):
    inputs, dy = draw(2, 70, 48, torch.float16, device)
    first, again = (with_gradients(project_and_skip, inputs, dy) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_compiled_without_a_graph_break(device):
    inputs, dy = draw(2, 9, 32, torch.float32, device)
    expected = with_gradients(project_and_skip, inputs, dy)
    graph = torch.compile(project_and_skip, fullgraph=True, backend="aot_eager", dynamic=False)
    for got, right in zip(with_gradients(graph, inputs, dy), expected, strict=True):
        assert torch.equal(got, right)


def test_the_operators_are_put_together_right(device):
    """torch.library.opcheck: schemas, fake tensors, autograd registration."""
    inputs, dy = draw(2, 9, 32, torch.float32, device)
    torch.library.opcheck(projection._operator, (*inputs, None, "edm", [], True))
    plain = [each.detach() for each in inputs]
    needs = [True, False, True, False, True]
    torch.library.opcheck(projection._operator_backward, (dy, *plain, None, "edm", needs))


def change(inputs, **new):
    return [new.get(name, given) for name, given in zip(NAMES, inputs, strict=True)]


def test_what_does_not_fit_is_named(device):
    inputs, _ = draw(2, 9, 32, torch.float32, device)
    a, weight, bias, x, t = inputs
    for error, message, new in (
        (TypeError, "a and weight of one dtype", {"a": a.half()}),
        (TypeError, "one dtype, float32, float16 or bfloat16", {"a": a.double()}),
        (TypeError, "bias of a's torch.float32", {"bias": bias.half()}),
        (TypeError, "x of float32, float16 or bfloat16", {"x": x.double()}),
        (TypeError, "t of a floating dtype", {"t": torch.ones(2, dtype=torch.int64)}),
        (ValueError, r"a of shape \(B,N,K\)", {"a": a[0]}),
        (ValueError, r"weight of shape \(C, K\), here \(C, 32\)", {"weight": weight[:, :5]}),
        (ValueError, r"bias of shape \(C,\), here \(32,\)", {"bias": bias[:5]}),
        (ValueError, r"x of shape \(B, N, C\), here \(2, 9, 32\)", {"x": x[:, :4]}),
        (ValueError, r"t of shape \(B,\), here \(2,\)", {"t": t[:1]}),
        (ValueError, "mixes x and t in under 'edm', got None", {"t": None}),
        (RuntimeError, "several devices", {"t": torch.ones(2, device="meta")}),
    ):
        with pytest.raises(error, match=message):
            project_and_skip(*change(inputs, **new))
    with pytest.raises(ValueError, match="did you mean 'edm'"):
        project_and_skip(*inputs, parametrization="edn")
    with pytest.raises(ValueError, match="positive, finite sigma_data"):
        project_and_skip(*inputs, sigma_data=-1.0)


def test_wrong_configs_are_refused():
    right = ProjectionConfig(32, 32, 32, 4, 2)
    for change_, message in (
        ({"block_m": 48}, "not a power of two"),
        ({"block_k": 8}, "a dot takes 16"),
        ({"group": 0}, "at least 1"),
        ({"early": True, "halves": True}, "exclude each other"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(right, **change_)


def test_nothing_is_no_work(device):
    inputs, _ = draw(2, 9, 32, torch.float32, device)
    with torch.no_grad():
        y = project_and_skip(*change(inputs, a=inputs[0][:, :0], x=inputs[3][:, :0]))
    assert y.shape == (2, 0, 32)


def test_configs_fit_the_shared_memory_of_an_architecture():
    for arch, limit in (("sm_80", 164), ("sm_86", 100), ("sm_90", 228)):
        for itemsize in (2, 4):
            for config in configs(1 << 16, 2048, 2048, arch=arch, itemsize=itemsize):
                assert projection._bytes(config, itemsize) < limit * 1024
                assert config.hopper is None or config.hopper.shared_bytes < 225 * 1024


@pytest.mark.parametrize("moved", range(5))
def test_tensors_some_of_which_have_no_memory_are_refused(moved, device):
    """They are no fake ones: an answer of the others' kind would be none."""
    shapes = (1, 9, 32), (16, 32), (16,), (1, 9, 16), (1,)
    tensors = [torch.ones(*shape, device=device) for shape in shapes]
    tensors[moved] = tensors[moved].to("meta")
    with pytest.raises(RuntimeError, match=r"several devices|no memory"):
        project_and_skip(*tensors)
