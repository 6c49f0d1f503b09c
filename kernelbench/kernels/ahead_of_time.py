"""Compiles a launch's kernel for an architecture without its GPU, and reads what the code takes.

The kernel is specialised as Triton's launcher does it for the launch's own arguments (dtypes, what
is a multiple of 16, what is 1 or None), so that the code looked at is the code that runs. Tensors
may be meta tensors: their addresses count as aligned.
"""

import io
import re
from contextlib import redirect_stdout
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.errors import TritonError
from triton.experimental.gluon._runtime import GluonASTSource
from triton.runtime.jit import create_function_from_signature

from kernelbench.kernels.launch import INTERPRETED, Launch

_WARP = 32


class CompileError(RuntimeError):
    """The compiler refuses a kernel for an architecture; with the compiler's innermost error."""


@dataclass(frozen=True)
class Compiled:
    """A kernel for one architecture, as ptxas reports it.

    registers: of a thread, at the launch.
    spill_stores, spill_loads: bytes of local memory that a thread writes and reads because
        registers ran out, each instruction counted once.
    shared_bytes: of a program, static and dynamic.
    warps: of a program, those that specialised partitions add included.
    notes: numbers of ptxas's notes on performance, such as `C7510`, without repetition. C7510 to
        C7515 say that wgmma products are waited for one by one.
    ptx, cubin: the input and the output of ptxas.
    """

    kernel: str
    arch: str
    registers: int
    spill_stores: int
    spill_loads: int
    shared_bytes: int
    warps: int
    notes: tuple[str, ...]
    ptx: str
    cubin: bytes

    @property
    def serialised(self) -> tuple[str, ...]:
        """The notes on serialised wgmma."""
        return tuple(note for note in self.notes if "C7510" <= note <= "C7515")


def identity(launch: Launch, arch: str) -> str:
    """The same text for launches that would run the same compiled kernel."""
    source, options = _specialised(launch, _target(arch))
    return f"{source.hash()} {sorted(options.items(), key=str)}"


def ahead_of_time(launch: Launch, arch: str) -> Compiled:
    """Compile a launch's kernel for `sm_90` and the like; no GPU is needed, nothing is run.

    Takes a second or so every time: Triton's cache does not keep the compiler's log.
    Raises CompileError where the kernel does not compile, and RuntimeError where the kernels were
    made for the interpreter, which have no code.
    """
    _refuse_interpreted()
    log, knobs = io.StringIO(), triton.knobs
    with (
        knobs.compilation.scope(),
        knobs.nvidia.scope(),
        knobs.cache.scope(),
        TemporaryDirectory() as folder,
        redirect_stdout(log),
    ):
        knobs.compilation.always_compile = True
        knobs.nvidia.dump_ptxas_log = True
        knobs.cache.dir = folder
        try:
            source, options = _specialised(launch, _target(arch))
            compiled = triton.compile(source, target=_target(arch), options=options)
        except (TritonError, RuntimeError, ValueError, TypeError, AssertionError) as error:
            raise CompileError(_innermost_error(error)) from error
    return _read_log(log.getvalue(), compiled, launch.kernel.__name__, arch)


def into_cache(launch: Launch, arch: str) -> bool | None:
    """Compile a launch's kernel into Triton's cache, where a process that launches it on a GPU of
    `arch` finds it; for a process that launches nothing itself.

    Triton's own launcher does it, told that the current GPU is such a one: the key is the one that
    it looks for on the GPU. Returns whether it was compiled, False where the cache had it already,
    and None where this process had. Raises as `ahead_of_time` does.
    """
    _refuse_interpreted()
    found: list[bool] = []
    triton.runtime.driver.set_active(_driver(arch))
    before, knobs = triton.knobs.compilation.listener, triton.knobs.compilation
    knobs.listener = lambda **facts: found.append(facts["cache_hit"])
    try:
        arguments = {**launch.args, **launch.constexprs, **launch.options}
        launch.kernel.run(grid=launch.grid, warmup=True, **arguments)
    except (TritonError, RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise CompileError(_innermost_error(error)) from error
    finally:
        knobs.listener = before
    return not found[0] if found else None


def _refuse_interpreted() -> None:
    if INTERPRETED:
        raise RuntimeError(
            "kernels made under TRITON_INTERPRET=1 cannot be compiled: unset it in a new process"
        )


def _driver(arch: str) -> Any:
    """What Triton asks a driver for before it compiles. It keeps kernels by device, here by
    architecture."""
    return SimpleNamespace(
        get_current_target=lambda: _target(arch),
        get_current_device=lambda: arch,
        get_current_stream=lambda device: 0,
    )


def _target(arch: str) -> GPUTarget:
    return GPUTarget("cuda", int(arch.removeprefix("sm_")), _WARP)


def _innermost_error(error: BaseException) -> str:
    """The innermost error of a chain, which says what is wrong, in one line."""
    while isinstance(error.__cause__, BaseException):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" ^")]
    errors = [line for line in lines if re.match(r"ptxas .*error", line)] or lines[-1:]
    return f"{type(error).__name__}: {errors[0] if errors else 'no message'}"


def _specialised(launch: Launch, target: GPUTarget) -> tuple[ASTSource, dict[str, Any]]:
    """The kernel with signature, constants and divisibilities, as `JITFunction.run` has them."""
    kernel, backend = launch.kernel, make_backend(target)
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    arguments = {**launch.args, **launch.constexprs, **launch.options}
    bound, specialization, rest = bind(**arguments)
    options, signature, constants, attrs = kernel._pack_args(
        backend, arguments, bound, specialization, rest
    )
    source = GluonASTSource if kernel.is_gluon() else ASTSource
    return source(kernel, signature, constants, attrs), vars(options)


def _read_log(log: str, compiled: Any, kernel: str, arch: str) -> Compiled:
    """From lines such as `8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads`, one for
    each function, and `Used 168 registers, 9 barriers, 72 bytes smem`."""

    def total(pattern: str) -> int:
        return sum(map(int, re.findall(pattern, log)))

    registers = re.findall(r"Used (\d+) registers", log)
    if not registers:
        raise RuntimeError(f"ptxas told nothing of {kernel} for {arch}: {log!r}")
    threads = re.findall(r"\.reqntid\s+(\d+)", compiled.asm["ptx"])
    return Compiled(
        kernel=kernel,
        arch=arch,
        registers=max(map(int, registers)),
        spill_stores=total(r"(\d+) bytes spill stores"),
        spill_loads=total(r"(\d+) bytes spill loads"),
        shared_bytes=compiled.metadata.shared + total(r"(\d+) bytes smem"),
        warps=max(map(int, threads), default=compiled.metadata.num_warps * _WARP) // _WARP,
        notes=tuple(sorted(set(re.findall(r"\((C\d{4})\)", log)))),
        ptx=compiled.asm["ptx"],
        cubin=compiled.asm["cubin"],
    )
