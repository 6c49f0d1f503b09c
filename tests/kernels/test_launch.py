"""The description of a launch, and where one can run."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from kernelbench.kernels import launch
from kernelbench.kernels.launch import Launch, check_device, on_device, power_of_2, refusal


class Recorder:
    """Stands in for a kernel: remembers how it was launched."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[int, ...], dict[str, object]]] = []

    def __getitem__(self, grid: tuple[int, ...]):
        return lambda **named: self.calls.append((grid, named))


def test_a_launch_passes_everything_by_name_on_its_grid():
    kernel = Recorder()
    Launch(kernel, (3, 2), {"x_ptr": "x", "M": 5}, {"BLOCK": 8}, {"num_warps": 4}).run()
    assert kernel.calls == [((3, 2), {"x_ptr": "x", "M": 5, "BLOCK": 8, "num_warps": 4})]


@pytest.mark.parametrize("grid", [(0,), (4, 0), (0, 4)])
def test_an_empty_grid_launches_nothing(grid):
    kernel = Recorder()
    Launch(kernel, grid, {}, {}, {}).run()
    assert kernel.calls == []


def test_the_device_of_tensors_is_the_one_they_share(device):
    x = torch.empty(2, device=device)
    assert check_device(x=x, residual=None, weight=x) == x.device


def test_tensors_on_several_devices_are_refused_by_name(device):
    with pytest.raises(
        RuntimeError, match=r"several devices \(x on \w+(:0)?, weight on meta\): move them to one"
    ):
        check_device(x=torch.empty(2, device=device), weight=torch.empty(2, device="meta"))


def test_a_device_without_kernels_is_refused_with_the_remedy():
    with pytest.raises(RuntimeError, match="device type 'meta': move the tensors to a CUDA device"):
        check_device(x=torch.empty(2, device="meta"))


@pytest.fixture
def fresh_refusal() -> Iterator[None]:
    for cached in (launch.refusal, launch.arch_of):
        cached.cache_clear()
    yield
    for cached in (launch.refusal, launch.arch_of):
        cached.cache_clear()


def test_old_gpus_and_rocm_are_refused_with_one_reason(monkeypatch, fresh_refusal):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    assert refusal(torch.device("cuda", 0)) == (
        "sm_75 is too old: the kernels need an NVIDIA GPU of sm_80 or later"
    )
    refusal.cache_clear()
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert "no kernels for ROCm" in (refusal(torch.device("cuda", 0)) or "")


def test_an_sm_80_gpu_is_accepted(monkeypatch, fresh_refusal):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    assert refusal(torch.device("cuda", 0)) is None
    assert launch.arch_of(torch.device("cuda", 0)) == "sm_80"


def test_cpu_tensors_without_the_interpreter_are_refused_with_the_remedy():
    code = (
        "import torch; from kernelbench.kernels.launch import check_device\n"
        "check_device(x=torch.ones(1))"
    )
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert ran.returncode != 0
    assert "RuntimeError: the tensors are on the CPU: move them to a CUDA device, or set " in (
        ran.stderr
    )
    assert "TRITON_INTERPRET=1 before importing kernelbench.kernels" in ran.stderr


def test_the_current_device_costs_no_guard(device):
    here = torch.device(device, torch.cuda.current_device() if device == "cuda" else None)
    assert on_device(here) is on_device(here)


@pytest.mark.parametrize(("least", "power"), [(0, 1), (1, 1), (2, 2), (3, 4), (5000, 8192)])
def test_power_of_2(least, power):
    assert power_of_2(least) == power
