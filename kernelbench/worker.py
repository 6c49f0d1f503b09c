"""The child process that owns the GPU: `python -m kernelbench.worker IN OUT`.

Requests and events are JSON, one a line, over two pipes whose file descriptors are the
arguments; what libraries print goes to the log that the parent made of stdout and stderr. When
the parent is gone, so is the worker.
"""

import contextlib
import faulthandler
import json
import os
import queue
import sys
import threading
from dataclasses import asdict
from typing import Any

from kernelbench.spec import Context, Job, KernelbenchError, Measure


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
    """A request to measure a job."""
    return {
        "job": {
            "family": job.family,
            "axes": job.case.as_axes(),
            "providers": job.providers,
            "label": job.label,
            "measure": asdict(job.measure),
        },
        "context": asdict(context),
        **options,
    }


def _decode(request: dict[str, Any], families: dict[str, Any]) -> Any:
    from kernelbench.measure.job import Request

    facts = request["job"]
    measure = {**facts["measure"], "timers": tuple(facts["measure"]["timers"])}
    job = Job(
        family=facts["family"],
        case=families[facts["family"]].case.from_axes(facts["axes"]),
        providers=tuple(facts["providers"]),
        label=facts["label"],
        measure=Measure(**measure),
    )
    context = Context(**request["context"])
    return Request(job, context, timing=request["timing"], tune=request["tune"])


def _session(start: dict[str, Any], kind: str) -> Any:
    """The clock and ceilings of this machine; ceilings are measured once a run."""
    from kernelbench.measure import ceilings, environment
    from kernelbench.measure.job import Session
    from kernelbench.measure.telemetry import Telemetry
    from kernelbench.measure.timer import CudaClock, HostClock

    device = environment.device(kind)
    if kind == "cpu":
        return Session(device, HostClock(), ceilings.Ceilings(), Telemetry.open(None))
    import torch

    telemetry = Telemetry.open(f"GPU-{torch.cuda.get_device_properties(0).uuid}")
    clock = CudaClock(device)
    if start["ceilings"]:
        known = ceilings.Ceilings.from_json(start["ceilings"])
        clock.overhead_ns = known.overhead_ns
    else:
        known = ceilings.measure(clock, device) if start["timing"] else ceilings.Ceilings()
    return Session(device, clock, known, telemetry)


def _work(pipe: Pipe) -> int:
    from kernelbench import families
    from kernelbench.measure import environment
    from kernelbench.measure.job import DeviceLostError, JobRun

    start = pipe.receive()
    kind = environment.use(start["device"])
    known = families.load(tuple(start["plugins"]))
    session = _session(start, kind)
    pipe.send("ready", machine=environment.describe(kind), ceilings=session.ceilings.as_json())
    while True:
        request = _decode(pipe.receive(), known)
        run = JobRun(
            known[request.job.family],
            request,
            session,
            lambda provider, phase: pipe.send("at", provider=provider, phase=phase),
        )
        try:
            for records in run.run():
                pipe.send("records", records=[record.to_json() for record in records])
        except DeviceLostError as lost:
            pipe.send("lost", provider=lost.provider, reason=str(lost))
            return 1
        pipe.send("done")


def main() -> int:
    faulthandler.enable()
    pipe = Pipe(int(sys.argv[1]), int(sys.argv[2]))
    try:
        return _work(pipe)
    except KernelbenchError as error:
        pipe.send("refused", reason=str(error))
        return 2


if __name__ == "__main__":
    code = main()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(code)  # a CUDA context in doubt is not worth an orderly end
