"""What is untimed: `prepare` lays out and computes nothing, a call has a mapping of its own, and no
gradient comes down before the forward is through.
"""

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from toy import CASE, Script, inputs, provider, right, run, toy

from kernelbench.measure.inputs import CaseInputs
from kernelbench.measure.layout import REMEDY, describe_layout, layout_fault
from kernelbench.measure.workload import Workload
from kernelbench.spec import DType, Mode, RunRecord, Status, Tensors

MODES = pytest.mark.parametrize("mode", [Mode.fwd, Mode.bwd, Mode.full])
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def some(dtype: torch.dtype) -> Tensors:
    generator = torch.Generator().manual_seed(0)
    found = {name: torch.randn(6, 800, generator=generator).to(dtype) for name in ("a", "b")}
    return found | {"order": torch.tensor([3, 1, 0, 2, 5, 4])}


LAYOUTS: dict[str, Callable[[Tensors], Any]] = {
    "as it is": lambda i: i,
    "transpose": lambda i: {"a": i["a"].mT},
    "transposed copy": lambda i: {"a": i["a"].mT.contiguous()},
    "copy": lambda i: {name: tensor.clone() for name, tensor in i.items()},
    "padded": lambda i: {"a": torch.nn.functional.pad(i["a"], (0, 3, 1, 0))},
    "expanded": lambda i: {"a": i["a"][:, :1].expand(6, 800)},
    "packed": lambda i: {"both": torch.cat([i["a"], i["b"]], 1)},
    "stacked": lambda i: {"both": torch.stack([i["a"], i["b"]])},
    "interleaved": lambda i: {"a": i["a"].view(6, 2, 400).transpose(1, 2).reshape(6, 800)},
    "split": lambda i: dict(zip("xy", i["a"].chunk(2, 1), strict=True)),
    "gathered": lambda i: {"a": i["a"][i["order"]]},
    "gathered by what follows from it": lambda i: {"a": i["a"][i["order"].argsort()]},
    "an index": lambda i: {"order": i["order"].argsort(), "a": i["a"]},
    "bits": lambda i: {"a": i["a"].view(torch.uint8).view(i["a"].dtype)},
    "fewer": lambda i: {"b": i["b"]},
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_moves_values_is_a_layout(name: str, dtype: torch.dtype) -> None:
    assert layout_fault(LAYOUTS[name], some(dtype)) == ""


def quantised(a: torch.Tensor) -> Tensors:
    step = a.float().abs().amax(-1, keepdim=True) / 127
    return {"a": (a.float() / step).round().to(torch.int8), "step": step}


ARITHMETIC: dict[str, Callable[[Tensors], Any]] = {
    "scaled": lambda i: {"a": i["a"] * 2},
    "scaled by little": lambda i: {"a": i["a"] * 1.25},
    "negated": lambda i: {"a": -i["a"]},
    "without signs": lambda i: {"a": i["a"].abs()},
    "cast": lambda i: {"a": i["a"].to(torch.float8_e4m3fn)},
    "cast wide": lambda i: {"a": i["a"].double()},
    "cast and back": lambda i: {"a": i["a"].to(torch.float8_e4m3fn).to(i["a"].dtype)},
    "sorted": lambda i: {"a": i["a"].sort(-1).values},
    "ordered by size": lambda i: {"a": i["a"][i["a"][:, 0].argsort()]},
    "summed": lambda i: {"a": i["a"] + i["b"]},
    "sum of a row": lambda i: {"a": i["a"], "sum": i["a"].sum(-1)},
    "product": lambda i: {"y": i["a"] @ i["b"].mT},
    "quantised": lambda i: quantised(i["a"]),
    "largest": lambda i: {"a": i["a"].amax(-1)},
    "nan to nothing": lambda i: {"a": i["a"].nan_to_num(0.5)},
    "clamped": lambda i: {"a": i["a"].clamp(-1, 1)},
    "mask": lambda i: {"a": i["a"], "mask": i["a"] > 0},
    "only what is large": lambda i: {"a": torch.where(i["a"].abs() > 1, i["a"], 0.0)},
    "zero where NaN": lambda i: {"a": torch.where(i["a"].isnan(), 0.0, i["a"] * 1)},
    "scaled unless NaN": lambda i: {"a": i["a"] * (1 if i["a"].isnan().any() else 2)},
    "square roots": lambda i: {"a": i["a"].abs().sqrt()},
    "ones are not there": lambda i: {"a": i["a"] + 1},
    "mean": lambda i: {"a": i["a"], "mean": i["a"].float().mean()},
}


@pytest.mark.parametrize("name", ARITHMETIC)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_computes_is_none(name: str, dtype: torch.dtype) -> None:
    said = layout_fault(ARITHMETIC[name], some(dtype))
    assert said.startswith("prepare computes '")
    assert said.endswith(REMEDY)


def record(prepare: Any, call: Any = right, mode: Mode = Mode.fwd, **more: Any) -> RunRecord:
    family = toy(provider("p", call, prepare=lambda case, a: prepare(a), **more))
    return run(family, replace(CASE, mode=mode), clock=Script(), timing=False)["p"]


def answers(a: Tensors) -> Tensors:
    return {**a, "y": a["x"] * a["w"]}


def test_who_computes_in_prepare_is_incorrect_unless_it_says_so() -> None:
    def call(a: Tensors) -> Any:
        return a["y"].clone(), a["x"].amax(-1)

    hidden = record(answers, call)
    assert hidden.status is Status.incorrect
    assert hidden.reason == f"prepare computes 'y', which is no layout of the inputs: {REMEDY}"
    told = record(answers, call, prepacked=True)
    assert (told.status, told.prepacked) == (Status.ok, True)
    assert [(p.name, p.shape, p.dtype) for p in told.prepared] == [
        ("x", (7, 64), "float32"),
        ("w", (64,), "float32"),
        ("y", (7, 64), "float32"),
    ]
    assert told.prepared[2].bytes == 7 * 64 * 4


def test_what_is_prepared_is_recorded_by_who_prepares() -> None:
    assert record(lambda a: a).prepared == ()
    assert record(lambda a: {**a}).prepared != ()
    [shown, *_] = describe_layout({"v": torch.ones(2, 1).expand(2, 9)}, {})
    assert (shown.shape, shown.bytes) == ((2, 9), 8)


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda a: [*a.values()], "prepare returned list, expected names to tensors"),
        (lambda a: {**a, "n": 3}, "prepare returned int as 'n', expected a torch.Tensor"),
        (lambda a: {"x": torch.nn.Parameter(a["x"])}, "prepare returned Parameter as 'x'"),
    ],
)
def test_prepare_returns_plain_tensors_by_name(prepare: Any, said: str) -> None:
    found = record(prepare)
    assert found.status is Status.failed
    assert said in found.reason


