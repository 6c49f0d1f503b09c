"""Detects providers that are fast on repeated inputs alone, because they skip repeated work, and
keeps the answers of timed calls, so that they can be checked.
"""

from dataclasses import dataclass, field
from statistics import median

import torch

from kernelbench.measure.answer import Contract, copies_of
from kernelbench.measure.workload import Standing
from kernelbench.spec import Timing

DRAWS = 5
FEWEST = 3  # held samples; with fewer, there is no judgement
FACTOR, MORE_NS = 1.2, 700  # a sample on fresh inputs may take FACTOR × as long, and MORE_NS more


@dataclass(eq=False)  # a key of the clock's plans
class RecordingWorkload(Standing):
    """A workload, for a clock, that keeps the outputs of its last call, which are judged."""

    outputs: tuple[torch.Tensor, ...] = field(default=(), init=False)

    def call(self) -> None:
        self.outputs = self.workload.call()

    def produced(self, contract: Contract) -> dict[str, torch.Tensor]:
        """Copies of the kept outputs by name.

        They are copied since outputs may share memory with each other or with an input.
        Raises ContractError where they are no valid answer.
        """
        outputs, self.outputs = self.outputs, ()
        contract.check(outputs, self.workload.names)
        return dict(zip(self.workload.names, copies_of(outputs), strict=True))


def _medians(timing: Timing) -> tuple[float, float] | None:
    """ns on repeated and on fresh inputs, minus the overhead; None unless they count."""
    if not timing.counts or len(timing.fresh_ns) < FEWEST:
        return None
    repeated = median(ns for block in timing.blocks_ns for ns in block)
    return repeated - timing.overhead_ns, median(timing.fresh_ns) - timing.overhead_ns


def slowdown(timing: Timing) -> float | None:
    """How many times longer a call takes on fresh than on repeated inputs; None if unknown."""
    medians = _medians(timing)
    return medians and medians[1] / max(medians[0], 1)


def slower_on_fresh_inputs(timing: Timing, scale: float = 1.0) -> str:
    """Why a time holds for repeated inputs alone, or "". Only times that count are judged.

    scale: how many times longer an honest call may take, since fresh inputs have another
    distribution.
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
