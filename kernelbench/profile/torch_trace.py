"""torch.profiler, which needs no other tool: GPU kernels, or on a CPU operators, and a trace."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kernelbench.profile.tool import ToolError
from kernelbench.spec import KernelUse

MAX_MEMORY_EVENTS = 100_000


def trace(
    call: Callable[[], Any],
    calls: int,
    stem: Path,
    *,
    name: str,
    cuda: bool,
    shapes: bool = False,
    stacks: bool = False,
) -> tuple[tuple[KernelUse, ...], tuple[Path, ...]]:
    """(what `calls` calls ran, the longest first; the files that show it).

    On a GPU these are kernels, copies and fills; on a CPU operators with their own host time, with
    `shapes` separately for each shape of inputs. Each call is a range `name` of
    `stem`.trace.json.gz, which Perfetto and chrome://tracing open. On a GPU `stem`.memory.pickle,
    for pytorch.org/memory_viz, has the allocations of one more call.

    Recording Python's stacks takes time. So with `stacks` the trace is of further calls, and what
    is returned is of the calls without stacks.

    Raises ToolError when a file cannot be written, or when nothing was recorded on the GPU.
    """
    profile = _profiled(call, calls, name, cuda, shapes, stacks=False)
    uses = _kernels(profile) if cuda else _operators(profile, name, shapes)
    if cuda and not uses:
        raise ToolError(
            f"{name}: torch.profiler saw nothing run on the GPU: is another profiler attached to "
            "this process (CUPTI serves one at a time), or does the call run on the CPU?"
        )
    if stacks:
        profile = _profiled(call, calls, name, cuda, shapes, stacks=True)
    file, memory = (stem.with_name(stem.name + end) for end in (".trace.json.gz", ".memory.pickle"))
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        profile.export_chrome_trace(str(file))
        if not cuda:
            return uses, (file,)
        _snapshot(call, memory)
    except OSError as error:
        raise ToolError(
            f"{stem.parent}: traces cannot be written there ({error.strerror}): choose another "
            "folder"
        ) from None
    return uses, (file, memory)


def _profiled(
    call: Callable[[], Any], calls: int, name: str, cuda: bool, shapes: bool, stacks: bool
) -> Any:
    activities = [torch.profiler.ProfilerActivity.CPU]
    if cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
        torch.cuda.synchronize()
    with torch.profiler.profile(
        activities=activities,
        record_shapes=shapes,
        with_stack=stacks,
        acc_events=True,  # else it warns that earlier events are cleared, as is intended
    ) as profile:
        for _ in range(calls):
            with torch.profiler.record_function(name):
                call()
        if cuda:
            torch.cuda.synchronize()
    return profile


def _kernels(profile: Any) -> tuple[KernelUse, ...]:
    kernels: dict[str, list[int]] = {}
    for event in profile.profiler.kineto_results.events():
        on_gpu = event.device_type() == torch.profiler.DeviceType.CUDA
        if on_gpu and not event.is_user_annotation():
            kernels.setdefault(event.name(), []).append(event.duration_ns())
    uses = [
        KernelUse(name=name, launches=len(spans), gpu_ns=sum(spans))
        for name, spans in kernels.items()
    ]
    return tuple(sorted(uses, key=lambda use: -(use.gpu_ns or 0)))


def _operators(profile: Any, name: str, shapes: bool) -> tuple[KernelUse, ...]:
    uses = [
        KernelUse(
            name=event.key,
            launches=event.count,
            host_ns=round(event.self_cpu_time_total * 1e3),
            shapes=str(event.input_shapes)[1:-1] if shapes else "",
        )
        for event in profile.key_averages(group_by_input_shape=shapes)
        if event.key != name
    ]
    return tuple(sorted(uses, key=lambda use: -(use.host_ns or 0)))


def _snapshot(call: Callable[[], Any], file: Path) -> None:
    torch.cuda.memory._record_memory_history(max_entries=MAX_MEMORY_EVENTS)
    try:
        call()
        torch.cuda.synchronize()
        torch.cuda.memory._dump_snapshot(str(file))
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
