"""The GPU's clock on a device of paper: what it queues, in which order, and that a job gets by."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch
from toy import CASE, FAST, provider, right, run, toy

from kernelbench import metrics
from kernelbench.measure import environment, timer
from kernelbench.measure import graph as graphs
from kernelbench.measure.back_to_back import BackToBackClock
from kernelbench.measure.ceilings import Ceilings
from kernelbench.measure.flush import CYCLE, ROUND, TAIL
from kernelbench.measure.job import Session
from kernelbench.measure.probes import Probe
from kernelbench.measure.ranges import NoRanges
from kernelbench.measure.telemetry import Telemetry
from kernelbench.measure.timer import MOST_LEAD, CudaClock
from kernelbench.spec import Mode, Status

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu has the real one")


class Paper:
    """A device that notes what it is given; an event pair reads 5 µs; a gate holds if it may."""

    def __init__(self) -> None:
        self.queued: list[str] = []
        self.holds = True

    def event(self, enable_timing: bool) -> "Paper.Event":
        assert enable_timing
        return Paper.Event(self)

    class Event:
        def __init__(self, paper: "Paper") -> None:
            self.paper = paper

        def record(self) -> None:
            self.paper.queued.append("event")

        def query(self) -> bool:
            return not self.paper.holds

        def elapsed_time(self, other: Any) -> float:
            return 0.005

    def sleep(self, cycles: int) -> None:
        self.queued.append("gate" if cycles else "launch")


class Flush:
    def __init__(self, paper: Paper) -> None:
        self.paper = paper

    def __call__(self) -> None:
        self.paper.queued.append("flush")

    def undo_changes(self) -> str:
        return ""


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch) -> Paper:
    made = Paper()
    monkeypatch.setattr(timer.torch.cuda, "Event", made.event)
    monkeypatch.setattr(timer.torch.cuda, "_sleep", made.sleep)
    monkeypatch.setattr(timer.torch.cuda, "synchronize", lambda: None)
    return made


@pytest.fixture
def clock(paper: Paper) -> CudaClock:
    made = CudaClock.__new__(CudaClock)
    made.overhead_ns, made.quantum_ns, made._events, made._cycles_per_ns = 3_000, 32, [], 1.0
    made._plans = WeakKeyDictionary()
    made.ranges = NoRanges()
    made.flush = Flush(paper)  # type: ignore[assignment]
    made._tail_ns = made._tail()
    paper.queued.clear()
    return made


def test_the_clock_knows_its_step(
    paper: Paper, clock: CudaClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Event:
        slept = 0

        def record(self) -> None:
            pass

        def elapsed_time(self, end: Any) -> float:
            return (900 + 0.55 * Event.slept) // step * step / 1e6

    monkeypatch.setattr(timer.torch.cuda, "Event", lambda enable_timing=False: Event())
    monkeypatch.setattr(timer.torch.cuda, "_sleep", lambda n: setattr(Event, "slept", n))
    for step in (32, 512, 5):
        clock._events = []
        assert clock._quantum() == step


def test_a_batch_is_a_gate_then_samples_in_turn_and_a_tail(paper: Paper, clock: CudaClock) -> None:
    probe = Probe("p", lambda: paper.queued.append("call"))
    clock.batch(probe, 1)  # the first look
    paper.queued.clear()
    batch = clock.batch(probe, ROUND)
    assert (batch.samples_ns, batch.held) == ((5_000,) * ROUND, True)
    expected = ["gate"]
    for i in range(ROUND):
        expected += ["launch"] * (i % CYCLE) + ["flush", "event", "call", "event"]
    assert paper.queued == expected + ["launch"] * TAIL


def test_a_led_batch_begins_with_calls_before_its_gate_that_are_no_samples(
    paper: Paper, clock: CudaClock
) -> None:
    probe = Probe("p", lambda: paper.queued.append("call"))
    clock.batch(probe, 1)  # the first look
    paper.queued.clear()
    clock.lead_ns = 10**12
    batch = clock.batch(probe, ROUND)
    assert (len(batch.samples_ns), batch.lead, batch.held) == (ROUND, MOST_LEAD, True)
    gate = paper.queued.index("gate")
    assert paper.queued[:gate].count("call") == MOST_LEAD
    assert paper.queued[:gate].count("flush") == MOST_LEAD  # as cold as those that are timed
    assert paper.queued[gate:].count("call") == ROUND
    clock.lead_ns = 0
    assert clock.batch(probe, ROUND).lead == 0


def test_ranges_hold_the_call_and_the_flush_apart_and_are_not_timed(
    paper: Paper, clock: CudaClock
) -> None:
    class Ranges:
        def call(self, provider: str) -> None:
            paper.queued.append(f"<{provider}")

        def open(self, name: str) -> None:
            paper.queued.append(f"<{name}")

        def close(self) -> None:
            paper.queued.append(">")

    clock.ranges = Ranges()
    probe = Probe("p", lambda: paper.queued.append("call"))
    clock.batch(probe, 1)  # the first look
    first = " ".join(paper.queued)
    assert first.startswith("<warmup <flush flush > <p event call event >")
    assert paper.queued.count(">") == sum(word.startswith("<") for word in paper.queued)
    paper.queued.clear()
    clock.batch(probe, 2)
    once = "<flush {}flush > <p event call event >"
    expected = f"gate {once.format('')} {once.format('launch ')} {'launch ' * TAIL}".split()
    assert paper.queued == expected


def test_a_call_that_is_timed_back_to_back_begins_on_an_idle_gpu(
    paper: Paper, clock: CudaClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No gate, and none is needed: one that never holds makes no difference."""
    monkeypatch.setattr(timer.torch.cuda, "synchronize", lambda: paper.queued.append("idle"))
    paper.holds = False
    other = BackToBackClock.of(clock)
    assert (clock.name, other.name, other.times) == ("gated", "back_to_back", True)
    probe = Probe("p", lambda: paper.queued.append("call"))
    other.batch(probe, 1)  # the first look
    paper.queued.clear()
    batch = other.batch(probe, 3)
    assert (batch.samples_ns, batch.held, batch.lead) == ((5_000,) * 3, True, 0)
    assert paper.queued == ["flush", "idle", "event", "call", "event", "idle"] * 3
    other.lead_ns = 10**12
    assert other.batch(probe, 3).lead == MOST_LEAD


