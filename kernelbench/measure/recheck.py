"""After timing: fresh inputs in the same memory. Is a provider as fast on them, and is what it
answers while it is timed right?
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
from kernelbench.measure.proof import Proof, spend
from kernelbench.measure.sampling import Batch
from kernelbench.measure.session import Attempt, Candidate, Clock, Tell
from kernelbench.measure.slowdown import DRAWS, Keeping, slowdown

SEED_BITS = 62  # as many as `--seed` takes


class Recheck:
    """Draws anew, and samples once a draw; the answers to the last draw are judged."""

    def __init__(
        self, inputs: CaseInputs, proof: Proof, clock: Clock, attempt: Attempt, tell: Tell
    ) -> None:
        self._inputs, self._proof, self._clock = inputs, proof, clock
        self._attempt, self._tell = attempt, tell
        self.seed = 0  # of the inputs that are there now

    def run(self, candidates: Sequence[Candidate]) -> Failure | None:
        """Of every candidate; a Failure where inputs could not be drawn.

        No seed can be told from another, or a provider could have the answers beforehand.
        """
        parts = [Keeping(candidate.workload) for candidate in candidates]
        gated = self._clock.name == "gated"
        for part in parts if gated else ():  # a first look at it takes several calls
            self._attempt(partial(self._once, part), part.name)
            part.outputs = ()
        draws = DRAWS if gated else 1
        for i in range(draws):
            self.seed = secrets.randbits(SEED_BITS)
            redraw: Callable[[], None] = partial(self._inputs.redraw, self.seed)
            drawn = self._attempt(redraw, "")
            if isinstance(drawn, Failure):
                return drawn
            # a budget from other numbers than these would be too small
            self._proof.redrawn(alike=not self._inputs.alike)
            for candidate, part in zip(candidates, parts, strict=True):
                self._tell(candidate.name, "fresh inputs")
                step = partial(self._sample, candidate, part, judge=i == draws - 1)
                failure = self._attempt(step, candidate.name)
                candidate.failure = failure or candidate.failure
        return None

    def slower(self, candidates: Sequence[Candidate]) -> float:
        """By what factor the baseline is on fresh inputs, where they are of another kind than those
        before; else 1."""
        baseline = self._proof.family.baseline
        timings = [c.timing for c in candidates if c.provider is baseline]
        factors = [slowdown(t) for t in timings if t is not None and self._inputs.alike]
        return next((factor for factor in factors if factor is not None), 1.0)

    def _sample(self, candidate: Candidate, part: Keeping, judge: bool) -> None:
        batch, timing = self._once(part), candidate.timing
        if batch.held and timing is not None:
            fresh = (*timing.fresh_ns, *batch.samples_ns)
            candidate.timing = replace(timing, fresh_ns=fresh)
        if judge:
            reason = self._judged(candidate, part)
            words = f"as it was timed (--seed {self.seed}): {reason}"
            candidate.wrong = candidate.wrong or (reason and words)
        part.outputs = ()

    def _judged(self, candidate: Candidate, part: Keeping) -> str:
        try:
            produced: dict[str, Any] = part.produced(self._proof.contract)
        except ContractError as error:
            return str(error)
        reason = self._proof.verdict(candidate.provider, Answer(produced)).reason
        spend(produced)
        return reason

    def _once(self, part: Keeping) -> Batch:
        part.ready()
        try:
            return self._clock.batch(part, 1)
        finally:
            part.workload.rest()
