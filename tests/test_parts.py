"""A family whose parts are wrong: the record names the part, what it gave and what was expected."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import toy as toys
from toy import CASE, ToyCase, provider, right, run, toy

from kernelbench.measure.inputs import CaseInputs, Draw
from kernelbench.measure.parts import (
    PartError,
    cost_of,
    elements_at,
    inputs_of,
    names_of,
    pieces_of,
)
from kernelbench.spec import Cost, Mode, Status, Tensors

BWD = replace(CASE, mode=Mode.bwd)
FIRST = (slice(None), 0, 0)


def reason(case: ToyCase = CASE, **parts: Any) -> str:
    """What the records of all providers of a family with such parts say."""
    found = run(toy(provider("fine", right), **parts), case, timing=False)
    assert {record.status for record in found.values()} == {Status.failed}
    [said] = {record.reason for record in found.values()}
    return said


def refused(case: ToyCase = CASE, **parts: Any) -> str:
    """What is said of such parts when they are called one after another, as a job does."""
    family, y = toy(**parts), torch.zeros(CASE.R, CASE.N)
    with pytest.raises(PartError) as caught:
        cost_of(family, case)
        inputs = inputs_of(family, case, Draw(case, "cpu", 0))
        for name, index, *_ in pieces_of(family, case, inputs):
            elements_at(family, name, y, index)
    return str(caught.value)


def drawn(**more: Any) -> Any:
    return lambda case, draw: {**toys.inputs(case, draw), **more}


def without(name: str) -> Any:
    def inputs(case: ToyCase, draw: Any) -> Tensors:
        return {n: t for n, t in toys.inputs(case, draw).items() if n != name}

    return inputs


def one(*piece: Any) -> Any:
    return lambda case, a: [piece]


X = torch.zeros(CASE.R, CASE.N)
WIDE = torch.zeros(CASE.R, CASE.N, dtype=torch.float64)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"cost": lambda case: 3}, "cost returned int 3, expected a Cost(flops, read, write)"),
        ({"cost": lambda case: None}, "cost returned None, expected a Cost(flops, read, write)"),
        (
            {"cost": lambda case: Cost(1, 1.5, 1)},
            "cost says read=float 1.5, expected a whole number ≥ 0: divide with //",
        ),
        ({"cost": lambda case: Cost(-1, 1, 1)}, "cost says flops=int -1, expected a whole"),
        ({"inputs": lambda case, draw: draw(3)}, "inputs returned torch.float32 of shape (3,), "
         "expected a dict of tensors by name"),
        ({"inputs": lambda case, draw: {}}, "inputs returned a dict of 0, expected a dict"),
        ({"inputs": drawn(x=[1, 2])}, "inputs gives a list of 2 for 'x', expected a torch.Tensor"),
        ({"inputs": lambda case, draw: {3: draw(2)}}, "inputs names a tensor int 3, expected"),
        ({"inputs": drawn(x=X.to_sparse())}, "inputs gives torch.sparse_coo for 'x', expected a "
         "dense (strided) tensor"),
        ({"inputs": drawn(x=X.to("meta"))}, "inputs gives 'x' on meta, expected cpu: draw it with"),
        ({"outputs": lambda case: ("y")}, "outputs returned str 'y', expected a tuple of names, "
         'such as ("x",)'),
        ({"outputs": lambda case: ()}, "outputs returned no name, expected what a call returns"),
        ({"outputs": lambda case: ("y", "y")}, "outputs returned ('y', 'y'), expected each name"),
        ({"grads": lambda case: ["x"]}, "grads returned a list of 1, expected a tuple of names"),
        ({"oracle": lambda case, a: None}, "oracle returned None, expected that it yields (name"),
        ({"oracle": one("y", ..., X)}, "oracle yields torch.float32 for 'y', expected "
         "torch.float64: compute with .double()"),
        ({"oracle": lambda case, a: ("y", ..., WIDE)}, "oracle yields str 'y', expected (name, "),
        ({"oracle": one("y", WIDE)}, "oracle yields a tuple of 2, expected (name, index, fp64"),
        ({"oracle": one("z", ..., WIDE)}, "oracle yields str 'z', expected one of y, m, dx, dw"),
        ({"oracle": one("y", "all", WIDE)}, "oracle yields 'y' at str 'all', expected an index of"),
        ({"oracle": one("y", FIRST, WIDE)}, "oracle yields 'y' at a tuple of 3, expected an index "
         "of its shape (7, 64) (too many indices"),
        ({"oracle": one("y", ..., 3.0)}, "oracle yields float 3.0 for 'y', expected an fp64"),
        ({"oracle": one("y", ..., WIDE.to("meta"))}, "oracle yields 'y' on meta, expected cpu"),
        ({"oracle": one("y", ..., WIDE, WIDE[0])}, "oracle yields a part of shape (64,) for 'y', "
         "expected (7, 64), as its values have"),
        ({"oracle": one("y", ..., WIDE, X)}, "oracle yields torch.float32 for 'y', expected"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)  # fmt: skip
def test_a_bad_part_is_named_with_what_was_expected(parts: Any, said: str) -> None:
    assert refused(**parts).startswith(f"toy: {said}")


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (without("w"), "inputs gives no 'w' but x, grad_y, expected every input that `grads` names:"
         " x, w"),
        (without("grad_y"), "inputs gives x, w, expected an upstream gradient in mode bwd and full:"
         " grad_y or grad_m"),
        (drawn(w=torch.zeros(CASE.N).int()), "inputs gives torch.int32 for 'w', expected a "
         "floating one, since `grads` names it"),
    ],
)  # fmt: skip
def test_what_a_backward_needs_is_asked_for_where_there_is_one(inputs: Any, said: str) -> None:
    assert refused(BWD, inputs=inputs).startswith(f"toy: {said}")


def three(case: ToyCase) -> Any:
    return 3


def test_the_records_of_all_providers_say_so() -> None:
    said = "PartError: toy: cost returned int 3, expected a Cost(flops, read, write)"
    line = three.__code__.co_firstlineno
    assert reason(cost=three) == f"{said} (tests/test_parts.py:{line})"
    assert "oracle yields torch.float32 for 'y'" in reason(oracle=one("y", ..., X))
    assert "too many indices" in reason(oracle=one("y", FIRST, WIDE))


def raises(*_: Any) -> Any:
    return {}["N"]


def raises_late(case: ToyCase, a: Tensors) -> Iterator[Any]:
    yield "y", ..., a["x"].double() * a["w"].double()
    raise LookupError("no more")


@pytest.mark.parametrize("part", ["cost", "inputs", "outputs", "grads", "oracle"])
def test_a_part_that_raises_is_named_by_its_line(part: str) -> None:
    line = raises.__code__.co_firstlineno + 1
    assert reason(**{part: raises}) == (
        f"PartError: toy: {part} raised KeyError: 'N' (tests/test_parts.py:{line}: "
        'return {}["N"])'
    )


def test_an_oracle_may_raise_late_and_long() -> None:
    assert re.search(
        r"toy: oracle raised LookupError: no more \(tests/test_parts\.py:\d+\)$",
        reason(oracle=raises_late),
    )

    def long(case: ToyCase) -> Cost:
        raise ValueError("x" * 500)

    said = reason(cost=long)
    assert len(said) == 200 and re.search(r"xxx… \(tests/test_parts\.py:\d+\)$", said)


def test_the_record_has_the_way_to_where_a_part_raised() -> None:
    found = run(toy(inputs=raises), timing=False)["eager"]
    assert "in raises" in found.detail and "KeyError: 'N'" in found.detail


def test_memory_that_does_not_suffice_is_no_fault_of_a_part() -> None:
    def hungry(case: ToyCase, draw: Any) -> Tensors:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert run(toy(inputs=hungry), timing=False)["eager"].status is Status.oom


def test_fresh_inputs_are_held_to_the_same() -> None:
    calls: list[int] = []

    def once(case: ToyCase, draw: Any) -> Tensors:
        calls.append(1)
        return toys.inputs(case, draw) if len(calls) == 1 else {"x": 3}

    inputs = CaseInputs(toy(inputs=once), CASE, "cpu", 0)
    with pytest.raises(PartError, match="inputs gives int 3 for 'x'"):
        inputs.redraw(1)


@pytest.mark.parametrize("mode", list(Mode))
def test_good_parts_pass_as_they_are(mode: Mode) -> None:
    family, case = toy(), replace(CASE, mode=mode)
    assert cost_of(family, case) == Cost(1, 1, 1)
    assert names_of(family, case) == (("y", "m"), ("x", "w"))
    inputs = inputs_of(family, case, Draw(case, "cpu", 0))
    assert [*inputs] == ["x", "w", "grad_y"][: 2 if mode is Mode.fwd else 3]
    pieces = [*pieces_of(family, case, inputs)]
    assert [piece[0] for piece in pieces] == ["y", "m", "dx", "dw"][: 2 if mode is Mode.fwd else 4]
    parts = (WIDE, WIDE + 1)
    more = toy(oracle=one("y", ..., WIDE, *parts))
    assert [piece[3:] for piece in pieces_of(more, case, inputs)] == [parts]


def test_a_gradient_that_nobody_asks_for_is_ignored() -> None:
    family = toy(grads=lambda case: ("x",))
    assert run(family, BWD, timing=False)["eager"].status is Status.ok
