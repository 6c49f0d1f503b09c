"""A provider must be as fast on inputs that it has not seen, and right while it is timed."""

import itertools
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from toy import CASE, Script, provider, right, run, toy

from kernelbench.measure import environment, recheck
from kernelbench.measure.ceilings import Ceilings
from kernelbench.measure.conclude import BEYOND_MODEL
from kernelbench.measure.job import Session
from kernelbench.measure.sampling import Batch
from kernelbench.measure.slowdown import (
    DRAWS,
    FACTOR,
    MORE_NS,
    RecordingWorkload,
    slower_on_fresh_inputs,
)
from kernelbench.measure.telemetry import Telemetry
from kernelbench.measure.timer import HostClock
from kernelbench.spec import Cost, Distribution, DType, Measure, Role, Status, Timing, Trial

REPEATED = 10_000


def timing(fresh_ns: tuple[int, ...], timer: str = "gated") -> Timing:
    blocks = ((REPEATED + 3_000,) * 3,)
    return Timing(timer=timer, blocks_ns=blocks, overhead_ns=3_000, fresh_ns=fresh_ns)


def test_as_fast_is_right_and_slower_says_both_times() -> None:
    most = int(FACTOR * REPEATED) + MORE_NS + 3_000
    assert slower_on_fresh_inputs(timing((most,) * DRAWS)) == ""
    assert slower_on_fresh_inputs(timing((2_000,) * DRAWS)) == ""
    reason = slower_on_fresh_inputs(timing((most + 10,) * DRAWS))
    assert "10.00 µs while its inputs repeat" in reason
    assert "12.71 µs on inputs" in reason
    assert slower_on_fresh_inputs(timing((most + 10,) * DRAWS), scale=1.5) == ""


def test_one_slow_sample_is_no_evidence_and_neither_is_none() -> None:
    assert slower_on_fresh_inputs(timing((13_000, 13_000, 90_000, 13_000, 80_000))) == ""
    assert slower_on_fresh_inputs(timing(())) == ""
    assert slower_on_fresh_inputs(timing((90_000, 90_000))) == ""


@pytest.mark.parametrize("timer", ["ungated", "host"])
def test_only_gated_times_are_judged(timer: str) -> None:
    assert slower_on_fresh_inputs(timing((90_000,) * DRAWS, timer)) == ""


