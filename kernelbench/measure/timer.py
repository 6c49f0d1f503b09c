"""Clocks: GPU time by gated events, host submission time, CUDA-graph replay, CUPTI spans.

A gated batch holds the stream with a spin kernel while everything is queued behind it, so that
launch latency is not in the samples. The proof: when the last call has been queued, the first
event has not fired.
"""

import bisect
import contextlib
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch

from kernelbench.measure.sampling import Batch
from kernelbench.spec import Device

MAX_GATE_NS = 200_000_000
MARGIN_NS = 100_000
TRIES = 4
WINDOW = "kb.call."


class Timed(Protocol):
    """What a clock needs: a workload, or a bare probe of the machine."""

    @property
    def name(self) -> str: ...
    @property
    def call(self) -> Callable[[], Any]: ...
    def grad_mode(self) -> Any: ...
    def ready(self) -> None: ...
    def restore(self) -> None: ...


class HostClock:
    """Host time of a call on a machine without a GPU: says nothing about GPU speed."""

    name = "host"
    overhead_ns = 0

    def batch(self, part: Timed, n: int) -> Batch:
        samples = []
        with part.grad_mode():
            for _ in range(n):
                part.restore()
                start = time.perf_counter_ns()
                part.call()
                samples.append(time.perf_counter_ns() - start)
        return Batch(tuple(samples))


