"""Compiles what later jobs will launch while a GPU times earlier ones: into Triton's cache, in
processes of low priority that see no GPU.

These are the Triton and Gluon kernels of providers that launch nothing else (`inspect.ours`), from
calls on tensors without memory. What torch.compile, CuTe DSL and other compilers make is left to
the worker, and so are kernels whose choice depends on values.
"""

import os
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kernelbench.run.executor import Executor, Make, WorkerEndedError, events
from kernelbench.run.local import LocalWorker
from kernelbench.run.worker import Pipe, life, served
from kernelbench.spec import Job, KernelbenchError

START = life("ahead", "serve")
LONGEST_S = 600.0  # of a start, and of a kernel
NICE = 10


class Compiler(LocalWorker):
    """A process that compiles."""

    def _life(self, *pipes: str) -> list[str]:
        return [START, *pipes]


@dataclass
class Count:
    """Kernels that were compiled ahead, found in the cache, or did not compile, and what that took
    of the CPU, imports included."""

    compiled: int = 0
    found: int = 0
    failed: int = 0
    cpu_s: float = 0.0

    def add(self, facts: Mapping[str, Any]) -> None:
        for name in asdict(self):
            setattr(self, name, getattr(self, name) + facts.get(name, 0))

    def __str__(self) -> str:
        wrong = f", {self.failed} did not compile (ahead.log)" if self.failed else ""
        found = f", {self.found} were there" if self.found else ""
        return f"compiled ahead: {self.compiled} kernels in {self.cpu_s:.0f} s of CPU{found}{wrong}"


class Ahead:
    """Processes that compile for the GPU of a `machine`, each the first job that nobody has begun.

    sources: of families, by which stored configs are found. search: for every config of a provider.
    Which jobs are alike, and what was compiled before, Triton's cache knows.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        machine: Mapping[str, Any],
        plugins: tuple[str, ...],
        sources: Mapping[str, str],
        processes: int,
        log: Path,
        *,
        search: bool = False,
        make: Make = Compiler,
    ) -> None:
        self.count = Count()
        self._begin = {"machine": dict(machine), "plugins": plugins, "search": search}
        self._sources, self._log, self._make = sources, log, make
        self._lock, self._closed = threading.Lock(), False
        self._left: dict[str, Job] = {}
        for job in jobs:
            if job.world == 1:
                self._left.setdefault(job.id, job)
        self._compilers: list[Executor] = []
        self._threads = [threading.Thread(target=self._serve) for _ in range(processes)]
        for thread in self._threads:
            thread.daemon = True
            thread.start()

    def begun(self, job: Job) -> None:
        """A worker is at it: it is not started any more."""
        with self._lock:
            self._left.pop(job.id, None)

    def close(self) -> None:
        """End all processes, whatever they do. What they wrote stays in the cache."""
        with self._lock:
            self._closed = True
            self._left.clear()
        for compiler in self._compilers:
            compiler.kill()
        for thread in self._threads:
            thread.join()

    def _serve(self) -> None:
        while (compiler := self._start()) is not None and self._through(compiler):
            pass

    def _start(self) -> Executor | None:
        with self._lock:
            if not self._left:
                return None
            self._compilers.append(self._make(self._log))
            return self._compilers[-1]

    def _next(self) -> Job | None:
        with self._lock:
            return self._left.pop(next(iter(self._left))) if self._left else None

    def _through(self, compiler: Executor) -> bool:
        """Jobs until there are none. True where it fell over one, and another is to go on."""
        ready = False
        try:
            self._ask(compiler, self._begin)
            self._add(compiler.receive(LONGEST_S))
            ready = True
            while (job := self._next()) is not None:
                request = {"job": job.as_json(), "source": self._sources[job.family]}
                self._ask(compiler, request)
                for event in events(compiler, LONGEST_S, "done"):
                    self._add(event)
        except (WorkerEndedError, KernelbenchError) as ended:
            self._fell(ended)
            return ready
        finally:
            compiler.kill()
        return False

    def _ask(self, compiler: Executor, request: Mapping[str, Any]) -> None:
        with self._lock:
            if self._closed:
                raise WorkerEndedError("the run is over")
            compiler.send(request)

    def _add(self, facts: Mapping[str, Any]) -> None:
        with self._lock:
            self.count.add(facts)

    def _fell(self, ended: Exception) -> None:
        with self._lock:
            if self._closed:
                return
            self.count.failed += 1
            with self._log.open("a", encoding="utf-8") as log:
                print(f"a process that compiles ahead: {ended}", file=log)


def serve() -> None:
    """The whole life of a process that compiles; argv holds the two file descriptors."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ.pop("TRITON_INTERPRET", None)
    os.nice(NICE)
    pipe = Pipe(int(sys.argv[1]), int(sys.argv[2]))
    os._exit(served(pipe, lambda: work(pipe)))


def work(pipe: Any) -> int:
    """Compile what the pipe asks for. What does not compile is printed."""
    from kernelbench import families
    from kernelbench.profile.inspect.cached import Compiling

    begin, told = pipe.receive(), 0.0
    known = families.load(tuple(begin["plugins"]))
    compiling = Compiling(begin["machine"], begin["search"])

    def tell(event: str, **facts: Any) -> None:
        nonlocal told
        spent = sum(os.times()[:4])  # of this process and of those that it waited for
        pipe.send(event, cpu_s=spent - told, **facts)
        told = spent

    tell("hello")
    while True:
        request = pipe.receive()
        family = known[request["job"]["family"]]
        job = Job.from_json(request["job"], family.case)
        for word, why in compiling.job(family, job, request["source"]):
            if why:
                print(f"{job.id} {why}", flush=True)
            tell("kernel", **{word: 1})
        tell("done")
