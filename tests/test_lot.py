"""Any timed call may be the judged one."""

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from toy import CASE, HostTimes, Script, provider, right, run, toy

from kernelbench.kernels import stream
from kernelbench.measure import lot as lots
from kernelbench.measure.flush import CYCLE
from kernelbench.measure.lot import (
    ENOUGH,
    MOST,
    MOST_LEADING,
    PER_BATCH,
    Lot,
    Tolerance,
    differ_by_torch,
    differ_by_triton,
)
from kernelbench.measure.lot import tolerance as tolerance_of
from kernelbench.measure.sampling import Batch
from kernelbench.measure.timer import begin, judge
from kernelbench.spec import DType, Measure, Mode, OutputError, Status

TOLERANCE = Tolerance(1e-3, 1e-2, 1e-3)


def lot(*proven: torch.Tensor, tolerance: Tolerance = TOLERANCE, **more: Any) -> Lot:
    named = {f"o{i}": tensor for i, tensor in enumerate(proven)}
    return Lot(named, [tolerance] * len(proven), more.pop("differ", differ_by_torch), **more)


def job(lot: Lot, batches: Sequence[int], answer: Callable[[int], Any]) -> str:
    """What is found of so many calls, in batches, as a clock judges them."""
    number = itertools.count()
    for n in batches:
        lot.begin(n)
        for _ in range(n):
            returned = answer(next(number))
            if lot.draw():
                lot.judge(returned)
    return lot.verdict()


@pytest.mark.parametrize("batches", [[8] * 60, [4] * 16 + [30] * 8, [1] * 90])
def test_wrong_in_one_call_of_twenty_is_caught(batches: list[int]) -> None:
    right, wrong = torch.ones(3), torch.tensor([1.0, 1.0, 2.0])
    chance = random.Random(1)
    caught = 0
    for _ in range(200):
        bad = {i for i in range(sum(batches)) if chance.random() < 0.05}
        found = job(lot(right), batches, lambda i, bad=bad: (wrong if i in bad else right,))
        caught += bool(found)
    assert caught >= 0.95 * 200 - 3 * math.sqrt(200 * 0.05 * 0.95)


def test_where_few_are_timed_every_call_is_judged() -> None:
    for batches in ([4] * 14, [1] * 30, [3, 4, 2]):
        one = lot(torch.ones(1))
        assert job(one, batches, lambda i: (torch.ones(1),)) == ""
        assert one.judged == sum(batches)
    for batches, last in (([PER_BATCH] * 5, 13), ([2], 1)):
        one = lot(torch.ones(1))
        assert job(one, batches, lambda i, last=last: (torch.ones(1) * (i != last),))


def test_how_many_are_judged() -> None:
    one = lot(torch.ones(1))

    def fall(n: int) -> list[int]:
        one.begin(n)
        return [i for i in range(n) if one.draw()]

    assert fall(0) == []
    assert fall(3) == [0, 1, 2]
    many = [fall(8) for _ in range(2000)]
    assert min(map(len, many)) == PER_BATCH
    assert PER_BATCH + 0.05 < sum(map(len, many)) / len(many) < PER_BATCH + 0.3
    one.timed = ENOUGH
    few = [fall(8) for _ in range(2000)]
    assert min(map(len, few)) == 1
    assert 1.3 < sum(map(len, few)) / len(few) < 1.9
    for found in (many, few):  # each place alike, also the last, whatever fell before
        shares = [sum(i in each for each in found) / len(found) for i in range(8)]
        assert max(shares) - min(shares) < 0.3
        assert any(7 in each for each in found if len(each) > min(map(len, found)))
    one.judged = MOST
    assert fall(100) == []


def test_calls_that_lead_a_block_take_no_samples_judgement_away() -> None:
    one, judged = lot(torch.ones(4)), []
    for _ in range(200):  # blocks of 8 behind 500 calls each
        for n, leads in ((500, True), (8, False)):
            one.begin(n, leads=leads)
            fell = 0
            for _ in range(n):
                if one.draw():
                    one.judge((torch.ones(4),))
                    fell += 1
            if leads:
                assert fell <= 1
            else:
                judged.append(fell)
    assert sum(judged[:20]) >= ENOUGH and min(judged) >= 1
    assert one.timed == sum(judged)
    assert one.judged - one.timed <= MOST_LEADING
    assert one.verdict() == ""


WORDS = "o0 differs from the proven answer in 1 of the 1 judged calls, in up to 1 elements"


def test_differences_within_what_is_left_pass_and_beyond_do_not() -> None:
    proven = torch.ones(100)
    for element, said in (
        (0.9e-3, ""),
        (1.1e-3, WORDS),
    ):
        bent = proven.clone()
        bent[7] += element
        found = job(lot(proven), [1], lambda i, bent=bent: (bent,))
        assert found == said
    many = proven + 2e-3 * torch.tensor([1.0, -1.0]).repeat(50)  # norm 2e-2
    assert job(lot(proven, tolerance=Tolerance(1, 1e-2, 1)), [1], lambda i: (many,))
    assert not job(lot(proven, tolerance=Tolerance(1, 3e-2, 1)), [1], lambda i: (many,))
    scaled = proven * 1.002
    assert job(lot(proven, tolerance=Tolerance(1, 1, 1e-3)), [1], lambda i: (scaled,))
    assert not job(lot(proven, tolerance=Tolerance(1, 1, 3e-3)), [1], lambda i: (scaled,))


