"""Nsight Compute: hardware counters of the kernels in our NVTX ranges, launch by launch."""

import re
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kernelbench.profile import tool
from kernelbench.profile.ncu.csv import METRICS, ProfiledLaunch, kernels_by_range, parse
from kernelbench.profile.tool import ProcessEnd, RefusedError, ToolError
from kernelbench.spec import KernelUse

__all__ = ["METRICS", "ProfiledLaunch", "Program", "Report", "capture", "find", "parse", "why_not"]

PLACES = (
    "/usr/local/cuda/bin/ncu",
    "/usr/local/cuda*/bin/ncu",
    "/opt/nvidia/nsight-compute/*/ncu",
    "/usr/local/NVIDIA-Nsight-Compute*/ncu",
    "/usr/lib/nsight-compute/ncu",
)
# Clocks are not changed: the GPU may be shared. Caches are flushed before each pass, so the bytes
# are those of a cold L2. The trailing slash selects push/pop ranges, which belong to a thread.
OPTIONS = (
    "--target-processes", "all",
    "--nvtx",
    "--nvtx-include", r"regex:kernelbench@kb\..+/",
    "--clock-control", "none",
    "--cache-control", "all",
    "--replay-mode", "kernel",
    "--metrics", ",".join(METRICS.values()),
)  # fmt: skip
# A report that was recorded with --nvtx has its ranges; ncu refuses --nvtx here.
TABLE = ("--csv", "--page", "raw", "--print-units", "base")

PARAMS = Path("/proc/driver/nvidia/params")
STATUS = Path("/proc/self/status")
DRIVERS = (PARAMS, Path("/dev/nvidiactl"), Path("/dev/dxg"))
CAPABILITIES = 1 << 21 | 1 << 38  # CAP_SYS_ADMIN, CAP_PERFMON

PERMISSION = (
    "the driver keeps the GPU's counters to administrators. Run as root, or with CAP_SYS_ADMIN "
    "(CAP_PERFMON from driver 565 on); start a container with --cap-add=SYS_ADMIN; or let the "
    "administrator set `options nvidia NVreg_RestrictProfilingToAdminUsers=0` in /etc/modprobe.d "
    "and reboot. `grep RmProfilingAdminOnly /proc/driver/nvidia/params` says 1 while restricted"
)
FAULTS = (
    ("ERR_NVGPUCTRPERM", PERMISSION),
    (
        "connect to the CUDA driver",
        "no NVIDIA driver here: `nvidia-smi` must work where ncu runs; in a container pass --gpus",
    ),
    (
        "LibraryNotLoaded",
        "this sandbox (gVisor, say) hands on no hardware counters: run on the host, or in an "
        "ordinary container with --cap-add=SYS_ADMIN",
    ),
    (
        "driver resource was unavailable|hardware ?busy",
        "another tool holds the GPU's counters: stop it, or DCGM with `dcgmi profile --pause` (and "
        "--resume), and try again",
    ),
    (
        "lock file",
        "another user's lock is in the temporary folder: set TMPDIR to a folder of your own",
    ),
)
CHILD = re.compile(r"application returned an error code \((\d+)\)")
EXPECTED_WARNING = "unmodified GPU clocks"  # about --clock-control none
FATAL_SIGNALS = {
    signal.SIGILL, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGKILL, signal.SIGSEGV,
    signal.SIGTERM,
}  # fmt: skip
OWN_LINE = re.compile(r"==(ERROR|WARNING)== (.+)")
LINE_BYTES = 1 << 16
LAST_LINES = 8


@dataclass(frozen=True)
class Program:
    """An ncu and its version, such as `2025.3.1.0`."""

    path: Path
    version: str


@dataclass(frozen=True)
class Report:
    """What ncu counted.

    ranges: the kernels of each `kb.` range, summed over its calls. launches: in the order in which
    they ran. notes: ncu's warnings.
    """

    version: str
    rep: Path
    ranges: Mapping[str, tuple[KernelUse, ...]]
    launches: tuple[ProfiledLaunch, ...]
    notes: tuple[str, ...] = ()


def find() -> Program:
    """The ncu to use. Raises ToolError where there is none, or where it does not run."""
    path = tool.find("ncu", PLACES)
    if path is None:
        raise ToolError(
            f"no ncu on the PATH, nor at {', '.join(PLACES)}. It comes with the CUDA toolkit; or "
            "install Nsight Compute from developer.nvidia.com/nsight-compute and put it on the PATH"
        )
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "version")
        ended = tool.run([path, "--version"], log, 60, tool.environment())
    version = re.search(r"Version (\S+)", ended.tail)
    if ended.code != 0 or version is None:
        raise ToolError(f"{path} --version: {_end(ended)}: {_last(ended) or 'it said nothing'}")
    return Program(path, version[1])


def why_not() -> str | None:
    """A reason, known without a trial, why counters cannot be read here; or None."""
    if not any(path.exists() for path in DRIVERS):
        return f"no NVIDIA driver here (none of {', '.join(map(str, DRIVERS))} is there)"
    if not (PARAMS.exists() and re.search("^RmProfilingAdminOnly: 1", PARAMS.read_text(), re.M)):
        return None
    effective = re.search(r"^CapEff:\s*([0-9a-f]+)", STATUS.read_text(), re.M)
    if effective and int(effective[1], 16) & CAPABILITIES:
        return None
    return PERMISSION