class CudaClock:
    """Gated CUDA events with a cold L2 before every call.

    overhead_ns: what an event pair reads more than a kernel runs; see `ceilings.calibrate`.
    """

    name = "gated"

    def __init__(self, device: Device) -> None:
        self.overhead_ns = 0
        # Twice the L2, written and then read: writing evicts, reading leaves no dirty lines.
        words = max(2 * device.l2_bytes, 64 << 20) // 4
        self._flush = torch.zeros(words, dtype=torch.int32, device="cuda")
        self._sum = torch.zeros((), dtype=torch.int64, device="cuda")
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._submit_ns: dict[int, float] = {}  # by workload: host time of one iteration
        self._cycles_per_ns = self._calibrate_gate()

    def batch(self, part: Timed, n: int) -> Batch:
        """n samples, fewer if the gate holds only for fewer; `held` is false if not even for 1."""
        with part.grad_mode():
            each = self._submit_ns.get(id(part)) or self._submission_ns(part)
            factor = 2.0
            for attempt in range(TRIES + n.bit_length()):
                gate_ns = min(factor * n * each + MARGIN_NS, MAX_GATE_NS)
                batch = self._gated(part, n, int(gate_ns))
                if batch.held:
                    return batch
                if attempt < TRIES and gate_ns < MAX_GATE_NS:
                    factor *= 2
                else:
                    n = max(1, n // 2)
            return batch

    def forget(self) -> None:
        """The workloads of a job are gone."""
        self._submit_ns.clear()

    def flush(self) -> None:
        """Leave nothing of use in the L2."""
        self._flush.zero_()
        torch.sum(self._flush, dim=0, out=self._sum)

    def gate(self, ns: int) -> None:
        """Hold the stream for about `ns`; time-bounded, so it cannot deadlock."""
        torch.cuda._sleep(int(ns * self._cycles_per_ns))

    def host_ns(self, part: Timed, n: int = 30) -> tuple[int, ...]:
        """CPU time to submit one call, with the GPU idle and nothing queued for long."""
        samples = []
        with part.grad_mode():
            call = part.call
            for _ in range(n):
                part.restore()
                torch.cuda.synchronize()
                start = time.perf_counter_ns()
                call()
                samples.append(time.perf_counter_ns() - start)
            torch.cuda.synchronize()
        return tuple(samples)

    def graph_ns(self, part: Timed, n: int = 20, unroll: int = 10) -> tuple[int, ...]:
        """Time of a call in a replayed CUDA graph, L2 warm. Raises if it cannot be captured."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream), part.grad_mode():
            part.ready()  # a backward runs on the stream of its forward
            for _ in range(3):
                part.call()
            torch.cuda.synchronize()
            with torch.cuda.graph(graph, stream=stream):
                for _ in range(unroll):
                    part.call()
        pairs = self._pairs(n)
        graph.replay()
        torch.cuda.synchronize()
        self.gate(n * MARGIN_NS)
        for start, end in pairs:
            start.record()
            graph.replay()
            end.record()
        torch.cuda.synchronize()
        part.ready()
        return tuple(int(start.elapsed_time(end) * 1e6 / unroll) for start, end in pairs)

    def _calibrate_gate(self) -> float:
        torch.cuda._sleep(1_000_000)  # loads the kernel, wakes the clock
        (start, end), cycles = self._pairs(1)[0], 20_000_000
        start.record()
        torch.cuda._sleep(cycles)
        end.record()
        torch.cuda.synchronize()
        return float(cycles / (start.elapsed_time(end) * 1e6))

    def _pairs(self, n: int) -> list[tuple[torch.cuda.Event, torch.cuda.Event]]:
        while len(self._events) < n:
            pair = tuple(torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._events.append((pair[0], pair[1]))
        return self._events[:n]

    def _iteration(self, part: Timed, start: Any, end: Any) -> None:
        part.restore()
        self.flush()
        start.record()
        part.call()
        end.record()

    def _submission_ns(self, part: Timed) -> float:
        """Host time of one ungated iteration; it also fills the allocator."""
        start, end = self._pairs(1)[0]
        self._iteration(part, start, end)
        torch.cuda.synchronize()
        times = []
        for _ in range(3):
            begin = time.perf_counter_ns()
            self._iteration(part, start, end)
            times.append(time.perf_counter_ns() - begin)
            torch.cuda.synchronize()
        self._submit_ns[id(part)] = max(times)
        return max(times)

    def _gated(self, part: Timed, n: int, gate_ns: int) -> Batch:
        pairs = self._pairs(n)
        self.gate(gate_ns)
        for start, end in pairs:
            self._iteration(part, start, end)
        held = not pairs[0][0].query()
        torch.cuda.synchronize()
        return Batch(tuple(int(s.elapsed_time(e) * 1e6) for s, e in pairs), held)

    def kernel_ns(self, parts: Sequence[Timed], n: int = 10) -> dict[str, tuple[int, ...]]:
        """CUPTI span (first kernel's start to last kernel's end) of each of n gated calls.

        Kernels belong to a call if they were launched, by whatever thread, while it ran: a
        backward is launched by autograd's own thread.
        """
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with _quiet(), torch.profiler.profile(activities=activities) as profile:
            for part in parts:
                each = self._submit_ns.get(id(part)) or self._submission_ns(part)
                with part.grad_mode():
                    self.gate(int(min(4 * n * each + MARGIN_NS, MAX_GATE_NS)))
                    for i in range(n):
                        part.restore()
                        self.flush()
                        with torch.profiler.record_function(f"{WINDOW}{part.name}.{i}"):
                            part.call()
                    torch.cuda.synchronize()
        return spans(profile.profiler.kineto_results.events())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Autograd's profiler warns when it is started twice in one process; that is meant here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def spans(events: Sequence[Any]) -> dict[str, tuple[int, ...]]:
    """GPU spans in ns of the calls in a kineto trace, by provider."""
    windows: list[tuple[int, int, str]] = []
    launched: dict[int, int] = {}
    device_events = []
    for event in events:
        on_gpu = event.device_type() == torch.profiler.DeviceType.CUDA
        if event.name().startswith(WINDOW):
            if not on_gpu:
                start = event.start_ns()
                windows.append((start, start + event.duration_ns(), event.name()))
        elif on_gpu:
            device_events.append(event)
        elif event.correlation_id():
            launched[event.correlation_id()] = event.start_ns()
    windows.sort()
    found: dict[str, tuple[int, int]] = {}
    for event in device_events:
        at = launched.get(event.correlation_id())
        name = _window_at(windows, at) if at is not None else None
        if name is not None:
            start, end = event.start_ns(), event.start_ns() + event.duration_ns()
            low, high = found.get(name, (start, end))
            found[name] = (min(low, start), max(high, end))
    by_provider: dict[str, list[int]] = {}
    for _, _, name in windows:
        if name in found:
            provider = name.removeprefix(WINDOW).rpartition(".")[0]
            by_provider.setdefault(provider, []).append(found[name][1] - found[name][0])
    return {name: tuple(values) for name, values in by_provider.items()}


def _window_at(windows: Sequence[tuple[int, int, str]], at: int) -> str | None:
    i = bisect.bisect_right(windows, (at, 1 << 63, "")) - 1
    if i >= 0 and windows[i][0] <= at <= windows[i][1]:
        return windows[i][2]
    return None
