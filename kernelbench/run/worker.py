"""The child process that owns the GPU, as `local` starts it.

Requests and events are JSON, one a line, over two pipes whose file descriptors are the
arguments; what libraries print goes to the log that the parent made of stdout and stderr. When
the parent is gone, so is the worker.

Events: `hello` (the machine), `ceilings` (its limits), then per job `at` (who is at work, on
what), `records` and `done`; `refused` and `lost` are the last that is heard of a worker.
"""

import contextlib
import faulthandler
import gc
import importlib
import json
import os
import queue
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from kernelbench.spec import Context, Job, KernelbenchError


def life(module: str, function: str) -> str:
    """Python for the whole life of a process: a function of this room. It looks for modules where
    its parent does, and nowhere else."""
    return (
        "import json, sys; sys.path[:] = json.loads(sys.argv.pop()); "
        f"from kernelbench.run.{module} import {function}; {function}()"
    )


class Pipe:
    """Requests in, events out."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._requests: queue.Queue[dict[str, Any]] = queue.Queue()
        self._out = os.fdopen(write_fd, "w", buffering=1, encoding="utf-8")
        threading.Thread(target=self._listen, args=(read_fd,), daemon=True).start()

    def _listen(self, read_fd: int) -> None:
        with os.fdopen(read_fd, encoding="utf-8") as requests:
            for line in requests:
                self._requests.put(json.loads(line))
        os._exit(0)  # the parent is gone: nobody is left to measure for

    def receive(self) -> dict[str, Any]:
        return self._requests.get()

    def send(self, event: str, **facts: Any) -> None:
        self._out.write(json.dumps({"event": event, **facts}) + "\n")


def encode(job: Job, context: Context, **options: Any) -> dict[str, Any]:
    """A request to measure a job. options: the other fields of `measure.job.Request`."""
    return {"job": job.as_json(), "context": asdict(context), "options": options}


def decode(request: dict[str, Any], families: Mapping[str, Any]) -> Any:
    """The measure.job.Request that `encode` made."""
    from kernelbench.measure.job import Request

    facts, options = request["job"], request["options"]
    job = Job.from_json(facts, families[facts["family"]].case)
    without = tuple(options.pop("without"))
    return Request(job, Context(**request["context"]), without=without, **options)


def session_of(
    kind: str, asked: Mapping[str, Any], timing: bool, team: Any = None
) -> tuple[Any, Any]:
    """The session of this process, and its phases, for a tool that looks on. team: who does its
    jobs with it.

    The clock and limits of this machine; the limits are measured once a run, what its clock adds
    in each process of it."""
    from kernelbench.measure import environment
    from kernelbench.measure.ceilings import Ceilings, measure, recalibrated
    from kernelbench.measure.job import Session
    from kernelbench.measure.team import Alone
    from kernelbench.measure.telemetry import Telemetry
    from kernelbench.measure.timer import CudaClock, HostClock
    from kernelbench.profile.phases import watch

    team = team or Alone()
    phases = watch()
    device = environment.device(kind)
    if kind == "cpu":
        session = Session(device, HostClock(phases), Ceilings(), Telemetry.open(None), team=team)
        return session, phases
    clock, ceilings = CudaClock(device, phases), asked["ceilings"]
    if ceilings is not None and "overhead" in ceilings:
        known = Ceilings.from_json(ceilings)
        clock.overhead_ns = known.overhead.ns
        known = recalibrated(clock, known) if timing and asked["anew"] else known
    else:
        known = measure(clock, device) if timing else Ceilings()
    clock.team = team  # its own readings above are of this GPU alone
    telemetry = Telemetry.open(environment.gpu_uuid())
    return Session(device, clock, known, telemetry, phases.attached, team), phases


def _freeze_imports() -> None:
    """Spare every job, which begins by collecting garbage, a walk over all that torch imports."""
    importlib.import_module("torch._dynamo")  # else the first job does
    gc.collect()
    gc.freeze()


def work(pipe: Any, join: Callable[[str], Any] = lambda kind: None) -> int:
    """Do what the pipe asks for. join: the team of a process that does jobs with others, on a kind
    of device."""
    from kernelbench import families
    from kernelbench.measure import environment
    from kernelbench.measure.job import DeviceLostError, run_job

    start = pipe.receive()
    kind = environment.use(start["device"])
    known = families.load(tuple(start["plugins"]))
    _freeze_imports()
    pipe.send("hello", machine=environment.describe(kind))
    session, phases = session_of(kind, pipe.receive(), start["timing"], join(kind))
    pipe.send("ceilings", ceilings=session.ceilings.as_json())
    while True:
        request = decode(pipe.receive(), known)
        family = known[request.job.family]

        def tell(provider: str, phase: str) -> None:
            phases.enter(phase)
            pipe.send("at", provider=provider, phase=phase)

        try:
            with phases.job(request.job):
                for records in run_job(family, request, session, tell):
                    pipe.send("records", records=[record.to_json() for record in records])
        except DeviceLostError as lost:
            pipe.send("lost", provider=lost.provider, reason=str(lost))
            return 1
        pipe.send("done")


def serve() -> None:
    """The whole life of a worker; argv holds the two file descriptors."""
    pipe = Pipe(int(sys.argv[1]), int(sys.argv[2]))
    os._exit(served(pipe, lambda: work(pipe)))  # a CUDA context in doubt is not worth more


def served(pipe: Any, doing: Callable[[], int]) -> int:
    """Do it, and say to the pipe what is refused; the exit code."""
    faulthandler.enable()
    try:
        code = doing()
    except KernelbenchError as error:
        pipe.send("refused", kind=type(error).__name__, reason=str(error))
        code = 2
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    return code
