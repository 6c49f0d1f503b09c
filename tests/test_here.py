"""The executor that is this very process."""

import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
from toy import CASE, FAST, provider, right, toy

from kernelbench.measure.ceilings import Ceilings, Overhead
from kernelbench.measure.job import DeviceLostError, Session
from kernelbench.measure.telemetry import Telemetry
from kernelbench.measure.timer import HostClock
from kernelbench.run import here as run_here
from kernelbench.run.here import Here
from kernelbench.run.worker import encode
from kernelbench.spec import (
    Context,
    Device,
    Family,
    Job,
    KernelbenchError,
    RunRecord,
    Status,
    Tensors,
)


def at_work(log: Path, family: Family[Any]) -> Here:
    """An executor that was sent a job of all the family's providers."""
    executor = Here(log, {"toy": family})
    executor.send({"device": "cpu", "timing": False})
    executor.send({"ceilings": None})
    names = tuple(p.name for p in family.providers)
    job = Job(family="toy", case=CASE, providers=names, measure=FAST)
    context = Context(run_id="r", gpu="g", seed=3, source="s")
    executor.send(encode(job, context, without=[]))
    return executor


def events(executor: Here) -> list[dict[str, Any]]:
    """All up to the end of the job."""
    found = [executor.receive(1.0)]
    while found[-1]["event"] != "done":
        found.append(executor.receive(1.0))
    return found


def test_a_job_says_what_a_worker_would(tmp_path: Path) -> None:
    found = events(at_work(tmp_path / "log", toy(provider("fine", right))))
    assert [e["event"] for e in found[:2]] == ["hello", "ceilings"]
    assert {e["provider"] for e in found if e["event"] == "at"} >= {"eager", "fine"}
    lines = [line for e in found if e["event"] == "records" for line in e["records"]]
    records = [RunRecord.from_json(line) for line in lines]
    assert {r.provider: r.status for r in records} == {"eager": Status.ok, "fine": Status.ok}


def test_a_lost_gpu_ends_the_run_with_the_remedy(tmp_path: Path) -> None:
    def lost(a: Tensors) -> Any:
        raise DeviceLostError("bad", "gone")

    executor = at_work(tmp_path / "log", toy(provider("bad", lost)))
    with pytest.raises(KernelbenchError, match=r"bad: gone\. .*: start a new one"):
        events(executor)


def test_nothing_goes_on_after_a_kill(tmp_path: Path) -> None:
    executor = at_work(tmp_path / "log", toy(provider("fine", right)))
    executor.kill()
    assert [e["event"] for e in events(executor)] == ["hello", "ceilings", "done"]


def test_what_a_provider_prints_to_stderr_goes_to_the_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def talks(a: Tensors) -> Any:
        print("a word", file=sys.stderr)
        return right(a)

    executor = at_work(tmp_path / "log", toy(provider("talks", talks)))
    events(executor)
    assert "a word" in executor.tail()
    assert "a word" not in capfd.readouterr().err


def test_limits_are_measured_once_and_the_clock_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, known = list[Any](), Ceilings(overhead=Overhead(7, 8, "")).as_json()

    def session_of(device: str, asked: dict[str, Any], timing: bool) -> Any:
        limits = Ceilings.from_json(asked["ceilings"] or known)
        session = Session(Device("cpu", "cpu"), HostClock(), limits, Telemetry.open(None))
        made.append((asked["ceilings"], weakref.ref(session)))
        return session, None

    monkeypatch.setattr(run_here, "session_of", session_of)
    monkeypatch.setattr(run_here, "_limits", {})
    for _ in range(2):
        executor = Here(tmp_path / "log", {})
        executor.send({"device": "cpu", "timing": True})
        executor.send({"ceilings": None})
        executor.kill()
    assert [asked for asked, _ in made] == [None, known]
    assert not any(session() for _, session in made)
