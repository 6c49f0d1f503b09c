"""What a report is made of: the records of any mix of runs, and what could not be read."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kernelbench import store
from kernelbench.spec import KernelbenchError, Measured, RunRecord, UsageError, migrations, suggest

FEW = 5  # problems of one kind that are named one by one


@dataclass
class Gathered:
    """Records of one case stand together, in the order in which runs were named.

    manifests: by run id. folders: likewise. problems: what could not be read, and why.
    notes: what was read, but not as it stands.
    """

    records: list[RunRecord] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)
    manifests: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    folders: dict[str, Path] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def gather(folders: Sequence[Path], families: Sequence[str] = ()) -> Gathered:
    """Everything that the run folders at and below these hold, of these families or of all.

    Lines and files that cannot be read are named and left out. A record that two folders hold
    (a copy of a run) counts once, the newer one.
    Raises UsageError for a path without runs, and for a family that no run has.
    """
    found = Gathered()
    for folder in folders:
        if not store.find_runs([folder]):
            found.problems.append(f"{folder}: no run in it; left out")
    runs = store.find_runs(folders)
    if not runs:
        raise UsageError(f"no run in {', '.join(map(str, folders))}: kernelbench run smoke")
    for run in runs:
        _read(run, found)
    found.records = _merged(found.records)
    known = dict.fromkeys([r.family for r in found.records] + [m.family for m in found.measured])
    for family in families:
        if family not in known:
            raise UsageError(
                f"--family: no family {family!r} in these runs{suggest(family, known)}"
            )
    if families:
        found.records = [r for r in found.records if r.family in families]
        found.measured = [m for m in found.measured if m.family in families]
    return found


def _read(run: Path, found: Gathered) -> None:
    problems = list[str]()
    try:
        manifest: Mapping[str, Any] = store.read_manifest(run)
    except KernelbenchError as error:
        manifest = {}
        problems.append(f"{error}; its records are read without it")
    for read in (_records, _measured):
        try:
            read(run, found, problems)
        except KernelbenchError as error:
            problems.append(str(error))
    run_id = str(manifest.get("run_id", run.name))
    found.manifests.setdefault(run_id, manifest)
    found.folders.setdefault(run_id, run)
    found.problems += _few(run, problems)


def _records(run: Path, found: Gathered, problems: list[str]) -> None:
    records, damaged = store.read_with_problems(run)
    found.records += records
    problems += damaged
    found.notes += [
        f"{run / store.RECORDS}: {count} records of schema {schema} were read as today's"
        for schema, count in _older(run).items()
    ]


def _older(run: Path) -> Mapping[int, int]:
    """How many lines have a schema that is migrated, by schema: the first field of a line."""
    file = run / store.RECORDS
    if not migrations.RECORDS or not file.exists():
        return {}
    found = re.findall(rb'^\{"schema": ?(\d+),', file.read_bytes(), re.MULTILINE)
    return {n: c for n, c in sorted(Counter(map(int, found)).items()) if n in migrations.RECORDS}


def _measured(run: Path, found: Gathered, problems: list[str]) -> None:
    measured, damaged = store.read_measured(run)
    found.measured += measured
    problems += damaged


def _few(run: Path, problems: Sequence[str]) -> list[str]:
    """Problems that are all alike in one line: a run of another schema is one problem."""
    alike = Counter(problem.partition(": ")[2] for problem in problems)
    shown = [p for p in problems if alike[p.partition(": ")[2]] <= FEW]
    many = [f"{run}: {count} lines: {what}" for what, count in alike.items() if count > FEW]
    return [*shown, *many]


def _merged(records: Sequence[RunRecord]) -> list[RunRecord]:
    newest: dict[tuple[str, ...], RunRecord] = {}
    for record in records:
        key = (record.run_id, *record.key)
        if key not in newest or newest[key].utc < record.utc:
            newest[key] = record
    places: dict[tuple[str, str], int] = {}
    for record in newest.values():
        places.setdefault((record.family, record.case), len(places))
    return sorted(newest.values(), key=lambda r: places[r.family, r.case])
