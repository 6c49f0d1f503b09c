"""Reading runs: records, what profilers saw, manifests, and the folders they lie in."""

import json
import lzma
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

from kernelbench.spec import SCHEMA, KernelbenchError, Measured, RunRecord, Status, UsageError
from kernelbench.store.kept import unpacked
from kernelbench.store.processes import together

L = TypeVar("L", RunRecord, Measured)

RECORDS = "records.jsonl"
MEASURED = "measured.jsonl"  # what profilers saw, beside the records
MEASURED_CSV = "measured.csv"
PROFILES = "profiles"
MANIFEST = "manifest.json"
RESULTS_CSV = "results.csv"
ARCHIVED = ".xz"  # at the end of a name of lines that are kept packed
KNOWN = {RECORDS, f"{RECORDS}{ARCHIVED}", MANIFEST}  # one of these makes a folder a run


def read_manifest(path: str | Path) -> dict[str, Any]:
    """What was run where. Raises KernelbenchError for a folder that is no run."""
    path = Path(path)
    try:
        facts = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise KernelbenchError(f"{path}: not a run folder (no {MANIFEST})") from None
    except OSError as error:
        raise KernelbenchError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise KernelbenchError(f"{path / MANIFEST}: not JSON ({error})") from None
    if not isinstance(facts, dict):
        raise KernelbenchError(f"{path / MANIFEST}: not a manifest")
    schema = facts.get("schema", SCHEMA)
    if type(schema) is not int or schema > SCHEMA:
        raise KernelbenchError(
            f"{path / MANIFEST}: schema {schema}, this version reads up to {SCHEMA}: upgrade "
            "kernelbench to read it"
        )
    return facts


def read(path: str | Path) -> list[RunRecord]:
    """The current records of a run: of each (family, case, provider) one, with what every process
    found last.

    They stand in the order in which their keys first came. Lines that are torn, damaged or
    impossible are left out; `read_with_problems` names those.
    """
    return read_with_problems(path)[0]


def read_with_problems(
    path: str | Path, found: Sequence[bytes] | None = None
) -> tuple[list[RunRecord], list[str]]:
    """`read`, and a message for every line that is no record of this schema, or stands twice.

    found: the run's lines, where they have been read already: a run that goes on gains some.
    Raises KernelbenchError for a folder that holds no run.
    """
    problems: list[str] = []
    return together(_current(_scan(Path(path), problems, found))), problems


def read_apart(path: str | Path) -> list[RunRecord]:
    """The current records of a run, those of its processes apart: of each key the newest."""
    return _current(_scan(Path(path), []))


@dataclass(frozen=True)
class Standing:
    """What a resumed run asks of a record: its key, how it ended, of which code, and where."""

    key: tuple[str, str, str, int]
    status: Status
    source: str
    gpu_uuid: str


def read_standing(path: str | Path) -> list[Standing]:
    """Of the records that `read_apart` gives, what a resumed run asks; their samples are read,
    judged, and let go of line by line."""
    path = Path(path)
    latest: dict[tuple[str, str, str, int], Standing] = {}
    for record in _scan(path, [], _one_by_one(path)):
        key = record.key
        latest[key] = Standing(key, record.status, record.source, record.gpu_uuid)
    return [*latest.values()]


def _current(records: Iterable[RunRecord]) -> list[RunRecord]:
    return list({record.key: record for record in records}.values())


def read_measured(path: str | Path) -> tuple[list[Measured], list[str]]:
    """What profilers saw of a run, of each (tool, family, case, provider) the newest; and a
    message for every line that is none. Nothing where no profiler looked."""
    path = Path(path)
    problems = _two_of(path / MEASURED)
    latest: dict[tuple[str, ...], Measured] = {}
    measured_lines = lines(path, MEASURED)
    for measured in _parsed(path / MEASURED, measured_lines, Measured.from_json, problems):
        latest[measured.key] = measured
    return list(latest.values()), problems


def history(path: str | Path) -> list[RunRecord]:
    """Every record of a run in the order of measurement, also those measured again since."""
    return list(_scan(Path(path), []))


