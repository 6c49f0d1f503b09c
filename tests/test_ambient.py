"""Process-wide state: whoever changes it is incorrect and named, and the next one is unharmed."""

import builtins
import cmath
import gc
import importlib
import inspect
import itertools
import math
import os
import random
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from toy import CASE, Script, provider, right, run, toy

from kernelbench.measure import ambient, check, environment
from kernelbench.measure.ambient import KNOWN_CHANGES, Ambient, allowed_changes, ambient_for
from kernelbench.measure.ceilings import Ceilings
from kernelbench.measure.guard import Guard
from kernelbench.measure.patches import HARNESS
from kernelbench.measure.session import Session
from kernelbench.measure.telemetry import Telemetry
from kernelbench.measure.workload import Workload
from kernelbench.spec import DType, Mode, Provider, Status

LEFT: list[Any] = []  # contexts that were entered and never left


def enter(context: Any) -> None:
    context.__enter__()
    LEFT.append(context)


class Functions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Dispatches(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module", autouse=True)
def old_garbage_aside() -> Iterator[None]:
    """Every job begins by collecting garbage; a worker spares itself what torch imports, too."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def as_it_is(value: Any) -> Any:
    return value


def smallest() -> bool:
    return sys.float_info.min / 2 == 0


def modes() -> tuple[int, int]:
    return torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()


def precisions() -> tuple[str, ...]:
    of = torch._C._get_fp32_precision_getter
    return of("cuda", "matmul"), of("cuda", "conv"), of("mkldnn", "matmul"), of("generic", "all")


def nested() -> int:
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()


@dataclass(frozen=True)
class Kind:
    """One way to change something, how that is told, and what the next one finds."""

    change: Callable[[], object]
    told: str
    read: Callable[[], Any]


def calls(function: Any) -> Any:
    """Another function that does the same."""
    return lambda *args, **kwargs: function(*args, **kwargs)


def patch(owner: Any, name: str, told: str) -> Kind:
    return Kind(
        lambda: setattr(owner, name, calls(getattr(owner, name))),
        f"patched {told}",
        lambda: (vars(owner).get(name), getattr(owner, name)),
    )


def switch(owner: Any, name: str, value: Any, told: str) -> Kind:
    return Kind(lambda: setattr(owner, name, value), told, lambda: getattr(owner, name))


KINDS = {
    "default dtype": Kind(
        lambda: torch.set_default_dtype(torch.float64),
        "changed the default dtype from torch.float32 to torch.float64",
        torch.get_default_dtype,
    ),
    "default device": Kind(
        lambda: torch.set_default_device("meta"),
        "changed the default device from nothing to meta",
        lambda: (torch.get_default_device(), modes()),
    ),
    "device context": Kind(
        lambda: enter(torch.device("meta")),
        "changed the stack of torch function modes from nothing to DeviceContext",
        lambda: (torch.get_default_device(), modes()),
    ),
    "function mode": Kind(
        lambda: enter(Functions()), "torch function modes from nothing to Functions", modes
    ),
    "dispatch mode": Kind(
        lambda: enter(Dispatches()), "torch dispatch modes from nothing to Dispatches", modes
    ),
    "inference": Kind(
        lambda: enter(torch.inference_mode()),
        "changed inference mode from False to True",
        torch.is_inference_mode_enabled,
    ),
    "autocast": Kind(
        lambda: enter(torch.autocast("cpu", torch.bfloat16)),
        "changed autocast on cpu from False to True",
        lambda: (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"), nested()),
    ),
    "autocast dtype": Kind(
        lambda: torch.set_autocast_dtype("cuda", torch.bfloat16),
        "changed the dtype of autocast on cuda from torch.float16 to torch.bfloat16",
        lambda: torch.get_autocast_dtype("cuda"),
    ),
    "autocast cache": Kind(
        lambda: torch.set_autocast_cache_enabled(False),
        "changed the cache of autocast from True to False",
        torch.is_autocast_cache_enabled,
    ),
    "anomaly": Kind(
        lambda: torch.autograd.set_detect_anomaly(True, check_nan=False),
        "changed anomaly mode from False to True and changed the NaN check",
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
    ),
    "saved tensors": Kind(
        lambda: enter(torch.autograd.graph.saved_tensors_hooks(as_it_is, as_it_is)),
        "changed hooks on saved tensors",
        lambda: torch._C._autograd._top_saved_tensors_default_hooks(True),
    ),
    "deterministic": Kind(
        lambda: torch.use_deterministic_algorithms(True, warn_only=True),
        "changed deterministic algorithms from False to True and changed warn-only",
        torch.get_deterministic_debug_mode,
    ),
    "deterministic fill": switch(
        torch.utils.deterministic, "fill_uninitialized_memory", False,
        "changed deterministic fill of uninitialized memory from True to False",
    ),
    "matmul precision": Kind(
        lambda: torch.set_float32_matmul_precision("medium"),
        "changed the float32 precision of cuda matmul from ieee to tf32",
        lambda: (torch.get_float32_matmul_precision(), precisions()),
    ),
    "matmul precision, new": Kind(
        lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
        "changed the float32 precision of cuda matmul from ieee to tf32",
        lambda: (torch.get_float32_matmul_precision(), precisions()),
    ),
    "all precision, new": Kind(
        lambda: setattr(torch.backends, "fp32_precision", "tf32"),
        "changed the float32 precision of cuda all from none to tf32",
        precisions,
    ),
    "matmul tf32": switch(
        torch.backends.cuda.matmul, "allow_tf32", True,
        "changed the float32 precision of cuda matmul from ieee to tf32",
    ),
    "conv tf32": switch(
        torch.backends.cudnn, "allow_tf32", True,
        "changed the float32 precision of cuda conv from none to tf32",
    ),
    "reduced": switch(
        torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", False,
        "changed bf16 reduced precision reduction from (True, True) to (False, ",
    ),
    "accumulation": switch(
        torch.backends.cuda.matmul, "allow_fp16_accumulation", True,
        "changed fp16 accumulation of matmul from False to True",
    ),
    "cudnn": switch(
        torch.backends.cudnn, "benchmark", True, "changed cudnn.benchmark from False to True"
    ),
    "sdp": Kind(
        lambda: torch.backends.cuda.enable_flash_sdp(False),
        "changed flash sdp from True to False",
        torch.backends.cuda.flash_sdp_enabled,
    ),
    "sdp order": Kind(
        lambda: torch._C._set_sdp_priority_order([0, 1, 2, 3]),
        "changed the order of sdp backends from ",
        torch._C._get_sdp_priority_order,
    ),
    "threads": Kind(
        lambda: torch.set_num_threads(torch.get_num_threads() + 1),
        "changed the number of threads from ",
        torch.get_num_threads,
    ),
    "denormals": Kind(
        lambda: torch.set_flush_denormal(True),
        "changed flushing of denormals from False to True",
        smallest,
    ),
    "torch seed": Kind(
        lambda: torch.manual_seed(1), "changed the seed of torch,", torch.get_rng_state
    ),
    "torch draw": Kind(
        lambda: torch.rand(1), "changed the seed of torch,", torch.get_rng_state
    ),
    "random": Kind(random.random, "changed the seed of random,", random.getstate),
    "numpy": Kind(np.random.rand, "changed the seed of numpy,", lambda: str(np.random.get_state())),
    "environment": Kind(
        lambda: os.environ.__setitem__("KERNELBENCH_TEST", "on"),
        "changed environment KERNELBENCH_TEST from nothing to on",
        lambda: os.environ.get("KERNELBENCH_TEST"),
    ),
    "environment less": Kind(
        lambda: os.environ.pop("PATH"),
        "changed environment PATH from ",
        lambda: os.environ["PATH"],
    ),
    "directory": Kind(lambda: os.chdir("/"), "changed the working directory", os.getcwd),
    "trace": Kind(lambda: sys.settrace(lambda *_: None), "the trace function", sys.gettrace),
    "profile": Kind(lambda: sys.setprofile(lambda *_: None), "the profile", sys.getprofile),
    "thread profile": Kind(
        lambda: threading.setprofile(smallest),
        "changed the profile function of threads from nothing to smallest",
        threading.getprofile,
    ),
    "garbage": Kind(gc.disable, "changed collection of garbage from True to False", gc.isenabled),
    "signal": Kind(
        lambda: signal.signal(signal.SIGALRM, signal.SIG_IGN),
        "changed the handler of SIGALRM from SIG_DFL to SIG_IGN",
        lambda: signal.getsignal(signal.SIGALRM),
    ),
    "torch function": patch(torch, "equal", "torch.equal"),
    "method": patch(torch.Tensor, "clone", "torch.Tensor.clone"),
    "own method": patch(torch.Tensor, "detach", "torch.Tensor.detach"),
    "event": patch(torch.cuda.Event, "elapsed_time", "torch.cuda.streams.Event.elapsed_time"),
    "clock": patch(time, "perf_counter_ns", "time.perf_counter_ns"),
    "builtin": patch(builtins, "max", "builtins.max"),
    "statistics": patch(statistics, "median", "statistics.median"),
    "check": patch(check, "judge", "kernelbench.measure.check.judge"),
    "shadow": Kind(
        lambda: setattr(check, "max", max),
        "patched kernelbench.measure.check.max",
        lambda: vars(check).get("max"),
    ),
    "namespace": Kind(
        lambda: setattr(check, "math", cmath),
        "patched kernelbench.measure.check.math",
        lambda: vars(check)["math"] is math,
    ),
    "workload": patch(Workload, "changed", "kernelbench.measure.workload.Workload.changed"),
    "inherited": patch(Workload, "__repr__", "kernelbench.measure.workload.Workload.__repr__"),
}  # fmt: skip


class Changes:
    """A right provider that changes something when it is built (0) or in its nth call."""

    def __init__(self, change: Callable[[], object], when: int) -> None:
        self.change, self.when, self.count = change, when, itertools.count(1)

    def __call__(self, a: Any) -> Any:
        if next(self.count) == self.when:
            self.change()
        return right(a)

    def build(self, case: Any, config: Any) -> Any:
        if self.when == 0:
            self.change()
        return self


def changes(change: Callable[[], object], when: int, name: str = "bad") -> Provider[Any]:
    return replace(provider(name, right), build=Changes(change, when).build)


def same(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(a == b)


WHEN = {"at once": 0, "first": 1, "checked": 5, "timed": 9}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_who_changes_it_is_incorrect_and_the_next_is_unharmed(kind: Kind) -> None:
    seen: list[Any] = []

    def looks(a: Any) -> Any:
        seen.append(kind.read())
        return right(a)

    ambient_for(CASE.dtype)
    before = kind.read()
    bad = [changes(kind.change, when, name) for name, when in WHEN.items()]
    fine = [provider(f"after {name}", looks) for name in WHEN]
    found = run(toy(*itertools.chain(*zip(bad, fine, strict=True))))
    after = kind.read()
    for name in WHEN:
        record = found.pop(name)
        assert record.status is Status.incorrect, record.reason
        assert kind.told in record.reason
        assert record.reason.endswith(", which every other call would feel")
    for record in found.values():
        assert record.status is Status.ok, record.reason
    assert len(seen) > len(fine)
    assert all(same(before, found) for found in (*seen, after))


@pytest.mark.parametrize("mode", [Mode.bwd, Mode.full])
@pytest.mark.parametrize("kind", ["default dtype", "saved tensors", "method"])
def test_also_around_a_backward(kind: str, mode: Mode) -> None:
    def pair(a: Any) -> Any:
        return a["x"] * a["w"], a["x"].detach().amax(-1)

    found = run(
        toy(changes(KINDS[kind].change, 3), provider("next", pair)), replace(CASE, mode=mode)
    )
    assert found["bad"].status is Status.incorrect
    assert KINDS[kind].told in found["bad"].reason
    assert found["next"].status is Status.ok, found["next"].reason


def test_grad_mode_that_a_build_leaves() -> None:
    found = run(toy(changes(lambda: torch._C._set_grad_enabled(False), 0)))
    assert "changed grad mode from True to False" in found["bad"].reason
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("when", [0, 1, 9])
def test_who_raises_after_it_harms_nobody(when: int) -> None:
    def change() -> None:
        torch.set_default_dtype(torch.float64)
        os.environ["KERNELBENCH_TEST"] = "on"
        torch.Tensor.clone = None  # type: ignore[method-assign,assignment]
        enter(Functions())
        raise RuntimeError("no")

    found = run(toy(changes(change, when), provider("next", right)))
    assert found["bad"].status is Status.failed
    assert found["next"].status is Status.ok
    assert torch.get_default_dtype() is torch.float32
    assert "KERNELBENCH_TEST" not in os.environ
    assert "clone" not in vars(torch.Tensor)
    assert modes() == (0, 0)


def test_what_is_restored_within_the_call_is_fine() -> None:
    def careful(a: Any) -> Any:
        threads = torch.get_num_threads()
        torch.set_num_threads(threads + 1)
        torch.set_default_dtype(torch.float64)
        with torch.random.fork_rng(), torch.device("cpu"), Functions():
            torch.rand(3)
            y = right(a)
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(threads)
        return y

    found = run(toy(provider("fine", careful)))
    assert found["fine"].status is Status.ok, found["fine"].reason


def test_within_a_step_of_several_whoever_was_at_work_is_blamed() -> None:
    family = toy(provider("bad", right), provider("next", right))
    session = Session(environment.device("cpu"), Script(), Ceilings(), Telemetry.open(None))
    guard = Guard(family, session, CASE.dtype, lambda provider, phase: None)

    def step() -> None:
        for name in ("eager", "bad", "next"):
            guard.tell(name, "kernel")
            if name == "bad":
                random.random()

    guard.attempt(step)
    assert guard.disturbances.keys() == {"bad"}


def test_the_precision_is_what_the_case_asks_for() -> None:
    seen = []

    def looks(a: Any) -> Any:
        seen.append(torch.backends.cuda.matmul.allow_tf32)
        return right(a)

    for dtype in (DType.tf32, DType.fp32):
        seen.clear()
        found = run(toy(provider("fine", looks)), replace(CASE, dtype=dtype))
        assert found["fine"].status is Status.ok, found["fine"].reason
        assert set(seen) == {dtype is DType.tf32}


def test_what_cannot_be_undone_is_told_once() -> None:
    found = Ambient()
    switches = [(i, s) for i, (s, _) in enumerate(found._snapshot) if "interop" in s.name]
    ((i, interop),) = switches
    found._snapshot[i] = interop, 99  # it can be set but once in a process
    assert "changed the number of interop threads from 99 to" in found.undo_changes()
    assert found.undo_changes() == ""


def test_many_changes_are_told_in_few_words() -> None:
    found = Ambient()
    os.environ.update({f"KERNELBENCH_{i}": "x" * 500 for i in range(50)})
    said = found.undo_changes()
    assert "and 46 more changes" in said
    assert len(said) < 600
    assert not any(name.startswith("KERNELBENCH_") for name in os.environ)


def test_what_is_known_is_undone_but_not_told() -> None:
    found = Ambient()
    os.environ["KERNELBENCH_TEST"] = "on"
    assert found.undo_changes({"environment KERNELBENCH_TEST"}) == ""
    assert "KERNELBENCH_TEST" not in os.environ
    random.random()
    assert "seed of random" in found.undo_changes({"the seed of torch"})
    torch.equal = calls(torch.equal)
    assert found.undo_changes({"function torch.equal"}) == ""
    assert not hasattr(torch.equal, "__code__")


def test_everyone_may_compile_and_peers_only_what_is_listed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "environment TRITON_CACHE_DIR" in allowed_changes(())
    monkeypatch.setattr(
        ambient, "KNOWN_CHANGES", {**KNOWN_CHANGES, "a_peer": ("the seed of torch",)}
    )
    assert "the seed of torch" in allowed_changes(("triton", "a_peer"))
    assert "the seed of torch" not in allowed_changes(("triton",))
    allowed_changes.cache_clear()


def test_all_names_that_are_known_are_of_states_that_are_watched() -> None:
    names = {switch.name for switch, _ in Ambient()._snapshot}
    for name in itertools.chain.from_iterable(KNOWN_CHANGES.values()):
        assert name in names or name.startswith(("environment ", "function "))


def test_what_measures_and_what_it_computes_with_is_watched() -> None:
    assert {"measure", "spec", "families", "numbers"} <= {*HARNESS}


@pytest.mark.parametrize("room", HARNESS)
def test_every_room_that_is_watched_is_there_and_is_watched(room: str) -> None:
    module = importlib.import_module(f"kernelbench.{room}")
    ambient = Ambient()
    functions = [
        (owner, name)
        for owner in (module, *(v for v in vars(module).values() if inspect.ismodule(v)))
        for name, value in vars(owner).items()
        if inspect.isfunction(value) and value.__module__.startswith(f"kernelbench.{room}")
    ]
    owner, name = functions[0]
    before = getattr(owner, name)
    setattr(owner, name, lambda *_: None)
    assert name in ambient.undo_changes() and getattr(owner, name) is before


def test_compiling_is_no_disturbance() -> None:
    def build(case: Any, config: Any) -> Any:
        return torch.compile(right, dynamic=False, fullgraph=True)

    inductor = replace(provider("compiled", right), build=build)
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        os.environ.pop(name, None)
    found = run(toy(inductor, provider("next", right)))
    assert found["compiled"].status is Status.ok, found["compiled"].reason
    assert found["next"].status is Status.ok
    assert "TRITON_CACHE_DIR" not in os.environ


def test_a_quiet_look_is_cheap_and_watches_much() -> None:
    found = Ambient()
    assert len(found.patches) > 800
    assert found.undo_changes() == ""
    numbers = dict.fromkeys(range(len(found.patches)))
    looks, walks = [], []
    for _ in range(300):
        start = time.perf_counter()
        found.undo_changes()
        middle = time.perf_counter()
        for number in numbers:
            numbers.get(number)
        looks.append(middle - start)
        walks.append(time.perf_counter() - middle)
    assert min(looks) < 10 * min(walks)  # less than twice, idle
