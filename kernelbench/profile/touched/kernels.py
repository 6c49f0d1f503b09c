"""The bytes that a Triton kernel touches, from all memory accesses of Triton's interpreter."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import triton
from torch import Tensor
from triton.runtime.errors import InterpreterError

from kernelbench.kernels.launch import Launch, tensors_of
from kernelbench.profile.touched.operators import Use, extent
from kernelbench.spec import KernelbenchError

# The functions of the interpreter's C module that access memory, which all accesses use: positions
# of the pointers and the mask among the arguments, the bytes of an element, whether it reads, and
# whether it writes.
_Width = Callable[[tuple[Any, ...]], int]
_ACCESSES: dict[str, tuple[int, int | None, _Width, bool, bool]] = {
    "load": (0, 1, lambda args: int(np.dtype(args[3]).itemsize), True, False),
    "store": (0, 2, lambda args: int(args[1].dtype.itemsize), False, True),
    "atomic_rmw": (1, 3, lambda args: int(args[2].dtype.itemsize), True, True),
    "atomic_cas": (0, None, lambda args: int(args[2].dtype.itemsize), True, True),
}


class _Region:
    """One storage among a launch's arguments, and which of its bytes the kernel touched."""

    def __init__(self, tensor: Tensor) -> None:
        self.storage = tensor.untyped_storage()
        self.start, size = self.storage.data_ptr(), self.storage.nbytes()
        self.names: list[str] = []
        self.allowed = np.zeros(size, dtype=bool)  # bytes of the views among the arguments
        self.read, self.written = self.allowed.copy(), self.allowed.copy()
        self.issued_read = self.issued_written = 0


class _Memory:
    """The storages of one launch's arguments, and the accesses to them."""

    def __init__(self, launch: Launch) -> None:
        self.kernel = kernel_name(launch)
        regions: dict[int, _Region] = {}
        for name, tensor in tensors_of(launch.args):
            if tensor.untyped_storage().nbytes():
                address = tensor.untyped_storage().data_ptr()
                region = regions.setdefault(address, _Region(tensor))
                region.names.append(name.removesuffix("_ptr"))
                region.allowed |= extent(tensor)
        self._regions = [regions[start] for start in sorted(regions)]
        self._starts = np.array(sorted(regions), dtype=np.uint64)

    def note(self, pointers: Any, mask: Any, width: int, reads: bool, writes: bool) -> None:
        """Count one access by one program. Raises KernelbenchError where it is out of bounds."""
        addresses = np.asarray(pointers, dtype=np.uint64)
        if mask is not None:
            chosen = np.broadcast_to(np.asarray(mask).astype(bool), addresses.shape)
            addresses = addresses[chosen]
        addresses = addresses.reshape(-1)
        owner = np.searchsorted(self._starts, addresses, "right") - 1
        for index in np.unique(owner):
            if index < 0:
                self._complain(addresses, reads)
            region = self._regions[index]
            first = (addresses[owner == index] - self._starts[index]).astype(np.int64)
            if first.max() + width > region.allowed.size:
                self._complain(addresses, reads)
            for offsets in (first + byte for byte in range(width)):
                if not region.allowed[offsets].all():
                    self._complain(addresses, reads, region)
                if reads:
                    region.read[offsets] = True
                if writes:
                    region.written[offsets] = True
            region.issued_read += first.size * width * reads
            region.issued_written += first.size * width * writes

    def _complain(self, addresses: Any, reads: bool, region: _Region | None = None) -> None:
        where = f", beside {' and '.join(region.names)}" if region else ""
        raise KernelbenchError(
            f"{self.kernel} {'reads' if reads else 'writes'} out of bounds: of {addresses.size} "
            f"lanes that are not masked, some lie in no tensor that it was handed{where}. "
            "Mask them"
        )

    def uses(self) -> Iterator[Use]:
        """The uses of the touched storages. Raises KernelbenchError where none was touched."""
        if not any(region.issued_read or region.issued_written for region in self._regions):
            raise KernelbenchError(
                f"{self.kernel} ran without a load or a store: either it does nothing, or it "
                "reaches memory by a way that kernelbench.profile.touched.kernels does not see"
            )
        for region in self._regions:
            if region.issued_read or region.issued_written:
                yield Use(
                    self.kernel,
                    region.storage,
                    tuple(region.names),
                    int(region.read.sum()),
                    int(region.written.sum()),
                    region.issued_read,
                    region.issued_written,
                )


@dataclass
class Kernels:
    """A watcher of launches (see `launch.watched`): runs each, and passes its uses to `record`."""

    record: Callable[[Use], None]

    def __call__(self, launch: Launch) -> Any:
        memory = _Memory(launch)
        with _observed(memory):
            try:
                done = launch.queue()
            except InterpreterError as error:
                if isinstance(error.__cause__, KernelbenchError):
                    raise error.__cause__ from None
                raise
        for use in memory.uses():
            self.record(use)
        return done


@contextmanager
def _observed(memory: _Memory) -> Iterator[None]:
    """Inside, all accesses are counted. Raises KernelbenchError for an unknown interpreter."""
    module = _interpreter()
    originals = {name: getattr(module, name) for name in _ACCESSES}
    try:
        for name, original in originals.items():
            setattr(module, name, _noting(name, original, memory))
        yield
    finally:
        for name, original in originals.items():
            setattr(module, name, original)


def _noting(name: str, original: Callable[..., Any], memory: _Memory) -> Callable[..., Any]:
    pointers, mask, width, reads, writes = _ACCESSES[name]

    def access(*args: Any) -> Any:
        lanes = None if mask is None else args[mask]
        memory.note(args[pointers], lanes, width(args), reads, writes)
        return original(*args)

    return access


def _interpreter() -> Any:
    """The C module by which Triton's interpreter accesses memory. Raises KernelbenchError where
    Triton is not interpreting, or where the module has other functions than those known here."""
    if not triton.knobs.runtime.interpret:
        raise KernelbenchError(
            "the bytes of Triton kernels are counted in its interpreter: set TRITON_INTERPRET=1 "
            "before Python starts"
        )
    from triton.runtime import interpreter

    module = getattr(interpreter, "_interpreter", None)
    names = {n for n in dir(module) if not n.startswith("__") and _callable(module, n)}
    if names != set(_ACCESSES):
        raise KernelbenchError(
            f"Triton {triton.__version__}'s interpreter reaches memory by {sorted(names)}, "
            f"known are {sorted(_ACCESSES)}: teach kernelbench.profile.touched.kernels"
        )
    return module


def _callable(module: Any, name: str) -> bool:
    return inspect.isroutine(getattr(module, name))


def kernel_name(launch: Launch) -> str:
    """`projection.hopper.project`, with the module, since names repeat in several files."""
    function = launch.kernel.fn
    return f"{function.__module__.removeprefix('kernelbench.kernels.')}.{function.__name__}"
