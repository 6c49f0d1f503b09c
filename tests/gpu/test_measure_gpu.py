"""The clock and the checks where they matter: on a GPU."""

import gc
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from toy import CASE, ToyCase, provider, right, run, toy

from kernelbench import families
from kernelbench.families.empty import EmptyCase, Kernel
from kernelbench.measure import environment
from kernelbench.measure.ceilings import Ceilings, calibrate, measure
from kernelbench.measure.inputs import CaseInputs
from kernelbench.measure.job import Session
from kernelbench.measure.probes import Probe
from kernelbench.measure.telemetry import Telemetry
from kernelbench.measure.throttling import SteadyClock
from kernelbench.measure.timer import CudaClock
from kernelbench.measure.workload import Workload
from kernelbench.spec import DType, Measure, Mode, Provider, RunRecord, Status, Tensors

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
BIG = ToyCase(R=4096, N=4096, dtype=DType.bf16)  # 32 MiB a tensor
ALL = Measure(max_samples=40, max_seconds=0.5)


@pytest.fixture(scope="module")
def clock() -> CudaClock:
    return CudaClock(environment.device("cuda"))


@pytest.fixture
def session(clock: CudaClock) -> Session:
    telemetry = Telemetry.open(environment.gpu_uuid())
    return Session(environment.device("cuda"), clock, Ceilings(), telemetry)


def one(session: Session, bad: Provider[Any], case: ToyCase = BIG) -> RunRecord:
    return run(toy(bad), case, session=session, measure=ALL)[bad.name]


def copy(mib: int) -> Probe:
    source = torch.ones(mib << 19, dtype=torch.bfloat16, device="cuda")
    target = torch.empty_like(source)
    return Probe(f"copy-{mib}", lambda: torch.neg(source, out=target))


# The gate.


def test_the_gate_is_as_long_as_asked(clock: CudaClock) -> None:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    clock.gate(5_000_000)
    end.record()
    torch.cuda.synchronize()
    assert 4.5 <= start.elapsed_time(end) <= 12.5  # at a lower clock it is longer


def test_a_batch_is_held(clock: CudaClock) -> None:
    probe = copy(64)
    batches = [clock.batch(probe, 10) for _ in range(20)]
    assert all(batch.held and len(batch.samples_ns) == 10 for batch in batches)


def test_launch_latency_is_not_in_the_samples(clock: CudaClock) -> None:
    small = torch.zeros(1024, device="cuda")

    def slow_to_launch() -> None:
        small.add_(1)
        time.sleep(0.001)

    batch = clock.batch(Probe("slow", slow_to_launch), 5)
    assert batch.held
    assert median(batch.samples_ns) < 20_000


def test_a_provider_that_synchronises_ends_ungated(session: Session) -> None:
    def waits(a: Tensors) -> Any:
        found = right(a)
        torch.cuda.synchronize()
        return found

    begin = time.perf_counter()
    record = one(session, provider("waits", waits))
    assert record.status is Status.ok
    assert record.timing is not None
    assert (record.timing.timer, "ungated" in record.flags) == ("ungated", True)
    assert "graph" in record.timing.missing
    assert time.perf_counter() - begin < 60


def test_five_thousand_launches_do_not_deadlock(session: Session) -> None:
    def many(a: Tensors) -> Any:
        scratch = a["w"].clone()
        for _ in range(5000):
            scratch.add_(1)
        return right(a)

    begin = time.perf_counter()
    record = one(session, provider("many", many))
    assert record.status is Status.ok
    assert record.timing is not None
    smaller = max(len(block) for block in record.timing.blocks_ns) < 8
    assert smaller or record.timing.timer == "ungated"
    assert time.perf_counter() - begin < 120


# The other clocks.


def test_kernel_time_agrees_with_corrected_event_time(clock: CudaClock) -> None:
    overhead = calibrate(clock)
    assert overhead.note == "event time minus CUPTI span"
    assert 500 < overhead.ns <= overhead.traced_ns + 300 < 10_000
    assert 1 <= clock.quantum_ns <= 1024
    probe = copy(64)
    clock.batch(probe, 10)
    corrected = median(clock.batch(probe, 16).samples_ns) - overhead.ns
    spans = clock.kernel_ns([probe])[probe.name]
    assert (spans.held, spans.late, len(spans.ns)) == (True, 0, 16)
    kernel = median(spans.ns)
    assert abs(kernel - corrected) < max(700, 0.03 * kernel)


