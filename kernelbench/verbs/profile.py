"""`kernelbench profile`: which jobs, under which tools, into which run folder."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

from kernelbench import families, store, suite
from kernelbench.metrics import audit
from kernelbench.profile.session import ProfileOptions, Profiler, find, import_pending
from kernelbench.profile.tool import ToolError
from kernelbench.report import profiles
from kernelbench.report.progress import Output
from kernelbench.report.waits import waiting
from kernelbench.run import executor, plan
from kernelbench.run.devices import Locks
from kernelbench.run.local import LocalWorker
from kernelbench.run.loop import check_device, sources_of
from kernelbench.run.plan import Plan
from kernelbench.run.runner import START_TIMEOUT
from kernelbench.spec import Context, Job, KernelbenchError, Measured, Tool, UsageError, suggest
from kernelbench.suite.request import SELECTS, Selection

NEEDED = {"suite_text", "asked", "utc", "suite", "machine"}  # of a manifest, to add to its run


@dataclass(frozen=True, kw_only=True)
class ProfileRequest(Selection):
    """What `kernelbench profile` is asked.

    words: suites, or cases of the newest run. tools: none for the best that is here. out: the
    folder of runs. captured: the run whose captures are to be read, and nothing else. nsys_args and
    ncu_args: as a shell splits them.
    """

    words: tuple[str, ...] = ()
    tools: tuple[Tool, ...] = ()
    out: Path = Path("results")
    captured: Path | None = None
    calls: int = 3
    timeout_s: float = 900.0
    gpu_metrics: bool = False
    shapes: bool = False
    stacks: bool = False
    nsys_args: str = ""
    ncu_args: str = ""
    yes: bool = False

    @property
    def selection(self) -> Selection:
        """What it has in common with a run."""
        return Selection(**{name: getattr(self, name) for name in SELECTS})

    def options(self) -> ProfileOptions:
        """How each provider is called. Raises UsageError for arguments that no shell splits."""
        return ProfileOptions(
            plugins=self.plugins,
            calls=self.calls,
            timeout=self.timeout_s,
            gpu_metrics=self.gpu_metrics,
            shapes=self.shapes,
            stacks=self.stacks,
            nsys_args=_split("nsys-args", self.nsys_args),
            ncu_args=_split("ncu-args", self.ncu_args),
        )


def _split(option: str, text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise UsageError(f"--{option} {text!r}: {error}") from None


def profile(request: ProfileRequest, output: Output) -> int:
    """Profile, store and show. Exit code 1 where a provider failed, 2 where a tool did.

    Raises UsageError for words and options that cannot be used.
    """
    if request.captured:
        return read_captures(request.captured, output)
    options = request.options()
    with waiting("looking at this machine, and loading the families", output.waits):
        families.load(request.plugins)  # what is wrong with a plugin is said here
        machine = _machine(request)
        cuda = machine["kind"] == "cuda"
        chosen = _plan(request, machine, output)
    plan.refuse_many([chosen], request.yes)
    tools, errors = _found(request.tools or (_best(cuda, output),))
    lines = list[Measured]()
    if tools:
        plugins = chosen.selection.plugins  # with what the suite declares
        options = replace(options, device=machine["kind"], plugins=plugins)
        locks = Locks(shared=False, note=output.warn)
        locks.hold(filter(None, [machine.get("uuid")]))
        with closing(_open(chosen, request.out, machine)) as opened, closing(locks):
            for tool, program in tools.items():
                try:
                    profiler = Profiler(tool, program, options, opened.path, cuda)
                    for measured in _through(profiler, chosen, opened, machine["name"], output):
                        opened.keep(measured)
                        lines.append(measured)
                except ToolError as error:
                    errors.append(f"--{tool}: {error}")
        _finish(lines, opened.path, output)
    for text in errors:
        output.errors.print(f"error: {text}", highlight=False, markup=False, soft_wrap=True)
    return 2 if errors else _code(lines, output)


def _found(tools: Sequence[Tool]) -> tuple[dict[Tool, Any], list[str]]:
    """Those that are here, and where; and why the others are not."""
    programs, errors = dict[Tool, Any](), list[str]()
    for tool in tools:
        try:
            programs[tool] = find(tool)
        except ToolError as error:
            errors.append(f"--{tool}: {error}")
    return programs, errors


def read_captures(run: Path, output: Output) -> int:
    """Make reports of what nsys captured where it could not; exit code 1 if a provider failed.

    Raises KernelbenchError where that cannot be done here either.
    """
    with closing(store.open_run(run)) as opened:
        lines = []
        for measured in import_pending(store.read_measured(run)[0], run):
            opened.keep(measured)
            lines.append(measured)
    if not lines:
        output.say(f"{run}: no capture waits to be read")
    _finish(lines, run, output)
    return _code(lines, output)


def _code(lines: Sequence[Measured], output: Output) -> int:
    """1, and why, where a provider failed."""
    bad = [line for line in lines if line.status.bad]
    if bad:
        first = f"{bad[0].family}/{bad[0].case} {bad[0].provider}: {bad[0].status}"
        output.err(f"exit 1: {len(bad)} of {len(lines)} failed, the first {first}")
    return int(bool(bad))


def _machine(selection: Selection) -> dict[str, Any]:
    """What this machine is; asked of a worker, since this process keeps off the GPU."""
    with TemporaryDirectory() as folder:
        worker, machine = executor.start(
            LocalWorker,
            Path(folder) / "log",
            selection.device,
            selection.plugins,
            timing=False,
            timeout=START_TIMEOUT,
        )
        worker.kill()
    return machine


def _plan(request: ProfileRequest, machine: Mapping[str, Any], output: Output) -> Plan:
    """The suite that is named, else that of the newest run on this GPU, else smoke; of it the
    cases that are named, and what else was asked. Its folder: the newest run of that suite, if
    what is installed is what it was measured with."""
    files, cases = _suites(request.words)
    whole = replace(request.selection, narrow={})
    if len(files) > 1:
        raise UsageError(f"profile one suite at a time, not {' and '.join(map(str, files))}")
    runs = _runs(request.out, machine["name"])
    if not files and cases:
        files = _holding(cases, runs, request, machine, output)
    if files:
        text = files[0].read_text(encoding="utf-8")
        folder = next((path for path, facts in runs if facts["suite_text"] == text), None)
        chosen = replace(plan.new([str(files[0])], whole)[0], folder=folder)
    elif runs:
        output.note(f"no suite named: that of the newest run of this machine, {runs[0][0]}")
        chosen = plan.resumed(runs[0][0], [], Selection())[0]
    else:
        output.note(f"no suite named, and no run of this machine in {request.out}: smoke")
        chosen = plan.new([], whole)[0]
    if check_device(chosen.suite.device, request.device) == "cuda" != machine["kind"]:
        raise UsageError(f"{chosen.suite.name}: a suite for GPUs (device: cuda), and here is none")
    if chosen.folder and dict(runs)[chosen.folder]["machine"]["versions"] != machine["versions"]:
        output.say(
            f"{chosen.folder} was measured with other versions; a new run holds what is seen"
        )
        chosen = replace(chosen, folder=None)
    jobs = _named(chosen.jobs, cases, chosen.suite.name)
    if request.narrows:
        known = families.load(chosen.selection.plugins)
        jobs = suite.narrow(jobs, known, **request.narrow)
    return replace(chosen, jobs=tuple(jobs))


def _holding(
    cases: Sequence[str],
    runs: Sequence[tuple[Path, dict[str, Any]]],
    selection: Selection,
    machine: Mapping[str, Any],
    output: Output,
) -> list[Path]:
    """The shipped suite that has all of these cases: smoke first, then those made for this GPU.
    None where the newest run has them.

    Raises UsageError for cases that none has, with those of all that are near.
    """
    known = families.load(selection.plugins)
    ours = plan.resumed(runs[0][0], [], Selection())[0].jobs if runs else ()
    if runs and not _absent(cases, ours):
        return []
    suites = {path: suite.load(path, known) for path in suite.shipped().values()}

    def rank(path: Path) -> tuple[bool, bool]:
        gpu = suites[path].gpu.lower()
        return suites[path].name != "smoke", not gpu or gpu not in machine["name"].lower()

    for path in sorted(suites, key=rank):
        if not _absent(cases, suites[path].jobs):
            output.note(f"{', '.join(cases)}: of {path.stem}, a suite that kernelbench ships")
            return [path]
    every = [*ours, *(job for line in suites.values() for job in line.jobs)]
    for case in _absent(cases, every):
        _refuse(case, every)
    raise UsageError(f"{' and '.join(cases)}: of several suites; profile those of one at a time")


def _absent(cases: Sequence[str], jobs: Sequence[Job]) -> list[str]:
    known = {word for job in jobs for word in (job.id, job.case.id)}
    return [case for case in cases if case not in known]


def _refuse(case: str, jobs: Sequence[Job]) -> NoReturn:
    """Raises UsageError for a word that is no suite and no case, with the nearest that are."""
    if case in {job.family for job in jobs}:
        raise UsageError(f"{case}: a family; say --family {case}")
    ids = [job.id if "/" in case else job.case.id for job in jobs]
    near = get_close_matches(case, [*suite.shipped(), *dict.fromkeys(ids)], n=4, cutoff=0.6)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise UsageError(
        f"{case}: no suite, and no case of the newest run or of a suite that kernelbench ships"
        f"{hint} `kernelbench list SUITE` shows the cases of one"
    )


def _suites(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Words that are suites, and those that are not."""
    files, others = list[Path](), list[str]()
    for word in words:
        try:
            files.append(suite.find(word))
        except UsageError:
            if word.endswith((".yaml", ".yml")):
                raise
            others.append(word)
    return files, others


