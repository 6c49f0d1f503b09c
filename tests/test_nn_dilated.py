"""`nn.DilatedAttention`: PyTorch's operators and the kernels compute the same; what it refuses."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from kernelbench.nn import DilatedAttention
from kernelbench.nn import dilated as module
from kernelbench.nn import lse as lse_module

WAYS: list[dict[str, Any]] = [
    {},
    {"offset_rule": "segment_index", "combine": "mean"},
    {"offset_rule": "head_group", "order": "morton", "reorder": True},
]


def draw(device: str, dtype: torch.dtype = torch.float32, G: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 21, 4, 8), (2, 21, G, 8), (2, 21, G, 8)]
    drawn = [torch.randn(shape, generator=generator) for shape in shapes]
    return [x.to(device, dtype).requires_grad_() for x in drawn]


def results(impl: Any, tensors: list[Tensor], causal: bool, **ways: Any) -> list[Tensor]:
    o = DilatedAttention([8, 21], [1, 3], impl=impl, **ways)(*tensors, is_causal=causal)
    do = torch.linspace(-1, 1, o.numel(), device=o.device, dtype=o.dtype).view_as(o)
    return [o, *torch.autograd.grad(o, tensors, do)]


@pytest.mark.parametrize(
    "ways", [WAYS[0], *(pytest.param(ways, marks=pytest.mark.slow) for ways in WAYS[1:])], ids=str
)
def test_pytorch_and_the_kernels_compute_the_same(ways: dict[str, Any], device: str) -> None:
    causal = "reorder" not in ways
    tensors = draw(device)
    for one, other in zip(
        results("triton", tensors, causal, **ways),
        results("eager", tensors, causal, **ways),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ways", WAYS[:2], ids=str)
def test_gradients_by_pytorch_are_those_of_the_function(ways: dict[str, Any], device: str) -> None:
    """In fp64, heads sharing keys, through the weights of branches."""
    tensors = [x.detach().double()[:, :9, :, :4].requires_grad_() for x in draw(device)]
    attention = DilatedAttention([4, 9], [1, 2], impl="eager", **ways)
    assert torch.autograd.gradcheck(lambda *a: attention(*a, is_causal=True), tensors)


def test_auto_takes_pytorch_where_the_kernels_do_not_run_and_says_so_once(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SAID", set())
    attention, tensors = DilatedAttention([8], [1]), draw(device, torch.float64)
    why = "tensors on cpu" if device == "cpu" else "tensors of torch.float64"
    with pytest.warns(UserWarning, match=f"PyTorch's attention, not our kernels: {why}"):
        attention(*tensors)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attention(*tensors)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"impl": "cuda"}, ValueError, "no impl 'cuda'. Known: auto, eager, triton"),
        ({"dropout": 0.1}, NotImplementedError, "dropout"),
        ({"dilation_rates": [1, 2]}, ValueError, "as many segment_lengths as dilation_rates"),
        ({"combine": "sum"}, ValueError, "sum"),
    ],
)
def test_what_it_does_not_take(arguments: dict[str, Any], error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        DilatedAttention(**{"segment_lengths": [8], "dilation_rates": [1], **arguments})


def test_tensors_that_it_does_not_take(device: str) -> None:
    q, k, v = draw(device)
    with pytest.raises(TypeError, match=r"is of torch.float16, got q of torch.float32"):
        DilatedAttention([8], [1], dtype=torch.float16)(q, k, v)
    with pytest.raises(RuntimeError, match="is on meta, got q on"):
        DilatedAttention([8], [1], device="meta")(q, k, v)
    with pytest.raises(ValueError, match=r"the same B, N and D, got \(2, 21, 4, 8\), \(2, 5"):
        DilatedAttention([8], [1], impl="eager")(q, k[:, :5], v)
    with pytest.raises(NotImplementedError, match="take impl='triton'"):
        DilatedAttention([8], [1], impl="eager", order="tile", reorder=True)(q, k, v, True)


def test_it_says_what_it_is() -> None:
    assert repr(DilatedAttention([8], [2], combine="mean")) == (
        "DilatedAttention([8], [2], offset_rule='head_mod', combine='mean', order='identity', "
        "grid=None, reorder=False, impl='auto')"
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_rows_that_are_not_contiguous(dtype: torch.dtype, device: str) -> None:
    rows = draw(device, dtype)
    columns = [x.detach().mT.contiguous().mT.requires_grad_() for x in rows]
    for one, other in zip(
        results("eager", columns, True), results("eager", rows, True), strict=True
    ):
        assert torch.equal(one, other)


def test_it_is_differentiated_once(device: str) -> None:
    tensors = draw(device, torch.float64)
    o = DilatedAttention([8], [1], impl="eager")(*tensors)
    gradients = torch.autograd.grad(o.square().sum(), tensors, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(gradients[0].sum(), tensors)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("D", [20, 64])
def test_products_of_matrices_are_attention_of_what_is_given(dtype: torch.dtype, D: int) -> None:
    """o and lse of more keys than these: what a branch's backward is given."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, k2, v2, do = (torch.randn(2, 3, 5, D, generator=generator).to(dtype) for _ in range(6))
    leaves = [x.double().requires_grad_() for x in (q, k, v)]
    keys = torch.cat([leaves[1], k2.double()], 2), torch.cat([leaves[2], v2.double()], 2)
    whole, lse = lse_module.plain(leaves[0], *keys, False)
    found = lse_module._PLAIN.backward(do, q, k, v, whole.to(dtype), lse.float(), False)
    _, *wanted = torch.autograd.grad(whole, leaves, do.double())
    for one, other in zip(found[1:], wanted, strict=True):
        assert (one - other).norm() < (2e-2 if dtype is torch.bfloat16 else 1e-5) * other.norm()
    o, of = lse_module.plain(q, k, v, True)
    right, right_of = lse_module.plain(*(x.double() for x in (q, k, v)), True)
    assert of.dtype is torch.float32 and (of - right_of).abs().max() < 1e-5
    assert (o - right).norm() < 1e-5 * right.norm()
