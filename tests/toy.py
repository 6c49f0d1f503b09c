"""A toy family, y = x·w and m = max over a row of x, and a way to run its jobs in this process."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from kernelbench.measure import environment
from kernelbench.measure.ceilings import Ceilings
from kernelbench.measure.job import Request, Session, run_job
from kernelbench.measure.sampling import Batch
from kernelbench.measure.telemetry import Telemetry
from kernelbench.measure.timer import HostClock, begin, judge
from kernelbench.spec import (
    Case,
    Context,
    Cost,
    Device,
    Draw,
    DType,
    Family,
    Job,
    Measure,
    Mode,
    Provider,
    Role,
    RunRecord,
    Tensors,
    axis,
)


@dataclass(frozen=True, kw_only=True)
class ToyCase(Case):
    R: int = axis("rows")
    N: int = axis("columns")
    sampled: bool = axis("the oracle yields the first row alone", False)


def inputs(case: ToyCase, draw: Draw) -> Tensors:
    found = {"x": draw(case.R, case.N), "w": draw(case.N)}
    return found if case.mode is Mode.fwd else {**found, "grad_y": draw(case.R, case.N)}


def oracle(case: ToyCase, a: Tensors) -> Iterator[tuple[str, Any, torch.Tensor]]:
    x, w = a["x"].double(), a["w"].double()
    rows = slice(0, 1) if case.sampled else slice(None)
    yield "y", rows, x[rows] * w
    yield "m", ..., x.amax(-1)
    if case.mode is not Mode.fwd:
        yield "dx", rows, (a["grad_y"].double() * w)[rows]
        yield "dw", ..., (a["grad_y"].double() * x).sum(0)


def right(a: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
    return a["x"] * a["w"], a["x"].detach().amax(-1)


Call = Callable[[Tensors], Any]


def provider(name: str, call: Call, role: Role = Role.triton_fused, **more: Any) -> Provider[Any]:
    return Provider(name, role, lambda case, config: call, **more)


BASELINE = provider("eager", right, Role.baseline)


def toy(*providers: Provider[Any], baseline: Provider[Any] = BASELINE, **more: Any) -> Family[Any]:
    """The toy family with these providers behind the baseline."""
    family: Family[Any] = Family(
        name="toy",
        title="toy",
        case=ToyCase,
        inputs=inputs,
        outputs=lambda case: ("y", "m"),
        grads=lambda case: ("x", "w"),
        oracle=oracle,
        cost=lambda case: Cost(1, 1, 1),
        providers=(baseline, *providers),
        checks=(),
    )
    return replace(family, **more)


class Script:
    """A clock that answers from a script (1 µs for what is not in it) and keeps who was timed."""

    name, times, overhead_ns, quantum_ns = "gated", True, 0, 0

    def __init__(self, held: bool = True, **ns: int) -> None:
        self.ns, self.held, self.timed = ns, held, list[str]()

    def undo_changes(self) -> str:
        return ""

    def batch(self, part: Any, n: int) -> Batch:
        self.timed.append(part.name)
        with part.grad_mode():
            for _ in range(n):
                part.restore()
                part.call()
        return Batch((self.ns.get(part.name, 1000),) * n, self.held)


class HostTimes(HostClock):
    """Times calls without a GPU, and has the lot judge them: what a GPU's clock does with them."""

    times = True

    def batch(self, part: Any, n: int) -> Batch:
        samples = []
        begin(part, n)
        with part.grad_mode():
            for _ in range(n):
                part.restore()
                self.ranges.call(part.name)
                start = time.perf_counter_ns()
                returned = part.call()
                samples.append(time.perf_counter_ns() - start)
                self.ranges.close()
                judge(part, returned)
        return Batch(tuple(samples))


CASE = ToyCase(R=7, N=64, dtype=DType.fp32)
FAST = Measure(min_samples=2, max_samples=4, block=2)


def run(
    family: Family[Any],
    case: ToyCase = CASE,
    *,
    clock: Any = None,
    names: Sequence[str] = (),
    device: Device | None = None,
    session: Session | None = None,
    measure: Measure = FAST,
    **options: Any,
) -> dict[str, RunRecord]:
    """The records of one job by provider; `names` narrows it."""
    device = device or environment.device("cpu")
    session = session or Session(device, clock or Script(), Ceilings(), Telemetry.open(None))
    names = names or [p.name for p in family.providers]
    job = Job(family="toy", case=case, providers=tuple(names), measure=measure)
    request = Request(job, Context(run_id="r", gpu="g", seed=3, source="s"), **options)
    batches = run_job(family, request, session, lambda provider, phase: None)
    return {record.provider: record for batch in batches for record in batch}
