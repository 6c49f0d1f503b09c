"""The family `empty`: what is launched, what is proven of it, which wrong kernels are found."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_families import checked

from kernelbench import suite
from kernelbench.families.empty import FAMILY, EmptyCase, Kernel
from kernelbench.kernels.empty import add_twice, do_nothing
from kernelbench.kernels.launch import INTERPRETED, Launch, watched
from kernelbench.measure import environment
from kernelbench.measure.ceilings import Ceilings
from kernelbench.measure.job import Session
from kernelbench.measure.telemetry import Telemetry
from kernelbench.measure.timer import HostClock
from kernelbench.profile.touched import touched
from kernelbench.spec import DType, KernelbenchError, Mode, Provider, Role, Status

SIZE: Any = {"M": 3, "N": 257, "dtype": DType.fp32}
EMPTY, POINTWISE = (EmptyCase(kernel=kernel, **SIZE) for kernel in Kernel)


def verdict(case: EmptyCase, call: Callable[[Any], torch.Tensor]) -> tuple[Status, str]:
    """Of a provider that makes this call, beside the baseline."""
    session = Session(environment.device("cpu"), HostClock(), Ceilings(), Telemetry.open(None))
    provider = Provider("mine", Role.triton_fused, lambda case, config: call)
    family = replace(FAMILY, providers=(FAMILY.baseline, provider))
    record = checked(family, case, ["eager", "mine"], session)["mine"]
    return record.status, record.reason


def keep(a: Any) -> torch.Tensor:
    x: torch.Tensor = a["x"]
    return x


def set_one(a: Any) -> torch.Tensor:
    a["x"][-1, -1] = 3.0
    return keep(a)


def set_one_behind(a: Any) -> torch.Tensor:
    y = a["x"].clone()
    set_one(a)
    return y


@pytest.mark.parametrize(
    ("call", "wrong"),
    [
        (keep, None),
        (lambda a: a["x"].clone(), None),
        (set_one, "changed its input x; y: error"),
        (set_one_behind, "changed its input x"),
        (lambda a: torch.zeros_like(a["x"]), "y: error 1"),
        (lambda a: 1.0001 * a["x"], "y: error 0.0001"),
    ],
)
def test_an_empty_kernel_that_does_something_is_found(call: Any, wrong: str | None) -> None:
    status, reason = verdict(EMPTY, call)
    assert status is (Status.ok if wrong is None else Status.incorrect)
    assert (wrong or "") in reason


def without_the_last(a: Any) -> torch.Tensor:
    y = 2 * a["x"] + a["z"]
    y[-1, -1] = 0
    return y


@pytest.mark.parametrize(
    ("call", "wrong"),
    [
        (keep, "y: 771 of 771 elements bad"),
        (without_the_last, "y: 1 of 771 elements bad"),
        (lambda a: 2 * a["x"], "y: error 0.42"),
        (lambda a: a["x"] + 2 * a["z"], "y: error 0.58"),
        (lambda a: 1.999 * a["x"] + a["z"], "y: error 0.0004"),
        (lambda a: a["z"].add_(a["x"], alpha=2), "changed its input z"),
    ],
)
def test_a_wrong_pointwise_kernel_is_found(call: Any, wrong: str) -> None:
    status, reason = verdict(POINTWISE, call)
    assert status is Status.incorrect and wrong in reason


def test_a_right_pointwise_kernel_of_other_operators_passes() -> None:
    assert verdict(POINTWISE, lambda a: a["x"] + a["x"] + a["z"]) == (Status.ok, "")


@pytest.mark.parametrize("case", [EMPTY, POINTWISE], ids=lambda case: case.kernel)
@pytest.mark.parametrize("provider", ["triton_fused", "triton_plain"])
def test_a_call_of_ours_is_one_launch(case: EmptyCase, provider: str) -> None:
    launches: list[Launch] = []
    a = {name: torch.randn(case.M, case.N) for name in case.names}
    with watched(launches.append):
        y = FAMILY.provider(provider).build(case, None)(a)
    assert len(launches) == 1 and (y is a["x"]) is case.empty


@pytest.mark.skipif(not INTERPRETED, reason="bytes are counted in the interpreter")
def test_the_empty_kernel_touches_nothing() -> None:
    for name in ("triton_fused", "triton_plain"):
        with pytest.raises(KernelbenchError, match="_do_nothing ran without a load or a store"):
            touched(FAMILY, EMPTY, FAMILY.provider(name))
    assert touched(FAMILY, EMPTY, FAMILY.baseline).rows == ()


def test_what_the_kernels_do_not_take_is_refused() -> None:
    x = torch.ones(4, 6)
    for z in (x[:, :3], x.half(), torch.ones(6, 4).t()):
        with pytest.raises(ValueError, match=r"contiguous, of one shape, .* got z of shape"):
            add_twice(x, z)
    with pytest.raises(ValueError, match=r"got x of shape \(6, 4\)"):
        do_nothing(x.t())
    with pytest.raises(ValueError, match=r"in fp32, fp16 or bf16; got x .*float64"):
        do_nothing(x.double())
    with pytest.raises(NotImplementedError, match="no gradient"):
        add_twice(x, x.clone().requires_grad_())


def test_the_suite_is_every_family_at_the_document_s_four_lengths() -> None:
    from kernelbench import families

    jobs = suite.load(suite.find("launch"), families.load()).jobs
    lengths: dict[str, list[int]] = {}
    for job in jobs:
        axes = job.case.as_axes()
        tokens = axes["M"] if "M" in axes else axes["S"] if "S" in axes else axes["N"]
        assert isinstance(tokens, int) and job.case.mode is Mode.fwd
        if axes.get("kernel") != Kernel.empty:
            lengths.setdefault(job.family, []).append(tokens)
    assert set(map(tuple, lengths.values())) == {(256, 512, 1024, 2048)} and len(lengths) == 6
    assert all({*job.measure.timers} == {"kernel", "host", "graph"} for job in jobs)
