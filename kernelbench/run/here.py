"""The executor that is this very process: for functions that are at hand, in a notebook or a test.

What a job costs a worker it costs this process: a provider that ends it ends all.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from kernelbench.run.executor import Executor
from kernelbench.run.worker import decode, session_of
from kernelbench.spec import Family, KernelbenchError, RunRecord

_limits: dict[str, Mapping[str, Any]] = {}  # by device


class Here:
    """An Executor of some families. What Python code prints to stderr goes to the log."""

    def __init__(self, log: Path, families: Mapping[str, Family[Any]]) -> None:
        self.log, self._families = log, families
        self._events: deque[dict[str, Any]] = deque()
        self._records: Iterator[list[RunRecord]] = iter(())
        self._session: Any = None
        self._start: Mapping[str, Any] = {}

    def send(self, request: Mapping[str, Any]) -> None:
        from kernelbench.measure import environment
        from kernelbench.measure.job import run_job

        if "device" in request:
            kind = environment.settled(str(request["device"]))
            self._start = {**request, "device": kind}
            self._event("hello", machine=environment.describe(kind))
        elif "ceilings" in request:
            start = self._start
            self._session = _session(start["device"], bool(start["timing"]))
            self._event("ceilings", ceilings=self._session.ceilings.as_json())
        else:
            wanted = decode(dict(request), self._families)
            family = self._families[wanted.job.family]
            self._records = run_job(family, wanted, self._session, self._tell)

    def receive(self, timeout: float) -> dict[str, Any]:
        """The next event, for which the job goes on until there is one. timeout: without effect."""
        from kernelbench.measure.job import DeviceLostError

        try:
            while not self._events:
                with self.log.open("a") as log, redirect_stderr(log):
                    records = next(self._records, None)
                if records is None:
                    self._event("done")
                else:
                    self._event("records", records=[record.to_json() for record in records])
        except DeviceLostError as lost:
            raise KernelbenchError(
                f"{lost.provider}: {lost}. This process can use its GPU no more: start a new one"
            ) from None
        return self._events.popleft()

    def _tell(self, provider: str, phase: str) -> None:
        self._event("at", provider=provider, phase=phase)

    def _event(self, name: str, **facts: Any) -> None:
        self._events.append({"event": name, **facts})

    def kill(self) -> None:
        """Nothing of it goes on, and what its clock holds of the GPU's memory is free."""
        self._records, self._session = iter(()), None

    def tail(self, lines: int = 15) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def _session(device: str, timing: bool) -> Any:
    """With a clock of its own. What a clock adds, and the machine's limits, are measured once in
    this process."""
    asked = {"ceilings": _limits.get(device) if timing else None, "anew": False}
    session, _ = session_of(device, asked, timing)
    if timing:
        _limits[device] = session.ceilings.as_json()
    return session


def here(families: Mapping[str, Family[Any]]) -> Callable[[Path], Executor]:
    """Makes executors of these families."""
    return lambda log: Here(log, families)
