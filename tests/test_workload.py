"""Inputs, and what a workload does around the timed call."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from toy import CASE, ToyCase, provider, right, toy

from kernelbench.kernels import interpreter
from kernelbench.measure import environment
from kernelbench.measure.inputs import CaseInputs, Draw, copy_into
from kernelbench.measure.workload import Workload, why_not
from kernelbench.spec import Device, Distribution, DType, Mode
from kernelbench.verbs import doctor

CPU = Device(kind="cpu", name="cpu")


def workload(case: ToyCase = CASE, call: Any = right, **more: Any) -> Workload:
    family = toy(provider("p", call, **more))
    inputs = CaseInputs(family, case, "cpu", seed=1)
    made = Workload(family, case, family.provider("p"), inputs, None)
    made.ready()
    return made


def draw(kind: Distribution, seed: int = 0, dtype: DType = DType.fp32) -> torch.Tensor:
    return Draw(replace(CASE, inputs=kind, dtype=dtype), "cpu", seed)(64, 1024)


@pytest.mark.parametrize("kind", list(Distribution))
def test_draws_are_reproducible(kind: Distribution) -> None:
    first, again, other = draw(kind), draw(kind), draw(kind, seed=1)
    assert torch.equal(first, again)
    fixed = kind in (Distribution.zeros, Distribution.ones)
    assert torch.equal(first, other) is fixed


def test_what_is_drawn() -> None:
    assert not draw(Distribution.zeros).any()
    assert draw(Distribution.ones).eq(1).all()
    uniform, normal = draw(Distribution.uniform), draw(Distribution.normal)
    assert -1 <= uniform.min() < -0.99 < 0.99 < uniform.max() <= 1
    assert (normal.mean().abs() < 0.02, abs(normal.std() - 1) < 0.02) == (True, True)
    outliers = draw(Distribution.outliers)
    assert torch.equal(outliers.flatten()[1::1024], normal.flatten()[1::1024])
    assert torch.equal(outliers.flatten()[::1024], normal.flatten()[::1024] * 100)
    assert draw(Distribution.normal, dtype=DType.bf16).dtype is torch.bfloat16


def test_one_tensor_after_another_differs_and_whole_numbers_are_in_range() -> None:
    drawn = Draw(CASE, "cpu", 0)
    assert not torch.equal(drawn(100), drawn(100))
    numbers = drawn.integers(3, 7, 1000)
    assert (int(numbers.min()), int(numbers.max()), numbers.dtype) == (3, 6, torch.int64)


def test_forward_stores_nothing_for_a_backward() -> None:
    made = workload()
    with made.grad_mode():
        y, _ = made.call()
    assert made.names == ("y", "m")
    assert not y.requires_grad
    assert "grad_y" not in made.args


def test_backward_is_the_gradients_alone_and_can_be_called_again() -> None:
    made = workload(replace(CASE, mode=Mode.bwd))
    with made.grad_mode():
        dx, dw = made.call()
        again, _ = made.call()
    assert made.names == ("dx", "dw")
    assert torch.equal(dx, made.all_tensors()["grad_y"] * made.args["w"])
    assert torch.equal(dx, again)
    assert made.args["x"].grad is None  # nothing accumulates
    assert dw.shape == (CASE.N,)


def test_full_is_both() -> None:
    made = workload(replace(CASE, mode=Mode.full))
    with made.grad_mode():
        found = dict(zip(made.names, made.call(), strict=True))
    assert list(found) == ["y", "m", "dx", "dw"]
    assert not any(tensor.requires_grad for tensor in found.values())


def test_the_last_graph_is_gone_before_the_next_is_made() -> None:
    """Else a leaf's gradient node would keep the stream of its making (see `ready`)."""
    made: list[Workload] = []
    alive: list[int] = []

    def counts(a: Any) -> Any:
        alive.extend(len(each._graph) for each in made)
        return right(a)

    made.append(workload(replace(CASE, mode=Mode.bwd), counts))
    assert len(made[0]._graph) == 2
    made[0].ready()
    assert alive == [0]
    made[0].release()
    assert made[0]._graph == ()


