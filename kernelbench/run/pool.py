"""The runners of a run, one a GPU, and who of them does which job."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from kernelbench.run import devices
from kernelbench.run.ahead import Ahead
from kernelbench.run.devices import Locks
from kernelbench.run.ledger import added
from kernelbench.run.runner import Options, Runner, Watcher
from kernelbench.spec import Family, Job, NoGPUError, UsageError

GLANCE_S = 0.02
Measure = Callable[[Job, Runner], bool]  # False: no more jobs are begun
Row = tuple[str, str]  # a job's family and case


class Turns:
    """Jobs to be handed out, in order: to anybody, or to the GPU that a job is bound to.

    bound: UUIDs by row.
    """

    def __init__(self, jobs: Iterable[Job], bound: Mapping[Row, str]) -> None:
        self._lock = threading.Lock()
        self._free = deque[Job]()
        self._own: dict[str, deque[Job]] = {}
        for job in jobs:
            uuid = bound.get((job.family, job.case.id), "")
            (self._own.setdefault(uuid, deque()) if uuid else self._free).append(job)

    def next(self, uuid: str) -> Job | None:
        """Of a GPU that is free now; None when there is none for it."""
        with self._lock:
            for jobs in (self._own.get(uuid), self._free):
                if jobs:
                    return jobs.popleft()
        return None


class Pool:
    """A runner for each GPU that `options.gpus` names, or one for what this process sees.

    machine: what the first says, which all are like; with more than one, their UUIDs in `used`.
    ahead: who compiles for it; it is ended with the runners.
    Raises UsageError for GPUs that there are not, and KernelbenchError for those in use.
    """

    def __init__(
        self,
        families: Mapping[str, Family[Any]],
        options: Options,
        watcher: Watcher,
        folder: Path,
    ) -> None:
        self._locks = Locks(shared=not options.timing, note=watcher.note)
        self.runners: list[Runner] = []
        self.ahead: Ahead | None = None
        self._make: Callable[..., Runner] = lambda watcher, *gpus: Runner(
            families, options, watcher, folder, gpus, self._locks
        )
        with ExitStack() as unless_started:
            unless_started.callback(self.close)
            self._start(options.gpus, watcher)
            if options.ahead and self.machine["kind"] == "cpu":
                raise UsageError("--ahead compiles for a GPU, and here is none")
            unless_started.pop_all()

    def _start(self, asked: str, watcher: Watcher) -> None:
        names: Sequence[str] = devices.named(asked) if asked else ()
        every = asked == devices.ALL
        several = every or len(names) > 1
        first = self._runner(watcher.of(_label(names, 0)) if several else watcher, *names[:1])
        names = first.machine.get("uuids") or () if every else names
        if len(names) > 1:
            self._spread(names, watcher)
        self.uuids = [runner.uuid for runner in self.runners if runner.uuid]
        if names:
            for number, runner in enumerate(self.runners):
                runner.know([*self.uuids[number:], *self.uuids[:number]])
        for runner in self.runners:
            runner.hold()
        self.machine = {**first.machine}
        if len(self.uuids) > 1:
            self.machine["used"] = self.uuids

    def _runner(self, watcher: Watcher, *gpus: str) -> Runner:
        try:
            runner = self._make(watcher, *gpus)
        except NoGPUError as error:
            raise (UsageError(f"--gpus: no GPU {gpus[0]}: {error}") if gpus else error) from None
        self.runners.append(runner)
        return runner

    @property
    def first(self) -> Runner:
        """The one that does jobs of several GPUs."""
        return self.runners[0]

    def _spread(self, names: Sequence[str], watcher: Watcher) -> None:
        with ThreadPoolExecutor(len(names) - 1) as threads:
            others = threads.map(
                lambda number: self._runner(watcher.of(_label(names, number)), names[number]),
                range(1, len(names)),
            )
            self.runners = [self.runners[0], *others]
        models = {str(runner.machine["name"]) for runner in self.runners}
        if len(models) > 1:
            raise UsageError(
                f"--gpus: a run is of one model; these are {', '.join(sorted(models))}"
            )
        if len({runner.uuid for runner in self.runners}) != len(self.runners):
            raise UsageError("--gpus: two of these are the same GPU")

    def share(self, turns: Turns, measure: Measure) -> bool:
        """Jobs of one GPU, by whoever is free. False where `measure` said so.

        Raises what went wrong on one of them when the others are done.
        """
        if len(self.runners) == 1:
            return _serve(self.runners[0], turns, measure)
        with ThreadPoolExecutor(len(self.runners)) as threads, ExitStack() as if_interrupted:
            if_interrupted.callback(self.close)  # which ends what the threads wait for
            served = [threads.submit(_serve, each, turns, measure) for each in self.runners]
            while not all(each.done() for each in served):
                time.sleep(GLANCE_S)  # an exception may come anywhere here, in no lock of threads
            if_interrupted.pop_all()
        results = [each.result() for each in served]  # or the first error
        return all(results)

    def alone(self, jobs: Iterable[Job], measure: Measure) -> bool:
        """Jobs of several GPUs, while nothing else runs on any. False where `measure` said so."""
        for job in jobs:
            for runner in self.runners[1:]:
                runner.rest()
            if not measure(job, self.first):
                return False
        return True

    def ceilings(self, known: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """The limits of each GPU by its UUID: `known` ones of the same run, or measured now."""
        with ThreadPoolExecutor(len(self.runners)) as threads:
            found = threads.map(lambda r: r.ceilings(known.get(r.uuid)), self.runners)
            return {runner.uuid: limits for runner, limits in zip(self.runners, found, strict=True)}

    def spent(self) -> dict[str, float]:
        """Seconds by phase since the pool was made; of several runners the mean."""
        total: dict[str, float] = {}
        for runner in self.runners:
            total = added(total, runner.ledger.phases())
        return {phase: seconds / len(self.runners) for phase, seconds in total.items()}

    def close(self) -> None:
        if self.ahead is not None:
            self.ahead.close()
        for runner in self.runners:
            runner.close()
        self._locks.close()


def _label(names: Sequence[str], number: int) -> str:
    """What a GPU is called on the screen: its number among those that are seen, if known."""
    name = names[number] if names else ""
    return name if name.isdigit() else str(number)


def _serve(runner: Runner, turns: Turns, measure: Measure) -> bool:
    while (job := turns.next(runner.uuid)) is not None:
        if not measure(job, runner):
            return False
    return True
