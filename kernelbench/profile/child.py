"""The profiled process: builds every provider of one job, warms it up, and calls it a few times.

argv: the file of the request, a JSON object (see `session.Profiler`). The results go as JSON lines
to the file that the request names `answers`: first `{"at": PROVIDER}`, which names the culprit of a
crash, then the provider's facts; `{"done": true}` at the end. Nothing is timed, and no output is
checked: runs do that, and no run's record comes from here.
"""

import gc
import json
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from kernelbench import families
from kernelbench.measure import environment, tune
from kernelbench.measure.failure import failure_of
from kernelbench.measure.flush import ColdL2
from kernelbench.measure.inputs import CaseInputs
from kernelbench.measure.parts import traffic_of
from kernelbench.measure.probes import set_precision
from kernelbench.measure.workload import Workload, why_not
from kernelbench.profile.phases import Phases, call_name, watch
from kernelbench.spec import Context, Device, Family, Job, Provider, Tool

WARMUP = 3


class Answers:
    """A file of facts, one JSON object a line, each written at once."""

    def __init__(self, path: str) -> None:
        self._file = Path(path).open("a", encoding="utf-8")  # noqa: SIM115 (as long as the process)

    def write(self, **facts: Any) -> None:
        """Append one line."""
        self._file.write(json.dumps(facts) + "\n")
        self._file.flush()


def config_of(provider: Provider[Any], job: Job, device: Device, context: Context) -> Any:
    """The config that a run would take; None where there is nothing to choose."""
    if provider.configs is None:
        return None
    configs = list(provider.configs(job.case, device))
    return tune.choose(configs, tune.identity(device, context, job, provider))[0]


def built(
    family: Family[Any], job: Job, provider: Provider[Any], inputs: CaseInputs, config: Any
) -> Workload:
    """A provider, compiled and ready to be called."""
    workload = Workload(family, job.case, provider, inputs, config)
    set_precision(job.case.dtype)  # what `build` imported may have meddled with it
    workload.ready()
    return workload


class Child:
    """Calls the providers of one job under one tool."""

    def __init__(self, request: Mapping[str, Any], kind: str, family: Family[Any]) -> None:
        self.request, self.family = request, family
        self.job = Job.from_json(request["job"], family.case)
        self.context = Context(**request["context"])
        self.tool = Tool(request["tool"])
        self.device: Device = environment.device(kind)
        self.answers = Answers(request["answers"])
        # NVTX ranges for nsys and ncu; torch's profiler has its own ranges.
        self.phases = Phases(None) if self.tool is Tool.torch else watch(always=True)
        self._flush = ColdL2(self.device) if kind == "cuda" and self.tool is Tool.nsys else None

    def run(self) -> None:
        """Build and warm up all providers, then call them while the tool captures."""
        self.answers.write(at="")
        with self.phases.job(self.job):
            workloads = list(self._workloads())
            with self._captured():
                for provider, workload in workloads:
                    self._attempt(provider, lambda w=workload, p=provider: self._call(p, w))
        self.answers.write(done=True)

    def _workloads(self) -> Iterator[tuple[Provider[Any], Workload]]:
        """The providers that can run here, built and warmed up."""
        self.phases.enter("setup")
        inputs = CaseInputs(self.family, self.job.case, self.device.kind, self.context.seed)
        for name in self.job.providers:
            provider = self.family.provider(name)
            workload = self._attempt(provider, lambda p=provider: self._build(p, inputs))
            if workload is not None:
                yield provider, workload

    def _build(self, provider: Provider[Any], inputs: CaseInputs) -> Workload | None:
        reason = why_not(provider, self.job.case, self.device)
        if reason is not None:
            self.answers.write(provider=provider.name, status="skipped", reason=reason)
            return None
        self.phases.enter("compile")
        config = config_of(provider, self.job, self.device, self.context)
        workload = built(self.family, self.job, provider, inputs, config)
        self.phases.enter("warmup")
        with workload.grad_mode():
            for _ in range(WARMUP):
                workload.restore()
                workload.call()
        self._synchronize()
        self.answers.write(provider=provider.name, **self._facts(provider, workload, config))
        return workload

    def _facts(self, provider: Provider[Any], workload: Workload, config: Any) -> dict[str, Any]:
        traffic = traffic_of(provider, self.job.case)
        return {
            "config": asdict(config) if config is not None else None,
            "model_read_bytes": sum(row.read for row in traffic) if traffic else None,
            "model_write_bytes": sum(row.write for row in traffic) if traffic else None,
            "largest_bytes": max(t.numel() * t.element_size() for t in workload.args.values()),
            "l2_bytes": self.device.l2_bytes or None,
        }

    @contextmanager
    def _captured(self) -> Iterator[None]:
        """Inside, nsys captures; ncu selects kernels by their ranges."""
        started = self.device.kind == "cuda" and self.tool is Tool.nsys
        if started:
            torch.cuda.cudart().cudaProfilerStart()
        try:
            yield
        finally:
            self._synchronize()
            if started:
                torch.cuda.cudart().cudaProfilerStop()

    def _call(self, provider: Provider[Any], workload: Workload) -> bool:
        self.phases.enter("measure")
        if self.tool is Tool.torch:
            self._trace(provider, workload)
            return True
        with workload.grad_mode():
            for _ in range(self.request["calls"]):
                self.phases.open("flush")
                workload.restore()
                if self._flush is not None:
                    self._flush()
                self.phases.close()
                self.phases.call(provider.name)
                workload.call()
                self.phases.close()
        self._synchronize()
        self.answers.write(provider=provider.name, status="ok", calls=self.request["calls"])
        return True

    def _trace(self, provider: Provider[Any], workload: Workload) -> None:
        from kernelbench.profile import torch_trace

        def call() -> Any:
            workload.restore()
            return workload.call()

        with workload.grad_mode():
            kernels, files = torch_trace.trace(
                call,
                self.request["calls"],
                Path(f"{self.request['stem']}.{provider.name}"),
                name=call_name(self.job.family, provider.name, self.job.case),
                cuda=self.device.kind == "cuda",
                shapes=self.request["shapes"],
                stacks=self.request["stacks"],
            )
        self.answers.write(
            provider=provider.name,
            status="ok",
            calls=self.request["calls"],
            kernels=[asdict(kernel) for kernel in kernels],
            files=[str(file) for file in files],
        )

    def _attempt(self, provider: Provider[Any], step: Any) -> Any:
        """What a step returns; None if it fails, which is then written."""
        self.answers.write(at=provider.name)
        try:
            return step()
        except Exception as error:  # noqa: BLE001
            traceback.print_exc()
            failure = failure_of(error, provider.build)
        gc.collect()
        self.answers.write(provider=provider.name, status=failure.status, reason=failure.reason)
        return None

    def _synchronize(self) -> None:
        if self.device.kind == "cuda":
            torch.cuda.synchronize()


def serve(path: str) -> None:
    """Run a profiled process from start to end. path: of its request."""
    request = json.loads(Path(path).read_text(encoding="utf-8"))
    kind = environment.use(request["device"])
    known = families.load(tuple(request["plugins"]))
    Child(request, kind, known[request["job"]["family"]]).run()
    sys.stdout.flush()
