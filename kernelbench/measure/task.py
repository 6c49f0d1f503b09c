"""The context of every stage of a job: the request, the machine, the guard; makes its records."""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from kernelbench.measure.failure import Failure
from kernelbench.measure.guard import Guard
from kernelbench.measure.session import Candidate, Request, Session
from kernelbench.spec import Case, Family, Job, OutputError, Provider, RunRecord, Status, record_of

Value = TypeVar("Value")
Stage = Generator[list[RunRecord], None, Value]  # yields records once final, returns a value


def worst(errors: Sequence[OutputError]) -> OutputError:
    """Of the errors of one output on several ranks, the one nearest to a budget, or beyond it."""

    def used(error: OutputError) -> float:
        shares = [
            abs(value) / budget if budget else math.inf if value else 0.0
            for _, value, budget in error.figures
        ]
        return math.inf if any(map(math.isnan, shares)) else max(shares)

    return max(errors, key=used)


@dataclass(frozen=True)
class Task:
    """One job in this process."""

    family: Family[Any]
    request: Request
    session: Session
    guard: Guard

    @property
    def job(self) -> Job:
        return self.request.job

    @property
    def case(self) -> Case:
        return self.request.job.case

    def failed(
        self, provider: Provider[Any], failure: Failure, facts: dict[str, Any] | None = None
    ) -> RunRecord:
        """The record of a provider that failed, or that cannot run the case."""
        fields = failure.facts | (facts or {})
        return record_of(self.job, provider, context=self.request.context, **fields)

    def answer(
        self, candidate: Candidate, status: Status, reason: str = "", **more: Any
    ) -> RunRecord:
        """The record of a provider that has an answer; more: facts besides the candidate's own."""
        facts = candidate.facts | more
        if self.session.team.world > 1 and "errors" in facts:
            every = self.session.team.gather(facts["errors"])
            facts["errors"] = tuple(map(worst, zip(*every, strict=True)))
        context = self.request.context
        return record_of(self.job, candidate.provider, status, context, reason=reason, **facts)

    def incorrect(self, candidate: Candidate, reason: str, detail: str = "") -> RunRecord:
        """The record of a provider with a wrong answer; adds its disturbance to the reason."""
        disturbance = self.guard.disturbance(candidate.name)
        if disturbance not in reason:
            reason = f"{disturbance}; {reason}"
        flags = tuple(candidate.flags)
        return self.answer(candidate, Status.incorrect, reason, detail=detail, flags=flags)
