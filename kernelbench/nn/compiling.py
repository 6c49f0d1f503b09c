"""Functions of tensors that are compiled for themselves, for any number of models in a process."""

from collections.abc import Callable, Hashable
from functools import lru_cache
from itertools import count
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

_KEPT = 256  # graphs, or few of each: a process needs some for each width, dtype and mode
_numbers = count()


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of tensors and numbers, compiled for itself; inside a graph of torch.compile,
    itself.

    Each dtype, width and the like has a graph of its own; the first two axes of a tensor, unless
    they are its last, are rows, of which a graph takes any number once a second one came.
    """

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            return function(*args)
        return _alone(function, tuple(map(_kind, args)), _state(args[0].device.type))(*args)

    return call


@lru_cache(maxsize=_KEPT)
def _alone(function: Callable[..., Any], *fixed: Hashable) -> Callable[..., Any]:
    """Compiled for one case. torch.compile counts graphs, and notes sizes that vary, by the code of
    a function, of which each case therefore has a copy with a name of its own."""
    assert isinstance(function, FunctionType)
    code = function.__code__
    copy = code.replace(co_name=f"{code.co_name}_{next(_numbers)}")
    return torch.compile(FunctionType(copy, function.__globals__), fullgraph=True)


def _kind(argument: Any) -> tuple[Hashable, ...]:
    """What a graph is made for; of numbers of rows, whether they are 0, 1 or more."""
    if not isinstance(argument, Tensor):
        return (argument,)
    rows = min(2, max(0, argument.dim() - 1))
    few = tuple(min(size, 2) for size in argument.shape[:rows])
    sizes = *few, *argument.shape[rows:]
    flags = argument.requires_grad, argument.is_inference(), argument.is_contiguous()
    return type(argument), argument.dtype, argument.device, sizes, flags


def _state(device: str) -> tuple[Hashable, ...]:
    """What a graph depends on besides."""
    narrow = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), narrow
