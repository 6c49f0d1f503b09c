"""The loop: jobs → worker → records, on the disk before the next job begins."""

import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kernelbench import metrics
from kernelbench.run.ahead import Ahead
from kernelbench.run.ledger import added
from kernelbench.run.pool import Pool, Turns
from kernelbench.run.runner import Options, Runner, Watcher
from kernelbench.source import source_hash
from kernelbench.spec import (
    Context,
    Family,
    Job,
    KernelbenchError,
    RunRecord,
    Status,
    UsageError,
    exit_code_of,
)
from kernelbench.store import Standing, Store

DERIVING = "deriving the figures of results.csv"


@dataclass
class Outcome:
    """How a run ended."""

    bad: bool = False  # a record of this session says that something is wrong
    interrupted: int = 0  # the exit code of whoever is, by Ctrl-C or SIGTERM
    left: int = 0  # jobs that were not begun: the budget ran out, or fail-fast
    total: int = 0  # jobs that there are, one for each process
    spent_s: dict[str, float] = field(default_factory=dict)  # of this session, by phase


def remaining(
    jobs: Sequence[Job], recorded: Sequence[Standing | RunRecord], sources: Mapping[str, str]
) -> tuple[list[Job], list[str]]:
    """What is left to measure, and the families whose code changed since it was measured.

    What was not right in an earlier process is not measured in a later one. A job that lost some
    of its providers' records to a kill is measured again whole, as far as it was timed: a speedup
    is formed inside one measurement.
    """
    known = {record.key: record for record in recorded}
    left, changed = [], dict[str, None]()
    for job in jobs:
        row = (job.family, job.case.id)
        wrong = {
            name
            for name in job.providers
            for process in range(job.process)
            if (r := known.get((*row, name, process))) and r.status is not Status.ok
        }
        names = [name for name in job.providers if name not in wrong]
        records = {name: known.get((*row, name, job.process)) for name in names}
        for name, record in records.items():
            if record is not None and record.source != sources[job.family]:
                changed[job.family] = None
                records[name] = None
        missing = [name for name, record in records.items() if record is None]
        if missing:
            again = [n for n, r in records.items() if r is not None and r.status is Status.ok]
            providers = tuple(n for n in job.providers if n in missing or n in again)
            left.append(replace(job, providers=providers))
    return left, list(changed)


def in_processes(jobs: Sequence[Job]) -> list[list[Job]]:
    """The jobs of each process: all of one come before any of the next, so that minutes lie
    between two measurements of the same."""
    most = max((job.measure.processes for job in jobs), default=0)
    return [
        [replace(job, process=process) for job in jobs if job.measure.processes > process]
        for process in range(most)
    ]


def run_jobs(
    jobs: Sequence[Job],
    families: Mapping[str, Family[Any]],
    options: Options,
    watcher: Watcher,
    store_for: Callable[[dict[str, Any]], Store],
    folder: Path,
) -> tuple[Outcome, Store]:
    """Measure what is left of `jobs` into the store that `store_for` gives for this machine.

    folder: the one that run folders stand in.

    Every record is on the disk before the next job begins; an interrupt or a full disk loses
    none. Raises KernelbenchError when nothing can be measured at all.
    """
    outcome = Outcome()
    with closing(Pool(families, options, watcher, folder)) as pool:
        store = store_for(pool.machine)
        try:
            for runner in pool.runners:
                runner.move_log(store.path)
            watcher.machine(pool.machine)
            sources = sources_of(jobs, families)
            every = in_processes(jobs)
            outcome.left = outcome.total = sum(map(len, every))
            session = _Session(pool, store, options, watcher, sources, outcome)
            for number in range(len(every)):
                recorded = store.standing()
                plans = [remaining(some, recorded, sources) for some in every[number:]]
                session.changed(name for _, changed in plans for name in changed)
                left, *later = [some for some, _ in plans]
                outcome.left = sum(map(len, (left, *later)))
                if left and not session.process(left, later, bound(recorded, number)):
                    break
            store.sync()
        except KeyboardInterrupt as stop:
            outcome.interrupted = exit_code_of(stop)
        except OSError as error:
            error.add_note(_safe(store))
            raise
        except KernelbenchError as error:
            raise KernelbenchError(f"{error}\n{_safe(store)}") from None
        finally:
            watcher.at("", DERIVING)
            metrics.to_csv(store.records(), store.csv_path)
            outcome.spent_s = pool.spent()
            _account(store, outcome.spent_s, pool.ahead, watcher)
    return outcome, store


def bound(recorded: Sequence[Standing], process: int) -> dict[tuple[str, str], str]:
    """The GPU that other processes of a job ran on, by its row: that one is to run this process,
    since an interval over processes is of one card."""
    return {
        (family, case): record.gpu_uuid
        for record in recorded
        for family, case, _, of in [record.key]
        if record.gpu_uuid and of != process
    }


