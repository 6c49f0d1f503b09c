"""Jobs on several GPUs at once: which they are, who does which job, and what becomes of a fall."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_cost import GROWTH_KIB, resident
from test_metrics import timing
from toy import CASE, provider, right, toy
from typer.testing import CliRunner

from kernelbench import metrics, store
from kernelbench.cli import app
from kernelbench.report import tables
from kernelbench.report.progress import LiveView, Plain, Silent
from kernelbench.run import devices, runner
from kernelbench.run.devices import Locks, named
from kernelbench.run.executor import WorkerEndedError
from kernelbench.run.loop import Outcome, run_jobs
from kernelbench.run.runner import Options
from kernelbench.spec import (
    Context,
    Job,
    KernelbenchError,
    Measure,
    RunRecord,
    Status,
    UsageError,
    record_of,
)

NAMES = ("eager", "first")
FAMILY = toy(provider("first", right))
Do = Callable[[str, Job], None]  # a GPU's UUID, and what it measures


class Fake:
    """The executor of one of GPU-0, GPU-1, …, whose jobs a function does in no time."""

    def __init__(self, log: Path, do: Do, count: int, name: str, visible: str = "") -> None:
        self.log, self._do = log, do
        number = int(visible.removeprefix("GPU-")) if visible else 0
        self._uuids = [f"GPU-{n}" for n in ([number] if visible else range(count))]
        machine = {"name": name, "kind": "cuda", "arch": "sm_90", "versions": {}}
        machine |= {"uuid": self._uuids[0], "uuids": self._uuids, "gpus": len(self._uuids)}
        self._waiting: list[Any] = [{"event": "hello", "machine": machine}]
        log.touch()

    def send(self, request: Mapping[str, Any]) -> None:
        if "ceilings" in request:
            limits = request["ceilings"] or {"of": self._uuids[0]}
            self._waiting.append({"event": "ceilings", "ceilings": limits})
        elif "job" in request:
            job = Job.from_json(request["job"], FAMILY.case)
            context = Context(**request["context"])
            assert context.gpu_uuid == self._uuids[0]
            known = {each.name: each for each in FAMILY.providers}
            found = [
                record_of(job, known[name], Status.ok, context, timing=timing(100))
                for name in job.providers
            ]
            lines = [each.to_json() for each in found]
            self._waiting.append({"event": "at", "provider": job.providers[0], "phase": "measure"})
            self._waiting += [lambda: self._do(self._uuids[0], job)]
            self._waiting += [{"event": "records", "records": lines}, {"event": "done"}]

    def receive(self, timeout: float) -> dict[str, Any]:
        event = self._waiting.pop(0)
        if callable(event):
            event()
            event = self._waiting.pop(0)
        found: dict[str, Any] = event
        return found

    def kill(self) -> None:
        """Nothing of it goes on."""

    def tail(self, lines: int = 15) -> str:
        return ""


def fakes(do: Do, count: int = 8, names: Sequence[str] = ("NVIDIA T",)) -> Callable[..., Fake]:
    def make(log: Path, *, visible: str = "", world: int = 1) -> Fake:
        number = int(visible.split(",")[0].removeprefix("GPU-")) if visible else 0
        return Fake(log, do, count, names[number % len(names)], visible.split(",")[0])

    return make


def jobs(count: int, **measure: Any) -> list[Job]:
    known = Measure(**measure)
    return [
        Job(family="toy", case=replace(CASE, R=n + 1), providers=NAMES, measure=known)
        for n in range(count)
    ]


def measured(
    folder: Path, todo: Sequence[Job], make: Any, gpus: str, before: Path | None = None, **more: Any
) -> tuple[Outcome, list[RunRecord], str]:
    """The outcome, the records of every process, and what was noted."""
    console = Console(record=True, file=io.StringIO(), width=200)
    options = Options(executor=make, gpus=gpus, **more)
    kept: list[store.Store] = []

    def opened(machine: dict[str, Any]) -> store.Store:
        if before is None:
            kept.append(store.create(folder, "toy", machine["name"], {"machine": machine}))
        else:
            kept.append(store.open_run(before))
        return kept[0]

    with ExitStack() as finally_:
        finally_.callback(lambda: [each.close() for each in kept])
        families = {"toy": FAMILY}
        outcome, found = run_jobs(todo, families, options, Silent(console), opened, folder)
        return outcome, store.read_apart(found.path), console.export_text()


@pytest.fixture(autouse=True)
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    where = tmp_path / "locks"
    where.mkdir()
    monkeypatch.setattr(devices, "LOCKS", where)
    return where


@pytest.mark.parametrize(
    ("asked", "seen", "found"),
    [
        ("all", "3,4", ()),
        ("0", "", ("0",)),
        ("0, 2,5", "", ("0", "2", "5")),
        ("1,0", "GPU-a,GPU-b,7", ("GPU-b", "GPU-a")),
        ("GPU-12ab-cd,1", "", ("GPU-12ab-cd", "1")),
    ],
)
def test_gpus_are_counted_as_this_process_sees_them(
    asked: str, seen: str, found: tuple[str, ...]
) -> None:
    assert named(asked, {"CUDA_VISIBLE_DEVICES": seen} if seen else {}) == found


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("-1", "'-1' names no GPU. Known: all, or such as 0,2 or GPU-…"),
        ("0,", "'' names no GPU"),
        ("0;1", "'0;1' names no GPU"),
        ("All", "'All' names no GPU"),
        ("0,1,0", "names a GPU twice"),
        ("2", "there is no GPU 2: CUDA_VISIBLE_DEVICES shows 2, from 0 on"),
        ("1,GPU-b", "names a GPU twice"),
    ],
)
def test_what_names_no_gpu_is_refused(asked: str, told: str) -> None:
    with pytest.raises(UsageError, match="--gpus") as refused:
        named(asked, {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"})
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--gpus", "x"], "'x' names no GPU"),
        (["--gpus", "0", "--device", "cpu"], "--gpus and --device cpu contradict each other"),
        (["--gpus", "all"], "no CUDA device"),
    ],
)
def test_the_command_refuses_gpus_that_are_not_here(
    options: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = CliRunner().invoke(app, ["run", "smoke", *options, "--out", str(tmp_path / "out")])
    assert done.exit_code == 2 and told in done.stderr
    assert not (tmp_path / "out").exists()


HOLD = """
import sys, pathlib
from kernelbench.run import devices
devices.LOCKS = pathlib.Path(sys.argv[1])
devices.Locks(shared=sys.argv[2] == "shared", note=print).hold(["GPU-1"])
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("alone", "alone"), ("alone", "shared"), ("shared", "alone"), ("shared", "shared")],
)
def test_two_processes_never_time_on_one_gpu(theirs: str, ours: str, locks: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(locks), theirs]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        mine = Locks(shared=ours == "shared", note=pytest.fail)
        mine.hold(["GPU-0", "GPU-2"])
        if theirs == ours == "shared":
            mine.hold(["GPU-1"])
        else:
            with pytest.raises(
                KernelbenchError, match=rf"GPU-1 is in use by .*process {other.pid}"
            ):
                mine.hold(["GPU-1"])
        other.kill()
    mine.hold(["GPU-1"])
    mine.close()
    Locks(shared=False, note=pytest.fail).hold(["GPU-1"])


