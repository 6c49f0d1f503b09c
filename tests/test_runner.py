"""What the loop makes of an executor's events, by one that answers from a script."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scripted import MACHINE, Answer, Script
from toy import BASELINE, CASE, provider, right, toy

from kernelbench.report.progress import Silent
from kernelbench.run.executor import WorkerEndedError
from kernelbench.run.runner import Options, Runner
from kernelbench.spec import Context, Job, RunRecord, Status, record_of

FAMILY = toy(provider("first", right), provider("second", right))
NAMES = ("eager", "first", "second")
CONTEXT = Context(run_id="r", gpu="g", seed=3, source="s")
JOB = Job(family="toy", case=CASE, providers=NAMES)


def done(*names: str) -> Iterator[Any]:
    """Events of a worker that measures these without trouble."""
    for name in names:
        yield at(name)
        yield {"event": "records", "records": [line(name)]}
    yield {"event": "done"}


def at(name: str, phase: str = "measure") -> dict[str, Any]:
    return {"event": "at", "provider": name, "phase": phase}


def line(name: str) -> str:
    named = BASELINE if name == "eager" else provider(name, right)
    return record_of(JOB, named, Status.ok, CONTEXT).to_json()


def measured(
    folder: Path, answer: Answer, **options: Any
) -> tuple[dict[str, tuple[Status, str]], Script]:
    """Status and reason of every provider's last record, and the script that was played."""
    script = Script(answer)
    known = Options(executor=script, **options)
    records: list[RunRecord] = []
    with closing(Runner({"toy": FAMILY}, known, Silent(Console()), folder)) as runner:
        assert runner.machine == MACHINE
        runner.ceilings(None)
        for some in runner.measure(JOB, CONTEXT):
            records += some
    assert all(made.killed for made in script.made)
    return {record.provider: (record.status, record.reason) for record in records}, script


def test_a_job_without_trouble_is_one_request(tmp_path: Path) -> None:
    found, script = measured(tmp_path / "runs", lambda request: [*done(*NAMES)])
    assert found == dict.fromkeys(NAMES, (Status.ok, ""))
    assert [request["job"]["providers"] for request in script.jobs] == [NAMES]
    assert len(script.made) == 1
    assert not [*tmp_path.iterdir()], "a log that found no run goes, and a folder made for it"


def test_whoever_was_at_work_when_it_fell_is_blamed_and_the_others_are_measured_anew(
    tmp_path: Path,
) -> None:
    def answer(request: dict[str, Any]) -> list[Any]:
        if "first" not in request["job"]["providers"]:
            return [*done("second")]
        fell = WorkerEndedError("killed by SIGSEGV")
        return [*[*done("eager")][:-1], at("first", "compile"), fell]

    found, script = measured(tmp_path, answer)
    assert found["first"] == (Status.crashed, "compile: killed by SIGSEGV")
    assert found["eager"][0] is found["second"][0] is Status.ok
    assert script.jobs[1]["job"]["providers"] == ("second",)
    assert script.jobs[1]["options"]["without"] == ["first"]
    ceilings = [request for request in script.asked if "ceilings" in request]
    assert ceilings[1]["ceilings"] == {"known": None}, "a new worker is told the run's limits"


def test_silence_is_a_timeout(tmp_path: Path) -> None:
    def answer(request: dict[str, Any]) -> list[Any]:
        names = request["job"]["providers"]
        return [at("second")] if "second" in names else [*done(*names)]

    found, _ = measured(tmp_path, answer, timeout=7.0)
    assert found["second"] == (Status.timeout, "measure: nothing happened for 7 s")
    assert found["eager"][0] is found["first"][0] is Status.ok


def test_a_fall_while_nobody_is_at_work_is_tried_once_more_and_then_all_are_blamed(
    tmp_path: Path,
) -> None:
    found, script = measured(tmp_path, lambda request: [WorkerEndedError("exited with code 1")])
    assert found == dict.fromkeys(NAMES, (Status.crashed, "start: exited with code 1"))
    assert len(script.jobs) == 2


@pytest.mark.parametrize("names", [("eager",), ("eager", "eager", "first", "second")])
def test_what_a_worker_cannot_have_measured_is_no_record(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    """A provider that writes into the pipe is told by what does not add up."""

    def answer(request: dict[str, Any]) -> list[Any]:
        left = request["job"]["providers"]
        return [*done(*names)] if left == NAMES else [*done(*left)]

    found, _ = measured(tmp_path, answer)
    blamed = {name for name, (status, _) in found.items() if status is Status.crashed}
    assert len(blamed) == 1 and {*found} == {*NAMES}


def test_a_lost_gpu_is_the_doing_of_whom_the_worker_names(tmp_path: Path) -> None:
    def answer(request: dict[str, Any]) -> list[Any]:
        if "second" not in request["job"]["providers"]:
            return [*done(*request["job"]["providers"])]
        return [at("first"), {"event": "lost", "provider": "second", "reason": "an illegal access"}]

    found, _ = measured(tmp_path, answer)
    assert found["second"] == (Status.crashed, "measure: an illegal access")
    assert found["eager"][0] is found["first"][0] is Status.ok
