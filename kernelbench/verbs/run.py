"""What the verbs do that know families: from what was asked to jobs, a run, and its tables."""

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kernelbench import __version__, families, metrics, store, suite
from kernelbench.report import failed, tables, terminal
from kernelbench.report.details import MORE, details
from kernelbench.report.progress import Output, Silent, result, wall
from kernelbench.report.waiting import waiting
from kernelbench.run.loop import (
    Options,
    Outcome,
    Runner,
    check_device,
    in_processes,
    remaining,
    run,
    sources_of,
)
from kernelbench.spec import (
    Context,
    Family,
    Job,
    NoGPUError,
    RunRecord,
    Status,
    UsageError,
    exit_code_of,
)
from kernelbench.suite import request as plan
from kernelbench.suite.request import Asked

UNNAMED = (
    "no suite named, so this runs smoke: every family, small, on any machine, with or "
    "without a GPU (kernelbench run h200, say, times large shapes on one)"
)
UNNAMED_CHECKS = "no suite named, so this checks every family on its own small cases"


@dataclass(frozen=True)
class Plan:
    """A suite, its jobs, what was asked, and the run that is to be continued, if any."""

    suite: suite.Suite
    jobs: tuple[Job, ...]
    asked: Asked
    folder: Path | None = None

    @property
    def device(self) -> str:
        return check_device(self.suite.device, self.asked.device)


def begun(suites: Sequence[str] | None, asked: Asked) -> list[Plan]:
    """New runs. Without a suite: smoke, the one that every machine can run."""
    known = families.load(asked.plugins)
    plans = []
    for name in suites or ["smoke"]:
        found, jobs = plan.plan(asked, known, suite.find(name))
        check_device(found.device, asked.device)
        plans.append(Plan(found, jobs, asked))
    return plans


def resumed(folder: Path, suites: Sequence[str], asked: Asked) -> list[Plan]:
    """A run that is to go on as it was asked for. What is asked now besides cannot change it."""
    if len(suites) > 1:
        raise UsageError("--resume continues one run: name its suite, or none")
    manifest = store.read_manifest(folder)
    for key in ("asked", "suite_text", "suite"):
        if key not in manifest:
            raise UsageError(f"{folder}: its manifest has no {key!r}; it cannot be resumed")
    before = Asked.from_json(manifest["asked"])
    _refuse_changes(asked.as_json(), before.as_json(), Asked().as_json())
    known = families.load(before.plugins)
    if suites:
        given, _ = plan.plan(before, known, suite.find(suites[0]))
        plan.same_suite(given, manifest, folder)
    if asked.device != "auto":
        before = replace(before, device=asked.device)
    name = f"{manifest['suite']}.yaml"
    found, jobs = plan.plan(before, known, name, text=manifest["suite_text"])
    return [Plan(found, jobs, before, folder)]


def _refuse_changes(now: dict[str, Any], before: dict[str, Any], default: dict[str, Any]) -> None:
    default["narrow"] = {name: "" if name == "filter" else [] for name in now["narrow"]}
    changed = [
        name
        for name in now
        if name != "device" and now[name] != default[name] and now[name] != before[name]
    ]
    if changed:
        raise UsageError(
            f"--resume goes on as the run was begun; it cannot change: {', '.join(changed)}"
        )


def refuse_many(plans: Sequence[Plan], yes: bool) -> None:
    """Raises UsageError for more jobs than anybody means, unless they were meant."""
    for each in plans:
        jobs = sum(job.measure.processes for job in each.jobs)
        if jobs > plan.MANY and not yes:
            raise UsageError(
                f"{each.suite.path}: {jobs} jobs. Narrow it, or say --yes to run them all"
            )


def measure(
    plans: Sequence[Plan], options: Options, out: Path, output: Output, budget: float | None = None
) -> int:
    """Run every plan; tables of each and an exit code for all."""
    if budget is not None:
        options = replace(options, deadline=time.monotonic() + budget)
    code, runs, every = 0, [], list[RunRecord]()
    for each in plans:
        outcome, folder = _run_one(each, options, out, output)
        records = store.read(folder)
        if output.as_json:
            runs.append(_run_json(outcome, records, folder))
        else:
            _show_run(each, outcome, records, folder, output)
        code = max(code, int(any(record.status.bad for record in records)))
        code = outcome.interrupted or code
        if outcome.interrupted or (code and options.fail_fast):
            break
        every += records
    if output.as_json:
        print(json.dumps(runs, allow_nan=False))
    if code == 1:
        output.fail(failed.why(failed.rows_of(every)))
    elif code:
        output.fail(f"exit {code}: interrupted. Go on: kernelbench run --resume {folder}")
    return code


