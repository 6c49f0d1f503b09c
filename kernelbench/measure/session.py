"""The session, the request and the candidates of a job's measurement."""

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from kernelbench.measure.back_to_back import BackToBackClock
from kernelbench.measure.ceilings import Ceilings
from kernelbench.measure.deviation import Deviation
from kernelbench.measure.failure import Failure
from kernelbench.measure.sampling import Batch
from kernelbench.measure.team import Alone, Team
from kernelbench.measure.telemetry import Telemetry
from kernelbench.measure.timer import CudaClock, Timed
from kernelbench.measure.workload import Workload
from kernelbench.spec import Context, Device, Family, Job, Provider, Timing

Tell = Callable[[str, str], None]  # reports progress: provider, phase
Attempt = Callable[[Callable[[], Any], str], Any]  # step, provider: a Failure if it raises


class Clock(Protocol):
    """How a job's providers are timed on this machine."""

    @property
    def name(self) -> str: ...
    @property
    def times(self) -> bool: ...  # whether it measures the time of a call
    @property
    def overhead_ns(self) -> int: ...
    @property
    def quantum_ns(self) -> int: ...

    lead_ns: int

    def batch(self, part: Timed, n: int) -> Batch: ...
    def undo_changes(self) -> str: ...


@dataclass(frozen=True)
class Session:
    """What all jobs of a worker process share."""

    device: Device
    clock: Clock
    ceilings: Ceilings
    telemetry: Telemetry
    profiled: bool = False  # whether a profiler is attached, which slows everything down
    team: Team = field(default_factory=Alone)  # who does its jobs together with this process

    def timing(self, family: Family[Any]) -> "Session":
        """This session with the clock that a family's calls are timed by."""
        if not family.back_to_back or not isinstance(self.clock, CudaClock):
            return self
        return replace(self, clock=BackToBackClock.of(self.clock))

    def timer(self, held: bool) -> str:
        """The `timer` of a time that is read now (see spec.Timing). held: whether the gate held."""
        if self.profiled and self.clock.times:
            return "profiled"
        return self.clock.name if held else "ungated"

    def synchronize(self) -> None:
        """Wait for the GPU, if there is one."""
        if self.device.kind == "cuda":
            torch.cuda.synchronize()

    def release_memory(self, *, collect: bool = True) -> None:
        """Return PyTorch's free memory to the driver.

        The addresses of a call's memory, which change its time by some per cent, then do not depend
        on what was proven before it.
        collect: first collect garbage in reference cycles, which takes 0.1 s.
        """
        if collect:
            gc.collect()
        if self.device.kind == "cuda":
            torch.cuda.empty_cache()


@dataclass(frozen=True)
class Request:
    """A request to measure a job."""

    job: Job
    context: Context
    timing: bool = True
    tune: bool = False
    without: tuple[str, ...] = ()  # providers that ended a worker in this job
    dump: str = ""  # a folder for inputs, answers and oracle; "" for none


class DeviceLostError(Exception):
    """The GPU's context is lost: nothing more can run in this process."""

    def __init__(self, provider: str, reason: str) -> None:
        super().__init__(reason)
        self.provider = provider


@dataclass
class Candidate:
    """A provider that was proven right and can be timed, and the facts about it so far.

    proven: its answer, until it is timed. fault: why it is incorrect after all, or "". failure: how
    it failed after its proof.
    """

    provider: Provider[Any]
    workload: Workload
    facts: dict[str, Any]
    proven: dict[str, torch.Tensor] = field(default_factory=dict)
    deviations: Mapping[str, Deviation] = field(default_factory=dict)
    timing: Timing | None = None
    flags: list[str] = field(default_factory=list)
    fault: str = ""
    failure: Failure | None = None

    @property
    def name(self) -> str:
        return self.provider.name
