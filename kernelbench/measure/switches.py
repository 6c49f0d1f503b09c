"""Settings of this process that affect the next provider: how each is read and put back.

They are in the order in which they must be put back: while a mode is on its stack, torch's calls
may do something else. Nothing here waits for a GPU or allocates memory on it.
"""

import ctypes
import gc
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils import _device

KINDS = ("cpu", "cuda")  # device types with an autocast of their own
# Pairs of torch's getters and setters, without `_get_` and `_set_`. A switch is left out where a
# release of torch lacks one of them.
PAIRS = {
    "deterministic fill of uninitialized memory": ("deterministic_fill_uninitialized_memory",) * 2,
    "cudnn.enabled": ("cudnn_enabled",) * 2,
    "cudnn.benchmark": ("cudnn_benchmark",) * 2,
    "cudnn.deterministic": ("cudnn_deterministic",) * 2,
    "mkldnn.enabled": ("mkldnn_enabled",) * 2,
    "mkldnn.deterministic": ("mkldnn_deterministic",) * 2,
    "fp16 accumulation of matmul": ("cublas_allow_fp16_accumulation",) * 2,
    "fp16 reduced precision reduction": ("cublas_allow_fp16_reduced_precision_reduction",) * 2,
    "bf16 reduced precision reduction": ("cublas_allow_bf16_reduced_precision_reduction",) * 2,
    "reduced precision reduction on the CPU": ("cpu_allow_fp16_reduced_precision_reduction",) * 2,
    "reduced precision reduction of math sdp": ("math_sdp_allow_fp16_bf16_reduction",) * 2,
    "flash sdp": ("flash_sdp_enabled", "sdp_use_flash"),
    "memory-efficient sdp": ("mem_efficient_sdp_enabled", "sdp_use_mem_efficient"),
    "math sdp": ("math_sdp_enabled", "sdp_use_math"),
    "cudnn sdp": ("cudnn_sdp_enabled", "sdp_use_cudnn"),
    "overrideable sdp": ("overrideable_sdp_enabled", "sdp_use_overrideable"),
    "the order of sdp backends": ("sdp_priority_order",) * 2,
    "the preferred linalg backend": ("linalg_preferred_backend",) * 2,
    "the preferred blas backend": ("blas_preferred_backend",) * 2,
    "the SMs carved out of matmuls": ("sm_carveout_experimental",) * 2,
}
OPERATORS = {
    "generic": ("all",),
    "cuda": ("all", "matmul", "conv", "rnn"),
    "mkldnn": ("all", "matmul", "conv", "rnn"),
}
_MT19937 = 2500  # bytes of the state of numpy's global generator
_GUARDS: list[Any] = []  # kept, since a guard undoes its work when it is deleted


@dataclass(frozen=True)
class Switch:
    """One setting.

    name: in words; where the value is a dict, each item is a setting named `name key`.
    put: sets the value; None where that is impossible.
    shown: whether messages show its values.
    """

    name: str
    read: Callable[[], Any]
    put: Callable[[Any], object] | None
    shown: bool = True


def switches() -> list[Switch]:
    """The switches of this process; those of a CUDA device only where CUDA is initialised."""
    of_torch = (*_modes(), *_autograd(), *_autocast(), *_arithmetic(), *_paired())
    of_cuda = _cuda() if torch.cuda.is_initialized() else ()
    return [*of_torch, *_interpreter(), *_seeds(), *of_cuda]


def _modes() -> Iterator[Switch]:
    yield Switch("the stack of torch function modes", _function_modes, _put_function_modes)
    yield Switch("the stack of torch dispatch modes", _dispatch_modes, _put_dispatch_modes)
    yield Switch("the default device", _default_device, _put_default_device)
    yield Switch("the default dtype", torch.get_default_dtype, torch.set_default_dtype)


def _context() -> Any:
    """The default device's mode, at the bottom of the stack of function modes; None if unset."""
    return getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)


def _function_modes() -> list[Any]:
    mode_at, context = torch._C._get_function_stack_at, _context()
    modes = [mode_at(i) for i in range(torch._C._len_torch_function_stack())]
    return [mode for mode in modes if mode is not context]


def _put_function_modes(modes: list[Any]) -> None:
    while torch._C._len_torch_function_stack():
        torch._C._pop_torch_function_stack()
    for mode in filter(None, (_context(), *modes)):
        torch._C._push_on_torch_function_stack(mode)


def _default_device() -> torch.device | None:
    context = _context()
    return None if context is None else context.device


