"""`kernelbench doctor`: what this machine can do, and how to get what is missing."""

import importlib.metadata
import importlib.util
import json
import platform
import runpy
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

import kernelbench
from kernelbench.kernels import interpreter
from kernelbench.report.progress import Output
from kernelbench.report.waits import waiting
from kernelbench.spec import DType, architecture
from kernelbench.verbs.doctor import optional

WITHOUT_GPU = "without one, suites run small shapes for correctness: kernelbench run smoke"
INTERPRETED = "in its interpreter, on the CPU"
DTYPES = tuple(dtype.value for dtype in DType)
NO_TRITON = "not installed (pip install triton, which is there for Linux alone)"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for. ok: None when it is optional and absent. adds: what is had
    with an optional part. path: where a program is."""

    what: str
    ok: bool | None
    found: str
    remedy: str = ""
    adds: str = ""
    path: str = ""


def examine() -> list[Finding]:
    """Everything that a run may need, looked at without touching a GPU's memory."""
    return [
        Finding("python", True, f"{platform.python_version()} on {platform.system()}"),
        *_foreign(),
        *_torch(),
        *_nvml(),
        *_profilers(),
        *_programs(),
        *_packages(),
        _developing(),
    ]


def foreign_packages(path: list[str]) -> list[Path]:
    """Other packages of the import name `kernelbench` on the path, whichever comes first."""
    ours = Path(kernelbench.__file__).resolve().parent
    folders = [
        folder
        for entry in path
        if (folder := Path(entry or ".") / "kernelbench").is_dir()
        and folder.resolve() != ours
        and any(folder.glob("*.py"))
    ]
    return list(dict.fromkeys(folder.resolve() for folder in folders))


def foreign_distributions() -> list[str]:
    """Other installed distributions that bring the same import name, perhaps into one folder."""
    names = importlib.metadata.packages_distributions().get("kernelbench", [])
    return sorted({name for name in names if name.lower() != "kernelbench"})


def _foreign() -> Iterator[Finding]:
    message = f"version {kernelbench.__version__}"
    others = [*map(str, foreign_packages(sys.path)), *foreign_distributions()]
    if not others:
        yield Finding("kernelbench", True, message)
        return
    yield Finding(
        "kernelbench",
        False,
        f"{message}, and another package of that name: {', '.join(others)}",
        "ScalingIntelligence/KernelBench uses the same import name; keep one of the two in an "
        "environment",
    )


def _torch() -> Iterator[Finding]:
    if importlib.util.find_spec("torch") is None:
        yield Finding(
            "torch", False, "not installed", "pip install torch (reading results needs none)"
        )
        return
    findings = _untouched()
    yield from _asked() if findings is None else findings


def _untouched() -> list[Finding] | None:
    """What is known of torch without importing it, which takes seconds, where it can use no GPU.
    None where it may."""
    spec = importlib.util.find_spec("torch")
    version = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    if version is None or not version.is_file():
        return None
    built = runpy.run_path(str(version))
    if built.get("hip") or (built.get("cuda") and _gpus()):
        return None
    sees = f"(CUDA {built['cuda']}) sees no device or driver" if built.get("cuda") else ""
    why = f"torch {built['__version__']} {sees or 'is built without CUDA'}"
    triton = importlib.util.find_spec("triton") is not None
    how = f"{importlib.metadata.version('triton')}, {INTERPRETED}" if triton else NO_TRITON
    broken = interpreter.why_broken()
    return [
        Finding("torch", True, str(built["__version__"])),
        Finding("GPU", None, why, WITHOUT_GPU),
        Finding("triton", triton and not broken, broken or how),
    ]


def _gpus() -> int:
    """How many the driver sees; 0 without one."""
    import pynvml

    try:
        pynvml.nvmlInit()
        count = int(pynvml.nvmlDeviceGetCount())
        pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return 0
    return count


