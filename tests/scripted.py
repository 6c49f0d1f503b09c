"""An executor that answers from a script: no process, no waiting."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kernelbench.run.executor import Executor, WorkerEndedError

MACHINE = {"name": "NVIDIA T", "kind": "cuda", "arch": "sm_90", "versions": {}}
Answer = Callable[[dict[str, Any]], Sequence[Any]]  # of a request: events, and how it ends


class Scripted:
    """The executor of one process. What an answer holds is received in turn; an exception among it
    is raised, and it has fallen."""

    def __init__(self, log: Path, answer: Answer, asked: list[dict[str, Any]]) -> None:
        self.log, self._answer, self._asked = log, answer, asked
        self._waiting = [{"event": "hello", "machine": MACHINE}]
        self.killed = False
        log.touch()

    def send(self, request: Mapping[str, Any]) -> None:
        self._asked.append(dict(request))
        if "ceilings" in request:
            self._waiting.append({"event": "ceilings", "ceilings": {"known": request["ceilings"]}})
        elif "job" in request:
            self._waiting += self._answer(dict(request))

    def receive(self, timeout: float) -> dict[str, Any]:
        if not self._waiting:
            raise WorkerEndedError(f"nothing happened for {timeout:g} s", silent=True)
        event = self._waiting.pop(0)
        if isinstance(event, Exception):
            raise event
        return event

    def kill(self) -> None:
        self.killed = True

    def tail(self, lines: int = 15) -> str:
        return "the end of the log"


class Script:
    """Makes executors that share an answer; `made` are all of them, `asked` all they were asked."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.made: list[Scripted] = []
        self.asked: list[dict[str, Any]] = []

    def __call__(self, log: Path) -> Executor:
        self.made.append(Scripted(log, self._answer, self.asked))
        return self.made[-1]

    @property
    def jobs(self) -> list[dict[str, Any]]:
        """The requests to measure a job, in order."""
        return [request for request in self.asked if "job" in request]
