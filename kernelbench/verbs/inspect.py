"""`kernelbench inspect`: what the compiler makes of our kernels, on a machine without a GPU."""

import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import Progress

from kernelbench import families, suite
from kernelbench.report.progress import Output
from kernelbench.report.waits import waiting
from kernelbench.spec import Family, Job, UsageError, suggest

if TYPE_CHECKING:
    from kernelbench.profile.inspect import KernelRow
    from kernelbench.profile.inspect.target import Limits

TARGETS = ("sm_80,sm_90",)
ALL = "inspect"  # the shipped suite that reaches every kernel


@dataclass(frozen=True, kw_only=True)
class InspectRequest:
    """What `kernelbench inspect` is asked: names of suites and families, and how to judge what
    comes of them.

    targets: as `sm_90`, or several in one. every: all configs of a table, not its choice alone.
    """

    names: tuple[str, ...] = ()
    targets: tuple[str, ...] = TARGETS
    providers: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()
    every: bool = False
    against: Path | None = None
    fail_on: str = ""
    save: Path | None = None


def inspect(request: InspectRequest, output: Output) -> int:
    """Print a row for each kernel and target. Exit code 1 where a kernel does not compile, or
    fails what was asked of it.

    Raises UsageError for names, targets, limits and files that cannot be used.
    """
    _refuse_without_compiler()
    from kernelbench.profile.inspect import gate, table
    from kernelbench.profile.inspect.target import targets

    chosen = targets(request.targets)
    limits = gate.bounds(request.fail_on, request.against is not None)
    before = None if request.against is None else gate.read(request.against)
    with waiting("loading the families", output.waits):
        known = families.load(request.plugins)
    rows = _rows(request, known, chosen, output)
    verdict = gate.judge(rows, before, limits)
    if request.save is not None:
        gate.save(rows, request.save)
    if output.as_json:
        print(json.dumps([row.as_json() for row in rows], allow_nan=False))
    elif not output.quiet:
        table.render(rows, output.console)
    table.show(verdict, rows, output.errors if output.as_json else output.console)
    return int(bool(verdict.failed))


def _refuse_without_compiler() -> None:
    if importlib.util.find_spec("triton") is None:
        raise UsageError("inspect compiles with Triton, which is not installed: pip install triton")
    if os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y"):
        raise UsageError(
            "inspect compiles kernels, and TRITON_INTERPRET=1 has made them for the interpreter: "
            "unset it (env -u TRITON_INTERPRET kernelbench inspect …)"
        )


def _rows(
    request: InspectRequest,
    known: Mapping[str, Family[Any]],
    chosen: Sequence["Limits"],
    output: Output,
) -> list["KernelRow"]:
    from kernelbench.profile.inspect import rows
    from kernelbench.profile.inspect.launches import describe

    jobs, harness = jobs_of(request.names, known, request.providers)
    with waiting("calling providers, to see what they would launch", output.waits):
        launches = [
            launch
            for limits in chosen
            for launch in describe(
                known, jobs, limits, every=request.every, harness=harness, plugins=request.plugins
            )
        ]
    if not launches:
        raise UsageError("none of these providers launches a Triton kernel: see kernelbench list")
    total, bar = len({launch.kernel for launch in launches}), output.errors.is_terminal
    with (
        waiting(f"compiling {total} kernels", None if bar else output.waits),
        Progress(console=output.errors, transient=True, disable=not bar) as progress,
    ):
        task = progress.add_task("compiling", total=total)
        counts = output.as_json or not output.quiet
        return rows(launches, done=lambda count: progress.advance(task, count), counts=counts)


def jobs_of(
    names: Sequence[str], known: Mapping[str, Family[Any]], providers: Sequence[str]
) -> tuple[Sequence[Job], bool]:
    """The jobs that suites and families name, and whether the harness's own kernels are meant, too.

    A family stands for its jobs of the shipped suite, or where that has none for its checks; no
    name at all for every family. Raises UsageError for a name that is neither.
    """
    shipped: Sequence[Job] = suite.load(suite.find(ALL), known).jobs
    jobs: list[Job] = []
    for name in names or known:
        if name in known:
            mine = [job for job in shipped if job.family == name]
            jobs += mine or _checks(known[name])
        else:
            jobs += suite.load(_suite(name, known), known).jobs
    if providers:
        jobs = [*suite.narrow(jobs, known, provider=providers)]
    return jobs, ALL in names or not (names or providers)


def _suite(name: str, known: Mapping[str, Family[Any]]) -> Path:
    try:
        return suite.find(name)
    except UsageError:
        if Path(name).suffix in (".yaml", ".yml"):
            raise
        words = [*known, *suite.shipped()]
        raise UsageError(f"no suite or family {name!r}{suggest(name, words)}") from None


def _checks(family: Family[Any]) -> list[Job]:
    names = tuple(provider.name for provider in family.providers)
    return [Job(family=family.name, case=case, providers=names) for case in family.checks]
