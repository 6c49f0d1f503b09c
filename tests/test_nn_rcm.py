"""The attention module: one state, several implementations, one answer."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import mse_loss

from kernelbench.kernels.launch import refusal
from kernelbench.nn import IMPLEMENTATIONS, RCMAttention
from kernelbench.nn import rcm as module

ROOT = Path(__file__).parent.parent


def pair(device, dim=48, heads=3, **options):
    """The same weights, eager and in Triton."""
    torch.manual_seed(0)
    eager = RCMAttention(dim, heads, impl="eager", **options).to(device)
    ours = RCMAttention(dim, heads, impl="triton", **options).to(device)
    ours.load_state_dict(eager.state_dict())
    return eager, ours


def given(device, B=2, N=9, C=48):
    torch.manual_seed(1)
    x = torch.randn(B, N, C, device=device, requires_grad=True)
    return x, (torch.rand(B, device=device) + 0.2).requires_grad_()


def gradients(layer, x, t, weigh):
    """y, and the gradients of x, t and every parameter."""
    y = layer(x, t)
    parts = [x, *([] if layer.parametrization == "none" else [t]), *layer.parameters()]
    return y, *torch.autograd.grad(y, parts, weigh.to(y.dtype))


def in_fp64(layer, x, t):
    """The formula, written out, on copies of everything in fp64."""
    w = {name: value.detach().double() for name, value in layer.state_dict().items()}
    x, t = x.detach().double(), t.detach().double()
    B, N, C = x.shape
    qkv = x @ w["qkv.weight"].mT + w.get("qkv.bias", 0)
    q, k, v = qkv.reshape(B, N, 3, layer.num_heads, -1).permute(2, 0, 3, 1, 4)
    p = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    f = (p @ v).transpose(1, 2).reshape(B, N, C) @ w["proj.weight"].mT + w["proj.bias"]
    c_skip, c_out = (c[:, None, None] for c in layer.get_skip_coefficients(t))
    return c_skip * x + c_out * f


def test_the_state_is_the_same_whoever_computes():
    states = [RCMAttention(32, 2, impl=impl).state_dict() for impl in IMPLEMENTATIONS]
    shapes = [{name: tuple(value.shape) for name, value in state.items()} for state in states]
    assert shapes == [
        {"qkv.weight": (96, 32), "qkv.bias": (96,), "proj.weight": (32, 32), "proj.bias": (32,)}
    ] * len(IMPLEMENTATIONS)
    bare = RCMAttention(32, 2, qkv_bias=False)
    assert set(bare.state_dict()) == {"qkv.weight", "proj.weight", "proj.bias"}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sigma_data": 0.5, "qkv_bias": False},
        {"parametrization": "cm"},
        {"parametrization": "trigflow"},
        {"parametrization": "none"},
    ],
    ids=str,
)
def test_eager_and_triton_agree_and_are_right(options, device):
    eager, ours = pair(device, **options)
    x, t = given(device)
    weigh = torch.randn_like(x)
    found, other = gradients(ours, x, t, weigh), gradients(eager, x, t, weigh)
    for i, (one, two) in enumerate(zip(found, other, strict=True)):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=2e-5, msg=lambda m, i=i: f"{i}: {m}")
    torch.testing.assert_close(found[0].double(), in_fp64(eager, x, t), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("impl", ["eager", "triton"])
def test_one_time_is_a_time_for_all(impl, device):
    layer = RCMAttention(32, 2, impl=impl).to(device)
    x, _ = given(device, C=32)
    with torch.no_grad():
        y = layer(x, torch.full((2,), 0.75, device=device))
        for one in (0.75, torch.tensor(0.75), torch.tensor(0.75, device=device)):
            assert torch.equal(layer(x, one), y)
        assert torch.equal(layer(x, 0), x) and torch.equal(layer(x, 0.0), x)
        assert torch.equal(layer(x, torch.tensor([0, 0], device=device)), x)
    t = torch.tensor(0.75, device=device, requires_grad=True)
    layer(x, t).sum().backward()
    assert t.grad.shape == ()


@pytest.mark.parametrize("impl", ["eager", "triton"])
def test_coefficients_at_the_boundaries(impl):
    skip, out = RCMAttention(32, 2, impl=impl).get_skip_coefficients(torch.tensor([0.0, 1.0, 1e4]))
    torch.testing.assert_close(skip, torch.tensor([1.0, 0.5, 1e-8]))
    torch.testing.assert_close(out, torch.tensor([0.0, 0.5**0.5, 1.0]))
    skip, out = RCMAttention(32, 2, sigma_data=0.5).get_skip_coefficients(1e4)
    assert skip < 1e-8 and out == pytest.approx(0.5), "c_out ends at sigma_data"
    cm = RCMAttention(32, 2, parametrization="cm")
    assert [float(c) for c in cm.get_skip_coefficients(0.002)] == [1.0, 0.0]


@pytest.mark.parametrize("impl", ["eager", "triton"])
def test_autocast_trains_and_keeps_the_dtype_of_x(impl, device):
    layer = RCMAttention(48, 3, impl=impl).to(device)
    x, t = given(device)
    lower = torch.bfloat16 if device == "cuda" else torch.float16  # no bf16 in the interpreter
    with torch.autocast(device, dtype=lower):
        y = layer(x, t)
    assert y.dtype is torch.float32
    y.square().mean().backward()
    assert all(p.grad.dtype is torch.float32 and p.grad.any() for p in layer.parameters())
    right = in_fp64(layer, x, t)
    assert 0 < (y.double() - right).norm() <= 5e-3 * right.norm()


def test_a_training_step_is_the_same(device):
    losses = []
    for layer in pair(device):
        x, t = given(device)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
        steps = []
        for _ in range(3):
            loss = mse_loss(layer(x, t), torch.ones_like(x))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps.append(loss.item())
        losses.append(steps)
    assert losses[0][2] < losses[0][0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("impl", ["eager", "triton"])
def test_compiled_in_one_graph(impl, backend, device):
    torch._dynamo.reset()
    layer = dict(zip(("eager", "triton"), pair(device), strict=True))[impl]
    x, t = given(device)
    weigh = torch.randn_like(x)
    graph = torch.compile(layer, fullgraph=True, backend=backend)
    y = graph(x, t)
    found = (y, *torch.autograd.grad(y, [x, t, *layer.parameters()], weigh))
    for one, two in zip(found, gradients(layer, x, t, weigh), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


def test_auto_takes_triton_on_a_gpu_and_eager_elsewhere(device, monkeypatch):
    layer = RCMAttention(32, 2).to(device)
    x, t = given(device, C=32)
    calls = []
    whole = module.project_and_skip
    monkeypatch.setattr(
        module, "project_and_skip", lambda *a, **o: (calls.append(1), whole(*a, **o))[1]
    )
    layer(x, t)
    assert len(calls) == (device == "cuda" and refusal(x.device) is None)


def test_attention_is_by_whoever_is_faster(monkeypatch):
    from kernelbench.nn import attend

    monkeypatch.setattr(attend, "_arch", lambda device: "sm_90")
    table = {("sm_90", 64, False): "triton", ("sm_90", 64, True): "sdpa"}
    monkeypatch.setattr(attend, "_FASTEST", table)

    def choice(D=64, dtype=torch.bfloat16, wanted=()):
        three = [torch.empty(1, 4, 2, D, dtype=dtype) for _ in range(3)]
        for i in wanted:
            three[i].requires_grad_()
        return attend.fastest(*three)

    assert choice() == "triton"
    assert choice(D=32) == choice(dtype=torch.float32) == "sdpa"
    for i in range(3):
        assert choice(wanted=[i]) == "sdpa"
        with torch.no_grad():
            assert choice(wanted=[i]) == "triton"
        table["sm_90", 64, True] = "triton"
        assert choice(wanted=[i]) == "triton"
        table["sm_90", 64, True] = "sdpa"
    monkeypatch.setattr(attend, "_arch", lambda device: "none")
    assert choice() == "sdpa"


@pytest.mark.parametrize("training", [False, True])
def test_our_attention_in_the_module_eager_and_compiled(training, device, monkeypatch):
    """As on a GPU where it is the faster."""
    from kernelbench.nn import attend

    monkeypatch.setattr(attend, "_arch", lambda device: "here")
    monkeypatch.setattr(attend, "_FASTEST", {("here", 16, grad): "triton" for grad in (0, 1)})
    calls = []
    whole = attend.rcm_attention
    monkeypatch.setattr(
        attend, "rcm_attention", lambda *a, **o: (calls.append(1), whole(*a, **o))[1]
    )
    eager, ours = (layer.half() for layer in pair(device))
    x, t = given(device)
    x = x.detach().half().requires_grad_(training)
    with torch.set_grad_enabled(training):
        right = eager(x, t)
        assert not calls
        torch.testing.assert_close(ours(x, t), right, rtol=2e-3, atol=2e-3)
        assert len(calls) == 1
        torch._dynamo.reset()
        graph = torch.compile(ours, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(graph(x, t), right, rtol=2e-3, atol=2e-3)
        assert len(calls) == 2


def test_our_attention_is_an_operator_put_together_right(device):
    from kernelbench.nn import attend

    qkv = torch.randn(2, 9, 3, 2, 16, device=device, dtype=torch.float16)
    torch.library.opcheck(attend._traced, qkv.unbind(2))


def test_int8_is_for_inference():
    layer = RCMAttention(32, 2, impl="triton_int8")
    with pytest.raises(RuntimeError, match=r"for inference .* torch.no_grad\(\)"):
        layer(torch.randn(1, 4, 32), 0.5)


def test_int8_takes_attention_from_its_kernel(monkeypatch, device):
    """The kernel itself has tests of its own: here, a stand-in says what it was given."""
    import types

    from kernelbench import kernels

    seen = {}

    def stand_in(q, k, v, **options):
        seen.update(options, shape=tuple(q.shape))
        return module.sdpa(q, k, v)

    fake = types.SimpleNamespace(rcm_attention_int8=stand_in)
    monkeypatch.setitem(sys.modules, "kernelbench.kernels.rcm_int8", fake)
    monkeypatch.setattr(kernels, "rcm_int8", fake, raising=False)
    eager, _ = pair(device)
    layer = RCMAttention(48, 3, impl="triton_int8").to(device)
    layer.load_state_dict(eager.state_dict())
    x, t = given(device)
    with torch.no_grad():
        torch.testing.assert_close(layer(x, t), eager(x, t), rtol=1e-5, atol=1e-5)
    assert seen == {"x": None, "t": None, "parametrization": "none", "shape": (2, 9, 3, 16)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 33, "num_heads": 2}, "multiple of num_heads, got dim = 33"),
        ({"dim": 514, "num_heads": 2}, "at most 256 elements, got 257"),
        ({"dim": 32, "impl": "cuda"}, "no impl 'cuda'. Known: auto, eager, triton"),
        ({"dim": 32, "parametrization": "emd"}, "did you mean 'edm'"),
        ({"dim": 32, "sigma_data": 0.0}, "positive, finite sigma_data"),
        ({"dim": 32, "sigma_data": 2.0, "parametrization": "trigflow"}, "sigma_data = 1"),
    ],
)
def test_what_it_cannot_be_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        RCMAttention(**options)


def test_what_it_cannot_take_is_named(device):
    layer = RCMAttention(32, 2).to(device)
    x = torch.randn(2, 4, 32, device=device)
    for error, message, arguments in (
        (ValueError, r"x of shape \(B, N, 32\), got \(2, 4, 16\)", (x[..., :16], 0.5)),
        (ValueError, r"x of shape \(B, N, 32\)", (x[0], 0.5)),
        (ValueError, r"t of shape \(B,\), here \(2,\), got \(3,\)", (x, torch.ones(3))),
        (ValueError, "mixes t in under 'edm', got None", (x, None)),
        (TypeError, "weights of torch.float32, got x of torch.float16", (x.half(), 0.5)),
        (RuntimeError, "got x on meta", (x.to("meta"), 0.5)),
        (RuntimeError, "and t on meta", (x, torch.ones(2, device="meta"))),
    ):
        with pytest.raises(error, match=message):
            layer(*arguments)


def test_it_says_what_it_is():
    text = repr(RCMAttention(32, 2, impl="eager"))
    assert "dim=32, num_heads=2, sigma_data=1.0, parametrization='edm', impl='eager'" in text


def test_the_example_runs(device):
    code = ROOT / "examples/rcm.py"
    done = subprocess.run(
        [sys.executable, str(code)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "agree" in done.stdout
