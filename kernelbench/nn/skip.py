"""The skip as a separate kernel, for a projection that is not fused with it."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kernelbench.kernels.launch import check_device, on_device, packed_rows, refusal
from kernelbench.kernels.operators import (
    Transform,
    admit,
    differentiable_once,
    direct,
    empty_gradients,
    final,
    gradients_of,
    needed_gradients,
    transformed,
)
from kernelbench.kernels.rcm import formula_of
from kernelbench.kernels.rcm_attention import skip_launch
from kernelbench.kernels.sharding import PARTIAL, WHOLE, Ways, needed_cut, sharded

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
    wide = torch.tensor(sigma, dtype=t.dtype, device="cpu")
    root = torch.hypot(t, wide)  # squares may leave the range of fp32
    c_skip = wide / (torch.hypot(u, wide) if parametrization == "cm" else root)
    c_out = torch.where(t.abs() > sigma, sigma * (u / root), u * (wide / root))
    return c_skip.square(), c_out


def slopes(t: Tensor, parametrization: str, sigma: float) -> tuple[Tensor, Tensor]:
    """The derivatives of c_skip and c_out at t, likewise."""
    c_skip, _ = coefficients(t, parametrization, sigma)
    if parametrization == "none":
        return c_skip, c_skip
    if parametrization == "trigflow":
        return (t.sin() - t.cos()) * c_skip * c_skip, -c_skip * c_skip
    epsilon = CM_EPSILON if parametrization == "cm" else 0.0
    u, wide = t - epsilon, torch.tensor(sigma, dtype=t.dtype, device="cpu")
    root_u, root = torch.hypot(u, wide), torch.hypot(t, wide)
    share = wide / root
    of_out = share * ((sigma * share + epsilon * (t / root)) / root)
    return -2 * (u / root_u) * (c_skip / root_u), of_out


def skip(f: Tensor, x: Tensor, t: Tensor, *, parametrization: str, sigma_data: float) -> Tensor:
    """y = c_skip(t_b)·x + c_out(t_b)·f in one kernel, in fp32 with one rounding, of x's dtype.

    f, x: (B,N,C) of float32, float16 or bfloat16; t: (B,), read as fp32. With gradients of all
    three, by PyTorch's operators, which are not differentiable themselves. torch.compile takes it
    as one operator, `kernelbench::skip`.
    """
    tensors = f, x, t
    if direct(*tensors) and not (x.is_meta and refusal(x.device)):
        try:
            y: Tensor = _Skip.apply(*tensors, parametrization, sigma_data)  # type: ignore[no-untyped-call]
        except RuntimeError:
            admit("RCMAttention", *tensors)  # may raise a clearer error
            raise
        return y
    admit("RCMAttention", *tensors)
    formula_of(parametrization, sigma_data, False, 1.0, 1)
    rest = parametrization, float(sigma_data)
    result: Tensor = _TRANSFORM(tensors, rest) if transformed() else _operator(*tensors, *rest)
    return result


def _run(f: Tensor, x: Tensor, t: Tensor, parametrization: str, sigma_data: float) -> Tensor:
    formula = formula_of(parametrization, sigma_data, False, 1.0, 1)
    check_device(f=f, x=x, t=t)
    f, x = f.contiguous(), packed_rows(x)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    with on_device(x.device):
        skip_launch(f, x, t, y, formula=formula).run()
    return y


def _run_backward(
    dy: Tensor,
    f: Tensor,
    x: Tensor,
    t: Tensor,
    parametrization: str,
    sigma_data: float,
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """df, dx, dt, each where it is needed."""
    df = dx = dt = None
    time, wide = t.float(), dy.float()
    c_skip, c_out = coefficients(time, parametrization, sigma_data)
    if needs[0]:
        df = (c_out[:, None, None] * wide).to(f.dtype)
    if needs[1]:
        dx = (c_skip[:, None, None] * wide).to(x.dtype)
    if needs[2]:
        along_x, along_f = ((wide * part).sum((1, 2)) for part in (x, f))
        d_skip, d_out = slopes(time, parametrization, sigma_data)
        dt = (d_skip * along_x + d_out * along_f).to(t.dtype)
    return [df, dx, dt]


class _Skip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        ctx.rest = args[3:]
        ctx.save_for_backward(*args[:3])
        return _run(*args)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        f, x, t = ctx.saved_tensors
        parametrization, sigma_data = ctx.rest
        needs = ctx.needs_input_grad[:3]
        gradients = _run_backward(dy, f, x, t, parametrization, sigma_data, needs)
        return *gradients, None, None


@torch.library.custom_op("kernelbench::skip", mutates_args=())
def _operator(f: Tensor, x: Tensor, t: Tensor, parametrization: str, sigma_data: float) -> Tensor:
    """y."""
    return _run(f, x, t, parametrization, sigma_data)


@_operator.register_fake
def _(f: Tensor, x: Tensor, t: Tensor, parametrization: str, sigma_data: float) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("kernelbench::skip_backward", mutates_args=())
def _operator_backward(
    dy: Tensor,
    f: Tensor,
    x: Tensor,
    t: Tensor,
    parametrization: str,
    sigma_data: float,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """df, dx, dt; `absent` for what is not needed."""
    gradients = _run_backward(dy, f, x, t, parametrization, sigma_data, needs)
    df, dx, dt = gradients_of([g if g is None else g.contiguous() for g in gradients], x)
    return df, dx, dt


@_operator_backward.register_fake
def _(
    dy: Tensor,
    f: Tensor,
    x: Tensor,
    t: Tensor,
    parametrization: str,
    sigma_data: float,
    needs: list[bool],
) -> tuple[Tensor, ...]:
    return empty_gradients((f, x, t), needs, x)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.rest = inputs[3:]
    ctx.save_for_backward(*inputs[:3])


def _gradients(ctx: Any, dy: Tensor, call: Callable[..., Any] = _operator_backward) -> Any:
    rest = dict(zip(("parametrization", "sigma_data"), ctx.rest, strict=True))
    return needed_gradients(ctx, 3, call, dy, *ctx.saved_tensors, **rest)


_operator.register_autograd(_gradients, setup_context=_keep)


def _ways(f: Any, x: Any, t: Any, *rest: Any) -> Ways:
    for axis in range(3):
        yield (axis,), (axis, axis, WHOLE if axis else 0)


def _ways_backward(dy: Any, f: Any, x: Any, t: Any, *rest: Any) -> Ways:
    for axis in range(3):
        cuts = axis, axis, PARTIAL if axis else 0
        results = [needed_cut(needed, cut) for needed, cut in zip(rest[-1], cuts, strict=True)]
        yield results, (axis, axis, axis, WHOLE if axis else 0)


sharded(_operator, _ways)
sharded(_operator_backward, _ways_backward)
_TRANSFORM = Transform(
    "RCMAttention", _operator, _keep, partial(_gradients, call=final(_operator_backward))
)
