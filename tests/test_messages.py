"""What messages of ranks cost: nothing is sent in silence, and what would have come is counted."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gloo import LEFT, watched
from test_metrics import ours, timing
from torch.profiler import DeviceType

from kernelbench import metrics
from kernelbench.measure import messages
from kernelbench.measure.sampling import Batch
from kernelbench.measure.team import Alone
from kernelbench.report.choice import choice
from kernelbench.report.sheet import source
from kernelbench.spec import Messages, RunRecord, Status

RANKED = Path(__file__).parent / "plugins" / "ranked.py"
# What rank 1 of two does alone, in silence: the other one never answers.
ALONE = """
import sys, torch, torch.distributed as dist
import torch.distributed._functional_collectives as fc
import kernelbench.parallel
from kernelbench.measure.messages import silence
dist.init_process_group("gloo", rank=int(sys.argv[1]), world_size=2, init_method=sys.argv[2])
x, two, own = torch.ones(6), torch.full((12,), 7.0), torch.full((3,), 7.0)
calls = {
    "all_gather_into_tensor": lambda: dist.all_gather_into_tensor(two, x),
    "all_gather": lambda: dist.all_gather([*two.chunk(2)], x),
    "reduce_scatter_tensor": lambda: dist.reduce_scatter_tensor(own, x, async_op=True).wait(),
    "reduce_scatter": lambda: dist.reduce_scatter(own, [*x.chunk(2)]),
    "all_reduce": lambda: dist.all_reduce(x),
    "broadcast": lambda: dist.broadcast(x, 0),
    "all_to_all_single": lambda: dist.all_to_all_single(own, x[:3], [1, 2], [1, 2]),
    "nothing": lambda: dist.all_to_all_single(own[:0], x[:0], [0, 0], [0, 0]),
    "evenly": lambda: dist.all_to_all_single(two[:6], x),
    "all_to_all": lambda: dist.all_to_all([x[:2], x[2:]], [x[:2], x[2:]]),
    "scatter": lambda: dist.scatter(own, None, 0),
    "gather": lambda: dist.gather(x, None, 0),
    "reduce": lambda: dist.reduce(x, 1),
    "p2p": lambda: [w.wait() for w in dist.batch_isend_irecv(
        [dist.P2POp(dist.isend, x, 0), dist.P2POp(dist.irecv, own, 0)])],
    "functional": lambda: fc.wait_tensor(fc.all_gather_tensor(x, 0, dist.group.WORLD)),
    "functional_sum": lambda: fc.wait_tensor(
        fc.reduce_scatter_tensor(x, "sum", 0, dist.group.WORLD)),
    "barrier": lambda: dist.barrier(),
}
if dist.get_rank() == 1:
    for name, call in calls.items():
        with silence() as unsent:
            call()
        print(name, unsent.received)
    counts = torch.full((2,), 1 << 40)
    with silence():
        dist.all_gather_into_tensor(counts, torch.ones(1, dtype=torch.int64))
    assert counts.tolist() == [0, 0]  # nobody allocates by what lay there
    assert x.tolist() == [1.0] * 6 and two.tolist() == [7.0] * 12 and own.tolist() == [7.0] * 3
