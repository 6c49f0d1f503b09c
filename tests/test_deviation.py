"""How far an answer is off: known figures, in whatever pieces an oracle comes; and what is judged
of them.
"""

import math
from collections.abc import Sequence
from dataclasses import astuple, replace
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from toy import provider, right

from kernelbench.measure.budgets import CEILING, FLOOR, SLOPE_FLOOR
from kernelbench.measure.check import judge
from kernelbench.measure.deviation import KEEP_ORACLE_BYTES, Deviation, Slope, Sums, kept_bytes
from kernelbench.spec import Accuracy, DType, OutputError, Provider

TORCH = {DType.bf16: torch.bfloat16, DType.fp16: torch.float16, DType.fp32: torch.float32}
EXACT = provider("exact", right)


def approximate(error: float = 0.05, **more: Any) -> Provider[Any]:
    return provider("p", right, accuracy=Accuracy.approximate, max_error=error, **more)


def deviation(
    out: torch.Tensor,
    ref: torch.Tensor,
    parts: Sequence[torch.Tensor] = (),
    indices: Sequence[Any] = (...,),
) -> Deviation:
    """By pieces of an oracle at these indices."""
    sums = Sums(out)
    for index in indices:
        sums.add(index, out[index], ref[index], [part[index] for part in parts])
    return sums.deviation()


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Figures.


def test_known_figures() -> None:
    ref = torch.tensor([[3.0, 4.0], [1.0, 0.0]], dtype=torch.float64)
    out = ref + torch.tensor([[0.0, 1.0], [0.5, 0.0]])
    found = deviation(out, ref)
    rms = math.sqrt(26 / 4)
    assert found.unit == pytest.approx(rms)
    assert found.rel == pytest.approx(math.sqrt(1.25 / 26))
    assert found.worst == pytest.approx(1 / rms)
    assert found.peak == found.own_peak == pytest.approx(4 / rms)
    assert found.row == pytest.approx(max(1 / 5, 0.5 / max(1, 0.3 * math.sqrt(13))))
    assert found.column == pytest.approx(max(0.5 / math.sqrt(10), 1 / 4))
    [slope] = found.slopes
    assert slope.value == pytest.approx((4 * 1 + 1 * 0.5) / 26)
    assert slope.error == pytest.approx(math.sqrt(4**2 + 0.5**2) / 26)
    assert (found.scale, found.row_scale, found.column_scale, found.part) == (1, 1, 1, None)


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.003, 1.1, -1.0])
def test_the_slope_is_the_scale_less_one(factor: float) -> None:
    ref = noise(40, 30)
    found = deviation(ref * factor, ref)
    assert found.slopes[0].value == pytest.approx(factor - 1)
    assert [found.rel, found.row, found.column] == pytest.approx([abs(factor - 1)] * 3)


def test_one_bad_row_and_one_bad_column_are_seen_as_such() -> None:
    ref = noise(100, 80)
    row, column = ref.clone(), ref.clone()
    row[17] = 0
    column[:, 5] = 0
    found = deviation(row, ref)
    assert found.row == pytest.approx(1)
    assert found.rel < 0.2 < 2 * found.column < 1
    found = deviation(column, ref)
    assert found.column == pytest.approx(1)
    assert found.rel < 0.2 < 2 * found.row < 1


def test_a_row_of_next_to_nothing_is_held_against_what_is_typical() -> None:
    ref = torch.ones(10, 4, dtype=torch.float64)
    ref[3] *= 1e-9
    found = deviation(ref + 1e-3, ref)
    assert found.row == pytest.approx(1e-3 / (0.3 * math.sqrt(9.0 / 10)), rel=1e-3)
    ref[3] = 0  # all zero is no row that is typical
    assert deviation(ref + 1e-3, ref).row == pytest.approx(1e-3 / 0.3, rel=1e-3)


def test_parts_are_what_is_judged_and_each_has_a_slope() -> None:
    attention, mlp, skip = noise(64, 32) * 0.05, noise(64, 32, seed=1), noise(64, 32, seed=2) * 2
    ref = attention + mlp + skip
    found = deviation(ref + 0.1 * attention, ref, [attention, mlp])
    computed = attention + mlp
    assert found.rel == pytest.approx(float(0.1 * attention.norm() / computed.norm()))
    assert [round(slope.value, 1) for slope in found.slopes] == [0.1, 0.0]
    assert found.part == pytest.approx(float(computed.norm() / ref.norm()))
    assert found.scale == pytest.approx(1 / found.part)
    assert found.unit == pytest.approx(float(computed.square().mean().sqrt()))
    alone = deviation(ref - attention, ref, [attention])
    assert [alone.rel, alone.row, alone.column] == pytest.approx([1] * 3)


