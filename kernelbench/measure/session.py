"""What a job's measurement is made of: the session, the request, candidates and failures."""

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from kernelbench.measure.ceilings import Ceilings
from kernelbench.measure.deviation import Deviation
from kernelbench.measure.failure import Failure
from kernelbench.measure.sampling import Batch
from kernelbench.measure.telemetry import Telemetry
from kernelbench.measure.timer import Timed
from kernelbench.measure.workload import Workload
from kernelbench.spec import Context, Device, Job, Provider, Timing

Tell = Callable[[str, str], None]  # provider, phase: what is going on, for whoever watches

Attempt = Callable[[Callable[[], Any], str], Any]  # a step and whose it is: a Failure if it raises


class Clock(Protocol):
    """How a job's providers are timed on this machine."""

    @property
    def name(self) -> str: ...
    @property
    def times(self) -> bool: ...  # whether it reads how long a call takes
    @property
    def overhead_ns(self) -> int: ...
    @property
    def quantum_ns(self) -> int: ...

    lead_ns: int

    def batch(self, part: Timed, n: int) -> Batch: ...
    def disturbed(self) -> str: ...


@dataclass(frozen=True)
class Session:
    """What a worker process knows for all its jobs."""

    device: Device
    clock: Clock
    ceilings: Ceilings
    telemetry: Telemetry
    profiled: bool = False  # a tool looks on, which slows everything down

    def timer(self, held: bool) -> str:
        """What a time read now is called (see spec.Timing)."""
        if self.profiled and self.clock.name == "gated":
            return "profiled"
        return self.clock.name if held else "ungated"

    def synchronize(self) -> None:
        if self.device.kind == "cuda":
            torch.cuda.synchronize()

    def hand_back(self, *, collect: bool = True) -> None:
        """Free memory goes back to the driver: where a call's memory lies, which is worth some per
        cent of its time, is not what was proven before it.

        collect: what only cycles hold is freed first, which takes 0.1 s.
        """
        if collect:
            gc.collect()
        if self.device.kind == "cuda":
            torch.cuda.empty_cache()


@dataclass(frozen=True)
class Request:
    """What is asked about a job."""

    job: Job
    context: Context
    timing: bool = True
    tune: bool = False
    without: tuple[str, ...] = ()  # providers that took a worker down with this job
    dump: str = ""  # a folder to keep inputs, answers and oracle in


class DeviceLostError(Exception):
    """The GPU's context is gone: nothing more can run in this process."""

    def __init__(self, provider: str, reason: str) -> None:
        super().__init__(reason)
        self.provider = provider


@dataclass
class Candidate:
    """A provider that was proven right and can be timed, and the facts about it so far."""

    provider: Provider[Any]
    workload: Workload
    facts: dict[str, Any]
    proven: dict[str, torch.Tensor] = field(default_factory=dict)  # its answer, until it is timed
    deviations: Mapping[str, Deviation] = field(default_factory=dict)
    timing: Timing | None = None
    flags: list[str] = field(default_factory=list)
    wrong: str = ""  # what was found against it meanwhile
    failure: Failure | None = None  # how it fell meanwhile

    @property
    def name(self) -> str:
        return self.provider.name