def _asked() -> Iterator[Finding]:
    """Of torch itself: whether it can use the GPU that is there."""
    import torch

    from kernelbench.measure import environment
    from kernelbench.spec import NoGPUError

    yield Finding("torch", True, torch.__version__)
    try:
        kind = environment.use("auto")
    except NoGPUError as error:
        yield Finding("GPU", False, str(error))
        return
    machine: dict[str, Any] = environment.describe(kind)
    if kind == "cuda":
        memory = machine["total_bytes"] / 2**30
        yield Finding("GPU", True, f"{machine['name']}, {machine['arch']}, {memory:.0f} GiB")
        yield of_architecture(machine["arch"])
    else:
        yield Finding("GPU", None, environment.why_no_cuda(), WITHOUT_GPU)
    version = machine["versions"].get("triton")
    if machine["no_triton"]:
        yield Finding("triton", False, machine["no_triton"])
    else:
        how = "on the GPU" if kind == "cuda" else INTERPRETED
        yield Finding("triton", True, f"{version}, {how}")


def of_architecture(arch: str) -> Finding:
    """What a GPU of this kind has, what is expected to pay, and which dtypes to avoid on it."""
    known = architecture(arch)
    if known is None:
        return Finding("architecture", None, f"{arch} is not in the table of those that are known")
    return Finding("architecture", True, str(known), ". ".join(known.advice(DTYPES)))


def _nvml() -> Iterator[Finding]:
    import pynvml

    try:
        pynvml.nvmlInit()
        driver = pynvml.nvmlSystemGetDriverVersion()
        pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        yield Finding("NVML", None, str(error), "clocks and throttling are recorded with a driver")
        return
    yield Finding("NVML", True, f"driver {driver}")


def _profilers() -> Iterator[Finding]:
    from kernelbench.profile import ncu, nsys, sanitize
    from kernelbench.profile.tool import ToolError

    finders: dict[str, Any] = {"nsys": nsys.find, "ncu": ncu.find, sanitize.NAME: sanitize.find}
    for name, find in finders.items():
        try:
            program = find()
        except ToolError as error:
            yield Finding(name, None, "not found", str(error), optional.PROFILERS[name])
        else:
            denied = ncu.why_not() if name == "ncu" else None
            yield Finding(
                name,
                None if denied else True,
                program.version,
                denied or "",
                optional.PROFILERS[name],
                str(program.path),
            )


def _programs() -> Iterator[Finding]:
    for part in optional.PROGRAMS:
        name, path = " or ".join(part.names), part.path
        if path:
            yield Finding(name, True, Path(path).name, adds=part.adds, path=path)
        else:
            yield Finding(name, None, "not on the PATH", part.remedy, part.adds)


def _packages() -> Iterator[Finding]:
    for part in optional.PACKAGES:
        if part.version is None:
            yield Finding(part.name, None, "not installed", part.remedy, part.adds)
        else:
            yield Finding(part.name, True, part.version, adds=part.adds)


def _developing() -> Finding:
    adds = "work on kernelbench itself: make test, make docs"
    missing = optional.developing()
    if not missing:
        return Finding("extra dev", True, "all installed", adds=adds)
    message = f"not installed: {', '.join(missing)}"
    return Finding("extra dev", None, message, "pip install 'kernelbench[dev]'", adds)


def doctor(output: Output) -> int:
    """Of each finding whether it is well, what was found, what it adds, and the remedy; verbose:
    where programs are, too. Exit code 2 where something that is needed is missing."""
    with waiting("asking torch for its GPU", output.waits):
        findings = examine()
    if output.as_json:
        print(json.dumps([asdict(finding) for finding in findings]))
    else:
        output.console.print(_table(findings, verbose=output.verbose))
    missing = [finding.what for finding in findings if finding.ok is False]
    if missing:
        output.err(f"exit 2: missing: {', '.join(missing)}")
    return 2 if missing else 0


def _table(findings: Sequence[Finding], *, verbose: bool) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    for finding in findings:
        mark = {True: "ok", False: "MISSING", None: "-"}[finding.ok]
        text = f"{finding.found} · {finding.adds}" if finding.adds else finding.found
        lines = [text, finding.path if verbose else "", finding.remedy]
        table.add_row(mark, finding.what, Text("\n".join(filter(None, lines))))
    return table
