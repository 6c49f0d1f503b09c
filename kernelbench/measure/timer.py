"""Clocks: GPU time by gated events, host submission time, CUDA-graph replay, CUPTI spans.

A gated batch holds the stream with a spin kernel while everything is queued behind it, so that
samples contain no launch latency. The gate provably held if the first event has not fired when the
last call has been queued. What no gate can hold: see `back_to_back`.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch

from kernelbench.measure import graph
from kernelbench.measure.flush import CYCLE, ROUND, TAIL, ColdL2, launch_empty
from kernelbench.measure.lot import Lot
from kernelbench.measure.ranges import NoRanges, Ranges
from kernelbench.measure.sampling import Batch
from kernelbench.measure.team import Alone, Team, slowest
from kernelbench.measure.trace import WINDOW, Spans, spans, tracing
from kernelbench.spec import Device

MAX_GATE_NS = 200_000_000
MARGIN_NS = 100_000
MAX_FACTOR = 12.0
BATCH_NS = 500_000_000  # a batch takes at most about this long, unless a single call does
QUANTUM_READINGS = 200
MOST_LEAD = 512  # leading calls of a batch
OTHER_CLOCK_NS = 200_000_000  # each of the other clocks takes at most about this long


class Timed(Protocol):
    """What a clock can time: a workload, or a bare probe of the machine."""

    @property
    def name(self) -> str: ...
    @property
    def call(self) -> Callable[[], Any]: ...
    @property
    def lot(self) -> Lot | None: ...  # judges some of the calls that a batch times
    def grad_mode(self) -> Any: ...
    def ready(self) -> None: ...
    def restore(self) -> None: ...


class HostClock:
    """Makes untimed calls on a machine without a GPU; times would say nothing about a GPU."""

    name, times = "host", False
    overhead_ns = quantum_ns = lead_ns = 0

    def __init__(self, ranges: Ranges | None = None) -> None:
        self.ranges = ranges or NoRanges()

    def undo_changes(self) -> str:
        """Nothing to undo."""
        return ""

    def batch(self, part: Timed, n: int) -> Batch:
        """Make n calls, and take no sample."""
        with part.grad_mode():
            for _ in range(n):
                part.restore()
                self.ranges.call(part.name)
                part.call()
                self.ranges.close()
        return Batch(())


def begin(part: Timed, n: int, *, leads: bool = False) -> int:
    """Begin n calls; returns how many are judged. leads: see `Lot.begin`."""
    return 0 if part.lot is None else part.lot.begin(n, leads=leads)


def judge(part: Timed, returned: Any) -> None:
    """Judge what a call returned, if the lot draws it."""
    if part.lot is not None and part.lot.draw():
        part.lot.judge(returned)


@dataclass
class _BatchPlan:
    """How to gate one workload, and how many of its calls fit into a time.

    submit_ns: host time of one ungated iteration; whole_ns: until the GPU is done with it.
    judge_ns: host time to queue the judgement of one call. factor: gate time over submission time.
    most: calls that a gate can hold; 0 if it cannot even hold one.
    """

    submit_ns: float
    whole_ns: float
    judge_ns: float = 0.0
    factor: float = 1.5
    most: int = 512

    def fit(self, ns: float, least: int, most: int) -> int:
        """The number of iterations that take about `ns`, within [least, most]."""
        return int(max(least, min(most, ns / self.whole_ns)))


class CudaClock:
    """Gated CUDA events with a cold L2 before every call.

    overhead_ns: by how much an event pair reads more than a kernel's time; see
        `ceilings.calibrate`.
    quantum_ns: the step of its readings, 32 on an H200.
    lead_ns: for how long iterations run before the gate, as in a batch but without samples; a card
        under its limit needs some time to settle at the clock of a call.
    """

    name, times = "gated", True
    lead_ns = 0
    team: Team = Alone()  # who makes the calls that are timed together with this process

    def __init__(self, device: Device, ranges: Ranges | None = None) -> None:
        self.overhead_ns = 0
        self.ranges = ranges or NoRanges()
        self.flush = ColdL2(device)
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._plans: WeakKeyDictionary[Timed, _BatchPlan] = WeakKeyDictionary()
        self._cycles_per_ns = self._calibrate_gate()
        self.quantum_ns = self._quantum()
        self._tail_ns = self._tail()

    def batch(self, part: Timed, n: int) -> Batch:
        """Take n samples, fewer if the gate holds only for fewer or if they would take too long.

        A gate that did not hold is doubled up to 8 × its first length, then the number of calls is
        halved; the result is kept for the workload. `held` is false if the gate cannot hold a
        single call.
        """
        with part.grad_mode():
            plan = self._plan(part)
            while plan.most:
                calls = min(plan.fit(BATCH_NS, 1, n), plan.most)
                lead = plan.fit(self.lead_ns, 1, MOST_LEAD) if self.lead_ns else 0
                if lead:
                    self._lead(part, lead)
                judged = begin(part, calls)
                submit_ns = calls * plan.submit_ns + judged * plan.judge_ns + self._tail_ns
                gate_ns = max(self.team.gather(plan.factor * submit_ns + MARGIN_NS))
                batch = self._gated(part, calls, int(min(gate_ns, MAX_GATE_NS)))
                if all(self.team.gather(batch.held)):
                    return replace(slowest(self.team, batch), lead=lead)
                if plan.factor < MAX_FACTOR and gate_ns < MAX_GATE_NS:
                    plan.factor *= 2
                else:
                    plan.most = calls // 2
            calls = plan.fit(BATCH_NS, 1, n)
            begin(part, calls)
            return replace(slowest(self.team, self._gated(part, calls, 0)), held=False)

    def undo_changes(self) -> str:
        """Undo changes of the device that affect other providers; their description, or "".

        From sm_80 on this is the part of the L2 that is set aside for persisting lines.
        """
        return self.flush.undo_changes()

    def gate(self, ns: int) -> None:
        """Hold the stream for about `ns`; bounded in time, so it cannot deadlock."""
        torch.cuda._sleep(int(ns * self._cycles_per_ns))

    def host_ns(self, part: Timed, n: int = 30) -> tuple[int, ...]:
        """CPU time in ns to submit one call, with the GPU idle and an empty queue."""
        samples = []
        with part.grad_mode():
            n = self._plan(part).fit(OTHER_CLOCK_NS, 5, n)
            call = part.call
            for _ in range(n):
                part.restore()
                torch.cuda.synchronize()
                self.ranges.call(part.name)
                start = time.perf_counter_ns()
                call()
                samples.append(time.perf_counter_ns() - start)
                self.ranges.close()
            torch.cuda.synchronize()
        return tuple(samples)

    def replays(self, part: Timed, n: int = 20, unroll: int = 10) -> graph.Replays:
        """A call in a replayed CUDA graph, L2 warm: n samples of `unroll` calls each.

        Inputs that the provider overwrites are not restored between the calls of a graph.
        Raises PyTorch's error where the call cannot be captured, RuntimeError where no gate holds.
        """
        with part.grad_mode():
            plan = self._plan(part)
        unroll = plan.fit(OTHER_CLOCK_NS / 5, 1, unroll)
        n = plan.fit(OTHER_CLOCK_NS / unroll, 5, n)
        try:
            captured = self._capture(part, unroll)
            nodes = graph.count_nodes(captured)
            captured.replay()
            torch.cuda.synchronize()
            samples = self._replayed(captured, n, unroll)
            return graph.Replays(samples, None if nodes is None else nodes / unroll)
        finally:
            part.ready()  # on the usual stream again

    def _replayed(self, captured: torch.cuda.CUDAGraph, n: int, unroll: int) -> tuple[int, ...]:
        pairs = self._pairs(n)
        for attempt in range(4):
            self.gate(min(n * MARGIN_NS << attempt, MAX_GATE_NS))
            for start, end in pairs:
                start.record()
                captured.replay()
                end.record()
            held = not pairs[0][0].query()
            torch.cuda.synchronize()
            if held:
                return tuple(round(between_ns(s, e) / unroll) for s, e in pairs)
        raise RuntimeError("the gate did not hold for the replays of a graph")

    def _capture(self, part: Timed, unroll: int) -> torch.cuda.CUDAGraph:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), part.grad_mode():
            part.ready()  # a backward runs on the stream of its forward
            for _ in range(3):
                part.call()
            torch.cuda.synchronize()
            return graph.capture(lambda: [part.call() for _ in range(unroll)], stream)

    def _calibrate_gate(self) -> float:
        """Cycles of the spin kernel per ns at the highest measured clock: no gate is too short."""
        cycles, (start, end) = 10_000_000, self._pairs(1)[0]
        rates = []
        for _ in range(5):  # the first loads the kernel and wakes the clock
            start.record()
            torch.cuda._sleep(cycles)
            end.record()
            torch.cuda.synchronize()
            rates.append(cycles / between_ns(start, end))
        return max(rates)

    def _quantum(self) -> int:
        """The smallest difference between readings of gates whose lengths grow by less."""
        start, end = self._pairs(1)[0]
        readings = set()
        for i in range(QUANTUM_READINGS):
            start.record()
            torch.cuda._sleep(1000 + 10 * i)
            end.record()
            torch.cuda.synchronize()
            readings.add(between_ns(start, end))
        return min((b - a for a, b in pairwise(sorted(readings))), default=0)

    def _tail(self) -> float:
        """Host time in ns to submit what follows the last sample of a batch."""
        samples = []
        for _ in range(5):
            start = time.perf_counter_ns()
            launch_empty(TAIL)
            samples.append(time.perf_counter_ns() - start)
        torch.cuda.synchronize()
        return median(samples)

    def _pairs(self, n: int) -> list[tuple[torch.cuda.Event, torch.cuda.Event]]:
        while len(self._events) < n:
            pair = tuple(torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._events.append((pair[0], pair[1]))
        return self._events[:n]

    def _flush_l2(self, part: Timed, launches: int) -> None:
        """Prepare the next call: `launches` empty launches, restored inputs, a cold L2."""
        self.ranges.open("flush")
        launch_empty(launches)
        part.restore()
        self.flush()
        self.ranges.close()

    def _iteration(self, part: Timed, start: Any, end: Any, launches: int = 0) -> Any:
        """Make one cold call between two events; returns what it returned."""
        self._flush_l2(part, launches)
        self.team.start_line()
        self.ranges.call(part.name)
        start.record()
        returned = part.call()
        end.record()
        self.ranges.close()
        return returned

    def _plan(self, part: Timed) -> _BatchPlan:
        """The plan of a part, from ungated iterations; the first ones also fill the allocator."""
        if part in self._plans:
            return self._plans[part]
        start, end = self._pairs(1)[0]
        self.ranges.open("warmup")
        self._iteration(part, start, end)
        torch.cuda.synchronize()
        judge_ns = self._rehearse(part)
        submits, wholes = [], []
        for _ in range(3):
            start_ns = time.perf_counter_ns()
            self._iteration(part, start, end, CYCLE // 2)
            submits.append(time.perf_counter_ns() - start_ns)
            torch.cuda.synchronize()
            wholes.append(time.perf_counter_ns() - start_ns)
        self.ranges.close()
        own = median(submits), min(wholes), judge_ns
        longest = map(max, zip(*self.team.gather(own), strict=True))
        self._plans[part] = plan = _BatchPlan(*longest)
        return plan

    def _rehearse(self, part: Timed) -> float:
        """Host time in ns to queue the judgement of a call; 0 where none is judged."""
        if part.lot is None:
            return 0.0
        part.restore()
        returned = part.call()
        samples = []
        for _ in range(3):
            start = time.perf_counter_ns()
            part.lot.rehearse(returned)
            samples.append(time.perf_counter_ns() - start)
        torch.cuda.synchronize()
        return min(samples)

    def _lead(self, part: Timed, n: int) -> None:
        """Make n iterations as in a batch, without taking samples."""
        start, end = self._pairs(1)[0]
        begin(part, n, leads=True)
        for i in range(n):
            returned = self._iteration(part, start, end, i % CYCLE)
            judge(part, returned)
            del returned

    def _gated(self, part: Timed, n: int, gate_ns: int) -> Batch:
        pairs = self._pairs(n)
        self.gate(gate_ns)
        for i, (start, end) in enumerate(pairs):
            returned = self._iteration(part, start, end, i % CYCLE)
            judge(part, returned)
            del returned
        launch_empty(TAIL)
        held = not pairs[0][0].query()
        torch.cuda.synchronize()
        return Batch(tuple(between_ns(s, e) for s, e in pairs), held)

    def kernel_ns(self, parts: Iterable[Timed], n: int = 2 * ROUND) -> dict[str, Spans]:
        """CUPTI spans (first kernel's start to last kernel's end) of n gated calls, by part.

        Kernels belong to a call if they were launched, by any thread, while it ran: autograd's own
        thread launches a backward. A part whose gate did not hold has no spans: they would contain
        launch latency.
        """
        held = {}
        with tracing() as profile:
            for part in parts:
                with part.grad_mode():
                    held[part.name] = self._traced(part, n)
        spans_of = spans(profile.profiler.kineto_results.events())
        return {
            name: replace(spans_of.get(f"{name}.{attempt}", Spans()), event_ns=event_ns)
            if attempt
            else Spans(held=False)
            for name, (attempt, event_ns) in held.items()
        }

    def _traced(self, part: Timed, n: int) -> tuple[int, tuple[int, ...]]:
        """Queue n calls in named windows behind a gate.

        Returns the number of the attempt in which the gate held, or 0, and what event pairs around
        the same calls read.
        """
        plan = self._plan(part)
        for attempt in range(1, 5):  # launches cost more under CUPTI; each gate is longer
            calls = max(1, min(plan.fit(OTHER_CLOCK_NS, 3, n), plan.most) >> (attempt // 2))
            gate_ns = 2**attempt * 2 * calls * plan.submit_ns + MARGIN_NS
            self.gate(int(min(gate_ns, MAX_GATE_NS)))
            pairs = self._pairs(calls)
            for i, (start, end) in enumerate(pairs):
                self._flush_l2(part, i % CYCLE)
                start.record()
                with torch.profiler.record_function(f"{WINDOW}{part.name}.{attempt}.{i}"):
                    part.call()
                end.record()
            held = not pairs[0][0].query()
            self.flush()  # a kernel that still runs when this begins is on another stream
            torch.cuda.synchronize()
            if held:
                return attempt, tuple(between_ns(s, e) for s, e in pairs)
        return 0, ()


def between_ns(start: torch.cuda.Event, end: torch.cuda.Event) -> int:
    """ns between two events; PyTorch returns ms with 24 bits of mantissa."""
    ms: float = start.elapsed_time(end)
    return round(ms * 1e6)
