"""Jobs one after another by an executor, which is replaced when it falls."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from kernelbench.run.devices import Locks
from kernelbench.run.executor import Executor, Make, WorkerEndedError, events, limits, start
from kernelbench.run.ledger import HARNESS, Ledger
from kernelbench.run.local import LocalWorker
from kernelbench.run.worker import encode
from kernelbench.spec import Context, Family, Job, KernelbenchError, RunRecord, Status, record_of

START_TIMEOUT = 300.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to run; every field is an option of `kernelbench run`, or of `check`."""

    device: str = "auto"
    gpus: str = ""  # several, or certain ones: `0,2,5` or `all`
    plugins: tuple[str, ...] = ()
    seed: int = 0
    timing: bool = True
    tune: bool = False
    timeout: float = 300.0  # seconds without a sign of progress
    deadline: float | None = None  # on time.monotonic's clock
    fail_fast: bool = False
    ahead: int = 0  # processes that compile for later jobs
    dump: str = ""  # a folder to keep inputs, answers and oracle in
    executor: Make = LocalWorker


class Watcher(Protocol):
    """Whoever shows what is going on."""

    def of(self, gpu: str) -> "Watcher":
        """Whoever shows what goes on on one of several GPUs, perhaps in a thread of its own."""

    def machine(self, machine: Mapping[str, Any]) -> None: ...
    def note(self, text: str) -> None: ...
    def job(self, job: Job, number: int, total: int) -> None: ...
    def at(self, provider: str, phase: str) -> None: ...
    def recorded(self, records: Sequence[RunRecord]) -> None: ...


class FalseAccountError(WorkerEndedError):
    """What a worker says of a job cannot be: a provider wrote into its pipe."""


