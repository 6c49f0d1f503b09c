"""Right before fast: providers that are wrong on purpose, and what caught each of them."""

import math
import re
import threading
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from toy import BASELINE, CASE, Script, ToyCase, provider, right, run, toy

from kernelbench.measure.budgets import CEILING, FLOOR
from kernelbench.measure.check import judge
from kernelbench.measure.deviation import Deviation, Sums
from kernelbench.measure.job import DeviceLostError
from kernelbench.spec import Accuracy, DType, Mode, Provider, RunRecord, Status, Tensors, Trial

MODES = list(Mode)
BF16 = replace(CASE, dtype=DType.bf16)


def one(bad: Provider[Any], case: ToyCase = CASE, **options: Any) -> RunRecord:
    return run(toy(bad), case, **options)[bad.name]


@pytest.mark.parametrize("mode", MODES)
def test_a_right_provider_passes(mode: Mode) -> None:
    record = one(provider("fine", right), replace(CASE, mode=mode))
    assert (record.status, record.reason) == (Status.ok, "")
    assert record.timing is not None
    assert record.flags == ()


def off_by_a_percent(a: Tensors) -> Any:
    y, m = right(a)
    return y * 1.01, m


def one_nan(a: Tensors) -> Any:
    y, m = right(a)
    y[3, 5] = math.nan
    return y, m


def overwrites_x(a: Tensors) -> Any:
    y, m = right(a)
    with torch.no_grad():
        a["x"].data.zero_()
    return y, m


def later(a: Tensors) -> Any:
    y, m = torch.zeros_like(a["x"]), a["x"].amax(-1)

    def work(x: torch.Tensor, w: torch.Tensor) -> None:
        time.sleep(0.02)
        torch.mul(x, w, out=y)

    threading.Thread(target=work, args=(a["x"].clone(), a["w"].clone())).start()
    return y, m


@pytest.mark.parametrize(
    ("call", "status", "reason"),
    [
        (off_by_a_percent, Status.incorrect, "y: error 0.01 "),
        (one_nan, Status.incorrect, "NaN in y"),
        (overwrites_x, Status.incorrect, "changed its input x"),
        (later, Status.incorrect, "y: error 1 "),
        (lambda a: a["x"] * a["w"], Status.incorrect, "returns 1 outputs, expected y, m"),
        (lambda a: (right(a)[0][:, :3], right(a)[1]), Status.incorrect, "shape (7, 3), the base"),
        (lambda a: a["x"].foo, Status.failed, "AttributeError: 'Tensor' object has no"),
        (lambda a: (right(a)[0].repeat(2, 1), right(a)[1]), Status.incorrect, "shape (14, 64)"),
    ],
)
def test_what_is_wrong_is_caught_and_never_timed(call: Any, status: Status, reason: str) -> None:
    clock = Script()
    record = one(provider("bad", call), clock=clock)
    assert record.status is status
    assert reason in record.reason
    assert record.timing is None
    assert "bad" not in clock.timed
    assert "eager" in clock.timed


def test_rows_that_are_never_written_are_caught_whatever_free_memory_holds() -> None:
    def half(a: Tensors) -> Any:
        y = torch.empty_like(a["x"])  # poisoned, or a block that the harness itself has freed since
        y[::2] = (a["x"] * a["w"])[::2]
        return y, a["x"].amax(-1)

    record = one(provider("bad", half))
    assert record.status is Status.incorrect and record.timing is None
    assert record.reason.startswith(("NaN in y", "y: error"))


def test_half_an_output_is_nan_even_where_the_oracle_samples() -> None:
    def odd_rows_missing(a: Tensors) -> Any:
        y = torch.full_like(a["x"], math.nan)
        y[0] = a["x"][0] * a["w"]
        return y, a["x"].amax(-1)

    record = one(provider("bad", odd_rows_missing), replace(CASE, sampled=True))
    assert (record.status, record.reason) == (Status.incorrect, "NaN in y")


@pytest.mark.parametrize("trials", [True, False])
def test_a_cached_tensor_is_found_by_poison_and_a_cached_clone_by_fresh_inputs(
    trials: bool,
) -> None:
    kept: dict[str, Any] = {}
    names = ("small", "large", "outliers")
    refused = dict.fromkeys(names, Trial(refused="as they are"))
    more = {} if trials else {"trials": lambda case: refused}

    def cached(a: Tensors) -> Any:
        return kept.setdefault("tensor", right(a))

    def cloned(a: Tensors) -> Any:
        return tuple(t.clone() for t in kept.setdefault("clone", right(a)))

    clock = Script()
    found = run(toy(provider("cached", cached), provider("cloned", cloned), **more), clock=clock)
    assert found["cached"].status is Status.incorrect
    assert found["cached"].reason.startswith("NaN in y; NaN in m; y: 448 of 448 elements bad")
    assert found["cloned"].status is Status.incorrect
    where = "on small inputs" if trials else r"on fresh inputs, after timing \(--seed \d+\)"
    assert re.match(f"{where}: y: error", found["cloned"].reason)
    assert found["cloned"].timing is None
    errors = found["cloned"].trials[0].errors if trials else found["cloned"].errors
    assert not all(error.ok for error in errors)  # those that tell against it
    assert found["eager"].status is Status.ok
    assert "cached" not in clock.timed


