"""External profilers as processes: finds them, starts them, and reports how they end."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from kernelbench.spec import KernelbenchError

# Profilers store the whole environment in their reports, including secrets. So they, and what they
# profile, get these variables and no others.
KEPT_VARIABLES = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "XDG_CACHE_HOME",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "PYTHONHASHSEED",
    "VIRTUAL_ENV",
    "CC",
    "CXX",
    "CUDA_HOME",
    "CUDA_PATH",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "CUDA_MODULE_LOADING",
    "NVIDIA_VISIBLE_DEVICES",
    "NCCL_NVLS_ENABLE",
    "NVSHMEM_DISABLE_NVLS",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST",
    "NVIDIA_DRIVER_CAPABILITIES",
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
    "TRITON_HOME",
    "TRITON_PTXAS_PATH",
)
# One compile worker: profilers attach to each process of torch.compile's pool, and ncu fails on it.
SET_VARIABLES = {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
TAIL_BYTES = 1 << 14


class ToolError(KernelbenchError):
    """A profiler is missing, has no permission, or recorded nothing. The message has the remedy."""


class RefusedError(ToolError):
    """This machine does not let the tool profile any program."""


@dataclass(frozen=True)
class ProcessEnd:
    """How a profiler's process ended.

    code: its exit code, negative for a signal; None when it was killed after its timeout. seconds:
    its run time. tail: the end of what it printed.
    """

    code: int | None
    seconds: float
    tail: str


def environment(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of a profiled process: `KEPT_VARIABLES` of `env`, and `SET_VARIABLES`."""
    return {name: env[name] for name in KEPT_VARIABLES if name in env} | SET_VARIABLES


@cache
def isolation() -> tuple[str, ...]:
    """The words before a command that make it see no other processes than its own.

    It becomes the first process of a PID namespace with its own /proc, and the processes that it
    starts end with it. Empty where neither root nor a user namespace permits that, or where
    util-linux' unshare is missing.
    """
    unshare = shutil.which("unshare")
    if unshare is None:
        return ()
    as_root = (unshare, "--pid", "--fork", "--kill-child", "--mount-proc")
    with tempfile.TemporaryDirectory() as folder:
        for command in (as_root, (*as_root, "--user", "--map-root-user")):
            if run([*command, "true"], Path(folder, "log"), 10, environment()).code == 0:
                return command
    return ()


def child(module: str, request: Path) -> list[str]:
    """The command of a Python process that calls the module's `serve` with the file of a request.
    It looks for modules where this process does, and nowhere else."""
    start = (
        "import json, sys; sys.path[:] = json.loads(sys.argv.pop()); "
        f"from {module} import serve; serve(sys.argv[1])"
    )
    return [sys.executable, "-P", "-c", start, str(request), json.dumps(sys.path)]


def answers_in(path: Path) -> list[dict[str, Any]]:
    """Whole lines of what a child of ours said; none where it said nothing."""
    if not path.exists():
        return []
    *lines, _torn = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines]


def find(name: str, places: Sequence[str] = ()) -> Path | None:
    """An executable on the PATH; else of the first glob in `places` that matches any, the last by
    name. None if there is none."""
    on_path = shutil.which(name)
    if on_path:
        return Path(on_path)
    for place in places:
        root, pattern = Path(place).anchor, str(Path(place).relative_to(Path(place).anchor))
        programs = sorted(p for p in Path(root).glob(pattern) if os.access(p, os.X_OK))
        if programs:
            return programs[-1]
    return None


def run(
    command: Sequence[str | Path], log: Path, timeout: float, env: Mapping[str, str]
) -> ProcessEnd:
    """Run a command to its end in its own process group; what it prints goes to `log`.

    timeout: seconds until it is killed.
    Raises ToolError when it cannot be started, or the log cannot be written.
    """
    start = time.monotonic()
    try:
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=dict(env),
                start_new_session=True,
            )
    except OSError as error:
        raise ToolError(f"{command[0]}: cannot be started ({error.strerror or error})") from None
    code: int | None = None
    try:
        code = process.wait(timeout)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with contextlib.suppress(ProcessLookupError):  # also ends what it left running
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return ProcessEnd(code, time.monotonic() - start, _tail(log))


def _tail(log: Path) -> str:
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL_BYTES))
        return file.read().decode(errors="replace").strip()
