"""Nsight Systems: which kernels a profiled process ran in which NVTX range, and what ran between.

Nothing that it shows is a latency to quote: tracing every launch takes time of its own.
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
from kernelbench.profile.nsys.program import CACHE, HOW_TO_GET, IMPORTERS, Found, find, said
from kernelbench.profile.nsys.sql import PREFIX, ExportedRanges, RangeUse, forget_environments, look
from kernelbench.profile.nvtx import DOMAIN
from kernelbench.profile.tool import ToolError

__all__ = ["Found", "RangeUse", "Report", "capture", "find", "finish", "import_qdstrm", "read"]

INDUCTOR = CACHE.with_name("inductor")  # torch.compile's, where TMPDIR is another each time
# What nsys says when it could not even start what it was to look at; a second try may succeed.
START_FAILURES = (
    "Agent launcher failed",
    "Failed to create CLI's file lock",
    "Failed to initialize client to server communication",
    "Failed to initialize server to client communication",
)
UNKNOWN_OPTION = ("unrecognised option", "unrecognized option")
# It reads /proc/*/environ of each process that it may; in a PID namespace there are only its own.
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
    """What a capture brought. notes: what is to be known of it; an importer's absence, too.

    qdstrm: the raw capture, where no report could be made of it; then there are no ranges.
    """

    version: str
    rep: Path | None
    sqlite: Path | None
    qdstrm: Path | None
    ranges: tuple[RangeUse, ...]
    notes: tuple[str, ...] = ()


class NoImporterError(ToolError):
    """There is a raw capture, of which no report can be made here."""


def capture(
    program: Found,
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

    cuda: only what lies between the child's cudaProfilerStart and cudaProfilerStop is seen.
    gpu_metrics: also sample the GPU's counters, where that is permitted; else a note says why
        not. extra: further options of `nsys profile`. timeout: seconds for the child and nsys.
    env: nsys stores it, so the child sees only what `tool.environment` keeps of it.
    Raises ToolError when the child fails or hangs, or nsys brings no report or no range: what
    happened, the last lines that were printed, and the remedy.
    """
    _prepare(stem)
    sampling, notes = _gpu_metrics(program, env) if gpu_metrics else ([], [])
    if not tool.alone():
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
    program: Found, stem: Path, *, cuda: bool, env: Mapping[str, str] = os.environ
) -> Report:
    """Read what a capture left at `stem`, here or on another machine: a report, or a .qdstrm.

    Raises ToolError when it holds nothing that can be used; NoImporterError when nothing here
    makes a report of the .qdstrm.
    """
    rep, exporter = _path(stem, ".nsys-rep"), program.path
    if not rep.exists():
        exporter = import_qdstrm(program, _path(stem, ".qdstrm"), rep, env=env)
    sqlite = _export(exporter, rep, _path(stem, ".sqlite"), env)
    ranges = look(sqlite)
    if not ranges.ranges:
        raise ToolError(_nothing(ranges, rep, stem))
    notes = tuple(_warnings(ranges, cuda))
    return Report(program.version, rep, sqlite, None, ranges.ranges, notes)


def read(sqlite: Path, domain: str = DOMAIN, prefix: str = PREFIX) -> tuple[RangeUse, ...]:
    """The ranges of an export, see `sql.look`. Raises ToolError when it cannot be read."""
    return look(sqlite, domain, prefix).ranges


def import_qdstrm(
    program: Found, qdstrm: Path, rep: Path, *, env: Mapping[str, str] = os.environ
) -> Path:
    """Make a report of a raw capture, which is then removed; returns the nsys that can read it.

    Raises NoImporterError, saying how to do it on another machine, when that cannot be done here.
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


def _gpu_metrics(program: Found, env: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Options to sample the GPU's counters, or a note why that cannot be; newer names first."""
    answer = ""
    for option in ("--gpu-metrics-devices", "--gpu-metrics-device"):
        answer = said([program.path, "profile", f"{option}=help"], env)
        for devices in ("cuda-visible", "all"):
            if re.search(rf"^\s*{devices}:", answer, re.MULTILINE):
                return [f"{option}={devices}"], []
        if not _matches(UNKNOWN_OPTION, answer):
            break
    may = "an administrator can permit it: options nvidia NVreg_RestrictProfilingToAdminUsers=0"
    why = f"{_last(answer)}; {may}" if "NVGPUCTRPERM" in answer else _last(answer)
    return [], [f"GPU metrics were not sampled: {why}"]


