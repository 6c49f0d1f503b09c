"""This machine: the device that providers are given, and the versions for a run's manifest."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch

from kernelbench.kernels import interpreter
from kernelbench.measure.telemetry import Telemetry, driver_version
from kernelbench.spec import Device, DType, NoGPUError

TORCH_DTYPES = {
    DType.fp32: torch.float32,
    DType.tf32: torch.float32,
    DType.fp16: torch.float16,
    DType.bf16: torch.bfloat16,
}
PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "pandas",
    "liger-kernel",
    "quack-kernels",
    "nvidia-cutlass-dsl",
    "flash-attn-4",
    "fa3-fwd",
    "flash-attn",
    "ring-flash-attn",
    "sageattention",
)


def use(kind: str) -> str:
    """Choose `cuda` or `cpu` for `auto|cuda|cpu`; for `cpu`, switch Triton's interpreter on.

    Must run before any module of ours with a Triton kernel is imported: the interpreter is chosen
    when `@triton.jit` is applied. Raises NoGPUError when a GPU is requested and there is none.
    """
    kind = settled(kind)
    if kind == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    return kind


def settled(kind: str) -> str:
    """`cuda` or `cpu` for `auto|cuda|cpu`. Raises NoGPUError as `use` does."""
    has_gpu = torch.cuda.is_available()
    if kind == "cuda" and not has_gpu:
        raise NoGPUError(f"no CUDA device: {why_no_cuda()}. `kernelbench doctor` says more")
    return "cuda" if kind == "cuda" or (kind == "auto" and has_gpu) else "cpu"


def why_no_cuda() -> str:
    """The reason why torch has no CUDA device, in a few words."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if torch.cuda.device_count() == 0:
        return f"torch {torch.__version__} (CUDA {torch.version.cuda}) sees no device or driver"
    return "torch.cuda.is_available() is false"


@cache
def device(kind: str) -> Device:
    """The device of this process."""
    if kind == "cpu":
        return Device(kind="cpu", name=_cpu_name(), no_triton=_no_triton(None))
    p = torch.cuda.get_device_properties(0)
    capability = (p.major, p.minor)
    return Device(
        kind="cuda",
        name=p.name,
        capability=capability,
        total_bytes=p.total_memory,
        l2_bytes=p.L2_cache_size,
        sms=p.multi_processor_count,
        no_triton=_no_triton(capability),
    )


def _no_triton(capability: tuple[int, int] | None) -> str:
    """Why Triton kernels cannot run here, or "". capability: of the GPU, None for the CPU."""
    if importlib.util.find_spec("triton") is None:
        why = "pip install triton" if sys.platform == "linux" else f"none for {sys.platform}"
        return f"Triton is not installed ({why})"
    if torch.version.hip is not None:
        return "Triton kernels are written for NVIDIA GPUs; this torch is built for ROCm"
    if capability is not None and capability < (8, 0):
        return f"Triton kernels need sm_80 or newer, this GPU is sm_{capability[0]}{capability[1]}"
    if capability is not None and not _compiler():
        return "Triton needs a C compiler (gcc or clang, or CC), and none is on the PATH"
    if capability is None and os.environ.get("TRITON_INTERPRET") != "1":
        return "on a CPU, Triton needs its interpreter (TRITON_INTERPRET=1)"
    return interpreter.why_broken() if capability is None else ""


def _compiler() -> bool:
    """Whether there is a C compiler, which Triton needs for its launchers."""
    return any(os.environ.get("CC") or shutil.which(name) for name in ("gcc", "clang", "cc"))


def versions() -> dict[str, str]:
    """Versions of Python and of every package that a result may depend on, if installed."""
    installed = {"python": platform.python_version(), "platform": platform.platform()}
    for name in PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if torch.version.cuda:
        installed["cuda"] = torch.version.cuda
        if torch.backends.cudnn.is_available():
            installed["cudnn"] = str(torch.backends.cudnn.version())
    if driver := driver_version():
        installed["driver"] = driver
    return installed


def gpu_uuid(number: int = 0) -> str:
    """NVML's name of the GPU in use, or of another that this process sees."""
    return f"GPU-{torch.cuda.get_device_properties(number).uuid}"


def describe(kind: str) -> dict[str, Any]:
    """The machine as a manifest states it: device, UUID, power limit and clocks, versions."""
    dev = device(kind)
    gpus = torch.cuda.device_count() if dev.kind == "cuda" else 0
    uuids = [gpu_uuid(number) for number in range(gpus)]
    uuid = uuids[0] if uuids else None
    return {
        "kind": dev.kind,
        "name": dev.name,
        "arch": dev.arch,
        "total_bytes": dev.total_bytes,
        "l2_bytes": dev.l2_bytes,
        "sms": dev.sms,
        "gpus": gpus,
        "uuids": uuids,
        "no_triton": dev.no_triton,
        "uuid": uuid,
        "policy": Telemetry.open(uuid).policy(),
        "versions": versions(),
    }


def _cpu_name() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as info:
            for line in info:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
