"""One job, start to end: every provider built, proven right, timed, and proven right again."""

import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from statistics import median
from typing import Any

import torch

from kernelbench.measure import ambient, check, tune
from kernelbench.measure.beside import read_beside
from kernelbench.measure.ceilings import too_fast
from kernelbench.measure.dump import Dump
from kernelbench.measure.failure import Failure, failure_of
from kernelbench.measure.flush import ROUND
from kernelbench.measure.fresh import seen_before
from kernelbench.measure.inputs import CaseInputs
from kernelbench.measure.lot import Lot
from kernelbench.measure.parts import cost_of, traffic_of
from kernelbench.measure.proof import Proof, spend
from kernelbench.measure.recheck import Recheck
from kernelbench.measure.sampling import Sampled
from kernelbench.measure.session import Candidate, DeviceLostError, Request, Session, Tell
from kernelbench.measure.steady import Steady
from kernelbench.measure.trials import Trials
from kernelbench.measure.workload import Workload, why_not
from kernelbench.spec import Family, Provider, RunRecord, Status, Timing, UnwritableError, record_of

__all__ = ["DeviceLostError", "JobRun", "Request", "Session"]

TRIAL = ROUND  # samples of a config between two looks at how long it takes
TRIAL_NS = 300_000_000


class JobRun:
    """Measures one job. Yields records as soon as they are certain; timed ones come together."""

    def __init__(self, family: Family[Any], request: Request, session: Session, tell: Tell) -> None:
        self.family, self.session, self._tell = family, session, tell
        self.job, self.context, self.request = request.job, request.context, request
        self.case = request.job.case
        self.ambient = ambient.as_asked(self.case.dtype)
        self._now = ""  # the provider that is at work
        self._disturbed: dict[str, str] = {}  # what providers changed that others would feel
        self._sampled = False  # whether sampling has begun
        self._yardstick: Candidate | None = None  # the baseline, asked for or not, if it is right

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
        dump = Dump(self.request.dump, self.family, self.case)
        self.inputs, self.proof = inputs, Proof(self.family, self.case, inputs, dump, self._undo)
        candidates: list[Candidate] = []
        yield from self._prove(able, candidates)
        if not self.job.process:  # what the first has proven the others need not
            yield from self._try(candidates)
        self._yardstick = None
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
            if provider is self.family.baseline and isinstance(found, Candidate):
                self._yardstick = found
            if provider not in able:
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
        self._blame(self._now)
        self._now = provider
        self._tell(provider, phase)

    def _draw(self) -> CaseInputs:
        torch._dynamo.reset()
        self.session.hand_back()
        self.cost = cost_of(self.family, self.case)
        return CaseInputs(self.family, self.case, self.session.device.kind, self.context.seed)

    def _baseline_first(self, able: list[Provider[Any]]) -> list[Provider[Any]]:
        baseline = self.family.baseline
        lost = baseline.name in self.request.without
        if lost or self._attempt(partial(self._why_not, baseline), baseline.name) is not None:
            return able
        return [baseline, *(p for p in able if p is not baseline)]

    def _attempt(self, step: Callable[[], Any], provider: str = "") -> Any:
        """The one place where a failure becomes a fact."""
        try:
            return step()
        except (DeviceLostError, UnwritableError):
            raise
        except Exception as error:  # noqa: BLE001
            traceback.print_exc()
            failure = failure_of(error, self._built(provider or self._now))
        finally:
            self._blame(provider or self._now)
        # Only here is the traceback gone, and with it what its frames held on the GPU.
        self._survive(provider or self._now, failure.reason)
        return failure

    def _built(self, name: str) -> Any:
        """The function that builds a provider; None for what is no provider's doing."""
        return next((p.build for p in self.family.providers if p.name == name), None)

    def _undo(self) -> None:
        """Before the provider that is at work is judged."""
        self._blame(self._now)

    def _blame(self, provider: str) -> None:
        """Whatever was changed of device or process just now is undone, and was its doing."""
        requires = next((p.requires for p in self.family.providers if p.name == provider), ())
        said = self.session.clock.disturbed(), self.ambient.disturbed(ambient.known(requires))
        if any(said):
            self._disturbed.setdefault(provider, " and ".join(filter(None, said)))

    def _survive(self, provider: str, reason: str) -> None:
        try:
            self.session.synchronize()
            self.session.hand_back()
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
        self.session.hand_back(collect=False)  # what is kept of it lies in no larger block
        found = self.proof.judge(
            provider, workload, keep=self.request.timing and self.session.clock.times
        )
        facts |= {
            "errors": found.errors,
            "flops": self.cost.flops,
            "read_bytes": self.cost.read,
            "write_bytes": self.cost.write,
            "traffic": traffic_of(provider, self.case),
            "prepared": workload.prepared,
        }
        candidate = Candidate(provider, workload, facts, found.proven, found.found)
        if self.proof.baseline is None and provider is not self.family.baseline:
            candidate.flags.append("no-baseline-budget")
        if found.strides:
            candidate.flags.append(f"strides-of-{'-'.join(found.strides)}")
        reason = found.reason or workload.computed()
        if reason:
            return self._wrong(candidate, reason, found.detail)
        facts["peak_bytes"] = workload.peak_bytes()
        workload.rest()  # what it keeps for a backward is not in the way of the next proof
        return candidate

    def _workload(self, provider: Provider[Any], config: Any) -> Workload:
        workload = Workload(self.family, self.case, provider, self.inputs, config)
        self._blame(provider.name)  # what `build` imported may have meddled with switches
        with check.watching(workload, self.proof.contract):
            workload.ready()
            with workload.grad_mode():
                outputs = workload.call()
        self.proof.contract.check(outputs, workload.names)
        self.session.synchronize()
        check.leave_nan(outputs, workload)
        return workload

    def _try(self, candidates: list[Candidate]) -> Iterator[list[RunRecord]]:
        """Prove the candidates on the trials' inputs, too; those that are wrong there leave."""
        trials = Trials(self.inputs, self.proof, self._attempt, self.tell)
        for candidate, fallen in trials.run(candidates, self._yardstick, self.context.seed):
            candidates.remove(candidate)
            if isinstance(fallen, Failure):
                yield [self._record(candidate.provider, fallen, candidate.facts)]
            else:
                yield [self._wrong(candidate, fallen.reason, fallen.detail)]
        for candidate in [*candidates]:
            if candidate.name in self._disturbed:
                candidates.remove(candidate)
                yield [self._wrong(candidate, self._disturbed[candidate.name])]

    def _wrong(self, candidate: Candidate, reason: str, detail: str = "") -> RunRecord:
        flags = tuple(candidate.flags)
        disturbed = self._disturbed.get(candidate.name, "")
        if disturbed not in reason:
            reason = f"{disturbed}; {reason}"
        return self._answer(candidate, Status.incorrect, reason, detail=detail, flags=flags)

    def _config(self, provider: Provider[Any]) -> tuple[Any, str]:
        if provider.configs is None:
            return None, ""
        configs = list(provider.configs(self.case, self.session.device))
        facts = tune.identity(self.session.device, self.context, self.job, provider)
        search = self.request.tune and not self.job.process  # what the first found is on the disk
        if not (search and self.session.device.kind == "cuda"):
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
        if self.proof.judge(provider, workload).reason:
            return None
        workload.ready()
        samples: list[int] = []
        while len(samples) < 3 * TRIAL and sum(samples) < TRIAL_NS:
            samples += self.session.clock.batch(workload, TRIAL).samples_ns
        return median(samples)

    def _time(self, candidates: list[Candidate]) -> Iterator[list[RunRecord]]:
        """Sample all together; one that fails meanwhile leaves and the others start again."""
        self.proof.oracle.forget()
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
        timers = () if self.job.process else self.job.measure.timers
        read_beside(self.session.clock, candidates, timers, self._attempt, self.tell)
        yield self._finish(candidates)

    def _sample(self, candidates: list[Candidate]) -> None:
        clock = self.session.clock
        if not clock.times:
            for candidate in candidates:
                candidate.timing = Timing(timer=clock.name, blocks_ns=())
            return
        first, self._sampled = not self._sampled, True
        if first:  # what is taken from the driver now is there when they start again
            self.session.hand_back()
        for candidate in candidates:
            self.tell(candidate.name, "measure")
            candidate.workload.ready()
            candidate.workload.lot = Lot.of(candidate, self.session.device)
        if first:
            self.session.hand_back(collect=False)
        parts = [c.workload for c in candidates]
        baseline = next(
            (i for i, c in enumerate(candidates) if c.provider is self.family.baseline), None
        )
        stays: tuple[int, ...] = ()
        if baseline is not None and clock.name == "gated":
            parts = [*parts, parts[baseline]]
            stays = (baseline, len(candidates))
        taken = Steady(clock, self.session.telemetry).sample(
            parts,
            self.job.measure,
            seed=f"{self.context.seed} {self.job.family} {self.case.id} {self.job.process}",
            stays=stays,
            tell=lambda name: self.tell(name, "measure"),
            after_batch=lambda i: self._blame(parts[i].name),
        )
        for i, (candidate, sampled) in enumerate(zip(candidates, taken, strict=False)):
            again = taken[-1] if stays and i == baseline else None
            candidate.timing = self._timing(sampled, again)
            self._draw_lots(candidate)

    def _draw_lots(self, candidate: Candidate) -> None:
        """What the judged ones among the timed calls were found to be."""
        lot, candidate.workload.lot = candidate.workload.lot, None
        if lot is not None:
            candidate.facts["judged_calls"] = lot.timed
            reason = lot.verdict()
            candidate.wrong = candidate.wrong or (reason and f"as it was timed: {reason}")
            spend(candidate.proven)
            candidate.proven = {}

    def _timing(self, sampled: Sampled, again: Sampled | None) -> Timing:
        clock = self.session.clock
        held = sampled.held and (again is None or again.held)
        return Timing(
            timer=self.session.timer(held),
            blocks_ns=tuple(sampled.blocks_ns),
            again_ns=tuple(again.blocks_ns) if again else (),
            places=tuple(sampled.places),
            again_places=tuple(again.places) if again else (),
            quantum_ns=clock.quantum_ns,
            clocks_mhz=tuple(sampled.clocks_mhz) if all(sampled.clocks_mhz) else (),
            lead=sampled.lead,
            overhead_ns=clock.overhead_ns,
            traced_overhead_ns=self.session.ceilings.overhead.traced_ns,
            stop=sampled.stop,
        )

    def _finish(self, candidates: list[Candidate]) -> list[RunRecord]:
        """Fresh inputs in the same memory, the check again, plausibility; then the records."""
        for candidate in candidates:
            candidate.workload.rest()
        clock = self.session.clock
        recheck = Recheck(self.inputs, self.proof, clock, self._attempt, self.tell)
        drawn = recheck.run(candidates)
        if drawn is not None:
            return [self._record(c.provider, drawn, c.facts) for c in candidates]
        self._scale, self._fresh = recheck.slower(candidates), recheck.seed
        common = {"group": uuid.uuid4().hex[:12]}
        doubts = self.session.telemetry.flags()
        return [self._conclude(c, common, doubts) for c in candidates]

    def _conclude(
        self, candidate: Candidate, common: dict[str, Any], doubts: tuple[str, ...]
    ) -> RunRecord:
        self.tell(candidate.name, "check again")
        provider, timing = candidate.provider, candidate.timing
        step = partial(self.proof.judge, provider, candidate.workload)
        again = self._attempt(step, candidate.name)
        candidate.workload.rest()
        failure = again if isinstance(again, Failure) else candidate.failure
        if failure is not None:
            return self._record(provider, failure, candidate.facts)
        doubtful = timing is not None and timing.timer in ("ungated", "profiled")
        flags = (*candidate.flags, *doubts, *((timing.timer,) if timing and doubtful else ()))
        reason = again.reason
        if reason:
            candidate.facts["errors"] = again.errors
            reason = f"on fresh inputs, after timing (--seed {self._fresh}): {reason}"
        reason = self._disturbed.get(provider.name) or reason or candidate.wrong
        if reason:
            return self._wrong(replace(candidate, flags=[*flags]), reason, again.detail)
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
            telemetry=self._telemetry(timing) or None,
            **common,
        )

    def _telemetry(self, timing: Timing | None) -> dict[str, float]:
        """Of the job; the clock is that of the provider's own samples, where it could be read."""
        own = {"sm_mhz": float(median(timing.clocks_mhz))} if timing and timing.clocks_mhz else {}
        return self.session.telemetry.facts() | own

    def _answer(self, candidate: Candidate, status: Status, reason: str, **more: Any) -> RunRecord:
        facts = candidate.facts | more
        return record_of(self.job, candidate.provider, status, self.context, reason=reason, **facts)

    def _record(
        self, provider: Provider[Any], failure: Failure, facts: dict[str, Any] | None = None
    ) -> RunRecord:
        said = failure.facts | (facts or {})
        return record_of(self.job, provider, context=self.context, **said)
