"""Shared by all kernels of this room: the description of a launch, and where one can run."""

import operator
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, partial
from numbers import Integral
from typing import Any, TypeVar

import torch
import triton
from torch import Tensor

from kernelbench.kernels.interpreter import why_broken

INTERPRETED: bool = triton.knobs.runtime.interpret  # when the kernels were defined
_INTERPRETER_SMS = 4  # programs one after another: few suffice
_HERE: AbstractContextManager[None] = nullcontext()


@dataclass(frozen=True)
class Launch:
    """One kernel launch, fully described and not yet queued; making one needs no GPU.

    kernel: a function made by `triton.jit`.
    grid: programs along each axis.
    args: tensors, descriptors, scalars and tuples of these by parameter name; None for an absent
        tensor, which Triton treats as a constant, so the code for it is not compiled.
    constexprs: compile-time constants by parameter name.
    options: `num_warps`, `num_stages`; `launch_cooperative_grid` where all programs must run at
        once; `launch_pdl` where the kernel may start before the previous one ends.
    own: a tensor among the args that is the launch's own, the same whenever it is repeated.
    """

    kernel: Any
    grid: tuple[int, ...]
    args: Mapping[str, Any]
    constexprs: Mapping[str, Any]
    options: Mapping[str, int]
    own: Tensor | None = None

    def run(self) -> Any:
        """Queue the kernel on the current device's current stream; an empty grid is no work.

        Returns Triton's compiled kernel, None without work or in the interpreter. Where launches
        are `watched`, the watcher decides instead.
        """
        if 0 in self.grid:
            return None
        watcher = _watcher.get()
        if watcher is not None:
            return watcher(self)
        for name, tensor in tensors_of(self.args):
            check_memory(name, tensor)
        return self.queue()

    def queue(self) -> Any:
        """As `run`, watched or not; the grid is not empty."""
        return self.kernel[self.grid](**self.args, **self.constexprs, **self.options)