class Runner:
    """Measures jobs one after another in a worker that is replaced when it falls.

    gpus: as CUDA_VISIBLE_DEVICES names them; the first is its own, and jobs of several ranks have
    the next ones, too. Without any it has those that this process sees. locks: on these.
    machine: what its worker says of itself. closed: no more is measured.
    ledger: what the time went to since it was made.
    """

    def __init__(
        self,
        families: Mapping[str, Family[Any]],
        options: Options,
        watcher: Watcher,
        folder: Path,
        gpus: tuple[str, ...] = (),
        locks: Locks | None = None,
    ) -> None:
        self._families, self._options, self.watcher = families, options, watcher
        self._gpus, self._locks = gpus, locks
        self.ledger = Ledger()
        self._fallen: dict[str, list[str]] = {}  # who took a worker down, by job
        self._process: int | None = None  # of the run's, the one that the worker is
        self._world = 1  # how many ranks the worker is
        self.closed = self._resting = False
        self._log = _log_in(folder, gpus[:1])
        self._ceilings: dict[str, Any] | None = None
        try:
            self._worker, self.machine = self._start()
        except (KernelbenchError, KeyboardInterrupt):
            self._drop_log()
            raise

    def _start(self) -> tuple[Executor, dict[str, Any]]:
        self.watcher.at("", "starting a worker, which imports torch")
        with self.ledger.during("start"):
            worker, machine = start(
                self._make(),
                self._log,
                self._options.device,
                self._options.plugins,
                timing=self._options.timing,
                timeout=START_TIMEOUT,
            )
        if self.closed:  # meanwhile, by another thread
            worker.kill()
            raise KernelbenchError("the run is over")
        return worker, machine

    def _make(self) -> Make:
        if self._world > 1:
            several = ",".join(self._gpus[: self._world])
            return partial(LocalWorker, world=self._world, visible=several)
        make = self._options.executor
        return partial(make, visible=self._gpus[0]) if self._gpus else make

    @property
    def uuid(self) -> str:
        return str(self.machine.get("uuid") or "")

    def hold(self, gpus: int = 1) -> None:
        """From now on nobody else times on as many of its GPUs, its own first.

        Raises KernelbenchError where somebody does.
        """
        if self._locks is not None:
            uuids = self.machine.get("uuids") or [self.uuid][: bool(self.uuid)]
            self._locks.hold(uuids[:gpus])

    def know(self, uuids: Sequence[str]) -> None:
        """Its own GPU and others, which jobs of several ranks have, are those of a pool."""
        self._gpus = tuple(uuids)
        self.machine = {**self.machine, "uuids": [*uuids], "gpus": len(uuids)}

    def ceilings(self, known: Mapping[str, Any] | None) -> dict[str, Any]:
        """The machine's limits: `known` ones of the same run, or measured now, once."""
        if self._ceilings is None:
            self._ceilings = self._limit(known, anew=True)
        return self._ceilings

    def _limit(self, known: Mapping[str, Any] | None, *, anew: bool) -> dict[str, Any]:
        """Every worker is told them, or measures them, before its first job."""
        self.watcher.at("", "measuring this machine's limits")
        with self.ledger.during("ceilings"):
            return limits(self._worker, known, START_TIMEOUT, anew=anew)

    def close(self) -> None:
        """End the worker, whatever a job still asks of it; a log that found no run folder goes."""
        self.closed = True
        self._worker.kill()
        if self._log.name.startswith("."):
            self._drop_log()

    def rest(self) -> None:
        """End the worker until there is a job again: others need its GPU."""
        self._worker.kill()
        self._resting = True

    def _drop_log(self) -> None:
        """Leave no trace, not even of a folder that was made for nothing."""
        self._log.unlink(missing_ok=True)
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
        if why := self._lacks(job):
            yield self._without_result(job, job.providers, Status.skipped, context, why)
            return
        self._be_ready(job)
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
                if self.closed:
                    return
                status = Status.timeout if ended.silent else Status.crashed
                culprit, phase = self._at
                reason = f"{phase or 'start'}: {ended}"
                liars = {culprit} & {*job.providers} if isinstance(ended, FalseAccountError) else ()
            if culprit or tried:
                blamed = [*dict.fromkeys([*(n for n in left if culprit in ("", n)), *liars])]
                without.append(culprit)
                left = [name for name in left if name not in blamed]
                yield self._without_result(job, blamed, status, context, reason)
            tried = tried or not culprit
            self._restart()

    def _without_result(
        self, job: Job, names: Sequence[str], status: Status, context: Context, reason: str
    ) -> list[RunRecord]:
        family = self._families[job.family]
        return [
            record_of(job, family.provider(name), status, context, reason=reason) for name in names
        ]

    def _be_ready(self, job: Job) -> None:
        """A worker of the run's process that a job belongs to, of as many ranks as it needs."""
        anew = self._process not in (None, job.process)
        if anew or self._resting or self._world != job.world:
            self.hold(job.world)
            self._world = job.world
            self._restart(anew=anew)
        self._process = job.process

    def _lacks(self, job: Job) -> str:
        """Why this machine has not the GPUs that a job needs, or "". A CPU has room for any."""
        if job.world > 1 and self._options.executor is not LocalWorker:
            return f"{job.world} ranks do it together, and this executor is one process"
        gpus = self.machine.get("gpus", 1)
        if self.machine["kind"] == "cpu" or job.world <= gpus:
            return ""
        return f"needs {job.world} GPUs, this machine has {gpus}"

    def _ask(self, job: Job, context: Context, without: Sequence[str]) -> Iterator[list[RunRecord]]:
        known = self._options
        options = {"timing": known.timing, "tune": known.tune, "dump": known.dump}
        with self.ledger.during("start"):
            self._worker.send(encode(job, context, without=without, **options))
            for event in events(self._worker, self._options.timeout, "done"):
                match event["event"]:
                    case "at":
                        self._at = (event["provider"], event["phase"])
                        self.ledger.enter(*self._at)
                        self.watcher.at(*self._at)
                    case "records":
                        self.ledger.enter("", HARNESS)
                        yield [RunRecord.from_json(line) for line in event["records"]]
                    case "lost":
                        self._at = (event["provider"] or self._at[0], self._at[1])
                        raise WorkerEndedError(event["reason"])

    def _restart(self, *, anew: bool = False) -> None:
        self._worker.kill()
        self._worker, _ = self._start()
        self._resting = False
        self._limit(self._ceilings, anew=anew)


def _without(records: Sequence[RunRecord], job: Job, left: Sequence[str]) -> list[str]:
    """What is left when these are there. Raises FalseAccountError for one that none waits for."""
    waited = [*left]
    for record in records:
        if record.key not in {(job.family, job.case.id, name, job.process) for name in waited}:
            raise FalseAccountError(f"a record came that none waits for: {' '.join(record.row)}")
        waited.remove(record.provider)
    return waited


def _log_in(folder: Path, of: Sequence[str]) -> Path:
    """A file for what the worker of a GPU prints, until its run has a folder of its own.

    Raises KernelbenchError for a folder that cannot be written: before anything is measured.
    """
    log = folder / f".{'-'.join(('worker', str(os.getpid()), *of))}.log"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        log.touch()
    except OSError as error:
        raise KernelbenchError(f"{folder}: cannot be written ({error.strerror})") from None
    return log
