"""`kernelbench check`: prove providers right without timing them; `--sanitize` looks at what their
kernels do to memory, too."""

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kernelbench import families, suite
from kernelbench.profile.sanitize import Look, table
from kernelbench.report import failures
from kernelbench.report.progress import Output, result
from kernelbench.report.waits import waiting
from kernelbench.run import plan
from kernelbench.run.loop import prove_jobs
from kernelbench.run.plan import Plan
from kernelbench.run.runner import Options
from kernelbench.spec import (
    Family,
    NoGPUError,
    RunRecord,
    Status,
    UsageError,
    exit_code_of,
)
from kernelbench.suite import request as asking
from kernelbench.suite.request import Selection
from kernelbench.verbs.check import sanitize
from kernelbench.verbs.run import LOADING, options_of, show_details, without_gpu

UNNAMED = "no suite named, so this checks every family on its own small cases"


@dataclass(frozen=True, kw_only=True)
class CheckRequest(Selection):
    """What `kernelbench check` is asked: suites, or without any every family's own small cases.

    timeout_s: without a sign of progress. dump: a folder to keep inputs, answers and oracle in.
    sanitize: tools of compute-sanitizer, separated by commas.
    """

    suites: tuple[str, ...] = ()
    timeout_s: float = 300.0
    dump: Path | None = None
    sanitize: str = ""
    yes: bool = False


@dataclass
class Checked:
    """What is known so far. wanted: the tools of `sanitize`, if any."""

    wanted: sanitize.Asked | None
    records: list[RunRecord] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)

    def whys(self) -> list[str]:
        """Why the exit code is 1, a line each; none where it is 0."""
        lines = [failures.why(failures.rows_of(self.records))]
        if self.wanted:
            lines.append(table.why(self.looks))
        return [line for line in lines if line]

    def as_json(self) -> Any:
        """The records; with `sanitize` an object that holds them and what the tools say."""
        records = [json.loads(record.to_json()) for record in self.records]
        if not self.wanted:
            return records
        return {"records": records, "sanitize": [*map(table.as_json, self.looks)]}


def check(request: CheckRequest, output: Output) -> int:
    """Nothing is stored, but what `dump` asks for. Exit code 1 where a provider is incorrect or
    failed, or a tool of `sanitize` found something or could not look; 130 or 143 where it was
    interrupted.

    Raises UsageError for suites and options that cannot be used, and for `sanitize` without a GPU;
    ToolError for it without compute-sanitizer.
    """
    wanted = sanitize.asked(request.sanitize, request.device)
    if wanted:
        request = replace(request, device=sanitize.DEVICE)
    if not request.suites:
        output.note(UNNAMED)
    with waiting(LOADING, output.waits):
        known = families.load(request.plugins)
    plans = _plans(request, known, output)
    options = Options(timeout=request.timeout_s, timing=False)
    if request.dump:
        options = replace(options, dump=str(request.dump.resolve()))
        _hold_writable(request.dump.resolve())
    checked = Checked(wanted)
    interrupted = 0
    try:
        for run_plan in plans:
            _check_one(run_plan, options, output, checked)
    except KeyboardInterrupt as stop:
        interrupted = exit_code_of(stop)
    _show(checked, output)
    if options.dump and not output.as_json:
        output.say(f"inputs, answers and oracles: {options.dump}/FAMILY/CASE/*.pt")
    if interrupted:
        output.err(
            f"exit {interrupted}: interrupted; {len(checked.records)} records were looked at"
        )
        return interrupted
    whys = checked.whys()
    for why in whys:
        output.err(why)
    return int(bool(whys))


def _plans(
    request: CheckRequest, known: Mapping[str, Family[Any]], output: Output
) -> Sequence[Plan]:
    if request.suites:
        plans = plan.new(request.suites, request)
        plan.refuse_many(plans, request.yes)
        return plans
    for family in known.values():
        if not family.checks:
            output.errors.print(f"{family.name} has no checks of its own", style="yellow")
    nothing = suite.Suite("checks", "", "auto", "", (), "", Path("checks"))
    return [Plan(nothing, asking.checks(known, request), request)]


def _hold_writable(folder: Path) -> None:
    """Raises UsageError for a folder of `--dump` that cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"--dump {folder}: cannot be written ({error.strerror})") from None


def _check_one(plan: Plan, options: Options, output: Output, checked: Checked) -> None:
    known = families.load(plan.selection.plugins)
    options = options_of(options, plan.selection, plan.device)
    records = list[RunRecord]()
    with (
        output.view() as watcher,
        closing(prove_jobs(plan.jobs, known, options, watcher)) as proven,
    ):
        try:
            for some in proven:
                records.extend(some)
                checked.records.extend(some)
        except NoGPUError as error:
            raise (
                sanitize.without_gpu(error) if checked.wanted else without_gpu(error, plan)
            ) from None
    if checked.wanted:
        settings = sanitize.Settings(
            plugins=options.plugins,
            seed=options.seed,
            timeout=options.timeout,
            keep=Path(options.dump) if options.dump else None,
        )
        for look in sanitize.looks(checked.wanted, plan.jobs, records, settings, output):
            checked.looks.append(look)


def _show(checked: Checked, output: Output) -> None:
    records = checked.records
    if output.as_json:
        print(json.dumps(checked.as_json(), allow_nan=False))
        return
    bad = [record for record in records if record.status.bad]
    for record in bad:
        output.say(f"{record.family}/{record.case} {record.provider}: {result(record)}")
    show_details(records, output)
    right = sum(record.status is Status.ok for record in records)
    skipped = sum(record.status is Status.skipped for record in records)
    output.say(
        f"{right} right, {len(bad)} wrong or failed, {skipped} skipped, each with its reason"
    )
    if checked.wanted:
        sanitize.show(checked.looks, checked.wanted.program, output)
