"""torch.profiler's part of a profile: operators on the CPU, kernels on a GPU, and the trace."""

import gzip
import json
import pickle
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kernelbench.profile.tool import ToolError
from kernelbench.profile.torch_trace import trace
from kernelbench.spec import KernelUse

NAME = "kb.toy.M64.eager"
CALLS = 3


def matmul_relu(device: str = "cpu") -> Callable[[], torch.Tensor]:
    x = torch.randn(64, 64, device=device)
    return lambda: torch.relu(x @ x)


def events(file: Path) -> list[dict[str, Any]]:
    with gzip.open(file, "rt", encoding="utf-8") as opened:
        found: list[dict[str, Any]] = json.load(opened)["traceEvents"]
    return found


def by_name(uses: tuple[KernelUse, ...]) -> dict[str, KernelUse]:
    found = {use.name: use for use in uses}
    assert len(found) == len(uses)
    return found


def test_operators_are_counted_with_their_own_time(tmp_path: Path) -> None:
    uses, files = trace(matmul_relu(), CALLS, tmp_path / "a", name=NAME, cuda=False)
    found = by_name(uses)
    for name in ("aten::mm", "aten::relu"):
        assert found[name].launches == CALLS
        assert (found[name].host_ns or 0) > 0 and found[name].gpu_ns is None
        assert found[name].shapes == ""
    assert NAME not in found
    times = [use.host_ns or 0 for use in uses]
    assert times == sorted(times, reverse=True)
    assert files == (tmp_path / "a.trace.json.gz",)


def test_own_time_leaves_out_what_was_called(tmp_path: Path) -> None:
    uses, (file,) = trace(matmul_relu(), CALLS, tmp_path / "a", name=NAME, cuda=False)
    spans = [event for event in events(file) if event.get("name") == NAME]
    inside = sum(use.host_ns or 0 for use in uses)
    assert inside <= sum(span["dur"] for span in spans) * 1e3 + 1


def test_each_call_is_a_range_of_the_trace(tmp_path: Path) -> None:
    _, (file,) = trace(matmul_relu(), CALLS, tmp_path / "a.b", name=NAME, cuda=False)
    found = Counter((event.get("cat"), event.get("name")) for event in events(file))
    assert found["user_annotation", NAME] == CALLS
    assert found["cpu_op", "aten::mm"] == CALLS
    assert not any(kind == "python_function" for kind, _ in found)


def test_shapes_on_request(tmp_path: Path) -> None:
    x, y = torch.randn(8, 8), torch.randn(4, 4)

    def call() -> torch.Tensor:
        return (x @ x)[0, 0] + (y @ y)[0, 0]

    uses, _ = trace(call, CALLS, tmp_path / "a", name=NAME, cuda=False, shapes=True)
    found = {use.shapes: use.launches for use in uses if use.name == "aten::mm"}
    assert found == {"[8, 8], [8, 8]": CALLS, "[4, 4], [4, 4]": CALLS}
    merged, _ = trace(call, CALLS, tmp_path / "a", name=NAME, cuda=False)
    assert by_name(merged)["aten::mm"].launches == 2 * CALLS


def test_stacks_on_request_leave_the_numbers_alone(tmp_path: Path) -> None:
    uses, (file,) = trace(matmul_relu(), CALLS, tmp_path / "a", name=NAME, cuda=False, stacks=True)
    found = Counter((event.get("cat"), event.get("name")) for event in events(file))
    assert found["user_annotation", NAME] == CALLS
    mine = Path(__file__).name
    assert any(kind == "python_function" and mine in name for kind, name in found)
    assert by_name(uses)["aten::mm"].launches == CALLS
    assert all(use.name.startswith("aten::") for use in uses)


def test_two_profiles_in_one_process_do_not_warn_or_mix(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trace(matmul_relu(), 5, tmp_path / "a", name=NAME, cuda=False)
        uses, (file,) = trace(matmul_relu(), CALLS, tmp_path / "a", name=NAME, cuda=False)
    assert by_name(uses)["aten::mm"].launches == CALLS
    assert sum(event.get("name") == NAME for event in events(file)) == CALLS


def test_a_backward_is_seen(tmp_path: Path) -> None:
    w = torch.randn(16, 16, requires_grad=True)

    def call() -> Any:
        return torch.autograd.grad((w @ w).sum(), w)

    uses, _ = trace(call, CALLS, tmp_path / "a", name=NAME, cuda=False)
    assert by_name(uses)["aten::mm"].launches == 3 * CALLS
    assert by_name(uses)["MmBackward0"].launches == CALLS


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ToolError, match=r"traces cannot be written there.*another folder"):
        trace(matmul_relu(), 1, tmp_path / "file" / "a", name=NAME, cuda=False)


def test_a_call_that_fails_fails(tmp_path: Path) -> None:
    def call() -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        trace(call, 1, tmp_path / "a", name=NAME, cuda=False)
    uses, _ = trace(matmul_relu(), CALLS, tmp_path / "a", name=NAME, cuda=False)
    assert by_name(uses)["aten::mm"].launches == CALLS


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_kernels_and_memory_on_a_gpu(tmp_path: Path) -> None:
    uses, (file, memory) = trace(
        matmul_relu("cuda"), CALLS, tmp_path / "a", name=NAME, cuda=True, stacks=True
    )
    assert sum(use.launches for use in uses) >= 2 * CALLS
    assert any("relu" in use.name or "clamp" in use.name for use in uses)
    assert all(use.host_ns is None and (use.gpu_ns or 0) > 0 for use in uses)
    assert NAME not in by_name(uses)
    assert sum(use.gpu_ns or 0 for use in uses) < 1e9
    found = Counter((event.get("cat"), event.get("name")) for event in events(file))
    assert found["user_annotation", NAME] == CALLS
    assert any(kind == "kernel" for kind, _ in found)
    with memory.open("rb") as opened:
        snapshot = pickle.load(opened)
    actions = {event["action"] for device in snapshot["device_traces"] for event in device}
    assert "alloc" in actions


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_a_call_that_runs_nothing_on_the_gpu(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="saw nothing run on the GPU"):
        trace(matmul_relu("cpu"), 1, tmp_path / "a", name=NAME, cuda=True)
