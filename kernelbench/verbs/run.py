"""`kernelbench run`: from what was asked to jobs, a run folder, and its tables."""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from kernelbench import families, metrics, store
from kernelbench.report import failures, tables, terminal
from kernelbench.report.details import MORE, details
from kernelbench.report.progress import Output, Silent, wall
from kernelbench.report.waits import waiting
from kernelbench.run import devices, plan
from kernelbench.run.loop import Outcome, check_device, run_jobs
from kernelbench.run.plan import Plan
from kernelbench.run.runner import Options
from kernelbench.spec import NoGPUError, RunRecord, UsageError
from kernelbench.suite.request import RunRequest, Selection, seconds
from kernelbench.verbs.list import show_jobs

__all__ = ["RunRequest", "measure", "run", "seconds"]

LOADING = "loading the families, which import torch"
UNNAMED = (
    "no suite named, so this runs smoke: every family, small, on any machine, with or "
    "without a GPU (kernelbench run h200, say, times large shapes on one)"
)


def run(request: RunRequest, output: Output) -> int:
    """Measure, store and show. Exit code 1 where a provider is incorrect or failed, 130 or 143
    where the run was interrupted.

    Raises UsageError for suites, options and runs that cannot be used.
    """
    if request.gpus:
        devices.named(request.gpus)
    if not request.suites and not request.resume:
        output.note(UNNAMED)
    with waiting(LOADING, output.waits):
        if request.resume:
            plans = plan.resumed(request.resume, request.suites, request)
        else:
            plans = plan.new(request.suites, request)
    plan.refuse_many(plans, request.yes)
    if request.dry_run:
        show_jobs(plans, output)
        return 0
    options = Options(
        timeout=request.timeout_s,
        fail_fast=request.fail_fast,
        gpus=request.gpus,
        ahead=request.ahead,
    )
    if request.budget_s is not None:
        options = replace(options, deadline=time.monotonic() + request.budget_s)
    return measure(plans, options, request.out, output)


def measure(plans: Sequence[Plan], options: Options, out: Path, output: Output) -> int:
    """Run every plan; tables of each and an exit code for all."""
    code, shown, measured = 0, [], list[RunRecord]()
    for run_plan in plans:
        outcome, folder = run_one(run_plan, options, out, output)
        records = store.read(folder)
        if output.as_json:
            shown.append(_run_json(outcome, records, folder))
        else:
            _show_run(outcome, records, folder, output)
        code = max(code, int(any(record.status.bad for record in records)))
        code = outcome.interrupted or code
        if outcome.interrupted or (code and options.fail_fast):
            break
        measured += records
    if output.as_json:
        print(json.dumps(shown, allow_nan=False))
    if code == 1:
        output.err(failures.why(failures.rows_of(measured)))
    elif code:
        output.err(f"exit {code}: interrupted. Go on: kernelbench run --resume {folder}")
    return code


def run_one(run_plan: Plan, options: Options, out: Path, output: Output) -> tuple[Outcome, Path]:
    """Measure a plan, with progress on stderr; what came of it, and the folder of the run."""
    known = families.load(run_plan.selection.plugins)
    options = options_of(options, run_plan.selection, run_plan.device)
    if run_plan.folder is not None and not options.gpus:
        used = (store.read_manifest(run_plan.folder).get("machine") or {}).get("used")
        options = replace(options, gpus=",".join(used or ()))
    if options.gpus:
        options = replace(options, device=check_device(options.device, "cuda"))
    watcher = output.view()
    folder = out if run_plan.folder is None else run_plan.folder.parent
    try:
        with watcher:
            make = partial(_store_for, run_plan, out, watcher)
            outcome, opened = run_jobs(run_plan.jobs, known, options, watcher, make, folder)
    except NoGPUError as error:
        raise without_gpu(error, run_plan) from None
    opened.close()
    return outcome, opened.path


def options_of(options: Options, selection: Selection, device: str) -> Options:
    """The options, with what the selection says of every job."""
    return replace(
        options,
        device=device,
        plugins=selection.plugins,
        seed=selection.seed,
        tune=selection.tune,
    )


def without_gpu(error: NoGPUError, run_plan: Plan) -> NoGPUError:
    """Say which suite needs the GPU that is not here, and which one does not."""
    return NoGPUError(
        f"{run_plan.suite.path}: {error}. Without a GPU: kernelbench run configs/smoke.yaml"
    )


def _store_for(run_plan: Plan, out: Path, watcher: Silent, machine: dict[str, Any]) -> store.Store:
    """The folder of a new run on this machine, or that of the run which is to go on."""
    name, wanted = machine["name"], run_plan.suite.gpus
    if run_plan.folder is None:
        if wanted and not any(gpu.lower() in name.lower() for gpu in wanted):
            watcher.note(
                f"{run_plan.suite.name} was made for {' or '.join(wanted)}; this is {name}"
            )
        return store.create(out, run_plan.suite.name, name, run_plan.manifest(machine))
    opened = store.open_run(run_plan.folder)
    before = opened.manifest.get("machine", {})
    was = opened.manifest.get("gpu"), before.get("uuid")
    now = name, machine.get("uuid") if was[1] else None  # older manifests have none
    if "used" in before or "used" in machine:  # each job goes to the one that began it
        was, now = (was[0], None), (name, None)
    if was != now:
        opened.close()
        there, here = (" ".join(filter(None, gpu)) for gpu in (was, now))
        raise UsageError(
            f"{run_plan.folder} was measured on {there}, this is {here}: start a new run"
        )
    return opened


def _run_json(outcome: Outcome, records: Sequence[RunRecord], folder: Path) -> dict[str, Any]:
    return {
        "run": str(folder),
        "interrupted": bool(outcome.interrupted),
        "jobs_left": outcome.left,
        "records": metrics.rows_json(records),
    }


def _show_run(outcome: Outcome, records: Sequence[RunRecord], folder: Path, output: Output) -> None:
    with waiting("deriving figures", output.waits):
        rows = metrics.rows_of(records)
    if output.quiet:
        output.say(str(tables.summary(metrics.filled(rows))))
    else:
        terminal.show_run(rows, output.console)
    show_details(records, output)
    if outcome.left:
        why = "interrupted" if outcome.interrupted else "stopped"
        output.say(
            f"{why} with {outcome.left} of {outcome.total} jobs left: "
            f"kernelbench run --resume {folder}"
        )
    output.say(wall(outcome.spent_s))
    output.say(f"run folder: {folder}")


def show_details(records: Sequence[RunRecord], output: Output) -> None:
    """With -v what is known of every failure, else that there is more to see."""
    lines = details(records)
    if output.quiet or not lines:
        return
    output.say("\n".join([*lines, ""]) if output.verbose else MORE)
