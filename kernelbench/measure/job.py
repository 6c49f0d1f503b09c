"""One job, start to end: every provider built, proven right, timed, and proven right again."""

import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import median
from typing import Any, Protocol

import torch

from kernelbench.limits import fastest_plausible_ns
from kernelbench.measure import check, tune
from kernelbench.measure.ceilings import Ceilings, set_precision
from kernelbench.measure.sampling import Batch, Sampled, sample
from kernelbench.measure.telemetry import Telemetry
from kernelbench.measure.timer import CudaClock, Timed
from kernelbench.measure.workload import CaseInputs, Workload, why_not
from kernelbench.spec import (
    Context,
    Device,
    Family,
    Job,
    OutputError,
    Provider,
    RunRecord,
    Status,
    Timing,
    record_of,
)


class Clock(Protocol):
    """How a job's providers are timed on this machine."""

    @property
    def name(self) -> str: ...
    @property
    def overhead_ns(self) -> int: ...
    def batch(self, part: Timed, n: int) -> Batch: ...


@dataclass(frozen=True)
class Session:
    """What a worker process knows for all its jobs."""

    device: Device
    clock: Clock
    ceilings: Ceilings
    telemetry: Telemetry


@dataclass(frozen=True)
class Request:
    """What is asked about a job."""

    job: Job
    context: Context
    timing: bool = True
    tune: bool = False
    without: tuple[str, ...] = ()  # providers that took a worker down with this job


class DeviceLostError(Exception):
    """The GPU's context is gone: nothing more can run in this process."""

    def __init__(self, provider: str, reason: str) -> None:
        super().__init__(reason)
        self.provider = provider


@dataclass(frozen=True)
class Failure:
    """Why a provider has no result."""

    status: Status
    reason: str


@dataclass
class Candidate:
    """A provider that was proven right and can be timed, and the facts about it so far."""

    provider: Provider[Any]
    workload: Workload
    facts: dict[str, Any]
    timing: Timing | None = None

    @property
    def name(self) -> str:
        return self.provider.name


Tell = Callable[[str, str], None]  # provider, phase: what is going on, for whoever watches


def _of(spans: Any, name: str) -> tuple[int, ...]:
    if isinstance(spans, Failure):
        raise RuntimeError(spans.reason)
    if name not in spans:
        raise RuntimeError("CUPTI saw no kernel in the call")
    found: tuple[int, ...] = spans[name]
    return found