def test_two_answers_within_their_budgets_may_differ_by_both() -> None:
    error = OutputError(
        name="y", rel=1e-3, worst=2e-3, rel_budget=3e-3, worst_budget=8e-3, slope=-1e-4,
        slope_budget=3e-4,
    )  # fmt: skip
    found = tolerance_of(error, torch.zeros(4, 25), 2.0)
    assert (found.element, found.norm, found.slope) == pytest.approx((20e-3, 2 * 10 * 4e-3, 4e-4))
    assert tolerance_of(replace(error, part=0.1), torch.zeros(4), 1.0).slope == math.inf
    assert tolerance_of(error, torch.zeros(4, dtype=torch.int64), 1.0) == Tolerance(0, 0, math.inf)


@pytest.mark.parametrize(
    "returned",
    [
        (torch.ones(3, dtype=torch.float64), torch.ones(2)),
        (torch.ones(3), torch.ones(3)),
        (torch.ones(3),),
        (torch.ones(3), torch.ones(2), torch.ones(1)),
        (torch.nn.Parameter(torch.ones(3)), torch.ones(2)),
        (),
        (torch.ones(3), None),
    ],
)
def test_an_answer_of_another_kind_is_wrong(returned: Any) -> None:
    one = lot(torch.ones(3), torch.ones(2))
    found = job(one, [1], lambda i: returned)
    kinds = "is of another kind than in the proof" in found
    assert kinds or found == f"returned {len(returned)} outputs, 2 in the proof"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_wrong_unless_the_proven_one_is(value: float) -> None:
    bad = torch.tensor([1.0, value])
    assert job(lot(torch.ones(2)), [1], lambda i: (bad,))
    if not math.isnan(value):
        assert not job(lot(bad), [1], lambda i: (bad,))
        assert job(lot(bad), [1], lambda i: (torch.ones(2),))


def test_whole_numbers_and_nothing() -> None:
    exact = Tolerance(0.0, 0.0, math.inf)
    index = torch.tensor([1, 5, 7])
    assert not job(lot(index, tolerance=exact), [2], lambda i: (index.clone(),))
    assert job(lot(index, tolerance=exact), [2], lambda i: (index + (i == 1),))
    empty = torch.ones(0)
    assert not job(lot(empty), [2], lambda i: (empty.clone(),))


def test_a_rehearsal_does_not_count() -> None:
    one = lot(torch.ones(2))
    one.rehearse((torch.zeros(2),))
    assert (one.judged, one.verdict()) == (0, "")
    assert not job(one, [4], lambda i: (torch.ones(2),))


# In a job.

ENOUGH_SAMPLES = Measure(min_samples=256, max_samples=256, block=8, interval_pct=1e-9)


class Judges(Script):
    """A scripted clock that judges as the real ones do."""

    def batch(self, part: Any, n: int) -> Batch:
        self.timed.append(part.name)
        begin(part, n)
        with part.grad_mode():
            for _ in range(n):
                part.restore()
                judge(part, part.call())
        return Batch((1000,) * n)


def sometimes(every: int, by: float, state: dict[str, Any]) -> Callable[[Any], Any]:
    """Wrong in one of so many of the calls that are timed."""
    chance = random.Random(2)

    def call(a: Any) -> Any:
        y, m = right(a)
        if state["clock"].timed and chance.randrange(every) == 0:
            y = y * (1 + by)
        return y, m

    return call


@pytest.mark.parametrize("mode", [Mode.fwd, Mode.bwd, Mode.full])
@pytest.mark.parametrize("host", [False, True])
def test_wrong_in_some_timed_calls_is_wrong(mode: Mode, host: bool) -> None:
    class Both(HostTimes, Judges):  # a host's clock that knows when it has begun
        def __init__(self) -> None:
            HostTimes.__init__(self)
            Script.__init__(self)

        def batch(self, part: Any, n: int) -> Batch:
            self.timed.append(part.name)
            return (HostTimes if host else Judges).batch(self, part, n)

    state = {"clock": Both()}
    calls = sometimes(5 if mode is Mode.full else 3, 0.5, state)
    if mode is Mode.bwd:  # there a forward decides for all calls of a backward
        return
    case = replace(CASE, mode=mode)
    family = toy(provider("bad", calls), provider("fine", right))
    found = run(family, case, clock=state["clock"], measure=ENOUGH_SAMPLES)
    assert found["bad"].status is Status.incorrect
    assert "from the proven answer" in found["bad"].reason or "timing" in found["bad"].reason
    assert found["bad"].timing is None
    assert found["fine"].status is Status.ok
    judged = found["fine"].judged_calls
    assert judged is not None
    assert judged >= ENOUGH


