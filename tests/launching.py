"""Launches by Triton's own launcher, on tensors with memory, on a GPU in name alone: which kernels
its cache is asked for. To be run without Triton's interpreter."""

import dataclasses
import json
import sys
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend

from kernelbench import families, suite
from kernelbench.kernels.launch import Target
from kernelbench.profile.inspect.launches import calls_of, ours
from kernelbench.spec import Device


def main() -> None:
    """Suite and architecture are the arguments. Prints [kernel, whether the cache had it] of each;
    raises where one is to be compiled."""
    path, arch = sys.argv[1:]
    device = Device(kind="cuda", name="NVIDIA T", capability=divmod(int(arch[3:]), 10), sms=132)
    found: list[tuple[str, bool]] = []
    launched: list[str] = []
    triton.runtime.driver.set_active(driver(int(arch[3:]), launched))
    triton.knobs.compilation.listener = lambda **facts: found.append(
        (facts["src"].name, facts["cache_hit"])
    )
    CUDABackend.make_cubin = lambda *given: (_ for _ in ()).throw(RuntimeError("ptxas was needed"))
    known = families.load(())
    for job in suite.load(path, known).jobs:
        for provider in map(known[job.family].provider, job.providers):
            if ours(provider) and provider.unsupported(job.case, device) is None:
                config = provider.configs(job.case, device)[0] if provider.configs else None
                target = Target(arch, device.sms)
                launches, _ = calls_of(known[job.family], job.case, provider, config, target)
                for launch in launches:
                    args = {name: backed(value) for name, value in launch.args.items()}
                    dataclasses.replace(launch, args=args).queue()
    assert len(launched) >= len(found)
    print(json.dumps(found))


def driver(number: int, launched: list[str]) -> Any:
    """One whose launches do nothing."""

    def launcher(source: Any, metadata: Any) -> Any:
        return lambda *given: launched.append(source.name)

    return SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", number, 32),
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
        launcher_cls=launcher,
        utils=SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": 227 << 10},
            load_binary=lambda *given: (1, 1, 32, 0, 1024),
        ),
    )


def backed(value: Any) -> Any:
    """With memory in place of meta tensors: of their strides and offsets."""
    if isinstance(value, torch.Tensor):
        extent = sum((n - 1) * s for n, s in zip(value.shape, value.stride(), strict=True)) + 1
        offset = value.storage_offset()
        room = torch.empty(offset + max(extent, 1), dtype=value.dtype)
        assert room.data_ptr() % 16 == 0
        return room.as_strided(value.shape, value.stride(), offset)
    if isinstance(value, tuple):
        parts = [backed(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(getattr(value, "base", None), torch.Tensor):
        return dataclasses.replace(value, base=backed(value.base))
    return value


if __name__ == "__main__":
    main()
