"""What every kernel of this room shares: the description of a launch, and where one can run."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

INTERPRETED: bool = triton.knobs.runtime.interpret  # as it was when the kernels were made
_INTERPRETER_SMS = 4  # programs one after another: few suffice
_HERE: AbstractContextManager[None] = nullcontext()


@dataclass(frozen=True)
class Launch:
    """One kernel launch, complete and not yet done; making one needs no GPU.

    kernel: a function made by `triton.jit`.
    grid: programs along each axis.
    args: tensors and scalars by parameter name; None for a tensor that takes no part, which
        Triton treats as a constant, so the code for it is not compiled.
    constexprs: compile-time constants by parameter name.
    options: `num_warps`, `num_stages`.
    """

    kernel: Any
    grid: tuple[int, ...]
    args: Mapping[str, Any]
    constexprs: Mapping[str, Any]
    options: Mapping[str, int]

    def run(self) -> None:
        """Queue the kernel on the current device's current stream; an empty grid is no work."""
        if 0 not in self.grid:
            self.kernel[self.grid](**self.args, **self.constexprs, **self.options)


@cache
def refusal(device: torch.device) -> str | None:
    """Why these kernels cannot run on a device, with the remedy, or None when they can."""
    if device.type == "cpu":
        if INTERPRETED:
            return None
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
    cannot serve (see `refusal`). A tensor that is None takes no part.
    """
    devices = {name: tensor.device for name, tensor in tensors.items() if tensor is not None}
    device = next(iter(devices.values()))
    for other in devices.values():
        if other != device:
            where = ", ".join(f"{name} on {place}" for name, place in devices.items())
            raise RuntimeError(f"tensors on several devices ({where}): move them to one device")
    if reason := refusal(device):
        raise RuntimeError(reason)
    return device


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which launches go to `device`; free of charge when it is the current one."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return _HERE
    return torch.cuda.device(device)


@cache
def arch_of(device: torch.device) -> str:
    """`sm_90` for a CUDA device, else the device type: `cpu`."""
    if device.type != "cuda":
        return device.type
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


@cache
def sm_count(device: torch.device) -> int:
    """Streaming multiprocessors of a CUDA device; a small constant where there is none."""
    if device.type != "cuda":
        return _INTERPRETER_SMS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def ceil_div(n: int, d: int) -> int:
    """n / d rounded up, without what `triton.cdiv` does to serve kernels as well."""
    return -(-n // d)


def power_of_2(least: int) -> int:
    """The smallest power of two that is at least `least`, and at least 1."""
    return 1 << max(least - 1, 0).bit_length()


def check_powers_of_2(config: object, *names: str) -> None:
    """Raise ValueError unless each named field of a config is a power of two."""
    for name in names:
        value = getattr(config, name)
        if value < 1 or value != power_of_2(value):
            raise ValueError(f"{type(config).__name__}: {name} is {value}, not a power of two")