def tensors_of(args: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a launch by parameter name, also those in descriptors, and in tuples, there by
    the name of the field."""
    for name, value in args.items():
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, tuple):
            names = getattr(value, "_fields", [f"{name}.{i}" for i in range(len(value))])
            yield from tensors_of(dict(zip(names, value, strict=True)))
        elif isinstance(getattr(value, "base", None), Tensor):
            yield name, value.base


def refused_at_once(error: RuntimeError) -> bool:
    """Whether the driver refused a cooperative launch, because its programs cannot all run at once
    on the multiprocessors of its stream.

    `cuLaunchKernelEx` then returns CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE itself: it compares the
    grid with how many blocks can be resident before it queues anything, and the context stays
    usable, so that another kernel can be launched instead. Triton (3.6 and 3.7) raises the driver's
    text for that code alone.
    """
    return "too many blocks in cooperative launch" in str(error)


_watcher: ContextVar[Callable[[Launch], Any] | None] = ContextVar("watcher", default=None)
_target: ContextVar["Target | None"] = ContextVar("target", default=None)


@contextmanager
def watched(watcher: Callable[[Launch], Any]) -> Iterator[None]:
    """Pass every launch that this thread makes to `watcher`, which may `queue` it or not."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def is_watched() -> bool:
    """Whether launches of this thread are `watched`."""
    return _watcher.get() is not None


@dataclass(frozen=True)
class Target:
    """A GPU that need not exist here: its architecture, `sm_90`, and its multiprocessors."""

    arch: str
    sms: int


@contextmanager
def described_for(target: Target) -> Iterator[list[Launch]]:
    """Collect the launches that calls on meta tensors in this thread would make on a GPU.

    Yields a list that grows with every launch described; nothing is run. Meta tensors count as
    tensors of that GPU, at addresses that are multiples of 16.
    """
    launches: list[Launch] = []
    token = _target.set(target)
    _forget_devices()
    try:
        with watched(launches.append):
            yield launches
    finally:
        _target.reset(token)
        _forget_devices()


def describing() -> bool:
    """Whether launches of this thread are described, and meta tensors count as tensors of a GPU."""
    return _target.get() is not None


_values_of_devices: list[dict[Hashable, Any]] = []
Value = TypeVar("Value")
Plan = TypeVar("Plan")


def of_devices(values: dict[Hashable, Value]) -> dict[Hashable, Value]:
    """Register a cache of values for a device's tensors, cleared when meta tensors change their
    GPU."""
    _values_of_devices.append(values)
    return values


def _forget_devices() -> None:
    for cached in (refusal, arch_of, sm_count):
        cached.cache_clear()
    for values in _values_of_devices:
        values.clear()


_NOWHERE = -16  # the address of a tensor that is None


class _Prepared:
    """A launch that was run, to be repeated for other tensors of the same layout.

    Triton takes some 10 µs of host time to find the compiled kernel for the arguments of a call.
    This stores it, for any tensors of the same dtypes at addresses that are multiples of 16: Triton
    compiles for dtypes, for that, and for the values of scalars.
    The kernel's first parameters are its tensors, its descriptors of tensors, and tuples of these.
    """

    def __init__(self, launch: Launch, tensors: Sequence[Tensor | None], compiled: Any) -> None:
        """tensors: those that the launch takes, themselves or within others, and more."""
        values = {**launch.args, **launch.constexprs}
        args = [values[name] for name in launch.kernel.arg_names]
        first = 1 + max(i for i, value in enumerate(args) if any(tensors_of({"": value})))
        numbers = {id(tensor): number for number, tensor in enumerate(tensors)}
        numbers[id(None)] = len(tensors)
        self._own = launch.own
        for name, tensor in tensors_of(values):
            assert id(tensor) in numbers or tensor is self._own, f"{name} is none of the tensors"
        # What stands behind the addresses and None, each made of those before it.
        self._makers: list[Callable[[Sequence[Any], Sequence[Any]], Any]] = []
        order = [self._number(value, numbers, len(tensors) + 1) for value in args[:first]]
        # A tuple, since None is got, too: no metadata for hooks.
        self._none_first = operator.itemgetter(len(tensors), *order)
        self._rest = tuple(args[first:])
        self._grid = (*launch.grid, 1, 1)[:3]
        self._compiled = compiled
        self._unhooked = compiled.function, compiled.packed_metadata, None, None  # and one more

    def _number(self, value: Any, numbers: Mapping[int, int], made: int) -> int:
        """Where an argument stands among the addresses, None, and from `made` on what is made.
        numbers: of tensors and None, by id."""
        base = getattr(value, "base", value)
        if isinstance(value, tuple):
            parts = [self._number(part, numbers, made) for part in value]
            self._makers.append(lambda tensors, values: tuple([values[n] for n in parts]))
        elif isinstance(value, Tensor) and value is self._own:
            address = value.data_ptr()
            self._makers.append(lambda tensors, values: address)
        elif isinstance(base, Tensor) or value is None:
            if base is value:
                return numbers[id(base)]
            fields = {name: part for name, part in vars(value).items() if part is not base}
            self._makers.append(partial(_described, type(value), fields, numbers[id(base)]))
        else:
            self._makers.append(lambda tensors, values: value)
        return made + len(self._makers) - 1

    def run(self, tensors: Sequence[Tensor | None], addresses: list[Any], stream: int) -> None:
        """addresses: of the tensors, then None."""
        values = addresses
        if self._makers:
            values = addresses.copy()
            for make in self._makers:
                values.append(make(tensors, values))
        hooks = triton.knobs.runtime
        if hooks.launch_enter_hook.calls or hooks.launch_exit_hook.calls:
            _, *first = self._none_first(values)
            self._compiled[self._grid](*first, *self._rest, stream=stream)
        else:  # the same, without collecting arguments for hooks
            none_first = self._none_first(values)
            self._compiled.run(*self._grid, stream, *self._unhooked, *none_first, *self._rest)


def _described(
    kind: type, fields: dict[str, Any], number: int, tensors: Sequence[Any], values: Sequence[Any]
) -> Any:
    """A descriptor of this tensor, whose checks another of the same layout has passed."""
    descriptor: Any = object.__new__(kind)
    descriptor.__dict__ = {**fields, "base": tensors[number]}
    return descriptor


class Repeats:
    """Repeated launches on one device, for tensors at other addresses."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._prepared: dict[Hashable, list[_Prepared]] = {}

    def run(
        self,
        kind: Hashable,
        tensors: Sequence[Tensor | None],
        describe: Callable[[Any, Any], Sequence[Launch]],
    ) -> None:
        """Queue the launches that `describe(kind, tensors)` describes.

        kind: what else of the launches, besides addresses, differs from call to call; also which
            tensors are None.
        tensors: all that the launches take. While one of them stands there twice, nothing is
            prepared: another call may have two.
        """
        addresses: list[Any] = [_NOWHERE if t is None else t.data_ptr() for t in tensors]
        bits = 0
        for address in addresses:
            bits |= address
        addresses.append(None)
        aligned = not bits & 15
        ready = self._prepared.get(kind) if _watcher.get() is None else None
        index = self._device.index
        if ready is not None and aligned and index == torch.cuda.current_device():
            if 0 in addresses:
                for tensor in tensors:
                    if tensor is not None:
                        check_memory("a tensor", tensor)
            stream = triton.runtime.driver.active.get_current_stream(index)
            for prepared in ready:
                prepared.run(tensors, addresses, stream)
            return
        with on_device(self._device):
            launches = describe(kind, tensors)
            compiled = [launch.run() for launch in launches]
        present = [id(tensor) for tensor in tensors if tensor is not None]
        if aligned and None not in compiled and len({*present}) == len(present):
            self._prepared[kind] = [
                _Prepared(launch, tensors, kernel)
                for launch, kernel in zip(launches, compiled, strict=True)
            ]


class Plans(dict[Hashable, Plan]):
    """Plans of calls, by what besides addresses decides about them."""

    MOST = 4096

    def __init__(self) -> None:
        of_devices(self)

    def add(self, key: Hashable, plan: Plan) -> Plan:
        """Keep a plan and return it; where there are too many, the others go."""
        if len(self) >= self.MOST:
            self.clear()
        self[key] = plan
        return plan


def check_memory(name: str, tensor: Tensor) -> None:
    """Raise RuntimeError for a tensor at address 0 that has elements."""
    if not tensor.data_ptr() and tensor.numel():
        raise RuntimeError(
            f"{name} of shape {tuple(tensor.shape)} has no memory on {tensor.device}: .clone() a "
            "ZeroTensor, move a meta tensor to the others' device, gather a parameter that lies "
            "elsewhere"
        )


@cache
def refusal(device: torch.device) -> str | None:
    """Why these kernels cannot run on a device, with the remedy, or None when they can."""
    if device.type == "meta" and _target.get() is not None:
        return None
    if device.type == "cpu":
        if INTERPRETED:
            return why_broken() or None
        return (
            "the tensors are on the CPU: move them to a CUDA device, or set TRITON_INTERPRET=1 "
            "before importing kernelbench.kernels to run in Triton's interpreter"
        )
    if device.type != "cuda":
        return f"no kernels for device type {device.type!r}: move the tensors to a CUDA device"
    if torch.version.hip is not None:
        return "no kernels for ROCm: they are written and checked for NVIDIA GPUs of sm_80 or later"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return f"{arch_of(device)} is too old: the kernels need an NVIDIA GPU of sm_80 or later"
    return None


def check_device(**tensors: Tensor | None) -> torch.device:
    """The one device of the tensors, which must be one where kernels run.

    Raises RuntimeError, with the remedy, when they are on several devices or on one that Triton
    cannot use (see `refusal`), TypeError for sparse ones. A tensor that is None is ignored.
    """
    for name, tensor in tensors.items():
        if tensor is not None and tensor.layout is not torch.strided:
            raise TypeError(f"{name} is of layout {tensor.layout}: call .to_dense() on it")
    devices = {name: tensor.device for name, tensor in tensors.items() if tensor is not None}
    device = next(iter(devices.values()))
    for other in devices.values():
        if other != device:
            where = ", ".join(f"{name} on {place}" for name, place in devices.items())
            raise RuntimeError(f"tensors on several devices ({where}): move them to one device")
    if reason := refusal(device):
        raise RuntimeError(reason)
    return device


def layout_of(x: Tensor | None) -> Hashable:
    """All that a launch depends on of a tensor, but for its address."""
    return None if x is None else (x.shape, x.stride(), x.dtype, x.device)


def layouts_of(tensors: Sequence[Tensor | None]) -> tuple[Hashable, ...]:
    """Those of tensors, and how far each is from a multiple of 16 bytes."""
    return tuple([None if x is None else (layout_of(x), x.data_ptr() & 15) for x in tensors])


def packed_rows(x: Tensor) -> Tensor:
    """x itself when its last axis is contiguous, else a copy."""
    return x if x.stride(-1) == 1 else x.contiguous()


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which launches go to `device`; costs nothing when it is the current one."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return _HERE
    return torch.cuda.device(device)


@cache
def arch_of(device: torch.device) -> str:
    """`sm_90` for a CUDA device, else the device type: `cpu`."""
    if device.type == "meta" and (target := _target.get()):
        return target.arch
    if device.type != "cuda":
        return device.type
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


@cache
def sm_count(device: torch.device) -> int:
    """Streaming multiprocessors of a CUDA device; a small constant where there is none."""
    if device.type == "meta" and (target := _target.get()):
        return target.sms
    if device.type != "cuda":
        return _INTERPRETER_SMS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


_SHARED_KIB = {"sm_80": 164, "sm_87": 164, "sm_90": 228, "sm_100": 228, "sm_103": 228}
_LEAST_SHARED_KIB = 100  # of sm_86, sm_89, sm_12x
_RESERVED_KIB = 3  # of a program: for the driver and for reductions


@cache
def shared_memory(arch: str, programs: int) -> int:
    """Bytes of shared memory for each of that many programs on one multiprocessor.

    NVIDIA, CUDA C++ Programming Guide, Technical Specifications per Compute Capability. On the
    `cpu` of the interpreter there is no limit; an unknown architecture has the least of all.
    """
    kib = 1 << 20 if arch == "cpu" else _SHARED_KIB.get(arch, _LEAST_SHARED_KIB)
    return max(0, kib // programs - _RESERVED_KIB) * 1024


@cache
def starts_early(arch: str) -> bool:
    """Whether a kernel may start before the previous one ends: from sm_90 on."""
    return arch.startswith("sm_") and int(arch.removeprefix("sm_")) >= 90


def ceil_div(n: int, d: int) -> int:
    """n / d rounded up, without the overhead of `triton.cdiv`, which kernels use as well."""
    return -(-n // d)


def power_of_2(least: int) -> int:
    """The smallest power of two that is at least `least`, and at least 1."""
    return 1 << max(least - 1, 0).bit_length()


def check_counts(config: object, *names: str) -> None:
    """Raise ValueError unless each named field of a config is a whole number, at least 1."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(
                f"{type(config).__name__}: {name} is {value!r}, not a whole number, at least 1"
            )


def check_blocks(config: object, *names: str) -> None:
    """Raise ValueError unless each named field of a config is a power of two that a dot takes."""
    check_powers_of_2(config, *names)
    for name in names:
        if getattr(config, name) < 16:
            raise ValueError(
                f"{type(config).__name__}: {name} is {getattr(config, name)}, but a dot takes 16"
            )


def check_powers_of_2(config: object, *names: str) -> None:
    """Raise ValueError unless each named field of a config is a power of two."""
    check_counts(config, *names)
    for name in names:
        value = getattr(config, name)
        if value < 1 or value != power_of_2(value):
            raise ValueError(f"{type(config).__name__}: {name} is {value}, not a power of two")
