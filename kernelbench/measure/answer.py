"""The contract of an answer: plain tensors, as many as the family names, of the right dtype, shape
and device, computed when the call returns, and left alone by every later call.

Everything is looked at through torch.Tensor's own methods: what an answer overrides is never run.
"""

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from kernelbench.measure.inputs import stored
from kernelbench.measure.workload import Workload

LATER_CALLS = 64  # in which a buffer that a provider kept must come round again, if it ever does
FEW_CALLS = 2  # in which one must come round that lies in memory which PyTorch does not know
_MARK = 77


class ContractError(RuntimeError):
    """What a call returned is no answer. The message says what was returned and what is asked."""


@dataclass(frozen=True)
class Form:
    """What an output must be like. dtype_of: who asks for that dtype, in words; until it is
    `fixed`, an output that is not floating-point may have any of its own."""

    dtype: torch.dtype
    dtype_of: str
    fixed: bool = False
    shape: torch.Size | None = None
    stride: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Contract:
    """What the outputs of one family's call must be like, as far as it is known."""

    device: torch.device
    forms: Mapping[str, Form]

    def check(self, returned: Any, names: Sequence[str]) -> None:
        """Raises ContractError unless `returned` is what a call may return."""
        outputs = _unpacked(returned)
        if len(outputs) != len(names):
            raise ContractError(f"returns {len(outputs)} outputs, expected {', '.join(names)}")
        for name, tensor in zip(names, outputs, strict=True):
            self._one(name, tensor)

    def _one(self, name: str, tensor: Any) -> None:
        if type(tensor) is not torch.Tensor:
            kind = type(tensor).__name__
            raise ContractError(f"returned {kind} as {name}, expected exactly torch.Tensor")
        if tensor.layout is not torch.strided:
            raise ContractError(f"returned {name} as {tensor.layout}, expected a strided tensor")
        if lazy := _lazy(tensor):
            raise ContractError(f"returned {name} unfinished ({lazy}), expected its values")
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
        """Outputs that do not lie in memory as the baseline's do."""
        return [n for n, t in produced.items() if self.forms[n].stride not in (None, t.stride())]


def _text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _unpacked(returned: Any) -> tuple[Any, ...]:
    """A tuple's own items; no subclass's that makes something of looking through them."""
    if isinstance(returned, tuple) and type(returned).__iter__ is tuple.__iter__:
        return tuple(tuple.__iter__(returned))
    if isinstance(returned, torch.Tensor):
        return (returned,)
    kind = type(returned).__name__
    raise ContractError(f"returned {kind}, expected a torch.Tensor or a tuple of them")


def _lazy(tensor: torch.Tensor) -> str:
    """What is still to be done to the values of a plain tensor, or nothing."""
    if torch.Tensor.is_neg(tensor):
        return "its negation is left to whoever reads it"
    if torch.Tensor.is_conj(tensor):
        return "its conjugation is left to whoever reads it"
    if torch._is_zerotensor(tensor):
        return "it has no memory"
    return ""


def has_memory(tensor: torch.Tensor) -> bool:
    """Whether something can be written into a tensor's elements."""
    return tensor.layout is torch.strided and not torch._is_zerotensor(tensor)


def copied(outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Copies in stream order, by torch.Tensor's own methods."""
    return [torch.Tensor.clone(torch.Tensor.detach(tensor)) for tensor in outputs]


def watch_of(outputs: Sequence[torch.Tensor], workload: Workload) -> list[StorageWeakRef]:
    """The storages of outputs that do not lie in inputs, to see later whether they are kept."""
    inside = stored(workload.given())
    storages = [tensor.untyped_storage() for tensor in outputs]
    return [StorageWeakRef(s) for s in storages if s.data_ptr() not in inside]


def kept(watched: Sequence[StorageWeakRef]) -> bool:
    """Whether somebody holds on to an output that the harness has let go of: not those who merely
    wait for Python to collect what holds it, as Triton's interpreter does."""
    for generation in range(3):
        if all(tensor.expired() for tensor in watched):
            return False
        gc.collect(generation)
    return not all(tensor.expired() for tensor in watched)


def overwritten(workload: Workload, calls: int) -> list[str]:
    """Outputs of a call that one of the next `calls` changes; inputs are not looked at."""
    workload.ready()
    inside = stored(workload.given())
    with workload.grad_mode():
        first = dict(zip(workload.names, workload.call(), strict=True))
        apart = {n: t for n, t in first.items() if t.untyped_storage().data_ptr() not in inside}
        for tensor in apart.values():
            tensor.data.fill_(_MARK)
        for _ in range(calls):
            workload.restore()
            workload.call()
    if any(tensor.is_cuda for tensor in apart.values()):
        torch.cuda.synchronize()
    return [name for name, tensor in apart.items() if not bool((tensor == _MARK).all())]
