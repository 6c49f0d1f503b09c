"""A record: the facts of one (job, provider). What is derived from them is in `metrics`."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from itertools import chain
from typing import Any

from kernelbench.spec import migrations
from kernelbench.spec.case import AxisValue
from kernelbench.spec.family import Accuracy, Provider, Role, Traffic
from kernelbench.spec.job import Job
from kernelbench.spec.lines import from_line, to_line

SCHEMA = 4
METHOD = 3  # how times are taken and judged (docs/method.md); one of another number is not the same


class Status(StrEnum):
    """How the measurement of one provider ended."""

    ok = "ok"
    skipped = "skipped"  # with the reason: an answer, not a failure
    incorrect = "incorrect"  # outside its error budget, or it changed an input or the device
    failed = "failed"  # raised
    crashed = "crashed"  # took its process down
    timeout = "timeout"
    oom = "oom"
    implausible = "implausible"  # faster than the machine's limits, or than on fresh inputs

    @property
    def bad(self) -> bool:
        """Whether it makes the run exit with 1."""
        return self not in (Status.ok, Status.skipped)


@dataclass(frozen=True, kw_only=True)
class OutputError:
    """How far one output is from the fp64 oracle. With e = out − ref and p the part of ref that the
    kernel had to compute (all of it, unless the family says otherwise):

    rel: ‖e‖ / ‖p‖ (absolute ‖out‖ / sqrt(n) where p is all zero).
    worst: max |e| / rms(p) (absolute likewise).
    row, column: the largest ‖e‖ / ‖p‖ of a row (along the last dimension) or of a column (all that
        has one index there); one of less than 0.3 of the typical ‖p‖ is held against that.
    slope: of out on p, less 1: Σ e·p / Σ p²; of several parts, the one nearest to its budget.
    cosine: of the angle between out and ref; None where one of them is all zero.
    part: ‖p‖ / ‖ref‖; None where it is all of ref.
    """

    name: str
    rel: float
    worst: float
    rel_budget: float
    worst_budget: float
    row: float = 0.0
    row_budget: float = math.inf
    column: float = 0.0
    column_budget: float = math.inf
    slope: float = 0.0
    slope_budget: float = math.inf
    part: float | None = None
    baseline_rel: float | None = None
    baseline_worst: float | None = None
    cosine: float | None = None

    @property
    def figures(self) -> tuple[tuple[str, float, float], ...]:
        """(what, how much, budget) of each error that has a budget."""
        return (
            ("error", self.rel, self.rel_budget),
            ("worst element", self.worst, self.worst_budget),
            ("worst row", self.row, self.row_budget),
            ("worst column", self.column, self.column_budget),
            ("slope", abs(self.slope), self.slope_budget),
        )

    @property
    def ok(self) -> bool:
        """False for NaN, too."""
        return all(value <= budget for _, value, budget in self.figures)


@dataclass(frozen=True, kw_only=True)
class TrialErrors:
    """A provider on inputs besides the case's own: its errors, or why nothing was proven there."""

    trial: str
    errors: tuple[OutputError, ...] = ()
    unproven: str = ""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A tensor that a provider's untimed `prepare` handed on."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int


