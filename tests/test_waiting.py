"""Whoever waits for more than two seconds is told what for, on stderr, and nobody else is."""

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_gather import a_run
from test_report import job

from kernelbench.report import waits
from kernelbench.report.progress import LiveView, Output, Plain
from kernelbench.report.waits import Slow, waiting
from kernelbench.verbs import report as verb


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    assert waits.AFTER < 2
    monkeypatch.setattr(waits, "AFTER", 0.05)
    yield


def test_only_a_wait_that_lasts_is_told_and_once() -> None:
    told: list[str] = []
    with waiting("quick", told.append):
        pass
    with waiting("slow", told.append):
        time.sleep(0.3)
    time.sleep(0.1)
    assert told == ["slow …"]
    with waiting("silent", None):
        time.sleep(0.1)


def test_one_thing_after_another_is_told_of_its_own() -> None:
    told: list[str] = []
    slow = Slow(told.append)
    for what in ("a", "a", "b", "", "c"):
        slow.begin(what)
        time.sleep(0.12)
    slow.begin("d")
    slow.end()
    time.sleep(0.1)
    assert told == ["a", "b", "c"]


def test_nobody_who_reads_stops_nothing() -> None:
    def gone(text: str) -> None:
        raise BrokenPipeError

    with waiting("slow", gone):
        time.sleep(0.2)


def test_in_a_pipe_a_run_tells_of_the_phases_that_last() -> None:
    paper = io.StringIO()
    with Plain(Console(file=paper)) as view:
        view.at("", "starting a worker")
        time.sleep(0.2)
        for phase in ("check", "compile"):
            view.at("ours", phase)
        time.sleep(0.2)
    assert paper.getvalue().splitlines() == ["    … starting a worker", "    … ours: compile"]
    assert isinstance(Output(Console(), Console(file=paper, force_terminal=True)).view(), LiveView)


@pytest.mark.parametrize("how", [{"quiet": True}, {"as_json": True}])
def test_quiet_and_json_are_told_nothing(how: dict[str, bool]) -> None:
    assert Output(Console(), Console(), **how).waits is None
    assert Output(Console(), Console()).waits is not None


@pytest.mark.parametrize("form", ["md", "json"])
def test_a_long_report_says_what_it_is_at(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a_run(tmp_path, "one", job())
    gather = verb.gather

    def long(*arguments: Any) -> Any:
        time.sleep(0.3)
        return gather(*arguments)

    monkeypatch.setattr(verb, "gather", long)
    errors = Console(file=io.StringIO())
    verb.report(verb.ReportRequest(folders=(tmp_path,), format=form), Output(Console(), errors))
    said = errors.file.getvalue().splitlines()  # type: ignore[attr-defined]
    *told, why = said
    assert why.startswith("exit 1: 1 incorrect")
    assert told[:1] == [] if form == "json" else ["reading the runs, and deriving figures …"]
    if form == "json":
        assert json.loads(capsys.readouterr().out)