every = torch.zeros(12)
dist.all_gather_into_tensor(every, x + dist.get_rank())  # and afterwards they speak again
assert every.tolist() == [1.0] * 6 + [2.0] * 6
dist.destroy_process_group()
"""
RECEIVED = {
    "all_gather_into_tensor": 24,
    "all_gather": 24,
    "reduce_scatter_tensor": 12,
    "reduce_scatter": 12,
    "all_reduce": 24,
    "broadcast": 24,
    "all_to_all_single": 4,
    "nothing": 0,
    "evenly": 12,
    "all_to_all": 8,
    "scatter": 12,
    "gather": 0,
    "reduce": 24,
    "p2p": 12,
    "functional": 24,
    "functional_sum": 12,
    "barrier": 0,
}


def test_in_silence_nothing_is_sent_and_what_would_have_come_is_counted(tmp_path: Path) -> None:
    words = [sys.executable, "-W", "ignore", "-c", ALONE]
    ranks = [
        subprocess.Popen(
            [*words, str(rank), f"file://{tmp_path}/meet"],
            env=watched(tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120) for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], said
    assert not any(LEFT in error for _, error in said)
    heard = said[1][0]
    found = {name: int(count) for name, count in map(str.split, heard.splitlines())}
    assert found == RECEIVED


def test_an_operator_that_nobody_knows_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {name: each for name, each in messages.RECEIVED.items() if name != "allreduce_"}
    monkeypatch.setattr(messages, "RECEIVED", known)
    messages._operators.cache_clear()
    unknown = pytest.raises(NotImplementedError, match="c10d::allreduce_, of which it is not known")
    with unknown, messages.silence():
        pass
    messages._operators.cache_clear()


def test_the_kernels_of_a_call_are_those_that_carry_no_message() -> None:
    def event(name: str, ns: int, kind: Any = DeviceType.CUDA, note: bool = False) -> Any:
        return SimpleNamespace(
            name=lambda: name,
            duration_ns=lambda: ns,
            device_type=lambda: kind,
            is_user_annotation=lambda: note,
        )

    events = [
        event("attend_chunks", 100),
        event("Memcpy DtoD (Device -> Device)", 20),
        event("ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)", 1000),
        event("Memcpy PtoP (Device -> Device)", 1000),
        event("attend_chunks", 1000, note=True),
        event("aten::mm", 1000, DeviceType.CPU),
    ]
    assert messages.computing_ns(events) == 120


class Twins:
    """A team of two in one process, of which the other one hears more, and whose kernels suffer."""

    rank, world = 0, 2

    def gather(self, value: Any) -> list[Any]:
        return [value, value * 2 if isinstance(value, int) else (value[0] * 2, value[1])]

    def start_line(self) -> None: ...


@pytest.mark.parametrize("held", [True, False])
def test_what_the_clock_reads_of_a_call_without_messages(
    held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU; what it sends is pretended, and counted where it would go."""
    calls: list[str] = []
    workload = SimpleNamespace(
        name="ours",
        call=lambda: calls.append("call"),
        ready=lambda: calls.append("ready"),
        grad_mode=nullcontext,
    )

    @contextmanager
    def silence() -> Iterator[Any]:
        calls.append("silence")
        yield SimpleNamespace(received=4096)

    def batch(part: Any, n: int) -> Batch:
        assert isinstance(part, messages.Quiet) and part.lot is None
        part.call()
        return Batch((70, 80, 90), held=held)

    kernels = {"Quiet": 50, "SimpleNamespace": 60}
    monkeypatch.setattr(messages, "silence", silence)
    monkeypatch.setattr(messages, "_kernels_ns", lambda part, team: kernels[type(part).__name__])
    clock = SimpleNamespace(times=True, batch=batch)
    session: Any = SimpleNamespace(team=Twins(), clock=clock, synchronize=lambda: None)
    facts: dict[str, Any] = {}
    messages._count(session, workload, facts)  # type: ignore[arg-type]
    if not held:
        with pytest.raises(RuntimeError, match="the gate did not hold for calls without messages"):
            messages._cost(session, workload, facts)  # type: ignore[arg-type]
        assert facts == {"messages": Messages(received_bytes=8192)}, "what was read is kept"
        return
    messages._cost(session, workload, facts)  # type: ignore[arg-type]
    assert facts["messages"] == Messages(
        received_bytes=8192, without_ns=(70, 80, 90), kernels_ns=120, kernels_without_ns=50
    )
    assert calls == ["ready", *["silence", "call"] * 2]


def test_a_call_without_messages_has_no_cost_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    workload: Any = SimpleNamespace(
        name="ours", call=lambda: None, ready=lambda: None, grad_mode=nullcontext
    )
    session: Any = SimpleNamespace(
        team=Alone(), clock=SimpleNamespace(times=True), synchronize=lambda: None
    )
    facts: dict[str, Any] = {}
    messages._count(session, workload, facts)
    messages._cost(session, workload, facts)
    assert facts == {}


AXES = {"world": 2, "N": 512, "dtype": "bf16", "mode": "fwd"}


