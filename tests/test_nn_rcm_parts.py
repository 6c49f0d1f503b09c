"""RCMAttention with parts that others changed: `triton` and `auto` do what `eager` does."""

import copy

import pytest
import torch
from test_nn_rcm import given, gradients
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from kernelbench.nn import RCMAttention
from kernelbench.nn import rcm as module


class LoRA(nn.Module):
    """As adapters wrap a layer: without a weight of its own name."""

    def __init__(self, base):
        super().__init__()
        self.base_layer = base
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x):
        return self.base_layer(x) + self.up(self.down(x))


class Scaled(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 0.5


def wrap(layer):
    layer.proj, layer.qkv = LoRA(layer.proj), LoRA(layer.qkv)


def subclass(layer):
    layer.proj.__class__ = Scaled


def replace_forward(layer):
    forward = layer.proj.forward
    layer.proj.forward = lambda x: forward(x) + 1


def hook(layer):
    layer.proj.register_forward_hook(lambda module, given, out: out * 2)


def pre_hook(layer):
    layer.proj.register_forward_pre_hook(lambda module, given: (given[0] + 1,))


def backward_hook(layer):
    layer.proj.register_full_backward_hook(lambda module, grads, _: (grads[0] * 3,))


CHANGES = {
    "wrap": wrap,
    "subclass": subclass,
    "replaced forward": replace_forward,
    "hook": hook,
    "pre-hook": pre_hook,
    "backward hook": backward_hook,
    "spectral_norm": lambda layer: parametrizations.spectral_norm(layer.proj).eval(),
    "old spectral_norm": lambda layer: spectral_norm(layer.proj).eval(),
    "weight_norm": lambda layer: parametrizations.weight_norm(layer.proj),
    "old weight_norm": lambda layer: weight_norm(layer.proj),
    "orthogonal": lambda layer: parametrizations.orthogonal(layer.proj),
    "prune": lambda layer: prune.random_unstructured(layer.proj, "weight", 0.5),
    "other layer": lambda layer: setattr(layer, "proj", nn.Sequential(layer.proj, nn.Tanh())),
}


def pair(device, change, **options):
    torch.manual_seed(0)
    eager = RCMAttention(48, 3, impl="eager", **options).to(device)
    ours = copy.deepcopy(eager)
    ours.impl = "triton"
    for layer in (eager, ours):
        torch.manual_seed(1)  # some changes draw
        change(layer)
        layer.to(device)
    return eager, ours


@pytest.mark.filterwarnings("ignore:.*(weight_norm|spectral_norm).*:FutureWarning")
@pytest.mark.parametrize("name", CHANGES)
def test_what_was_changed_of_proj_is_done(name, device):
    eager, ours = pair(device, CHANGES[name])
    assert ours.why_apart is not None
    x, t = given(device)
    weigh = torch.randn_like(x)
    found, right = gradients(ours, x, t, weigh), gradients(eager, x, t, weigh)
    for one, two in zip(found, right, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=2e-5)
    plain = RCMAttention(48, 3, impl="eager").to(device)
    plain.load_state_dict(eager.state_dict(), strict=False)
    if name != "backward hook":
        assert not torch.allclose(right[0], plain(x, t), rtol=1e-3), "the change changes nothing"


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("name", ["weight_norm", "old weight_norm", "prune", "spectral_norm"])
def test_steps_of_training_are_the_same(name, device):
    losses = []
    for layer in pair(device, CHANGES[name]):
        x, t = given(device)
        layer.train()
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
        steps = []
        for _ in range(3):
            loss = (layer(x, t) - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps.append(loss.item())
        losses.append(steps)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def calls(monkeypatch, name):
    found = []
    whole = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *a, **o: (found.append(1), whole(*a, **o))[1])
    return found


def test_an_untouched_projection_is_fused_with_or_without_a_bias(device, monkeypatch):
    fused = calls(monkeypatch, "project_and_skip")
    for bias in (True, False):
        eager, ours = pair(device, lambda layer: None, proj_bias=bias, qkv_bias=bias)
        assert ours.why_apart is None and (ours.proj.bias is not None) == bias
        x, t = given(device)
        torch.testing.assert_close(ours(x, t), eager(x, t), rtol=1e-4, atol=2e-5)
    assert len(fused) == 2


def test_a_projection_that_was_given_without_its_bias_is_fused(device):
    eager, ours = pair(device, lambda layer: setattr(layer.proj, "bias", None))
    x, t = given(device)
    assert ours.why_apart is None
    torch.testing.assert_close(ours(x, t), eager(x, t), rtol=1e-4, atol=2e-5)


def test_why_a_projection_is_called_apart_is_said(device):
    said = {name: pair(device, change)[1].why_apart for name, change in CHANGES.items()}
    assert said["wrap"] == "it is a LoRA, not an nn.Linear"
    assert said["hook"] == said["pre-hook"] == said["backward hook"] == "it has hooks"
    assert said["replaced forward"] == "its forward was replaced"
    assert "Parametrized" in said["weight_norm"]


def test_hooks_on_all_modules_are_called(device):
    layer = pair(device, lambda layer: None)[1]
    x, t = given(device)
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, i, o: seen.append(m))
    try:
        layer(x, t)
    finally:
        handle.remove()
    assert layer.proj in seen and layer.why_apart is None


