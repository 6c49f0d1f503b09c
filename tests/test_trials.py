"""Every provider is proven on other inputs, too; what shows there shows at no other place."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_dilution import judged
from toy import BASELINE, CASE, Script, ToyCase, inputs, oracle, provider, right, run, toy

from kernelbench.families.rms_norm import FAMILY, RMSNormCase
from kernelbench.measure import proof
from kernelbench.measure.inputs import CaseInputs
from kernelbench.measure.session import Session
from kernelbench.measure.trials import out_of_range, trials_of
from kernelbench.spec import (
    Accuracy,
    Distribution,
    DType,
    Mode,
    Provider,
    Role,
    Status,
    Tensors,
    Trial,
)

NAMES = ("small", "large", "outliers")
EPS = 1e-6


def norm(eps: float = EPS, most: float = math.inf, narrow: bool = False) -> Any:
    """RMSNorm rounded once, of inputs clamped to ± most. narrow: squares are of their dtype."""

    def call(a: Tensors) -> torch.Tensor:
        x = a["x"].clamp(-most, most)
        wide = x.float()
        square = x.square().float() if narrow else wide.square()
        rs = torch.rsqrt(square.mean(-1, keepdim=True) + eps)
        return (wide * rs * a["weight"].float()).to(x.dtype)

    return lambda case, config: call


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("mode", ["fwd", "bwd"])
def test_a_wrong_eps_a_clamp_and_squares_that_overflow(dtype: str, mode: str) -> None:
    [case] = RMSNormCase.grid(M=16, N=256, dtype=dtype, mode=mode)
    who = {
        "fine": norm(),
        "eps 0": norm(eps=0.0),
        "eps 1e-3": norm(eps=1e-3),
        "clamp": norm(most=6.0),
        "narrow": norm(narrow=True),
    }
    found = judged(FAMILY, case, [Provider(n, Role.peer, build) for n, build in who.items()])
    bad = {"eps 0", "eps 1e-3", "clamp"} | ({"narrow"} if dtype == "fp16" else set())
    assert {n for n, r in found.items() if r.status is Status.incorrect} >= bad
    assert [found[n].status for n in ("eager", "fine")] == [Status.ok] * 2, found["fine"].reason
    assert found["eps 0"].reason.startswith("on small inputs: ")
    if dtype == "fp16":
        assert found["narrow"].reason.startswith("on large inputs: ")
    assert [each.trial for each in found["fine"].trials] == [*NAMES]
    assert all(each.errors and not each.unproven for each in found["fine"].trials)
    assert all(error.ok for each in found["fine"].trials for error in each.errors)


# What proves nothing.


def trials(**changed: Trial) -> Callable[[Any], Mapping[str, Trial]]:
    refused = dict.fromkeys(NAMES, Trial(refused="says the family"))
    return lambda case: refused | changed


def unproven(
    case: ToyCase = CASE, baseline: Provider[Any] = BASELINE, **more: Any
) -> dict[str, str]:
    family = toy(provider("fine", right), baseline=baseline, **more)
    found = run(family, case, clock=Script(), timing=False)["fine"]
    assert found.status is Status.ok, found.reason
    return {each.trial: each.unproven for each in found.trials}


def test_refused_trials_say_why() -> None:
    assert unproven(trials=trials()) == dict.fromkeys(NAMES, "says the family")


def test_what_the_dtype_cannot_hold_proves_nothing() -> None:
    case = replace(CASE, dtype=DType.fp16)
    wide = trials(large=Trial({"x": 2.0**15, "w": 4.0}), small=Trial({"x": 2.0**-18}))
    found = unproven(case, trials=wide)
    assert "beyond float16's 6.6e+04" in found["large"]
    assert "too small for float16 to round well" in found["small"]


def test_what_the_mode_does_not_produce_may_be_out_of_range() -> None:
    case = replace(CASE, dtype=DType.fp16, mode=Mode.bwd)
    found = unproven(case, trials=trials(small=Trial({"x": 2.0**-10, "w": 2.0**-7})))
    assert "dx" in found["small"] or found["small"] == ""
    out = torch.tensor([7e4], dtype=torch.float64)
    assert out_of_range([("y", ..., out)], DType.fp16).startswith("y reaches 7e+04")
    assert out_of_range([("y", ..., out)], DType.bf16) == ""
    assert out_of_range([("y", ..., out[:0])], DType.fp16) == ""


def test_where_the_baseline_is_not_right_nothing_is_proven() -> None:
    def clamps(a: Tensors) -> Any:
        y, m = right(a)
        return y.clamp(-20, 20), m

    def raises(a: Tensors) -> Any:
        if float(a["x"].abs().max()) > 20:
            raise RuntimeError("too large for me")
        return right(a)

    for call, said in ((clamps, "the baseline itself is not right there"), (raises, "too large")):
        found = unproven(baseline=provider("eager", call, Role.baseline))
        assert said in found["large"]
        assert found["small"] == ""


def test_without_a_baseline_trials_are_judged_all_the_same() -> None:
    def clamps(a: Tensors) -> Any:
        y, m = right(a)
        return y.clamp(-20, 20), m

    family = toy(provider("bad", clamps), provider("fine", right))
    found = run(family, clock=Script(), without=("eager",), names=["bad", "fine"], timing=False)
    assert found["fine"].status is Status.ok
    assert found["bad"].reason.startswith("on large inputs: y")


def test_who_falls_on_a_trial_has_failed_and_the_others_go_on() -> None:
    def raises(a: Tensors) -> Any:
        if float(a["x"].abs().max()) > 20:
            raise RuntimeError("too large for me")
        return right(a)

    found = run(toy(provider("bad", raises), provider("fine", right)), clock=Script())
    assert found["bad"].status is Status.failed
    assert found["bad"].reason.startswith("RuntimeError: too large for me")
    assert found["fine"].status is Status.ok


def test_apart_is_not_judged() -> None:
    def wrong_m(a: Tensors) -> Any:
        y, m = right(a)
        return y, m.clamp(max=20.0)

    for apart in ((), ("m",)):
        large = trials(large=Trial({"x": 32.0}, apart=apart))
        found = run(toy(provider("bad", wrong_m), trials=large), clock=Script(), timing=False)
        assert found["bad"].status is (Status.ok if apart else Status.incorrect)


# Which trials there are.


@pytest.mark.parametrize("name", NAMES)
def test_a_family_that_leaves_one_out_is_told(name: str) -> None:
    some = {each: Trial() for each in NAMES if each != name}
    found = run(toy(provider("p", right), trials=lambda case: some), clock=Script())
    for each in found.values():
        assert each.status is Status.failed
        assert f"toy: no trial '{name}'; refuse it with a reason" in each.reason


def test_by_default_what_is_drawn_as_it_is_is_scaled() -> None:
    def made(case: ToyCase, draw: Any) -> Tensors:
        found = inputs(case, draw)
        return {**found, "table": draw(4).cos(), "view": draw(4, 4).view(2, 8), "one": draw(3) + 1}

    for mode in (Mode.fwd, Mode.bwd):
        case = replace(CASE, mode=mode)
        family = toy(inputs=made)
        drawn = CaseInputs(family, case, "cpu", seed=1)
        found = trials_of(family, case, drawn)
        assert found["small"].scale == dict.fromkeys(("x", "w", "view"), 2.0**-10)
        assert found["large"].scale == dict.fromkeys(("x", "w", "view"), 32.0)
        assert found["outliers"].outliers == ("x", "w", "view")


@pytest.mark.parametrize("kind", list(Distribution))
def test_nothing_is_proven_twice_or_on_zeros(kind: Distribution) -> None:
    found = unproven(replace(CASE, inputs=kind))
    refused = {name for name, why in found.items() if why}
    zeros, outliers = kind is Distribution.zeros, kind is Distribution.outliers
    assert refused == (set(NAMES) if zeros else {"outliers"} if outliers else set())


def test_ones_are_tried_as_ones() -> None:
    seen: list[float] = []

    def call(a: Tensors) -> Any:
        seen.extend({float(v) for v in a["w"].detach().flatten() if math.isfinite(v)})
        return right(a)

    ones = replace(CASE, inputs=Distribution.ones)
    assert (
        run(toy(provider("p", call)), ones, clock=Script(), timing=False)["p"].status is Status.ok
    )
    assert {1.0, 2.0**-10, 32.0, 100.0} == set(seen)


@pytest.mark.parametrize("kind", [Distribution.normal, Distribution.ones])
def test_afterwards_inputs_are_the_cases_own(kind: Distribution) -> None:
    timed: list[torch.Tensor] = []

    class Watches(Script):
        def batch(self, part: Any, n: int) -> Any:
            timed.append(getattr(part, "workload", part).args["x"].detach().clone())
            return super().batch(part, n)

    case = replace(CASE, inputs=kind)
    family = toy(provider("p", right))
    assert run(family, case, clock=Watches())["p"].status is Status.ok
    own = CaseInputs(family, case, "cpu", seed=3).tensors["x"]
    assert torch.equal(timed[0], own)


# Promises.


def off(error: float) -> Callable[[Tensors], Any]:
    """Wrong by so much where inputs are large, in alternating directions."""

    def call(a: Tensors) -> Any:
        y, m = right(a)
        sign = torch.where(torch.arange(y.shape[-1]) % 2 == 0, 1.0, -1.0)
        large = float(a["x"].detach().abs().max()) > 20
        return (y * (1 + error * sign) if large else y), m

    return call


@pytest.mark.parametrize("mode", [Mode.fwd, Mode.bwd])
def test_the_cases_own_inputs_lie_in_no_block_of_a_trial(
    mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is drawn into a larger block would keep it from being returned to the driver."""
    redraw, events = CaseInputs.redraw, []
    drawn: list[CaseInputs] = []

    def redrawn(self: CaseInputs, seed: int, trial: Trial | None = None) -> None:
        drawn.append(self)
        events.append("own inputs" if trial == Trial() else "a trial")
        redraw(self, seed, trial)

    def release(self: Session, *, collect: bool = True) -> None:
        if drawn:
            events.append("returned with inputs" if drawn[-1].pristine else "returned")

    monkeypatch.setattr(CaseInputs, "redraw", redrawn)
    monkeypatch.setattr(Session, "release_memory", release)
    run(toy(), replace(CASE, mode=mode), timing=False)
    assert events == ["a trial"] * 3 + ["returned", "own inputs"]


