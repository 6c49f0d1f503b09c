"""One job under one profiler: runs its providers in a child process, and reads the tool's report.

If the child dies, the report is lost: the provider that was at work gets a line that says so, and
the others are profiled again without it.
"""

import importlib.metadata
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from kernelbench.profile import ncu, nsys, nvtx
from kernelbench.profile.phases import call_name
from kernelbench.profile.tool import RefusedError, ToolError, answers_in, child, environment, run
from kernelbench.spec import (
    Context,
    Family,
    Job,
    KernelUse,
    Measured,
    Status,
    Tool,
)

CHILD = "kernelbench.profile.child"
LONGEST_NAME = 120
PENDING = "captured; nsys cannot make a report of it here: kernelbench profile --import elsewhere"


@dataclass(frozen=True, kw_only=True)
class ProfileOptions:
    """How to profile.

    calls: of each provider. timeout: seconds for one child. nsys_args, ncu_args: more arguments of
    the tool. shapes, stacks: whether torch's profiler records them.
    """

    device: str = "auto"
    plugins: tuple[str, ...] = ()
    calls: int = 3
    timeout: float = 600.0
    gpu_metrics: bool = False
    nsys_args: tuple[str, ...] = ()
    ncu_args: tuple[str, ...] = ()
    shapes: bool = False
    stacks: bool = False


@dataclass(frozen=True)
class Observation:
    """What a tool recorded of one child.

    version: of the tool. by_provider: fields of a Measured. files: for all providers. pending: why
    there is a capture that cannot be read here, or "".
    """

    version: str
    by_provider: Mapping[str, Mapping[str, Any]]
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    pending: str = ""


def find(tool: Tool) -> nsys.Program | ncu.Program | None:
    """The program of a tool; None for torch's profiler, which is part of torch.

    Raises ToolError when it is not installed.
    """
    if tool is Tool.nsys:
        return nsys.find()
    return ncu.find() if tool is Tool.ncu else None


class Profiler:
    """One tool over many jobs.

    program: see `find`. folder: of the run; files go to `profiles/<tool>/` in it.
    Raises ToolError when they cannot be written there.
    """

    def __init__(
        self, tool: Tool, program: Any, options: ProfileOptions, folder: Path, cuda: bool
    ) -> None:
        self.tool, self._options, self._folder, self._cuda = tool, options, folder, cuda
        self._program = program
        self._output = folder / "profiles" / tool.value
        try:
            self._output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ToolError(f"{self._output}: cannot be written ({error.strerror})") from None

    def profile(
        self,
        job: Job,
        family: Family[Any],
        context: Context,
        note: Callable[[str], None],
    ) -> Iterator[Measured]:
        """Yield a line for every provider of the job. note: is called with each note of the tool.

        Raises ToolError when the tool itself fails.
        """
        remaining = list(job.providers)
        stem = self._output / f"{job.family}.{job.case.id}"
        line = partial(self._line, job, family, context)
        while remaining:
            answers = _file(stem, "answers")
            try:
                observation = self._capture(replace(job, providers=tuple(remaining)), context, stem)
            except ToolError as error:
                culprit = _at_work(answers)
                blamed = [name for name in remaining if culprit in ("", name)]
                if not blamed or isinstance(error, RefusedError):
                    raise
                facts = {"status": Status.crashed, "reason": str(error)}
                yield from (line(name, facts, Observation(self.version, {})) for name in blamed)
                remaining = [name for name in remaining if name not in blamed]
                continue
            for text in observation.notes:
                note(f"{job.id}: {text}")
            facts_of = _by_provider(answers)
            yield from (line(name, facts_of.get(name, {}), observation) for name in remaining)
            answers.unlink(missing_ok=True)
            return

    def _capture(self, job: Job, context: Context, stem: Path) -> Observation:
        request, answers = _file(stem, "request"), _file(stem, "answers")
        options = self._options
        facts = {
            "tool": self.tool,
            "job": job.as_json(),
            "context": asdict(context),
            "device": options.device,
            "plugins": options.plugins,
            "calls": options.calls,
            "shapes": options.shapes,
            "stacks": options.stacks,
            "stem": str(stem),
            "answers": str(answers),
        }
        try:
            answers.unlink(missing_ok=True)
            request.write_text(json.dumps(facts), encoding="utf-8")
        except OSError as error:
            raise ToolError(f"{request}: cannot be written ({error.strerror})") from None
        try:
            by = {Tool.nsys: self._by_nsys, Tool.ncu: self._by_ncu, Tool.torch: self._by_torch}
            return by[self.tool](child(CHILD, request), stem, job)
        finally:
            request.unlink(missing_ok=True)

    def _by_nsys(self, command: Sequence[str], stem: Path, job: Job) -> Observation:
        captured = nsys.capture(
            self._program,
            command,
            stem,
            cuda=self._cuda,
            gpu_metrics=self._options.gpu_metrics,
            extra=self._options.nsys_args,
            timeout=self._options.timeout,
            env=environment(),
        )
        by_name = {use.name: use for use in captured.ranges}
        by_provider = {
            name: _timeline(by_name[range_name])
            for name, range_name in _ranges(job)
            if range_name in by_name
        }
        pending = PENDING if captured.qdstrm else ""
        return Observation(captured.version, by_provider, _files(captured), captured.notes, pending)

    def _by_ncu(self, command: Sequence[str], stem: Path, job: Job) -> Observation:
        captured = ncu.capture(
            self._program,
            command,
            stem,
            extra=self._options.ncu_args,
            timeout=self._options.timeout,
            env=environment(),
        )
        by_provider = {
            name: {"kernels": captured.ranges[range_name]}
            for name, range_name in _ranges(job)
            if range_name in captured.ranges
        }
        counts = {n: sum(k.launches for k in f["kernels"]) for n, f in by_provider.items()}
        notes = [
            f"{name}: ncu counted {count} launches in {self._options.calls} calls, so figures of "
            "one call are no whole call's"
            for name, count in counts.items()
            if count % self._options.calls
        ]
        notes = [*captured.notes, *notes]
        return Observation(captured.version, by_provider, (captured.rep,), tuple(notes))

    def _by_torch(self, command: Sequence[str], stem: Path, job: Job) -> Observation:
        log = stem.with_name(f"{stem.name}.log")
        ended = run(command, log, self._options.timeout, environment())
        if ended.code != 0:
            how = "did not end in time" if ended.code is None else f"ended with code {ended.code}"
            last = " | ".join(ended.tail.splitlines()[-4:])
            raise ToolError(f"the profiled process {how}: {last}. Its log: {log}")
        return Observation(self.version, {})

    @property
    def version(self) -> str:
        """Of the tool; for torch's profiler, of torch."""
        return str(self._program.version if self._program else importlib.metadata.version("torch"))

    def _line(
        self,
        job: Job,
        family: Family[Any],
        context: Context,
        name: str,
        facts: Mapping[str, Any],
        observation: Observation,
    ) -> Measured:
        """The line of one provider: the child's facts of it, and what the tool recorded."""
        provider, provider_facts = family.provider(name), dict(facts)
        status = Status(provider_facts.pop("status", "failed"))
        reason = provider_facts.pop("reason", "") or (
            "" if facts else "the process said nothing of it"
        )
        files = [*observation.files, *map(Path, provider_facts.pop("files", ()))]
        provider_facts["kernels"] = tuple(
            KernelUse(**use) for use in provider_facts.pop("kernels", ())
        )
        if status is Status.ok:
            provider_facts |= observation.by_provider.get(name, {})
            if observation.pending:
                status, reason = Status.skipped, observation.pending
            elif not provider_facts["kernels"] and self._cuda:
                status, reason = Status.failed, f"{self.tool} saw no kernel in its calls"
        provider_facts["kernels"] = tuple(map(_with_short_name, provider_facts["kernels"]))
        return Measured(
            run_id=context.run_id,
            utc=datetime.now(UTC).isoformat(timespec="seconds"),
            tool=self.tool,
            tool_version=observation.version,
            status=status,
            reason=reason,
            family=job.family,
            provider=name,
            role=provider.role,
            case=job.case.id,
            mode=job.case.mode.value,
            dtype=job.case.dtype.value,
            axes=job.case.as_axes(),
            gpu=context.gpu,
            source=context.source,
            files=tuple(str(file.relative_to(self._folder)) for file in files),
            **provider_facts,
        )


