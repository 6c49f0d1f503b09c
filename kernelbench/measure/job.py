"""One job, start to end: every provider built, proven right, timed, and proven right again."""

import gc
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from statistics import median
from typing import Any

import torch

from kernelbench.measure import check, tune
from kernelbench.measure.beside import read_beside
from kernelbench.measure.ceilings import too_fast
from kernelbench.measure.failure import Failure, failure_of
from kernelbench.measure.flush import ROUND
from kernelbench.measure.fresh import DRAWS, Keeping, seen_before, slowdown
from kernelbench.measure.probes import set_precision
from kernelbench.measure.sampling import Batch, Sampled, sample
from kernelbench.measure.session import Candidate, DeviceLostError, Request, Session, Tell
from kernelbench.measure.workload import CaseInputs, Workload, why_not
from kernelbench.spec import (
    Family,
    OutputError,
    Provider,
    RunRecord,
    Status,
    Timing,
    record_of,
)

__all__ = ["DeviceLostError", "JobRun", "Request", "Session"]

TRIAL = ROUND  # samples of a config between two looks at how long it takes
TRIAL_NS = 300_000_000


class JobRun:
    """Measures one job. Yields records as soon as they are certain; timed ones come together."""

    def __init__(self, family: Family[Any], request: Request, session: Session, tell: Tell) -> None:
        self.family, self.session, self._tell = family, session, tell
        self.job, self.context, self.request = request.job, request.context, request
        self.case = request.job.case
        self._now = ""  # the provider that is at work
        self._disturbed: dict[str, str] = {}  # what providers changed that others would feel

    def run(self) -> Iterator[list[RunRecord]]:
        able = []
        for provider in (self.family.provider(name) for name in self.job.providers):
            reason = self._attempt(partial(self._why_not, provider), provider.name)
            if reason is None:
                able.append(provider)
            else:
                yield [self._record(provider, reason)]
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
            yield [self._answer(c, Status.ok, "", flags=tuple(c.flags)) for c in candidates]

    def _why_not(self, provider: Provider[Any]) -> Failure | None:
        reason = why_not(provider, self.case, self.session.device)
        return None if reason is None else Failure(Status.skipped, reason)

    def _prove(
        self, able: list[Provider[Any]], candidates: list[Candidate]
    ) -> Iterator[list[RunRecord]]:
        """Build and check every provider; the right ones become candidates.

        The baseline comes first, even when it was not asked for: its error sets the budget.
        """
        for provider in self._baseline_first(able):
            found = self._attempt(partial(self._prepare, provider), provider.name)
            if provider not in able:
                del found
                continue
            if isinstance(found, Candidate) and provider.name in self._disturbed:
                yield [self._answer(found, Status.incorrect, self._disturbed[provider.name])]
            elif isinstance(found, Candidate):
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
        gc.collect()
        if self.session.device.kind == "cuda":
            torch.cuda.empty_cache()
        self.cost = self.family.cost(self.case)
        return CaseInputs(self.family, self.case, self.session.device.kind, self.context.seed)

    def _baseline_first(self, able: list[Provider[Any]]) -> list[Provider[Any]]:
        baseline = self.family.baseline
        self._baseline: dict[str, check.Deviation] | None = None
        lost = baseline.name in self.request.without
        if lost or self._attempt(partial(self._why_not, baseline), baseline.name) is not None:
            return able
        return [baseline, *(p for p in able if p is not baseline)]

    def _attempt(self, step: Callable[[], Any], provider: str = "") -> Any:
        """The one place where a failure becomes a fact."""
        try:
            return step()
        except DeviceLostError:
            raise
        except Exception as error:  # noqa: BLE001
            traceback.print_exc()
            failure = failure_of(error)
        finally:
            self._blame(provider or self._now)
        # Only here is the traceback gone, and with it what its frames held on the GPU.
        self._survive(provider or self._now, failure.reason)
        return failure

    def _blame(self, provider: str) -> None:
        """Whatever was changed of the device just now is undone, and was this provider's doing."""
        said = self.session.clock.disturbed()
        if said:
            self._disturbed.setdefault(provider, said)

    def _survive(self, provider: str, reason: str) -> None:
        gc.collect()
        if self.session.device.kind != "cuda":
            return
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError:
            raise DeviceLostError(provider, reason) from None

    def _prepare(self, provider: Provider[Any]) -> Candidate | RunRecord:
        """Build, call for the first time, and prove right. The search of a config is compiling."""
        self.tell(provider.name, "compile")
        start = time.perf_counter()
        config, origin = self._config(provider)
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
        candidate = Candidate(provider, workload, facts)
        if self._baseline is None and provider is not self.family.baseline:
            candidate.flags.append("no-baseline-budget")
        if reason:
            return self._answer(candidate, Status.incorrect, reason, flags=tuple(candidate.flags))
        facts["peak_bytes"] = workload.peak_bytes()
        workload.rest()  # what it keeps for a backward is not in the way of the next proof
        return candidate

    def _workload(self, provider: Provider[Any], config: Any) -> Workload:
        workload = Workload(self.family, self.case, provider, self.inputs, config)
        set_precision(self.case.dtype)  # what `build` imported may have meddled with it
        workload.ready()
        with workload.grad_mode():
            outputs = workload.call()
        self._synchronize()
        check.leave_nan(outputs, workload)
        return workload

    def _judge(
        self, provider: Provider[Any], workload: Workload
    ) -> tuple[tuple[OutputError, ...], str]:
        """Errors, and why it is incorrect. Only a baseline that is right sets the budget."""
        produced, changed = check.produce(workload)
        return self._verdict(provider, produced, changed)

    def _verdict(
        self, provider: Provider[Any], produced: dict[str, torch.Tensor], changed: list[str]
    ) -> tuple[tuple[OutputError, ...], str]:
        found = check.deviations(self.oracle, produced)
        is_baseline = provider is self.family.baseline
        yardstick = found if is_baseline else self._baseline
        errors = check.judge(found, yardstick, self.case.dtype, provider)
        reason = check.verdict(errors, changed)
        if is_baseline:
            self._baseline = None if reason else found
            self.oracle.shapes = {} if reason else {n: t.shape for n, t in produced.items()}
        return errors, reason

    def _config(self, provider: Provider[Any]) -> tuple[Any, str]:
        if provider.configs is None:
            return None, ""
        configs = list(provider.configs(self.case, self.session.device))
        facts = tune.identity(self.session.device, self.context, self.job, provider)
        if not (self.request.tune and self.session.device.kind == "cuda"):
            return tune.choose(configs, facts)
        times: list[float | None] = []
        for i, config in enumerate(configs):
            self.tell(provider.name, f"tune {i + 1}/{len(configs)}")
            ns = self._attempt(partial(self._trial, provider, config), provider.name)
            times.append(None if isinstance(ns, Failure) else ns)
        return tune.settle(configs, times, facts)

    def _trial(self, provider: Provider[Any], config: Any) -> float | None:
        """Median ns of one config, None if its answer is wrong."""
        workload = self._workload(provider, config)
        if self._judge(provider, workload)[1]:
            return None
        workload.ready()
        samples: list[int] = []
        while len(samples) < 3 * TRIAL and sum(samples) < TRIAL_NS:
            samples += self.session.clock.batch(workload, TRIAL).samples_ns
        return median(samples)

    def _synchronize(self) -> None:
        if self.session.device.kind == "cuda":
            torch.cuda.synchronize()

    def _time(self, candidates: list[Candidate]) -> Iterator[list[RunRecord]]:
        """Sample all together; one that fails meanwhile leaves and the others start again."""
        self.oracle.forget()
        while candidates:
            self.session.telemetry.reset()
            failure = self._attempt(partial(self._sample, candidates))
            if failure is None:
                break
            culprits = [c for c in candidates if c.name == self._now] or candidates
            candidates = [c for c in candidates if c not in culprits]
            for culprit in culprits:
                culprit.workload.rest()
            yield [self._record(c.provider, failure, c.facts) for c in culprits]
        if not candidates:
            return
        timers = self.job.measure.timers
        read_beside(self.session.clock, candidates, timers, self._attempt, self.tell)
        yield self._finish(candidates)

    def _sample(self, candidates: list[Candidate]) -> None:
        clock = self.session.clock
        for candidate in candidates:
            self.tell(candidate.name, "measure")
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
            after_batch=lambda i: self._blame(parts[i].name),
            after_round=self.session.telemetry.sample,
        )
        for i, (candidate, sampled) in enumerate(zip(candidates, taken, strict=False)):
            again = taken[-1] if stays and i == baseline else None
            candidate.timing = self._timing(sampled, again)

    def _timing(self, sampled: Sampled, again: Sampled | None) -> Timing:
        clock = self.session.clock
        held = sampled.held and (again is None or again.held)
        return Timing(
            timer=self.session.timer(held),
            blocks_ns=tuple(sampled.blocks_ns),
            again_ns=tuple(again.blocks_ns) if again else (),
            overhead_ns=clock.overhead_ns,
            traced_overhead_ns=self.session.ceilings.overhead.traced_ns,
            stop=sampled.stop,
        )

    def _finish(self, candidates: list[Candidate]) -> list[RunRecord]:
        """Fresh inputs in the same memory, the check again, plausibility; then the records."""
        for candidate in candidates:
            candidate.workload.rest()
        drawn = self._on_fresh_inputs(candidates)
        if drawn is not None:
            return [self._record(c.provider, drawn, c.facts) for c in candidates]
        self._scale = self._slower_on_other_numbers(candidates)
        telemetry = self.session.telemetry
        common = {"group": uuid.uuid4().hex[:12], "telemetry": telemetry.facts() or None}
        return [self._conclude(c, common, telemetry.flags()) for c in candidates]

    def _on_fresh_inputs(self, candidates: list[Candidate]) -> Failure | None:
        """Draw anew into the same memory, and sample once a draw; the last answers are judged."""
        parts = [Keeping(candidate.workload) for candidate in candidates]
        gated = self.session.clock.name == "gated"
        for part in parts if gated else ():  # a first look at it takes several calls
            self._attempt(partial(self._once, part), part.name)
            part.outputs = ()
        draws = DRAWS if gated else 1
        for i in range(draws):
            drawn = self._attempt(partial(self.inputs.redraw, self.context.seed + 1 + i))
            if isinstance(drawn, Failure):
                return drawn
            self.oracle.forget()
            if self.inputs.alike:  # a budget from other numbers than these would be too small
                self._baseline = None
            for candidate, part in zip(candidates, parts, strict=True):
                self.tell(candidate.name, "fresh inputs")
                step = partial(self._sample_fresh, candidate, part, judge=i == draws - 1)
                failure = self._attempt(step, candidate.name)
                candidate.failure = failure or candidate.failure
        return None

    def _slower_on_other_numbers(self, candidates: list[Candidate]) -> float:
        """By what factor the baseline is; 1 where the fresh inputs are like those before."""
        timings = [c.timing for c in candidates if c.provider is self.family.baseline]
        found = [slowdown(t) for t in timings if t is not None and self.inputs.alike]
        return next((factor for factor in found if factor is not None), 1.0)

    def _sample_fresh(self, candidate: Candidate, part: Keeping, judge: bool) -> None:
        batch, timing = self._once(part), candidate.timing
        if batch.held and timing is not None:
            fresh = (*timing.fresh_ns, *batch.samples_ns)
            candidate.timing = replace(timing, fresh_ns=fresh)
        if judge:
            _, reason = self._verdict(candidate.provider, part.produced(), [])
            candidate.wrong = candidate.wrong or (reason and f"as it was timed: {reason}")
        part.outputs = ()

    def _once(self, part: Keeping) -> Batch:
        part.ready()
        try:
            return self.session.clock.batch(part, 1)
        finally:
            part.workload.rest()

    def _conclude(
        self, candidate: Candidate, common: dict[str, Any], doubts: tuple[str, ...]
    ) -> RunRecord:
        self.tell(candidate.name, "check again")
        provider, timing = candidate.provider, candidate.timing
        again = self._attempt(partial(self._judge, provider, candidate.workload), candidate.name)
        candidate.workload.rest()
        failure = again if isinstance(again, Failure) else candidate.failure
        if failure is not None:
            return self._record(provider, failure, candidate.facts)
        doubtful = timing is not None and timing.timer in ("ungated", "profiled")
        flags = (*candidate.flags, *doubts, *((timing.timer,) if timing and doubtful else ()))
        errors, reason = again
        if reason:
            candidate.facts["errors"] = errors
            reason = f"on fresh inputs, after timing: {reason}"
        reason = self._disturbed.get(provider.name) or reason or candidate.wrong
        if reason:
            return self._answer(candidate, Status.incorrect, reason, flags=flags)
        limits = self.session.ceilings.of(self.case, provider, self.cost)
        if timing is not None:
            reason = too_fast(timing, self.cost, limits) or seen_before(timing, self._scale)
        return self._answer(
            candidate,
            Status.implausible if reason else Status.ok,
            reason,
            flags=flags,
            timing=timing,
            ceilings=limits or None,
            **common,
        )

    def _answer(self, candidate: Candidate, status: Status, reason: str, **more: Any) -> RunRecord:
        return record_of(
            self.job,
            candidate.provider,
            status,
            self.context,
            reason=reason,
            **candidate.facts,
            **more,
        )

    def _record(
        self, provider: Provider[Any], failure: Failure, facts: dict[str, Any] | None = None
    ) -> RunRecord:
        return record_of(
            self.job, provider, failure.status, self.context, reason=failure.reason, **facts or {}
        )
