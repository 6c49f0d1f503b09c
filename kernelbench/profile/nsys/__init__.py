"""Nsight Systems: the kernels that a profiled process ran in each NVTX range, and the gaps between.

None of its times is a latency to quote, since tracing every launch takes time itself.
"""

import itertools
import os
import re
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kernelbench.profile import tool
from kernelbench.profile.nsys.program import CACHE, HOW_TO_GET, IMPORTERS, Program, find, output_of
from kernelbench.profile.nsys.sql import (
    PREFIX,
    ExportedRanges,
    RangeUse,
    read_ranges,
    remove_environments,
)
from kernelbench.profile.nvtx import DOMAIN
from kernelbench.profile.tool import ToolError

__all__ = ["Program", "RangeUse", "Report", "capture", "find", "finish", "import_qdstrm", "read"]

INDUCTOR = CACHE.with_name("inductor")  # torch.compile's cache, since each run has a new TMPDIR
# nsys's messages when it could not start the child; a second try may succeed.
START_FAILURES = (
    "Agent launcher failed",
    "Failed to create CLI's file lock",
    "Failed to initialize client to server communication",
    "Failed to initialize server to client communication",
)
UNKNOWN_OPTION = ("unrecognised option", "unrecognized option")
# nsys reads /proc/*/environ of every process that it can; a PID namespace has only its own.
EXPOSED = (
    "nsys stores the environment of all your processes in its .nsys-rep and .qdstrm, since no PID "
    "namespace could be made for it (unshare --pid --mount-proc): look for secrets before you hand "
    "one on"
)
PROGRESS = re.compile(r"\[\d+/\d+\] \[|Generating '|Generated:|Processing \d+ events|^    /|^$")
EXPORT_S = 600.0
_session = itertools.count(1)


@dataclass(frozen=True)
class Report:
    """The result of a capture.

    rep, sqlite: the report and its export. qdstrm: the raw capture, where no report could be made
    of it; then there are no ranges. notes: for the user, such as that there is no importer.
    """

    version: str
    rep: Path | None
    sqlite: Path | None
    qdstrm: Path | None
    ranges: tuple[RangeUse, ...]
    notes: tuple[str, ...] = ()


class NoImporterError(ToolError):
    """There is a raw capture, but no report can be made of it here."""


def capture(
    program: Program,
    child: Sequence[str | Path],
    stem: Path,
    *,
    cuda: bool,
    gpu_metrics: bool = False,
    extra: Sequence[str] = (),
    timeout: float,
    env: Mapping[str, str] = os.environ,
) -> Report:
    """Run a command under nsys and read its ranges. Files: `stem` with .nsys-rep, .sqlite, .log.

    cuda: capture only between the child's cudaProfilerStart and cudaProfilerStop.
    gpu_metrics: also sample the GPU's counters, where that is permitted; else a note says why
        not. extra: further options of `nsys profile`. timeout: seconds for the child and nsys.
    env: nsys stores it, so the child gets only what `tool.environment` keeps of it.
    Raises ToolError when the child fails or hangs, or when nsys makes no report or no range. It has
    what happened, the last lines of output, and the remedy.
    """
    _prepare(stem)
    sampling, notes = _gpu_metrics(program, env) if gpu_metrics else ([], [])
    if not tool.isolation():
        notes.append(EXPOSED)
    command = [*_options(stem, cuda), *sampling, *extra, *child]
    ended = _run(program, command, stem, timeout, env)
    if ended.code and not _written(stem) and _matches(START_FAILURES, ended.tail):
        notes.append(f"nsys could not start at first, and was tried again: {_last(ended.tail)}")
        ended = _run(program, command, stem, timeout, env)
    if ended.code and not _written(stem):
        _refuse_unknown(extra, ended.tail)
    _check(program, ended, stem, cuda, timeout)
    try:
        report = finish(program, stem, cuda=cuda, env=env)
    except NoImporterError as error:
        qdstrm = _path(stem, ".qdstrm")
        return Report(program.version, None, None, qdstrm, (), (*notes, str(error)))
    return replace(report, notes=(*notes, *report.notes))


def finish(
    program: Program, stem: Path, *, cuda: bool, env: Mapping[str, str] = os.environ
) -> Report:
    """Read the report or the .qdstrm that a capture left at `stem`, here or on another machine.

    Raises ToolError when it has no usable ranges; NoImporterError when no report can be made of the
    .qdstrm here.
    """
    rep, exporter = _path(stem, ".nsys-rep"), program.path
    if not rep.exists():
        exporter = import_qdstrm(program, _path(stem, ".qdstrm"), rep, env=env)
    sqlite = _export(exporter, rep, _path(stem, ".sqlite"), env)
    exported = read_ranges(sqlite)
    if not exported.ranges:
        raise ToolError(_nothing(exported, rep, stem))
    notes = tuple(_warnings(exported, cuda))
    return Report(program.version, rep, sqlite, None, exported.ranges, notes)