def capture(
    program: Program,
    child: Sequence[str | Path],
    stem: Path,
    *,
    extra: Sequence[str] = (),
    timeout: float,
    env: Mapping[str, str],
) -> Report:
    """Run `child` under ncu, and read what it counted in the ranges `kb.…` of our NVTX domain.

    Writes `stem`.ncu-rep (for ncu-ui), `stem`.csv and `stem`.log. timeout: seconds for each of the
    two processes. extra: options of ncu after ours. env: see `tool.environment`.
    Raises ToolError, with the remedy, when there are no trustworthy counts.
    """
    rep, table, log = (stem.with_name(stem.name + end) for end in (".ncu-rep", ".csv", ".log"))
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        for old in (rep, table, log):  # an old report must not be taken for this run's
            old.unlink(missing_ok=True)
    except OSError as error:
        raise ToolError(
            f"{stem.parent}: reports cannot be written there ({error.strerror}): choose another "
            "folder"
        ) from None
    output = str(rep).replace("%", "%%")  # ncu replaces %p and others
    command = [program.path, *OPTIONS, "-f", "-o", output, *extra, *child]
    notes = _check(tool.run(command, log, timeout, env), log, timeout)
    if not rep.exists() or not rep.stat().st_size:
        raise ToolError(f"ncu ended well and wrote no {rep}: is the disk full? Its log: {log}")
    plain = {**env, "LC_ALL": "C"}  # numbers with a decimal point
    command = [program.path, "--import", rep, *TABLE]
    _check(tool.run(command, table, timeout, plain), table, timeout)
    launches = parse(table.read_text(encoding="utf-8", errors="replace"))
    ranges = kernels_by_range(launches)
    if not ranges:
        raise ToolError(_nothing(log))
    return Report(program.version, rep, ranges, tuple(launches), (*notes, *_uncounted(launches)))


def _uncounted(launches: Sequence[ProfiledLaunch]) -> Iterator[str]:
    """Notes on metrics without any value: ncu accepts DRAM counters on GPUs that have none."""
    missing = [
        metric
        for word, metric in METRICS.items()
        if all(launch.values[word] is None for launch in launches)
    ]
    if missing:
        yield f"ncu told no {', '.join(missing)}: what is made of them stays empty, and unaudited"


def _check(ended: ProcessEnd, log: Path, timeout: float) -> tuple[str, ...]:
    """ncu's warnings. Raises ToolError for its exit code, or for an error that it printed, since it
    may exit with 0 all the same; RefusedError where no program can be profiled on this machine."""
    lines = [*_own_lines(log)]
    errors = [text for kind, text in lines if kind == "ERROR"]
    warnings = tuple(dict.fromkeys(text for kind, text in lines if kind == "WARNING"))
    at = f"Its log: {log}"
    for pattern, remedy in FAULTS:
        for text in errors:
            if re.search(pattern, text, re.I):
                raise RefusedError(f"ncu: {text} — {remedy}. {at}")
    if ended.code is None:
        raise ToolError(
            f"ncu did not end within {timeout:g} s and was killed: profile fewer calls or a "
            f"smaller case, or allow more time. It last said: {_last(ended) or 'nothing'}. {at}"
        )
    for text in errors:
        if failed := CHILD.search(text):
            raise ToolError(
                f"the profiled program failed with {_code(int(failed[1]))}, not ncu: try it "
                f"without ncu. It last said: {_last(ended) or 'nothing'}. {at}"
            )
    if errors:
        raise ToolError(f"ncu: {'; '.join(dict.fromkeys(errors))}. {at}")
    if any("No kernels were profiled" in text for text in warnings):
        raise ToolError(_nothing(log))
    if ended.code:
        raise ToolError(f"ncu {_end(ended)}: {_last(ended) or 'it said nothing'}. {at}")
    return tuple(text for text in warnings if EXPECTED_WARNING not in text)


def _own_lines(log: Path) -> Iterator[tuple[str, str]]:
    """(ERROR or WARNING, text) of ncu's own lines in a log, which may be long."""
    with log.open("rb") as file:
        while line := file.readline(LINE_BYTES):
            if match := OWN_LINE.search(line.decode(errors="replace")):
                yield match[1], match[2].strip().rstrip(".")


def _nothing(log: Path) -> str:
    return (
        "ncu saw no kernel in a range kb.… of the NVTX domain kernelbench: does the program get as "
        "far as its profiled calls, and launch from the thread that opens the range (autograd's "
        "own threads do not, see torch.autograd.set_multithreading_enabled)? "
        f"Its log: {log}"
    )


def _end(ended: ProcessEnd) -> str:
    if ended.code is None:
        return "did not end in time"
    if ended.code < 0:
        return f"was killed by signal {-ended.code} ({signal.strsignal(-ended.code)})"
    return f"ended with code {ended.code}"


def _code(code: int) -> str:
    """An exit code in words; ncu prints the number of the signal where one killed the program."""
    number = code - 128 if code > 128 else code
    if number not in FATAL_SIGNALS:
        return f"code {code}"
    return f"code {code} ({signal.strsignal(number)}, if it was killed)"


def _last(ended: ProcessEnd) -> str:
    lines = [line.strip() for line in ended.tail.splitlines()]
    own = [line for line in lines if line and not line.startswith("==")]
    return " | ".join(own[-LAST_LINES:])
