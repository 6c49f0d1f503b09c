"""The bytes that PyTorch's operators touch: each runs on real tensors, counted by storage."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from kernelbench.kernels import operators
from kernelbench.spec import KernelbenchError

# Operators that use only the shape of their tensor arguments.
_LIKE = (
    *("empty_like", "zeros_like", "ones_like", "full_like"),
    *("new_empty", "new_empty_strided", "new_zeros", "new_ones", "new_full"),
)
CLEARING = ("zeros", "zero_", "fill_", "full", *_LIKE)
_UNWRITTEN = ("empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided")
_OVERWRITING = ("copy_", "fill_", "zero_")  # in place, without reading the old values
_ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"


@dataclass(frozen=True)
class Use:
    """What one launch or operator touched of one storage, in bytes.

    by: the kernel or operator. names: of a kernel's parameters. read, written: distinct bytes.
    issued_*: every lane's bytes, repeats included; for an operator, where they are unknown, the
    distinct bytes.
    """

    by: str
    storage: Any
    names: tuple[str, ...]
    read: int
    written: int
    issued_read: int
    issued_written: int


def extent(tensor: Tensor) -> Any:
    """The bytes of its storage that a tensor occupies: a mask of bools [bytes of the storage]."""
    width = tensor.element_size()
    mask = np.zeros(tensor.untyped_storage().nbytes(), dtype=bool)
    if tensor.numel():
        start = tensor.storage_offset() * width
        strides = (*(stride * width for stride in tensor.stride()), 1)
        view = np.lib.stride_tricks.as_strided(mask[start:], (*tensor.shape, width), strides)
        view[...] = True
    return mask


class Operators(TorchDispatchMode):
    """Passes to `record` what every aten operator touches while `counting`.

    An operator reads the distinct bytes of its tensor arguments once, also of broadcast ones, and
    writes its results once. Views move nothing; an operator in place reads what it changes. An
    operator that is several kernels in PyTorch, each over all of the memory (`_PIECES`), is split
    into them. If one kernel of an operator reads bytes twice, they count once.
    """

    def __init__(self, record: Callable[[Use], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._record = record
        self.counting = False

    def __enter__(self) -> Any:
        operators.onlookers += 1
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        operators.onlookers -= 1
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    @contextmanager
    def counted(self, on: bool) -> Iterator[None]:
        """Inside, counting is on or off."""
        before, self.counting = self.counting, on
        try:
            yield
        finally:
            self.counting = before

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if self.counting and name in _PIECES:
            with self:
                return _PIECES[name](*args, **kwargs)
        out = func(*args, **kwargs)
        # Ours are counted by their kernels. Operators that return a bool compare layouts of tensors
        # for forward mode.
        if self.counting and func.namespace != "kernelbench" and not isinstance(out, bool):
            self._count(func, name, args, kwargs, out)
        return out

    def _count(self, func: Any, name: str, args: Any, kwargs: Any, out: Any) -> None:
        names = (argument.name for argument in func._schema.arguments)
        values = dict(zip(names, args, strict=False)) | kwargs
        read, written = [], []
        for argument in func._schema.arguments:
            tensors = list(_flat([values.get(argument.name)]))
            changed = argument.alias_info is not None and argument.alias_info.is_write
            written += tensors if changed else []
            read += [] if changed and name in _OVERWRITING else tensors
        arguments = {tensor.untyped_storage().data_ptr() for tensor in read + written}
        results = [t for t in _flat([out]) if t.untyped_storage().data_ptr() not in arguments]
        if not results and not written and any(True for _ in _flat([out])):
            return  # a view
        if name == _ATTENTION and not torch.is_grad_enabled():
            results = results[:1]  # as cuDNN, which writes no lse without a gradient to come
        self.touch(
            name,
            [] if name in _LIKE else read,
            [] if name in _UNWRITTEN else [*written, *results],
        )

    def touch(self, name: str, read: Sequence[Tensor], written: Sequence[Tensor]) -> None:
        """Record one operator: the distinct bytes of each storage."""
        masks: dict[int, tuple[Any, list[Any]]] = {}
        for which, tensors in enumerate((read, written)):
            for tensor in tensors:
                storage = tensor.untyped_storage()
                if storage.nbytes():
                    none = np.zeros(storage.nbytes(), dtype=bool)
                    _, touched = masks.setdefault(storage.data_ptr(), (storage, [none, none]))
                    touched[which] = touched[which] | extent(tensor)
        for storage, touched in masks.values():
            count = [int(mask.sum()) for mask in touched]
            self._record(Use(name, storage, (), *count, *count))


def _flat(values: Sequence[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _flat(value)


def _slice_backward(
    grad: Tensor, sizes: Sequence[int], dim: int, start: int, end: int, step: int
) -> Tensor:
    """Zeros, and a copy into a slice of them."""
    whole = grad.new_zeros(sizes)
    torch.ops.aten.slice.Tensor(whole, dim, start, end, step).copy_(grad)
    return whole


def _select_backward(grad: Tensor, sizes: Sequence[int], dim: int, index: int) -> Tensor:
    whole = grad.new_zeros(sizes)
    whole.select(dim, index).copy_(grad)
    return whole


def _masked_fill(x: Tensor, mask: Tensor, value: Any) -> Tensor:
    """A copy, and a pass over it in place."""
    return x.clone().masked_fill_(mask, value)


_PIECES: dict[str, Callable[..., Tensor]] = {
    "slice_backward": _slice_backward,
    "select_backward": _select_backward,
    "masked_fill": _masked_fill,
}


class AsOnGPU(TorchFunctionMode):
    """Counts F.rms_norm as on a GPU: one kernel forward, and two backward, the second for dw.

    On a CPU it is some seven operators in PyTorch, which run but are not counted.
    """

    def __init__(self, operators: Operators) -> None:
        super().__init__()
        self._operators = operators

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.rms_norm:
            return self._norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _norm(
        self,
        input: Tensor,
        normalized_shape: Any,
        weight: Tensor | None = None,
        eps: float | None = None,
    ) -> Any:
        if weight is None:
            raise KernelbenchError("F.rms_norm without a weight is not counted: give it one")
        args = self._operators, input, normalized_shape, weight, eps
        return _RmsNorm.apply(*args)  # type: ignore[no-untyped-call]


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, operators: Operators, x: Tensor, shape: Any, weight: Tensor, eps: float | None
    ) -> Tensor:
        with operators.counted(False):
            y = F.rms_norm(x, shape, weight, eps)
            rstd = x.new_empty(x.shape[: x.ndim - len(shape)], dtype=torch.float32)
        if operators.counting:
            operators.touch("_fused_rms_norm", [x, weight], [y, rstd])
        ctx.save_for_backward(x, weight, rstd)
        ctx.options = operators, shape, eps
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        operators, shape, eps = ctx.options
        x, weight, rstd = ctx.saved_tensors
        with operators.counted(False), torch.enable_grad():
            x_, w_ = x.detach().requires_grad_(), weight.detach().requires_grad_()
            dx, dw = torch.autograd.grad(F.rms_norm(x_, shape, w_, eps), (x_, w_), dy)
        if operators.counting:
            operators.touch("_fused_rms_norm_backward", [dy, x, rstd, weight], [dx])
            operators.touch("_fused_rms_norm_backward", [dy, x, rstd], [dw])
        return None, dx, None, dw, None
