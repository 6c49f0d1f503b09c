"""Nsight Compute's part of a profile: its table, its sums, and each way in which it fails.

The tables in data/ are ncu 2025.3.1's own, of an H200. What is run here is a script in its place.
"""

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from unpacked import unpacked

from kernelbench.profile import ncu, tool
from kernelbench.profile.ncu.csv import METRICS, kernels_by_range
from kernelbench.profile.tool import ToolError

TABLE = unpacked("ncu_h200.csv")
NESTED = unpacked("ncu_h200_nested.csv")  # as `capture` asks for it
PUSHED = "thread Domain:Push/Pop_Range:PL_Type:PL_Value:CLR_Type:Color:Msg_Type:Msg"
STARTED = "Id:Domain:Start/Stop_Range:PL_Type:PL_Value:CLR_Type:Color:Msg_Type:Msg"
FIRST = ["ID", "Process ID", PUSHED, STARTED, "Kernel Name", "Block Size", "Grid Size"]
TIME, READ, WRITE = (METRICS[name] for name in ("gpu_ns", "dram_read_bytes", "dram_write_bytes"))
STATIC, DYNAMIC = METRICS["shared_static_bytes"], METRICS["shared_dynamic_bytes"]


def pushed(*names: str) -> str:
    """A cell of ranges, `domain:name` each."""
    return "7  " + " ".join(f'"{name}:none:none:RGB:0xff:REGISTERED:message"' for name in names)


def line(cells: Sequence[str]) -> str:
    return ",".join('"' + cell.replace('"', '""') + '"' for cell in cells)


def table(
    units: dict[str, str], *rows: tuple[str, Sequence[str]], ranges: str = "kernelbench:kb.a"
) -> list[str]:
    """A table of metrics (name to unit), and launches (kernel, its values)."""
    lines = [line([*FIRST, *units]), line([""] * len(FIRST) + [*units.values()])]
    for i, (kernel, values) in enumerate(rows):
        first = [str(i), "7", pushed(ranges), "", kernel, "(128, 1, 1)", "(4, 1, 1)"]
        lines.append(line([*first, *values]))
    return lines


def use(lines: Sequence[str], name: str = "kb.a") -> ncu.KernelUse:
    (found,) = kernels_by_range(ncu.parse("\n".join(lines)))[name]
    return found


# The table


def test_the_table_of_an_h200() -> None:
    launches = ncu.parse(TABLE.read_text(encoding="utf-8"))
    assert [one.ranges for one in launches] == [("kb.rms_norm.eager",), ("kb.add.triton",)] * 3
    one = launches[3]
    assert (one.kernel, one.grid, one.block) == ("addk", "(65536, 1, 1)", "(128, 1, 1)")
    assert one.values["dram_read_bytes"] == 134_224_640  # x is 134,217,728 bytes
    assert launches[5].values["dram_write_bytes"] == 108_045_824
    assert one.values["gpu_ns"] == 62_528
    assert one.values["l2_bytes"] is None  # not asked for when it was recorded


def test_sums_over_the_calls_of_a_range() -> None:
    found = kernels_by_range(ncu.parse(TABLE.read_text(encoding="utf-8")))
    (add,) = found["kb.add.triton"]
    assert (add.launches, add.gpu_ns) == (3, 62_176 + 62_528 + 61_440)
    assert add.dram_read_bytes == 134_223_872 + 134_224_640 + 134_225_152
    assert (add.registers, add.shared_bytes) == (20, 0)
    assert add.dram_pct is None and add.l2_bytes is None
    (norm,) = found["kb.rms_norm.eager"]
    assert norm.name.startswith("void at::<unnamed>::vectorized_layer_norm_kernel<c10::BFloat16")
    assert (norm.registers, norm.shared_bytes) == (27, 24)