@pytest.mark.parametrize("profiled", [False, True])
def test_a_family_of_whole_steps_is_timed_back_to_back(
    paper: Paper, clock: CudaClock, profiled: bool
) -> None:
    """Its times count: they have speedups, and are judged on fresh inputs."""
    paper.holds = False
    session = Session(
        environment.device("cpu"), clock, Ceilings(), Telemetry.open(None), profiled=profiled
    )
    family = replace(toy(provider("fine", right)), back_to_back=True)
    record = run(family, CASE, session=session, measure=FAST)["fine"]
    assert record.status is Status.ok and record.timing is not None
    assert record.timing.fresh_ns == (5_000,) * 5
    assert record.timing.timer == ("profiled" if profiled else "back_to_back")
    assert record.timing.counts == (not profiled) == bool(metrics.clocked(record))
    assert ("profiled" in record.flags) == profiled


def test_a_gate_that_never_holds_ends_ungated(paper: Paper, clock: CudaClock) -> None:
    paper.holds = False
    batch = clock.batch(Probe("p", lambda: None), ROUND)
    assert not batch.held
    assert len(batch.samples_ns) == ROUND


@pytest.mark.parametrize("mode", list(Mode))
def test_a_whole_job_gets_by(clock: CudaClock, mode: Mode) -> None:
    device = environment.device("cpu")
    session = Session(device, clock, Ceilings(), Telemetry.open(None))
    case = CASE.__class__(R=7, N=64, dtype=CASE.dtype, mode=mode)
    found = run(toy(provider("fine", right)), case, session=session, measure=FAST)
    for record in found.values():
        assert record.status is Status.ok, record.reason
        timing = record.timing
        assert timing is not None
        assert (timing.timer, timing.fresh_ns) == ("gated", (5_000,) * 5)
        assert timing.host_ns
        assert set(timing.missing) == {"graph", "kernel"}


def test_a_provider_that_is_never_held_is_not_judged_by_fresh_samples(
    paper: Paper, clock: CudaClock
) -> None:
    paper.holds = False
    session = Session(environment.device("cpu"), clock, Ceilings(), Telemetry.open(None))
    record = run(toy(provider("fine", right)), CASE, session=session, measure=FAST)["fine"]
    assert record.status is Status.ok
    assert record.timing is not None
    assert (record.timing.timer, record.timing.fresh_ns) == ("ungated", ())
    assert "ungated" in record.flags


def test_a_graph_is_timed_behind_a_gate_that_held_or_not_at_all(
    paper: Paper, clock: CudaClock
) -> None:
    class Graph:
        def replay(self) -> None:
            paper.queued.append("replay")

    graph: Any = Graph()
    assert clock._replayed(graph, 2, 10) == (500, 500)
    assert paper.queued == ["gate", *["event", "replay", "event"] * 2]
    paper.holds = False
    with pytest.raises(RuntimeError, match="did not hold"):
        clock._replayed(graph, 2, 10)


@pytest.mark.parametrize(("error", "found"), [(0, 30), (1, None)])
def test_nodes_are_counted_by_the_driver_or_unknown(error: int, found: int | None) -> None:
    def nodes_of(captured: Any, nodes: None, count: Any) -> int:
        assert captured.value == 7
        count._obj.value = 30
        return error

    graph: Any = SimpleNamespace(raw_cuda_graph=lambda: 7)
    assert graphs.count_nodes(graph, SimpleNamespace(cuGraphGetNodes=nodes_of)) == found


def test_nodes_of_a_call_are_those_of_the_graph_by_the_calls_in_it(
    clock: CudaClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = SimpleNamespace(replay=lambda: None)
    monkeypatch.setattr(clock, "_capture", lambda part, unroll: graph)
    for nodes, each in ((30, 3), (25, 2.5), (None, None)):
        monkeypatch.setattr(graphs, "count_nodes", lambda graph, nodes=nodes: nodes)
        replays = clock.replays(Probe("copy", lambda: None))
        assert replays.nodes == each and set(replays.ns) == {500}