# A call's own mapping.


@MODES
def test_what_a_call_binds_is_gone_with_it(mode: Mode) -> None:
    conversions: list[int] = []

    def call(a: Tensors) -> Any:
        if a["w"].dtype is torch.float32:  # else it was converted by an earlier call
            conversions.append(1)
            a["w"] = a["w"].double()
        a["extra"] = a["x"]
        del a["extra"]
        return (a["x"] * a["w"]).to(a["x"].dtype), a["x"].detach().amax(-1)

    calls: list[frozenset[str]] = []

    def counts(a: Tensors) -> Any:
        calls.append(frozenset(a))
        return call(a)

    family = toy(provider("p", counts))
    assert run(family, replace(CASE, mode=mode), clock=Script())["p"].status is Status.ok
    assert len(conversions) == len(calls) > 3
    assert set(calls) == {frozenset(("x", "w"))}


@MODES
def test_a_mapping_that_is_kept_is_no_later_calls(mode: Mode) -> None:
    kept: list[Tensors] = []

    def call(a: Tensors) -> Any:
        assert all(each is not a for each in kept)
        kept.append(a)
        for each in kept[:-1]:
            each["w"] = torch.full_like(each["w"], 7.0)
        return right(a)

    family = toy(provider("p", call))
    found = run(family, replace(CASE, mode=mode), clock=Script())["p"]
    assert found.status is Status.ok, found.reason


