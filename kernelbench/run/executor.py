"""Who carries jobs out, as the loop sees it: asked by requests, heard by events.

An executor is one process of a run, on this machine (`local`) or elsewhere; requests and events are
those of `worker`.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from kernelbench.spec import KernelbenchError


class WorkerEndedError(Exception):
    """The worker is no more. `reason` says how it ended, `silent` whether it had to be killed."""

    def __init__(self, reason: str, *, silent: bool = False) -> None:
        super().__init__(reason)
        self.silent = silent


class Executor(Protocol):
    """log: the file of what it prints."""

    log: Path

    def send(self, request: Mapping[str, Any]) -> None:
        """Raises WorkerEndedError when nobody is there to be asked."""

    def receive(self, timeout: float) -> dict[str, Any]:
        """The next event. Raises WorkerEndedError when there is none within `timeout` seconds, and
        KernelbenchError for what it refuses."""

    def kill(self) -> None:
        """End it, whatever it does, and whatever it started."""

    def tail(self, lines: int = 15) -> str:
        """The end of what it printed."""


Make = Callable[..., Executor]  # of a log; with `visible` where it is to see certain GPUs


def events(executor: Executor, timeout: float, last: str) -> Iterator[dict[str, Any]]:
    """Events up to and with the one called `last`."""
    while True:
        event = executor.receive(timeout)
        yield event
        if event["event"] == last:
            return


def _heard(executor: Executor, timeout: float) -> dict[str, Any]:
    """The answer to a request that is about no job. Raises WorkerEndedError, also where it is that
    a rank was lost."""
    event = executor.receive(timeout)
    if event["event"] == "lost":
        raise WorkerEndedError(event["reason"])
    return event


def start(
    make: Make, log: Path, device: str, plugins: tuple[str, ...], *, timing: bool, timeout: float
) -> tuple[Executor, dict[str, Any]]:
    """One that has said what machine it is on. Raises KernelbenchError if it cannot run."""
    executor = make(log)
    try:
        executor.send({"device": device, "plugins": plugins, "timing": timing})
        hello = _heard(executor, timeout)
    except WorkerEndedError as ended:
        raise KernelbenchError(f"the worker did not start: {ended}\n{executor.tail()}") from None
    return executor, hello["machine"]


def limits(
    executor: Executor, known: Mapping[str, Any] | None, timeout: float, *, anew: bool
) -> dict[str, Any]:
    """The machine's ceilings: those of this run, else measured now (some seconds on a GPU).

    anew: what the worker's own clock adds is measured even so.
    """
    try:
        executor.send({"ceilings": known, "anew": anew})
        event = _heard(executor, timeout)
    except WorkerEndedError as ended:
        raise KernelbenchError(
            f"measuring this machine's limits failed: {ended}\n{executor.tail()}"
        ) from None
    ceilings: dict[str, Any] = event["ceilings"]
    return ceilings
