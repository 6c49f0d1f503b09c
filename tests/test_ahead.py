"""What is compiled ahead of the queue: which jobs, in what order, how it ends, by which keys."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_gpus import FAMILY, fakes, jobs, measured
from test_gpus import locks as locks  # the fixture that every test of it uses

from kernelbench import families, store, suite
from kernelbench.kernels.launch import INTERPRETED
from kernelbench.profile.inspect.cached import Compiling
from kernelbench.report.progress import Silent
from kernelbench.run import loop
from kernelbench.run.ahead import Ahead, Compiler
from kernelbench.run.executor import WorkerEndedError
from kernelbench.run.loop import run_jobs
from kernelbench.run.runner import Options
from kernelbench.spec import DType, Job, KernelbenchError, UsageError
from kernelbench.suite.request import RunRequest

MACHINE = {"name": "NVIDIA T", "kind": "cuda", "arch": "sm_90", "total_bytes": 1 << 40}
MACHINE |= {"l2_bytes": 1 << 25, "sms": 132, "no_triton": ""}
Do = Callable[[Job], None]


class Fake:
    """A process that does jobs by a function, and counts a kernel for each."""

    def __init__(self, log: Path, do: Do = lambda job: None) -> None:
        self.log, self._do, self._waiting = log, do, list[Any]()
        self.killed = threading.Event()

    def send(self, request: Mapping[str, Any]) -> None:
        if "job" in request:
            job = Job.from_json(request["job"], FAMILY.case)
            self._waiting = [job, {"event": "kernel", "compiled": 1, "cpu_s": 0.5}]
            self._waiting += [{"event": "done"}]
        else:
            assert request["machine"]["arch"] == "sm_90"
            self._waiting = [{"event": "hello", "cpu_s": 1.0}]

    def receive(self, timeout: float) -> dict[str, Any]:
        if isinstance(event := self._waiting.pop(0), Job):
            self._do(event)
            event = self._waiting.pop(0)
        found: dict[str, Any] = event
        return found

    def kill(self) -> None:
        self.killed.set()

    def tail(self, lines: int = 15) -> str:
        return ""


def ahead(log: Path, todo: list[Job], make: Any, processes: int = 1) -> Ahead:
    return Ahead(todo, MACHINE, (), {"toy": "s"}, processes, log / "ahead.log", make=make)


def waited(of: Ahead) -> Ahead:
    """It has no work left."""
    for thread in of._threads:
        thread.join(10)
        assert not thread.is_alive()
    of.close()
    return of


def test_jobs_are_compiled_in_order_but_those_that_a_worker_has_begun(tmp_path: Path) -> None:
    todo, did = jobs(4), list[str]()

    def do(job: Job) -> None:
        did.append(job.id)
        at_it.set()
        assert go.wait(10)

    at_it, go = threading.Event(), threading.Event()
    later = [*todo, *todo]  # the same in a further process of the run
    found = ahead(tmp_path, later, partial(Fake, do=do))
    assert at_it.wait(10)
    found.begun(todo[1])
    found.begun(todo[1])
    go.set()
    waited(found)
    assert did == [todo[0].id, todo[2].id, todo[3].id]
    assert asdict(found.count) == {"compiled": 3, "found": 0, "failed": 0, "cpu_s": 2.5}
    assert str(found.count) == "compiled ahead: 3 kernels in 2 s of CPU"


def test_who_falls_at_a_job_is_replaced_and_the_job_left_to_the_worker(tmp_path: Path) -> None:
    did = list[str]()

    def do(job: Job) -> None:
        did.append(job.id)
        if len(did) == 1:
            raise WorkerEndedError("killed by SIGSEGV")

    found = waited(ahead(tmp_path, jobs(3), partial(Fake, do=do)))
    assert did == [job.id for job in jobs(3)]
    assert (found.count.compiled, found.count.failed) == (2, 1)
    assert "did not compile (ahead.log)" in str(found.count)
    assert "killed by SIGSEGV" in (tmp_path / "ahead.log").read_text()


def test_who_cannot_start_is_not_started_again(tmp_path: Path) -> None:
    made = list[Fake]()

    class Refuses(Fake):
        def receive(self, timeout: float) -> dict[str, Any]:
            made.append(self)
            raise KernelbenchError("no such plugin")

    assert waited(ahead(tmp_path, jobs(3), Refuses)).count.failed == len(made) == 1
    assert made[0].killed.is_set()


def test_close_ends_them_whatever_they_do(tmp_path: Path) -> None:
    class Sleeps(Compiler):
        def _life(self, *pipes: str) -> list[str]:
            made.append(self)
            return ["import signal, time; signal.signal(15, lambda *a: 0); time.sleep(60)", *pipes]

    made = list[Compiler]()
    found = ahead(tmp_path, jobs(3), Sleeps, 2)
    while len(made) < 2:
        time.sleep(0.01)
    found.close()
    assert [each._process.returncode for each in made] == [-signal.SIGKILL] * 2
    assert found.count.failed == 0, "that they were ended is nobody's failure"


def test_it_is_nice_and_ends_with_its_parent(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from kernelbench.run.ahead import Compiler; "
        "print(Compiler(Path(sys.argv[1]))._process.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        most = time.monotonic() + 10
        nicer = os.nice(0) + 10  # than this process, or as nice as there is
        while os.getpriority(os.PRIO_PROCESS, pid) < nicer and time.monotonic() < most:
            time.sleep(0.02)
        assert os.getpriority(os.PRIO_PROCESS, pid) == min(nicer, 19)
        parent.kill()
    with suppress(ProcessLookupError):
        while time.monotonic() < most and (stat := Path(f"/proc/{pid}/stat")).exists():
            if stat.read_text().rpartition(")")[2].split()[0] == "Z":  # of a parent that waits
                return
            time.sleep(0.02)
        os.kill(pid, 0)
        pytest.fail("it goes on")


def test_a_run_says_what_was_compiled_ahead_and_its_manifest_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = threading.Event()
    compiling = partial(Fake, do=lambda job: compiled.set())
    monkeypatch.setattr(loop, "Ahead", partial(Ahead, make=compiling))

    def do(uuid: str, job: Job) -> None:
        assert compiled.wait(10)

    make = fakes(do, 1)
    _, records, noted = measured(tmp_path, jobs(3, processes=2), make, "", ahead=1)
    [folder] = [path for path in tmp_path.iterdir() if (path / "manifest.json").exists()]
    kept = store.read_manifest(folder)["ahead"]
    assert len(records) == 12
    assert 1 <= kept["compiled"] <= 3, "each once, for both processes"
    assert f"compiled ahead: {kept['compiled']:.0f} kernels" in noted
    measured(tmp_path, jobs(3), make, "", before=folder)
    assert store.read_manifest(folder)["ahead"] == kept, "nothing was, in this session"


def test_there_must_be_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--ahead compiles for a GPU, and --device cpu has none"):
        RunRequest(ahead=1, device="cpu")
    options, view = Options(ahead=1, device="auto"), Silent(Console(file=io.StringIO()))
    with pytest.raises(UsageError, match="--ahead compiles for a GPU, and here is none"):
        run_jobs(jobs(1), {"toy": FAMILY}, options, view, lambda machine: None, tmp_path)  # type: ignore
    assert not [path for path in tmp_path.iterdir() if path.name != "locks"]


@pytest.mark.skipif(not INTERPRETED, reason="the kernels were made for a GPU")
def test_what_does_not_compile_is_said() -> None:
    family = families.load(())["rms_norm"]
    case = replace(family.checks[0], dtype=DType.fp32)
    job = Job(family="rms_norm", case=case, providers=("eager", "triton_fused"))
    [(word, why)] = Compiling(MACHINE).job(family, job, "s")
    assert word == "failed"
    assert why.startswith("triton_fused: RuntimeError: kernels made under TRITON_INTERPRET=1")


SUITE = """
name: few
device: cuda
defaults: {dtype: bf16}
families:
  rms_norm: {modes: [fwd, bwd], cases: [{M: 64, N: 384}, {M: 4096, N: 8192, residual: true}]}
  attention: {cases: [{B: 2, N: 1024, Hq: 4, Hk: 2, D: 64, causal: true}]}
  rotary:
    modes: [fwd, bwd]
    cases: [{B: 2, S: 256, Hq: 8, Hk: 2, D: 128, layout: bhsd}, {B: 2, S: 64, Hq: 8, Hk: 8, D: 48}]
"""


@pytest.mark.slow
def test_the_launcher_finds_what_was_compiled_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "few.yaml"
    path.write_text(SUITE)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    known = families.load(())
    todo = suite.load(str(path), known).jobs
    sources = dict.fromkeys(known, "s")
    found = Ahead(todo, MACHINE, (), sources, 1, tmp_path / "ahead.log")
    for thread in found._threads:
        thread.join()
    found.close()
    assert not found.count.failed, (tmp_path / "ahead.log").read_text()
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / "launching.py", path, "sm_90"],
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    asked = json.loads(done.stdout)
    assert all(hit for _, hit in asked), asked
    assert len(asked) >= found.count.compiled > 5
