"""The fp64 form of a function: the same operators, whatever it says of its precision.

References round on the way, `x.float()` or `softmax(x, dtype=torch.float32)`, and out of it,
`y.to(x.dtype)`. Here every tensor that is floating is fp64, and whatever would make one that is
less, by a cast, a `dtype=` or a constructor, makes fp64 instead. Whole numbers and booleans stay.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class _Wide(TorchDispatchMode):
    """Operators with every floating `dtype` argument widened to `wide`."""

    def __init__(self, wide: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._wide = wide

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        args = tuple(self._widened(value) for value in args)
        kwargs = {name: self._widened(value) for name, value in (kwargs or {}).items()}
        if func.overloadpacket is torch.ops.aten.view and isinstance(args[1], torch.dtype):
            raise TypeError("it looks at the bits of a floating tensor (view of another dtype)")
        factory = func.overloadpacket.__name__ in _FACTORIES
        if factory and kwargs.get("dtype") is None and _makes_floating(func, args):
            kwargs["dtype"] = self._wide
        return func(*args, **kwargs)

    def _widened(self, value: Any) -> Any:
        if isinstance(value, torch.dtype) and value.is_floating_point:
            return self._wide
        return value


_FACTORIES = ("zeros", "ones", "empty", "rand", "randn", "eye", "linspace", "full", "scalar_tensor")


def _makes_floating(func: Any, args: tuple[Any, ...]) -> bool:
    if func.overloadpacket.__name__ in ("full", "scalar_tensor"):
        return isinstance(args[-1], float)
    return True


def widely(
    function: Callable[..., Any], tensors: Sequence[Any], dtype: torch.dtype
) -> tuple[Any, list[Any]]:
    """What a function returns of its arguments in fp64 (or fp32), and those arguments.

    Raises whatever the function does where an operator has no such form.
    """
    wide = [
        t.detach().to(dtype).requires_grad_(t.requires_grad)
        if isinstance(t, torch.Tensor) and t.is_floating_point()
        else t
        for t in tensors
    ]
    with _Wide(dtype):
        return function(*wide), wide
