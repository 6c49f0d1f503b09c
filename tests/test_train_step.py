"""The family `train_step`: its oracle, what a call overwrites, its cost; tools/step_shares.py."""

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kernelbench.families.train_step import FAMILY, oracle
from kernelbench.families.train_step import case as cases
from kernelbench.families.train_step.case import TrainStepCase
from kernelbench.families.train_step.providers import Step, parts, places, updated
from kernelbench.measure.check import judge
from kernelbench.measure.deviation import Oracle, deviations
from kernelbench.measure.inputs import CaseInputs, Draw
from kernelbench.nn import ModelConfig, Transformer
from kernelbench.spec import Cost, DType

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
import step_shares

SMALL = TrainStepCase(B=2, S=8, C=16, H=2, Hk=1, layers=2, F=24, V=20, dtype=DType.fp32)
STATE = ("params", "exp_avg", "exp_avg_sq")


def drawn(case: TrainStepCase = SMALL, seed: int = 1) -> dict[str, Tensor]:
    return dict(FAMILY.inputs(case, Draw(case, "cpu", seed)))


def copied(a: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in a.items()}


def right(case: TrainStepCase, a: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the oracle yields, in tensors of the outputs' shapes."""
    outputs = zip(case.names, (torch.zeros(()), *updated(case, a)), strict=True)
    whole = {name: torch.full(t.shape, math.nan).double() for name, t in outputs}
    for name, index, of, *_ in oracle(case, a):
        whole[name][index] = of
    return whole


class Turn(nn.Module):
    """Rotary positions as a product of complex numbers, in fp64."""

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        S, D = tensors[0].shape[1::2]
        speed = 10000.0 ** (-torch.arange(0, D, 2).double() / D)
        angle = (torch.arange(S).double()[:, None] * speed)[:, None]
        by = torch.polar(torch.ones_like(angle), angle)
        turned = (torch.complex(*x.chunk(2, -1)) * by for x in tensors)
        return [torch.cat([x.real, x.imag], -1) for x in turned]


def test_the_oracle_is_the_model_in_fp64_and_pytorchs_adamw() -> None:
    a = drawn()
    config = ModelConfig(
        vocab_size=20, d_model=16, n_heads=2, n_kv_heads=1, n_layers=2, d_ff=24, impl="eager"
    )
    model = Transformer(config).double()
    for block in model.blocks:
        block.attention.rotary = Turn()  # type: ignore[union-attr]
    wide = {name: a[name].double() for name in STATE}
    parameters = [model.get_parameter(name) for name in places(SMALL)]
    optimizer = torch.optim.AdamW(
        parameters, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, foreach=False
    )
    views = zip(parameters, *(parts(SMALL, wide[name]) for name in STATE), strict=True)
    for parameter, weight, average, square in views:
        parameter.data = weight
        state = {"step": torch.tensor(100.0), "exp_avg": average, "exp_avg_sq": square}
        optimizer.state[parameter] = state
    logits = model(a["tokens"]).flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, a["targets"].flatten())
    loss.backward()
    optimizer.step()
    found = right(SMALL, a)
    for name, output in zip(SMALL.names, (loss.detach(), *updated(SMALL, wide)), strict=True):
        torch.testing.assert_close(found[name], output, rtol=1e-9, atol=1e-12)


def test_calls_train_on_what_they_are_given_in_place_and_alike() -> None:
    """In the memory of the call before, with other values, and in other memory."""
    for dtype in (DType.fp32, DType.bf16, DType.fp16):
        case = TrainStepCase(**{**SMALL.as_axes(), "dtype": dtype})  # type: ignore[arg-type]
        call, first, other = Step(case, "eager"), drawn(case, 1), drawn(case, 2)
        a = copied(first)
        once = [tensor.clone() for tensor in call(a)]
        assert not any(a[name].equal(first[name]) for name in STATE)
        inputs = {a[name].untyped_storage().data_ptr() for name in STATE}
        held = {p.untyped_storage().data_ptr() for p in call.model.parameters()}
        assert held == {a["params"].untyped_storage().data_ptr()}
        for name, tensor in a.items():
            tensor.copy_(other[name])
        wanted = [tensor.clone() for tensor in Step(case, "eager")(copied(other))]
        outputs = call(a)
        assert all(map(torch.equal, outputs, wanted))
        assert {t.untyped_storage().data_ptr() for t in outputs[1:]} == inputs
        moved = copied(first)
        assert all(map(torch.equal, call(moved), once))
        assert a["params"].equal(outputs[-1]), "what was elsewhere is left alone"
        assert all(p.grad is None for p in call.model.parameters())


