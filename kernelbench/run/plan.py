"""From what was asked to a suite's jobs, and to the run folder that is to hold their records."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kernelbench import __version__, families, store, suite
from kernelbench.run.loop import check_device, in_processes, remaining, sources_of
from kernelbench.spec import Job, UsageError
from kernelbench.suite import request
from kernelbench.suite.request import Selection


@dataclass(frozen=True)
class Plan:
    """A suite, its jobs, what was asked, and the run that is to be continued, if any."""

    suite: suite.Suite
    jobs: tuple[Job, ...]
    selection: Selection
    folder: Path | None = None

    @property
    def device(self) -> str:
        return check_device(self.suite.device, self.selection.device)

    def left(self) -> Sequence[Job]:
        """What is to be measured, the jobs of all processes one after another."""
        jobs = [job for process in in_processes(self.jobs) for job in process]
        if self.folder is None:
            return jobs
        sources = sources_of(self.jobs, families.load(self.selection.plugins))
        return remaining(jobs, store.read_standing(self.folder), sources)[0]

    def manifest(self, machine: Mapping[str, Any]) -> dict[str, Any]:
        """What a new run folder says of its run, besides what `store.create` adds."""
        return {
            "kernelbench": __version__,
            "machine": {k: v for k, v in machine.items() if k != "uuids"},  # of others, too
            "git": _git(),
            "argv": sys.argv[1:],
            "asked": self.selection.as_json(),
            "suite_text": self.suite.text,
        }


def new(suites: Sequence[str], selection: Selection) -> list[Plan]:
    """New runs. Without a suite: smoke, the one that every machine can run."""
    plans = []
    for name in suites or ["smoke"]:
        path = suite.find(name)
        own = request.declaring(selection, path)
        loaded, jobs = request.load(own, families.load(own.plugins), path)
        check_device(loaded.device, own.device)
        plans.append(Plan(loaded, jobs, own))
    return plans


def resumed(folder: Path, suites: Sequence[str], selection: Selection) -> list[Plan]:
    """A run that is to go on as it was asked for. What is asked now besides cannot change it."""
    if len(suites) > 1:
        raise UsageError("--resume continues one run: name its suite, or none")
    manifest = store.read_manifest(folder)
    for key in ("asked", "suite_text", "suite"):
        if key not in manifest:
            raise UsageError(f"{folder}: its manifest has no {key!r}; it cannot be resumed")
    before = Selection.from_json(manifest["asked"])
    _refuse_changes(selection.as_json(), before.as_json())
    known = families.load(before.plugins)
    if suites:
        named, _ = request.load(before, known, suite.find(suites[0]))
        request.same_suite(named, manifest, folder)
    if selection.device != "auto":
        before = replace(before, device=selection.device)
    name = f"{manifest['suite']}.yaml"
    loaded, jobs = request.load(before, known, name, text=manifest["suite_text"])
    return [Plan(loaded, jobs, before, folder)]


def _refuse_changes(now: dict[str, Any], before: dict[str, Any]) -> None:
    default = Selection().as_json()
    default["narrow"] = {name: "" if name == "filter" else [] for name in now["narrow"]}
    changed = [
        name
        for name in default
        if name != "device" and now[name] != default[name] and now[name] != before[name]
    ]
    if changed:
        raise UsageError(
            f"--resume goes on as the run was begun; it cannot change: {', '.join(changed)}"
        )


def refuse_many(plans: Sequence[Plan], yes: bool) -> None:
    """Raises UsageError for more jobs than anybody means, unless they were meant."""
    for plan in plans:
        jobs = sum(job.measure.processes for job in plan.jobs)
        if jobs > request.MANY and not yes:
            raise UsageError(
                f"{plan.suite.path}: {jobs} jobs. Narrow it, or say --yes to run them all"
            )


def _git() -> dict[str, Any] | None:
    """The commit that kernelbench runs from, if it runs from a checkout of its own."""
    here = str(Path(__file__).parent.parent)

    def git(*command: str) -> str:
        done = subprocess.run(
            ["git", "-C", here, *command], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        return {
            "commit": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", ".")),
        }
    except (OSError, subprocess.SubprocessError):
        return None