def _put_default_device(device: torch.device | None) -> None:
    """Without leaving the current context: torch would assert a certain state of the stack."""
    modes = _function_modes()
    torch._GLOBAL_DEVICE_CONTEXT.device_context = _device.CURRENT_DEVICE = None
    _put_function_modes([])
    torch.set_default_device(device)
    _put_function_modes(modes)


def _dispatch_modes() -> list[Any]:
    mode_at = torch._C._get_dispatch_stack_at
    return [mode_at(i) for i in range(torch._C._len_torch_dispatch_stack())]


def _put_dispatch_modes(modes: list[Any]) -> None:
    while torch._C._len_torch_dispatch_stack():
        torch._C._pop_torch_dispatch_stack(None)
    for mode in modes:
        torch._C._push_on_torch_dispatch_stack(mode)


def _autograd() -> Iterator[Switch]:
    yield Switch("inference mode", torch.is_inference_mode_enabled, _put_inference_mode)
    yield Switch("grad mode", torch.is_grad_enabled, torch._C._set_grad_enabled)
    yield Switch("anomaly mode", torch.is_anomaly_enabled, _put_anomaly_mode)
    yield Switch("the NaN check of anomaly mode", torch.is_anomaly_check_nan_enabled, _put_nan)
    threads = torch._C._is_multithreading_enabled, torch._C._set_multithreading_enabled
    yield Switch("threads of backward", *threads)
    yield Switch("hooks on saved tensors", _saved_hooks, _put_saved_hooks)


def _put_inference_mode(on: bool) -> None:
    """By a guard that is kept: there is no setter, and a deleted guard restores the old value."""
    guard = torch._C._InferenceMode(on)
    guard.__enter__()
    _GUARDS.append(guard)


def _put_anomaly_mode(on: bool) -> None:
    torch.set_anomaly_enabled(on, torch.is_anomaly_check_nan_enabled())


def _put_nan(on: bool) -> None:
    torch.set_anomaly_enabled(torch.is_anomaly_enabled(), on)


def _saved_hooks() -> Any:
    return torch._C._autograd._top_saved_tensors_default_hooks(True)


def _put_saved_hooks(hooks: Any) -> None:
    """Pop the hooks above these."""
    while _saved_hooks() not in (hooks, None):
        torch._C._autograd._pop_saved_tensors_default_hooks()


def _autocast() -> Iterator[Switch]:
    for kind in KINDS:
        enabled, dtype = torch.is_autocast_enabled, torch.get_autocast_dtype
        put, put_dtype = torch.set_autocast_enabled, torch.set_autocast_dtype
        yield Switch(f"autocast on {kind}", partial(enabled, kind), partial(put, kind))
        dtypes = partial(dtype, kind), partial(put_dtype, kind)
        yield Switch(f"the dtype of autocast on {kind}", *dtypes)
    cache = torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled
    yield Switch("the cache of autocast", *cache)
    yield Switch("the depth of autocast", _autocast_depth, _put_autocast_depth)


def _autocast_depth() -> int:
    torch.autocast_increment_nesting()
    return int(torch.autocast_decrement_nesting())


def _put_autocast_depth(depth: int) -> None:
    """Also clears the cache at depth 0, as leaving autocast does."""
    while _autocast_depth() > depth:
        torch.autocast_decrement_nesting()
    while _autocast_depth() < depth:
        torch.autocast_increment_nesting()
    if not depth:
        torch.clear_autocast_cache()


def _arithmetic() -> Iterator[Switch]:
    yield Switch("the float32 precision of", _precision, _put_precision)
    deterministic = torch.are_deterministic_algorithms_enabled, _put_deterministic
    yield Switch("deterministic algorithms", *deterministic)
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled, _put_warn_only
    yield Switch("warn-only of deterministic algorithms", *warn_only)
    yield Switch("flushing of denormals", _flushes_denormals, torch.set_flush_denormal)
    yield Switch("the number of threads", torch.get_num_threads, torch.set_num_threads)
    yield Switch("the number of interop threads", torch.get_num_interop_threads, None)


def _precision() -> dict[str, str]:
    """By operator, and by the older switches, which raise where operators differ: then `mixed`."""
    precision_of = torch._C._get_fp32_precision_getter
    precisions = {
        f"{kind} {op}": str(precision_of(kind, op)) for kind, ops in OPERATORS.items() for op in ops
    }
    for name, read in (
        ("torch", torch.get_float32_matmul_precision),
        ("cudnn", torch._C._get_cudnn_allow_tf32),
    ):
        try:
            precisions[name] = str(read())
        except RuntimeError:
            precisions[name] = "mixed"
    return precisions