def test_a_part_that_is_all_zero_is_judged_absolutely() -> None:
    ref = torch.full((3, 4), 2.0, dtype=torch.float64)
    found = deviation(ref + 1e-3, ref, [torch.zeros_like(ref)])
    assert (found.rel, found.worst) == (pytest.approx(1e-3), pytest.approx(1e-3))


@pytest.mark.parametrize(
    "shape", [(), (1,), (7,), (1, 1), (0,), (0, 5), (5, 0), (3, 0, 2), (2, 3, 4, 5)]
)
def test_any_shape(shape: tuple[int, ...]) -> None:
    ref = noise(*shape)
    found = deviation(ref.float(), ref)
    assert 0 <= found.rel < 1e-6
    assert judged(found, DType.fp32).ok
    if ref.numel():
        wrong = deviation(ref.float() * 1.1, ref)
        assert wrong.slopes[0].value == pytest.approx(0.1, rel=1e-5)
        assert not judged(wrong, DType.fp32).ok


@pytest.mark.parametrize("kind", [torch.int64, torch.int32, torch.bool])
def test_whole_numbers(kind: torch.dtype) -> None:
    ref = torch.tensor([[1, 0], [0, 1]])
    assert deviation(ref.to(kind), ref.double()).rel == 0
    assert deviation(1 - ref.to(torch.int64), ref.double()).rel == pytest.approx(math.sqrt(2))


def test_zeros_are_judged_absolutely() -> None:
    ref = torch.zeros(4, 5, dtype=torch.float64)
    assert astuple(deviation(ref.float(), ref))[:2] == (0, 0)
    found = deviation(ref.float() + 1e-3, ref)
    assert (found.rel, found.worst) == (pytest.approx(1e-3), pytest.approx(1e-3))
    assert not judged(found, DType.fp32).ok


# Pieces.

SHAPE = (4, 6, 8)
ORDER = torch.tensor([3, 0, 2, 1])
PIECES: dict[str, Sequence[Any]] = {
    "...": (...,),
    "ints": range(4),
    "slices": (slice(0, 3), slice(3, None)),
    "steps": (slice(0, None, 2), slice(1, None, 2)),
    "int and slice": [(b, slice(i, i + 4)) for b in range(4) for i in (0, 4)],
    "ints all along": [*product(range(4), range(6))],
    "single elements": [*product(range(4), range(6), range(8))],
    "columns": [(..., slice(i, i + 2)) for i in range(0, 8, 2)],
    "one column": [(..., i) for i in range(8)],
    "columns of a row": [(b, slice(None), slice(i, i + 4)) for b in range(4) for i in (0, 4)],
    "middle": [(slice(None), n) for n in range(6)],
    "middle and columns": [(slice(None), n, slice(i, i + 4)) for n in range(6) for i in (0, 4)],
    "tensor": (ORDER[:2], ORDER[2:]),
    "list": ([1, 3], [0, 2]),
    "tensor of columns": [(..., torch.tensor([1, 0, 5])), (..., torch.tensor([2, 3, 4, 6, 7]))],
    "mask": (torch.arange(4) < 2, torch.arange(4) >= 2),
    "two tensors": [(ORDER[:, None], torch.arange(6)[None])],
    "new dimension": [(None, b) for b in range(4)],
}


@pytest.mark.parametrize("name", PIECES)
@pytest.mark.parametrize("diluted", [False, True])
def test_pieces_of_any_form_give_the_figures_of_the_whole(name: str, diluted: bool) -> None:
    ref, scale = noise(*SHAPE), torch.linspace(0.1, 2, 8)
    out = (ref + 0.1 * scale * noise(*SHAPE, seed=1)).float()
    parts = [ref * 0.2, noise(*SHAPE, seed=2)] if diluted else []
    whole, found = deviation(out, ref, parts), deviation(out, ref, parts, PIECES[name])
    spread = [[replace(slope, spread=0.0) for slope in each.slopes] for each in (whole, found)]
    flat = [
        [*astuple(replace(each, slopes=())), *(x for s in slopes for x in astuple(s))]
        for each, slopes in zip((whole, found), spread, strict=True)
    ]
    assert [x is None for x in flat[0]] == [x is None for x in flat[1]]
    numbers = [[x for x in each if isinstance(x, float)] for each in flat]
    assert numbers[1] == pytest.approx(numbers[0])


