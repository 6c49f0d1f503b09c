"""A real Nsight Systems, with no GPU: what it records of our ranges, stores, and leaves behind."""

import csv
import fcntl
import io
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from nsys_export import KERNEL, Export
from test_profile import invoke, lines_of, suite
from typer.testing import CliRunner

from kernelbench import store
from kernelbench.cli import app
from kernelbench.profile import nsys, tool
from kernelbench.profile.nsys import program
from kernelbench.profile.tool import ToolError
from kernelbench.spec import Status, Tool

ROOT = Path(__file__).parent.parent
SECRET = "a-secret-that-nobody-may-keep"
RANGES = """
import sys, threading, time
from kernelbench.profile import nvtx
assert nvtx.attached() == "nsys", nvtx.attached()
ranges = nvtx.open_ranges()
def work(name):
    for call in range(3):
        ranges.push(name, call)
        time.sleep(0.005)
        ranges.push(nvtx.name_of(name, "phase"), 1.5)
        time.sleep(0.01)
        ranges.pop()
        ranges.mark("kb.moment", call)
        ranges.pop()
ranges.push("somebody's")
work("kb.main")
ranges.pop()
other = threading.Thread(target=work, args=("kb.other",))
other.start()
other.join()
"""
DUMMY = """
import nvtx
domain = nvtx.get_domain("kernelbench")
for _ in range(3):
    domain.push_range(message="kb.lost")
    domain.pop_range()
print(type(domain).__name__)
"""
HANG = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(120)"


def _unpack() -> str:
    """Put an nsys where `find` looks, one test process at a time; returns why not."""
    program.CACHE.mkdir(parents=True, exist_ok=True)
    with (program.CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with suppress(ToolError):
            nsys.find()
            return ""
        try:
            done = subprocess.run(
                [ROOT / "tools" / "nsys_bundle.sh", program.CACHE],
                capture_output=True, text=True, timeout=300, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return "tools/nsys_bundle.sh took more than 5 minutes"
    said = done.stderr.strip().splitlines() or ["it says nothing"]
    return "" if done.returncode == 0 else f"tools/nsys_bundle.sh failed: {said[-1]}"


@pytest.fixture(scope="session")
def real() -> nsys.Program:
    """The nsys of this machine, or Debian's, unpacked in the user's cache."""
    with suppress(ToolError):
        return nsys.find()
    why = _unpack()
    if why:
        pytest.skip(f"no nsys here, and none to be had: {why}")
    return nsys.find()


@pytest.fixture
def stem(tmp_path: Path) -> Path:
    folder = tmp_path / "a run of 50%p"
    folder.mkdir()
    return folder / "case 1.5"


def child(code: str, *args: object) -> list[str]:
    return [sys.executable, "-c", code, *map(str, args)]


def capture(
    found: nsys.Program, code: str, stem: Path, *args: object, **kwargs: float
) -> nsys.Report:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "SECRET_TOKEN": SECRET}
    timeout = kwargs.get("timeout", 90)
    return nsys.capture(found, child(code, *args), stem, cuda=False, timeout=timeout, env=env)


def stored(stem: Path) -> set[str]:
    """Suffixes of the files of a capture that hold the secret."""
    files = [path for path in stem.parent.iterdir() if path.name.startswith(stem.name)]
    assert {path.suffix for path in files} >= {".nsys-rep", ".sqlite", ".log"}
    return {path.suffix for path in files if SECRET.encode() in path.read_bytes()}


def running(word: str) -> list[Path]:
    """Processes with this argument; one that is dead and not reaped yet has none."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # gone meanwhile
            if word.encode() in path.read_bytes().split(b"\0"):
                found.append(path)
    return found


def test_ranges_come_back_with_phases_and_payloads(real: nsys.Program, stem: Path) -> None:
    report = capture(real, RANGES, stem)
    ranges = {one.name: one for one in report.ranges}
    assert list(ranges) == ["kb.main", "kb.main.phase", "kb.other", "kb.other.phase"]
    for name in ("kb.main", "kb.other"):
        whole, phase = ranges[name], ranges[f"{name}.phase"]
        assert whole.instances == phase.instances == 3
        assert whole.host_ns >= phase.host_ns + 3 * 5_000_000
        assert phase.host_ns >= 3 * 10_000_000
        assert whole.launches == whole.busy_ns == whole.span_ns == whole.gaps_ns == 0
    assert set(report.notes) <= {nsys.EXPOSED}
    assert report.rep is not None
    assert report.sqlite is not None
    assert report.rep.parent == stem.parent
    with sqlite3.connect(report.sqlite) as export:
        payloads = export.execute(
            """SELECT s.value, COALESCE(uint64Value, int64Value, doubleValue) FROM NVTX_EVENTS e
            JOIN StringIds s ON s.id = e.textId WHERE s.value LIKE 'kb.main%' OR eventType = 34
            ORDER BY start"""
        ).fetchall()
    assert payloads[:3] == [("kb.main", 0), ("kb.main.phase", 1.5), ("kb.moment", 0)]
    assert [value for name, value in payloads if name == "kb.moment"] == [0, 1, 2, 0, 1, 2]
    assert stored(stem) == set()


def test_without_the_whitelist_the_secret_would_be_stored(
    real: nsys.Program, stem: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "environment", dict)
    capture(real, RANGES, stem)
    assert ".sqlite" in stored(stem)


@pytest.mark.parametrize("alone", [True, False])
def test_what_other_processes_know_is_not_stored(
    real: nsys.Program, stem: Path, alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nsys reads the environment of each that it may, and stores it: of none in a PID namespace;
    without, it is in the report, which is said, and taken out of our export."""
    if alone and not tool.isolation():
        pytest.skip("this machine lets nobody make a PID namespace")
    if not alone:
        monkeypatch.setattr(tool, "isolation", tuple)
    env = {**os.environ, "SECRET_TOKEN": SECRET}
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=env) as one:
        report = capture(real, RANGES, stem)
        one.communicate(b"\n")
    assert report.notes == (() if alone else (nsys.EXPOSED,))
    assert ".sqlite" not in stored(stem)
    assert report.ranges
    whole = stem.with_name("whole.sqlite")
    exported = [real.path, "export", "--type=sqlite", f"--output={whole}", str(report.rep)]
    subprocess.run(exported, check=True, capture_output=True)
    assert (SECRET.encode() in whole.read_bytes()) is not alone