def read(sqlite: Path, domain: str = DOMAIN, prefix: str = PREFIX) -> tuple[RangeUse, ...]:
    """The ranges of an export, see `sql.read_ranges`. Raises ToolError when it cannot be read."""
    return read_ranges(sqlite, domain, prefix).ranges


def import_qdstrm(
    program: Program, qdstrm: Path, rep: Path, *, env: Mapping[str, str] = os.environ
) -> Path:
    """Make a report of a raw capture, and remove the capture; returns the nsys that can read it.

    Raises NoImporterError, with the commands for another machine, when that is impossible here.
    """
    elsewhere = (
        f"Keep {qdstrm}; on a machine with Nsight Systems {program.version} or newer: "
        f"QdstrmImporter -i {qdstrm.name} -o {rep.name}, then nsys export -t sqlite {rep.name}"
    )
    if program.importer is None:
        raise NoImporterError(
            f"{program.path} has no QdstrmImporter beside it, nor is there one as "
            f"{', '.join(IMPORTERS)}: the capture is there, but no report. {elsewhere}"
        )
    log = rep.with_name(f"{rep.name}.import.log")
    command: list[str | Path] = [program.importer, "-i", qdstrm, "-o", rep]
    ended = tool.run(command, log, EXPORT_S, tool.environment(env))
    if ended.code != 0 or not _size(rep):
        raise NoImporterError(
            f"{program.importer} could not make a report of {qdstrm} ({_how(ended.code)}): "
            f"{_last(ended.tail)}. {elsewhere}"
        )
    log.unlink()
    qdstrm.unlink()
    beside = program.importer.parent.parent / "bin" / "nsys"
    return beside if os.access(beside, os.X_OK) else program.path


def _options(stem: Path, cuda: bool) -> list[str]:
    ranged = [
        "--trace=cuda,nvtx",
        "--capture-range=cudaProfilerApi",
        "--capture-range-end=stop",
        "--kill=none",  # else the child is killed when it calls cudaProfilerStop
        "--cuda-graph-trace=node",  # else a graph's kernels are not seen
    ]
    return [
        *(ranged if cuda else ["--trace=nvtx,osrt"]),
        "--sample=none",
        "--cpuctxsw=none",
        "--force-overwrite=true",
        f"--output={str(stem).replace('%', '%%')}",  # % begins a pattern
    ]


