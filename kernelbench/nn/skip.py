"""The skip by a kernel of its own: for a projection that is not fused with it."""

from typing import Any

import torch
from torch import Tensor

from kernelbench.kernels.launch import check_device, differentiable_once, on_device, refuse_tangents
from kernelbench.kernels.rcm import RcmFormula, formula_of
from kernelbench.kernels.rcm_attention import skip_launch

CM_EPSILON = 0.002  # the smallest t of a consistency model


def coefficients(t: Tensor, parametrization: str, sigma: float) -> tuple[Tensor, Tensor]:
    """c_skip and c_out of t, of t's shape and dtype, by PyTorch's operators."""
    if parametrization == "none":
        return torch.zeros_like(t), torch.ones_like(t)
    if parametrization == "trigflow":
        sine = t.sin()
        c_skip = (t.cos() + sine).reciprocal()
        return c_skip, -sine * c_skip
    u = t - CM_EPSILON if parametrization == "cm" else t
    wide = torch.tensor(sigma, dtype=t.dtype)
    root = torch.hypot(t, wide)  # squares may leave the range of fp32
    c_skip = wide / (torch.hypot(u, wide) if parametrization == "cm" else root)
    c_out = torch.where(t.abs() > sigma, sigma * (u / root), u * (wide / root))
    return c_skip.square(), c_out


def skip(f: Tensor, x: Tensor, t: Tensor, *, parametrization: str, sigma_data: float) -> Tensor:
    """y = c_skip(t_b)·x + c_out(t_b)·f in one kernel, in fp32 with one rounding, of x's dtype.

    f, x: (B,N,C) of float32, float16 or bfloat16; t: (B,), read as fp32. With gradients of all
    three, by PyTorch's operators, which are not differentiable themselves.
    """
    formula = formula_of(parametrization, sigma_data, False, 1.0, 1)
    refuse_tangents("RCMAttention", f, x, t)
    check_device(f=f, x=x, t=t)
    y: Tensor = _Skip.apply(f, x, t, formula)  # type: ignore[no-untyped-call]
    return y


class _Skip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, f: Tensor, x: Tensor, t: Tensor, formula: RcmFormula) -> Tensor:
        f = f.contiguous()
        x = x if x.stride(-1) == 1 else x.contiguous()
        ctx.formula = formula
        ctx.save_for_backward(f, x, t)
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        with on_device(x.device):
            skip_launch(f, x, t, y, formula=formula).run()
        return y

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        f, x, t = ctx.saved_tensors
        df = dx = dt = None
        with torch.enable_grad():
            time = t.detach().float().requires_grad_()
            c_skip, c_out = coefficients(time, ctx.formula.parametrization, ctx.formula.sigma_data)
        wide = dy.float()
        if ctx.needs_input_grad[0]:
            df = (c_out.detach()[:, None, None] * wide).to(f.dtype)
        if ctx.needs_input_grad[1]:
            dx = (c_skip.detach()[:, None, None] * wide).to(x.dtype)
        if ctx.needs_input_grad[2]:
            along_x, along_f = ((wide * part).sum((1, 2)) for part in (x, f))
            (dt,) = torch.autograd.grad((c_skip, c_out), time, (along_x, along_f))
            dt = dt.to(t.dtype)
        return df, dx, dt, None
