"""`kernelbench list`: the families that there are, their axes and providers, or jobs of suites.

What kernelbench itself ships is told by a file that is generated (`make schema`), so that nothing
of torch is imported; plugins, and families that were edited since, are asked themselves.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from kernelbench import families
from kernelbench.report import catalogue
from kernelbench.report.catalogue import Facts
from kernelbench.report.progress import Output
from kernelbench.report.waits import waiting
from kernelbench.spec import UsageError, suggest

if TYPE_CHECKING:
    from kernelbench.run.plan import Plan

SHIPPED = Path(__file__).parent.parent / "families.json"


@dataclass(frozen=True, kw_only=True)
class ListRequest:
    """What `kernelbench list` is asked: suites, or without any the families of these names."""

    suites: tuple[str, ...] = ()
    families: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()


def list_(request: ListRequest, output: Output) -> int:
    """Raises UsageError for a suite or a family that there is not."""
    if request.suites:
        from kernelbench.run import plan
        from kernelbench.suite.request import Selection

        narrow = {"family": list(request.families)}
        with waiting("loading the families, which import torch", output.waits):
            plans = plan.new(request.suites, Selection(plugins=request.plugins, narrow=narrow))
        show_jobs(plans, output)
    else:
        show_families(request.families, request.plugins, output.console, output.as_json)
    return 0


def show_families(
    names: Sequence[str], plugins: tuple[str, ...], console: Console, as_json: bool
) -> None:
    """Every family, or those of these names. Raises UsageError for a name that none has."""
    known = {facts["name"]: facts for facts in facts_of(plugins)}
    for name in names:
        if name not in known:
            raise UsageError(f"--family: no family {name!r}{suggest(name, known)}")
    shown = [facts for name, facts in known.items() if not names or name in names]
    catalogue.show(shown, console, as_json)


def show_jobs(plans: Sequence["Plan"], output: Output) -> None:
    """Every job of the plans that is left to measure, and who takes part."""
    left = [(plan, plan.left()) for plan in plans]
    if output.as_json:
        facts = [
            {
                "suite": plan.suite.name,
                "id": job.id,
                "label": job.label,
                "process": job.process,
                "providers": job.providers,
            }
            for plan, jobs in left
            for job in jobs
        ]
        print(json.dumps(facts))
        return
    for plan, jobs in left:
        for job in jobs:
            label = f"  # {job.label}" if job.label else ""
            again = f"  in process {job.process + 1}" if job.process else ""
            output.say(f"{job.id}  {' '.join(job.providers)}{again}{label}")
        records = sum(len(job.providers) for job in jobs)
        output.say(f"{plan.suite.name}: {len(jobs)} jobs, {records} records")


def described(plugins: tuple[str, ...] = ()) -> list[Facts]:
    """By the families themselves, which import torch."""
    return [catalogue.facts_of(family) for family in families.load(plugins).values()]


def text() -> str:
    """What the generated file holds: the families, and the source that they were made from."""
    return json.dumps({"source": families.fingerprint(), "families": described()}, indent=0) + "\n"


def names() -> set[str]:
    """Of every family that is here without a plugin file."""
    return {facts["name"] for facts in facts_of(())}


def facts_of(plugins: tuple[str, ...]) -> list[Facts]:
    """Of every family its axes and providers; without torch where only what is shipped is known."""
    if plugins or families.installed():
        return described(plugins)
    file = json.loads(SHIPPED.read_text(encoding="utf-8"))
    shipped: list[Facts] = file["families"]
    return shipped if file["source"] == families.fingerprint() else described()
