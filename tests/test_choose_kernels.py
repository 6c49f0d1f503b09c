"""`kernelbench.choose_kernels`: what modules ask for, measured by records that are made."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from test_metrics import fused, ours, record, timing
from torch.utils.checkpoint import checkpoint

import kernelbench
from kernelbench import nn
from kernelbench.dispatch import Dispatch, Where
from kernelbench.nn import choosing
from kernelbench.spec import OutputError, RunRecord, Status, UsageError
from kernelbench.verbs import kernels

AMONG = ("torch_fused", "compile", "triton_fused")


def records(axes: Mapping[str, Any], **of_ours: Any) -> list[RunRecord]:
    """Of the family's baseline 10 µs, F.rms_norm 5 µs, compiled 5 µs, and ours."""
    error = OutputError(name="y", rel=2e-4, worst=1e-3, rel_budget=1e-2, worst_budget=1e-2)
    defaults = {"inputs": "normal", "eps": 1e-6, "casting": "fp32", "residual": False}
    known: dict[str, Any] = {"mode": "full", "dtype": "fp32", "case": f"{axes}"}
    known |= {"axes": defaults | axes, "errors": (error,)}
    others = [record(**known), fused("torch_fused", **known), fused(**known)]
    return [*others, ours("triton_fused", **known | of_ours)]


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is said, where modules ask for tensors on a CPU, too."""
    monkeypatch.setattr(choosing, "why_not", lambda device, dtype: "")
    yield []
    nn.use_dispatch(None)


def chosen(monkeypatch: pytest.MonkeyPatch, said: list[str], **of_ours: Any) -> Any:
    def bench(family: str, *, providers: Any, dtype: str, mode: str, **axes: Any) -> Any:
        assert (family, *providers, dtype, mode) == ("rms_norm", *AMONG, "fp32", "full")
        return records(axes, **of_ours)

    monkeypatch.setattr(kernels, "bench", bench)
    norm, x = nn.RMSNorm(8), torch.randn(2, 3, 8, requires_grad=True)
    return kernelbench.choose_kernels(lambda: (norm(x), norm(x)), say=said.append)


def test_what_is_asked_for_is_measured_once_and_told(
    monkeypatch: pytest.MonkeyPatch, say: list[str]
) -> None:
    table = chosen(monkeypatch, say, timing=timing(4))
    assert say == [
        "  Benchmarking RMSNorm (M=6 N=8 fp32 full)...",
        "    PyTorch:  0.0050 ms",
        "    Compiled: 0.0050 ms",
        "    Triton:   0.0040 ms",
        "    Speedup:  1.25x (95 % interval 1.25 to 1.25)",
        "    Error:    2.0e-04 of fp64's, relative",
        "    Using:    Triton (1.25 × the baseline, at least 1.25)",
    ]
    dispatch = Dispatch(table, table.where)
    choice = dispatch.choose("rms_norm", "fp32", "full", (("M", 6), ("N", 8)), AMONG)
    assert (choice.provider, choice.how) == ("triton_fused", "measured")


def test_it_has_to_be_right_and_beat_pytorchs_operator(
    monkeypatch: pytest.MonkeyPatch, say: list[str]
) -> None:
    chosen(monkeypatch, say, timing=timing(4.95))  # twice as fast as the family's baseline
    why = "triton_fused is 1.01 ×, at least 1.01, not beyond 1.03"
    assert say[-1] == f"    Using:    PyTorch ({why})"
    say.clear()
    chosen(monkeypatch, say, status=Status.incorrect, reason="y: error 2")
    assert "    Triton:   0.0040 ms (incorrect: y: error 2)" in say
    assert say[-1].startswith("    Using:    PyTorch") and "Speedup" not in "".join(say)


def test_of_a_family_some_providers_are_measured() -> None:
    case: dict[str, Any] = {"M": 2, "N": 8, "dtype": "fp32", "timing": False, "device": "cpu"}
    found = kernelbench.bench("rms_norm", providers=["torch_fused"], **case)
    assert [each.provider for each in found] == ["eager", "torch_fused"]
    with pytest.raises(UsageError, match="rms_norm has no provider 'tritn_fused'"):
        kernelbench.bench("rms_norm", providers=["tritn_fused"], **case)


def test_measuring_leaves_the_process_as_it_was() -> None:
    """In a process of its own, where this one's settings do not matter."""
    code = """
import os, random, torch, torch._dynamo, torch._functorch.config, torch._inductor.config
import kernelbench
def state():
    configs = torch._dynamo.config, torch._functorch.config, torch._inductor.config
    return [
        torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.fp32_precision,
        torch.get_rng_state().tolist(), random.getstate(), dict(os.environ),
        torch.is_grad_enabled(), torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(), *(c.get_config_copy() for c in configs),
    ]
def hold(*providers):
    before = state()
    kernelbench.bench("rms_norm", providers=providers, M=2, N=8, dtype="fp32",
                      device="cpu", timing=False)
    assert state() == before
hold("torch_fused", "compile")
torch.set_float32_matmul_precision("high")
hold("torch_fused")
torch.set_float32_matmul_precision("highest")
torch.backends.cuda.matmul.allow_tf32 = True
hold("torch_fused")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("how", ["compiled", "reentrant"])
def test_a_step_that_is_compiled_is_noted_and_one_that_asks_nothing_is_said(
    how: str, say: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    norm, x = nn.RMSNorm(8), torch.ones(4, 8, requires_grad=True)
    graph = torch.compile(norm, backend="eager", fullgraph=True)
    graph(x)
    if how == "compiled":
        assert len(kernels._asked(lambda: graph(x))) == 1
    else:
        with pytest.warns(UserWarning, match="so nothing is chosen"):
            assert not kernels._asked(lambda: checkpoint(norm, x, use_reentrant=True))


def test_what_is_asked_for_in_a_reentrant_checkpoint_alone_is_said(say: list[str]) -> None:
    """Also beside what is noted; and the step draws no number of the caller's."""
    norm, turn, x = nn.RMSNorm(8), nn.RMSNorm(4), torch.ones(4, 8, requires_grad=True)
    before = torch.get_rng_state()

    def step() -> None:
        norm(x + torch.rand(4, 8))
        checkpoint(turn, x[:, :4], use_reentrant=True)

    with pytest.warns(UserWarning, match=r"not ask for RMSNorm \(M=4 N=4 .* use_reentrant"):
        [(_, _, _, axes)] = kernels._asked(step)
    assert dict(axes)["N"] == 8
    assert torch.equal(torch.get_rng_state(), before)


def test_a_graph_that_was_made_before_asks_again(
    monkeypatch: pytest.MonkeyPatch, say: list[str]
) -> None:
    norm, x = nn.RMSNorm(8, impl="auto"), torch.randn(2, 3, 8, requires_grad=True)
    nn.use_dispatch(Dispatch(None, Where()))
    graph = torch.compile(norm, backend="eager", fullgraph=True)
    graph(x)
    table = chosen(monkeypatch, say, timing=timing(4.95))
    dispatch = Dispatch(table, Where())
    nn.use_dispatch(dispatch)
    graph(x)
    assert dispatch.decisions