def import_pending(lines: Sequence[Measured], folder: Path) -> Iterator[Measured]:
    """Read the captures that another machine could not read (see `PENDING`); yields their lines.

    folder: of the run. Raises ToolError where this machine cannot read them either.
    """
    waiting: dict[str, list[Measured]] = {}
    for line in lines:
        for file in line.files if line.reason == PENDING else ():
            waiting.setdefault(file, []).append(line)
    program = nsys.find() if waiting else None
    for file, part in waiting.items():
        assert program is not None
        stem = folder / file.removesuffix(".qdstrm")
        report = nsys.finish(program, stem, cuda=True, env=environment())
        by_name = {use.name: use for use in report.ranges}
        files = tuple(str(path.relative_to(folder)) for path in _files(report))
        for line in part:
            use = by_name.get(nvtx.name_of("kb", line.family, line.provider, line.case))
            timeline = _timeline(use) if use else {}
            status = Status.ok if use and use.launches else Status.failed
            reason = "" if status is Status.ok else "nsys saw no kernel in its calls"
            yield replace(line, status=status, reason=reason, files=files, **timeline)


def _with_short_name(kernel: KernelUse) -> KernelUse:
    """With a name of at most LONGEST_NAME letters, since names of templates may have thousands."""
    if len(kernel.name) <= LONGEST_NAME:
        return kernel
    return replace(kernel, name=f"{kernel.name[:LONGEST_NAME]}…")


def _timeline(use: nsys.RangeUse) -> dict[str, Any]:
    """The fields of a Measured that nsys has; without a GPU there is no span."""
    return {
        "kernels": use.kernels,
        "calls": use.instances,
        "span_ns": use.span_ns if use.launches else None,
        "gaps_ns": use.gaps_ns if use.launches else None,
        "host_ns": use.host_ns,
    }


def _files(report: nsys.Report) -> tuple[Path, ...]:
    return tuple(file for file in (report.rep, report.sqlite, report.qdstrm) if file)


def _file(stem: Path, kind: str) -> Path:
    return stem.with_name(f"{stem.name}.{kind}.jsonl")


def _ranges(job: Job) -> Iterable[tuple[str, str]]:
    """Every provider, and the name of the range around its calls."""
    return [(name, call_name(job.family, name, job.case)) for name in job.providers]


def _at_work(path: Path) -> str | None:
    """The provider that was at work when the child ended, "" before the first one; None where the
    child never began, or completed its work."""
    answers = answers_in(path)
    if any("done" in answer for answer in answers):
        return None
    return next((answer["at"] for answer in reversed(answers) if "at" in answer), None)


def _by_provider(path: Path) -> dict[str, dict[str, Any]]:
    """The facts that the child wrote, merged by provider."""
    by_provider: dict[str, dict[str, Any]] = {}
    for answer in answers_in(path):
        if "provider" in answer:
            name = answer.pop("provider")
            by_provider[name] = by_provider.get(name, {}) | answer
    return by_provider