class Skips(Script):
    """A clock for which `bad` takes 9 µs whenever its inputs are new, else 1 µs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Any = None

    def batch(self, part: Any, n: int) -> Batch:
        found = super().batch(part, n)
        if part.name != "bad":
            return found
        x = getattr(part, "workload", part).args["x"].detach().clone()
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


def test_faster_than_counted_work_is_a_flag_and_than_stated_work_implausible() -> None:
    limits = Ceilings(tflops={"fp32": 60.0})
    session = Session(environment.device("cpu"), Script(), limits, Telemetry.open(None))
    stated = toy(provider("fast", right), cost=lambda case: Cost(1_000_000_000, 1, 1))
    found = run(stated, session=session)["fast"]
    assert found.status is Status.implausible
    assert "1000000000 flops" in found.reason
    assert BEYOND_MODEL not in found.flags

    found = run(replace(stated, declared="functions/toy.yaml"), session=session)["fast"]
    assert found.status is Status.ok
    assert not found.reason
    assert BEYOND_MODEL in found.flags


def test_counted_work_excuses_nobody_who_skips_repeated_work() -> None:
    limits = Ceilings(tflops={"fp32": 60.0})
    session = Session(environment.device("cpu"), Skips(), limits, Telemetry.open(None))
    family = toy(provider("bad", right), cost=lambda case: Cost(1_000_000_000, 1, 1))
    found = run(replace(family, declared="functions/toy.yaml"), session=session)["bad"]
    assert found.status is Status.implausible
    assert "not seen before" in found.reason


@pytest.mark.parametrize(("honest", "status"), [(9_000, Status.ok), (2_000, Status.implausible)])
def test_by_what_the_baseline_slows_on_other_numbers_all_may(honest: int, status: Status) -> None:
    class Slower(Script):
        def batch(self, part: Any, n: int) -> Batch:
            fresh = {"eager": honest, "bad": 9_000}[part.name]
            ns = fresh if isinstance(part, RecordingWorkload) else 1_000
            return replace(super().batch(part, n), samples_ns=(ns,) * n)

    for inputs in (Distribution.zeros, Distribution.normal):
        found = run(toy(provider("bad", right)), replace(CASE, inputs=inputs), clock=Slower())
        alike = inputs is Distribution.zeros
        assert found["bad"].status is (status if alike else Status.implausible)


def test_every_draw_is_a_new_one_and_of_numbers_that_differ() -> None:
    drawn: list[Any] = []

    class Watches(Script):
        def batch(self, part: Any, n: int) -> Batch:
            if isinstance(part, RecordingWorkload) and part.name == "eager":
                drawn.append(part.workload.args["x"].detach().clone())
            return super().batch(part, n)

    for inputs in (Distribution.normal, Distribution.zeros):
        drawn.clear()
        run(toy(), replace(CASE, inputs=inputs), clock=Watches())
        first, *fresh = drawn  # the clock's first look is at the inputs that it knows
        assert len(fresh) == DRAWS
        assert bool(first.std() > 0.5) is (inputs is Distribution.normal)
        assert all(x.std() > 0.5 for x in fresh)
        assert not any(a.equal(b) for a, b in itertools.pairwise(drawn))


@pytest.mark.parametrize("able", [True, False], ids=["a baseline", "none"])
def test_fresh_inputs_have_budgets_of_their_own(
    able: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a sum, a part that is drawn larger or smaller loses more or less in the rounding of the
    rest: by the errors on the case's own inputs, an honest provider that is asked for alone would
    be wrong on some fresh ones."""
    fresh = [False]

    def unknown(bits: int) -> int:
        fresh[0] = True
        return 5

    monkeypatch.setattr(recheck.secrets, "randbits", unknown)

    def inputs(case: Any, draw: Any) -> Any:
        x, w = draw(case.R, case.N), draw(case.N)
        return {"x": x, "w": w, "c": torch.full((1,), 1e-3 if fresh[0] else 0.5)}

    def oracle(case: Any, a: Any) -> Any:
        part = a["c"].double() * a["w"].double().expand_as(a["x"])
        yield "y", ..., a["x"].double() + part, part

    def honest(a: Any) -> Any:
        return ((a["x"].float() + a["c"] * a["w"].float()).to(a["x"].dtype),)

    baseline = provider("eager", honest, Role.baseline)
    if not able:
        baseline = replace(baseline, unsupported=lambda case, device: "not here")
    family = toy(
        provider("fine", honest),
        provider("half", lambda a: honest({**a, "c": a["c"] * 0.5})),
        baseline=baseline,
        inputs=inputs,
        oracle=oracle,
        outputs=lambda case: ("y",),
        trials=lambda case: dict.fromkeys(("small", "large", "outliers"), Trial(refused="no")),
    )
    case = replace(CASE, R=64, dtype=DType.bf16)
    found = run(family, case, names=("fine", "half"))
    assert fresh[0]
    assert found["fine"].status is Status.ok, found["fine"].reason
    assert found["half"].status is Status.incorrect


@pytest.mark.parametrize("clock", [Script(), HostClock()], ids=["timed", "without a GPU"])
def test_right_for_zeros_alone_is_wrong(clock: Any) -> None:
    def blind(a: Any) -> Any:
        return a["x"] * 0, a["x"].detach().amax(-1)

    zeros = replace(CASE, inputs=Distribution.zeros)
    found = run(toy(provider("blind", blind)), zeros, clock=clock)
    assert found["blind"].status is Status.incorrect
    assert found["blind"].reason.startswith("on fresh inputs, after timing")