class _Session:
    """What is measured now: by whom, into which store, and how far it is. Jobs may be measured at
    once, in threads."""

    def __init__(
        self,
        pool: Pool,
        store: Store,
        options: Options,
        watcher: Watcher,
        sources: Mapping[str, str],
        outcome: Outcome,
    ) -> None:
        self._pool, self._store, self._options = pool, store, options
        self._watcher, self._sources, self._outcome = watcher, sources, outcome
        self._noted = set[str]()
        self._lock = threading.Lock()
        self._begun = self._providers = 0

    def changed(self, names: Iterable[str]) -> None:
        """Families whose code is no longer what was measured are said to be, once."""
        for name in sorted({*names} - self._noted):
            self._watcher.note(f"{name}: its code changed since it was measured; measured anew")
            self._noted.add(name)

    def process(
        self,
        jobs: Sequence[Job],
        later: Sequence[Sequence[Job]],
        bound: Mapping[tuple[str, str], str],
    ) -> bool:
        """Measure the jobs of one process. later: those of the processes after it. bound: see
        `bound`. False to stop."""
        if self._options.ahead and self._pool.ahead is None:
            self._pool.ahead = self._compiling([*jobs, *chain.from_iterable(later)])
        self._limits()
        here = {"", *self._pool.uuids}
        known = [job for job in jobs if bound.get((job.family, job.case.id), "") in here]
        if gone := len(jobs) - len(known):
            self._watcher.note(
                f"{gone} jobs were begun on a GPU that is not one of these: they are left"
            )
        self._begun = self._outcome.total - self._outcome.left
        self._providers = sum(len(job.providers) for some in (known, *later) for job in some)
        turns = Turns((job for job in known if job.world == 1), bound)
        together = [job for job in known if job.world > 1]
        measure = self._measure
        return self._pool.share(turns, measure) and self._pool.alone(together, measure)

    def _compiling(self, jobs: Sequence[Job]) -> Ahead:
        """For these, from now on."""
        return Ahead(
            jobs,
            self._pool.machine,
            self._options.plugins,
            self._sources,
            self._options.ahead,
            self._store.path / "ahead.log",
            search=self._options.tune,
        )

    def _limits(self) -> None:
        """Of each GPU, measured once a run, in its manifest."""
        manifest = self._store.manifest
        known = manifest.get("gpus") or {self._pool.first.uuid: manifest.get("ceilings")}
        found = self._pool.ceilings(known)
        facts: dict[str, Any] = {"ceilings": found[self._pool.first.uuid]}
        if len(found) > 1 or "gpus" in manifest:
            facts["gpus"] = {**known, **found}
        self._store.update_manifest(**facts)

    def _measure(self, job: Job, runner: Runner) -> bool:
        outcome, options = self._outcome, self._options
        if self._pool.ahead is not None:
            self._pool.ahead.begun(job)
        with self._lock:
            if options.fail_fast and outcome.bad:
                return False
            if options.deadline is not None:
                left = (options.deadline - time.monotonic()) * len(self._pool.runners)
                if left <= 0:
                    return False
                job = _within(job, left / self._providers)
            self._providers -= len(job.providers)
            self._begun += 1
            runner.watcher.job(job, self._begun, outcome.total)
        context = Context(
            run_id=self._store.run_id,
            gpu=runner.machine["name"],
            gpu_uuid=runner.uuid,
            seed=options.seed,
            source=self._sources[job.family],
        )
        for records in runner.measure(job, context):
            with self._lock:
                self._store.append(records)
                if not self._store.fast:  # else all rows are written at the end
                    metrics.append_csv(records, self._store.csv_path)
                outcome.bad = outcome.bad or any(record.status.bad for record in records)
            runner.watcher.recorded(records)
        if runner.closed:
            return False
        with self._lock:
            outcome.left -= 1
        return True


def _safe(store: Store) -> str:
    return f"What was measured is safe: kernelbench run --resume {store.path}"


def _account(
    store: Store, spent_s: Mapping[str, float], ahead: Ahead | None, watcher: Watcher
) -> None:
    """Add what this session spent to the manifest, and what was compiled ahead of it; a disk
    without room for it stops nothing."""
    facts = {"spent_s": spent_s}
    if ahead is not None:
        ahead.close()
        watcher.note(str(ahead.count))
        facts["ahead"] = asdict(ahead.count)
    manifest = store.manifest
    try:
        store.update_manifest(**{k: added(manifest.get(k, {}), v) for k, v in facts.items()})
    except KernelbenchError as error:
        watcher.note(str(error))


def prove_jobs(
    jobs: Sequence[Job], families: Mapping[str, Family[Any]], options: Options, watcher: Watcher
) -> Generator[list[RunRecord], None, None]:
    """Records of jobs that are proven and not timed, which no folder keeps.

    Raises KernelbenchError where nothing can be proven at all.
    """
    with (
        TemporaryDirectory() as folder,
        closing(Pool(families, options, watcher, Path(folder) / "log")) as pool,
    ):
        [runner] = pool.runners
        watcher.machine(pool.machine)
        runner.ceilings(None)
        gpu = runner.machine["name"]
        context = Context(run_id="check", gpu=gpu, seed=options.seed, source="")
        for number, job in enumerate(jobs, 1):
            watcher.job(job, number, len(jobs))
            for records in runner.measure(job, context):
                yield records
                watcher.recorded(records)


def sources_of(jobs: Sequence[Job], families: Mapping[str, Family[Any]]) -> dict[str, str]:
    """The source hash of every family that the jobs name."""
    return {name: source_hash(families[name]) for name in {job.family for job in jobs}}


def _within(job: Job, seconds: float) -> Job:
    """The job with at most half of its share of the budget for sampling; the rest is set-up."""
    most = min(job.measure.max_seconds, max(seconds / 2, 0.01))
    return replace(job, measure=replace(job.measure, max_seconds=most))


def check_device(suite_device: str, device: str) -> str:
    """The device to ask for: the option's, else the suite's. They must not contradict.

    Raises UsageError when one says cpu and the other cuda.
    """
    if {suite_device, device} == {"cpu", "cuda"}:
        raise UsageError(
            f"the suite says device: {suite_device}, --device says {device}. "
            "A suite for either: configs/smoke.yaml"
        )
    return suite_device if device == "auto" else device