def forgotten(name: str, before: Tensor, found: Tensor) -> Tensor:
    """An output as it would be without one thing."""
    found = found.clone()
    if name == "avg_qk":  # the gradient of k in one layer
        found[1, -8:] = 0.9 * before[1, -8:]
        return found
    if name == "updated":  # the correction of exp_avg_sq for t = 101
        kept = before * (1 - 1e-4)
        return kept + (found - kept) / math.sqrt(1 - 0.95**101)
    return 0.95 * before


@pytest.mark.parametrize("name", ["avg_qk", "avg_sq", "updated"])
def test_what_an_update_forgets_is_found(name: str) -> None:
    inputs = CaseInputs(FAMILY, SMALL, "cpu", 5)
    made = FAMILY.baseline.build(SMALL, None)(copied(inputs.tensors))
    outputs = dict(zip(SMALL.names, made, strict=True))
    known = Oracle(FAMILY, SMALL, inputs)
    own = deviations(known, outputs)
    assert all(error.ok for error in judge(own, own, SMALL.dtype, FAMILY.baseline))
    before = dict(zip(SMALL.names[1:], updated(SMALL, inputs.tensors), strict=True))[name]
    bad = {**outputs, name: forgotten(name, before, outputs[name])}
    errors = judge(deviations(known, bad), own, SMALL.dtype, FAMILY.provider("triton_all"))
    assert [error.name for error in errors if not error.ok] == [name]


def test_of_many_parameters_some_are_judged_and_of_long_steps_the_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, a = right(SMALL, drawn()), drawn()
    monkeypatch.setattr(cases, "SAMPLED", 0)
    monkeypatch.setattr(cases, "EVERY", 5)
    for name, values in right(SMALL, a).items():
        of = whole[name]
        wanted = of[:, ::5] if of.ndim == 3 else of[::5] if of.ndim else of
        assert values.equal(wanted), name
    monkeypatch.setattr(cases, "MOST_FLOPS", 0)
    assert FAMILY.outputs(SMALL) == ("loss",)
    assert right(SMALL, a)["loss"].item() == pytest.approx(whole["loss"].item(), rel=1e-12)
    assert len(Step(SMALL, "eager")(a)) == 1


def test_cost_by_hand() -> None:
    """Of a block: qkv 16 x (16 + 2·8), out 16 x 16, gate_up 16 x 48, down 24 x 16."""
    matrices = 2 * (512 + 256 + 768 + 384) + 20 * 16
    assert SMALL.parameters == matrices + 5 * 16
    attention = 2 * 2 * 36 * 3 * 2 * 2 * 16  # layers, samples, pairs, ways, products, flops, C
    state = 3 * 4 * SMALL.parameters
    flops = 6 * matrices * 16 + attention
    assert FAMILY.cost(SMALL) == Cost(flops, 2 * 8 * 16 + state, state + 4)


def test_shares_of_a_step_add_up_and_name_every_group(capsys: pytest.CaptureFixture[str]) -> None:
    axes = ["B=1", "S=8", "C=16", "H=2", "layers=1", "V=20", "dtype=bf16"]
    step_shares.main(["eager", *axes, "--steps", "1"])
    first, _, *rows = capsys.readouterr().out.splitlines()
    assert "layers=1-V=20-bf16" in first
    shares = {row.split()[0]: float(row.split()[-1].rstrip("%")) for row in rows}
    assert [*shares] == [*step_shares.GROUPS, "step"]
    assert shares.pop("step") == 100 and sum(shares.values()) == pytest.approx(100, abs=0.5)
    spent = {row.split()[0]: float(row.split()[1]) for row in rows}
    assert all(ms > 0 for name, ms in spent.items() if name not in ("fused", "rest"))


def test_a_backward_counts_for_what_ran_forward() -> None:
    """The nodes of a step by the group that they fall to."""
    call, a = Step(SMALL, "eager"), drawn()
    with torch.no_grad():
        call(a)
        with step_shares.ranges(call), torch.profiler.profile() as profiled:
            call(a)
    made = step_shares.makers(profiled.events())
    nodes: dict[str, set[str]] = {}
    for event in profiled.events():
        if event.name.startswith(step_shares.NODE):
            node = event.name.removeprefix(step_shares.NODE)
            nodes.setdefault(node, set()).add(step_shares.group(event, made))
    assert nodes["MmBackward0"] == {"products"} and nodes["SiluBackward0"] == {"swiglu"}
    assert nodes["NllLossBackward0"] == nodes["LogSoftmaxBackward0"] == {"loss"}
    assert nodes["CatBackward0"] == {"rotary"} and nodes["EmbeddingBackward0"] == {"rest"}
    assert {g for node, g in nodes.items() for g in g if "ScaledDotProduct" in node} == {
        "attention"
    }
    assert call.loss == call.model.loss, "ranges are gone"