def _named(jobs: Sequence[Job], cases: Sequence[str], name: str) -> Sequence[Job]:
    known = [word for job in jobs for word in (job.id, job.case.id)]
    for case in cases:
        if case in {job.family for job in jobs}:
            raise UsageError(f"{case}: a family; say --family {case}")
        if case not in known:
            near = [job.id for job in jobs]
            raise UsageError(
                f"{case}: no suite, and no case of {name}{suggest(case, [*suite.shipped(), *near])}"
            )
    return [job for job in jobs if not cases or {job.id, job.case.id} & {*cases}]


def _runs(out: Path, gpu: str) -> list[tuple[Path, dict[str, Any]]]:
    """Runs right in `out` that were measured on this GPU, the newest first, with manifests."""
    runs = []
    for path in out.glob(f"*/{store.MANIFEST}"):
        try:
            facts = store.read_manifest(path.parent)
        except KernelbenchError:
            continue
        if facts.get("gpu") == gpu and {*facts} >= NEEDED:
            runs.append((path.parent, facts))
    return sorted(runs, key=lambda each: (each[1]["utc"], each[0]), reverse=True)


def _open(chosen: Plan, out: Path, machine: dict[str, Any]) -> store.Store:
    """The run that was profiled, or a new one that holds nothing else."""
    if chosen.folder is not None:
        return store.open_run(chosen.folder)
    return store.create(out, chosen.suite.name, machine["name"], chosen.manifest(machine))


