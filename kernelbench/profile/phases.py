"""The NVTX ranges of a run: one for each job, in it one for each phase, in it one for each call.

job.<family>.<case-id>          with a mark `axis.<name>` for every number among its axes
  setup | compile | check | measure | …
    warmup | flush
    kb.<family>.<provider>.<case-id>      one measured call, nothing else

All are in the NVTX domain `kernelbench`. Autograd would run a CUDA backward on its own thread, and
ranges that are pushed on this thread would not contain its kernels. So under a profiler autograd's
threads are switched off.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from kernelbench.profile import nvtx
from kernelbench.spec import Case, Job

# The phase of each step that a worker reports, where the two differ.
PHASES = {
    "inputs": "setup",
    "tune": "compile",
    "fresh": "check",
    "host": "measure",
    "graph": "measure",
    "kernel": "measure",
}


def call_name(family: str, provider: str, case: Case) -> str:
    """The name of the range around one measured call."""
    return nvtx.name_of("kb", family, provider, case.id)


class Phases:
    """The ranges of a worker's jobs. ranges: None without a profiler, so that none is opened."""

    def __init__(self, ranges: nvtx.Ranges | None) -> None:
        self._ranges = ranges
        self._job: Job | None = None
        self._names: dict[str, str] = {}
        self._depth = 0

    @property
    def attached(self) -> bool:
        """Whether a profiler is attached."""
        return self._ranges is not None

    @contextmanager
    def job(self, job: Job) -> Iterator[None]:
        """Inside is the range of a job, marked with its axes."""
        self._names, self._job = {}, job
        self.open(nvtx.name_of("job", job.family, job.case.id))
        if self._ranges is not None:
            for name, value in job.case.as_axes().items():
                if not isinstance(value, str):
                    self._ranges.mark(
                        f"axis.{name}", int(value) if isinstance(value, bool) else value
                    )
        try:
            yield
        finally:
            self._close_above(0)
            self._job = None

    def enter(self, step: str) -> None:
        """Begin the phase of a step, and close all ranges within the job's that are still open."""
        if self._ranges is not None:
            self._close_above(1)
            word = step.split()[0]
            self.open(PHASES.get(word, word))

    def call(self, provider: str) -> None:
        """Open the range of one measured call."""
        if self._ranges is not None:
            self.open(self._names.get(provider) or self._named(provider))

    def open(self, name: str) -> None:
        """Open a range."""
        if self._ranges is not None:
            self._ranges.push(name)
            self._depth += 1

    def close(self) -> None:
        """Close the range that was opened last."""
        if self._ranges is not None:
            self._ranges.pop()
            self._depth -= 1

    def _named(self, provider: str) -> str:
        job = self._job
        name = call_name(job.family, provider, job.case) if job else nvtx.name_of("probe", provider)
        self._names[provider] = name
        return name

    def _close_above(self, depth: int) -> None:
        while self._depth > depth:
            self.close()


def watch(always: bool = False) -> Phases:
    """The ranges for an attached profiler. always: even if none is known to be attached.

    Raises KernelbenchError where a profiler is attached and would see no ranges.
    """
    if not (always or nvtx.attached()):
        return Phases(None)
    ranges: Any = nvtx.open_ranges()
    torch.autograd.set_multithreading_enabled(False)
    return Phases(ranges)