def test_a_piece_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 3\), the oracle has \(3, 2\)"):
        Sums(torch.zeros(2, 3)).add(..., torch.zeros(2, 3), torch.zeros(3, 2).double())


@pytest.mark.parametrize(("gib", "kept"), [(16, 2), (141, 8.8125)])
def test_a_large_gpu_keeps_a_larger_oracle(
    gib: int, kept: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = SimpleNamespace(total_memory=gib << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: facts)
    assert kept_bytes(torch.device("cuda")) == kept * 2**30
    assert kept_bytes(torch.device("cpu")) == KEEP_ORACLE_BYTES


# What is not finite.

INF, NAN = math.inf, math.nan


def of(*values: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


@pytest.mark.parametrize(
    ("out", "ref"),
    [
        (of(1, -INF, 3), of(1, -INF, 3)),
        (of(1, INF, -INF), of(1, INF, -INF)),
        (of(-INF, -INF), of(-INF, -INF)),
        (of(1, INF, dtype=torch.float16), of(1, 7e4)),
        (of(1, -INF, dtype=torch.float16), of(1, -1e9)),
    ],
)
def test_right_infinities_count_for_nothing(out: torch.Tensor, ref: torch.Tensor) -> None:
    found = deviation(out, ref.double())
    assert (found.rel, found.worst) == (0, 0)
    assert judged(found, DType.fp16).ok


@pytest.mark.parametrize(
    ("out", "ref"),
    [
        (of(1, INF), of(1, 2)),
        (of(1, 2), of(1, INF)),
        (of(INF, 1), of(-INF, 1)),
        (of(-INF, INF), of(INF, -INF)),
        (of(1, INF, dtype=torch.float16), of(1, 6e4)),
        (of(1, 65504, dtype=torch.float16), of(1, INF)),
        (of(1, NAN), of(1, 2)),
        (of(1, NAN), of(1, -INF)),
        (of(1, NAN, -INF), of(1, 2, -INF)),
    ],
)
@pytest.mark.parametrize("rows", [1, 3])
def test_misplaced_ones_and_nan_are_wrong(out: torch.Tensor, ref: torch.Tensor, rows: int) -> None:
    found = deviation(out.expand(rows, -1), ref.double().expand(rows, -1))
    for who in (EXACT, approximate(0.5)):
        assert not judged(found, DType.fp16, who).ok


def test_infinities_beside_a_part() -> None:
    ref, part = of(-INF, 1, 2).double(), of(-INF, 0.5, 1).double()
    assert deviation(of(-INF, 1, 2), ref, [part]).rel == 0
    assert not judged(deviation(of(-INF, 1, 2.5), ref, [part]), DType.fp16).ok


# Budgets.


def judged(
    found: Deviation,
    dtype: DType,
    who: Provider[Any] = EXACT,
    base: Deviation | None = None,
    inputs: str = "",
    **more: Any,
) -> OutputError:
    [error] = judge({"y": found}, {"y": base} if base else None, dtype, who, inputs, **more)
    return error


def even(error: float, slope: float = 0.0) -> Deviation:
    """A deviation that is as large everywhere."""
    return Deviation(error, error, 1.0, row=error, column=error, slopes=(Slope(slope, 0, 0),))


def budgets(error: OutputError) -> list[float]:
    return [budget for _, _, budget in error.figures]


@pytest.mark.parametrize("dtype", list(DType))
def test_budgets_of_an_exact_one(dtype: DType) -> None:
    low, high, steep = FLOOR[dtype], CEILING[dtype], SLOPE_FLOOR[dtype]
    floors, ceilings = [low, 4 * low, 3 * low, 3 * low, steep], [
        high, 2 * high, 50 * high, 10 * high, high,
    ]  # fmt: skip
    assert budgets(judged(even(0), dtype, base=even(0))) == pytest.approx(floors)
    assert budgets(judged(even(0), dtype, base=even(1, 1))) == pytest.approx(ceilings)
    assert budgets(judged(even(0), dtype)) == pytest.approx(ceilings)
    between = 0.3 * high
    base = even(between, steep)
    times = [3 * between] * 4 + [3 * steep]
    assert budgets(judged(even(0), dtype, base=base)) == pytest.approx(times)


def test_on_a_trials_inputs_ceilings_are_floors() -> None:
    def found(base: float) -> list[float]:
        return budgets(judged(even(0), DType.bf16, base=even(base, base), trial=True))

    assert found(0) == pytest.approx([0.01, 0.02, 0.1, 0.1, 0.01])
    assert found(0.01) == pytest.approx([0.03, 0.03, 0.1, 0.1, 0.03])
    assert found(1) == pytest.approx([0.03, 0.06, 0.3, 0.3, 0.03])
    without = budgets(judged(even(0), DType.bf16, trial=True))
    assert without == pytest.approx([0.01, 0.02, 0.1, 0.1, 0.01])


def test_what_passes_through_is_rounded_too() -> None:
    wide = replace(even(0), scale=20.0, row_scale=30.0, column_scale=25.0, peak=50.0, part=0.05)
    assert budgets(judged(wide, DType.bf16, base=wide))[:4] == pytest.approx(
        [20 * 2e-3, 50 * 8e-3, 30 * 6e-3, 25 * 6e-3]
    )
    promised = budgets(judged(wide, DType.bf16, approximate(), base=wide))
    assert promised[:4] == pytest.approx([0.05 + 0.04, 0.4 + 0.4, 0.15 + 0.18, 0.15 + 0.15])


def test_budgets_of_an_approximate_one() -> None:
    assert budgets(judged(even(0), DType.bf16, approximate())) == pytest.approx(
        [0.05, 0.4, 0.15, 0.15, 0.05]
    )
    peaked = replace(even(0), own_peak=30.0)
    assert judged(peaked, DType.bf16, approximate()).worst_budget == pytest.approx(0.05 * 60)
    steep = approximate(max_slope=0.01)
    assert judged(even(0), DType.bf16, steep).slope_budget == pytest.approx(0.01)
    base = even(1e-3)
    assert judged(even(0), DType.bf16, approximate(), base).rel_budget == 0.05  # its own, alone


def test_promises_by_trial_and_distribution() -> None:
    who = approximate(promises={"outliers": 0.7, "small": 0.02, "large": "saturates"})
    whole = [0.7, INF, INF, INF, 0.7]
    assert budgets(judged(even(0), DType.bf16, who, inputs="outliers")) == pytest.approx(whole)
    assert judged(even(0), DType.bf16, who, inputs="small").rel_budget == 0.02
    assert judged(even(0), DType.bf16, who, inputs="small").row_budget == pytest.approx(0.06)
    assert judged(even(0), DType.bf16, who, inputs="normal").rel_budget == 0.05
    assert judged(even(0), DType.bf16, who, inputs="large").rel_budget == 0.05  # not asked there


def test_of_few_elements_a_baseline_may_be_right_by_chance() -> None:
    lucky, unlucky = even(1e-5), even(5e-3)
    assert not judged(unlucky, DType.bf16, base=lucky).ok
    for count, most in ((1, 1e-2), (16, 6e-3), (400, 2.8e-3)):
        few = replace(unlucky, count=count)
        assert judged(few, DType.bf16, base=lucky).rel_budget == pytest.approx(most)


def test_a_baseline_may_lose_a_part_that_is_below_the_rounding_of_the_rest() -> None:
    """As eager PyTorch the attention of one sample whose c_out is 0.002; not all of it."""
    wider = dict.fromkeys(("scale", "row_scale", "column_scale", "peak"), 480.0)
    faint = replace(even(1.1), part=0.0021, **wider)
    base = replace(faint, slopes=(Slope(-0.18, 0, 0),))
    assert judged(base, DType.bf16, base=base).ok
    zero = replace(faint, slopes=(Slope(-1.0, 0, 0),))
    assert not judged(zero, DType.bf16, base=base).ok
    lucky = replace(faint, rel=0.1, slopes=(Slope(1e-4, 0, 0),))
    other = replace(lucky, slopes=(Slope(6e-4, 0, 0),))  # the same, rounded in another order
    assert judged(other, DType.bf16, base=lucky).ok
    assert not judged(replace(lucky, slopes=(Slope(4e-3),)), DType.bf16, base=lucky).ok
    wide = replace(even(2e-3), slopes=(Slope(-0.18, 0, 0),))
    assert not judged(wide, DType.bf16, base=wide).ok  # where all of it is computed
    # Without a baseline: as much as a rounding may lose, where that is more than the ceiling.
    assert judged(base, DType.bf16).slope_budget == pytest.approx((2e-3 * 480) ** 2 / 4)
    assert not judged(zero, DType.bf16).ok
    plainer = replace(base, scale=33.0)
    assert judged(plainer, DType.bf16).slope_budget == CEILING[DType.bf16]


def test_the_slope_nearest_to_its_budget_is_told() -> None:
    found = replace(even(0), slopes=(Slope(1e-3, 1e-3), Slope(-4e-4, 0.0)))
    error = judged(found, DType.bf16, base=replace(even(0), slopes=(Slope(), Slope())))
    assert (error.slope, error.slope_budget) == (-4e-4, SLOPE_FLOOR[DType.bf16])
    assert not error.ok


def test_a_coefficient_near_1_may_be_lost_in_one_rounding() -> None:
    """As dx = c_skip(t)·dy of few samples of many rows. The baseline rounds the coefficient, too,
    and is right by chance at the first two."""
    alarms = {1.0: 0, 1.01: 0}
    draws = (357, 715, *range(150))
    for seed in draws:
        generator = torch.Generator().manual_seed(seed)
        t = 3 * torch.rand(4, 1, 1, dtype=torch.float64, generator=generator)
        dy = torch.randn(4, 64, 64, generator=generator).bfloat16()
        c_skip = 1 / (1 + t.square())
        ref = c_skip * dy.double()
        base = deviation((c_skip.bfloat16() * dy), ref)
        for scale in alarms:
            out = (scale * c_skip.float() * dy.float()).bfloat16()
            alarms[scale] += not judged(deviation(out, ref), DType.bf16, base=base).ok
    assert alarms[1.0] == 0
    assert alarms[1.01] == len(draws)


SIZES = [(1, 1), (1, 17), (3, 257), (40, 96), pytest.param((512, 512), marks=pytest.mark.slow)]


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("dtype", [DType.bf16, DType.fp16])
def test_honest_rounding_passes_and_a_scale_of_1003_does_not(
    shape: tuple[int, int], dtype: DType
) -> None:
    """Rounded once beside a baseline that rounds three times, and the other way round."""
    kind = TORCH[dtype]
    for seed in range(10 if shape[0] < 512 else 3):
        ref, other = noise(*shape, seed=seed), noise(*shape, seed=seed + 100)
        ref = ref * other
        once = ref.to(kind)
        factor = other.to(kind)
        thrice = ((ref / factor.double()).to(kind) * factor).to(kind)
        found, base = deviation(once, ref), deviation(thrice, ref)
        assert judged(found, dtype, base=base).ok, seed
        assert judged(base, dtype, base=found).ok, seed
        assert judged(base, dtype, base=base).ok, seed
        if ref.numel() > 500:  # of fewer, three roundings can do the same
            scaled = deviation((ref * 1.003).to(kind), ref)
            assert not judged(scaled, dtype, base=found).ok, seed
            assert ref.numel() < 2000 or not judged(scaled, dtype, base=base).ok, seed


@pytest.mark.parametrize("who", [EXACT, approximate()])
def test_rows_of_zeros_and_one_element_far_off(who: Provider[Any]) -> None:
    ref = noise(1000, 256)
    base = deviation(ref.bfloat16(), ref)
    assert judged(base, DType.bf16, who, base).ok
    rows, element = ref.bfloat16(), ref.bfloat16()
    rows[[100, 731]] = 0
    element[500, 5] += 40
    for bad, what in ((rows, "worst row"), (element, "worst element")):
        error = judged(deviation(bad, ref), DType.bf16, who, base)
        over = [name for name, value, budget in error.figures if not value <= budget]
        assert what in over
        assert error.rel < 0.1


@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        pytest.param(64, 4096, marks=pytest.mark.slow),
        pytest.param(64, 1024, marks=pytest.mark.slow),
        (3, 257),
    ],
)
def test_an_honest_kernel_that_rounds_twice_passes_whatever_is_drawn(
    rows: int, columns: int
) -> None:
    """PyTorch's softmax backward in bf16 keeps y rounded; the baseline keeps it in fp32."""

    def softmax(x: torch.Tensor) -> torch.Tensor:
        e = (x.float() - x.float().amax(-1, keepdim=True)).exp()
        return (e / e.sum(-1, keepdim=True)).to(x.dtype)

    used: dict[str, float] = {}
    for seed in range(60):
        draw = torch.Generator().manual_seed(seed)
        x, dy = (torch.randn(rows, columns, generator=draw).bfloat16() for _ in range(2))
        y = x.double().softmax(-1)
        ref = y * (dy.double() - (y * dy.double()).sum(-1, keepdim=True))
        found = []
        for function in (softmax, lambda x: x.softmax(-1)):
            leaf = x.clone().requires_grad_()
            (dx,) = torch.autograd.grad(function(leaf), leaf, dy)
            sums = Sums(dx)
            sums.add((slice(None), slice(None)), dx, ref)
            found.append({"dx": sums.deviation()})
        (error,) = judge(found[1], found[0], DType.bf16, EXACT)
        for name, value, budget in error.figures:
            used[name] = max(used.get(name, 0.0), value / budget)
    assert max(used.values()) < 0.95, used
