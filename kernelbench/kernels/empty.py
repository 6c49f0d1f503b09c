"""Two kernels that are nearly all launch: one that does nothing, and y = 2·x + z.

For measuring, on plain tensors alone: no gradients, and no operators of torch.library.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernelbench.kernels.launch import (
    Launch,
    Plans,
    Repeats,
    ceil_div,
    check_device,
    is_watched,
    layout_of,
)

_BLOCK, _WARPS = 1024, 4
_DTYPES = torch.float32, torch.float16, torch.bfloat16


@triton.jit
def _do_nothing(x_ptr):
    """One program, which returns."""


@triton.jit
def _add_twice(x_ptr, z_ptr, y_ptr, n, BLOCK: tl.constexpr):
    """BLOCK elements a program, computed in fp32 and rounded once."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(x_ptr + at, mask=inside).to(tl.float32)
    z = tl.load(z_ptr + at, mask=inside).to(tl.float32)
    tl.store(y_ptr + at, 2.0 * x + z, mask=inside)


def _nothing_launches(kind: Hashable, tensors: Sequence[Any]) -> tuple[Launch, ...]:
    return (Launch(_do_nothing, (1,), {"x_ptr": tensors[0]}, {}, {"num_warps": _WARPS}),)


def _twice_launches(kind: Hashable, tensors: Sequence[Any]) -> tuple[Launch, ...]:
    x, z, y = tensors
    n = x.numel()
    args = {"x_ptr": x, "z_ptr": z, "y_ptr": y, "n": n}
    grid = (ceil_div(n, _BLOCK),)
    return (Launch(_add_twice, grid, args, {"BLOCK": _BLOCK}, {"num_warps": _WARPS}),)


_REPEATS: Plans[Repeats] = Plans()  # of tensors of one layout, which were checked


def _repeats(*tensors: Tensor) -> Repeats:
    layouts = tuple(map(layout_of, tensors))
    repeats = _REPEATS.get(layouts)
    return repeats or _REPEATS.add(layouts, Repeats(_checked(*tensors)))


def _checked(x: Tensor, z: Tensor | None = None) -> torch.device:
    for name, tensor in (("x", x), ("z", x if z is None else z)):
        alike = tensor.shape == x.shape and tensor.dtype == x.dtype
        if not (alike and tensor.is_contiguous() and x.dtype in _DTYPES):
            raise ValueError(
                f"x and z are contiguous, of one shape, in fp32, fp16 or bf16; got {name} of shape "
                f"{tuple(tensor.shape)}, strides {tensor.stride()} and {tensor.dtype}"
            )
    return check_device(x=x, z=z)


def _refuse_gradients(*tensors: Tensor) -> None:
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise NotImplementedError("this kernel has no gradient: call it under torch.no_grad()")


def do_nothing(x: Tensor) -> Tensor:
    """Launch a kernel of one program that does nothing; returns x itself. The launch is prepared in
    the first call with tensors of a layout, as our other kernels' are.

    Raises ValueError for an x that is not contiguous, or no number of 16 or 32 bits, RuntimeError
    for a device without kernels, NotImplementedError where a gradient is wanted.
    """
    _refuse_gradients(x)
    _repeats(x).run(None, (x,), _nothing_launches)
    return x


def add_twice(x: Tensor, z: Tensor) -> Tensor:
    """y = 2·x + z in one launch, in fp32 with one rounding, prepared likewise.

    x, z: contiguous, of one shape, in fp32, fp16 or bf16, and so is y. What it raises: see
    `do_nothing`.
    """
    _refuse_gradients(x, z)
    repeats = _repeats(x, z)
    y = torch.empty_like(x)
    repeats.run(None, (x, z, y), _twice_launches)
    return y


def do_nothing_plainly(x: Tensor) -> Tensor:
    """The same kernel by Triton's own launcher, without checks, as a user of Triton calls it."""
    if is_watched():
        _run(_nothing_launches, x)
    else:
        _do_nothing[(1,)](x, num_warps=_WARPS)
    return x


def add_twice_plainly(x: Tensor, z: Tensor) -> Tensor:
    """The same, likewise."""
    y = torch.empty_like(x)
    if is_watched():
        _run(_twice_launches, x, z, y)
    else:
        n = x.numel()
        _add_twice[(ceil_div(n, _BLOCK),)](x, z, y, n, BLOCK=_BLOCK, num_warps=_WARPS)
    return y


def _run(launches: Callable[[Hashable, Sequence[Any]], Sequence[Launch]], *tensors: Tensor) -> None:
    for launch in launches(None, tensors):
        launch.run()
