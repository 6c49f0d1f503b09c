"""SwiGLU against PyTorch's operators in fp64, forward and backward."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import silu

from kernelbench.kernels import swiglu as module
from kernelbench.kernels.launch import Target, described_for
from kernelbench.kernels.swiglu import SwigluConfig, configs, swiglu

RELATIVE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


@pytest.fixture(params=[torch.float32, torch.float16, torch.bfloat16], ids=str)
def dtype(request, device):
    if device == "cpu" and request.param is torch.bfloat16:
        pytest.skip("bf16 arithmetic is wrong in Triton's interpreter")
    return request.param


def right(gate, up=None):
    gate, up = gate.chunk(2, -1) if up is None else (gate, up)
    return silu(gate) * up


def close(got, expected):
    assert got.shape == expected.shape
    if got.numel():
        error = (got.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30)
        assert error <= RELATIVE[got.dtype], float(error)


def checked(*tensors, config=None):
    """y and its gradients."""
    given = [tensor.detach().requires_grad_() for tensor in tensors]
    y = swiglu(*given, config=config)
    dy = torch.randn_like(y)
    wide = [tensor.detach().double().requires_grad_() for tensor in tensors]
    expected = right(*wide)
    close(y, expected)
    assert y.is_contiguous() and y.dtype == tensors[0].dtype
    grads = torch.autograd.grad(y, given, dy)
    for got, other in zip(grads, torch.autograd.grad(expected, wide, dy.double()), strict=True):
        assert got.dtype == y.dtype and got.is_contiguous()
        close(got, other)
    with torch.no_grad():
        assert torch.equal(swiglu(*tensors, config=config), y)


SHAPES = [
    (1,),
    (7,),
    (1, 1),
    (3, 257),
    (2, 3, 96),
    (5, 1000),
    (1, 4, 2048),
    (0, 8),
    (3, 0),
    (2, 0, 4),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_gradients(shape, dtype, device):
    torch.manual_seed(0)
    checked(*(torch.randn(shape, dtype=dtype, device=device) for _ in "gu"))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_packed(shape, dtype, device):
    torch.manual_seed(1)
    checked(torch.randn(*shape[:-1], 2 * shape[-1], dtype=dtype, device=device))


@pytest.mark.parametrize("F", [1, 24, 129, 1100])
def test_rows_are_read_where_they_lie(F, device, monkeypatch):
    """Halves of a packed projection, every second row; an expanded upstream gradient."""
    packed = torch.randn(2, 6, 2 * F, device=device)
    rows = torch.randn(4, 3 * F, device=device)
    monkeypatch.setattr(torch.Tensor, "contiguous", None)  # no copy
    views = [packed.chunk(2, -1), (rows[::2, :F], rows[1::2, F : 2 * F])]
    results = [(gate, up, swiglu(gate, up)) for gate, up in views]
    monkeypatch.undo()
    for gate, up, y in results:
        close(y, right(gate.double(), up.double()))
        checked(gate, up)
        checked(gate.contiguous(), up)
    found, expected = (
        torch.func.grad(lambda gate, up, f=f: f(gate, up).sum(), (0, 1))(*given)
        for f, given in ((swiglu, views[0]), (right, [t.double() for t in views[0]]))
    )
    for got, other in zip(found, expected, strict=True):
        close(got, other)
    checked(rows[:, : 2 * F])
    checked(packed.mT, packed.mT)  # copied


@pytest.mark.parametrize("itemsize", [2, 4])
def test_every_config(itemsize, device):
    dtype = {2: torch.float16, 4: torch.float32}[itemsize]
    x = torch.randn(3, 2 * 700, dtype=dtype, device=device)
    found = configs(arch="sm_90", itemsize=itemsize)
    assert len({*found}) == len(found) == 12
    for config in found:
        checked(x, config=config)
        checked(*x.chunk(2, -1), config=config)


@pytest.mark.parametrize("value", [0.0, 100.0, -100.0, 3e38, -3e38, float("inf"), float("-inf")])
def test_far_from_zero_it_is_what_pytorch_says(value, device):
    gate = torch.full((4,), value, device=device).requires_grad_()
    up = torch.full((4,), 2.0, device=device).requires_grad_()
    results = [
        (y, *torch.autograd.grad(y.sum(), (gate, up)))
        for y in (f(gate, up) for f in (swiglu, right))
    ]
    torch.testing.assert_close(*results, equal_nan=True)


def test_the_packed_form_of_what_pytorch_does_around_it(device):
    """The form of two tensors is held by test_citizens.py."""
    x = torch.randn(2, 4, 16, device=device)
    torch.library.opcheck(module._operator, (x.clone().requires_grad_(), None, []))
    assert swiglu(x.to("meta")).shape == (2, 4, 8)
    program = torch.export.export(Model(), (x,))
    assert torch.equal(program.module()(x), swiglu(x))
    _, found = torch.func.jvp(swiglu, (x,), (x.cos(),))
    close(found, torch.func.jvp(right, (x.double(),), (x.cos().double(),))[1])
    found = torch.func.grad(lambda x: swiglu(x).pow(2).sum())(x)
    close(found, torch.func.grad(lambda x: right(x).pow(2).sum())(x.double()))
    assert torch.equal(torch.func.vmap(swiglu)(x), swiglu(x))
    call = torch.compile(swiglu, fullgraph=True, backend="aot_eager")
    results = call(x.requires_grad_()), swiglu(x)
    grads = (torch.autograd.grad(y.square().sum(), x)[0] for y in results)
    assert torch.equal(*results) and torch.equal(*grads)


class Model(torch.nn.Module):
    def forward(self, x):
        return swiglu(x)


def launched(*tensors):
    """Launches forward and backward on an H200, described."""
    given = [tensor.requires_grad_() for tensor in tensors]
    with described_for(Target("sm_90", 132)) as launches:
        y = swiglu(*given)
        y.backward(torch.empty_like(y))
    return launches


def meta(*shape):
    return torch.empty(shape, dtype=torch.bfloat16, device="meta")


def test_tensors_without_gaps_are_one_row_and_tiles_are_seldom_idle():
    for launch in launched(meta(8, 512, 1000), meta(8, 512, 1000)):
        assert launch.args["M"] == 1 and launch.constexprs["STEP"] == 16
        assert launch.grid == (8 * 512 * 1000 // 1024,)
    for F, width in ((4096, 1024), (1536, 512), (1100, 128), (100, 128), (8, 8)):
        for launch in launched(meta(64, 2 * F)):
            shape = launch.constexprs["BLOCK_M"], launch.constexprs["BLOCK_N"]
            assert shape == (1024 // width, width) and launch.args["M"] == 64


def test_very_large_tensors_have_a_grid_and_one_launch_each():
    huge = launched(meta(1 << 22, 1 << 14), meta(1 << 22, 1 << 14))
    assert [launch.grid for launch in huge] == [(1 << 26,)] * 2


def test_what_does_not_fit_is_refused(device):
    x = torch.randn(3, 8, device=device)
    for error, words, given in (
        (TypeError, "float32, float16 or bfloat16, got torch.float64", (x.double(), x.double())),
        (TypeError, "one dtype", (x, x.half())),
        (TypeError, "sparse", (x.to_sparse(), x)),
        (ValueError, r"one shape \(..., F\).* got \(3, 8\) and \(8,\)", (x, x[0])),
        (ValueError, r"packed.*got \(3, 7\)", (x[:, :7],)),
        (RuntimeError, "several devices", (x, x.to("meta"))),
        (
            RuntimeError,
            "has no memory|several devices",
            (torch._efficientzerotensor(3, 8, device=device), x),
        ),
    ):
        with pytest.raises(error, match=words):
            swiglu(*given)
    for wrong in ({"block": 48}, {"warps": 3}):
        with pytest.raises(ValueError, match="not a power of two"):
            replace(SwigluConfig(64, 1), **wrong)
    y = swiglu(x.requires_grad_())
    (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        dx.sum().backward()