def of_ranks(world: int, us: float, **facts: Any) -> RunRecord:
    """Records of jobs of so many GPUs, that took so long."""
    axes = AXES | {"world": world}
    return ours(
        case=f"world{world}-N512",
        axes=axes,
        group=f"g{world}",
        timing=timing(us, quantum_ns=100),
        **facts,
    )


def test_what_spreading_costs() -> None:
    said = Messages(
        received_bytes=3 * 2**20,
        without_ns=(4400, 4500, 4600),
        kernels_ns=4800,
        kernels_without_ns=4000,
    )
    one, two = metrics.rows_of([of_ranks(1, 9), of_ranks(2, 5, messages=said)])
    assert two["one_gpu_pct"] == pytest.approx(90)  # (9 / 2) / 5
    late = of_ranks(2, 5, messages=said)
    assert late.timing is not None
    late = replace(late, timing=replace(late.timing, overhead_ns=1000))  # in both, so in neither
    assert metrics.rows_of([late])[0]["exposed_us"] == pytest.approx(0.5)
    ends = two["one_gpu_lo_pct"], two["one_gpu_hi_pct"]  # half a step of the clock on each
    assert ends == pytest.approx((50 * 8.95 / 5.05, 50 * 9.05 / 4.95))
    assert two["exposed_us"] == pytest.approx(0.5)
    assert two["exposed_pct"] == pytest.approx(10)
    assert two["overlap_slowdown"] == pytest.approx(1.2)
    assert two["received_mib"] == 3
    columns = [name for name in metrics.csv_columns([]) if name in two and name not in one]
    assert columns == [
        "one_gpu_pct", "one_gpu_lo_pct", "one_gpu_hi_pct", "exposed_us", "exposed_pct",
        "overlap_slowdown", "received_mib",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "other",
    [
        of_ranks(1, 9, provider="another"),
        of_ranks(1, 9, run_id="another"),
        of_ranks(1, 9, gpu="another"),
        replace(of_ranks(1, 9), axes=AXES | {"world": 1, "N": 1024}),
        of_ranks(1, 9, status=Status.incorrect),
        of_ranks(4, 9),
    ],
    ids=["provider", "run", "gpu", "work", "wrong", "ranks"],
)
def test_a_share_is_of_the_same_work_on_one_gpu(other: RunRecord) -> None:
    row = metrics.rows_of([other, of_ranks(2, 5)])[1]
    assert row["one_gpu_pct"] is None and row["exposed_us"] is None


def test_what_was_not_right_has_no_cost_of_messages() -> None:
    said = Messages(received_bytes=5, without_ns=(4500,), kernels_ns=2, kernels_without_ns=1)
    [row] = metrics.rows_of([of_ranks(2, 5, messages=said, status=Status.implausible)])
    ungated = of_ranks(2, 5, messages=said, further=(of_ranks(2, 5, process=1),))
    slow = replace(ungated, timing=timing(500, timer="ungated"))
    assert metrics.rows_of([slow])[0]["exposed_us"] is None, "of a gate that did not hold"
    assert row["exposed_us"] is row["exposed_pct"] is row["overlap_slowdown"] is None
    assert "-1 in messages" in of_ranks(2, 5, messages=replace(said, kernels_ns=-1)).impossible()


def test_the_report_shows_it_without_being_asked() -> None:
    said = Messages(
        received_bytes=3 << 20, without_ns=(4500,), kernels_ns=12, kernels_without_ns=10
    )
    rows = metrics.rows_of([of_ranks(1, 9), of_ranks(2, 5, messages=said, peak_bytes=7 << 20)])
    [sheet] = [
        each for each in choice((), source(rows)).sheets if "over several GPUs" in each.title
    ]
    [line] = sheet.rows
    assert line[1:4] == ("triton", "2", "5.000 µs")
    assert line[4].startswith("90.0 [") and line[5:9] == ("10%", "1.20", "3.000", "7.000")
    assert not [each for each in choice((), source(rows[:1])).sheets if each.rows]
    other = replace(of_ranks(1, 9), axes=AXES | {"world": "wide"})  # of a family of somebody else's
    assert not [each for each in choice((), source(metrics.rows_of([other]))).sheets if each.rows]