def test_where_no_lock_can_be_had_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "LOCKS", Path("/proc/none"))
    said: list[str] = []
    mine = Locks(shared=False, note=said.append)
    mine.hold(["GPU-1"])
    mine.hold(["GPU-1"])
    mine.close()
    assert len(said) == 1 and "GPU-1: nothing keeps other runs off it" in said[0]


@pytest.mark.parametrize(("gpus", "used"), [("all", 8), ("0,3,5", 3), ("2", 1), ("", 1)])
def test_whoever_is_free_takes_a_job_and_goes_on_with_it(
    gpus: str, used: int, tmp_path: Path
) -> None:
    todo = jobs(40, processes=3)
    slow = threading.Event()

    def do(uuid: str, job: Job) -> None:
        if uuid == "GPU-3" and used > 1:
            slow.wait(0.02)

    outcome, records, _ = measured(tmp_path, todo, fakes(do), gpus)
    assert (outcome.bad, outcome.left, outcome.total) == (False, 0, 120)
    assert len(records) == 40 * 2 * 3
    where: dict[str, set[str]] = {}
    for record in records:
        where.setdefault(record.case, set()).add(record.gpu_uuid)
    assert {len(uuids) for uuids in where.values()} == {1}, "processes of a job are of one card"
    shares = Counter(next(iter(uuids)) for uuids in where.values())
    wanted = {"all": range(8), "0,3,5": (0, 3, 5), "2": (2,), "": (0,)}[gpus]
    assert {*shares} <= {f"GPU-{n}" for n in wanted}
    if used == 3:
        assert shares["GPU-3"] < 40 / 3
    [folder] = store.find_runs([tmp_path])
    manifest = store.read_manifest(folder)
    said = str(tables.summary(metrics.filled(metrics.rows_of(store.read(folder)[:40]))))
    assert ("each case on one of " in said) == (used > 1)
    if used == 1:
        assert "gpus" not in manifest and "used" not in manifest["machine"]
        assert manifest["ceilings"] == {"of": f"GPU-{wanted[0]}"}
    else:
        uuids = [f"GPU-{n}" for n in wanted]
        assert manifest["machine"]["used"] == uuids
        assert manifest["gpus"] == {uuid: {"of": uuid} for uuid in uuids}
    assert len([*folder.glob("worker*.log")]) == used


