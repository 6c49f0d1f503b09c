"""What the verbs do that know families: from what was asked to jobs, a run, and its tables."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from kernelbench import __version__, families, plan, store, suite
from kernelbench.plan import Asked
from kernelbench.report.progress import LiveView, Plain, Silent, result
from kernelbench.run import Options, Outcome, Runner, check_device, explain_no_gpu, run
from kernelbench.spec import Context, Job, KernelbenchError, RunRecord, UsageError


@dataclass(frozen=True)
class Plan:
    """A suite, its jobs, what was asked, and the run that is to be continued, if any."""

    suite: suite.Suite
    jobs: tuple[Job, ...]
    asked: Asked
    folder: Path | None = None


def begun(suites: Sequence[str] | None, asked: Asked) -> list[Plan]:
    """New runs. Without a suite: smoke, the one that every machine can run."""
    known = families.load(asked.plugins)
    plans = []
    for name in suites or ["smoke"]:
        found, jobs = plan.plan(asked, known, suite.find(name))
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
    default = Asked(device=asked.device)
    if asked != default:
        now, was = asked.as_json(), default.as_json()
        named = ", ".join(name for name in now if now[name] != was[name] and _given(now[name]))
        if named:
            raise UsageError(f"--resume goes on as the run was begun; it cannot change: {named}")
    known = families.load(before.plugins)
    if suites:
        given, _ = plan.plan(before, known, suite.find(suites[0]))
        plan.same_suite(given, manifest, folder)
    device = before.device if asked.device == "auto" else asked.device
    before = replace(before, device=device)
    name = f"{manifest['suite']}.yaml"
    found, jobs = plan.plan(before, known, name, text=manifest["suite_text"])
    return [Plan(found, jobs, before, folder)]


def _given(value: Any) -> bool:
    return any(value.values()) if isinstance(value, dict) else True


def refuse_many(plans: Sequence[Plan], yes: bool) -> None:
    """Raises UsageError for more jobs than anybody means, unless they were meant."""
    for each in plans:
        if len(each.jobs) > plan.MANY and not yes:
            raise UsageError(
                f"{each.suite.path}: {len(each.jobs)} jobs. Narrow it, or say --yes to run them all"
            )


def view(console: Console, *, quiet: bool, verbose: bool) -> Silent:
    """Who shows what is going on: nobody, a live view, or plain lines."""
    if quiet:
        return Silent(console)
    if console.is_terminal and not verbose:
        return LiveView(console)
    return Plain(console, verbose=verbose)


def measure(
    plans: Sequence[Plan],
    options: Options,
    out: Path,
    watcher: Silent,
    console: Console,
    quiet: bool,
    as_json: bool,
) -> int:
    """Run every plan; tables of each and an exit code for all."""
    code = 0
    for each in plans:
        outcome, folder = _run_one(each, options, out, watcher)
        records = store.read(folder)
        bad = any(record.status.bad for record in records)
        _show_run(each, outcome, records, folder, console, quiet, as_json)
        if outcome.interrupted:
            return 130
        code = max(code, int(bad))
    return code


def _run_one(each: Plan, options: Options, out: Path, watcher: Silent) -> tuple[Outcome, Path]:
    known = families.load(each.asked.plugins)
    options = replace(
        options,
        device=check_device(each.suite.device, each.asked.device),
        plugins=each.asked.plugins,
        seed=each.asked.seed,
    )

    def store_for(machine: dict[str, Any]) -> store.Store:
        if each.folder is not None:
            opened = store.open_run(each.folder)
            if opened.manifest.get("gpu") != machine["name"]:
                opened.close()
                raise UsageError(
                    f"{each.folder} was measured on {opened.manifest.get('gpu')}, this is "
                    f"{machine['name']}: start a new run"
                )
            return opened
        if each.suite.gpu and each.suite.gpu not in machine["name"]:
            watcher.note(
                f"{each.suite.name} was made for {each.suite.gpu}; this is {machine['name']}"
            )
        return store.create(out, each.suite.name, machine["name"], _manifest(each, machine))

    folder = out if each.folder is None else each.folder.parent
    try:
        with watcher:
            outcome, opened = run(each.jobs, known, options, watcher, store_for, folder)
    except KernelbenchError as error:
        raise explain_no_gpu(error, str(each.suite.path)) from None
    opened.close()
    return outcome, opened.path


def _manifest(each: Plan, machine: dict[str, Any]) -> dict[str, Any]:
    return {
        "kernelbench": __version__,
        "machine": machine,
        "git": _git(),
        "argv": sys.argv[1:],
        "asked": each.asked.as_json(),
        "suite_text": each.suite.text,
    }


def _git() -> dict[str, Any] | None:
    """The commit that kernelbench runs from, if it runs from a checkout."""
    here = Path(__file__).parent
    try:
        commit, dirty = (
            subprocess.run(
                ["git", "-C", str(here), *command],
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", "."])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": bool(dirty)}


def _show_run(
    each: Plan,
    outcome: Outcome,
    records: Sequence[RunRecord],
    folder: Path,
    console: Console,
    quiet: bool,
    as_json: bool,
) -> None:
    from kernelbench import metrics
    from kernelbench.report import tables

    frame = metrics.frame(records)
    if as_json:
        facts = {
            "run": str(folder),
            "interrupted": outcome.interrupted,
            "jobs_left": outcome.left,
            "records": json.loads(frame.to_json(orient="records")),
        }
        print(json.dumps(facts))
        return
    if not quiet:
        tables.render(frame, console)
    else:
        console.print(tables.summary(frame), highlight=False)
    if outcome.left:
        why = "interrupted" if outcome.interrupted else "stopped"
        console.print(
            f"{why} with {outcome.left} of {len(each.jobs)} jobs left: "
            f"kernelbench run --resume {folder}",
            highlight=False,
            soft_wrap=True,
        )
    console.print(f"run folder: {folder}", highlight=False, soft_wrap=True)


def check(
    suites: Sequence[str],
    asked: Asked,
    options: Options,
    watcher: Silent,
    console: Console,
    as_json: bool,
) -> int:
    """Prove providers right without timing them; nothing is stored but the worker's log."""
    from tempfile import TemporaryDirectory

    known = families.load(asked.plugins)
    if suites:
        plans = begun(suites, asked)
        jobs = tuple(job for each in plans for job in each.jobs)
    else:
        jobs = plan.checks(known, asked)
    options = replace(options, device=asked.device, plugins=asked.plugins, seed=asked.seed)
    records: list[RunRecord] = []
    with TemporaryDirectory() as folder, watcher:
        runner = Runner(known, options, watcher, Path(folder))
        try:
            watcher.machine(runner.machine)
            runner.ceilings(None)
            for number, job in enumerate(jobs, 1):
                watcher.job(job, number, len(jobs))
                context = Context(
                    run_id="check", gpu=runner.machine["name"], seed=asked.seed, source=""
                )
                for found in runner.measure(job, context):
                    records.extend(found)
                    watcher.recorded(found)
        finally:
            runner.close()
    _show_checks(records, console, as_json)
    return int(any(record.status.bad for record in records))