class JobRun:
    """Measures one job. Yields records as soon as they are certain; timed ones come together."""

    def __init__(self, family: Family[Any], request: Request, session: Session, tell: Tell) -> None:
        self.family, self.session, self._tell = family, session, tell
        self.job, self.context, self.request = request.job, request.context, request
        self.case = request.job.case
        self.cost = family.cost(self.case)
        self._now = ""  # the provider that is at work

    def run(self) -> Iterator[list[RunRecord]]:
        able = []
        for provider in (self.family.provider(name) for name in self.job.providers):
            reason = why_not(provider, self.case, self.session.device)
            if reason is None:
                able.append(provider)
            else:
                yield [self._record(provider, Failure(Status.skipped, reason))]
        if not able:
            return
        self.tell("", "inputs")
        inputs = self._attempt(self._draw)
        if isinstance(inputs, Failure):
            yield [self._record(provider, inputs) for provider in able]
            return
        self.inputs, self.oracle = inputs, check.Oracle(self.family, self.case, inputs)
        candidates: list[Candidate] = []
        yield from self._prove(able, candidates)
        if self.request.timing:
            yield from self._time(candidates)
        elif candidates:
            yield [
                record_of(self.job, c.provider, Status.ok, self.context, **c.facts)
                for c in candidates
            ]

    def _prove(
        self, able: list[Provider[Any]], candidates: list[Candidate]
    ) -> Iterator[list[RunRecord]]:
        """Build and check every provider; the right ones become candidates.

        The baseline comes first, even when it was not asked for: its error sets the budget.
        """
        for provider in self._baseline_first(able):
            found = self._attempt(partial(self._prepare, provider), provider.name)
            if provider not in able:
                continue
            if isinstance(found, Candidate):
                candidates.append(found)
            elif isinstance(found, Failure):
                yield [self._record(provider, found)]
            else:
                yield [found]

    def tell(self, provider: str, phase: str) -> None:
        self._now = provider
        self._tell(provider, phase)

    def _draw(self) -> CaseInputs:
        torch._dynamo.reset()
        set_precision(self.case.dtype)
        if self.session.device.kind == "cuda":
            torch.cuda.empty_cache()
        return CaseInputs(self.family, self.case, self.session.device.kind, self.context.seed)

    def _baseline_first(self, able: list[Provider[Any]]) -> list[Provider[Any]]:
        baseline = self.family.baseline
        self._baseline: dict[str, check.Deviation] | None = None
        lost = baseline.name in self.request.without
        if lost or why_not(baseline, self.case, self.session.device) is not None:
            return able
        return [baseline, *(p for p in able if p is not baseline)]

    def _attempt(self, step: Callable[[], Any], provider: str = "") -> Any:
        """The one place where a failure becomes a fact."""
        try:
            return step()
        except Exception as error:  # noqa: BLE001
            traceback.print_exc()
            oom = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
                "can't allocate memory" in str(error)
            )
            first = next((line for line in str(error).splitlines() if line.strip()), "")
            reason = f"{type(error).__name__}: {first.strip()}"[:300]
            del error
            self._survive(provider or self._now, reason)
            return Failure(Status.oom if oom else Status.failed, reason)

    def _survive(self, provider: str, reason: str) -> None:
        if self.session.device.kind != "cuda":
            return
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError:
            raise DeviceLostError(provider, reason) from None

    def _prepare(self, provider: Provider[Any]) -> Candidate | RunRecord:
        """Build, call for the first time, and prove right."""
        self.tell(provider.name, "compile")
        config, origin = self._config(provider)
        start = time.perf_counter()
        workload = self._workload(provider, config)
        facts: dict[str, Any] = {"compile_s": round(time.perf_counter() - start, 4)}
        if config is not None:
            facts |= {"config": asdict(config), "config_origin": origin}
        self.tell(provider.name, "check")
        errors, reason = self._judge(provider, workload)
        facts |= {
            "errors": errors,
            "flops": self.cost.flops,
            "read_bytes": self.cost.read,
            "write_bytes": self.cost.write,
            "traffic": provider.traffic(self.case) if provider.traffic else None,
        }
        if reason:
            self.inputs.restore()
            return record_of(
                self.job, provider, Status.incorrect, self.context, reason=reason, **facts
            )
        facts["peak_bytes"] = self._peak(workload)
        return Candidate(provider, workload, facts)

    def _workload(self, provider: Provider[Any], config: Any) -> Workload:
        workload = Workload(self.family, self.case, provider, self.inputs, config)
        workload.ready()
        with workload.grad_mode():
            workload.call()
        self._synchronize()
        return workload

    def _judge(
        self, provider: Provider[Any], workload: Workload
    ) -> tuple[tuple[OutputError, ...], str]:
        produced = check.produce(workload)
        found = check.deviations(self.oracle, produced)
        if provider is self.family.baseline:
            self._baseline = found
        errors = check.judge(found, self._baseline, self.case.dtype, provider)
        return errors, check.verdict(errors, workload.changed())

    def _config(self, provider: Provider[Any]) -> tuple[Any, str]:
        if provider.configs is None:
            return None, ""
        configs = list(provider.configs(self.case, self.session.device))
        facts = tune.identity(self.session.device, self.context, self.job, provider)
        if not (self.request.tune and self.session.device.kind == "cuda"):
            return tune.choose(configs, facts)
        times = [self._trial(provider, config, i) for i, config in enumerate(configs)]
        return tune.settle(configs, times, facts)

    def _trial(self, provider: Provider[Any], config: Any, i: int) -> float | None:
        """Median ns of one config, None if its answer is wrong."""
        self.tell(provider.name, f"tune {i + 1}")
        workload = self._workload(provider, config)
        if self._judge(provider, workload)[1]:
            return None
        batches = [self.session.clock.batch(workload, 10) for _ in range(3)]
        return median(ns for b in batches for ns in b.samples_ns)

    def _peak(self, workload: Workload) -> int | None:
        if self.session.device.kind != "cuda":
            return None
        workload.ready()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        with workload.grad_mode():
            workload.call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def _synchronize(self) -> None:
        if self.session.device.kind == "cuda":
            torch.cuda.synchronize()

    def _time(self, candidates: list[Candidate]) -> Iterator[list[RunRecord]]:
        """Sample all together; one that fails meanwhile leaves and the others start again."""
        while candidates:
            self.session.telemetry.reset()
            failure = self._attempt(partial(self._sample, candidates))
            if failure is None:
                break
            culprit = next(c for c in candidates if c.name == self._now)
            candidates = [c for c in candidates if c is not culprit]
            yield [self._record(culprit.provider, failure, culprit.facts)]
        if not candidates:
            return
        self._beside(candidates)
        yield self._finish(candidates)

    def _sample(self, candidates: list[Candidate]) -> None:
        clock = self.session.clock
        for candidate in candidates:
            candidate.workload.ready()
        parts = [c.workload for c in candidates]
        baseline = next(
            (i for i, c in enumerate(candidates) if c.provider is self.family.baseline), None
        )
        stays: tuple[int, ...] = ()
        if baseline is not None and clock.name == "gated":
            parts = [*parts, parts[baseline]]
            stays = (baseline, len(candidates))
        taken = sample(
            parts,
            clock,
            self.job.measure,
            stays=stays,
            tell=lambda name: self.tell(name, "measure"),
            after_round=self.session.telemetry.sample,
        )
        for i, (candidate, sampled) in enumerate(zip(candidates, taken, strict=False)):
            again = taken[-1] if stays and i == baseline else None
            candidate.timing = self._timing(sampled, again)

    def _timing(self, sampled: Sampled, again: Sampled | None) -> Timing:
        clock = self.session.clock
        held = sampled.held and (again is None or again.held)
        return Timing(
            timer=clock.name if held else "ungated",
            blocks_ns=tuple(sampled.blocks_ns),
            again_ns=tuple(again.blocks_ns) if again else (),
            overhead_ns=clock.overhead_ns,
            stop=sampled.stop,
        )

    def _beside(self, candidates: list[Candidate]) -> None:
        """The other clocks, each in its own column; why one is missing is a fact, too."""
        clock, wanted = self.session.clock, self.job.measure.timers
        if not isinstance(clock, CudaClock):
            return
        for candidate in candidates:
            workload = candidate.workload
            self._read(candidate, "host", partial(clock.host_ns, workload))
            self._read(candidate, "graph", partial(clock.graph_ns, workload))
        if "kernel" in wanted:
            self.tell("", "kernel")
            spans = self._attempt(lambda: clock.kernel_ns([c.workload for c in candidates]))
            for c in candidates:
                self._read(c, "kernel", partial(_of, spans, c.name))

    def _read(self, candidate: Candidate, timer: str, take: Callable[[], Any]) -> None:
        if timer not in self.job.measure.timers or candidate.timing is None:
            return
        self.tell(candidate.name, timer)
        found, timing = self._attempt(take, candidate.name), candidate.timing
        if isinstance(found, Failure):
            missing = {**timing.missing, timer: found.reason}
            candidate.timing = replace(timing, missing=missing)
        else:
            candidate.timing = replace(timing, **{f"{timer}_ns": found})

    def _finish(self, candidates: list[Candidate]) -> list[RunRecord]:
        """Fresh inputs in the same memory, the check again, plausibility; then the records."""
        self.inputs.redraw(self.context.seed + 1)
        self.oracle.forget()
        group = uuid.uuid4().hex[:12]
        facts = {"group": group, "telemetry": self.session.telemetry.facts() or None}
        flags = self.session.telemetry.flags()
        records = []
        for candidate in candidates:
            self.tell(candidate.name, "check again")
            again = self._attempt(
                partial(self._judge, candidate.provider, candidate.workload), candidate.name
            )
            if isinstance(again, Failure):
                records.append(self._record(candidate.provider, again, candidate.facts))
                continue
            if again[1]:
                self.inputs.restore()
                status, reason = Status.incorrect, f"on fresh inputs, after timing: {again[1]}"
                more: dict[str, Any] = {}
            else:
                ceilings = self.session.ceilings.at(self.cost, self._precision(candidate.provider))
                status, reason = self._plausible(candidate, ceilings)
                more = {**facts, "timing": candidate.timing, "ceilings": ceilings or None}
            timing = candidate.timing
            more["flags"] = (*flags, "ungated") if timing and timing.timer == "ungated" else flags
            records.append(
                record_of(
                    self.job,
                    candidate.provider,
                    status,
                    self.context,
                    reason=reason,
                    **candidate.facts,
                    **more,
                )
            )
        return records

    def _precision(self, provider: Provider[Any]) -> dict[str, float]:
        return dict(provider.precision) or {self.case.dtype.value: 1.0}

    def _plausible(self, candidate: Candidate, ceilings: dict[str, float]) -> tuple[Status, str]:
        timing = candidate.timing
        if timing is None or timing.timer != "gated":
            return Status.ok, ""
        ns = median(ns for block in timing.blocks_ns for ns in block) - timing.overhead_ns
        least = fastest_plausible_ns(self.cost.read, self.cost.flops, ceilings)
        if ns >= least:
            return Status.ok, ""
        return Status.implausible, (
            f"{ns / 1e3:.2f} µs, but this machine's own limits allow no less than "
            f"{least / 1e3:.2f} µs for {self.cost.read} bytes read and {self.cost.flops} flops"
        )

    def _record(
        self, provider: Provider[Any], failure: Failure, facts: dict[str, Any] | None = None
    ) -> RunRecord:
        return record_of(
            self.job, provider, failure.status, self.context, reason=failure.reason, **facts or {}
        )