def test_a_job_of_several_gpus_runs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at, most = Counter[str](), Counter[str]()
    started: list[str] = []

    def do(uuid: str, job: Job) -> None:
        at[uuid] += 1
        most[job.case.id] = max(most[job.case.id], at.total())
        time.sleep(0.01)
        at[uuid] -= 1

    class Wide(Job):
        @property
        def world(self) -> int:
            return 2 if self.case.R % 5 == 0 else 1

    make = fakes(do, count=3)
    ended: list[int] = []

    def several(log: Path, *, visible: str = "", world: int = 1) -> Fake:
        started.append(f"{world}:{visible}")
        ended.append(0)
        return make(log, visible=visible, world=world)

    monkeypatch.setattr(runner, "LocalWorker", several)
    todo = [Wide(**vars(job)) for job in jobs(20)]
    outcome, records, _ = measured(tmp_path, todo, several, "all")
    assert outcome.left == 0 and len(records) == 40
    wide = [job.case.id for job in todo if job.world == 2]
    assert len(wide) == 4 and {most[each] for each in wide} == {1}
    assert max(most.values()) > 1, "the others ran at once"
    assert started.count("2:GPU-0,GPU-1") == 1


@pytest.mark.parametrize(
    ("gpus", "names", "told"),
    [
        ("0,1", ("NVIDIA T", "NVIDIA U"), "a run is of one model; these are NVIDIA T, NVIDIA U"),
        ("GPU-1,1", ("NVIDIA T",), "two of these are the same GPU"),
    ],
)
def test_unlike_or_equal_gpus_are_refused(
    gpus: str, names: Sequence[str], told: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=told):
        measured(tmp_path, jobs(3), fakes(lambda uuid, job: None, names=names), gpus)
    assert not [*tmp_path.glob("*toy*")] and not [*tmp_path.glob(".worker*")]


def test_a_gpu_in_use_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    Locks(shared=False, note=pytest.fail).hold(["GPU-1"])
    make = fakes(lambda uuid, job: pytest.fail("measured"))
    with pytest.raises(KernelbenchError, match="GPU-1 is in use by another kernelbench"):
        measured(tmp_path, jobs(3), make, "0,1")
    outcome, _, _ = measured(tmp_path, jobs(3), fakes(lambda uuid, job: None), "0,2")
    assert outcome.left == 0


def test_when_one_falls_the_others_go_on_and_it_is_resumed(tmp_path: Path) -> None:
    todo, fallen = jobs(30, processes=2), threading.Event()

    def do(uuid: str, job: Job) -> None:
        time.sleep(0.002)
        if uuid == "GPU-1" and job.process == 1:
            fallen.set()
            raise KernelbenchError("the worker did not start")

    with pytest.raises(KernelbenchError, match="did not start\nWhat was measured is safe"):
        measured(tmp_path, todo, fakes(do), "0,1")
    assert fallen.is_set()
    [folder] = store.find_runs([tmp_path])
    before = store.read_apart(folder)
    first = [r for r in before if r.process == 0]
    assert len(first) == 60 and {r.gpu_uuid for r in first} == {"GPU-0", "GPU-1"}
    second = {(r.case, r.provider) for r in before if r.process == 1}
    assert second == {(r.case, r.provider) for r in first if r.gpu_uuid == "GPU-0"}

    nothing = fakes(lambda uuid, job: None)
    outcome, now, noted = measured(tmp_path, todo, nothing, "0,2", before=folder)
    left = len({r.case for r in first if r.gpu_uuid == "GPU-1"})
    assert now == before and outcome.left == left
    assert f"{left} jobs were begun on a GPU that is not one of these" in noted
    outcome, now, _ = measured(tmp_path, todo, nothing, "2,1", before=folder)
    assert outcome.left == 0 and len(now) == 120
    assert {len({r.gpu_uuid for r in now if r.case == job.case.id}) for job in todo} == {1}
    assert {*store.read_manifest(folder)["gpus"]} == {"GPU-0", "GPU-1", "GPU-2"}