def test_nested_ranges_and_all_metrics_of_an_h200() -> None:
    found = kernels_by_range(ncu.parse(NESTED.read_text(encoding="utf-8")))
    assert set(found) == {"kb.toy.add.M4-bf16-fwd", "kb.toy.bwd.M4-bf16-bwd"}  # not `measure`
    (add,) = found["kb.toy.add.M4-bf16-fwd"]
    assert (add.name, add.launches, add.gpu_ns) == ("add", 2, 246_816)
    assert add.dram_read_bytes == 536_904_704  # 2 × 268,435,456 bytes of x, and 0.006 %
    assert (add.dram_write_bytes, add.l2_bytes) == (486_951_936, 1_650_632_608)
    assert (add.registers, add.shared_bytes) == (18, 0)
    shares = (add.dram_pct, add.sm_pct, add.occupancy_pct)
    assert shares == pytest.approx((86.234, 6.900, 85.515), abs=1e-3)
    norm, fill = found["kb.toy.bwd.M4-bf16-bwd"]
    assert "layer_norm_grad_input_kernel" in norm.name and "FillFunctor<float>" in fill.name
    assert (norm.gpu_ns, fill.gpu_ns, fill.dram_read_bytes) == (187_008, 58_944, 15_616)


@pytest.mark.parametrize(
    ("cell", "unit", "expected"),
    [
        ("134,224,640", "byte", 134_224_640),
        ("134.22", "Mbyte", 134_220_000),
        ("1.5", "Kbyte", 1500),
        ("2", "Gbyte", 2_000_000_000),
        ("0", "byte", 0),
        ("n/a", "byte", None),
        ("", "byte", None),
        ("(!) nan", "", None),
    ],
)
def test_units_and_separators_of_bytes(cell: str, unit: str, expected: int | None) -> None:
    assert use(table({READ: unit}, ("k", [cell]))).dram_read_bytes == expected


@pytest.mark.parametrize(
    ("cell", "unit", "expected"),
    [
        ("62,176", "ns", 62_176),
        ("62,176", "nsecond", 62_176),
        ("62.18", "usecond", 62_180),
        ("62.18", "us", 62_180),
        ("1.25", "msecond", 1_250_000),
        ("2", "second", 2_000_000_000),
    ],
)
def test_units_of_time(cell: str, unit: str, expected: int) -> None:
    assert use(table({TIME: unit}, ("k", [cell]))).gpu_ns == expected


@pytest.mark.parametrize(("cell", "unit"), [("3", "furlong"), ("3", "")])
def test_what_is_not_understood_is_refused(cell: str, unit: str) -> None:
    with pytest.raises(ToolError, match=f"{READ} is '{cell}' in '{unit}'"):
        ncu.parse("\n".join(table({READ: unit}, ("k", [cell]))))


@pytest.mark.parametrize("cell", ["", "n/a", "(!) n/a", "(!) nan", "inf", "many", "-"])
def test_a_cell_that_is_no_number_is_missing_and_no_other_is(cell: str) -> None:
    units = {READ: "byte", WRITE: "byte"}
    found = use(table(units, ("k", [cell, "5"])))
    assert (found.dram_read_bytes, found.dram_write_bytes) == (None, 5)


def test_what_one_launch_does_not_tell_the_sum_does_not() -> None:
    units = {READ: "byte", WRITE: "byte", STATIC: "byte/block", DYNAMIC: "byte/block"}
    found = use(table(units, ("k", ["1", "n/a", "8", "16"]), ("k", ["2", "5", "8", "n/a"])))
    assert (found.dram_read_bytes, found.dram_write_bytes, found.shared_bytes) == (3, None, None)


def test_shares_are_weighted_by_time_and_resources_are_the_most() -> None:
    units = {
        TIME: "ns",
        METRICS["dram_pct"]: "%",
        METRICS["registers"]: "register/thread",
        STATIC: "byte/block",
        DYNAMIC: "Kbyte/block",
    }
    found = use(
        table(units, ("k", ["300", "80", "32", "0", "2"]), ("k", ["100", "40", "64", "1", "1"]))
    )
    assert found.dram_pct == pytest.approx(70)
    assert (found.registers, found.shared_bytes) == (64, 2000)
    partly = [("k", ["300", "n/a", "32", "0", "2"]), ("k", ["100", "40", "32", "0", "2"])]
    assert use(table(units, *partly)).dram_pct is None


def test_kernels_of_a_range_are_apart_the_longest_first() -> None:
    rows = [("short", ["5"]), ("long", ["7"]), ("short", ["1"])]
    found = kernels_by_range(ncu.parse("\n".join(table({TIME: "ns"}, *rows))))
    assert [(one.name, one.launches, one.gpu_ns) for one in found["kb.a"]] == [
        ("long", 1, 7),
        ("short", 2, 6),
    ]


