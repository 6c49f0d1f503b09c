"""Providers that seem faster, or more right, than they are: none gets away with it."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from toy import run

from kernelbench.measure import environment
from kernelbench.measure.ceilings import Ceilings, measure
from kernelbench.measure.job import Session
from kernelbench.measure.telemetry import Telemetry
from kernelbench.measure.timer import CudaClock
from kernelbench.numbers.times import blocks_ns
from kernelbench.spec import Measure, RunRecord, Status

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
sys.path.insert(0, str(Path(__file__).parents[1] / "plugins"))
import liars  # noqa: E402

SETTINGS = Measure(max_seconds=1.0, timers=("kernel",))


def _entries(gpu: bool, vain: bool) -> list[Any]:
    """Liars as parameters. gpu: those that need one; vain: that gain nothing by what they try."""
    return [
        pytest.param(
            each,
            id=each.name,
            marks=pytest.mark.skipif(each.waits, reason=f"{each.needs} is not there"),
        )
        for each in liars.LIARS.values()
        if each.where == ("gpu" if gpu else "any")
        and bool(each.than) == vain
        and not each.alone
        and each.name != "five_thousand"  # has a test of its own
    ]


@pytest.fixture(autouse=True)
def undone() -> Iterator[None]:
    """What a liar did to this process is put right."""
    yield
    while liars.UNDO:
        liars.UNDO.pop()()


@pytest.fixture(scope="module")
def session() -> Session:
    device = environment.device("cuda")
    clock = CudaClock(device)
    known: Ceilings = measure(clock, device)
    return Session(device, clock, known, Telemetry.open(None))


def measured(
    session: Session, case: Any, *names: str, family: str = "liars"
) -> tuple[RunRecord, ...]:
    """Of these providers, measured together with the baseline."""
    asked = list(dict.fromkeys(["honest", *names]))
    found = run(liars.FAMILIES[family], case, session=session, measure=SETTINGS, names=asked)
    return tuple(found[name] for name in names)


def cases(liar: Any) -> tuple[Any, ...]:
    """Those that a liar which needs a GPU is judged on."""
    if liar.case or liar.family != "liars":
        return (liar.case or liars.CASES[liar.family],)
    return liars.SMALL, liars.LARGE


def us(record: RunRecord) -> float:
    assert record.timing is not None
    return median(ns for block in blocks_ns(record.timing) for ns in block) / 1e3


@pytest.mark.parametrize("liar", _entries(gpu=True, vain=False))
def test_each_is_caught(session: Session, liar: Any) -> None:
    status, pattern = liar.caught
    for case in cases(liar):
        honest, found = measured(session, case, "honest", liar.name, family=liar.family)
        assert honest.status is Status.ok
        assert "ungated" not in honest.flags
        assert found.status == status, found.reason
        assert re.search(pattern, f"{found.reason} {found.flags}")


@pytest.mark.parametrize("liar", _entries(gpu=True, vain=True))
def test_what_is_not_caught_gains_nothing(session: Session, liar: Any) -> None:
    for case in cases(liar):
        honest, found = measured(session, case, liar.than, liar.name)
        assert (honest.status, found.status) == (Status.ok, Status.ok), found.reason
        assert "ungated" in found.flags or us(found) > 0.97 * us(honest) - 0.2


@pytest.mark.parametrize(
    "liar", [*_entries(gpu=False, vain=False), *_entries(gpu=False, vain=True)]
)
def test_what_is_said_of_those_that_need_no_gpu_is_true_on_one(session: Session, liar: Any) -> None:
    status, pattern = liar.caught or ("ok", "")
    case = liar.case or liars.CASES[liar.family]
    honest, found = measured(session, case, "honest", liar.name, family=liar.family)
    assert honest.status is Status.ok
    assert found.status == status, found.reason
    assert re.search(pattern, f"{found.reason} {found.flags}")


@pytest.mark.parametrize("name", liars.HONEST)
def test_honest_ones_that_look_no_better_are_left_alone(session: Session, name: str) -> None:
    entry = liars.HONEST[name]
    case = entry.case or liars.CASES[entry.family]
    [found] = measured(session, case, name, family=entry.family)
    assert found.status is Status.ok, found.reason


def test_a_call_of_five_thousand_launches_is_held_or_flagged(session: Session) -> None:
    [liar] = measured(session, liars.SMALL, "five_thousand")
    assert liar.status is Status.ok
    assert "ungated" in liar.flags or us(liar) > 5000  # a launch takes 1 µs at least


def test_what_is_fast_for_zeros_is_right_and_no_faster_on_other_inputs(session: Session) -> None:
    honest, liar = measured(session, liars.LARGE, "honest_triton", "fast_for_zeros")
    assert liar.status is Status.ok
    assert us(liar) > 0.97 * us(honest)


def test_honest_ones_are_as_fast_on_fresh_inputs(session: Session) -> None:
    for case in (liars.SMALL, liars.LARGE, liars.ZEROS):
        for record in measured(session, case, "honest", "honest_triton"):
            timing = record.timing
            assert timing is not None and len(timing.fresh_ns) == 5
            assert (median(timing.fresh_ns) - timing.overhead_ns) / 1e3 < 1.1 * us(record) + 0.7