COUNTED = ("gated", "back_to_back")  # timers of times that speeds follow from


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Raw samples in ns, nothing removed. Blocks of the same index ran in the same round.

    timer: `gated` (CUDA events behind a gate that was proven to hold), `back_to_back` (CUDA events
        around calls that each begin on an idle GPU, launches included: see `Family`), `ungated` (a
        gate did not hold: no speedup), `profiled` (a profiler looked on: no speedup either), or
        `host` (a machine without a GPU: no samples, at most those of an older record, and no speeds
        at all).
    again_ns: the baseline's second run in every round, from which the noise floor follows.
    places: of each block in the order of its round, which is drawn; again_places: likewise.
    quantum_ns: the step of the clock; 0 where it is not known.
    clocks_mhz: of the SMs, read right after each block; none where they cannot be read.
    lead: calls at the head of each block that were timed but are no samples: they brought a card
        under its power or thermal limit to the state that this call keeps it in.
    overhead_ns: what the event pair itself adds; calibrated in this run, subtracted by `times`.
        traced_overhead_ns: what it adds while CUPTI looks on.
    kernel_ns: CUPTI span of a call. host_ns: CPU time to submit one. graph_ns: CUDA-graph replay,
        L2 warm. Why one is missing stands in `missing`.
    graph_nodes: kernels, copies and fills of a call in that graph.
    """

    timer: str
    blocks_ns: tuple[tuple[int, ...], ...]
    again_ns: tuple[tuple[int, ...], ...] = ()
    places: tuple[int, ...] = ()
    again_places: tuple[int, ...] = ()
    quantum_ns: int = 0
    clocks_mhz: tuple[int, ...] = ()
    lead: int = 0
    overhead_ns: int = 0
    traced_overhead_ns: int = 0
    kernel_ns: tuple[int, ...] = ()
    kernel_event_ns: tuple[int, ...] = ()
    fresh_ns: tuple[int, ...] = ()
    host_ns: tuple[int, ...] = ()
    graph_ns: tuple[int, ...] = ()
    graph_nodes: float | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    stop: str = ""  # "interval", "plateau", "samples" or "time"

    @property
    def counts(self) -> bool:
        """Whether its samples are what they are meant to be, so that speeds follow from them."""
        return self.timer in COUNTED


@dataclass(frozen=True, kw_only=True)
class Messages:
    """What ranks say to each other in a call, and what it costs.

    received_bytes: by the rank that receives most; of a sum over ranks as in a ring.
    without_ns: samples of the same call with nothing sent, on the slowest rank.
    kernels_ns: GPU time of a call's kernels, without those that carry messages; kernels_without_ns:
        of the same where nothing was sent. Both of the rank where they differ most.
    """

    received_bytes: int
    without_ns: tuple[int, ...] = ()
    kernels_ns: int | None = None
    kernels_without_ns: int | None = None


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The facts of one (job, provider) in one process: one line of records.jsonl.

    process: which of the run's, from 0. further: what the processes after the first found; no line
        has it, `store.read` puts it together.
    method: see METHOD. ranks: what each rank's own clock read, of a job over several GPUs, whose
        `timing` is that of the slowest. messages: of such a job, read in the first process.
    reason: one line, why it is not ok. detail: more on that for the provider's author, as the
        traceback through the provider's own code; `check -v` and `run -v` show it.
    """

    schema: int = SCHEMA
    run_id: str
    utc: str
    family: str
    provider: str
    case: str
    status: Status
    role: Role
    accuracy: Accuracy
    mode: str
    dtype: str
    axes: Mapping[str, AxisValue]
    label: str = ""
    reason: str = ""
    detail: str = ""
    flags: tuple[str, ...] = ()
    source: str = ""  # hash of the package source that the family reaches
    group: str = ""  # one interleaved measurement: speedups are formed inside it alone
    seed: int = 0
    process: int = 0
    method: int = METHOD
    gpu: str = ""
    gpu_uuid: str = ""
    config: Mapping[str, Any] | None = None
    config_origin: str = ""  # "table" or "tuned"
    compile_s: float | None = None
    flops: int | None = None
    read_bytes: int | None = None  # compulsory
    write_bytes: int | None = None
    traffic: tuple[Traffic, ...] | None = None
    prepacked: bool = False
    # What the provider promises: "error" and "slope" of an approximate one, and by the name of
    # other inputs the error there, or why it promises nothing.
    promised: Mapping[str, AxisValue] = field(default_factory=dict)
    errors: tuple[OutputError, ...] = ()
    trials: tuple[TrialErrors, ...] = ()
    prepared: tuple[Prepared, ...] = ()  # of a provider with a `prepare` of its own
    judged_calls: int | None = None  # timed calls that were compared with the proven answer
    timing: Timing | None = None
    ranks: tuple[Timing, ...] = ()
    messages: Messages | None = None
    peak_bytes: int | None = None  # over the live inputs
    ceilings: Mapping[str, float] | None = None  # at this footprint: read_gbps, copy_gbps, tflops
    telemetry: Mapping[str, float] | None = None  # sm_mhz, power_w, temp_c
    further: tuple["RunRecord", ...] = ()

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What a resumed run asks for; with `source`, its identity."""
        return (*self.row, self.process)

    @property
    def row(self) -> tuple[str, str, str]:
        """What it is of, whichever process measured it."""
        return (self.family, self.case, self.provider)

    @property
    def processes(self) -> tuple["RunRecord", ...]:
        """It and its further ones, one a process."""
        return (self, *self.further)

    @property
    def promise(self) -> str:
        """In words, what the provider promises."""
        of_all = ("error", "slope")
        return ", ".join(
            ("" if name in of_all else "on ")
            + (f"{name} nothing ({value})" if isinstance(value, str) else f"{name} {value:.2g}")
            for name, value in self.promised.items()
        )

    @property
    def unproven(self) -> str:
        """In words, the trials on which nothing was proven, and why."""
        return ", ".join(f"{t.trial} ({t.unproven})" for t in self.trials if t.unproven)

    def to_json(self) -> str:
        """One line of strict JSON, see `lines.to_line`."""
        return to_line(self)

    @staticmethod
    def from_json(line: str) -> "RunRecord":
        """The inverse of `to_json`. Raises KernelbenchError saying what is wrong with the line."""
        return from_line(RunRecord, line, SCHEMA, migrations.RECORDS)

    def impossible(self) -> str:
        """What no measurement can have found, or nothing."""
        return next(filter(None, (_untimed(self), *_no_times(self.timing), *_no_facts(self))), "")


@dataclass(frozen=True, kw_only=True)
class Context:
    """What all records of a job in one run have in common."""

    run_id: str
    gpu: str
    seed: int
    source: str
    gpu_uuid: str = ""


def record_of(
    job: Job, provider: Provider[Any], status: Status, context: Context, **facts: Any
) -> RunRecord:
    """A record of one (job, provider), now."""
    return RunRecord(
        run_id=context.run_id,
        utc=datetime.now(UTC).isoformat(timespec="seconds"),
        family=job.family,
        provider=provider.name,
        case=job.case.id,
        status=status,
        role=provider.role,
        accuracy=provider.accuracy,
        mode=job.case.mode.value,
        dtype=job.case.dtype.value,
        axes=job.case.as_axes(),
        label=job.label,
        source=context.source,
        seed=context.seed,
        process=job.process,
        gpu=context.gpu,
        gpu_uuid=context.gpu_uuid,
        prepacked=provider.prepacked,
        promised=_promised(provider),
        **facts,
    )


def _untimed(record: RunRecord) -> str:
    timing = record.timing
    timed = timing is not None and (timing.timer == "host" or any(timing.blocks_ns))
    return "" if timed or record.status is not Status.ok else "ok without a sample"


def _no_times(timing: Timing | None) -> Iterator[str]:
    if timing is None:
        return
    nested = ("blocks_ns", "again_ns")
    flat = ("kernel_ns", "kernel_event_ns", "fresh_ns", "host_ns", "graph_ns")
    least = {name: min(chain(*getattr(timing, name)), default=1) for name in nested}
    least |= {name: min(getattr(timing, name), default=1) for name in flat}
    for name, value in least.items():
        yield f"a sample of {value} ns in {name}" if value <= 0 else ""
    for name in ("overhead_ns", "traced_overhead_ns", "quantum_ns", "lead"):
        value = getattr(timing, name)
        yield f"{name} is {value}" if value < 0 else ""
    nodes = timing.graph_nodes
    known = nodes is None or (math.isfinite(nodes) and nodes >= 0)
    yield "" if known else f"graph_nodes is {nodes}"


def _no_facts(record: RunRecord) -> Iterator[str]:
    amounts = ("process", "compile_s", "peak_bytes", "flops", "read_bytes", "write_bytes")
    for name in amounts:
        value = getattr(record, name)
        known = value is None or (math.isfinite(value) and value >= 0)
        yield "" if known else f"{name} is {value}"
    for name, value in {**(record.telemetry or {}), **(record.ceilings or {})}.items():
        yield "" if math.isfinite(value) else f"{name} is {value}"
    if (messages := record.messages) is not None:
        both = messages.kernels_ns or 0, messages.kernels_without_ns or 0
        least = min(messages.received_bytes, *both, *messages.without_ns)
        yield "" if least >= 0 else f"{least} in messages"
    if record.status is Status.ok:
        for error in record.errors or ():
            yield f"ok with a NaN in {error.name}" if math.isnan(error.rel) else ""


def _promised(provider: Provider[Any]) -> dict[str, AxisValue]:
    of_all = {"error": provider.max_error, "slope": provider.max_slope}
    return {name: value for name, value in of_all.items() if value is not None} | {
        **provider.promises
    }
