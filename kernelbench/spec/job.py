"""A job: the unit that is isolated, timed out, retried and resumed; and how it is measured."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from kernelbench.spec.case import Case
from kernelbench.spec.errors import UsageError

MOST_PROCESSES = 100


@dataclass(frozen=True, kw_only=True)
class Measure:
    """When to stop sampling, and which clocks to read besides the gated events.

    Sampling of a provider ends with at least `min_samples` and a 95 % interval of the median
    within ± `interval_pct` %, or when more samples no longer narrow it, or at `max_samples`, or
    after `max_seconds` of wall time per provider, without what leads its blocks on a card that its
    limits slow (measure.throttling).

    processes: how many fresh processes, one after another, time the suite. What a process keeps
    for its life (where its memory lies, its launch cost) is then part of the interval.
    """

    min_samples: int = 10
    max_samples: int = 512
    interval_pct: float = 0.3
    max_seconds: float = 2.0
    block: int = 8  # samples of one provider between two of another; see measure.flush.ROUND
    interleave: bool = True
    timers: tuple[str, ...] = ("kernel", "host", "graph")  # besides the gated events
    processes: int = 1

    def __post_init__(self) -> None:
        if not 2 <= self.min_samples <= self.max_samples <= 512:
            raise UsageError("measure: 2 <= min_samples <= max_samples <= 512 must hold")
        if not 1 <= self.block <= self.max_samples:
            raise UsageError("measure: 1 <= block <= max_samples must hold")
        if self.interval_pct <= 0 or self.max_seconds <= 0:
            raise UsageError("measure: interval_pct and max_seconds must be above 0")
        if not 1 <= self.processes <= MOST_PROCESSES:
            raise UsageError(f"measure: 1 <= processes <= {MOST_PROCESSES} must hold")
        unknown = set(self.timers) - {"kernel", "host", "graph"}
        if unknown:
            raise UsageError(
                f"measure: no timer {sorted(unknown)[0]!r}. Known: kernel, host, graph"
            )


@dataclass(frozen=True, kw_only=True)
class Job:
    """One case of one family, and the providers that are measured together, interleaved.

    process: which of the run's processes does it, from 0; those after the first time it alone.
    """

    family: str
    case: Case
    providers: tuple[str, ...]
    label: str = ""
    measure: Measure = field(default_factory=Measure)
    process: int = 0

    @property
    def id(self) -> str:
        return f"{self.family}/{self.case.id}"

    @property
    def world(self) -> int:
        """How many GPUs it needs: the case's axis `world`, where its family has one."""
        return int(getattr(self.case, "world", 1))

    def as_json(self) -> dict[str, Any]:
        """For the process that does it."""
        return {
            "family": self.family,
            "axes": self.case.as_axes(),
            "providers": self.providers,
            "label": self.label,
            "measure": asdict(self.measure),
            "process": self.process,
        }

    @staticmethod
    def from_json(facts: Mapping[str, Any], case: type[Case]) -> "Job":
        """The inverse. case: the family's."""
        measure = {**facts["measure"], "timers": tuple(facts["measure"]["timers"])}
        return Job(
            family=facts["family"],
            case=case.from_axes(facts["axes"]),
            providers=tuple(facts["providers"]),
            label=facts["label"],
            measure=Measure(**measure),
            process=facts["process"],
        )