def _scan(
    path: Path, problems: list[str], found: Iterable[bytes] | None = None
) -> Iterator[RunRecord]:
    found = lines(path, RECORDS) if found is None else found
    file = path / RECORDS
    if not found and not file.exists() and not archived(file).exists():
        read_manifest(path)  # a run that has measured nothing yet, or no run
    problems += _two_of(file)
    yield from _parsed(file, found, _possible, problems)


def _possible(line: str) -> RunRecord:
    record = RunRecord.from_json(line)
    if reason := record.impossible():
        raise KernelbenchError(f"impossible: {reason}")
    return record


def lines(path: Path, name: str) -> list[bytes]:
    """The lines of `records.jsonl` or `measured.jsonl` of a run, from its archive if that is what
    is there; none if neither is. The last counts with or without its newline: what a kill left of
    it is found out by reading it.

    Raises KernelbenchError for a file that cannot be read.
    """
    file = path / name
    try:
        if file.exists() or not archived(file).exists():
            content = file.read_bytes() if file.exists() else b""
        else:
            content = lzma.decompress(archived(file).read_bytes())
    except OSError as error:
        raise KernelbenchError(f"{file}: cannot be read ({error.strerror})") from None
    except lzma.LZMAError as error:
        raise KernelbenchError(f"{archived(file)}: cannot be unpacked ({error})") from None
    parts = [unpacked(line) for line in content.split(b"\n")]
    return parts if parts[-1] else parts[:-1]


def _one_by_one(path: Path) -> Iterable[bytes]:
    """The lines of `records.jsonl`, of which one at a time is in memory."""
    file = path / RECORDS
    return _lines_in(file) if file.exists() else lines(path, RECORDS)


def _lines_in(file: Path) -> Iterator[bytes]:
    try:
        with file.open("rb") as content:
            yield from map(unpacked, content)
    except OSError as error:
        raise KernelbenchError(f"{file}: cannot be read ({error.strerror})") from None


def _two_of(file: Path) -> list[str]:
    if file.exists() and archived(file).exists():
        return [f"{archived(file)}: left out, since {file.name} is beside it: keep one of the two"]
    return []


def archived(file: Path) -> Path:
    """Where the lines of a run that is kept may be instead: `xz -9 records.jsonl`, as they are or
    `kept.packed`."""
    return file.with_name(f"{file.name}{ARCHIVED}")


def _parsed(
    file: Path, found: Iterable[bytes], parse: Callable[[str], L], problems: list[str]
) -> Iterator[L]:
    seen: dict[bytes, int] = {}
    for number, line in enumerate(found, 1):
        if not line.strip():
            continue
        try:
            entry = parse(line.decode())
            first = seen.setdefault(blake2b(line.strip(), digest_size=16).digest(), number)
            if first == number:
                yield entry
            else:
                problems.append(f"{file}:{number}: line {first} once more; left out")
        except UnicodeDecodeError as error:
            problems.append(f"{file}:{number}: not text (byte {error.start} is no UTF-8)")
        except KernelbenchError as error:
            problems.append(f"{file}:{number}: {error}")


def find_runs(paths: Iterable[str | Path]) -> list[Path]:
    """The run folders at and below these, each once however often and by whatever path it is
    named; those of one path in the order of names.

    Raises UsageError for a path that does not exist.
    """
    runs: dict[Path, Path] = {}
    for place in paths:
        path = Path(place)
        if not path.exists():
            raise UsageError(f"{path}: no such file or folder")
        if path.is_file():
            if path.name not in (*KNOWN, RESULTS_CSV):
                raise UsageError(f"{path}: a file; name a run folder, or one that holds some")
            path = path.parent
        for run in _runs_below(path):
            runs.setdefault(run.resolve(), run)
    return list(runs.values())


def _runs_below(path: Path) -> Iterator[Path]:
    for folder, below, files in os.walk(path):
        if not KNOWN.isdisjoint(files):
            below.clear()
            yield Path(folder)
        below.sort()
