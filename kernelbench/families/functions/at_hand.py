"""Functions and arguments that are at hand, from Python."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from kernelbench.families.functions.arguments import (
    Argument,
    Arguments,
    MadeArgument,
    ScalarArgument,
    TensorArgument,
    hold_free,
)
from kernelbench.families.functions.targets import Target, find, of_callable
from kernelbench.spec import UsageError

_OWN = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


def target_of(function: Callable[..., Any] | str) -> Target:
    """The target of a function, or of its name. Raises UsageError for what is no function."""
    return find(function) if isinstance(function, str) else of_callable(function)


def arguments_of(given: Mapping[str, Any], make: Target | None) -> tuple[Arguments, Target | None]:
    """Arguments by name. A floating tensor stands for its shape and dtype; whole numbers and
    booleans stay as they are, as does what is no tensor.

    Raises UsageError for a floating tensor that is not contiguous, whose like is not drawn.
    """
    arguments: list[Argument] = []
    axes: dict[str, tuple[Any, ...]] = {}
    kept: dict[str, Any] = {}
    dtypes = [_OWN[t.dtype] for t in given.values() if _drawn(t) and t.dtype in _OWN]
    for name, value in given.items():
        hold_free(name)
        if _drawn(value):
            if not value.is_contiguous():
                raise UsageError(f"args: {name} is not contiguous: make it by inputs=function")
            own = _OWN.get(value.dtype, str(value.dtype).removeprefix("torch."))
            dims = tuple(str(n) for n in value.shape)
            argument = TensorArgument(name, dims, "" if [own] == dtypes[:1] else own)
            arguments.append(argument)
            axes[name] = (argument.shape,)
        elif isinstance(value, (bool, int, float)) or value is None:
            arguments.append(ScalarArgument(name, is_axis=value is not None))
            if value is not None:
                axes[name] = (value,)
        else:
            arguments.append(MadeArgument(name))
            kept[name] = value
    if kept and make is None:
        make = Target("args", _Kept(kept))
    return Arguments(tuple(arguments), (), axes, tuple(dtypes[:1]) or ("fp32",)), make


def _drawn(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


class _Kept:
    """Hands out copies of what was given, where they are wanted."""

    def __init__(self, kept: Mapping[str, Any]) -> None:
        self._kept = kept

    def __call__(self, device: Any) -> dict[str, Any]:
        copies: dict[str, Any] = tree_map_only(
            torch.Tensor, lambda tensor: tensor.to(device, copy=True), dict(self._kept)
        )
        return copies