# Upstream gradients.


@MODES
def test_neither_forward_nor_prepare_is_handed_a_gradient(mode: Mode) -> None:
    handed: set[str] = set()

    def prepare(a: Tensors) -> Tensors:
        handed.update(a)
        return a

    def call(a: Tensors) -> Any:
        handed.update(a)
        return right(a)

    family = toy(provider("p", call, prepare=lambda case, a: prepare(a)))
    assert run(family, replace(CASE, mode=mode), clock=Script())["p"].status is Status.ok
    assert handed == {"x", "w"}


def test_gradients_are_not_in_memory_while_the_forward_runs() -> None:
    case = replace(CASE, mode=Mode.bwd, R=5, N=48)
    family = toy()
    drawn = CaseInputs(family, case, "cpu", seed=1)
    values = drawn.upstream()["grad_y"].flatten()[:3].tolist()
    seen: list[int] = []

    def alive() -> int:
        gc.collect()
        tensors = [each for each in gc.get_objects() if type(each) is torch.Tensor]
        return sum(
            tensor.numel() == case.R * case.N
            and tensor.dtype is torch.float32
            and tensor.flatten()[:3].tolist() == values
            for tensor in tensors
        )

    def call(a: Tensors) -> Any:
        seen.append(alive())
        return right(a)

    made = Workload(family, case, provider("p", call), drawn, None)
    for _ in range(3):
        made.ready()
        with made.grad_mode():
            made.call()
        assert made.all_tensors()["grad_y"].flatten()[:3].tolist() == values
    assert seen == [0, 0, 0]
    assert alive() >= 1  # what is looked for is found where it is


def test_who_waits_for_gradients_in_its_forward_finds_none() -> None:
    """It looks for tensors like y among all that are alive, and would compute dx in the forward."""
    found: list[int] = []

    def call(a: Tensors) -> Any:
        known = {id(tensor) for tensor in a.values()}
        alike = [
            each
            for each in gc.get_objects()
            if type(each) is torch.Tensor
            and id(each) not in known
            and each.shape == a["x"].shape
            and (each.dtype, each.device) == (a["x"].dtype, a["x"].device)
            and each.layout is torch.strided
            and not torch._is_zerotensor(each)
            and each.requires_grad is False
        ]
        gradient = CaseInputs(family, case, "cpu", seed=3).upstream()["grad_y"]
        found.append(sum(torch.equal(each, gradient) for each in alike))
        return right(a)

    case = replace(CASE, mode=Mode.bwd, dtype=DType.fp32)
    family = toy(provider("p", call))
    run(family, case, clock=Script(), timing=False)
    assert found
    assert set(found) == {0}


def test_a_gradient_is_drawn_as_it_always_was() -> None:
    case = replace(CASE, mode=Mode.bwd)
    drawn = CaseInputs(toy(), case, "cpu", seed=1)
    assert set(drawn.tensors) == {"x", "w"}
    first, again = drawn.upstream()["grad_y"], drawn.upstream()["grad_y"]
    assert torch.equal(first, again)
    assert first.data_ptr() != again.data_ptr()
    assert torch.equal(drawn.with_upstream()["grad_y"], first)
    drawn.redraw(2)
    assert not torch.equal(drawn.upstream()["grad_y"], first)
    assert CaseInputs(toy(inputs=inputs), CASE, "cpu", seed=1).upstream() == {}
