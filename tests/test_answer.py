"""What a call may return: plain tensors that are finished and stay as they are. In every mode."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from toy import BASELINE, CASE, Script, provider, right, run, toy

from kernelbench.spec import DType, Mode, Role, RunRecord, Status, Tensors

MODES = pytest.mark.parametrize("mode", [Mode.fwd, Mode.bwd, Mode.full])  # jvp is called as fwd
BF16 = replace(CASE, dtype=DType.bf16)


def record(call: Callable[[Tensors], Any], mode: Mode = Mode.fwd, **more: Any) -> RunRecord:
    case = replace(more.pop("case", CASE), mode=mode)
    options = {key: more.pop(key) for key in ("outputs", "oracle", "dtypes") if key in more}
    baseline = more.pop("baseline", BASELINE)
    family = toy(provider("p", call, **more), baseline=baseline, **options)
    return run(family, case, clock=Script(), timing=False)["p"]


def incorrect(found: RunRecord, said: str) -> None:
    assert found.status is Status.incorrect, (found.status, found.reason)
    assert said in found.reason


class Sub(torch.Tensor):
    """A tensor that could compute when it is looked at."""


class Lazy(tuple):  # type: ignore[type-arg]
    """Two outputs that are computed when they are looked at."""

    inputs: Tensors

    def __iter__(self) -> Any:
        return iter(right(self.inputs))

    def __getitem__(self, i: Any) -> Any:
        return right(self.inputs)[i]


def of_y(change: Callable[[torch.Tensor], Any]) -> Callable[[Tensors], Any]:
    def call(a: Tensors) -> Any:
        y, m = right(a)
        return change(y), m

    return call


def of_m(change: Callable[[torch.Tensor], Any]) -> Callable[[Tensors], Any]:
    def call(a: Tensors) -> Any:
        y, m = right(a)
        return y, change(m)

    return call


KINDS = {
    "fp64": (torch.Tensor.double, "returned float64 for {}, the case asks for float32"),
    "fp16": (torch.Tensor.half, "returned float16 for {}, the case asks for float32"),
    "complex": (lambda y: y + 0j, "returned complex64 for {}"),
    "conj": (lambda y: (y + 0j).conj(), "unfinished (its conjugation"),
    "neg": (lambda y: torch._neg_view(-y), "unfinished (its negation"),
    "zero": (lambda y: torch._efficientzerotensor(y.shape), "unfinished (it has no memory"),
    "sparse": (torch.Tensor.to_sparse, "as torch.sparse_coo, expected a strided tensor"),
    "subclass": (lambda y: y.as_subclass(Sub), "returned Sub as {}, expected exactly torch.Tensor"),
    "parameter": (lambda y: torch.nn.Parameter(y.detach()), "returned Parameter as {}"),
    "meta": (lambda y: y.to("meta"), "returned {} on meta, the inputs are on cpu"),
    "none": (lambda y: None, "returned NoneType as {}"),
    "shape": (lambda y: y[..., :-1], "{} has shape "),
    "more": (lambda y: y[None], "{} has shape (1, "),
    "flat": (lambda y: y.reshape(-1, 1), "{} has shape "),
}


@MODES
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("output", "of"), [("y", of_y), pytest.param("m", of_m, marks=pytest.mark.slow)]
)
def test_an_output_is_a_finished_plain_tensor_of_the_right_form(
    mode: Mode, kind: str, output: str, of: Any
) -> None:
    change, said = KINDS[kind]
    found = record(of(change), mode)
    if mode is Mode.bwd and kind in ("shape", "more", "flat"):
        return  # the shapes of gradients are judged there; autograd holds those of outputs
    incorrect(found, said.format(output))
    assert found.timing is None


@MODES
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.float16])
def test_bf16_is_asked_for_and_bf16_must_come(mode: Mode, kind: torch.dtype) -> None:
    found = record(of_y(lambda y: y.to(kind)), mode, case=BF16)
    name = str(kind).removeprefix("torch.")
    incorrect(found, f"returned {name} for y, the case asks for bfloat16")
    assert record(right, mode, case=BF16).status is Status.ok


@MODES
@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda a: right(a)[0], "returns 1 outputs, expected y, m"),
        (lambda a: right(a)[:1], "returns 1 outputs, expected y, m"),
        (lambda a: (*right(a), right(a)[1]), "returns 3 outputs, expected y, m"),
        (lambda a: (), "returns 0 outputs"),
        (lambda a: [*right(a)], "returned list, expected a torch.Tensor or a tuple of them"),
        (lambda a: dict(zip("ym", right(a), strict=True)), "returned dict"),
        (lambda a: None, "returned NoneType"),
        (lambda a: iter(right(a)), "returned tuple_iterator"),
    ],
)
def test_what_comes_is_one_tensor_or_a_tuple_of_them(mode: Mode, call: Any, said: str) -> None:
    incorrect(record(call, mode), said)


@MODES
def test_a_tuple_that_computes_as_it_is_looked_through_is_none(mode: Mode) -> None:
    def lazy(a: Tensors) -> Any:
        y, m = right(a)
        found = Lazy((y * 2, m))
        found.inputs = a
        return found

    class Named(NamedTuple):
        y: torch.Tensor
        m: torch.Tensor

    incorrect(record(lazy, mode), "returned Lazy, expected a torch.Tensor or a tuple of them")
    assert record(lambda a: Named(*right(a)), mode).status is Status.ok


def test_methods_that_an_output_brings_along_are_not_run() -> None:
    ran: list[str] = []

    def call(a: Tensors) -> Any:
        y, m = right(a)
        true = y.clone()
        y.mul_(2)  # what it holds is wrong
        for name in ("clone", "detach", "to", "double", "__getitem__", "contiguous"):
            setattr(y, name, lambda *args, name=name, **kw: ran.append(name) or true)
        return y, m

    incorrect(record(call), "y: error 1 ")
    assert ran == []


def with_index(change: Any, **more: Any) -> RunRecord:
    """m is where the largest of a row lies."""

    def oracle(case: Any, a: Tensors) -> Any:
        x, w = a["x"].double(), a["w"].double()
        yield "y", ..., x * w
        yield "m", ..., x.argmax(-1).double()

    def index(a: Tensors) -> Any:
        return a["x"] * a["w"], a["x"].argmax(-1)

    def call(a: Tensors) -> Any:
        y, m = index(a)
        return y, change(m)

    baseline = provider("eager", index, Role.baseline)
    return record(call, baseline=baseline, oracle=oracle, **more)


def test_whole_numbers_are_whole_numbers() -> None:
    def int32(case: Any) -> dict[str, str]:
        return {"m": "int32"}

    same = with_index(lambda m: m)
    assert same.status is Status.ok, same.reason
    incorrect(with_index(lambda m: m + 1), "m: error")
    incorrect(with_index(torch.Tensor.int), "returned int32 for m, the case asks for int64")
    incorrect(with_index(torch.Tensor.float), "returned float32 for m")
    incorrect(
        with_index(torch.Tensor.long, dtypes=int32), "returned int64 for m, the family asks for"
    )
    assert with_index(torch.Tensor.int, dtypes=int32).status is Status.ok


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_a_family_may_ask_for_another_dtype(kind: str) -> None:
    def call(a: Tensors) -> Any:
        y, m = right(a)
        return y, m.float()

    baseline = provider("eager", call, Role.baseline)
    found = record(call, case=BF16, baseline=baseline, dtypes=lambda case: {"m": kind})
    if kind == "float32":
        assert found.status is Status.ok, found.reason
    else:
        incorrect(found, "returned float32 for m, the family asks for bfloat16")


# What a provider keeps.


def ring(size: int, mode: str = "copy") -> Callable[[Tensors], Any]:
    """Answers into `size` buffers of its own in turn."""
    buffers: list[torch.Tensor] = []
    calls = 0

    def call(a: Tensors) -> Any:
        nonlocal calls
        if not buffers:
            buffers.extend(torch.empty_like(a["x"]).detach() for _ in range(size))
        out = buffers[calls % size]
        calls += 1
        with torch.no_grad():
            torch.mul(a["x"], a["w"], out=out)
        return (out if mode == "copy" else out.view(out.shape)), a["x"].detach().amax(-1)

    return call


@pytest.mark.parametrize("size", [1, 2, 5, 40])
@pytest.mark.parametrize("how", ["copy", "view"])
def test_an_answer_that_a_later_call_overwrites_is_none(size: int, how: str) -> None:
    incorrect(record(ring(size, how)), "a later call changed y of an earlier one")


class Buffered(torch.autograd.Function):
    """Its gradient of x lies in a buffer that it keeps."""

    kept: torch.Tensor | None = None

    @staticmethod
    def forward(ctx: Any, x: Any, w: Any) -> Any:
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        x, w = ctx.saved_tensors
        if Buffered.kept is None:
            Buffered.kept = torch.empty_like(dy)
        torch.mul(dy, w, out=Buffered.kept)
        return Buffered.kept, (dy * x).sum(0)


@pytest.mark.parametrize("mode", [Mode.bwd, Mode.full])
def test_nor_is_a_gradient(mode: Mode) -> None:
    Buffered.kept = None

    def call(a: Tensors) -> Any:
        return Buffered.apply(a["x"], a["w"]), a["x"].detach().amax(-1)

    incorrect(record(call, mode), "a later call changed dx of an earlier one")


@MODES
def test_views_of_one_allocation_of_the_call_are_fine(mode: Mode) -> None:
    def call(a: Tensors) -> Any:
        both = torch.cat([(a["x"] * a["w"]).flatten(), a["x"].detach().amax(-1)])
        return both[: a["x"].numel()].view_as(a["x"]), both[a["x"].numel() :].detach()

    found = record(call, mode)
    assert found.status is Status.ok, found.reason


def test_what_lies_in_an_input_that_may_be_overwritten_is_fine() -> None:
    def call(a: Tensors) -> Any:
        m = a["x"].amax(-1)
        return a["x"].mul_(a["w"]), m

    assert record(call, mutates=lambda case: ("x",)).status is Status.ok
    incorrect(record(call), "changed its input x")


def test_who_keeps_what_it_returned_and_never_writes_it_is_fine() -> None:
    kept: list[Any] = []

    def call(a: Tensors) -> Any:
        kept.append(right(a))
        return kept[-1]

    found = record(call)
    assert found.status is Status.ok, found.reason


def test_other_strides_are_flagged() -> None:
    def call(a: Tensors) -> Any:
        y, m = right(a)
        return y.mT.contiguous().mT, m

    found = record(call)
    assert (found.status, found.flags) == (Status.ok, ("strides-of-y",))
    assert record(right).flags == ()


def test_nan_is_left_where_answers_lay() -> None:
    seen: list[torch.Tensor] = []

    def call(a: Tensors) -> Any:
        found = right(a)
        seen.extend(found)
        return found

    record(call)
    assert all(math.isnan(float(tensor.flatten()[0])) for tensor in seen[:2])