def _run_one(each: Plan, options: Options, out: Path, output: Output) -> tuple[Outcome, Path]:
    known = families.load(each.asked.plugins)
    options = _options(options, each.asked, each.device)
    watcher = output.view()
    folder = out if each.folder is None else each.folder.parent
    try:
        with watcher:
            make = partial(_store_for, each, out, watcher)
            outcome, opened = run(each.jobs, known, options, watcher, make, folder)
    except NoGPUError as error:
        raise _without_gpu(error, each) from None
    opened.close()
    return outcome, opened.path


def _options(options: Options, asked: Asked, device: str) -> Options:
    return replace(options, device=device, plugins=asked.plugins, seed=asked.seed, tune=asked.tune)


def _without_gpu(error: NoGPUError, each: Plan) -> NoGPUError:
    """Say which suite needs the GPU that was not found, and which one does not."""
    return NoGPUError(
        f"{each.suite.path}: {error}. Without a GPU: kernelbench run configs/smoke.yaml"
    )


def _store_for(each: Plan, out: Path, watcher: Silent, machine: dict[str, Any]) -> store.Store:
    """The folder of a new run on this machine, or that of the run which is to go on."""
    name, wanted = machine["name"], each.suite.gpu
    if each.folder is None:
        if wanted and wanted.lower() not in name.lower():
            watcher.note(f"{each.suite.name} was made for {wanted}; this is {name}")
        return store.create(out, each.suite.name, name, manifest_of(each, machine))
    opened = store.open_run(each.folder)
    before = opened.manifest.get("machine", {})
    was = opened.manifest.get("gpu"), before.get("uuid")
    now = name, machine.get("uuid") if was[1] else None  # older manifests have none
    if was != now:
        opened.close()
        found, this = (" ".join(filter(None, each)) for each in (was, now))
        raise UsageError(f"{each.folder} was measured on {found}, this is {this}: start a new run")
    return opened


def manifest_of(each: Plan, machine: dict[str, Any]) -> dict[str, Any]:
    """What a new run folder says of its run, besides what `store.create` adds."""
    return {
        "kernelbench": __version__,
        "machine": machine,
        "git": _git(),
        "argv": sys.argv[1:],
        "asked": each.asked.as_json(),
        "suite_text": each.suite.text,
    }