def _put_precision(precision: dict[str, str]) -> None:
    """The older switches first, since they change the operators' settings as well."""
    if precision["torch"] != "mixed":
        torch.set_float32_matmul_precision(precision["torch"])
    if precision["cudnn"] != "mixed":
        torch._C._set_cudnn_allow_tf32(precision["cudnn"] == "True")
    for kind, ops in OPERATORS.items():
        for op in ops:
            torch._C._set_fp32_precision_setter(kind, op, precision[f"{kind} {op}"])


def _put_deterministic(on: bool) -> None:
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(on, warn_only=warn_only)


def _put_warn_only(on: bool) -> None:
    enabled = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(enabled, warn_only=on)


def _flushes_denormals() -> bool:
    return sys.float_info.min / 2 == 0


def _paired() -> Iterator[Switch]:
    for name, (getter, setter) in PAIRS.items():
        read = getattr(torch._C, f"_get_{getter}", None)
        put = getattr(torch._C, f"_set_{setter}", None)
        if read is not None and put is not None:
            yield Switch(name, read, partial(_put_spread, put))


def _put_spread(put: Callable[..., object], value: Any) -> None:
    """A value that is read as a tuple is set by several arguments."""
    if isinstance(value, tuple):
        put(*value)
    else:
        put(value)


def _interpreter() -> Iterator[Switch]:
    yield Switch("environment", _environment, _put_environment)
    yield Switch("the working directory", _directory, os.chdir)
    yield Switch("the trace function of Python", sys.gettrace, sys.settrace)
    yield Switch("the profile function of Python", sys.getprofile, sys.setprofile)
    yield Switch("the trace function of threads", threading.gettrace, _put_thread_trace)
    yield Switch("the profile function of threads", threading.getprofile, _put_thread_profile)
    yield Switch("collection of garbage", gc.isenabled, _put_collection)
    yield Switch("the thresholds of collection", gc.get_threshold, lambda t: gc.set_threshold(*t))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        read, put = partial(signal.getsignal, number), partial(signal.signal, number)
        yield Switch(f"the handler of {number.name}", read, put)


def _environment() -> dict[bytes, bytes]:
    """The bytes behind os.environ, which takes 0.5 µs to decode a variable."""
    variables: dict[bytes, bytes] = os.environb._data  # type: ignore[attr-defined]
    return variables.copy()


def _put_environment(variables: dict[bytes, bytes]) -> None:
    for name in os.environb.keys() - variables.keys():
        del os.environb[name]
    os.environb.update(variables)


def _directory() -> str:
    try:
        return os.getcwd()  # noqa: PTH109
    except FileNotFoundError:
        return "one that is gone"


def _put_thread_trace(function: Any) -> None:
    threading.settrace(function)


def _put_thread_profile(function: Any) -> None:
    threading.setprofile(function)


def _put_collection(on: bool) -> None:
    (gc.enable if on else gc.disable)()


def _seeds() -> Iterator[Switch]:
    yield Switch("the seed of torch", _torch_seed, _put_torch_seed, shown=False)
    yield Switch("the seed of random", random.getstate, random.setstate, shown=False)
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:
        generator, state = numpy.get_bit_generator(), numpy.get_state()
        if state[0] == "MT19937":
            # Reads the memory, since `get_state` takes 30 µs.
            read = partial(ctypes.string_at, generator.ctypes.state_address, _MT19937)
            yield Switch("the seed of numpy", read, lambda _: numpy.set_state(state), shown=False)


def _torch_seed() -> bytes:
    return torch.default_generator.get_state().numpy().tobytes()


def _put_torch_seed(state: bytes) -> None:
    torch.default_generator.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))


def _cuda() -> Iterator[Switch]:
    device = torch.cuda.current_device()
    yield Switch("the current CUDA device", torch.cuda.current_device, torch.cuda.set_device)
    stream = partial(torch.cuda.current_stream, device)
    yield Switch("the current CUDA stream", stream, torch.cuda.set_stream)
    mode = torch.cuda.get_sync_debug_mode, torch.cuda.set_sync_debug_mode
    yield Switch("the sync debug mode", *mode)
    for i, generator in enumerate(torch.cuda.default_generators):
        read, put = partial(_cuda_seed, generator), partial(_put_cuda_seed, generator)
        yield Switch(f"the seed of cuda:{i}", read, put, shown=False)


def _cuda_seed(generator: torch.Generator) -> tuple[int, int]:
    return generator.initial_seed(), generator.get_offset()


def _put_cuda_seed(generator: torch.Generator, state: tuple[int, int]) -> None:
    seed, offset = state
    generator.manual_seed(seed)
    generator.set_offset(offset)
