"""The description of a launch, and where one can run."""

import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import MISSING, fields
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from kernelbench.kernels import (
    interpreter,
    launch,
    projection,
    rcm_attention,
    rcm_int8,
    rms_norm,
    rotary,
)
from kernelbench.kernels.attention.configs import AttentionConfig
from kernelbench.kernels.launch import Launch, check_device, on_device, power_of_2, refusal
from kernelbench.kernels.swiglu import SwigluConfig, swiglu
from kernelbench.kernels.zigzag_attention import ZigzagConfig


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


class Kernel:
    """Stands in for a kernel that was compiled: counts its slow launches, records its fast ones."""

    arg_names = ("x_ptr", "y_ptr", "M", "BLOCK")
    function = "function"
    packed_metadata = "metadata"

    def __init__(self) -> None:
        self.slow = 0
        self.fast: list[tuple[object, ...]] = []
        self.hooked: list[tuple[object, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]):
        def queue(*args: object, stream: int | None = None, **named: object) -> object:
            if stream is None:
                self.slow += 1
                return self
            self.hooked.append((grid, *args, stream))
            return None

        return queue

    def run(self, *args: object) -> None:
        self.fast.append(args)


@pytest.fixture
def repeats(monkeypatch):
    """Launches on a GPU that is pretended."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    active = SimpleNamespace(get_current_stream=lambda device: 7)
    monkeypatch.setattr(launch.triton.runtime, "driver", SimpleNamespace(active=active))
    return launch.Repeats(torch.device("cuda", 0))


def run(repeats, kernel, x, y=None, kind="kind"):
    def describe(kind, tensors):
        x, y = tensors
        return (Launch(kernel, (3,), {"x_ptr": x, "y_ptr": y, "M": 5}, {"BLOCK": 8}, {}),)

    repeats.run(kind, (x, y), describe)


def test_a_repeated_launch_passes_addresses_to_the_compiled_kernel(repeats):
    kernel, x = Kernel(), torch.empty(64)
    for _ in range(3):
        run(repeats, kernel, x)
    assert kernel.slow == 1
    head = (3, 1, 1, 7, "function", "metadata", None, None, None)
    assert kernel.fast == 2 * [(*head, x.data_ptr(), None, 5, 8)]


def test_a_repeated_launch_is_told_to_triton_s_hooks(repeats):
    kernel, x = Kernel(), torch.empty(64)

    def hook(metadata):
        pass

    chain = launch.triton.knobs.runtime.launch_enter_hook
    chain.add(hook)
    try:
        run(repeats, kernel, x)
        run(repeats, kernel, x)
    finally:
        chain.remove(hook)
    assert kernel.hooked == [((3, 1, 1), x.data_ptr(), None, 5, 8, 7)]
    assert kernel.fast == []


def test_another_kind_of_launch_is_compiled_anew(repeats):
    kernel, x = Kernel(), torch.empty(64)
    run(repeats, kernel, x)
    run(repeats, kernel, x, kind="other")
    assert (kernel.slow, len(kernel.fast)) == (2, 0)


def test_a_misaligned_tensor_goes_the_slow_way_and_is_not_remembered(repeats):
    kernel, x = Kernel(), torch.empty(64)
    run(repeats, kernel, x[1:])
    run(repeats, kernel, x)
    run(repeats, kernel, x[1:])
    run(repeats, kernel, x)
    assert (kernel.slow, len(kernel.fast)) == (3, 1)


def test_another_current_device_goes_the_slow_way(repeats, monkeypatch):
    kernel, x = Kernel(), torch.empty(64)
    run(repeats, kernel, x)
    with monkeypatch.context() as patched:  # undone before fixtures ask for the real ones
        patched.setattr(torch.cuda, "current_device", lambda: 1)
        patched.setattr(torch.cuda, "device", lambda device: nullcontext())
        run(repeats, kernel, x)
    assert (kernel.slow, len(kernel.fast)) == (2, 0)


def test_a_tensor_that_repeats_would_not_find_again_is_a_mistake(repeats):
    kernel, x, y = Kernel(), torch.empty(64), torch.empty(64)
    described = Launch(kernel, (3,), {"x_ptr": x, "y_ptr": y, "M": 5}, {"BLOCK": 8}, {})
    with pytest.raises(AssertionError, match="y_ptr"):
        repeats.run("kind", (x, None), lambda *_: (described,))


def test_a_launch_keeps_a_tensor_of_its_own(repeats):
    kernel, made = Kernel(), []

    def describe(kind, tensors):
        own = torch.empty(64)
        made.append(weakref.ref(own))
        args = {"x_ptr": tensors[0], "y_ptr": own, "M": 5}
        return (Launch(kernel, (3,), args, {"BLOCK": 8}, {}, own=own),)

    for x in (torch.empty(64), torch.empty(64)):
        repeats.run("kind", (x,), describe)
    (own,) = (reference() for reference in made)
    assert kernel.fast == [
        (3, 1, 1, 7, "function", "metadata", None, None, None, x.data_ptr(), own.data_ptr(), 5, 8)
    ]


def test_one_tensor_in_two_places_says_nothing_about_two(repeats):
    kernel, x, y = Kernel(), torch.empty(64), torch.empty(64)
    run(repeats, kernel, x, x)
    run(repeats, kernel, x, y)
    assert (kernel.slow, len(kernel.fast)) == (2, 0)
    for pair in ((x, x), (y, x)):
        run(repeats, kernel, *pair)
    assert [args[-4:-2] for args in kernel.fast] == [
        (x.data_ptr(), x.data_ptr()),
        (y.data_ptr(), x.data_ptr()),
    ]


class Pair(NamedTuple):
    tensor: object
    number: object


def test_a_tuple_is_repeated_with_other_tensors_and_the_same_numbers(repeats):
    """Tuples in tuples, and what has no memory, too."""
    kernel = Kernel()

    def describe(kind, tensors):
        x, y = tensors
        args = {"x_ptr": Pair(Pair(y, 3), (x,)), "y_ptr": Pair(x, y), "M": ()}
        return (Launch(kernel, (3,), args, {"BLOCK": 8}, {}),)

    for number in range(3):
        x, y = torch.empty(64), torch.empty(64)
        repeats.run("kind", (x, y), describe)
        if number:
            *_, first, second, M, BLOCK = kernel.fast[-1]
            assert first == ((y.data_ptr(), 3), (x.data_ptr(),))
            assert second == (x.data_ptr(), y.data_ptr()) and (M, BLOCK) == ((), 8)


def test_what_is_repeated_keeps_no_tensor_alive(repeats):
    kernel, x, y = Kernel(), torch.empty(128), torch.empty(64)
    args = {"x_ptr": TensorDescriptor(x, [8, 16], [16, 1], [8, 16]), "y_ptr": Pair(y, 2), "M": 5}
    made = [Launch(kernel, (3,), args, {"BLOCK": 8}, {})]
    repeats.run("kind", (x, y), lambda *_: made)
    alive = [weakref.ref(x), weakref.ref(y)]
    del x, y, args
    made.clear()
    assert [reference() for reference in alive] == [None, None]


def test_too_many_plans_are_forgotten(monkeypatch):
    monkeypatch.setattr(launch.Plans, "MOST", 2)
    plans = launch.Plans()
    for number in range(3):
        assert plans.add(number, f"plan {number}") == f"plan {number}"
    assert plans == {2: "plan 2"}


def test_a_descriptor_is_repeated_for_other_tensors(repeats):
    """Also one of a view, whose shape it has itself."""
    kernel = Kernel()

    def describe(kind, tensors):
        x, y = tensors
        args = {"x_ptr": TensorDescriptor(x, [8, 16], [16, 1], [8, 16]), "y_ptr": y, "M": 5}
        return (Launch(kernel, (3,), args, {"BLOCK": 8}, {}),)

    for number in range(3):
        x, y = torch.empty(128), torch.empty(64)
        repeats.run("kind", (x, y), describe)
        if number:
            *_, descriptor, address, M, BLOCK = kernel.fast[-1]
            assert type(descriptor) is TensorDescriptor and descriptor.base is x
            assert (descriptor.shape, descriptor.strides) == ([8, 16], [16, 1])
            assert (address, M, BLOCK) == (y.data_ptr(), 5, 8)
    assert kernel.slow == 1


def test_shared_memory_is_what_remains_for_each_program():
    assert launch.shared_memory("sm_90", 1) == 225 * 1024
    assert launch.shared_memory("sm_80", 2) == 79 * 1024
    assert launch.shared_memory("sm_999", 1) == launch.shared_memory("sm_89", 1) == 97 * 1024
    assert launch.shared_memory("cpu", 4) > 1 << 27


@pytest.mark.parametrize(
    ("arch", "early"), [("cpu", False), ("sm_80", False), ("sm_90", True), ("sm_100", True)]
)
def test_a_kernel_may_start_early_from_sm_90_on(arch, early):
    assert launch.starts_early(arch) is early


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


@pytest.mark.parametrize(
    ("triton", "numpy", "broken"),
    [
        ("3.6.0", "2.3.5", False),
        ("3.6.0", "2.4.0rc1", True),
        ("3.6.0+git1", "2.10.1", True),
        ("3.7.0", "2.4.6", False),
        ("4.0", "2.4.6", False),
    ],
)
def test_an_interpreter_that_fails_with_its_numpy_is_refused_with_the_remedy(
    triton, numpy, broken, monkeypatch, fresh_refusal
):
    versions = {"triton": triton, "numpy": numpy}
    monkeypatch.setattr(interpreter.metadata, "version", versions.__getitem__)
    monkeypatch.setattr(launch, "INTERPRETED", True)
    said = (
        f"the interpreter of triton {triton} fails with numpy {numpy}: "
        "pip install 'triton>=3.7', or 'numpy<2.4'"
    )
    assert refusal(torch.device("cpu")) == (said if broken else None)


def test_without_triton_its_interpreter_is_not_broken(monkeypatch):
    def version(name):
        raise interpreter.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(interpreter.metadata, "version", version)
    assert interpreter.why_broken() == ""


def test_the_current_device_costs_no_guard(device):
    here = torch.device(device, torch.cuda.current_device() if device == "cuda" else None)
    assert on_device(here) is on_device(here)


@pytest.mark.parametrize(("least", "power"), [(0, 1), (1, 1), (2, 2), (3, 4), (5000, 8192)])
def test_power_of_2(least, power):
    assert power_of_2(least) == power


def numbers(values):
    """All but the tensors of arguments, also within tuples."""
    inner = {n: numbers(v._asdict()) for n, v in values.items() if hasattr(v, "_asdict")}
    return {n: v for n, v in values.items() if not isinstance(v, (torch.Tensor, tuple))} | inner


@pytest.fixture
def kept(monkeypatch):
    """What launches of one plan and kind have in common: grid and all but tensors."""
    known = {}

    def run(repeats, kind, tensors, describe):
        present = [t is not None for t in tensors]
        assert known.setdefault((id(repeats), kind), (repeats, present))[1] == present, kind
        own = {id(tensor) for tensor in tensors}
        for number, one in enumerate(describe(kind, tensors)):
            assert all(id(tensor) in own for _, tensor in launch.tensors_of(one.args)), one
            fixed = numbers({**one.args, **one.constexprs})
            first = known.setdefault((id(repeats), kind, number), (repeats, one.grid, fixed))
            assert first[1:] == (one.grid, fixed), kind
            one.run()

    monkeypatch.setattr(launch.Repeats, "run", run)
    return known


def differentiate(call, tensors, wanted):
    """Of all results, the first and the last; also with hooks that hand back other strides."""

    def turned(tensor):
        if tensor.dim() == 1:
            return torch.stack([tensor, tensor], -1)[..., 0]
        return tensor.mT.clone().mT

    for hook in (lambda tensor: tensor, turned):
        leaves = [
            t.detach().requires_grad_(asked) for t, asked in zip(tensors, wanted, strict=True)
        ]
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, hook):
            found = call(*leaves)
        results = found if isinstance(found, tuple) else (found,)
        totals = [
            sum(y.square().sum() for y in some) for some in (results, results[:1], results[-1:])
        ]
        expanded = [y.sum() for y in results]
        for total in (*totals, sum(expanded), expanded[-1] + totals[1]):
            if total.requires_grad:
                total.backward(retain_graph=True)


def test_a_kind_of_rotation_is_one_launch(kept, device):
    """On a GPU it is kept by plan and kind: of straight calls, operators, backwards, in place."""
    q, k = torch.randn(2, 5, 3, 8, device=device), torch.randn(2, 5, 2, 8, device=device)
    offsets = torch.tensor([2, 0], device=device)
    for starts, positions, columns in ((None, 5, 4), (None, 5, 3), (offsets, 7, 4)):
        cos, sin = torch.randn(2, positions, columns, device=device)
        options = {"rotary_dim": 2 * columns, "offsets": starts}
        for _ in range(2):
            rotary.apply_rotary(q, k, cos, sin, **options)
            rotary.apply_rotary(q.clone(), k.clone(), cos, sin, inplace=True, **options)
            for inverse in (False, True):
                rotary._operator(q, k, cos, sin, starts, False, [], inverse)
            for wanted in ((True, True), (True, False), (False, True)):
                call = partial(rotary.apply_rotary, cos=cos, sin=sin, **options)
                differentiate(call, (q, k), wanted)
    assert len(kept) > 15


def test_a_kind_of_swiglu_is_one_launch(kept, device):
    gate, up = torch.randn(2, 3, 7, 16, device=device)
    for wanted in ((True, True), (True, False), (False, True)):
        differentiate(swiglu, (gate, up), wanted)
        differentiate(swiglu, torch.randn(3, 7, 32, device=device).chunk(2, -1), wanted)
    differentiate(swiglu, (gate,), (True,))
    assert len(kept) > 8


def test_a_kind_of_norm_is_one_launch(kept, device):
    x, weight, r = (torch.randn(*shape, device=device) for shape in ((3, 7, 16), (16,), (3, 7, 16)))
    for wanted in ((True, True, True), (True, False, False), (False, True, False)):
        differentiate(
            lambda x, weight, r: rms_norm.rms_norm(x, weight, residual=r), (x, weight, r), wanted
        )
        differentiate(rms_norm.rms_norm, (x, weight), wanted[:2])
    for save in (True, False):
        rms_norm._operator(x, weight, r, 1e-6, "fp32", [], save)
    assert len(kept) > 8


NEEDS = [(True,) * 5, (True, False, False, False, False), (False, True, False, True, False)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "function", [rcm_attention.rcm_attention, rcm_attention.rcm_attention_unfused]
)
def test_a_kind_of_attention_is_one_launch(function, kept, device):
    q, k, v = torch.randn(3, 1, 9, 2, 16, device=device)
    x, t = torch.randn(1, 9, 32, device=device), torch.rand(1, device=device)
    for causal in (True,) if function is rcm_attention.rcm_attention_unfused else (False, True):
        call = partial(function, causal=causal)
        for wanted in (*NEEDS, (False, False, True, False, True)):
            differentiate(call, (q, k, v, x, t), wanted)
        for q_by in (q, q.transpose(1, 2).contiguous().transpose(1, 2)):
            call(q_by, k, v, x, t)
            call(q_by, k, v, None, None, parametrization="none")
    for save in (True, False):
        rest = None, "edm", False, None, [], True, save
        y, o, lse = rcm_attention._operator(q, k, v, x, t, *rest)
        if save:
            arguments = q, k, v, x, t, o, lse, *rest[:-1]
            rcm_attention._operator_backward(torch.ones_like(y), *arguments, [True] * 5)
    assert len(kept) > 8


def test_a_kind_of_projection_is_one_launch(kept, device):
    shapes = (2, 9, 32), (16, 32), (16,), (2, 9, 16), (2,)
    a, weight, bias, x, t = (torch.randn(*shape, device=device) for shape in shapes)
    for function in (projection.project_and_skip, projection.project_and_skip_unfused):
        for wanted in (*NEEDS, (False, False, True, False, True)):
            differentiate(function, (a, weight, bias, x, t.abs()), wanted)
        function(a, weight, None, x, t.abs())
        function(a, weight, bias, None, None, parametrization="none")
    assert len(kept) > 10


def test_a_kind_of_8_bit_attention_is_one_launch(kept, device):
    q, k, v = torch.randn(3, 2, 40, 2, 16, device=device).half()
    x, t = torch.randn(2, 40, 32, device=device).half(), torch.rand(2, device=device)
    for causal in (False, True):
        for q_by in (q, q.transpose(1, 2).contiguous().transpose(1, 2)):
            rcm_int8.rcm_attention_int8(q_by, k, v, x, t, causal=causal)
    rcm_int8.rcm_attention_int8(q, k, v, None, None, parametrization="none")
    assert len(kept) > 4


@pytest.mark.parametrize("changed", ["float16", "no memory"])
def test_what_hooks_hand_back_otherwise_is_another_kind(changed, kept, device):
    """Such as a copy in another dtype: the launch that is kept would read it as its own."""
    q, k, v = torch.randn(3, 1, 16, 1, 16, device=device)
    x, t = torch.randn(1, 16, 16, device=device), torch.rand(1, device=device)
    a, weight = torch.randn(1, 9, 32, device=device), torch.randn(16, 32, device=device)
    skip, times = torch.randn(1, 9, 16, device=device), torch.rand(1, device=device)
    calls = {
        rcm_attention.rcm_attention: (q, k, v, x, t),
        projection.project_and_skip: (a, weight, None, skip, times),
        rms_norm.rms_norm: (a, weight[0]),
    }

    def other(tensor):
        return tensor.half() if changed == "float16" else tensor.to("meta")

    for function, tensors in calls.items():
        leaves = [None if tensor is None else tensor.clone().requires_grad_() for tensor in tensors]
        for hook in (lambda tensor: tensor, other):
            before = len(kept)
            with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, hook):
                y = function(*leaves)
            try:
                y.sum().backward()
            except Exception:  # noqa: BLE001
                assert hook is other
            assert len(kept) > before or hook is not other, function


@pytest.mark.parametrize(
    "kind",
    [
        rms_norm.RmsNormConfig,
        rotary.RotaryConfig,
        SwigluConfig,
        AttentionConfig,
        projection.ProjectionConfig,
        rcm_int8.RcmInt8Config,
        ZigzagConfig,
    ],
)
@pytest.mark.parametrize("wrong", [0, 1.5, 16.0, "4", True])
def test_numbers_of_a_config_are_whole_and_1_or_more(kind, wrong):
    given = {f.name: 32 for f in fields(kind) if f.default is MISSING}
    kind(**given)
    counted = [name for name in given if "warps" in name or "stages" in name]
    assert counted
    for name in counted:
        with pytest.raises(
            ValueError, match=f"{kind.__name__}: {name} is .*, not a whole number, at least 1"
        ):
            kind(**given | {name: wrong})
