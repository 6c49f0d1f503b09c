"""Is a provider as fast on inputs that it has not seen, and is what it answers while it is timed
right? One that skips repeated work, or that behaves only when it is watched, is not.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch

from kernelbench.measure.answer import Contract, copied
from kernelbench.measure.workload import Workload
from kernelbench.spec import Timing

DRAWS = 5
FEWEST = 3  # held samples without which nothing is said
FACTOR, MORE_NS = 1.2, 700  # a single sample on fresh inputs may take this much longer


@dataclass(eq=False)  # a clock remembers what it learnt of each
class Keeping:
    """A workload, for a clock, that keeps what its last call returned."""

    workload: Workload
    outputs: tuple[torch.Tensor, ...] = field(default=(), init=False)
    lot: None = None  # what it keeps is judged

    @property
    def name(self) -> str:
        return self.workload.name

    @property
    def call(self) -> Callable[[], Any]:
        return self._call

    def _call(self) -> None:
        self.outputs = self.workload.call()

    def grad_mode(self) -> Any:
        return self.workload.grad_mode()

    def ready(self) -> None:
        self.workload.ready()

    def restore(self) -> None:
        self.workload.restore()

    def produced(self, contract: Contract) -> dict[str, torch.Tensor]:
        """Copies of the kept outputs by name: one may be another, or lie in an input.

        Raises ContractError where they are no answer.
        """
        outputs, self.outputs = self.outputs, ()
        contract.check(outputs, self.workload.names)
        return dict(zip(self.workload.names, copied(outputs), strict=True))


def _medians(timing: Timing) -> tuple[float, float] | None:
    """ns on repeated and on fresh inputs, less the overhead; None where they were not gated."""
    if timing.timer != "gated" or len(timing.fresh_ns) < FEWEST:
        return None
    repeated = median(ns for block in timing.blocks_ns for ns in block)
    return repeated - timing.overhead_ns, median(timing.fresh_ns) - timing.overhead_ns


def slowdown(timing: Timing) -> float | None:
    """How many times longer it takes on fresh inputs than on repeated ones; None if unknown."""
    medians = _medians(timing)
    return medians and medians[1] / max(medians[0], 1)


def seen_before(timing: Timing, scale: float = 1.0) -> str:
    """Why a time holds only for inputs seen before, or nothing. Only gated times are judged.

    scale: how many times longer the honest may take because the fresh inputs are of another kind.
    """
    medians = _medians(timing)
    if medians is None:
        return ""
    repeated, fresh = medians
    if fresh <= FACTOR * max(scale, 1.0) * repeated + MORE_NS:
        return ""
    return (
        f"{repeated / 1e3:.2f} µs while its inputs repeat, but {fresh / 1e3:.2f} µs on inputs "
        "that it has not seen before"
    )