def test_only_kb_ranges_of_our_domain_count() -> None:
    rows = [
        pushed(
            "<default domain>:kb.x",
            "kernelbench:setup",
            "kernelbench:kb.a.b=1",
            "mykernelbench:kb.y",
        ),
        pushed("torch:kb.z"),
        "",
    ]
    lines = table({TIME: "ns"})
    for i, cell in enumerate(rows):
        lines.append(line([str(i), "7", cell, pushed("kernelbench:kb.s"), "k", "", "", "1"]))
    assert [one.ranges for one in ncu.parse("\n".join(lines))] == [("kb.a.b=1",), (), ()]
    assert use(lines, "kb.a.b=1").launches == 1


def test_what_a_program_prints_between_the_lines() -> None:
    clean = table({TIME: "ns"}, ("k", ["1"]), ("k", ["2"]))
    noisy = [
        "==PROF== Connected to process 7",
        clean[0],
        '"quoted" by the program',
        clean[1],
        "0.5, no end of line" + clean[2],
        "a form feed \x0c, and\x1c",
        clean[3] + "\r",
        "==PROF== Disconnected from process 7",
        "1,2,3",
    ]
    assert ncu.parse("\n".join(noisy)) == ncu.parse("\n".join(clean))
    assert use(noisy).gpu_ns == 3


def test_a_table_without_ranges_or_cut_off_is_refused() -> None:
    lines = table({TIME: "ns", READ: "byte"}, ("k", ["1", "2"]))
    with pytest.raises(ToolError, match="record the report with --nvtx"):
        ncu.parse("\n".join(lines).replace("Push/Pop_Range", "Other"))
    with pytest.raises(ToolError, match=r"broken: a line of \d+ cells under a header of 9"):
        ncu.parse("\n".join(lines)[:-8])
    assert ncu.parse("nothing of ncu's") == []


# Runs

Fake = Callable[..., ncu.Program]
SCRIPT = """#!/bin/bash
case "$1" in
--version) {version} ;;
--import) printf '%s\\n' "$@" "LC_ALL=$LC_ALL" > "{seen}.import"; {table} ;;
*)
    printf '%s\\n' "$@" > "{seen}.record"
    while [ "$1" != -o ]; do shift; done
    rep=$2; shift 2
    while [ "${{1:0:2}}" = -- ]; do shift 2; done
    {record} ;;
esac
"""


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    """An ncu that does as told; by default it runs the child, and reports data/'s table."""

    def made(
        record: str = '"$@" && echo report > "$rep"',
        table: str = f"cat {shlex.quote(str(TABLE))}",
        version: str = "echo Version 2025.3.1.0 '(build 1)'",
    ) -> ncu.Program:
        path = tmp_path / "bin" / "ncu"
        path.parent.mkdir(exist_ok=True)
        seen = tmp_path / "seen"
        path.write_text(SCRIPT.format(record=record, table=table, version=version, seen=seen))
        path.chmod(0o755)
        return ncu.Program(path, "2025.3.1.0")

    return made


def captured(
    found: ncu.Program, stem: Path, timeout: float = 30, **options: Sequence[str]
) -> ncu.Report:
    child = [sys.executable, "-c", "print('a line of the child')"]
    return ncu.capture(found, child, stem, timeout=timeout, env=tool.environment(), **options)


def refused(found: ncu.Program, stem: Path, timeout: float = 30) -> str:
    with pytest.raises(ToolError) as error:
        captured(found, stem, timeout)
    return str(error.value)


def test_a_capture(fake: Fake, tmp_path: Path) -> None:
    stem = tmp_path / "profiles" / "case.1"
    report = captured(fake(), stem, extra=["--launch-count", "5"])
    assert report.rep == tmp_path / "profiles" / "case.1.ncu-rep"
    assert {path.name for path in stem.parent.iterdir()} == {
        "case.1.ncu-rep", "case.1.csv", "case.1.log",
    }  # fmt: skip
    assert set(report.ranges) == {"kb.rms_norm.eager", "kb.add.triton"}
    assert (len(report.launches), report.version) == (6, "2025.3.1.0")
    assert "a line of the child" in Path(f"{stem}.log").read_text()
    recorded = (tmp_path / "seen.record").read_text().split("\n")
    assert recorded[recorded.index("--nvtx-include") + 1] == r"regex:kernelbench@kb\..+/"
    assert recorded[recorded.index("--metrics") + 1].split(",") == [*METRICS.values()]
    assert recorded.index("--launch-count") < recorded.index(sys.executable)
    imported = (tmp_path / "seen.import").read_text().split("\n")
    assert "base" in imported and "--nvtx" not in imported and "LC_ALL=C" in imported


