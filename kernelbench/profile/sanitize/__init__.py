"""NVIDIA's compute-sanitizer over providers: bad addresses, races, reads of what nobody wrote.

A process under the tool calls one provider once on each of its cases. Where it sees something, or
does not get through, each case has a process of its own, so that what is found has a case.
"""

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path

from kernelbench.profile import tool
from kernelbench.profile.sanitize.log import Finding, Reading, read
from kernelbench.profile.tool import ProcessEnd, ToolError
from kernelbench.spec import Context, Job

NAME = "compute-sanitizer"
PLACES = (
    "/usr/local/cuda/bin/compute-sanitizer",
    "/usr/local/cuda*/bin/compute-sanitizer",
    "/usr/local/cuda*/compute-sanitizer/compute-sanitizer",
    "/opt/cuda/bin/compute-sanitizer",
)
# A kernel that did wrong ends, and others go on. What the driver's probing calls return is no
# finding. Of a race, the pairs of accesses with their hazards, not each hazard.
OPTIONS = (
    "--target-processes", "all",
    "--report-api-errors", "no",
    "--destroy-on-device-error", "kernel",
    "--show-backtrace", "device",
    "--demangle", "simple",
    "--print-limit", "1000",
)  # fmt: skip
TARGET = "kernelbench.profile.sanitize.target"
LAST_LINES = 4


