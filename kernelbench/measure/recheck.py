"""After timing, draws fresh inputs in the same memory: times providers on them, and checks the
answers of the timed calls.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from kernelbench.measure.answer import ContractError
from kernelbench.measure.check import Answer
from kernelbench.measure.failure import Failure
from kernelbench.measure.inputs import CaseInputs
from kernelbench.measure.proof import Proof, erase
from kernelbench.measure.sampling import Batch
from kernelbench.measure.session import Attempt, Candidate, Clock, Tell
from kernelbench.measure.slowdown import DRAWS, RecordingWorkload, slowdown
from kernelbench.spec import COUNTED

SEED_BITS = 62  # as many as `--seed` takes


class Recheck:
    """Redraws the inputs several times, and samples once a draw; judges the answers to the last."""

    def __init__(
        self, inputs: CaseInputs, proof: Proof, clock: Clock, attempt: Attempt, tell: Tell
    ) -> None:
        self._inputs, self._proof, self._clock = inputs, proof, clock
        self._attempt, self._tell = attempt, tell
        self.seed = 0  # of the current inputs

    def run(
        self, candidates: Sequence[Candidate], reference: Candidate | None = None
    ) -> Failure | None:
        """Recheck every candidate; returns a Failure where inputs could not be drawn.

        reference: the baseline where it was right, a candidate or not; its errors on the fresh
        inputs are what the others' budgets follow from. Seeds are unpredictable, or a provider
        could have the answers beforehand.
        """
        parts = [RecordingWorkload(candidate.workload) for candidate in candidates]
        times = self._clock.name in COUNTED
        for part in parts if times else ():  # the clock's plan of a part takes several calls
            self._attempt(partial(self._sample_once, part), part.name)
            part.outputs = ()
        draws = DRAWS if times else 1
        for i in range(draws):
            self.seed = self._proof.team.gather(secrets.randbits(SEED_BITS))[0]
            redraw: Callable[[], None] = partial(self._inputs.redraw, self.seed)
            failure = self._attempt(redraw, "")
            if isinstance(failure, Failure):
                return failure
            self._proof.inputs_changed()
            last = i == draws - 1
            if last and reference is not None and all(c is not reference for c in candidates):
                self._tell(reference.name, "fresh inputs")
                self._attempt(partial(self._judge_anew, reference), reference.name)
            for candidate, part in zip(candidates, parts, strict=True):
                self._tell(candidate.name, "fresh inputs")
                step = partial(self._sample, candidate, part, judge=last)
                failure = self._attempt(step, candidate.name)
                candidate.failure = failure or candidate.failure
        return None

    def baseline_slowdown(self, candidates: Sequence[Candidate]) -> float:
        """How many times longer the baseline takes on fresh inputs, where their distribution is not
        that of the timed ones; else 1."""
        baseline = self._proof.family.baseline
        timings = [c.timing for c in candidates if c.provider is baseline]
        factors = [slowdown(t) for t in timings if t is not None and self._inputs.constant]
        return next((factor for factor in factors if factor is not None), 1.0)

    def _judge_anew(self, reference: Candidate) -> None:
        try:
            self._proof.judge(reference.provider, reference.workload)
        finally:
            reference.workload.release()

    def _sample(self, candidate: Candidate, part: RecordingWorkload, judge: bool) -> None:
        batch, timing = self._sample_once(part), candidate.timing
        if batch.held and timing is not None:
            fresh = (*timing.fresh_ns, *batch.samples_ns)
            candidate.timing = replace(timing, fresh_ns=fresh)
        if judge:
            reason = self._fault_of(candidate, part)
            words = f"as it was timed (--seed {self.seed}): {reason}"
            candidate.fault = candidate.fault or (reason and words)
        part.outputs = ()

    def _fault_of(self, candidate: Candidate, part: RecordingWorkload) -> str:
        try:
            produced: dict[str, Any] = part.produced(self._proof.contract)
        except ContractError as error:
            if self._proof.team.world > 1:
                raise  # for the others to hear of
            return str(error)
        reason = self._proof.verdict(candidate.provider, Answer(produced)).reason
        erase(produced)
        return reason

    def _sample_once(self, part: RecordingWorkload) -> Batch:
        part.ready()
        try:
            return self._clock.batch(part, 1)
        finally:
            part.workload.release()
