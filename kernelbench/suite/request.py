"""What a user asked for, as jobs; kept in the manifest, so that a run can be resumed as asked."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from kernelbench import suite
from kernelbench.spec import Family, Job, Measure, UsageError

MANY = 10_000


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Everything that decides which jobs there are and how each is measured."""

    overrides: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()
    narrow: Mapping[str, Any] = field(default_factory=dict)  # keywords of `suite.narrow`
    quick: bool = False
    interleave: bool = True
    tune: bool = False
    device: str = "auto"
    seed: int = 0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(facts: Mapping[str, Any]) -> "Asked":
        """The inverse. Raises UsageError for what another version asked."""
        try:
            lists = {name: tuple(facts[name]) for name in ("overrides", "plugins")}
            return Asked(**{**facts, **lists})
        except (TypeError, KeyError) as error:
            raise UsageError(f"what was asked of this run is not understood: {error}") from None


def plan(
    asked: Asked,
    families: Mapping[str, Family[Any]],
    path: str | Path,
    text: str | None = None,
) -> tuple[suite.Suite, tuple[Job, ...]]:
    """A suite and its jobs, narrowed and measured as asked.

    Raises UsageError for whatever the suite or the narrowing has wrong.
    """
    found = suite.load(path, families, overrides=asked.overrides, text=text)
    jobs: Sequence[Job] = found.jobs
    if any(asked.narrow.values()):
        jobs = suite.narrow(jobs, families, **asked.narrow)
    return found, tuple(replace(job, measure=_measure(job.measure, asked)) for job in jobs)


def _measure(measure: Measure, asked: Asked) -> Measure:
    if asked.quick:
        seconds = min(measure.max_seconds, 0.2)
        measure = replace(measure, max_seconds=seconds, timers=(), processes=1)
    return measure if asked.interleave else replace(measure, interleave=False)


def checks(families: Mapping[str, Family[Any]], asked: Asked) -> tuple[Job, ...]:
    """Every family's own small cases with all its providers, narrowed as asked."""
    jobs = tuple(
        Job(family=family.name, case=case, providers=_without_request(family, asked))
        for family in families.values()
        for case in family.checks
    )
    return suite.narrow(jobs, families, **asked.narrow) if any(asked.narrow.values()) else jobs


def _without_request(family: Family[Any], asked: Asked) -> tuple[str, ...]:
    named = asked.narrow.get("provider", ())
    return tuple(p.name for p in family.providers if not p.on_request or p.name in named)


def same_suite(given: suite.Suite, manifest: Mapping[str, Any], folder: Path) -> None:
    """Raises UsageError when a run is to be continued with another suite than its own."""
    if given.text != manifest.get("suite_text"):
        raise UsageError(
            f"{given.path}: not the suite that {folder} was begun with (its name is "
            f"{manifest.get('suite')!r}). Resume without naming a suite, or start a new run"
        )


def seconds(text: str) -> float:
    """`90`, `90s`, `10m` or `1.5h` in seconds. Raises UsageError otherwise."""
    scale = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, unit = (text[:-1], text[-1]) if text[-1:] in scale else (text, "s")
    try:
        found = float(number) * scale[unit]
    except ValueError:
        found = -1.0
    if not 0 < found < float("inf"):
        raise UsageError(f"--budget {text!r}: a time such as 90s, 10m or 1.5h")
    return found