def test_what_is_overwritten_is_restored_and_nothing_else() -> None:
    def in_place(a: Any) -> Any:
        m = a["x"].amax(-1)
        return a["x"].mul_(2), m

    made = workload(call=in_place, mutates=lambda case: ("x",))
    right_before = made.snapshot()
    with made.grad_mode():
        first = made.call()[0].clone()
        made.restore()
        again = made.call()[0].clone()
        drifted = made.call()[0].clone()
    assert torch.equal(first, again)
    assert not torch.equal(again, drifted)
    assert made.changed(right_before) == []
    made.args["w"].add_(1)
    made.restore()
    assert made.changed(right_before) == ["w"]
    made.ready()
    assert made.changed(right_before) == []


def test_a_layout_of_its_own_takes_in_fresh_values() -> None:
    def turned(case: ToyCase, a: Any) -> Any:
        return {**a, "x": a["x"].t().contiguous().t(), "w": a["w"].expand(case.R, case.N)}

    family = toy(provider("p", right, prepare=turned))
    inputs = CaseInputs(family, CASE, "cpu", seed=1)
    made = Workload(family, CASE, family.provider("p"), inputs, None)
    made.ready()
    assert made.args["x"].stride() == (1, CASE.R)
    before = made.args["x"].clone()
    where = {name: tensor.data_ptr() for name, tensor in made.args.items()}
    inputs.redraw(2)
    made.ready()
    assert {name: tensor.data_ptr() for name, tensor in made.args.items()} == where
    assert torch.equal(made.args["x"], inputs.pristine["x"])
    assert torch.equal(made.args["w"][3], inputs.pristine["w"])
    assert not torch.equal(made.args["x"], before)


def test_poison_reaches_every_input_and_refill_mends_it() -> None:
    made = workload()
    kept = made.pristine_args()
    made.poison()
    assert all(tensor.isnan().all() for tensor in made.args.values())
    made.refill(kept)
    assert made.changed(kept) == []


def test_put_into_a_tensor_that_was_expanded() -> None:
    target, source = torch.zeros(4).expand(3, 4), torch.arange(12.0).view(3, 4)
    copy_into(target, source)
    assert target.tolist() == [[0, 1, 2, 3]] * 3


def test_why_not() -> None:
    gpu = replace(CPU, kind="cuda")
    bf16 = replace(CASE, dtype=DType.bf16)
    needs = provider("p", right, requires=("no_such_module_here",))
    triton = provider("p", right, requires=("triton",))
    refuses = provider("p", right, unsupported=lambda case, device: f"R is {case.R}")
    assert why_not(needs, CASE, CPU) == (
        "no_such_module_here is not installed (`kernelbench doctor` says how to get it)"
    )
    assert why_not(triton, CASE, replace(CPU, no_triton="no Triton")) == "no Triton"
    assert why_not(triton, bf16, CPU) == "bf16 arithmetic is wrong in Triton's interpreter"
    assert why_not(triton, bf16, gpu) is None
    assert why_not(triton, CASE, CPU) is None
    assert why_not(refuses, CASE, CPU) == "R is 7"
    assert why_not(provider("p", right), bf16, CPU) is None


def test_without_a_c_compiler_there_is_no_triton_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(environment.shutil, "which", lambda name: None)
    assert "needs a C compiler" in environment._no_triton((9, 0))
    monkeypatch.setattr(environment.shutil, "which", lambda name: name if name == "gcc" else None)
    assert environment._no_triton((9, 0)) == ""


def test_an_interpreter_that_fails_with_its_numpy_is_no_triton_on_a_cpu_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(interpreter, "why_broken", lambda: "fails with numpy")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("CC", "gcc")
    assert environment._no_triton(None) == "fails with numpy"
    assert environment._no_triton((9, 0)) == ""
    if (findings := doctor._untouched()) is not None:  # None where there is a GPU to ask torch of
        assert findings[-1] == doctor.Finding("triton", False, "fails with numpy")