def test_paths_with_spaces_and_percent_signs(fake: Fake, tmp_path: Path) -> None:
    stem = tmp_path / "a folder" / "50% of it"
    (tmp_path / "a folder").mkdir()
    report = captured(fake('echo report > "${rep//%%/%}"'), stem)
    assert report.rep.exists() and report.rep.name == "50% of it.ncu-rep"
    assert (
        str(tmp_path / "a folder" / "50%% of it.ncu-rep") in (tmp_path / "seen.record").read_text()
    )


def test_warnings_are_notes(fake: Fake, tmp_path: Path) -> None:
    record = """echo '==WARNING== Note: Running with unmodified GPU clocks. If not'
    echo '==WARNING== Launching may be slow.'; echo report > "$rep" """
    whole = f"cat {shlex.quote(str(NESTED))}"
    assert captured(fake(record, whole), tmp_path / "a").notes == ("Launching may be slow",)


def test_a_counter_that_no_launch_has_is_noted(fake: Fake, tmp_path: Path) -> None:
    blind = f"sed s/{READ}/another/ {shlex.quote(str(NESTED))}"
    (note,) = captured(fake(table=blind), tmp_path / "a").notes
    assert note == f"ncu told no {READ}: what is made of them stays empty, and unaudited"


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        (
            "ERR_NVGPUCTRPERM - The user does not have permission to access NVIDIA GPU Performance "
            "Counters on the target device 0.",
            "--cap-add=SYS_ADMIN; or let the administrator set `options nvidia "
            "NVreg_RestrictProfilingToAdminUsers=0`",
        ),
        ("Nsight Compute failed to connect to the CUDA driver.", "`nvidia-smi` must work"),
        ("Failed to initialize the profiler: LibraryNotLoaded", "this sandbox (gVisor, say)"),
        (
            "Profiling failed because a driver resource was unavailable. Ensure that no other tool "
            "(like DCGM) is concurrently collecting profiling data.",
            "dcgmi profile --pause",
        ),
        ("Failed to profile: HardwareBusy", "dcgmi profile --pause"),
        ("Failed to open/create lock file /tmp/nsight-compute-lock.", "set TMPDIR"),
    ],
)
@pytest.mark.parametrize("code", [0, 1])
def test_known_faults_say_the_remedy(
    fake: Fake, tmp_path: Path, said: str, remedy: str, code: int
) -> None:
    record = f"""echo report > "$rep"; printf 'unended'; echo {shlex.quote("==ERROR== " + said)}
    echo '==ERROR== The application returned an error code (1).'; exit {code}"""
    message = refused(fake(record), tmp_path / "a")
    assert said.rstrip(".") in message and remedy in message
    assert f"Its log: {tmp_path / 'a.log'}" in message


def test_a_fault_before_fifty_megabytes_of_output_is_found(fake: Fake, tmp_path: Path) -> None:
    record = """echo '==ERROR== ERR_NVGPUCTRPERM - no permission'
    head -c 50000000 /dev/zero | tr '\\0' x; echo report > "$rep" """
    assert "CAP_SYS_ADMIN" in refused(fake(record), tmp_path / "a")
    assert (tmp_path / "a.log").stat().st_size > 50_000_000
    flood = fake("head -c 50000000 /dev/zero | tr '\\0' x; echo report > \"$rep\"")
    assert captured(flood, tmp_path / "b").ranges


def test_other_errors_are_handed_on_even_with_code_0(fake: Fake, tmp_path: Path) -> None:
    record = "echo report > \"$rep\"; echo '==ERROR== Something new.'; exit 0"
    assert "ncu: Something new." in refused(fake(record), tmp_path / "a")


