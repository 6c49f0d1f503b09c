"""What a user asks of suites, as jobs; kept in the manifest, so that a run is resumed as asked."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from kernelbench import suite
from kernelbench.spec import Family, Job, Measure, UsageError, suggest

MANY = 10_000
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which jobs there are, and how each is measured.

    Raises UsageError for a device that there is not.
    """

    overrides: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()
    narrow: Mapping[str, Any] = field(default_factory=dict)  # keywords of `suite.narrow`
    quick: bool = False
    interleave: bool = True
    tune: bool = False
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise UsageError(f"--device: no device {self.device!r}{suggest(self.device, DEVICES)}")

    @property
    def narrows(self) -> bool:
        """Whether some jobs of a suite, or providers of a job, are left out."""
        return any(self.narrow.values())

    def as_json(self) -> dict[str, Any]:
        """For a manifest."""
        return {name: value for name, value in asdict(self).items() if name in SELECTS}

    @staticmethod
    def from_json(facts: Mapping[str, Any]) -> "Selection":
        """The inverse; what else a request says is left out. Raises UsageError for what another
        version asked."""
        try:
            fields_given = {name: facts[name] for name in SELECTS}
            lists = {name: tuple(fields_given[name]) for name in ("overrides", "plugins")}
            return Selection(**{**fields_given, **lists})
        except (TypeError, KeyError) as error:
            raise UsageError(f"what was asked of this run is not understood: {error}") from None


SELECTS = tuple(field.name for field in fields(Selection))


@dataclass(frozen=True, kw_only=True)
class RunRequest(Selection):
    """What `kernelbench run` is asked: suites to begin, or a run to go on with.

    gpus: certain GPUs, or several: `0,2,5` or `all`. ahead: processes that compile for
    later jobs. out: the folder that run folders stand in. timeout_s: without a sign of progress.
    budget_s: for all that is named.
    """

    suites: tuple[str, ...] = ()
    gpus: str = ""
    ahead: int = 0
    resume: Path | None = None
    out: Path = Path("results")
    timeout_s: float = 300.0
    budget_s: float | None = None
    fail_fast: bool = False
    dry_run: bool = False
    yes: bool = False

    def __post_init__(self) -> None:
        if self.gpus and self.device == "cpu":
            raise UsageError("--gpus and --device cpu contradict each other")
        if self.ahead and self.device == "cpu":
            raise UsageError("--ahead compiles for a GPU, and --device cpu has none")
        super().__post_init__()

    def as_json(self) -> dict[str, Any]:
        """Without folders, which are this machine's."""
        stored = ("suites", "timeout_s", "budget_s", "fail_fast")
        return super().as_json() | {name: getattr(self, name) for name in stored}


S = TypeVar("S", bound=Selection)


def declaring(selection: S, path: Path) -> S:
    """With the families that a suite declares among its plugins. Raises UsageError for those that
    cannot be."""
    plugins = suite.declared(path, selection.overrides)
    return replace(selection, plugins=(*selection.plugins, *plugins)) if plugins else selection


def load(
    selection: Selection,
    families: Mapping[str, Family[Any]],
    path: str | Path,
    text: str | None = None,
) -> tuple[suite.Suite, tuple[Job, ...]]:
    """A suite and its jobs, narrowed and measured as asked.

    Raises UsageError for whatever the suite or the narrowing has wrong.
    """
    loaded = suite.load(path, families, overrides=selection.overrides, text=text)
    jobs: Sequence[Job] = loaded.jobs
    if selection.narrows:
        jobs = suite.narrow(jobs, families, **selection.narrow)
    return loaded, tuple(replace(job, measure=_measure(job.measure, selection)) for job in jobs)


def _measure(measure: Measure, selection: Selection) -> Measure:
    if selection.quick:
        seconds = min(measure.max_seconds, 0.2)
        measure = replace(measure, max_seconds=seconds, timers=(), processes=1)
    return measure if selection.interleave else replace(measure, interleave=False)


def checks(families: Mapping[str, Family[Any]], selection: Selection) -> tuple[Job, ...]:
    """Every family's own small cases with all its providers, narrowed as asked."""
    jobs = tuple(
        Job(family=family.name, case=case, providers=_without_request(family, selection))
        for family in families.values()
        for case in family.checks
    )
    return suite.narrow(jobs, families, **selection.narrow) if selection.narrows else jobs


def _without_request(family: Family[Any], selection: Selection) -> tuple[str, ...]:
    named = selection.narrow.get("provider", ())
    return tuple(p.name for p in family.providers if not p.on_request or p.name in named)


def same_suite(fields_given: suite.Suite, manifest: Mapping[str, Any], folder: Path) -> None:
    """Raises UsageError when a run is to be continued with another suite than its own."""
    if fields_given.text != manifest.get("suite_text"):
        raise UsageError(
            f"{fields_given.path}: not the suite that {folder} was begun with (its name is "
            f"{manifest.get('suite')!r}). Resume without naming a suite, or start a new run"
        )


def seconds(text: str) -> float:
    """`90`, `90s`, `10m` or `1.5h` in seconds. Raises UsageError otherwise."""
    scale = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, unit = (text[:-1], text[-1]) if text[-1:] in scale else (text, "s")
    try:
        value = float(number) * scale[unit]
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise UsageError(f"--budget {text!r}: a time such as 90s, 10m or 1.5h")
    return value