def test_an_output_may_lie_in_an_input() -> None:
    ones = replace(CASE, mode=Mode.fwd)

    def inputs(case: ToyCase, draw: Any) -> Tensors:
        x = draw(case.R, case.N)
        return {"x": x, "w": torch.ones(case.N)}

    family = toy(provider("alias", lambda a: (a["x"], a["x"].amax(-1))), inputs=inputs)
    assert run(family, ones)["alias"].status is Status.ok


@pytest.mark.parametrize("mode", MODES)
def test_what_one_provider_breaks_does_not_reach_the_next(mode: Mode) -> None:
    def breaks_and_raises(a: Tensors) -> Any:
        a["x"].data.fill_(math.nan)
        raise RuntimeError("and then fails")

    family = toy(
        provider("raises", breaks_and_raises),
        provider("overwrites", overwrites_x),
        provider("fine", right),
    )
    found = run(family, replace(CASE, mode=mode))
    assert found["raises"].status is Status.failed
    assert found["fine"].status is Status.ok


def test_a_layout_of_its_own_is_fresh_for_the_second_check_of_a_backward() -> None:
    class Scale(torch.autograd.Function):  # keeps something that follows from the values of x
        @staticmethod
        def forward(ctx: Any, x: Any, w: Any) -> Any:
            ctx.save_for_backward(x * 1.0, w)
            return x * w

        @staticmethod
        def backward(ctx: Any, dy: Any) -> Any:
            x, w = ctx.saved_tensors
            return dy * w, (dy * x).sum(0)

    def copied(case: ToyCase, a: Tensors) -> Tensors:
        return {name: t.clone() for name, t in a.items()}

    fine = provider(
        "fine", lambda a: (Scale.apply(a["x"], a["w"]), a["x"].detach().amax(-1)), prepare=copied
    )
    assert one(fine, replace(CASE, mode=Mode.bwd)).reason == ""


def test_an_in_place_provider_that_says_so_is_right_and_its_neighbours_are_spared() -> None:
    def in_place(a: Tensors) -> Any:
        m = a["x"].amax(-1)
        return a["x"].mul_(a["w"]), m

    family = toy(
        provider("in_place", in_place, mutates=lambda case: ("x",)), provider("fine", right)
    )
    found = run(family)
    assert [found[name].status for name in ("in_place", "fine")] == [Status.ok, Status.ok]


def test_a_provider_out_of_memory_leaves_the_others() -> None:
    def hungry(a: Tensors) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 PiB")

    found = run(toy(provider("hungry", hungry), provider("fine", right)))
    assert (found["hungry"].status, found["fine"].status) == (Status.oom, Status.ok)


def test_one_that_fails_while_it_is_timed_leaves_and_the_others_start_again() -> None:
    class Fails(Script):
        def batch(self, part: Any, n: int) -> Any:
            if part.name == "bad":
                raise RuntimeError("in the middle")
            return super().batch(part, n)

    found = run(toy(provider("bad", right), provider("fine", right)), clock=Fails())
    assert (found["bad"].status, found["bad"].timing) == (Status.failed, None)
    assert found["bad"].reason.startswith("RuntimeError: in the middle (")
    assert "test_check.py:" in found["bad"].reason
    assert found["fine"].timing is not None


def test_a_lost_device_is_not_a_failure_of_a_provider() -> None:
    def lost(a: Tensors) -> Any:
        raise DeviceLostError("bad", "gone")

    with pytest.raises(DeviceLostError, match="gone"):
        run(toy(provider("bad", lost)))


# Budgets.


def budget(found: float, baseline: float | None, dtype: DType = DType.bf16, **more: Any) -> float:
    base = {"y": Deviation(baseline, 0.0, 1.0)} if baseline is not None else None
    [error] = judge({"y": Deviation(found, 0.0, 1.0)}, base, dtype, provider("p", right, **more))
    assert error.ok is (found <= error.rel_budget)
    return error.rel_budget


