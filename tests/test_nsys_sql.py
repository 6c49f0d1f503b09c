"""Which kernel belongs to which range: a real trace of an H200, and rows that were made up."""

import sqlite3
from pathlib import Path

import nsys_export
import pytest
from nsys_export import H200, MACHINE, MAIN, Export

from kernelbench.profile import nsys
from kernelbench.profile.nsys.sql import read_ranges
from kernelbench.profile.tool import ToolError

OTHER = MAIN + 1  # another thread of the process
THIRD = MAIN + 2


@pytest.fixture
def export(tmp_path: Path) -> Export:
    return Export.copied(tmp_path / "an export.sqlite")


def test_a_real_trace_gives_what_plain_sql_gives() -> None:
    summed = {
        name: (launches, ns)
        for name, launches, ns in sqlite3.connect(H200).execute(
            """SELECT s.value, COUNT(*), SUM(k.end - k.start) FROM CUPTI_ACTIVITY_KIND_KERNEL k
            JOIN StringIds s ON s.id = k.shortName GROUP BY 1"""
        )
    }
    assert summed == {"addk": (3, 189151), "vectorized_layer_norm_kernel": (3, 241469)}
    eager, ours = nsys.read(H200)
    assert (eager.name, ours.name) == ("kb.rms_norm.eager", "kb.add.triton")
    for used, short in ((eager, "vectorized_layer_norm_kernel"), (ours, "addk")):
        (kernel,) = used.kernels
        assert (kernel.launches, kernel.gpu_ns) == (used.launches, used.busy_ns) == summed[short]
        assert short in kernel.name
        assert used.instances == 3
        assert (used.span_ns, used.gaps_ns) == (used.busy_ns, 0)  # one kernel an instance
    assert (ours.host_ns, eager.host_ns) == (235126, 10316304)
    assert (ours.kernels[0].registers, ours.kernels[0].shared_bytes) == (20, 0)
    assert (eager.kernels[0].registers, eager.kernels[0].shared_bytes) == (27, 24)
    assert read_ranges(H200).outside == 0


def test_domain_and_prefix_choose_the_ranges() -> None:
    assert [one.name for one in nsys.read(H200, prefix="kb.add")] == ["kb.add.triton"]
    assert read_ranges(H200, prefix="kb.add").outside == 3
    assert nsys.read(H200, domain="another") == ()


def test_a_kernel_whose_name_is_not_there_is_kept(export: Export) -> None:
    export.range("kb.a", 10, 90)
    export.kernel("short", 100, 200, export.launch(20), demangledName=10**9)
    export.kernel("none", 300, 450, export.launch(30), demangledName=10**9, shortName=10**9)
    (used,) = nsys.read(export.path)
    assert {kernel.name: kernel.gpu_ns for kernel in used.kernels} == {
        "short": 100, "[kernel without a name]": 150,
    }  # fmt: skip


def test_the_gap_is_what_no_kernel_covers(export: Export) -> None:
    export.range("kb.a", 10, 90)
    for start, end in ((100, 200), (150, 300), (160, 170), (400, 450)):
        export.launched("k", start, end, at=20)
    (used,) = nsys.read(export.path)
    assert used.busy_ns == 100 + 150 + 10 + 50
    assert used.span_ns == 350
    assert used.gaps_ns == 100  # 300 to 400; the overlap is not counted twice


def test_spans_do_not_reach_from_one_instance_to_the_next(export: Export) -> None:
    for start in (1000, 2000):
        export.range("kb.a", start, start + 100)
        export.launched("short", start + 50, start + 60, at=start + 10)
        export.launched("long", start + 70, start + 170, at=start + 20)
    (used,) = nsys.read(export.path)
    assert (used.instances, used.launches) == (2, 4)
    assert (used.busy_ns, used.span_ns, used.gaps_ns) == (220, 240, 20)
    assert [(k.name, k.launches, k.gpu_ns) for k in used.kernels] == [
        ("long", 2, 200),
        ("short", 2, 20),
    ]
    assert used.host_ns == 200


def test_a_kernel_belongs_to_the_innermost_range_of_ours(export: Export) -> None:
    export.range("kb.a", 10, 100)
    export.range("kb.a.flush", 20, 30)
    export.range("kb.a.call", 40, 80)
    export.range("somebody's", 50, 60)
    for name, at in (("a", 15), ("flush", 25), ("between", 35), ("call", 55), ("end", 90)):
        export.launched(name, at + 1000, at + 1001, at=at)
    ranges = {one.name: {kernel.name for kernel in one.kernels} for one in nsys.read(export.path)}
    assert ranges == {
        "kb.a": {"a", "between", "end"},
        "kb.a.flush": {"flush"},
        "kb.a.call": {"call"},
    }


def test_launches_of_autograds_thread_belong_to_the_range_that_waits_for_it(
    export: Export,
) -> None:
    export.range("kb.bwd", 10, 100)
    export.range("kb.bwd.call", 20, 90)
    export.launched("backward", 200, 300, at=50, thread=OTHER)
    ranges = {one.name: one.launches for one in nsys.read(export.path)}
    assert ranges == {"kb.bwd": 0, "kb.bwd.call": 1}


