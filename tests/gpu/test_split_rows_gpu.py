"""Programs that wait for each other: on streams of two priorities, and in a green context.

What could hang runs in a process of its own, which is killed when it takes too long.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kernelbench.kernels.launch import Launch, arch_of, sm_count, watched
from kernelbench.kernels.rms_norm import configs, rms_norm

M, N = 64, 262_144
SPLIT = ["normalise_split_rows", "differentiate_split_rows", "sum_partials"]
APART = ["normalise_wide_rows", "project_wide_rows", "differentiate", "sum_partials"]
LEAST_SMS = 32  # for two of the 64 programs of a row's backward on each
GREEN_SMS = 16
SECONDS = 300
GATE_CYCLES = 200_000_000  # 0.1 s: both streams' calls are queued while they are held

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """x, the weight, and the gradient of y."""
    generator = torch.Generator("cuda").manual_seed(1)
    x, dy, weight = (
        torch.randn(*shape, generator=generator, device="cuda", dtype=torch.bfloat16)
        for shape in ((M, N), (M, N), (N,))
    )
    return x.requires_grad_(), weight.requires_grad_(), dy


def answers(x: Tensor, weight: Tensor, dy: Tensor, **options: Any) -> tuple[Tensor, ...]:
    """y, dx and dweight."""
    y = rms_norm(x, weight, **options)
    return y.detach(), *torch.autograd.grad(y, (x, weight), dy)


def launched(given: tuple[Tensor, Tensor, Tensor]) -> list[str]:
    """The kernels that the driver took for one call and its gradients."""
    names: list[str] = []

    def queue(launch: Launch) -> Any:
        compiled = launch.queue()
        names.append(launch.kernel.__name__)
        return compiled

    # Launches are watched in one thread, and the backward of CUDA tensors has another.
    with watched(queue), torch.autograd.set_multithreading_enabled(False):
        answers(*given)
    return names


def run_priorities() -> None:
    given = inputs()
    expected = answers(*given)
    assert launched(given) == SPLIT
    streams = [torch.cuda.Stream(priority=priority) for priority in (0, -1)]
    differing = [torch.zeros((), dtype=torch.int64, device="cuda") for _ in streams]
    torch.cuda.synchronize()
    gate = torch.cuda.Stream()
    for _ in range(10):
        with torch.cuda.stream(gate):
            torch.cuda._sleep(GATE_CYCLES)
        for stream in streams:
            stream.wait_stream(gate)
        for _ in range(20):
            for stream, count in zip(streams, differing, strict=True):
                with torch.cuda.stream(stream):
                    for got, right in zip(answers(*given), expected, strict=True):
                        count += (got != right).any()
    torch.cuda.synchronize()
    assert [int(count) for count in differing] == [0, 0]


@contextmanager
def current(context: Any) -> Iterator[None]:
    """Of a thread whose context is a green one."""
    context.set_context()
    try:
        yield
        torch.cuda.current_stream().synchronize()
    finally:
        context.pop_context()


@contextmanager
def only_its_stream(context: Any) -> Iterator[None]:
    """Of a thread whose context is that of the whole GPU, with a stream of a green one."""
    stream = context.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
        stream.synchronize()


def run_green(entered: Any) -> None:
    from torch.cuda.green_contexts import GreenContext  # not in every version

    given = inputs()
    expected = answers(*given)
    assert launched(given) == SPLIT
    chosen = configs(M, N, arch=arch_of(given[0].device), mode="full", itemsize=2)[0]
    torch.cuda.synchronize()
    context = GreenContext.create(num_sms=GREEN_SMS, device_id=0)
    with entered(context):
        assert launched(given) == APART
        for _ in range(3):
            found = answers(*given)
        with pytest.raises(ValueError, match="a green context"):
            answers(*given, config=chosen)
    for got, right in zip(found, expected, strict=True):
        error = (got.double() - right.double()).norm() / right.double().norm()
        assert error <= 2e-3, float(error)
    assert launched(given) == SPLIT  # the whole GPU again
    assert all(map(torch.equal, answers(*given), expected))


def run_alone(scenario: str) -> None:
    """Call it in a process of its own; raises TimeoutExpired when it hangs."""
    if sm_count(torch.device("cuda", 0)) < LEAST_SMS:
        pytest.skip(f"rows of {N} columns are not split on fewer than {LEAST_SMS} multiprocessors")
    code = f"import {Path(__file__).stem} as here; here.{scenario}"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]


def test_streams_of_two_priorities_share_the_gpu():
    run_alone("run_priorities()")


@pytest.mark.parametrize("entered", ["current", "only_its_stream"])
def test_a_green_context_has_rows_that_are_not_split(entered):
    green_contexts = pytest.importorskip("torch.cuda.green_contexts")
    if not green_contexts.SUPPORTED:
        pytest.skip("this build of PyTorch has no green contexts")
    if entered == "only_its_stream" and not hasattr(green_contexts.GreenContext, "Stream"):
        pytest.skip("this version of PyTorch does not tell a green context's stream")
    run_alone(f"run_green(here.{entered})")
