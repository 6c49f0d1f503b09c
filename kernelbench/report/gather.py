"""The data of a report: the records of any mix of runs, and what could not be read."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from kernelbench import store
from kernelbench.report.cache import derive
from kernelbench.spec import KernelbenchError, Measured, RunRecord, UsageError, beside, suggest

T = TypeVar("T")
FEW = 5  # problems of one kind that are listed one by one


@dataclass
class Gathered:
    """Rows and records of one case stand together, in the order in which runs were named.

    rows: as `metrics.rows_of`. manifests: by run id. folders: likewise, the first of a run.
    runs: every run folder. problems: what could not be read, and why.
    notes: what was read, but not as it stands.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)
    manifests: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    folders: dict[str, Path] = field(default_factory=dict)
    runs: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @cached_property
    def records(self) -> list[RunRecord]:
        """The records behind the rows, with raw samples: slow to read."""
        known = {(row["run_id"], row["family"]) for row in self.rows}
        records = (record for run in self.runs for record in _readable_records(run))
        return _newest(
            (record for record in records if (record.run_id, record.family) in known),
            lambda r: (r.run_id, r.family, r.case, r.provider),
            lambda r: (max(process.utc for process in r.processes), len(r.processes)),
        )


def gather(folders: Sequence[Path], families: Sequence[str] = (), against: str = "") -> Gathered:
    """Everything that the run folders at and below these hold, of these families or of all.

    Lines and files that cannot be read are named and left out. A record that two folders hold
    (a copy of a run) counts once, the newer one.
    against: the provider that speedups of the rows hold up, instead of the baseline.
    Raises UsageError for a path that is not there, for one without runs where no other has any,
    and for a family that no run has.
    """
    gathered = Gathered(runs=store.find_runs(folders))
    with beside(gathered.problems):
        _gather(gathered, folders, families, against)
    return gathered


def _gather(
    gathered: Gathered, folders: Sequence[Path], families: Sequence[str], against: str
) -> None:
    if not gathered.runs:
        raise UsageError(f"no run in {', '.join(map(str, folders))}: kernelbench run smoke")
    for folder in folders:
        if not store.find_runs([folder]):
            gathered.problems.append(f"{folder}: no run in it; left out")
    for run in gathered.runs:
        _read(run, gathered, against)
    gathered.rows = _newest(
        gathered.rows,
        lambda r: tuple(r[n] for n in ("run_id", "family", "case", "provider")),
        lambda r: (r["utc"], r.get("processes") or 0),
    )
    known = dict.fromkeys(
        [r["family"] for r in gathered.rows] + [m.family for m in gathered.measured]
    )
    for family in families:
        if family not in known:
            raise UsageError(
                f"--family: no family {family!r} in these runs{suggest(family, known)}"
            )
    if families:
        gathered.rows = [row for row in gathered.rows if row["family"] in families]
        gathered.measured = [m for m in gathered.measured if m.family in families]
        remaining = {r["run_id"] for r in gathered.rows} | {m.run_id for m in gathered.measured}
        gathered.manifests = {run: m for run, m in gathered.manifests.items() if run in remaining}
        gathered.folders = {run: f for run, f in gathered.folders.items() if run in remaining}


def _read(run: Path, gathered: Gathered, against: str) -> None:
    problems = list[str]()
    try:
        manifest: Mapping[str, Any] = store.read_manifest(run)
    except KernelbenchError as error:
        manifest = {}
        problems.append(f"{error}; its records are read without it")
    try:
        figures = derive(run, against)
        gathered.rows += figures.rows
        problems += figures.problems
        gathered.notes += [
            f"{run / store.RECORDS}: {count} records of schema {schema} were read as today's"
            for schema, count in figures.older.items()
        ]
        measured, damaged = store.read_measured(run)
        gathered.measured += measured
        problems += damaged
    except KernelbenchError as error:
        problems.append(str(error))
    run_id = str(manifest.get("run_id", run.name))
    gathered.manifests.setdefault(run_id, manifest)
    gathered.folders.setdefault(run_id, run)
    gathered.problems += _summarized(run, problems)


def _readable_records(run: Path) -> list[RunRecord]:
    """The records of a run; its problems are already reported."""
    try:
        return store.read(run)
    except KernelbenchError:
        return []


def _summarized(run: Path, problems: Sequence[str]) -> list[str]:
    """Join many like problems in one line: a run of another schema is one problem."""
    counts = Counter(problem.partition(": ")[2] for problem in problems)
    single = [p for p in problems if counts[p.partition(": ")[2]] <= FEW]
    many = [f"{run}: {count} lines: {what}" for what, count in counts.items() if count > FEW]
    return [*single, *many]


def _newest(
    items: Iterable[T], key: Callable[[T], tuple[str, ...]], age: Callable[[T], tuple[str, int]]
) -> list[T]:
    """Keep the newest of each key, those of one case together. key: run, family, case, provider.
    age: when it was measured, and in how many processes."""
    newest: dict[tuple[str, ...], tuple[tuple[str, int], T]] = {}
    for item in items:
        name, when = key(item), age(item)
        if name not in newest or newest[name][0] < when:
            newest[name] = (when, item)
    cases: dict[tuple[str, ...], list[T]] = {}
    for name, (_, item) in newest.items():
        cases.setdefault(name[1:3], []).append(item)
    return [item for case in cases.values() for item in case]