def test_a_skip_apart_is_a_kernel_eager_and_pytorch_s_own_where_it_is_compiled(device, monkeypatch):
    apart = calls(monkeypatch, "skip")
    eager, ours = pair(device, hook)
    x, t = given(device)
    ours(x, t)
    assert apart == [1]
    torch._dynamo.reset()
    graph = torch.compile(ours, backend="aot_eager")
    torch.testing.assert_close(graph(x, t), eager(x, t), rtol=1e-4, atol=2e-5)
    assert apart == [1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("kind", ["edm", "cm", "trigflow"])
def test_the_skip_apart_is_right_to_its_gradients(kind, dtype, device):
    torch.manual_seed(0)
    f, x = (torch.randn(2, 5, 12, device=device).to(dtype).requires_grad_() for _ in "fx")
    t = (torch.rand(2, device=device) + 0.3).requires_grad_()
    y = module.skip(f, x, t, parametrization=kind, sigma_data=1.0)
    dy = torch.randn_like(y)
    found = y, *torch.autograd.grad(y, (f, x, t), dy)
    exact = [each.detach().double().requires_grad_() for each in (f, x, t)]
    c_skip, c_out = (c[:, None, None] for c in module.coefficients(exact[2], kind, 1.0))
    right = c_skip * exact[1] + c_out * exact[0]
    rights = right, *torch.autograd.grad(right, exact, dy.double())
    for one, two in zip(found, rights, strict=True):
        allowed = 2e-3 if one.dtype is torch.float16 else 1e-5
        assert (one.double() - two).norm() <= allowed * two.norm()


@pytest.fixture
def alone(tmp_path):
    """A process group of this process."""
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def sharded(layer):
    """FSDP2: of the projection alone, and of all."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(next(layer.parameters()).device.type, (1,))
    fully_shard(layer.proj, mesh=mesh)
    return fully_shard(layer, mesh=mesh)


def in_parallel(layer):
    return nn.parallel.DistributedDataParallel(layer)


@pytest.mark.parametrize("share", [sharded, in_parallel])
def test_layers_that_are_shared_among_processes_train_alike(share, alone, device):
    eager, ours = pair(device, lambda layer: None)
    x, t = given(device)
    weigh = torch.randn_like(x)
    right = gradients(eager, x, t, weigh)
    y = share(ours)(x, t)
    (y * weigh).sum().backward()
    grads = [getattr(p.grad, "full_tensor", lambda p=p: p.grad)() for p in ours.parameters()]
    for one, two in zip((y, x.grad, t.grad, *grads), right, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=2e-5)


def test_it_is_made_where_it_is_asked_for_and_reset():
    layer = RCMAttention(32, 2, device="meta", dtype=torch.bfloat16)
    assert {p.device.type for p in layer.parameters()} == {"meta"}
    assert {p.dtype for p in layer.parameters()} == {torch.bfloat16}
    assert layer(torch.empty(2, 3, 32, device="meta", dtype=torch.bfloat16), 0.5).shape == (
        2,
        3,
        32,
    )
    layer = layer.to_empty(device="cpu").float()
    for weight in layer.parameters():
        nn.init.constant_(weight, torch.nan)
    torch.manual_seed(3)
    layer.reset_parameters()
    torch.manual_seed(3)
    again = RCMAttention(32, 2)
    assert all(map(torch.equal, layer.state_dict().values(), again.state_dict().values()))


def test_auto_in_fp64_is_eager():
    layer = RCMAttention(32, 2).double()
    x = torch.randn(2, 3, 32, dtype=torch.float64)
    assert layer(x, 0.5).dtype is torch.float64