def _git() -> dict[str, Any] | None:
    """The commit that kernelbench runs from, if it runs from a checkout of its own."""
    here = str(Path(__file__).parent)

    def git(*command: str) -> str:
        done = subprocess.run(
            ["git", "-C", here, *command], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return {
            "commit": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", ".")),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def _run_json(outcome: Outcome, records: Sequence[RunRecord], folder: Path) -> dict[str, Any]:
    return {
        "run": str(folder),
        "interrupted": bool(outcome.interrupted),
        "jobs_left": outcome.left,
        "records": metrics.rows_json(records),
    }


def _show_run(
    each: Plan, outcome: Outcome, records: Sequence[RunRecord], folder: Path, output: Output
) -> None:
    with waiting("deriving figures", output.waits):
        rows = metrics.rows_of(records)
    if output.quiet:
        output.say(str(tables.summary(metrics.filled(rows))))
    else:
        terminal.show_run(rows, output.console)
    _show_details(records, output)
    if outcome.left:
        why = "interrupted" if outcome.interrupted else "stopped"
        output.say(
            f"{why} with {outcome.left} of {outcome.total} jobs left: "
            f"kernelbench run --resume {folder}"
        )
    output.say(wall(outcome.spent_s))
    output.say(f"run folder: {folder}")


def _show_details(records: Sequence[RunRecord], output: Output) -> None:
    """With -v what is known of every failure, else that there is more to see."""
    told = details(records)
    if output.quiet or not told:
        return
    output.say("\n".join([*told, ""]) if output.verbose else MORE)


def check(suites: Sequence[str], asked: Asked, options: Options, yes: bool, output: Output) -> int:
    """Prove providers right without timing them; nothing is stored, but what `--dump` asks for."""
    if not suites:
        output.note(UNNAMED_CHECKS)
    with waiting("loading the families, which import torch", output.waits):
        known = families.load(asked.plugins)
    if suites:
        plans = begun(suites, asked)
        refuse_many(plans, yes)
    else:
        nothing = suite.Suite("checks", "", "auto", "", (), "", Path("checks"))
        plans = [Plan(nothing, plan.checks(known, asked), asked)]
        for family in known.values():
            if not family.checks:
                output.errors.print(f"{family.name} has no checks of its own", style="yellow")
    if options.dump:
        _hold_writable(Path(options.dump))
    records: list[RunRecord] = []
    interrupted = 0
    try:
        for each in plans:
            _check_one(each, known, _options(options, asked, each.device), output, records)
    except KeyboardInterrupt as stop:
        interrupted = exit_code_of(stop)
    _show_checks(records, output)
    if options.dump and not output.as_json:
        output.say(f"inputs, answers and oracles: {options.dump}/FAMILY/CASE/*.pt")
    if interrupted:
        output.fail(f"exit {interrupted}: interrupted; {len(records)} records were looked at")
        return interrupted
    bad = any(record.status.bad for record in records)
    if bad:
        output.fail(failed.why(failed.rows_of(records)))
    return int(bad)


def _hold_writable(folder: Path) -> None:
    """Raises UsageError for a folder of `--dump` that cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"--dump {folder}: cannot be written ({error.strerror})") from None


def _check_one(
    each: Plan,
    known: Mapping[str, Family[Any]],
    options: Options,
    output: Output,
    records: list[RunRecord],
) -> None:
    with TemporaryDirectory() as folder, output.view() as watcher:
        try:
            runner = Runner(known, options, watcher, Path(folder) / "log")
        except NoGPUError as error:
            raise _without_gpu(error, each) from None
        with closing(runner):
            watcher.machine(runner.machine)
            runner.ceilings(None)
            gpu = runner.machine["name"]
            context = Context(run_id="check", gpu=gpu, seed=options.seed, source="")
            for number, job in enumerate(each.jobs, 1):
                watcher.job(job, number, len(each.jobs))
                for found in runner.measure(job, context):
                    records.extend(found)
                    watcher.recorded(found)


def _show_checks(records: Sequence[RunRecord], output: Output) -> None:
    if output.as_json:
        print(json.dumps([json.loads(record.to_json()) for record in records], allow_nan=False))
        return
    bad = [record for record in records if record.status.bad]
    for record in bad:
        output.say(f"{record.family}/{record.case} {record.provider}: {result(record)}")
    _show_details(records, output)
    right = sum(record.status is Status.ok for record in records)
    skipped = sum(record.status is Status.skipped for record in records)
    output.say(
        f"{right} right, {len(bad)} wrong or failed, {skipped} skipped, each with its reason"
    )


def show_jobs(plans: Sequence[Plan], output: Output) -> None:
    """Every job of the plans that is left to measure, and who takes part."""
    left = [(each, _left(each)) for each in plans]
    if output.as_json:
        facts = [
            {
                "suite": each.suite.name,
                "id": j.id,
                "label": j.label,
                "process": j.process,
                "providers": j.providers,
            }
            for each, jobs in left
            for j in jobs
        ]
        print(json.dumps(facts))
        return
    for each, jobs in left:
        for job in jobs:
            label = f"  # {job.label}" if job.label else ""
            again = f"  in process {job.process + 1}" if job.process else ""
            output.say(f"{job.id}  {' '.join(job.providers)}{again}{label}")
        records = sum(len(job.providers) for job in jobs)
        output.say(f"{each.suite.name}: {len(jobs)} jobs, {records} records")


def _left(each: Plan) -> Sequence[Job]:
    """Those of all processes, one after another."""
    every = [job for some in in_processes(each.jobs) for job in some]
    if each.folder is None:
        return every
    sources = sources_of(each.jobs, families.load(each.asked.plugins))
    return remaining(every, store.read_apart(each.folder), sources)[0]