def test_ctrl_c_ends_all_of_them(tmp_path: Path) -> None:
    stuck = threading.Event()

    def do(uuid: str, job: Job) -> None:
        if job.case.R == 7:
            os.kill(os.getpid(), signal.SIGINT)
        if job.case.R > 7:
            stuck.wait(30)

    class Stuck(Fake):
        def kill(self) -> None:
            stuck.set()

        def receive(self, timeout: float) -> dict[str, Any]:
            event = super().receive(timeout)
            if stuck.is_set():
                raise WorkerEndedError("killed by SIGKILL")
            return event

    def make(log: Path, *, visible: str = "") -> Fake:
        return Stuck(log, do, 4, "NVIDIA T", visible)

    # Whoever was started in the background may ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    begun = time.monotonic()
    try:
        outcome, records, _ = measured(tmp_path, jobs(200), make, "all")
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - begun < 20
    assert outcome.interrupted == 130 and 0 < outcome.left < 200
    assert {record.status for record in records} == {Status.ok}, "nobody is to blame"
    whole = Counter(record.case for record in records)
    assert 200 - outcome.left <= len(whole)


def test_the_first_failure_and_the_budget_stop_all(tmp_path: Path) -> None:
    def do(uuid: str, job: Job) -> None:
        time.sleep(0.01)

    outcome, _, _ = measured(
        tmp_path, jobs(100), fakes(do, 2), "all", deadline=time.monotonic() + 0.3
    )
    assert 0 < outcome.left < 100 and not outcome.interrupted


def test_progress_says_which_gpu_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(record=True, width=120, file=io.StringIO())
    [job] = jobs(1)
    with Plain(console) as view:
        part = view.of("3")
        part.job(job, 1, 2)
        view.machine(
            {"name": "T", "arch": "sm_90", "kind": "cuda", "versions": {}, "used": ["a", "b"]}
        )
    assert "GPU 3: [1/2] toy/" in (text := console.export_text())
    assert "2 × T, sm_90" in text
    with LiveView(console) as live:
        live.of("0").job(job, 1, 2)
        live.of("1").at("eager", "compile")
        console.print(live._view())
    text = console.export_text()
    assert f"GPU 0: {job.id}" in text and "GPU 1:   eager: compile" in text


def test_a_live_view_is_told_by_several_threads_at_once() -> None:
    """Also while it draws what it was told."""
    [job] = jobs(1)
    context = Context(run_id="r", gpu="g", gpu_uuid="GPU-0", seed=3, source="s")
    found = [record_of(job, FAMILY.providers[0], Status.ok, context, timing=timing(9))]
    with LiveView(Console(width=120, file=io.StringIO())) as live:

        def tell(gpu: int) -> None:
            part = live.of(str(gpu))
            for number in range(60):
                part.job(job, number, 60)
                part.at("eager", str(number))
                part.recorded(found * 12)

        with ThreadPoolExecutor(8) as threads:
            assert [*threads.map(tell, range(8))] == [None] * 8


@pytest.mark.slow
def test_10_000_jobs_and_64_workers_cost_the_coordinator_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CPU time up to the last job, without what the fakes do; memory from the 2,000th job on."""
    fake, seen, lock = [0.0], list[tuple[float, int]](), threading.Lock()

    def do(uuid: str, job: Job) -> None:
        with lock:
            if job.case.R in (2_000, 9_990):
                seen.append((time.process_time() - fake[0], resident(os.getpid())))

    sending = Fake.send

    def send(self: Fake, request: Mapping[str, Any]) -> None:
        begun = time.thread_time()
        sending(self, request)
        with lock:
            fake[0] += time.thread_time() - begun

    monkeypatch.setattr(Fake, "send", send)
    begun = time.process_time()
    outcome, records, _ = measured(tmp_path, jobs(10_000), fakes(do, count=64), "all")
    assert outcome.left == 0 and len(records) == 20_000
    [folder] = store.find_runs([tmp_path])
    assert store.read_manifest(folder)["fsync"]["at_most_ms"] == 100
    (early, less), (late, more) = seen
    print(
        f"ms a job: {(late - early) / 7.99:.2f}, with the first 2,000 {(late - begun) / 9.99:.2f}"
    )
    print(f"KiB more: {more - less}")
    assert (late - early) / 7_990 < 1e-3
    assert more - less < GROWTH_KIB
