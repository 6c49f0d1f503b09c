"""Clocks, without a GPU: CUPTI spans from scripted events, and the gate's retries."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch

from kernelbench.measure.probes import Probe
from kernelbench.measure.sampling import Batch
from kernelbench.measure.timer import (
    MARGIN_NS,
    MAX_GATE_NS,
    CudaClock,
    HostClock,
    _BatchPlan,
)
from kernelbench.measure.trace import Spans, spans

GPU, CPU = torch.profiler.DeviceType.CUDA, torch.profiler.DeviceType.CPU


@dataclass
class Event:
    """What `_KinetoEvent` answers."""

    _name: str
    _device: Any
    _start: int
    _duration: int
    _id: int = 0
    _type: str = "cpu_op"

    def name(self) -> str:
        return self._name

    def device_type(self) -> Any:
        return self._device

    def start_ns(self) -> int:
        return self._start

    def duration_ns(self) -> int:
        return self._duration

    def correlation_id(self) -> int:
        return self._id

    def is_user_annotation(self) -> bool:
        return "user_annotation" in self._type


def window(name: str, start: int, duration: int) -> Event:
    return Event(f"kb.call.{name}", CPU, start, duration, 1, "user_annotation")


def launch(at: int, number: int, name: str = "cudaLaunchKernel") -> Event:
    return Event(name, CPU, at, 2, number, "cuda_runtime")


def kernel(start: int, duration: int, number: int, kind: str = "kernel") -> Event:
    return Event("k", GPU, start, duration, number, kind)


def test_a_span_reaches_from_the_first_kernel_to_the_last_and_holds_the_gap() -> None:
    events = [
        window("a.1.0", 100, 50),
        launch(110, 7),
        launch(120, 8, "cuLaunchKernelEx"),
        kernel(1_000, 10, 7),
        kernel(1_050, 20, 8),
    ]
    assert spans(events) == {"a.1": Spans((70,))}


def test_a_backward_launched_by_another_thread_counts_and_a_flush_between_calls_does_not() -> None:
    events = [
        window("a.1.0", 100, 50),
        window("a.1.1", 200, 50),
        launch(90, 1),
        kernel(500, 100, 1),  # the flush before
        launch(110, 2),  # by whatever thread: there is no thread in it
        kernel(1_000, 10, 2),
        launch(160, 3),
        kernel(1_010, 500, 3),  # the flush between
        launch(210, 4),
        kernel(2_000, 30, 4),
    ]
    assert spans(events) == {"a.1": Spans((10, 30))}


def test_a_memset_counts_and_an_annotation_on_the_gpu_does_not() -> None:
    events = [
        window("a.1.0", 100, 50),
        launch(110, 2, "cudaMemsetAsync"),
        launch(120, 3),
        kernel(1_000, 10, 2, "gpu_memset"),
        kernel(1_020, 10, 3),
        Event("kb.call.a.1.0", GPU, 0, 9_999, 2, "gpu_user_annotation"),
        Event("Torch-Compiled Region", GPU, 0, 9_999, 3, "gpu_user_annotation"),
    ]
    assert spans(events) == {"a.1": Spans((30,))}


def test_the_numbers_of_operators_are_not_those_of_launches() -> None:
    events = [
        window("a.1.0", 100, 50),
        Event("aten::mul", CPU, 300, 5, 2),
        launch(110, 2),
        Event("custom::op", CPU, 300, 5, 2),
        kernel(1_000, 10, 2),
    ]
    assert spans(events) == {"a.1": Spans((10,))}


def test_parts_and_attempts_are_kept_apart_and_a_call_without_kernels_has_no_span() -> None:
    events = [
        window("v1.5.1.0", 100, 50),
        window("v1.5.2.0", 200, 50),
        window("none.1.0", 300, 50),
        *(launch(110, 2), kernel(1_000, 10, 2)),
        *(launch(210, 3), kernel(2_000, 20, 3)),
    ]
    assert spans(events) == {"v1.5.1": Spans((10,)), "v1.5.2": Spans((20,))}


def test_a_kernel_that_still_runs_when_the_stream_goes_on_is_late() -> None:
    events = [
        window("a.1.0", 100, 50),
        *(launch(110, 2), kernel(1_000, 5_000, 2)),
        *(launch(160, 3), kernel(1_100, 500, 3)),  # the next flush did not wait for it
        window("a.1.1", 200, 50),
        *(launch(210, 4), kernel(7_000, 5_000, 4)),
        *(launch(260, 5), kernel(12_000, 500, 5)),
    ]
    assert spans(events) == {"a.1": Spans((5_000, 5_000), late=1)}


# The gate.


class FakeClock(CudaClock):
    """A gate that holds when it is longer than `needs(calls)`; it never opens a device."""

    def __init__(self, needs: Callable[[int], float], submit_ns: float, whole_ns: float) -> None:
        self.needs, self.plan = needs, _BatchPlan(submit_ns, whole_ns)
        self.gates: list[tuple[int, int]] = []
        self._tail_ns = 0
        self._plans = WeakKeyDictionary()

    def _plan(self, part: Any) -> _BatchPlan:
        return self.plan

    def _gated(self, part: Any, n: int, gate_ns: int, judged: Any = ()) -> Batch:
        self.gates.append((n, gate_ns))
        return Batch((1,) * n, gate_ns > self.needs(n))


PROBE = Probe("p", lambda: None)


def test_a_gate_that_holds_is_not_tried_again() -> None:
    clock = FakeClock(lambda n: n * 1e4, 1e4, 1e5)
    assert clock.batch(PROBE, 10) == Batch((1,) * 10, True)
    assert clock.gates == [(10, 15 * 10_000 + MARGIN_NS)]


def test_a_gate_is_lengthened_and_that_is_remembered() -> None:
    clock = FakeClock(lambda n: n * 6e4, 1e4, 1e5)
    assert clock.batch(PROBE, 10).held
    assert [n for n, _ in clock.gates] == [10, 10, 10]
    clock.batch(PROBE, 10)
    assert [n for n, _ in clock.gates] == [10, 10, 10, 10]


def test_calls_that_do_not_fit_the_launch_queue_are_halved_and_that_is_remembered() -> None:
    clock = FakeClock(lambda n: 1e12 if n > 2 else 0, 1e5, 1e5)
    assert clock.batch(PROBE, 10) == Batch((1, 1), True)
    assert [n for n, _ in clock.gates] == [10, 10, 10, 10, 5, 2]
    clock.batch(PROBE, 10)
    assert clock.gates[6:] == [(2, 2 * 12 * 100_000 + MARGIN_NS)]


def test_a_provider_that_synchronises_is_ungated_soon_and_for_good() -> None:
    clock = FakeClock(lambda n: 1e12, 1e6, 1e6)
    batch = clock.batch(PROBE, 10)
    assert (batch.held, len(batch.samples_ns)) == (False, 10)
    assert sum(gate for _, gate in clock.gates) < 1_500_000_000
    assert max(gate for _, gate in clock.gates) <= MAX_GATE_NS
    before = len(clock.gates)
    assert not clock.batch(PROBE, 10).held
    assert clock.gates[before:] == [(10, 0)]


def test_a_batch_of_slow_calls_is_short() -> None:
    clock = FakeClock(lambda n: 0, 1e4, 2e8)
    assert len(clock.batch(PROBE, 10).samples_ns) == 2
    clock = FakeClock(lambda n: 0, 1e4, 5e9)
    assert len(clock.batch(PROBE, 10).samples_ns) == 1


def test_what_is_known_of_a_workload_goes_with_it() -> None:
    plans: WeakKeyDictionary[Any, _BatchPlan] = WeakKeyDictionary()
    probe = Probe("p", lambda: None)
    plans[probe] = _BatchPlan(1, 1)
    del probe
    assert len(plans) == 0


@pytest.fixture
def restored() -> Iterator[list[str]]:
    yield []


def test_without_a_gpu_calls_are_restored_before_and_not_timed(restored: list[str]) -> None:
    class Part(Probe):
        def restore(self) -> None:
            restored.append("restore")

    batch = HostClock().batch(Part("p", lambda: restored.append("call")), 3)
    assert restored == ["restore", "call"] * 3
    assert (batch.samples_ns, batch.held) == ((), True)