def test_a_promise_for_a_trial_holds_there_alone() -> None:
    def status(error: float, **promises: Any) -> Any:
        fields = {"accuracy": Accuracy.approximate, "max_error": 0.05, "promises": promises}
        found = run(toy(provider("p", off(error), **fields)), clock=Script(), timing=False)["p"]
        return found.status, {each.trial: each.unproven for each in found.trials}

    assert status(0.04)[0] is Status.ok
    assert status(0.2)[0] is Status.incorrect
    assert status(0.2, large=0.3, outliers=0.3)[0] is Status.ok
    assert status(0.2, large=0.1, outliers=0.3)[0] is Status.incorrect
    ok, said = status(0.2, large="saturates", outliers=0.3)
    assert (ok, said["large"]) == (Status.ok, "saturates")


@pytest.mark.parametrize("room", [None, 0])
def test_the_oracle_is_computed_once_for_all_providers_where_it_has_room(
    room: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if room is not None:
        monkeypatch.setattr(proof, "kept_bytes", lambda device: room)
    calls: list[Any] = []

    def counted(case: ToyCase, a: Tensors) -> Any:
        calls.append(case)
        return oracle(case, a)

    counts = []
    for names in ("a", "abc"):
        calls.clear()
        found = run(toy(*(provider(name, right) for name in names), oracle=counted), timing=False)
        assert {each.status for each in found.values()} == {Status.ok}
        counts.append(len(calls))
    assert (counts[0] == counts[1]) == (room is None)
