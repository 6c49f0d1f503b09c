"""A provider must be as fast on inputs that it has not seen."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
from toy import CASE, Script, provider, right, run, toy

from kernelbench.measure.fresh import DRAWS, FACTOR, MORE_NS, seen_before
from kernelbench.measure.sampling import Batch
from kernelbench.spec import Distribution, Status, Timing

REPEATED = 10_000


def timing(fresh_ns: tuple[int, ...], timer: str = "gated") -> Timing:
    blocks = ((REPEATED + 3_000,) * 3,)
    return Timing(timer=timer, blocks_ns=blocks, overhead_ns=3_000, fresh_ns=fresh_ns)


def test_as_fast_is_right_and_slower_says_both_times() -> None:
    most = int(FACTOR * REPEATED) + MORE_NS + 3_000
    assert seen_before(timing((most,) * DRAWS)) == ""
    assert seen_before(timing((2_000,) * DRAWS)) == ""
    reason = seen_before(timing((most + 10,) * DRAWS))
    assert "10.00 µs while its inputs repeat" in reason
    assert "13.51 µs on inputs" in reason


def test_one_slow_sample_is_no_evidence_and_neither_is_none() -> None:
    assert seen_before(timing((13_000, 13_000, 90_000, 13_000, 80_000))) == ""
    assert seen_before(timing(())) == ""


@pytest.mark.parametrize("timer", ["ungated", "host"])
def test_only_gated_times_are_judged(timer: str) -> None:
    assert seen_before(timing((90_000,) * DRAWS, timer)) == ""


class Skips(Script):
    """A clock for which `bad` takes 9 µs whenever its inputs are new, else 1 µs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Any = None

    def batch(self, part: Any, n: int) -> Batch:
        found = super().batch(part, n)
        if part.name != "bad":
            return found
        x = part.args["x"].detach().clone()
        new = self.seen is None or not x.equal(self.seen)
        self.seen = x
        return replace(found, samples_ns=(9_000 if new else 1_000, *found.samples_ns[1:]))


def test_who_skips_repeated_work_is_implausible() -> None:
    family = toy(provider("bad", right), provider("fine", right))
    found = run(family, clock=Skips())
    assert found["bad"].status is Status.implausible
    assert "not seen before" in found["bad"].reason
    assert found["fine"].status is Status.ok
    fine = found["fine"].timing
    assert fine is not None
    assert fine.fresh_ns == (1_000,) * DRAWS


def test_every_draw_is_a_new_one_and_of_numbers_that_differ() -> None:
    drawn: list[Any] = []

    class Watches(Script):
        def batch(self, part: Any, n: int) -> Batch:
            if n == 1 and part.name == "eager":
                drawn.append(part.args["x"].detach().clone())
            return super().batch(part, n)

    for inputs in (Distribution.normal, Distribution.zeros):
        drawn.clear()
        run(toy(), replace(CASE, inputs=inputs), clock=Watches())
        assert len(drawn) == DRAWS
        assert all(x.std() > 0.5 for x in drawn)
        assert not any(a.equal(b) for a, b in itertools.pairwise(drawn))


def test_right_for_zeros_alone_is_wrong() -> None:
    def blind(a: Any) -> Any:
        return a["x"] * 0, a["x"].detach().amax(-1)

    zeros = replace(CASE, inputs=Distribution.zeros)
    found = run(toy(provider("blind", blind)), zeros, clock=Script())
    assert found["blind"].status is Status.incorrect
    assert found["blind"].reason.startswith("on fresh inputs, after timing")
