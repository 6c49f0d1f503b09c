"""Autograd's edges of every function that a kernel computes: right, or refused in words."""

import pytest
import torch
from torch.autograd import forward_ad

from kernelbench.kernels.projection import project_and_skip
from kernelbench.kernels.rcm_attention import rcm_attention
from kernelbench.kernels.rcm_int8 import rcm_attention_int8
from kernelbench.kernels.rms_norm import rms_norm
from kernelbench.kernels.rotary import apply_rotary
from kernelbench.nn.skip import skip


def draw(*shape, device):
    return torch.randn(*shape, device=device)


def of_rms_norm(device):
    weight = draw(8, device=device)
    return (draw(3, 8, device=device), weight), rms_norm


def of_residual(device):
    given = [draw(3, 8, device=device), draw(8, device=device), draw(3, 8, device=device)]
    return given, lambda x, weight, residual: rms_norm(x, weight, residual=residual)


def of_rotary(device):
    q, k = (draw(1, 4, 2, 8, device=device) for _ in "qk")
    angles = draw(4, 4, device=device)
    return (q, k), lambda q, k: apply_rotary(q, k, angles.cos(), angles.sin())


def of_attention(device):
    given = [draw(1, 5, 1, 16, device=device) for _ in "qkv"]
    given += [draw(1, 5, 16, device=device), torch.rand(1, device=device) + 0.3]
    return given, rcm_attention


def of_projection(device):
    given = [draw(1, 5, 16, device=device), draw(16, 16, device=device), draw(16, device=device)]
    given += [draw(1, 5, 16, device=device), torch.rand(1, device=device) + 0.3]
    return given, project_and_skip


def of_skip(device):
    given = [draw(1, 5, 16, device=device) for _ in "fx"] + [torch.rand(1, device=device) + 0.3]
    return given, lambda f, x, t: skip(f, x, t, parametrization="edm", sigma_data=1.0)


FUNCTIONS = {
    "rms_norm": of_rms_norm,
    "rms_norm with a residual": of_residual,
    "rotary": of_rotary,
    "attention": of_attention,
    "projection": of_projection,
    "skip": of_skip,
}


@pytest.fixture(params=FUNCTIONS)
def function(request, device):
    torch.manual_seed(0)
    given, call = FUNCTIONS[request.param](device)

    def outputs(*given):
        found = call(*given)
        return found if isinstance(found, tuple) else (found,)

    return list(given), outputs


@pytest.mark.parametrize("upstream", ["constant", "graded"])
def test_a_second_derivative_raises_whatever_requires_grad(function, upstream):
    """A penalty of the gradient: of a sum nothing that comes down requires grad. A gradient that
    the input is no part of leads nowhere."""
    given, outputs = function
    for number in range(len(given)):
        leaves = [tensor.detach() for tensor in given]
        leaves[number].requires_grad_()
        total = sum((y if upstream == "constant" else y.square()).sum() for y in outputs(*leaves))
        (gradient,) = torch.autograd.grad(total, leaves[number], create_graph=True)
        assert gradient.requires_grad
        with pytest.raises(RuntimeError, match=r"differentiated again|not have been used"):
            torch.autograd.grad(gradient.square().sum(), leaves[number])


def test_a_gradient_that_is_only_kept_may_have_a_graph(function):
    given, outputs = function
    leaves = [tensor.requires_grad_() for tensor in given]
    plain = torch.autograd.grad([y.sum() for y in outputs(*leaves)], leaves)
    graph = torch.autograd.grad([y.sum() for y in outputs(*leaves)], leaves, create_graph=True)
    assert all(map(torch.equal, plain, graph))


def test_forward_mode_is_refused_in_words(function):
    given, outputs = function
    with forward_ad.dual_level():
        outputs(*given)  # nothing has a tangent
        for number, each in enumerate(given):
            dual = list(given)
            dual[number] = forward_ad.make_dual(each, torch.ones_like(each))
            with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
                outputs(*dual)


def test_forward_mode_of_8_bits_is_refused_in_words(device):
    q, k, v = (draw(1, 5, 1, 16, device=device).half() for _ in "qkv")
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(q, torch.ones_like(q))
        with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
            rcm_attention_int8(dual, k, v, None, None, parametrization="none")