def test_what_cannot_be_told_is_counted_to_none(export: Export) -> None:
    export.range("kb.main", 10, 100)
    export.range("kb.other", 40, 60, thread=OTHER)
    export.launched("two could be meant", 200, 201, at=50, thread=THIRD)
    export.launched("its own range", 210, 211, at=50, thread=OTHER)
    export.launched("only one is open", 220, 221, at=20, thread=THIRD)
    export.launched("before all", 230, 231, at=5)
    export.launched("of another process", 240, 241, at=20, thread=MACHINE | 9 << 24 | 9)
    export.kernel("of a call that is not there", 250, 251, correlation=1)
    seen = read_ranges(export.path)
    assert {one.name: [k.name for k in one.kernels] for one in seen.ranges} == {
        "kb.main": ["only one is open"],
        "kb.other": ["its own range"],
    }
    assert (seen.operations, seen.outside) == (6, 4)


def test_correlations_of_two_processes_are_not_mixed_up(export: Export) -> None:
    stranger = MACHINE | 9 << 24 | 9
    export.insert(
        nsys_export.RANGE, start=1, eventType=75, text="kernelbench", globalTid=stranger, domainId=1
    )
    export.range("kb.main", 10, 20)
    export.range("kb.stranger", 30, 40, thread=stranger)
    correlation = export.launch(15)
    export.insert(
        nsys_export.CALL, start=35, end=36, eventClass=0, globalTid=stranger, returnValue=0,
        correlationId=correlation, nameId=export.text("cudaLaunchKernel"),
    )  # fmt: skip
    export.kernel("mine", 100, 101, correlation)
    export.kernel("theirs", 100, 101, correlation, thread=stranger)
    ranges = {one.name: [k.name for k in one.kernels] for one in nsys.read(export.path)}
    assert ranges == {"kb.main": ["mine"], "kb.stranger": ["theirs"]}


def test_every_kernel_of_a_graph_belongs_to_the_range_that_launched_it(export: Export) -> None:
    export.range("kb.graph", 10, 20)
    launch = export.launch(15)
    for node, (start, end) in enumerate(((100, 110), (110, 130), (140, 150))):
        export.kernel(f"node{node}", start, end, launch, graphNodeId=node + 1)
    (used,) = nsys.read(export.path)
    assert (used.launches, used.busy_ns, used.span_ns, used.gaps_ns) == (3, 40, 50, 10)


def test_the_drivers_fills_and_copies_are_work_of_the_gpu_too(export: Export) -> None:
    export.run(nsys_export.COPIES.format("CUPTI_ACTIVITY_KIND_MEMSET", ""))
    export.run(nsys_export.COPIES.format("CUPTI_ACTIVITY_KIND_MEMCPY", ", copyKind INTEGER"))
    export.range("kb.a", 10, 20)
    process = MAIN & ~0xFFFFFF
    export.insert(
        "CUPTI_ACTIVITY_KIND_MEMSET", start=100, end=105, correlationId=export.launch(11),
        globalPid=process, bytes=4,
    )  # fmt: skip
    for kind, start in ((8, 110), (6, 120)):
        export.insert(
            "CUPTI_ACTIVITY_KIND_MEMCPY", start=start, end=start + 4, copyKind=kind,
            correlationId=export.launch(12), globalPid=process, bytes=4,
        )  # fmt: skip
    (used,) = nsys.read(export.path)
    assert [kernel.name for kernel in used.kernels] == ["[memset]", "[memcpy 6]", "[memcpy DtoD]"]
    assert (used.busy_ns, used.span_ns, used.gaps_ns) == (13, 24, 11)
    assert used.kernels[0].registers is used.kernels[0].shared_bytes is None


def test_a_range_without_an_end_is_named_and_in_no_sum(export: Export) -> None:
    export.range("kb.done", 10, 20)
    export.range("kb.open", 30, None)
    seen = read_ranges(export.path)
    assert [one.name for one in seen.ranges] == ["kb.done"]
    assert seen.endless == ("kb.open",)


@pytest.mark.parametrize(
    ("tables", "names"),
    [
        ([nsys_export.KERNEL], ["kb.a"]),
        ([nsys_export.KERNEL, nsys_export.CALL], ["kb.a"]),
        ([nsys_export.RANGE], []),
    ],
)
def test_a_table_that_is_not_there_has_no_rows(
    export: Export, tables: list[str], names: list[str]
) -> None:
    export.range("kb.a", 10, 20)
    export.launched("k", 30, 40, at=15)
    for table in tables:
        export.run(f"DROP TABLE {table}")
    assert [(one.name, one.launches) for one in nsys.read(export.path)] == [(n, 0) for n in names]


@pytest.mark.parametrize("content", [None, b"no database"])
def test_a_file_that_is_no_export_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.sqlite"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ToolError, match=r"x\.sqlite.*nsys export -t sqlite"):
        nsys.read(path)
    assert path.exists() == (content is not None)
