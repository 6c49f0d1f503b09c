"""What a profiler that looks on is shown of a run."""

import time
from typing import Any

import pytest
import torch
from toy import CASE, HostTimes, provider, right, run, toy

from kernelbench.measure import environment
from kernelbench.measure.ceilings import Ceilings
from kernelbench.measure.job import Request, Session, run_job
from kernelbench.measure.ranges import NoRanges
from kernelbench.measure.telemetry import Telemetry
from kernelbench.profile import phases
from kernelbench.profile.phases import Phases
from kernelbench.spec import Context, Job, Measure, Status


class Noted:
    """Ranges as a tree of names: (name, [children])."""

    def __init__(self) -> None:
        self.root: list[Any] = []
        self._open = [self.root]
        self.marks: dict[str, float] = {}

    def push(self, name: str, payload: float | None = None) -> None:
        inside: list[Any] = []
        self._open[-1].append((name, inside))
        self._open.append(inside)

    def pop(self) -> None:
        assert len(self._open) > 1, "more closed than opened"
        self._open.pop()

    def mark(self, name: str, payload: float | None = None) -> None:
        assert payload is not None
        self.marks[name] = payload

    @property
    def depth(self) -> int:
        return len(self._open) - 1


def watched(*providers: Any) -> tuple[Noted, list[Any]]:
    """The ranges of one job, and its records."""
    noted, family = Noted(), toy(*providers)
    watching = Phases(noted)  # type: ignore[arg-type]
    clock, device = HostTimes(watching), environment.device("cpu")
    session = Session(device, clock, Ceilings(), Telemetry.open(None), profiled=True)
    measure = Measure(min_samples=2, max_samples=4, block=2)
    names = tuple(p.name for p in family.providers)
    job = Job(family="toy", case=CASE, providers=names, measure=measure)
    request = Request(job, Context(run_id="r", gpu="g", seed=3, source="s"))
    with watching.job(job):
        told = lambda provider, phase: watching.enter(phase)  # noqa: E731
        records = [r for batch in run_job(family, request, session, told) for r in batch]
    return noted, records


def test_a_job_holds_its_phases_and_they_the_measured_calls() -> None:
    noted, records = watched(provider("ours", right))
    assert noted.depth == 0
    ((name, inside),) = noted.root
    assert name == "job.toy.R7-N64-fp32-fwd"
    names = [phase for phase, _ in inside]
    assert names[0] == "setup" and {"compile", "check", "trial", "measure"} == {*names[1:]}
    calls = [call for phase, below in inside if phase == "measure" for call, _ in below]
    expected = {f"kb.toy.{who}.R7-N64-fp32-fwd" for who in ("eager", "ours")}
    assert {*calls} == expected
    samples = {r.provider: sum(map(len, r.timing.blocks_ns)) for r in records}
    for who, count in samples.items():
        assert calls.count(f"kb.toy.{who}.R7-N64-fp32-fwd") == count
    assert not any(below for phase, below in inside if phase in ("setup", "compile"))
    assert noted.marks == {"axis.R": 7, "axis.N": 64, "axis.sampled": 0}


def test_what_a_failing_call_left_open_is_closed() -> None:
    calls = iter(range(100))

    def falls_when_timed(a: Any) -> Any:
        if next(calls) == 4:
            raise RuntimeError("now")
        return right(a)

    noted, records = watched(provider("falls", falls_when_timed))
    assert {r.provider: r.status for r in records}["falls"] is Status.failed
    assert noted.depth == 0
    ((_, inside),) = noted.root
    assert all(not deeper for _, below in inside for _, deeper in below), "calls hold no ranges"


def test_names_are_of_letters_that_every_filter_reads() -> None:
    noted, _ = watched(provider("odd/näme (1)", right))
    text = str(noted.root)
    assert "kb.toy.odd_n_me__1_.R7-N64-fp32-fwd" in text


def test_gpu_times_under_a_profiler_are_no_gated_times() -> None:
    session = Session(
        environment.device("cpu"), toy_clock(), Ceilings(), Telemetry.open(None), profiled=True
    )
    records = run(toy(provider("ours", right)), session=session)
    assert {r.timing.timer for r in records.values() if r.timing} == {"profiled"}
    assert all("profiled" in r.flags for r in records.values())
    plain = run(toy(provider("ours", right)))
    assert {r.timing.timer for r in plain.values() if r.timing} == {"gated"}


def toy_clock() -> Any:
    from toy import Script

    return Script()


@pytest.mark.parametrize("ranges", [NoRanges(), Phases(None)])
def test_nobody_looking_costs_under_a_microsecond(ranges: Any) -> None:
    def once() -> float:
        start = time.perf_counter_ns()
        for _ in range(1000):
            ranges.call("triton_fused")
            ranges.close()
        return (time.perf_counter_ns() - start) / 1000

    assert min(once() for _ in range(20)) < 1000


def test_without_a_tool_nothing_is_opened_and_autograd_keeps_its_threads(monkeypatch) -> None:
    monkeypatch.setattr(phases.nvtx, "SIGNS", (("KERNELBENCH_NO_SUCH_VARIABLE", "none"),))
    monkeypatch.setattr(phases.nvtx, "attached", lambda: "")
    before = torch._C._is_multithreading_enabled()
    assert not phases.watch().attached
    assert torch._C._is_multithreading_enabled() == before


def test_a_backward_that_is_watched_stays_on_its_thread(monkeypatch) -> None:
    monkeypatch.setattr(phases.nvtx, "attached", lambda: "nsys")
    try:
        assert phases.watch().attached
        assert not torch._C._is_multithreading_enabled()
    finally:
        torch.autograd.set_multithreading_enabled(True)