def _gpu_metrics(program: Program, env: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """(options to sample the GPU's counters, notes): only a note where that is impossible."""
    answer = ""
    for option in ("--gpu-metrics-devices", "--gpu-metrics-device"):  # the newer name first
        answer = output_of([program.path, "profile", f"{option}=help"], env)
        for devices in ("cuda-visible", "all"):
            if re.search(rf"^\s*{devices}:", answer, re.MULTILINE):
                return [f"{option}={devices}"], []
        if not _matches(UNKNOWN_OPTION, answer):
            break
    remedy = "an administrator can permit it: options nvidia NVreg_RestrictProfilingToAdminUsers=0"
    why = f"{_last(answer)}; {remedy}" if "NVGPUCTRPERM" in answer else _last(answer)
    return [], [f"GPU metrics were not sampled: {why}"]


def _prepare(stem: Path) -> None:
    """Raise ToolError where files cannot be written: nsys would silently write them elsewhere."""
    try:
        for suffix in (".nsys-rep", ".sqlite", ".qdstrm"):
            _path(stem, suffix).unlink(missing_ok=True)
        _path(stem, ".log").write_bytes(b"")
    except OSError as error:
        raise ToolError(
            f"{stem.parent}: nsys cannot write its report there ({error.strerror or error}). "
            "Make the folder, or name another"
        ) from None


def _run(
    program: Program,
    command: Sequence[str | Path],
    stem: Path,
    timeout: float,
    env: Mapping[str, str],
) -> tool.ProcessEnd:
    """Run `nsys profile`, isolated from other processes if possible.

    All processes that it started are ended when it is killed.
    """
    session = f"kernelbench-{os.getpid()}-{next(_session)}"
    profile = [program.path, "profile", f"--session-new={session}", *command]
    log, env = _path(stem, ".log"), tool.environment(env)
    if isolation := tool.isolation():
        # nsys names temporary files by process numbers, which a namespace counts from 1
        with tempfile.TemporaryDirectory(prefix="kb-") as folder:
            env = {"TORCHINDUCTOR_CACHE_DIR": str(INDUCTOR), **env, "TMPDIR": folder}
            return tool.run([*isolation, *profile], log, timeout, env)
    code: int | None = None
    try:
        ended = tool.run(profile, log, timeout, env)
        code = ended.code
    finally:
        if code is None or code < 0:  # the child and nsys's agent are in sessions of their own
            output_of([program.path, "shutdown", f"--session={session}", "--kill=sigkill"], env)
    return ended


def _refuse_unknown(extra: Sequence[str], tail: str) -> None:
    """Raises ToolError when nsys does not know one of the user's options."""
    names = [word.partition("=")[0] for word in extra if word.startswith("-")]
    if _matches(UNKNOWN_OPTION, tail) and (bad := [name for name in names if f"'{name}" in tail]):
        raise ToolError(f"nsys has no option {bad[0]}: see `nsys profile --help`")


def _check(
    program: Program, ended: tool.ProcessEnd, stem: Path, cuda: bool, timeout: float
) -> None:
    """Raises ToolError unless the child succeeded and there is a report or a raw capture."""
    log, last = _path(stem, ".log"), _last(ended.tail)
    if ended.code is None:
        raise ToolError(
            f"nsys {program.version} and what it profiles did not end within {timeout:g} s and "
            f"were killed. Last lines, see {log}: {last}. Give more time, or see whether the case "
            "hangs without a profiler"
        )
    written = _written(stem)
    if ended.code and written:
        raise ToolError(
            f"what nsys {program.version} profiled {_how(ended.code)}; {written} shows it until "
            f"then. Last lines, see {log}: {last}"
        )
    if ended.code and _matches(UNKNOWN_OPTION, ended.tail):
        raise ToolError(
            f"{program.path} is version {program.version}, which lacks an option: {last}. Use a "
            f"newer one. {HOW_TO_GET}"
        )
    if ended.code:
        raise ToolError(
            f"nsys {program.version} {_how(ended.code)} and wrote no report. Last lines, see "
            f"{log}: {last}"
        )
    if not written:
        went = re.search(r"Generated:\s+(/.*)", ended.tail)
        where = f"; it wrote {went[1]} instead, is {stem.parent} writable" if went else ""
        never = "; was cudaProfilerStart never called" if cuda and not went else ""
        raise ToolError(
            f"nsys {program.version} ended well without a report {_path(stem, '.nsys-rep')}"
            f"{where}{never}? Last lines, see {log}: {last}"
        )


def _export(nsys: Path, rep: Path, sqlite: Path, env: Mapping[str, str]) -> Path:
    log = rep.with_name(f"{rep.name}.export.log")
    options = ["--type=sqlite", "--force-overwrite=true", f"--output={sqlite}"]
    ended = tool.run([nsys, "export", *options, rep], log, EXPORT_S, tool.environment(env))
    if ended.code != 0 or not _size(sqlite):
        newer = "; the report is newer than this nsys" if "newer than" in ended.tail else ""
        raise ToolError(
            f"{nsys} could not export {rep} to SQLite ({_how(ended.code)}{newer}): "
            f"{_last(ended.tail)}. The report is kept: nsys-ui opens it, and a newer nsys exports "
            f"it: nsys export -t sqlite -f true -o {sqlite} {rep}"
        )
    log.unlink()
    remove_environments(sqlite)
    return sqlite


def _nothing(exported: ExportedRanges, rep: Path, stem: Path) -> str:
    endless = f"; {', '.join(exported.endless)} had no end" if exported.endless else ""
    return (
        f"{rep}: holds no range {PREFIX}* of the NVTX domain {DOMAIN}{endless}, and "
        f"{exported.operations} operations of the GPU. Ranges are lost without a word where the "
        "nvtx package hands out a dummy domain, which profile.nvtx.open_ranges replaces, or when "
        f"the child opened none; see {_path(stem, '.log')}"
    )


def _warnings(exported: ExportedRanges, cuda: bool) -> Iterator[str]:
    if exported.outside:
        yield (
            f"{exported.outside} of {exported.operations} GPU operations were launched outside "
            "every range, or by a thread that none can be told for; they are in no sum"
        )
    if exported.endless:
        yield f"the capture ended within {', '.join(exported.endless)}; these ranges are in no sum"
    if cuda and not exported.operations:
        yield "no GPU operation was seen: is another profiler attached to the GPU?"


def _written(stem: Path) -> Path | None:
    paths = (_path(stem, suffix) for suffix in (".nsys-rep", ".qdstrm"))
    return next((path for path in paths if _size(path)), None)


def _path(stem: Path, suffix: str) -> Path:
    return stem.with_name(stem.name + suffix)  # with_suffix would cut a name that has a dot


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _matches(texts: Sequence[str], output: str) -> bool:
    return any(text in output for text in texts)


def _how(code: int | None) -> str:
    """How a process ended, in words; nsys reports a child's signal as its number plus 128."""
    if code is None:
        return "did not end in time"
    number = -code if code < 0 else code - 128
    names = {s.value: s.name for s in signal.Signals}
    by = f" ({names[number]})" if number in names else ""
    return f"was killed by signal {number}{by}" if code < 0 else f"ended with code {code}{by}"


def _last(tail: str, lines: int = 5) -> str:
    """The last lines of output, without nsys's progress, joined into one."""
    output = [line for line in re.split(r"[\r\n]+", tail) if not PROGRESS.match(line)]
    return " | ".join(line.strip()[-300:] for line in output[-lines:]) or "nothing"