@pytest.mark.parametrize("mode", list(Mode))
def test_every_clock_reads_every_mode(session: Session, mode: Mode) -> None:
    record = one(session, provider("fine", right), replace(BIG, mode=mode))
    assert (record.status, record.reason) == (Status.ok, "")
    timing = record.timing
    assert timing is not None
    assert (timing.timer, dict(timing.missing)) == ("gated", {})
    for ns in (timing.kernel_ns, timing.host_ns, timing.graph_ns):
        assert ns and min(ns) > 0
    gated = median(ns for block in timing.blocks_ns for ns in block)
    assert median(timing.graph_ns) < 1.2 * gated
    assert median(timing.kernel_ns) < 1.05 * gated + 1_000  # tracing widens gaps


def test_the_nodes_of_a_graph_are_what_a_call_launches(session: Session) -> None:
    """y = 2·x + z is two operators, one, or a kernel of ours; an empty kernel is one node, too."""
    family, ours = families.load()["empty"], {"triton_fused": 1, "triton_plain": 1}
    nodes = {
        Kernel.empty: {"eager": 1, **ours},
        Kernel.pointwise: {"eager": 2, "torch_fused": 1, "compile": 1, **ours},
    }
    for kernel, expected in nodes.items():
        case: Any = EmptyCase(M=256, N=4096, kernel=kernel)
        found = run(family, case, session=session, measure=ALL, names=list(expected))
        assert {(r.status, r.reason) for r in found.values()} == {(Status.ok, "")}
        timings = {name: r.timing for name, r in found.items() if r.timing}
        assert {name: t.graph_nodes for name, t in timings.items()} == expected
        assert not any(t.missing for t in timings.values())


def test_a_graph_that_cannot_be_captured_says_why_and_harms_nothing(session: Session) -> None:
    def reads_back(a: Tensors) -> Any:
        found = right(a)
        found[1].cpu()
        return found

    family = toy(provider("bad", reads_back), provider("fine", right))
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    found = run(family, replace(BIG, mode=Mode.full), session=session, measure=ALL)
    assert found["bad"].timing is not None
    assert "graph" in found["bad"].timing.missing
    assert found["fine"].status is Status.ok
    assert found["fine"].timing is not None
    assert found["fine"].timing.graph_ns
    torch.empty(8 << 30, dtype=torch.uint8, device="cuda")
    gc.collect()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before + (128 << 20)
    assert torch.randn(4, device="cuda").isfinite().all()


