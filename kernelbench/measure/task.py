"""What every stage of a job is handed: the request, the machine, the guard; and how it answers."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from kernelbench.measure.failure import Failure
from kernelbench.measure.guard import Guard
from kernelbench.measure.session import Candidate, Request, Session
from kernelbench.spec import Case, Family, Job, Provider, RunRecord, Status, record_of

Value = TypeVar("Value")
Stage = Generator[list[RunRecord], None, Value]  # records as they become certain, then a value


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
        """The record of a provider that fell, or that cannot run the case."""
        known = failure.facts | (facts or {})
        return record_of(self.job, provider, context=self.request.context, **known)

    def answer(
        self, candidate: Candidate, status: Status, reason: str = "", **more: Any
    ) -> RunRecord:
        """The record of a provider that answered; more: facts besides the candidate's own."""
        facts = candidate.facts | more
        context = self.request.context
        return record_of(self.job, candidate.provider, status, context, reason=reason, **facts)

    def incorrect(self, candidate: Candidate, reason: str, detail: str = "") -> RunRecord:
        """The record of one whose answer is wrong, with what it disturbed besides."""
        disturbed = self.guard.disturbed.get(candidate.name, "")
        if disturbed not in reason:
            reason = f"{disturbed}; {reason}"
        flags = tuple(candidate.flags)
        return self.answer(candidate, Status.incorrect, reason, detail=detail, flags=flags)
