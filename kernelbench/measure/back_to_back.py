"""The clock of calls that are a whole step of a program, as one of a training.

They launch more kernels than a gate can hold, and what the host takes is part of their time, as far
as the GPU waits for it.
"""

from typing import Self

import torch

from kernelbench.measure.sampling import Batch
from kernelbench.measure.team import slowest
from kernelbench.measure.timer import (
    BATCH_NS,
    MOST_LEAD,
    CudaClock,
    Timed,
    begin,
    between_ns,
    judge,
)


class BackToBackClock(CudaClock):
    """CUDA events around calls that each begin on an idle GPU, with a cold L2."""

    name = "back_to_back"

    @classmethod
    def of(cls, clock: CudaClock) -> Self:
        """One that shares a clock's calibration and plans."""
        made = cls.__new__(cls)
        vars(made).update(vars(clock))
        return made

    def batch(self, part: Timed, n: int) -> Batch:
        """Take n samples, fewer if they would take too long."""
        with part.grad_mode():
            plan = self._plan(part)
            lead = plan.fit(self.lead_ns, 1, MOST_LEAD) if self.lead_ns else 0
            if lead:
                self._lead(part, lead)
            calls = plan.fit(BATCH_NS, 1, n)
            begin(part, calls)
            samples = tuple(self._sample(part) for _ in range(calls))
        return slowest(self.team, Batch(samples, lead=lead))

    def _sample(self, part: Timed) -> int:
        start, end = self._pairs(1)[0]
        self._flush_l2(part, 0)
        torch.cuda.synchronize()
        self.ranges.call(part.name)
        start.record()
        returned = part.call()
        end.record()
        self.ranges.close()
        torch.cuda.synchronize()
        judge(part, returned)
        return between_ns(start, end)
