"""The contract of an answer: plain tensors, as many as the family names, of the right dtype, shape
and device, computed when the call returns, and not changed by any later call.

All checks use torch.Tensor's own methods: a method that an answer overrides is never run.
"""

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from kernelbench.measure.inputs import storage_addresses
from kernelbench.measure.workload import Workload

LATER_CALLS = 64  # within these, a buffer that a provider keeps must be reused, if it ever is
FEW_CALLS = 2  # the same, for a buffer in memory that PyTorch does not manage
_MARK = 77


class ContractError(RuntimeError):
    """A call returned no valid answer. The message says what was returned and what was expected."""


@dataclass(frozen=True)
class Form:
    """What an output must be like; None is not checked.

    dtype_of: who asks for that dtype, in words. fixed: whether every output must have it; else only
    a floating-point or complex output must.
    """

    dtype: torch.dtype
    dtype_of: str
    fixed: bool = False
    shape: torch.Size | None = None
    stride: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Contract:
    """What the outputs of a family's call must be like, as far as it is known. forms: by output."""

    device: torch.device
    forms: Mapping[str, Form]

    def check(self, returned: Any, names: Sequence[str]) -> None:
        """Raises ContractError unless `returned` has the outputs `names` in their forms."""
        outputs = _unpacked(returned)
        if len(outputs) != len(names):
            raise ContractError(f"returns {len(outputs)} outputs, expected {', '.join(names)}")
        for name, tensor in zip(names, outputs, strict=True):
            self._check_output(name, tensor)

    def _check_output(self, name: str, tensor: Any) -> None:
        if type(tensor) is not torch.Tensor:
            kind = type(tensor).__name__
            raise ContractError(f"returned {kind} as {name}, expected exactly torch.Tensor")
        if tensor.layout is not torch.strided:
            raise ContractError(f"returned {name} as {tensor.layout}, expected a strided tensor")
        if pending := _pending(tensor):
            raise ContractError(f"returned {name} unfinished ({pending}), expected its values")
        if tensor.device != self.device:
            raise ContractError(
                f"returned {name} on {tensor.device}, the inputs are on {self.device}"
            )
        form = self.forms[name]
        whole = not (tensor.is_floating_point() or tensor.is_complex())
        if tensor.dtype is not form.dtype and (form.fixed or not whole):
            raise ContractError(
                f"returned {_text(tensor.dtype)} for {name}, {form.dtype_of} asks for "
                f"{_text(form.dtype)}"
            )
        if form.shape is not None and tensor.shape != form.shape:
            raise ContractError(
                f"{name} has shape {tuple(tensor.shape)}, the baseline's {tuple(form.shape)}"
            )

    def other_strides(self, produced: Mapping[str, torch.Tensor]) -> list[str]:
        """Names of outputs whose strides are not the baseline's."""
        return [n for n, t in produced.items() if self.forms[n].stride not in (None, t.stride())]


def _text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _unpacked(returned: Any) -> tuple[Any, ...]:
    """The outputs as a tuple. Raises ContractError for a tuple subclass with its own iterator."""
    if isinstance(returned, tuple) and type(returned).__iter__ is tuple.__iter__:
        return tuple(tuple.__iter__(returned))
    if isinstance(returned, torch.Tensor):
        return (returned,)
    kind = type(returned).__name__
    raise ContractError(f"returned {kind}, expected a torch.Tensor or a tuple of them")


def _pending(tensor: torch.Tensor) -> str:
    """The operation that a plain tensor's values still await, in words; or ""."""
    if torch.Tensor.is_neg(tensor):
        return "its negation is left to whoever reads it"
    if torch.Tensor.is_conj(tensor):
        return "its conjugation is left to whoever reads it"
    if torch._is_zerotensor(tensor):
        return "it has no memory"
    return ""


def has_memory(tensor: torch.Tensor) -> bool:
    """Whether a tensor's elements are stored, so that they can be written to."""
    return tensor.layout is torch.strided and not torch._is_zerotensor(tensor)


def copies_of(outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Copies, queued in stream order by torch.Tensor's own methods."""
    return [torch.Tensor.clone(torch.Tensor.detach(tensor)) for tensor in outputs]


def weak_storages(outputs: Sequence[torch.Tensor], workload: Workload) -> list[StorageWeakRef]:
    """Weak references to the storages of outputs that do not lie in inputs."""
    inputs = storage_addresses(workload.inputs())
    storages = [tensor.untyped_storage() for tensor in outputs]
    return [StorageWeakRef(s) for s in storages if s.data_ptr() not in inputs]


def still_referenced(storages: Sequence[StorageWeakRef]) -> bool:
    """Whether a storage that the harness has released still has an owner.

    Garbage that Python has yet to collect does not count: Triton's interpreter leaves some.
    """
    for generation in range(3):
        if all(storage.expired() for storage in storages):
            return False
        gc.collect(generation)
    return not all(storage.expired() for storage in storages)


def overwritten(workload: Workload, calls: int) -> list[str]:
    """Names of outputs of a call that one of the next `calls` changes; not of those in inputs."""
    workload.ready()
    inputs = storage_addresses(workload.inputs())
    with workload.grad_mode():
        first = dict(zip(workload.names, workload.call(), strict=True))
        own = {n: t for n, t in first.items() if t.untyped_storage().data_ptr() not in inputs}
        marked = {name: _marked(tensor) for name, tensor in own.items()}
        for _ in range(calls):
            workload.restore()
            workload.call()
    if any(tensor.is_cuda for tensor in own.values()):
        torch.cuda.synchronize()
    return [name for name, tensor in own.items() if not bool((tensor == marked[name]).all())]


def _marked(tensor: torch.Tensor) -> Any:
    """Fill an output with what a call would not write there, and return that. A boolean has but
    two values: each element becomes the other one."""
    if tensor.dtype is torch.bool:
        return tensor.data.logical_not_().clone()
    tensor.data.fill_(_MARK)
    return _MARK
