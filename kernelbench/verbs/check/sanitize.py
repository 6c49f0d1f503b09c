"""`kernelbench check --sanitize`: compute-sanitizer over what was checked, on a GPU."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from kernelbench.profile import sanitize
from kernelbench.profile.sanitize import Check, Found, Look, Sanitizer, table
from kernelbench.report.progress import Output
from kernelbench.spec import Context, Job, NoGPUError, RunRecord, Status, UsageError, suggest

DEVICE = "cuda"


@dataclass(frozen=True)
class Asked:
    """Which tools, and the program that has them."""

    checks: tuple[Check, ...]
    program: Found


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How providers are called. timeout: seconds for each case. keep: a folder for logs."""

    plugins: tuple[str, ...]
    seed: int
    timeout: float
    keep: Path | None


def asked(tools: str, device: str) -> Asked | None:
    """What `--sanitize` names; None without it.

    Raises UsageError for a tool that there is not and for a CPU, ToolError where there is no
    compute-sanitizer.
    """
    if not tools:
        return None
    checks = dict.fromkeys(map(_check, tools.split(",")))
    if device == "cpu":
        raise UsageError("--sanitize looks at what runs on a GPU, --device says cpu: leave one out")
    return Asked(tuple(checks), sanitize.find())


def _check(word: str) -> Check:
    name = word.strip()
    if name not in [*Check]:
        raise UsageError(f"--sanitize: no tool {name!r}{suggest(name, map(str, Check))}")
    return Check(name)


def without_gpu(error: NoGPUError) -> NoGPUError:
    """Say what needs the GPU that is not here."""
    return NoGPUError(f"--sanitize looks at what runs on a GPU: {error}")


def looks(
    wanted: Asked,
    jobs: Sequence[Job],
    records: Sequence[RunRecord],
    settings: Settings,
    output: Output,
) -> Iterator[Look]:
    """What each tool says of each provider that the check did not skip, incorrect ones, too.

    Raises ToolError where the tool cannot be started.
    """
    todo, refused = _by_provider(jobs, records), ""
    with TemporaryDirectory() as temporary:
        folder = settings.keep / "sanitize" if settings.keep else Path(temporary)
        folder.mkdir(exist_ok=True)
        for check in wanted.checks:
            sanitizer = _sanitizer(check, wanted.program, folder, settings)
            for number, ((family, provider), part) in enumerate(todo.items(), 1):
                cases = f"{len(part)} case{'s' * (len(part) != 1)}"
                output.note(f"[{number}/{len(todo)}] {check} {family} {provider}: {cases}")
                if refused:
                    yield from sanitizer.refuse(provider, part, refused)
                    continue
                for look in sanitizer.look(provider, part):
                    refused = refused or (look.unseen if look.refused else "")
                    for text in look.notes:
                        output.warn(f"{family}/{look.case} {provider}: {check}: {text}")
                    yield look


def _sanitizer(check: Check, program: Found, folder: Path, settings: Settings) -> Sanitizer:
    return Sanitizer(
        check=check,
        program=program,
        folder=folder,
        device=DEVICE,
        plugins=settings.plugins,
        context=Context(run_id="check", gpu="", seed=settings.seed, source=""),
        timeout=settings.timeout,
    )


def _by_provider(
    jobs: Sequence[Job], records: Sequence[RunRecord]
) -> dict[tuple[str, str], list[Job]]:
    """The jobs that each provider of a family can do here, by what the check says."""
    able = {(r.family, r.provider, r.case) for r in records if r.status is not Status.skipped}
    todo: dict[tuple[str, str], list[Job]] = {}
    for job in jobs:
        for provider in job.providers:
            if (job.family, provider, job.case.id) in able:
                todo.setdefault((job.family, provider), []).append(job)
    return todo


def show(found: Sequence[Look], program: Found, output: Output) -> None:
    """Print the findings, and how much was looked at."""
    table.render(found, output.console)
    count = sum(len(look.findings) for look in found)
    unseen = sum(bool(look.unseen) for look in found)
    output.say(
        f"{sanitize.NAME} {program.version}: {count} finding{'s' * (count != 1)}, "
        f"{len(found) - unseen} looked at, {unseen} could not be looked at"
    )
