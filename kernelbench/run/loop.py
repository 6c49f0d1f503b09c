"""The loop: jobs → worker → records, on the disk before the next job begins."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from kernelbench import metrics
from kernelbench.run.executor import Worker, WorkerEndedError, limits, start
from kernelbench.run.ledger import HARNESS, Ledger, added
from kernelbench.run.worker import encode
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
    record_of,
)
from kernelbench.store import Store

START_TIMEOUT = 300.0
DERIVING = "deriving the figures of results.csv"


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to run; every field is an option of `kernelbench run`, or of `check`."""

    device: str = "auto"
    plugins: tuple[str, ...] = ()
    seed: int = 0
    timing: bool = True
    tune: bool = False
    timeout: float = 300.0  # seconds without a sign of progress
    deadline: float | None = None  # on time.monotonic's clock
    fail_fast: bool = False
    dump: str = ""  # a folder to keep inputs, answers and oracle in


class Watcher(Protocol):
    """Whoever shows what is going on."""

    def machine(self, machine: Mapping[str, Any]) -> None: ...
    def note(self, text: str) -> None: ...
    def job(self, job: Job, number: int, total: int) -> None: ...
    def at(self, provider: str, phase: str) -> None: ...
    def recorded(self, records: Sequence[RunRecord]) -> None: ...


@dataclass
class Outcome:
    """How a run ended."""

    bad: bool = False  # a record of this session says that something is wrong
    interrupted: int = 0  # the exit code of whoever is, by Ctrl-C or SIGTERM
    left: int = 0  # jobs that were not begun: the budget ran out, or fail-fast
    total: int = 0  # jobs that there are, one for each process
    spent_s: dict[str, float] = field(default_factory=dict)  # of this session, by phase


class FalseAccountError(WorkerEndedError):
    """What a worker says of a job cannot be: a provider wrote into its pipe."""


class Runner:
    """Measures jobs one after another in a worker that is replaced when it falls.

    ledger: what the time went to since the runner was made.
    """

    def __init__(
        self,
        families: Mapping[str, Family[Any]],
        options: Options,
        watcher: Watcher,
        folder: Path,
    ) -> None:
        self._families, self._options, self._watcher = families, options, watcher
        self.ledger = Ledger()
        self._fallen: dict[str, list[str]] = {}  # who took a worker down, by job
        self._process: int | None = None  # of the run's, the one that the worker is
        self._log = _log_in(folder)
        self._ceilings: dict[str, Any] | None = None
        try:
            self._worker, self.machine = self._start()
        except (KernelbenchError, KeyboardInterrupt):
            self._drop_log()
            raise

    def _start(self) -> tuple[Worker, dict[str, Any]]:
        self._watcher.at("", "starting a worker, which imports torch")
        with self.ledger.during("start"):
            return start(
                self._log,
                self._options.device,
                self._options.plugins,
                timing=self._options.timing,
                timeout=START_TIMEOUT,
            )

    def ceilings(self, known: Mapping[str, Any] | None) -> dict[str, Any]:
        """The machine's limits: `known` ones of the same run, or measured now, once."""
        if self._ceilings is None:
            self._ceilings = self._limit(known, anew=True)
        return self._ceilings

    def _limit(self, known: Mapping[str, Any] | None, *, anew: bool) -> dict[str, Any]:
        """Every worker is told them, or measures them, before its first job."""
        self._watcher.at("", "measuring this machine's limits")
        with self.ledger.during("ceilings"):
            return limits(self._worker, known, START_TIMEOUT, anew=anew)

    def close(self) -> None:
        """End the worker; a log that found no run folder goes, too."""
        self._worker.kill()
        if self._log.name.startswith("."):
            self._drop_log()

    def _drop_log(self) -> None:
        """Leave no trace, not even of a folder that was made for nothing."""
        self._log.unlink()
        with suppress(OSError):
            self._log.parent.rmdir()

    def move_log(self, folder: Path) -> None:
        """The run folder is there: keep what the worker prints in it, beside earlier ones."""
        number, log = 1, folder / "worker.log"
        while log.exists():
            number += 1
            log = folder / f"worker-{number}.log"
        self._log = self._worker.log = self._log.replace(log)

    def measure(self, job: Job, context: Context) -> Iterator[list[RunRecord]]:
        """Records of every provider of a job, whatever becomes of the worker meanwhile.

        When it ends, or says what cannot be, the provider that was at work is to blame. When none
        was, a thread that an earlier job left behind may be: the job is tried once more before all
        are blamed.
        """
        if self._process not in (None, job.process):
            self._restart(anew=True)
        self._process = job.process
        family = self._families[job.family]
        without = self._fallen.setdefault(job.id, [])  # in earlier processes, too
        left, tried = list(job.providers), False
        while left:
            self._at = ("", "")
            try:
                for records in self._ask(replace(job, providers=tuple(left)), context, without):
                    left = _without(records, job, left)
                    yield records
                if not left:
                    return
                raise FalseAccountError(f"it was done, without a record of {', '.join(left)}")
            except WorkerEndedError as ended:
                status = Status.timeout if ended.silent else Status.crashed
                culprit, phase = self._at
                reason = f"{phase or 'start'}: {ended}"
                told = {culprit} & {*job.providers} if isinstance(ended, FalseAccountError) else ()
            if culprit or tried:
                blamed = [*dict.fromkeys([*(n for n in left if culprit in ("", n)), *told])]
                without.append(culprit)
                left = [name for name in left if name not in blamed]
                yield [
                    record_of(job, family.provider(name), status, context, reason=reason)
                    for name in blamed
                ]
            tried = tried or not culprit
            self._restart()

    def _ask(self, job: Job, context: Context, without: Sequence[str]) -> Iterator[list[RunRecord]]:
        known = self._options
        options = {"timing": known.timing, "tune": known.tune, "dump": known.dump}
        with self.ledger.during("start"):
            self._worker.send(encode(job, context, without=without, **options))
            for event in self._worker.events(self._options.timeout, "done"):
                match event["event"]:
                    case "at":
                        self._at = (event["provider"], event["phase"])
                        self.ledger.enter(*self._at)
                        self._watcher.at(*self._at)
                    case "records":
                        self.ledger.enter("", HARNESS)
                        yield [RunRecord.from_json(line) for line in event["records"]]
                    case "lost":
                        self._at = (event["provider"], self._at[1])
                        raise WorkerEndedError(event["reason"])

    def _restart(self, *, anew: bool = False) -> None:
        self._worker.kill()
        self._worker, _ = self._start()
        self._limit(self._ceilings, anew=anew)


