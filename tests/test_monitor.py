"""Choices that are measured again while they are in use."""

import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_dispatch import AMONG, GRID, H200, chosen, entry

import kernelbench
from kernelbench import families
from kernelbench.dispatch import Dispatch, Entry, Look, Option, Where
from kernelbench.suite import load
from kernelbench.verbs import choosing


def watched(
    answer: Callable[..., Entry | None], every: int = 3
) -> tuple[Dispatch, list[Any], list[str]]:
    """With two decisions: what it asks, and what it says."""
    asked: list[Any] = []
    said: list[str] = []

    def watch(*case: Any) -> Entry | None:
        asked.append(case)
        return answer()

    dispatch = Dispatch(GRID, H200, watch=watch, every=every, say=said.append)
    assert chosen(dispatch, M=1024, N=512) == ("triton", "measured")
    assert chosen(dispatch, M=9, N=9) == ("eager", "baseline")
    return dispatch, asked, said


def steps(dispatch: Dispatch, number: int) -> None:
    for _ in range(number):
        dispatch.step()
    assert dispatch.monitor is not None
    dispatch.monitor.wait()


def test_one_decision_after_another_is_measured_again_after_so_many_steps() -> None:
    dispatch, asked, said = watched(lambda: entry({"triton": 2.02, "compile": 1.5}))
    steps(dispatch, 2)
    assert asked == []
    steps(dispatch, 1)
    assert asked == [("rms_norm", "bf16", "fwd", {"M": 1024, "N": 512})]
    steps(dispatch, 3)
    assert asked[1] == ("rms_norm", "bf16", "fwd", {"M": 9, "N": 9})
    steps(dispatch, 3)
    assert asked[2] == asked[0]
    assert said == [
        "rms_norm/M9-N9-bf16-fwd: eager was chosen unmeasured, and is 1.00 × [1.00, 1.00] now; "
        "triton would be chosen"
    ]
    assert dispatch.monitor is not None and len(dispatch.monitor.looks) == 3
    assert chosen(dispatch, M=9, N=9) == ("eager", "baseline"), "what was decided stays"


@pytest.mark.parametrize(
    ("now", "says"),
    [
        (entry({"triton": 2.05}), ""),
        (entry({"triton": 1.5}), "triton was 2.00 × the baseline, and is 1.50 × [1.47, 1.53] now"),
        (entry({"triton": 2.5}), "is 2.50 × [2.45, 2.55] now"),
        (entry({"compile": 3.0, "triton": 2.0}), "now; compile would be chosen"),
        (entry({}, {"triton": 0.9}), "is 0.90 × [0.88, 0.92] now; eager would be chosen"),
        (entry({"compile": 1.5}), "and is not to be used now; compile would be chosen"),
        (None, ""),
    ],
)
def test_drift_is_said(now: Entry | None, says: str) -> None:
    dispatch, _, said = watched(lambda: now)
    steps(dispatch, 3)
    assert bool(said) == bool(says) and all(says in line for line in said)
    assert dispatch.monitor is not None
    assert len(dispatch.monitor.looks) == (now is not None)


def test_a_wide_interval_is_no_drift() -> None:
    wide = Look("case", "triton", "triton", 2.0, Option("triton", 1.5, 0.9, 2.5))
    assert not wide.drifted
    assert replace(wide, now=Option("triton", 1.5, 1.4, 1.6)).drifted


def test_a_step_waits_for_nothing_and_one_thing_is_measured_at_a_time() -> None:
    go, running = threading.Event(), threading.Event()

    def slow() -> None:
        running.set()
        assert go.wait(60)

    dispatch, asked, _ = watched(slow, every=1)
    dispatch.step()
    assert running.wait(60)
    begin = time.perf_counter()
    for _ in range(1000):
        dispatch.step()
    assert time.perf_counter() - begin < 5 and len(asked) == 1
    go.set()
    steps(dispatch, 1)
    steps(dispatch, 1)
    assert len(asked) >= 2


def test_without_a_monitor_a_step_is_nothing_and_none_is_begun_without_decisions() -> None:
    plain = Dispatch(GRID, H200)
    plain.step()
    assert plain.monitor is None
    asked: list[Any] = []
    idle = Dispatch(GRID, H200, watch=lambda *case: asked.append(case), every=1)
    steps(idle, 2)
    assert asked == []
    with pytest.raises(ValueError, match="every is a number of steps, 1 or more, got 0"):
        Dispatch(GRID, H200, watch=lambda *case: None, every=0)


TABLE = replace(GRID, where=Where())


def test_from_a_file_it_measures_by_select(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.json").write_text(TABLE.to_json())
    jobs: list[str] = []

    def ended(command: list[str], variables: dict[str, str]) -> str:
        """In place of the command: reads its suite, and writes an entry."""
        assert command[1:4] == ["-m", "kernelbench", "select"]
        jobs.extend(job.case.id for job in load(command[4], families.load()).jobs)
        made = replace(TABLE.families["rms_norm"], entries=(entry({"triton": 1.2}, M=64, N=512),))
        table = replace(TABLE, families={"rms_norm": made})
        Path(command[command.index("--out") + 1]).write_text(table.to_json())
        return "well"

    monkeypatch.setattr(choosing, "_ended", ended)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*its code is another")
        dispatch = kernelbench.dispatch_from(tmp_path / "t.json", tune="monitor", every=2)
    dispatch.choose("rms_norm", "bf16", "fwd", (("M", 64), ("N", 512)), AMONG)
    with pytest.warns(UserWarning, match=r"eager was .*; triton would be chosen"):
        steps(dispatch, 2)
    assert jobs == ["M64-N512-bf16-fwd"]


def test_where_nothing_can_be_measured_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(command: list[str], variables: dict[str, str]) -> str:
        assert command[-2:] == ["--plugin", "mine.py"]
        assert variables == {"CUDA_VISIBLE_DEVICES": "GPU-7"}
        return "error: no GPU"

    monkeypatch.setattr(choosing, "_ended", ended)
    gpu = {"CUDA_VISIBLE_DEVICES": "GPU-7"}
    with pytest.warns(UserWarning, match="rms_norm cannot be measured again: error: no GPU"):
        assert choosing.measure_apart(["mine.py"], gpu, "rms_norm", "fp16", "fwd", {"M": 4}) is None


def test_the_process_that_measures_is_told_the_gpu_and_waited_for_no_longer_than_it_may(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tells = "import os; print('first'); print(os.environ['CUDA_VISIBLE_DEVICES'])"
    said = choosing._ended([sys.executable, "-c", tells], {"CUDA_VISIBLE_DEVICES": "GPU-7"})
    assert said == "GPU-7"
    assert choosing._ended([sys.executable, "-c", "raise SystemExit(3)"], {}) == "it ended with 3"
    monkeypatch.setattr(choosing, "SECONDS", 0.2)
    begin = time.monotonic()
    said = choosing._ended([sys.executable, "-c", "import time; time.sleep(60)"], {})
    assert said == "it took more than 0.2 s" and time.monotonic() - begin < 30