class Check(StrEnum):
    """A tool of compute-sanitizer."""

    memcheck = "memcheck"  # accesses out of bounds, misaligned, or of what was freed
    racecheck = "racecheck"  # hazards in shared memory
    initcheck = "initcheck"  # reads of global memory that was never written
    synccheck = "synccheck"  # barriers that not all threads reach

    @property
    def options(self) -> tuple[str, ...]:
        return ("--racecheck-report", "analysis") if self is Check.racecheck else ()

    @property
    def environment(self) -> dict[str, str]:
        """PyTorch's allocator hands out parts of what it holds: to the tool all of that is one
        allocation, and what was written to it once stays so."""
        alone = self in (Check.memcheck, Check.initcheck)
        return {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if alone else {}


@dataclass(frozen=True)
class Found:
    """A compute-sanitizer and its version."""

    path: Path
    version: str


@dataclass(frozen=True, kw_only=True)
class Look:
    """One tool at one provider and case, or at several where `case` names them all.

    unseen: why the tool could not look, or not at all of it; nothing is known then beyond the
    findings. refused: that holds for whatever else is tried on this machine.
    """

    check: Check
    family: str
    provider: str
    case: str
    findings: tuple[Finding, ...] = ()
    unseen: str = ""
    refused: bool = False
    notes: tuple[str, ...] = ()

    @property
    def clean(self) -> bool:
        return not (self.findings or self.unseen)


def find() -> Found:
    """The compute-sanitizer to use. Raises ToolError where there is none, or it does not run."""
    homes = [home for name in ("CUDA_HOME", "CUDA_PATH") if (home := os.environ.get(name))]
    places = [f"{Path(home).resolve()}/bin/{NAME}" for home in homes]
    path = tool.find("compute-sanitizer", [*places, *PLACES])
    if path is None:
        raise ToolError(
            f"no {NAME} on the PATH, nor at {', '.join([*places, *PLACES])}. It comes with the "
            "CUDA toolkit: install that, and put its bin folder on the PATH"
        )
    with tempfile.TemporaryDirectory() as folder:
        ended = tool.run([path, "--version"], Path(folder, "version"), 60, tool.environment())
    version = re.search(r"Version (\S+)", ended.tail)
    if ended.code != 0 or version is None:
        raise ToolError(f"{path} --version: ended with {ended.code}: {_last(ended)}")
    return Found(path, version[1])


@dataclass(frozen=True, kw_only=True)
class Sanitizer:
    """One tool over many providers. timeout: seconds for each case. folder: of its logs."""

    check: Check
    program: Found
    folder: Path
    device: str
    plugins: tuple[str, ...]
    context: Context
    timeout: float

    def look(self, provider: str, jobs: Sequence[Job]) -> Iterator[Look]:
        """What the tool says of a provider, of all jobs of one family together, or one by one.

        Raises ToolError where the program cannot be started.
        """
        whole = self._watch(provider, jobs)
        if len(jobs) == 1:
            yield whole
        elif whole.clean or whole.refused:
            yield from (replace(whole, case=job.case.id) for job in jobs)
        else:
            apart = [self._watch(provider, [job]) for job in jobs]
            yield from apart
            if whole.findings and not any(look.findings for look in apart):
                yield whole

    def refuse(self, provider: str, jobs: Sequence[Job], why: str) -> Iterator[Look]:
        """The same without trying: this machine has refused the tool already."""
        for job in jobs:
            yield Look(
                check=self.check,
                family=job.family,
                provider=provider,
                case=job.case.id,
                unseen=why,
                refused=True,
            )

    def _watch(self, provider: str, jobs: Sequence[Job]) -> Look:
        """One process under the tool."""
        family, cases = jobs[0].family, [job.case.id for job in jobs]
        name = cases[0] if len(cases) == 1 else f"{len(cases)} cases in one process"
        stem = self.folder / ".".join([family, provider, name.replace(" ", "-"), self.check])
        request, answers, log, printed = (
            stem.with_name(f"{stem.name}.{what}") for what in ("request", "answers", "log", "out")
        )
        facts = {
            "family": family,
            "jobs": [replace(job, providers=(provider,)).as_json() for job in jobs],
            "context": asdict(self.context),
            "device": self.device,
            "plugins": self.plugins,
            "answers": str(answers),
        }
        try:
            for old in (answers, log):
                old.unlink(missing_ok=True)
            request.write_text(json.dumps(facts), encoding="utf-8")
        except OSError as error:
            raise ToolError(f"{request}: cannot be written ({error.strerror})") from None
        ended = tool.run(
            self._command(request, log), printed, self.timeout * len(jobs), self._environment()
        )
        done = {answer["done"] for answer in tool.answers_in(answers)}
        request.unlink()
        answers.unlink(missing_ok=True)
        text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        reading = read(text)
        left = [case for case in cases if case not in done]
        return Look(
            check=self.check,
            family=family,
            provider=provider,
            case=name,
            findings=reading.findings,
            unseen=unseen(ended, reading, left, self.timeout * len(jobs)),
            refused=reading.refused,
            notes=(*reading.notes, *_unprinted(reading)),
        )

    def _command(self, request: Path, log: Path) -> list[str | Path]:
        escaped = str(log).replace("%", "%%")  # the tool fills in %p and the like
        options = ["--tool", self.check, *OPTIONS, *self.check.options, "--log-file", escaped]
        return [self.program.path, *options, *tool.child(TARGET, request)]

    def _environment(self) -> Mapping[str, str]:
        return tool.environment() | self.check.environment


def _unprinted(reading: Reading) -> Iterator[str]:
    if reading.unprinted:
        yield f"{reading.unprinted} more errors are not in the log"


def unseen(ended: ProcessEnd, reading: Reading, left: Sequence[str], timeout: float) -> str:
    """Why not everything was looked at, or nothing. left: cases that the program did not finish;
    that a finding explains."""
    if reading.faults:
        return f"{NAME}: {'; '.join(reading.faults)}"
    if ended.code is None:
        return f"it did not end within {timeout:g} s and was killed: allow more with --timeout"
    if reading.findings:
        return ""
    if left:
        return f"the program ended with code {ended.code} at {left[0]}: {_last(ended)}"
    if reading.summed is None:
        reason = "; ".join(reading.notes) or "it wrote no log"
        return f"{NAME} ended with code {ended.code} and without a summary: {reason}"
    if reading.summed:
        return f"{NAME} counts {reading.summed} errors, none of which is understood"
    return ""


def _last(ended: ProcessEnd) -> str:
    lines = [line.strip() for line in ended.tail.splitlines() if line.strip()]
    return " | ".join(lines[-LAST_LINES:]) or "it said nothing"