def test_no_kernels(fake: Fake, tmp_path: Path) -> None:
    record = "echo report > \"$rep\"; echo '==WARNING== No kernels were profiled.'"
    assert "saw no kernel in a range kb.…" in refused(fake(record), tmp_path / "a")
    other = f"sed s/kernelbench:kb/other:kb/g {shlex.quote(str(TABLE))}"
    assert "saw no kernel in a range kb.…" in refused(fake(table=other), tmp_path / "a")
    assert "saw no kernel in a range kb.…" in refused(fake(table="true"), tmp_path / "a")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (1, "failed with code 1, not ncu"),
        (9, "code 9 (Killed, if"),
        (139, "code 139 (Segmentation"),
    ],
)
def test_a_child_that_fails_is_told_from_ncu(
    fake: Fake, tmp_path: Path, code: int, expected: str
) -> None:
    record = f"""echo '==PROF== Connected'; echo 'ValueError: of the child'; echo report > "$rep"
    echo '==ERROR== The application returned an error code ({code}).'; exit {code}"""
    message = refused(fake(record), tmp_path / "a")
    assert "the profiled program failed" in message and expected in message
    assert "It last said: ValueError: of the child. Its log" in message


def test_ncu_that_fails_or_is_killed(fake: Fake, tmp_path: Path) -> None:
    message = refused(fake("echo unrecognised option; exit 3"), tmp_path / "a")
    assert "ncu ended with code 3: unrecognised option" in message
    message = refused(fake("kill -9 $$"), tmp_path / "a")
    assert "ncu was killed by signal 9 (Killed): it said nothing" in message
    message = refused(fake(table="echo '==ERROR== newer report'; exit 1"), tmp_path / "a")
    assert "ncu: newer report" in message


def test_a_hang_ends_in_time(fake: Fake, tmp_path: Path) -> None:
    message = refused(fake("echo replaying; sleep 60"), tmp_path / "a", timeout=0.5)
    assert "did not end within 0.5 s and was killed" in message
    assert "It last said: replaying" in message


def test_no_report(fake: Fake, tmp_path: Path) -> None:
    assert f"wrote no {tmp_path / 'a.ncu-rep'}" in refused(fake("true"), tmp_path / "a")
    assert "is the disk full?" in refused(fake(': > "$rep"'), tmp_path / "a")


def test_an_old_report_does_not_pass_for_a_new_one(fake: Fake, tmp_path: Path) -> None:
    captured(fake(), tmp_path / "a")
    assert "wrote no" in refused(fake("true"), tmp_path / "a")


def test_a_folder_that_cannot_be_written(fake: Fake, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "reports cannot be written there" in refused(fake(), tmp_path / "file" / "a")


# Where it is, and whether it may look


def test_find(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    assert ncu.find() == ncu.Program(tmp_path / "bin" / "ncu", "2025.3.1.0")
    fake(version="echo Version 1 of no such file; exit 127")
    with pytest.raises(
        ToolError, match="--version: ended with code 127: Version 1 of no such file"
    ):
        ncu.find()


def test_find_elsewhere_or_nowhere(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake()
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr(ncu, "PLACES", (f"{tmp_path}/*/ncu",))
    assert ncu.find().path == tmp_path / "bin" / "ncu"
    monkeypatch.setattr(ncu, "PLACES", (f"{tmp_path}/none/ncu",))
    with pytest.raises(ToolError, match=r"no ncu on the PATH, nor at .*none/ncu.*CUDA toolkit"):
        ncu.find()


@pytest.mark.parametrize(
    ("params", "effective", "reason"),
    [
        (None, "0", "no NVIDIA driver here"),
        ("RmProfilingAdminOnly: 1", "0", "CAP_SYS_ADMIN"),
        ("RmProfilingAdminOnly: 1", "00000000a80425fb", "CAP_SYS_ADMIN"),  # root of a container
        ("RmProfilingAdminOnly: 1", "000001ffffffffff", None),
        ("RmProfilingAdminOnly: 1", "0000000000200000", None),  # CAP_SYS_ADMIN
        ("RmProfilingAdminOnly: 1", "0000004000000000", None),  # CAP_PERFMON
        ("RmProfilingAdminOnly: 0", "0", None),
    ],
)
def test_why_not(
    params: str | None,
    effective: str,
    reason: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if params is not None:
        (tmp_path / "params").write_text(f"ResmanDebugLevel: 4294967295\n{params}\n")
    (tmp_path / "status").write_text(f"Name:\tx\nCapEff:\t{effective}\nCapBnd:\tffffffffffffffff\n")
    monkeypatch.setattr(ncu, "PARAMS", tmp_path / "params")
    monkeypatch.setattr(ncu, "STATUS", tmp_path / "status")
    monkeypatch.setattr(ncu, "DRIVERS", (tmp_path / "params",))
    found = ncu.why_not()
    assert found is None if reason is None else reason in (found or "")