def _best(cuda: bool, output: Output) -> Tool:
    """The tool to take when none is asked for: nsys, on a GPU also ncu, else torch's profiler."""
    missing = []
    for tool in (Tool.nsys, Tool.ncu):
        try:
            find(tool)
        except ToolError as error:
            missing.append(str(error))
        else:
            if tool is Tool.nsys or cuda:
                return tool
    message = "\n".join([*missing, "so torch's profiler looks, which needs no other tool"])
    output.errors.print(message, highlight=False, markup=False, soft_wrap=True)
    return Tool.torch


def _through(
    profiler: Profiler, chosen: Plan, opened: store.Store, gpu: str, output: Output
) -> Iterator[Measured]:
    known = families.load(chosen.selection.plugins)
    sources = sources_of(chosen.jobs, known)

    def note(text: str) -> None:
        output.errors.print(text, highlight=False, markup=False, soft_wrap=True)

    for number, job in enumerate(chosen.jobs, 1):
        if not (output.quiet or output.as_json):
            note(f"[{number}/{len(chosen.jobs)}] {profiler.tool} {job.id}")
        context = Context(
            run_id=opened.run_id, gpu=gpu, seed=chosen.selection.seed, source=sources[job.family]
        )
        yield from profiler.profile(job, known[job.family], context, note)


def _finish(measured: Sequence[Measured], folder: Path, output: Output) -> None:
    """Write the table of all that was ever seen of the run, and show what was seen now."""
    if measured:
        audit.to_csv(store.read_measured(folder)[0], folder / store.MEASURED_CSV)
    if output.as_json:
        lines = [json.loads(line.to_json()) for line in measured]
        print(json.dumps({"run": str(folder), "measured": lines}, allow_nan=False))
        return
    if not output.quiet:
        profiles.render(measured, output.console)
    if off := audit.failed_audits(measured):
        output.say(f"{len(off)} audited read{'s' * (len(off) != 1)} off the model by over 3 %")
    if measured:
        output.say(f"files: {folder / store.PROFILES}, lines: {folder / store.MEASURED}")
