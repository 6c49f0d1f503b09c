"""The account of wall time, by a clock that is scripted: every second is charged once."""

import pytest

from kernelbench.report.progress import wall
from kernelbench.run.ledger import HARNESS, Ledger, added


class Clock:
    """Goes on when it is told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_time_is_charged_to_who_was_entered_last(clock: Clock) -> None:
    ledger = Ledger(clock)
    clock.wait(1)
    for provider, phase, seconds in (
        ("eager", "compile", 2),
        ("eager", "measure", 4),
        ("triton", "measure", 8),
        ("eager", "measure", 16),
    ):
        ledger.enter(provider, phase)
        clock.wait(seconds)
    assert ledger.spent() == {
        ("", HARNESS): 1,
        ("eager", "compile"): 2,
        ("eager", "measure"): 20,
        ("triton", "measure"): 8,
    }
    assert ledger.phases() == {HARNESS: 1, "compile": 2, "measure": 28}


def test_the_present_moment_is_counted_and_only_once(clock: Clock) -> None:
    ledger = Ledger(clock)
    ledger.enter("eager", "check")
    clock.wait(3)
    assert ledger.phases()["check"] == ledger.phases()["check"] == 3
    clock.wait(2)
    assert ledger.phases() == {HARNESS: 0, "check": 5}


def test_configs_that_are_tuned_are_one_phase(clock: Clock) -> None:
    ledger = Ledger(clock)
    for phase in ("tune 1/9", "tune 2/9", "tune 10/10", "check again"):
        ledger.enter("triton", phase)
        clock.wait(1)
    assert ledger.phases() == {HARNESS: 0, "tune": 3, "check again": 1}


def test_after_a_block_time_is_charged_as_before_even_if_it_raised(clock: Clock) -> None:
    ledger = Ledger(clock)
    with pytest.raises(KeyboardInterrupt), ledger.during("start"):
        clock.wait(2)
        ledger.enter("eager", "compile")
        clock.wait(3)
        raise KeyboardInterrupt
    clock.wait(4)
    assert ledger.phases() == {HARNESS: 4, "start": 2, "compile": 3}


def test_sessions_add_up_to_a_hundredth() -> None:
    assert added({}, {"start": 1.2345}) == {"start": 1.23}
    assert added({"start": 1.23, "tune": 7.0}, {"start": 0.1, "check": 0.005001}) == {
        "start": 1.33,
        "tune": 7.0,
        "check": 0.01,
    }


@pytest.mark.parametrize(
    ("spent", "line"),
    [
        (
            {"start": 2.0, "compile": 130.4, "check": 62.0, "measure": 134.0, "host": 1.6},
            "wall 5 min 30 s: measure 2 min 14 s, compile 2 min 10 s, check 1 min 2 s, other 3.6 s",
        ),
        ({"measure": 7499.0, "start": 9.96}, "wall 2 h 5 min: measure 2 h 4 min, other 10 s"),
        ({"start": 3.42, "inputs": 0.001}, "wall 3.4 s: start 3.4 s"),
    ],
)
def test_the_line_has_the_longest_first_and_sums_the_short_ones(
    spent: dict[str, float], line: str
) -> None:
    assert wall(spent) == line