def test_no_memory_of_the_proofs_is_free_when_sampling_begins(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a call's memory lies is worth some per cent of its time."""
    free, sampled = [], SteadyClock.sample
    session.release_memory()
    others = {segment["address"] for segment in torch.cuda.memory_snapshot()}  # of earlier tests

    def sample(steady: SteadyClock, *args: Any, **options: Any) -> Any:
        own = [s for s in torch.cuda.memory_snapshot() if s["address"] not in others]
        free.append(sum(s["total_size"] - s["allocated_size"] for s in own))
        for segment in own:  # shown where this fails
            print([(b["size"] >> 10, b["state"]) for b in segment["blocks"]])
        return sampled(steady, *args, **options)

    monkeypatch.setattr(SteadyClock, "sample", sample)
    for mode in (Mode.fwd, Mode.bwd):
        record = one(session, provider("fine", right), replace(BIG, mode=mode))
        assert record.status is Status.ok
    assert len(free) == 2 and max(free) < 32 * 2**20  # proofs had several tensors as large


def test_peak_bytes_are_those_above_the_inputs(session: Session) -> None:
    def uses_more(a: Tensors) -> Any:
        scratch = torch.empty(64 << 20, dtype=torch.uint8, device="cuda")
        found = right(a)
        del scratch
        return found

    size = BIG.R * BIG.N * 2
    family = toy(provider("plain", right), provider("more", uses_more))
    found = run(family, BIG, session=session, timing=False)
    plain, more = found["plain"].peak_bytes, found["more"].peak_bytes
    assert plain is not None and more is not None
    assert size <= plain < size + (1 << 20)
    assert abs(more - plain - (64 << 20)) < 1 << 20


# Providers that are wrong as only a GPU lets them be.


def on_a_side_stream(waits: bool, joins: bool, work: int) -> Provider[Any]:
    side = torch.cuda.Stream()

    def call(a: Tensors) -> Any:
        y, m = torch.empty_like(a["x"]), a["x"].amax(-1)
        if waits:
            side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(work):
                torch.mul(a["x"], a["w"], out=y)
        if joins:
            torch.cuda.current_stream().wait_stream(side)
        return y, m

    return provider("side", call)


@pytest.mark.parametrize("case", [BIG, replace(BIG, R=16), replace(CASE, dtype=DType.bf16)])
@pytest.mark.parametrize("work", [1, 20])
def test_work_that_is_not_in_the_order_of_the_stream_is_caught(
    session: Session, case: ToyCase, work: int
) -> None:
    for waits, joins in ((False, False), (True, False), (False, True)):
        record = one(session, on_a_side_stream(waits, joins, work), case)
        assert record.status is Status.incorrect, (waits, joins)
        assert record.timing is None


def test_work_that_is_never_joined_shows_in_the_trace(clock: CudaClock) -> None:
    """Even where its answer was in time: the stream goes on while a kernel still runs."""
    for joins, late in ((True, False), (False, True)):
        bad = on_a_side_stream(True, joins, 1)
        family = toy(bad)
        workload = Workload(family, BIG, bad, CaseInputs(family, BIG, "cuda", 0), None)
        workload.ready()
        spans = clock.kernel_ns([workload])["side"]
        assert spans.held
        assert (2 * spans.late > len(spans.ns)) is late


def test_a_stream_that_is_forked_and_joined_is_right(session: Session) -> None:
    assert one(session, on_a_side_stream(True, True, 1)).status is Status.ok


@pytest.mark.parametrize("mode", list(Mode))
def test_half_an_output_is_nan(session: Session, mode: Mode) -> None:
    class Half(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, w: Any) -> Any:
            ctx.save_for_backward(x, w)
            y = torch.empty_like(x)
            torch.mul(x[::2], w, out=y[::2])
            return y

        @staticmethod
        def backward(ctx: Any, dy: Any) -> Any:
            x, w = ctx.saved_tensors
            dx = torch.empty_like(x)
            torch.mul(dy[::2], w, out=dx[::2])
            return dx, (dy.float() * x.float()).sum(0).to(w.dtype)

    half = provider("half", lambda a: (Half.apply(a["x"], a["w"]), a["x"].detach().amax(-1)))
    record = one(session, half, replace(BIG, mode=mode))
    assert record.status is Status.incorrect
    assert ("NaN in dx" if mode is Mode.bwd else "NaN in y") in record.reason


# Runs before the test that fills the GPU: what that leaves in the allocator's cache is in use.
LOST = """
import torch, triton, triton.language as tl
from toy import CASE, provider, right, run, toy
from kernelbench.measure import environment
from kernelbench.measure.ceilings import Ceilings
from kernelbench.measure.job import DeviceLostError, Session
from kernelbench.measure.telemetry import Telemetry
from kernelbench.measure.timer import CudaClock

@triton.jit
def far(x):
    tl.store(x + (1 << 42), 1.0)

def bad(a):
    far[(1,)](a["x"])
    return right(a)

device = environment.device("cuda")
session = Session(device, CudaClock(device), Ceilings(), Telemetry.open(None))
try:
    run(toy(provider("bad", bad)), CASE, session=session)
except DeviceLostError as lost:
    print("lost", lost.provider, "|", lost)
"""


def test_an_illegal_access_is_a_lost_device(tmp_path: Path) -> None:
    tests = Path(__file__).parent.parent
    script = tmp_path / "lost.py"  # a file: Triton reads the source of its kernels
    script.write_text(LOST)
    path = os.pathsep.join([str(tests), str(tests.parent), *sys.path])
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.startswith("lost bad |"), done.stderr
    assert "illegal memory access" in done.stdout


def test_one_out_of_memory_leaves_the_others_measured(session: Session) -> None:
    def hungry(a: Tensors) -> Any:
        held = [a["x"].new_empty(1 << 30) for _ in range(1000)]
        return right({**a, "held": held[0]})

    gc.collect()
    before = torch.cuda.memory_allocated()
    family = toy(provider("hungry", hungry), provider("fine", right))
    found = run(family, BIG, session=session, measure=ALL)
    assert found["hungry"].status is Status.oom
    assert "out of memory" in found["hungry"].reason
    assert found["fine"].timing is not None
    assert found["fine"].timing.timer == "gated"
    gc.collect()
    assert torch.cuda.memory_allocated() <= before + (64 << 20)


def test_nothing_of_a_job_is_left_on_the_gpu(session: Session) -> None:
    def allocated() -> int:
        run(toy(provider("fine", right)), replace(BIG, mode=Mode.bwd), session=session, measure=ALL)
        gc.collect()
        return int(torch.cuda.memory_allocated())

    assert allocated() == allocated()


def test_the_limits_of_this_machine_are_plausible(clock: CudaClock) -> None:
    before = torch.cuda.memory_allocated()
    known = measure(clock, environment.device("cuda"))
    assert Ceilings.from_json(known.as_json()) == known
    for points in known.bandwidth.values():
        assert all(ns >= 1 for _, ns in points)
        assert points[-1][0] / points[-1][1] > 500  # GB/s
    assert known.tflops["bf16"] > known.tflops["tf32"] > known.tflops["fp32"] > 5
    assert known.missing == {} or set(known.missing) <= {"int8", "fp8"}
    assert torch.cuda.memory_allocated() <= before + (64 << 20)  # cuBLAS keeps a workspace


# In a process of its own: none can use the GPU any more once its context is lost.
