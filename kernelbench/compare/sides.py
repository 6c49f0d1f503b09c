"""The runs of one side of a comparison: one run, or several of one build."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kernelbench import store
from kernelbench.spec import KernelbenchError, RunRecord, UsageError, beside

_MAPPINGS = (
    "machine", "machine.versions", "git", "asked",
    "ceilings", "ceilings.bandwidth", "ceilings.tflops",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One run folder. manifest: empty where the folder has none."""

    path: Path
    manifest: dict[str, Any]
    records: tuple[RunRecord, ...]

    @property
    def identity(self) -> str:
        """The same for every copy of the run in any folder: groups are random."""
        groups = {f"{record.run_id} {record.group}" for record in self.records}
        return min(groups) if groups else str(self.path.resolve())


@dataclass(frozen=True)
class Side:
    """A path that the caller named, and its runs, in the order of their folders' names."""

    name: str
    runs: tuple[Run, ...]

    @property
    def gpus(self) -> tuple[str, ...]:
        return tuple(sorted({record.gpu for run in self.runs for record in run.records}))

    @property
    def processes(self) -> int:
        """How many there were in all of its runs."""
        return sum(max((len(r.processes) for r in run.records), default=0) for run in self.runs)


def read_runs(path: Path) -> tuple[tuple[Run, ...], list[str]]:
    """The runs at or below a path, and a message for every line that could not be read.

    Raises KernelbenchError where there is none, or where nothing of a run can be read.
    """
    problems: list[str] = []
    runs: list[Run] = []
    for folder in store.find_runs([path]):
        manifest, unread = _manifest(folder)
        problems += unread
        records, damaged = store.read_with_problems(folder)
        if damaged and not records:
            raise KernelbenchError(
                f"{folder}: no line could be read, such as {damaged[0]}. Measure that build again"
            )
        problems += damaged
        run = Run(folder, manifest, tuple(records))
        if twin := next((r for r in runs if r.identity == run.identity), None):
            problems.append(f"{folder}: a copy of the run in {twin.path}; left out")
            continue
        runs.append(run)
    if not runs:
        raise UsageError(f"no run in {path}: kernelbench run smoke")
    return tuple(runs), problems


def _manifest(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The manifest, empty where none can be compared, and what is wrong with it."""
    if not (folder / store.MANIFEST).exists():
        return {}, []
    try:
        manifest = store.read_manifest(folder)
        for path in _MAPPINGS:
            part: Any = manifest
            for name in path.split("."):
                part = part.get(name) or {}
            if not isinstance(part, dict):
                raise KernelbenchError(f"{folder / store.MANIFEST}: {path} is no mapping")
    except KernelbenchError as error:
        return {}, [f"{error}; the run is compared, its versions are not"]
    return manifest, []


def sides(a: Path, b: Path) -> tuple[Side, Side, list[str]]:
    """Both sides, and what could not be read.

    Raises UsageError where a run is on both sides, and KernelbenchError as `read_runs` does, where
    nothing has a GPU's time.
    """
    (runs_a, bad_a), (runs_b, bad_b) = read_runs(a), read_runs(b)
    with beside([*bad_a, *bad_b]):
        both = _sides(a, b, runs_a, runs_b)
    return *both, [*bad_a, *bad_b]


def _sides(a: Path, b: Path, runs_a: tuple[Run, ...], runs_b: tuple[Run, ...]) -> tuple[Side, Side]:
    ids = {run.identity for run in runs_a}
    if shared := [run.path for run in runs_b if run.identity in ids]:
        raise UsageError(
            f"{min(shared)} is on both sides, or a copy of it is. Name two builds: compare BEFORE "
            "AFTER"
        )
    pair = Side(str(a), runs_a), Side(str(b), runs_b)
    for side in pair:
        _refuse_smoke(side)
    return pair


def _refuse_smoke(side: Side) -> None:
    timers = {r.timing.timer for run in side.runs for r in run.records if r.timing}
    if timers == {"host"}:
        raise KernelbenchError(
            f"{side.name}: smoke runs, which check correctness on a CPU and have no GPU times. "
            "There is nothing to compare: measure on a GPU (kernelbench run SUITE --device cuda)"
        )


def noise_of(runs: tuple[Run, ...], a: Side, b: Side) -> tuple[Run, ...]:
    """The runs that are on neither side and were timed as the sides were.

    Raises UsageError where there are runs and none is.
    """
    compared = (*a.runs, *b.runs)
    identities, methods = {run.identity for run in compared}, _methods(a) | _methods(b)
    gpus, cards = {*a.gpus, *b.gpus}, _cards(compared)
    usable = tuple(
        run
        for run in runs
        if run.identity not in identities
        and set() < _methods(Side("", (run,))) <= methods
        and gpus & {record.gpu for record in run.records}
        and not (cards and _cards([run]) and not cards & _cards([run]))
    )
    if runs and not usable:
        raise UsageError(
            "--noise-from: no run there that is on neither side is of this machine "
            f"({', '.join([*sorted(gpus), *sorted(cards)])}) and was timed by method "
            f"{', '.join(map(str, sorted(methods)))}, as the sides were"
        )
    return usable


def _methods(side: Side) -> set[int]:
    records = [process for run in side.runs for r in run.records for process in r.processes]
    return {record.method for record in records if record.timing}


def _cards(runs: Iterable[Run]) -> set[str]:
    """UUIDs of the cards that the runs are known to have used."""
    uuids = {str((run.manifest.get("machine") or {}).get("uuid") or "") for run in runs}
    uuids |= {record.gpu_uuid for run in runs for record in run.records}
    return uuids - {""}


def of_one_machine(a: Side, b: Side) -> tuple[Side, Side, bool]:
    """The sides without records of GPUs that the other side lacks, and whether they share a GPU;
    where they share none, the sides unchanged.

    Raises KernelbenchError where the sides share no GPU and one of them has several.
    """
    shared = set(a.gpus) & set(b.gpus)
    if shared:
        return _only(a, shared), _only(b, shared), True
    if max(len(a.gpus), len(b.gpus)) > 1:
        raise KernelbenchError(
            f"{a.name} is of {', '.join(a.gpus)} and {b.name} of {', '.join(b.gpus)}: name the "
            "runs of one GPU on each side"
        )
    return a, b, False


def _only(side: Side, gpus: set[str]) -> Side:
    records = [(run, tuple(r for r in run.records if r.gpu in gpus)) for run in side.runs]
    return replace(side, runs=tuple(replace(run, records=left) for run, left in records if left))