def test_what_a_judged_call_answered_is_gone_but_not_what_is_needed_again() -> None:
    class Saves(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(2 * x)
            return x * x

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            (saved,) = ctx.saved_tensors
            return saved

    class Backward:
        mode = Mode.bwd

        def __init__(self) -> None:
            self.x = torch.ones(3, requires_grad=True)

        def all_tensors(self) -> dict[str, torch.Tensor]:
            return {"x": self.x}

    workload = Backward()
    leaf = workload.x
    for y, stays in ((Saves.apply(leaf), True), (leaf * leaf, False)):
        one = lot(torch.full((3,), 2.0), workload=workload)
        for _ in range(2):
            one.begin(1)
            (found,) = torch.autograd.grad(y, leaf, torch.ones(3), retain_graph=True)
            one.judge((found,))
            assert bool(found.isnan().all()) is not stays
        assert one.verdict() == ""
    forward = Backward()
    forward.mode = Mode.fwd
    one = lot(torch.ones(3), torch.ones(3), workload=forward)
    kept = torch.ones(3)
    one.judge((kept, forward.x.detach()))
    assert bool(kept.isnan().all())
    assert bool((forward.x == 1).all())


def test_rounding_that_differs_from_call_to_call_is_right() -> None:
    chance = torch.Generator().manual_seed(0)

    def call(a: Any) -> Any:
        y, m = a["x"].float() * a["w"].float(), a["x"].amax(-1)
        away = 1 + (torch.rand(y.shape, generator=chance) - 0.5) * 2**-8
        return (y * away).to(a["x"].dtype), m

    case = replace(CASE, dtype=DType.bf16, R=40)
    found = run(toy(provider("p", call)), case, clock=Judges(), measure=ENOUGH_SAMPLES)["p"]
    assert found.status is Status.ok, found.reason
    assert found.judged_calls is not None


# On a GPU.


def test_what_a_judgement_launches_is_a_multiple_of_the_cycle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spent: list[int] = []
    monkeypatch.setattr(lots, "launch_empty", spent.append)

    class Cuda:
        is_cuda = True

        def __init__(self, tensor: torch.Tensor) -> None:
            self._tensor = tensor

        def __getitem__(self, at: Any) -> torch.Tensor:
            return self._tensor[at]

    for each in (0, 1, 2, 3, 4, 5, 9):
        one = lot(torch.ones(2), torch.ones(2), differ=lambda *args, each=each: each)
        one._sums = Cuda(one._sums)  # type: ignore[assignment]
        spent.clear()
        one.judge((torch.ones(2), torch.ones(2)))
        assert (2 * each + spent[0]) % CYCLE == 0
        assert 0 <= spent[0] < CYCLE


SPECIAL = torch.tensor([0.0, -0.0, 1.5, math.inf, -math.inf, math.nan, 3e-8, -2.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64, torch.int32])
@pytest.mark.parametrize("n", [1, 7, 64, 4096, 4097, 10_001])
def test_the_kernel_counts_what_torch_counts(dtype: torch.dtype, n: int, device: str) -> None:
    generator = torch.Generator().manual_seed(n)
    proven = (torch.randn(n, generator=generator) * 8).to(dtype).to(device)
    out = proven.clone()
    out[::3] += torch.tensor(2).to(dtype)
    if dtype.is_floating_point and n > 16:
        for start, value in enumerate(SPECIAL):
            out[start], proven[8 + start] = value.to(dtype), value.to(dtype)
        out[8:16] = proven[8:16]
        out[12] = 1.0  # where −∞ is right
    for element in (0.0, 0.5, 3.0):
        torches, tritons = torch.zeros(3, device=device), torch.zeros(3, device=device)
        differ_by_torch(out, proven, element, torches)
        stream.differ(out, proven, element, tritons).run()
        assert int(tritons[0]) == int(torches[0])
        assert torch.equal(tritons[1].isfinite(), torches[1].isfinite())
        if bool(torches[1].isfinite()):
            assert torch.allclose(tritons, torches, rtol=1e-4, atol=1e-3)
    same = torch.zeros(3, device=device)
    finite = proven.nan_to_num(0, 1, -1) if dtype.is_floating_point else proven
    stream.differ(finite, finite.clone(), 0.0, same).run()
    assert same.tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_fp8_is_judged_like_the_others(dtype: torch.dtype, device: str) -> None:
    proven = torch.linspace(-3, 3, 5000, device=device).to(dtype)
    other = proven.float()
    other[7], other[4999] = 3.0, math.nan
    for differ in (differ_by_torch, differ_by_triton):
        judged = lot(proven, differ=differ)
        assert not job(judged, [8], lambda i: (proven.clone(),))
        assert "in up to 2 elements" in job(judged, [8], lambda i: (other.to(dtype),))


def test_no_other_floating_dtype_is_taken_for_whole_numbers() -> None:
    tensor = torch.ones(4).to(torch.float8_e4m3fn)
    with pytest.raises(KeyError):
        stream.differ(tensor, tensor, 0.0, torch.zeros(3))
