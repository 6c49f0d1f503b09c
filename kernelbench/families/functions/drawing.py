"""The arguments of a function, drawn for a case."""

from collections.abc import Mapping
from typing import Any

import torch

from kernelbench.families.functions.arguments import (
    OffsetsArgument,
    ScalarArgument,
    TensorArgument,
    value_of,
)
from kernelbench.families.providing import DTYPES, MetaDraw
from kernelbench.spec import Draw, UsageError

SEEDS = 1 << 31


def seed_of(draw: Draw) -> int:
    """A number that follows from the draw's own seed."""
    number = draw.integers(0, SEEDS, 1)
    return 0 if number.is_meta else int(number)


def scalar(argument: ScalarArgument, axes: Mapping[str, Any]) -> Any:
    """The value of an argument that is no tensor."""
    if argument.is_axis:
        return axes[argument.name]
    return value_of(argument.formula, axes, argument.name) if argument.formula else None


def drawn(
    argument: TensorArgument | OffsetsArgument, axes: Mapping[str, Any], draw: Draw
) -> torch.Tensor:
    """A tensor of a case. Raises UsageError for sizes that there cannot be."""
    if isinstance(argument, OffsetsArgument):
        return _offsets(argument, axes, draw)
    shape = argument.dims_at(axes)
    dtype = getattr(torch, argument.dtype or "float32")
    if argument.dtype in DTYPES:
        dtype = DTYPES[argument.dtype]
    tensor: torch.Tensor
    if dtype is torch.bool:
        tensor = draw.integers(0, 2, *shape).bool()
    elif argument.bounds is not None:
        low, high = (value_of(text, axes, argument.name) for text in argument.bounds)
        if low >= high:
            raise UsageError(f"argument {argument.name}: no whole number is in [{low}:{high}]")
        limits = torch.iinfo(dtype)
        if low < limits.min or high > limits.max + 1:
            raise UsageError(
                f"argument {argument.name}: {argument.dtype} holds {limits.min} to {limits.max}, "
                f"not [{low}:{high}]"
            )
        tensor = draw.integers(low, high, *shape).to(dtype)
    elif dtype.itemsize == 1:
        tensor = draw(*shape, dtype=torch.float32).mul_(argument.scale).to(dtype)
    else:
        tensor = draw(*shape, dtype=dtype if argument.dtype else None)
        tensor = tensor.mul_(argument.scale) if argument.scale != 1 else tensor
    return tensor


def _offsets(argument: OffsetsArgument, axes: Mapping[str, Any], draw: Draw) -> torch.Tensor:
    """Sequences of random lengths, at least 1 each, that fill `total` rows."""
    count = value_of(argument.count, axes, argument.name)
    total = value_of(argument.total, axes, argument.name)
    if not 1 <= count <= total:
        raise UsageError(f"argument {argument.name}: {count} sequences in {total} rows")
    keys = draw.integers(0, 1 << 40, total - 1)
    cuts = keys.argsort()[: count - 1].sort().values + 1
    ends = torch.tensor([total], device=keys.device)
    return torch.cat([torch.zeros_like(ends), cuts, ends]).to(torch.int32)


class RealDraw(MetaDraw):
    """Tensors with memory, for a reference that does not run without."""

    def __init__(self, dtype: torch.dtype, device: str) -> None:
        super().__init__(dtype)
        self.device = torch.device(device)
        self._generator = torch.Generator(self.device).manual_seed(0)

    def __call__(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        out = torch.empty(shape, dtype=dtype or self.dtype, device=self.device)
        return out.normal_(generator=self._generator)

    def integers(self, low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=self._generator, device=self.device)