def test_without_a_gpu_nothing_is_sampled() -> None:
    calls, many = {"check": 0, "run": 0}, Measure(min_samples=50, max_samples=50)

    def counted(a: Any) -> Any:
        calls[now] += 1
        return right(a)

    for now in calls:
        family = toy(provider("ours", counted))
        found = run(family, clock=HostClock(), measure=many, timing=now == "run")["ours"]
    assert found.status is Status.ok
    assert found.timing == Timing(timer="host", blocks_ns=())
    assert found.judged_calls is None
    assert calls["run"] <= 2 * calls["check"]  # the others are on fresh inputs


def test_who_behaves_only_when_it_is_watched_is_incorrect() -> None:
    """It answers rightly as long as no clock runs."""

    class Watches(Script):
        runs = False

        def batch(self, part: Any, n: int) -> Batch:
            self.runs = True
            try:
                return super().batch(part, n)
            finally:
                self.runs = False

    clock = Watches()

    def bad(a: Any) -> Any:
        y, m = right(a)
        return (torch.full_like(y, 0.5) if clock.runs else y), m

    found = run(toy(provider("bad", bad), provider("fine", right)), clock=clock)
    assert found["bad"].status is Status.incorrect
    assert re.match(r"as it was timed \(--seed \d+\): y", found["bad"].reason)
    assert found["bad"].timing is None
    assert found["fine"].status is Status.ok


def test_a_sample_whose_gate_did_not_hold_says_nothing() -> None:
    class Busy(Skips):
        def batch(self, part: Any, n: int) -> Batch:
            return replace(super().batch(part, n), held=not isinstance(part, RecordingWorkload))

    found = run(toy(provider("bad", right)), clock=Busy())["bad"]
    assert found.status is Status.ok
    assert found.timing is not None
    assert found.timing.fresh_ns == ()


def test_who_falls_on_fresh_inputs_alone_has_failed() -> None:
    class Falls(Script):
        def batch(self, part: Any, n: int) -> Batch:
            if isinstance(part, RecordingWorkload) and part.name == "bad":
                raise RuntimeError("not these")
            return super().batch(part, n)

    found = run(toy(provider("bad", right), provider("fine", right)), clock=Falls())
    assert found["bad"].status is Status.failed
    assert found["bad"].reason.startswith("RuntimeError: not these (")
    assert "test_fresh.py:" in found["bad"].reason
    assert found["fine"].status is Status.ok


def test_a_budget_from_zeros_is_not_that_of_other_numbers() -> None:
    zeros = replace(CASE, dtype=DType.bf16, inputs=Distribution.zeros)
    found = run(toy(provider("fine", right)), zeros, clock=Script(), names=["fine"])
    assert found["fine"].status is Status.ok, found["fine"].reason


class Disturbed(Script):
    """A device on which `bad` changes something in one of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.said = ""

    def undo_changes(self) -> str:
        said, self.said = self.said, ""
        return said


@pytest.mark.parametrize("call", [1, 2, 5, 9])
@pytest.mark.parametrize("then", ["right", "wrong", "raises"])
def test_what_a_provider_changes_of_the_device_is_its_own_fault(call: int, then: str) -> None:
    clock, calls = Disturbed(), itertools.count(1)

    def bad(a: Any) -> Any:
        if next(calls) == call:
            clock.said = "moved the furniture"
            if then == "raises":
                raise RuntimeError("no")
            if then == "wrong":
                return a["x"] * 2, a["x"].detach().amax(-1)
        return right(a)

    family = toy(provider("bad", bad), provider("fine", right), provider("also", right))
    found = run(family, clock=clock)
    assert [found[name].status for name in ("eager", "fine", "also")] == [Status.ok] * 3
    assert found["bad"].status in (Status.incorrect, Status.failed)
    if then == "right":
        assert found["bad"].reason == "moved the furniture"


def test_one_output_may_be_another() -> None:
    def oracle(case: Any, a: Any) -> Any:
        y = a["x"].double() * a["w"].double()
        yield "y", ..., y
        yield "again", ..., y

    def twice(a: Any) -> Any:
        y = a["x"] * a["w"]
        return y, y

    family = toy(
        baseline=provider("eager", twice, Role.baseline),
        outputs=lambda case: ("y", "again"),
        oracle=oracle,
    )
    record = run(family, clock=Script())["eager"]
    assert record.status is Status.ok, record.reason
