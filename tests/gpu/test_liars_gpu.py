"""Providers that seem faster, or more right, than they are: none gets away with it."""

import sys
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
from kernelbench.spec import Measure, RunRecord, Status
from kernelbench.times import blocks_ns

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
sys.path.insert(0, str(Path(__file__).parents[1] / "plugins"))
liars: Any = pytest.importorskip("liars") if torch.cuda.is_available() else None
SETTINGS = Measure(max_seconds=1.0, timers=("kernel",))


@pytest.fixture(scope="module")
def session() -> Session:
    device = environment.device("cuda")
    clock = CudaClock(device)
    known: Ceilings = measure(clock, device)
    return Session(device, clock, known, Telemetry.open(None))


def measured(session: Session, case: Any, *names: str) -> tuple[RunRecord, ...]:
    """Of these providers, measured together with the baseline."""
    asked = list(dict.fromkeys(["honest", *names]))
    found = run(liars.FAMILY, case, session=session, measure=SETTINGS, names=asked)
    return tuple(found[name] for name in names)


def us(record: RunRecord) -> float:
    assert record.timing is not None
    return median(ns for block in blocks_ns(record.timing) for ns in block) / 1e3


@pytest.mark.parametrize("name", liars.CAUGHT if liars else ())
def test_each_is_caught(session: Session, name: str) -> None:
    status, says = liars.CAUGHT[name]
    for case in (liars.SMALL, liars.LARGE):
        honest, liar = measured(session, case, "honest", name)
        assert honest.status is Status.ok
        assert "ungated" not in honest.flags
        assert liar.status == status, liar.reason
        assert says in f"{liar.reason} {liar.flags}"


@pytest.mark.parametrize("name", liars.GAINS_NOTHING if liars else ())
def test_what_is_not_caught_gains_nothing(session: Session, name: str) -> None:
    for case in (liars.SMALL, liars.LARGE):
        honest, liar = measured(session, case, liars.GAINS_NOTHING[name], name)
        assert (honest.status, liar.status) == (Status.ok, Status.ok), liar.reason
        assert "ungated" in liar.flags or us(liar) > 0.97 * us(honest) - 0.2


def test_a_call_of_five_thousand_launches_is_held_or_flagged(session: Session) -> None:
    [liar] = measured(session, liars.SMALL, "five_thousand")
    assert liar.status is Status.ok
    assert "ungated" in liar.flags or us(liar) > 5000  # a launch takes 1 µs at least


def test_what_is_fast_for_zeros_alone_is_told_by_other_inputs(session: Session) -> None:
    [liar] = measured(session, liars.ZEROS, "fast_for_zeros")
    assert liar.status is Status.implausible
    assert "inputs that it has not seen before" in liar.reason
    honest, liar = measured(session, liars.LARGE, "honest_triton", "fast_for_zeros")
    assert liar.status is Status.ok
    assert us(liar) > 0.97 * us(honest)


def test_honest_ones_are_as_fast_on_fresh_inputs(session: Session) -> None:
    for case in (liars.SMALL, liars.LARGE, liars.ZEROS):
        for record in measured(session, case, "honest", "honest_triton"):
            timing = record.timing
            assert timing is not None and len(timing.fresh_ns) == 5
            assert (median(timing.fresh_ns) - timing.overhead_ns) / 1e3 < 1.1 * us(record) + 0.7