def test_a_dummy_domain_loses_its_ranges_and_that_is_said(real: nsys.Program, stem: Path) -> None:
    try:
        report = capture(real, DUMMY, stem)
    except ToolError as error:
        assert "holds no range kb.* of the NVTX domain kernelbench" in str(error)
        said = "DummyDomain"
    else:  # an nsys that nvtx can ask whether it wants the domain
        assert [(one.name, one.instances) for one in report.ranges] == [("kb.lost", 3)]
        said = "Domain"
    assert said in stem.with_name(f"{stem.name}.log").read_text().splitlines()


@pytest.mark.slow
def test_a_hanging_child_does_not_outlive_its_capture(real: nsys.Program, stem: Path) -> None:
    pid = stem.with_name("pid")
    with pytest.raises(ToolError, match="did not end within 8 s"):
        capture(real, HANG, stem, pid, timeout=8)
    assert pid.exists()
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:  # nsys ends what it was told to end in its own time
        sessions = subprocess.run(
            [real.path, "sessions", "list"], capture_output=True, text=True, check=True
        ).stdout
        gone = not running(str(pid))
        if gone and f"kernelbench-{os.getpid()}-" not in sessions:
            return
        time.sleep(0.2)
    pytest.fail(f"still there: {'no child' if gone else 'the child'}, {sessions}")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("print('no such axis'); raise SystemExit(3)", "ended with code 3;"),
        ("import os; print('no such axis', flush=True); os.kill(os.getpid(), 9)", "(SIGKILL)"),
    ],
)
def test_a_child_that_fails_is_told(real: nsys.Program, stem: Path, code: str, said: str) -> None:
    with pytest.raises(ToolError) as raised:
        capture(real, code, stem)
    assert said in str(raised.value)
    assert str(raised.value).endswith("no such axis")


def test_a_program_that_is_not_there_is_told(real: nsys.Program, stem: Path) -> None:
    with pytest.raises(ToolError, match=r"wrote no report.*not found"):
        nsys.capture(real, ["/nowhere/python"], stem, cuda=False, timeout=60, env={})