def _without(records: Sequence[RunRecord], job: Job, left: Sequence[str]) -> list[str]:
    """What is left when these are there. Raises FalseAccountError for one that none waits for."""
    waited = [*left]
    for record in records:
        if record.key not in {(job.family, job.case.id, name, job.process) for name in waited}:
            raise FalseAccountError(f"a record came that none waits for: {' '.join(record.row)}")
        waited.remove(record.provider)
    return waited


def _log_in(folder: Path) -> Path:
    """A file for what a worker prints, until its run has a folder of its own.

    Raises KernelbenchError for a folder that cannot be written: before anything is measured.
    """
    log = folder / f".worker-{os.getpid()}.log"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        log.touch()
    except OSError as error:
        raise KernelbenchError(f"{folder}: cannot be written ({error.strerror})") from None
    return log


def remaining(
    jobs: Sequence[Job], recorded: Sequence[RunRecord], sources: Mapping[str, str]
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
        found = {name: known.get((*row, name, job.process)) for name in names}
        for name, record in found.items():
            if record is not None and record.source != sources[job.family]:
                changed[job.family] = None
                found[name] = None
        missing = [name for name, record in found.items() if record is None]
        if missing:
            again = [n for n, r in found.items() if r is not None and r.status is Status.ok]
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
    with closing(Runner(families, options, watcher, folder)) as runner:
        store = store_for(runner.machine)
        try:
            runner.move_log(store.path)
            watcher.machine(runner.machine)
            sources = sources_of(jobs, families)
            every = in_processes(jobs)
            outcome.left = outcome.total = sum(map(len, every))
            watcher.at("", DERIVING)
            metrics.to_csv(store.records(), store.csv_path)
            noted = set[str]()
            for number in range(len(every)):
                recorded = store.records_apart()
                found = [remaining(some, recorded, sources) for some in every[number:]]
                for name in sorted({name for _, changed in found for name in changed} - noted):
                    watcher.note(f"{name}: its code changed since it was measured; measured anew")
                    noted.add(name)
                left, *later = [some for some, _ in found]
                outcome.left = sum(map(len, (left, *later)))
                if left:
                    known = store.manifest.get("ceilings")
                    store.update_manifest(ceilings=runner.ceilings(known))
                if not _loop(left, later, runner, store, options, watcher, sources, outcome):
                    break
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
            outcome.spent_s = runner.ledger.phases()
            _account(store, outcome.spent_s, watcher)
    return outcome, store


def _safe(store: Store) -> str:
    return f"What was measured is safe: kernelbench run --resume {store.path}"


def _account(store: Store, spent_s: Mapping[str, float], watcher: Watcher) -> None:
    """Add what this session spent to the manifest; a disk without room for it stops nothing."""
    try:
        store.update_manifest(spent_s=added(store.manifest.get("spent_s", {}), spent_s))
    except KernelbenchError as error:
        watcher.note(str(error))


def sources_of(jobs: Sequence[Job], families: Mapping[str, Family[Any]]) -> dict[str, str]:
    """The source hash of every family that the jobs name."""
    return {name: source_hash(families[name]) for name in {job.family for job in jobs}}


def _loop(
    jobs: Sequence[Job],
    later: Sequence[Sequence[Job]],
    runner: Runner,
    store: Store,
    options: Options,
    watcher: Watcher,
    sources: Mapping[str, str],
    outcome: Outcome,
) -> bool:
    """Measure the jobs of one process. later: those of the processes after it. False to stop."""
    providers = sum(len(job.providers) for some in (jobs, *later) for job in some)  # that are left
    total = outcome.left
    for number, job in enumerate(jobs):
        outcome.left = total - number
        if options.fail_fast and outcome.bad:
            return False
        if options.deadline is not None:
            left = options.deadline - time.monotonic()
            if left <= 0:
                return False
            job = _within(job, left / providers)
        providers -= len(job.providers)
        watcher.job(job, outcome.total - outcome.left + 1, outcome.total)
        context = Context(
            run_id=store.run_id,
            gpu=runner.machine["name"],
            gpu_uuid=runner.machine.get("uuid") or "",
            seed=options.seed,
            source=sources[job.family],
        )
        for records in runner.measure(job, context):
            store.append(records)
            metrics.append_csv(records, store.csv_path)
            outcome.bad = outcome.bad or any(record.status.bad for record in records)
            watcher.recorded(records)
    outcome.left = total - len(jobs)
    return True


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