def _prepare(stem: Path) -> None:
    """Where nsys cannot write, it writes elsewhere and says it went well: so try it first."""
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
    program: Found,
    command: Sequence[str | Path],
    stem: Path,
    timeout: float,
    env: Mapping[str, str],
) -> tool.Ended:
    """Run `nsys profile`, alone if that can be. When it must be killed, or is, nothing that it
    started goes on."""
    session = f"kernelbench-{os.getpid()}-{next(_session)}"
    profile = [program.path, "profile", f"--session-new={session}", *command]
    log, env = _path(stem, ".log"), tool.environment(env)
    if alone := tool.alone():
        with tempfile.TemporaryDirectory(prefix="kb-") as own:  # it names files by process numbers
            env = {"TORCHINDUCTOR_CACHE_DIR": str(INDUCTOR), **env, "TMPDIR": own}
            return tool.run([*alone, *profile], log, timeout, env)
    code: int | None = None
    try:
        ended = tool.run(profile, log, timeout, env)
        code = ended.code
    finally:
        if code is None or code < 0:  # the child and nsys's agent are in sessions of their own
            said([program.path, "shutdown", f"--session={session}", "--kill=sigkill"], env)
    return ended


def _refuse_unknown(extra: Sequence[str], tail: str) -> None:
    """Raises ToolError when it is a further option that nsys does not know."""
    names = [word.partition("=")[0] for word in extra if word.startswith("-")]
    if _matches(UNKNOWN_OPTION, tail) and (bad := [name for name in names if f"'{name}" in tail]):
        raise ToolError(f"nsys has no option {bad[0]}: see `nsys profile --help`")


def _check(program: Found, ended: tool.Ended, stem: Path, cuda: bool, timeout: float) -> None:
    """Raises ToolError unless the child ended well and left a report or a raw capture."""
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
    forget_environments(sqlite)
    return sqlite


def _nothing(ranges: ExportedRanges, rep: Path, stem: Path) -> str:
    open_ = f"; {', '.join(ranges.endless)} had no end" if ranges.endless else ""
    return (
        f"{rep}: holds no range {PREFIX}* of the NVTX domain {DOMAIN}{open_}, and "
        f"{ranges.operations} operations of the GPU. Ranges are lost without a word where the nvtx "
        "package hands out a dummy domain, which profile.nvtx.open_ranges replaces, or when the "
        f"child opened none; see {_path(stem, '.log')}"
    )


def _warnings(ranges: ExportedRanges, cuda: bool) -> Iterator[str]:
    if ranges.outside:
        yield (
            f"{ranges.outside} of {ranges.operations} GPU operations were launched outside every "
            "range, or by a thread that none can be told for; they are in no sum"
        )
    if ranges.endless:
        yield f"the capture ended within {', '.join(ranges.endless)}; these ranges are in no sum"
    if cuda and not ranges.operations:
        yield "no GPU operation was seen: is another profiler attached to the GPU?"


def _written(stem: Path) -> Path | None:
    paths = (_path(stem, suffix) for suffix in (".nsys-rep", ".qdstrm"))
    return next((path for path in paths if _size(path)), None)


def _path(stem: Path, suffix: str) -> Path:
    return stem.with_name(stem.name + suffix)  # with_suffix would cut a name that has a dot


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _matches(texts: Sequence[str], said: str) -> bool:
    return any(text in said for text in texts)


def _how(code: int | None) -> str:
    """How a process ended; nsys gives a child's signal on as 128 more than its number."""
    if code is None:
        return "did not end in time"
    number = -code if code < 0 else code - 128
    known = {one.value: one.name for one in signal.Signals}
    by = f" ({known[number]})" if number in known else ""
    return f"was killed by signal {number}{by}" if code < 0 else f"ended with code {code}{by}"


def _last(tail: str, lines: int = 5) -> str:
    """The last lines that are no progress of nsys, on one line."""
    said = [line for line in re.split(r"[\r\n]+", tail) if not PROGRESS.match(line)]
    return " | ".join(line.strip()[-300:] for line in said[-lines:]) or "nothing"