def test_a_capture_on_a_gpu_waits_for_the_child_to_begin_it(real: nsys.Program, stem: Path) -> None:
    """All flags of such a capture are known to this nsys, and a child that never begins is told."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with pytest.raises(ToolError, match="was cudaProfilerStart never called"):
        nsys.capture(real, child(RANGES), stem, cuda=True, timeout=90, env=env)


def test_a_gpu_that_is_not_there_gives_no_metrics(real: nsys.Program, stem: Path) -> None:
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("this machine has an NVIDIA driver")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    report = nsys.capture(
        real, child(RANGES), stem, cuda=False, gpu_metrics=True, timeout=90, env=env
    )
    note = next(note for note in report.notes if note != nsys.EXPOSED)
    assert note.startswith("GPU metrics were not sampled: ")
    assert report.ranges


@pytest.mark.slow
def test_a_capturing_half_leaves_a_raw_capture_for_an_importer(
    real: nsys.Program, stem: Path, tmp_path: Path
) -> None:
    """As on machines where only ncu is installed, which brings no importer along."""
    target = real.path.resolve().parent
    if real.importer is None or not target.name.startswith("target-"):
        pytest.skip(f"{real.path} is not laid out as a target beside a host")
    shutil.copytree(target, tmp_path / "half" / target.name)
    half = nsys.Program(tmp_path / "half" / target.name / "nsys", real.version)
    kept = capture(half, RANGES, stem)
    assert (kept.rep, kept.sqlite, kept.ranges) == (None, None, ())
    assert kept.qdstrm == stem.with_name(f"{stem.name}.qdstrm")
    assert "QdstrmImporter -i" in kept.notes[-1]

    imported = capture(nsys.Program(half.path, real.version, real.importer), RANGES, stem)
    assert [one.instances for one in imported.ranges] == [3, 3, 3, 3]
    assert not kept.qdstrm.exists()


def test_the_verb_keeps_what_it_saw_and_imports_what_waits(
    real: nsys.Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, args = tmp_path / "out", ("--nsys", "--case", "n8-fp32-fwd")
    done = invoke("profile", suite(tmp_path), *args, out=out)
    assert done.exit_code == 0, done.output
    assert "range µs" in done.stdout and "span µs" not in done.stdout, "no GPU: nothing spans"
    found = lines_of(out)
    assert [(line.provider, line.status, line.calls) for line in found] == [
        ("first", Status.ok, 3),
        ("second", Status.ok, 3),
    ]
    assert all(line.host_ns and line.tool is Tool.nsys for line in found)
    (run,) = store.find_runs([out])
    again = CliRunner().invoke(app, ["profile", "--import", str(run)])
    assert again.exit_code == 0
    assert "no capture waits to be read" in again.stdout


def test_kernels_of_ranges_are_those_of_nsys_stats(real: nsys.Program, stem: Path) -> None:
    """Made-up kernels in a real export, summed by NVIDIA's own report; its ranges include what is
    in the ranges within."""
    capture(real, RANGES, stem)
    path = stem.with_name("full.sqlite")
    rep = stem.with_name(f"{stem.name}.nsys-rep")
    subprocess.run(
        [real.path, "export", "-t", "sqlite", "--lazy=false", "-q", "true", "-o", path, rep],
        capture_output=True, check=True,
    )  # fmt: skip
    export = Export(path)
    if not export.run("SELECT 1 FROM sqlite_master WHERE name = ?", KERNEL):
        pytest.skip(f"nsys {real.version} exports no empty tables")
    clock = 10**9
    for index, (thread, start, end) in enumerate(
        export.run("SELECT globalTid, start, end FROM NVTX_EVENTS WHERE eventType = 59")
    ):
        for name, length in (("rms_norm", 20_000 + index), ("add", 7_000 + 3 * index)):
            clock += 10_000
            export.launched(name, clock, clock + length, (start + end) // 2, thread)
            clock += length
    stats = subprocess.run(
        [real.path, "stats", "-r", "nvtx_kern_sum", "--format", "csv", "-q", "-o", "-", path],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(stats.stdout.strip())))
    if stats.returncode or not rows:
        pytest.skip(f"nsys stats of {real.version} has no nvtx_kern_sum: {stats.stderr[-200:]}")
    theirs = {
        (row["NVTX Range"].rpartition(":")[2], row["Kernel Name"]): (
            int(row["Kern Inst"]), int(row["Total Time (ns)"])
        )
        for row in rows
    }  # fmt: skip
    ours = {
        (one.name, kernel.name): (kernel.launches, kernel.gpu_ns)
        for one in nsys.read(path)
        for kernel in one.kernels
    }
    assert len(ours) >= 4
    for key, value in ours.items():
        name, kernel = key
        within = ours.get((f"{name}.phase", kernel), (0, 0))
        assert theirs[key] == (value[0] + within[0], value[1] + (within[1] or 0))