def test_a_budget_is_three_times_the_baselines_error_between_floor_and_ceiling() -> None:
    assert budget(1e-3, 1e-3) == pytest.approx(3e-3)
    assert budget(1e-3, 1e-6) == FLOOR[DType.bf16] == 2e-3
    assert budget(1e-3, 1.0) == CEILING[DType.bf16] == 1e-2
    assert budget(1e-3, None) == budget(1e-3, math.nan) == CEILING[DType.bf16]
    assert budget(math.nan, 1e-3) == pytest.approx(3e-3)
    assert budget(0.04, 1e-3, accuracy=Accuracy.approximate, max_error=0.05) == 0.05
    assert (FLOOR[DType.fp32], CEILING[DType.fp32]) == (1e-6, 2e-5)
    assert (FLOOR[DType.fp16], CEILING[DType.fp16]) == (2.5e-4, 2e-3)


def test_the_worst_element_may_err_by_the_largest_ones_rounding() -> None:
    [error] = judge({"y": Deviation(0.0, 0.03, 20.0)}, None, DType.bf16, provider("p", right))
    assert error.worst_budget == pytest.approx(0.4)
    [error] = judge({"y": Deviation(0.0, 0.05, 2.0)}, None, DType.bf16, provider("p", right))
    assert not error.ok


def test_against_an_oracle_of_zeros_errors_are_absolute() -> None:
    def small(a: Tensors) -> Any:
        y, m = right(a)
        return y + 1e-3, m

    zeros = replace(CASE, inputs="zeros")
    found = run(toy(provider("fine", right), provider("off", small)), zeros)
    assert found["fine"].status is Status.ok
    assert found["off"].status is Status.incorrect
    assert found["off"].errors[0].rel == pytest.approx(1e-3)


def test_an_approximate_provider_is_held_to_what_it_promises() -> None:
    def promises(error: float) -> Provider[Any]:
        return provider("approx", off_by_a_percent, accuracy=Accuracy.approximate, max_error=error)

    assert one(promises(0.02)).status is Status.ok
    missed = one(promises(0.005))
    assert missed.status is Status.incorrect
    assert re.search(r"error 0\.0\d+ \(worst element \S+ of rms, cosine 1\.0000\)", missed.reason)


@pytest.mark.parametrize(
    ("out", "cosine"),
    [((3.0, 4.0), 1.0), ((4.0, 3.0), 0.96), ((-6.0, -8.0), -1.0), ((0.0, 0.0), None)],
)
def test_the_cosine_is_that_of_the_angle_to_the_oracle(
    out: tuple[float, float], cosine: float | None
) -> None:
    sums = Sums(torch.tensor(out))
    for i, ref in enumerate((3.0, 4.0)):  # as pieces of an oracle come
        sums.add(slice(i, i + 1), torch.tensor([out[i]]), torch.tensor([ref], dtype=torch.float64))
    assert sums.deviation().cosine == (None if cosine is None else pytest.approx(cosine))


def test_a_baseline_that_was_not_asked_for_still_sets_the_budget() -> None:
    clock = Script()
    found = run(toy(provider("fine", right)), BF16, names=["fine"], clock=clock)
    assert set(found) == {"fine"}
    assert found["fine"].errors[0].baseline_rel is not None
    assert found["fine"].flags == ()
    assert set(clock.timed) == {"fine"}


@pytest.mark.parametrize(
    ("baseline", "options"),
    [
        (BASELINE, {"without": ("eager",)}),
        (replace(BASELINE, build=lambda case, config: lambda a: (a["x"], right(a)[1])), {}),
        (replace(BASELINE, build=lambda case, config: lambda a: a["x"].foo), {}),
        (replace(BASELINE, unsupported=lambda case, device: "not here"), {}),
    ],
)
def test_without_a_budget_from_the_baseline_a_flag_says_so(
    baseline: Provider[Any], options: Any
) -> None:
    found = run(toy(provider("fine", right), baseline=baseline), BF16, names=["fine"], **options)
    assert found["fine"].errors[0].rel_budget == CEILING[DType.bf16]
    assert found["fine"].errors[0].baseline_rel is None
    assert found["fine"].flags == ("no-baseline-budget",)


def test_a_gate_that_did_not_hold_is_said_twice() -> None:
    record = one(provider("fine", right), clock=Script(held=False))
    assert record.timing is not None
    assert (record.timing.timer, record.flags) == ("ungated", ("ungated",))


def test_without_timing_nothing_is_timed() -> None:
    clock = Script()
    record = one(provider("fine", right), clock=clock, timing=False)
    assert (record.status, record.timing, clock.timed) == (Status.ok, None, [])


def test_the_baseline_runs_twice_in_every_round() -> None:
    clock = Script()
    found = run(toy(provider("fine", right)), clock=clock)
    rounds = [sorted(clock.timed[i : i + 3]) for i in (0, 3)]
    assert rounds == [["eager", "eager", "fine"]] * 2
    timing = found["eager"].timing
    assert timing is not None
    assert len(timing.again_ns) == len(timing.blocks_ns)