def _show_checks(records: Sequence[RunRecord], console: Console, as_json: bool) -> None:
    if as_json:
        print(json.dumps([json.loads(record.to_json()) for record in records]))
        return
    bad = [record for record in records if record.status.bad]
    for record in bad:
        console.print(
            f"{record.family}/{record.case} {record.provider}: {result(record)}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    right = sum(record.status == "ok" for record in records)
    skipped = sum(record.status == "skipped" for record in records)
    console.print(
        f"{right} right, {len(bad)} wrong or failed, {skipped} skipped, each with its reason",
        highlight=False,
    )


def show_jobs(plans: Sequence[Plan], console: Console, as_json: bool) -> None:
    """Every job of the plans, and who takes part."""
    if as_json:
        jobs = [
            {"suite": p.suite.name, "id": j.id, "label": j.label, "providers": j.providers}
            for p in plans
            for j in p.jobs
        ]
        print(json.dumps(jobs))
        return
    for each in plans:
        for job in each.jobs:
            label = f"  # {job.label}" if job.label else ""
            line = f"{job.id}  {' '.join(job.providers)}{label}"
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        records = sum(len(job.providers) for job in each.jobs)
        console.print(f"{each.suite.name}: {len(each.jobs)} jobs, {records} records")


def show_families(asked: Asked, console: Console, as_json: bool) -> None:
    """Every family with its axes and providers."""
    known = families.load(asked.plugins)
    wanted = suite.narrow(plan.checks(known, Asked()), known, **asked.narrow)
    shown = [known[name] for name in dict.fromkeys(job.family for job in wanted)]
    if as_json:
        print(json.dumps([_family(family) for family in shown]))
        return
    for family in shown:
        console.print(f"{family.name}: {family.title}", style="bold", highlight=False)
        facts = _family(family)
        axes = Table("axis", "type", "default", "meaning", box=None, pad_edge=False)
        for axis in facts["axes"]:
            default = "required" if axis["required"] else str(axis["default"])
            kind = "|".join(axis["values"]) if axis["values"] else axis["type"]
            axes.add_row(axis["name"], kind, default, axis["doc"])
        providers = Table("provider", "role", "accuracy", "requires", box=None, pad_edge=False)
        for provider in facts["providers"]:
            providers.add_row(
                provider["name"],
                provider["role"],
                provider["accuracy"],
                ", ".join(provider["requires"]),
            )
        console.print(axes)
        console.print()
        console.print(providers)
        console.print()


def _family(family: Any) -> dict[str, Any]:
    return {
        "name": family.name,
        "title": family.title,
        "axes": [
            {
                "name": axis.name,
                "type": axis.type.__name__,
                "values": [str(value) for value in axis.type]
                if hasattr(axis.type, "__members__")
                else [],
                "required": axis.required,
                "default": None if axis.required else axis.default,
                "doc": axis.doc,
            }
            for axis in family.case.axes()
        ],
        "providers": [
            {
                "name": provider.name,
                "role": provider.role.value,
                "accuracy": provider.accuracy.value,
                "requires": list(provider.requires),
            }
            for provider in family.providers
        ],
    }
