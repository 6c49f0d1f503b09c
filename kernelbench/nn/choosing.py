"""Which implementation a module's `impl="auto"` comes to, for one operator on one call's tensors.

`eager`: PyTorch's operators. `compile`: the same, compiled for themselves; what is compiled as a
whole is not compiled twice. `triton`: our kernels.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.fx.experimental.symbolic_shapes import has_static_value

from kernelbench.dispatch import Dispatch
from kernelbench.dispatch.choice import OPEN
from kernelbench.dispatch.table import Axis
from kernelbench.kernels.launch import refusal
from kernelbench.kernels.operators import graded

Impl = Literal["auto", "eager", "compile", "triton"]
IMPLS: tuple[Impl, ...] = get_args(Impl)
Axes = tuple[tuple[str, int | bool], ...]

# What a family of the benchmark calls these, the one to be taken on a miss first.
PROVIDERS: dict[str, dict[str, str]] = {
    "rms_norm": {"eager": "torch_fused", "compile": "compile", "triton": "triton_fused"},
    "rotary": {"eager": "eager", "compile": "torch_fused", "triton": "triton_fused"},
    "attention": {"eager": "baseline", "triton": "triton_fused"},
    "swiglu": {"eager": "eager", "compile": "compile", "triton": "triton_fused"},
}
_NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
_PLAIN = (Tensor, torch.nn.Parameter, FakeTensor)
_said: set[str] = set()
_dispatch: Dispatch | None = None


def use_dispatch(dispatch: Dispatch | None) -> None:
    """What `impl="auto"` of every module here asks from now on, as `kernelbench.dispatch_from`
    makes it; None for the rule without a table: our kernels where they run on a GPU, else PyTorch.

    Graphs that torch.compile has made keep what they chose.
    """
    global _dispatch
    _dispatch = dispatch


def check_impl(name: str, impl: str) -> None:
    """Raise ValueError for an unknown one."""
    if impl not in IMPLS:
        raise ValueError(f"{name} has no impl {impl!r}. Known: {', '.join(IMPLS)}")


def chosen(
    op: str,
    impl: str,
    axes: Callable[[], Axes],
    *tensors: Tensor,
    untabled: Callable[[], str] = lambda: "triton",
) -> str:
    """`impl`, or what `auto` comes to: `eager`, `compile` or `triton`.

    op: a family of the benchmark. axes: makes those of its cases that differ from the defaults.
    tensors: all that may have a gradient, on one device, the first of the call's dtype; subclasses,
        as sharded ones, are PyTorch's, but for FakeTensor, which stands for a plain one.
    untabled: the rule without a table, for tensors that our kernels take.

    By the dispatch table of `use_dispatch`: the choice for mode `full` where a gradient is to come,
    or else what forward and backward agree on; in a graph that leaves a size open, that for a case
    that was not measured. What stands in the way of our kernels is warned of, once a reason.
    """
    if impl != "auto":
        return impl
    for tensor in tensors:
        if type(tensor) not in _PLAIN:
            _say(f"tensors of {type(tensor).__name__}")
            return "eager"
        if why_not(tensor.device, tensor.dtype):
            return "eager"
    case = tuple((name, _known(value)) for name, value in axes())
    asked: str = _asked(op, _NAMES[tensors[0].dtype], graded(*tensors), case)
    return asked or untabled()


def _known(value: int | bool) -> Axis:
    """A size as a table has it, which in a dynamic graph may be open."""
    if isinstance(value, bool):
        return value
    return int(value) if has_static_value(value) else OPEN


@torch._dynamo.assume_constant_result  # type: ignore[no-untyped-call, untyped-decorator, unused-ignore]
def why_not(device: torch.device, dtype: torch.dtype) -> str:
    """Why `auto` takes PyTorch's operators here, which a warning says once; or ""."""
    why = refusal(device) if device.type in ("cuda", "meta") else f"tensors on {device.type}"
    if why is None and dtype not in _NAMES:
        why = f"tensors of {dtype}"
    if why is not None and device.type != "meta":
        _say(why)
    return why or ""


@torch._dynamo.assume_constant_result  # type: ignore[no-untyped-call, untyped-decorator, unused-ignore]
def _say(why: str) -> None:
    if why not in _said:
        _said.add(why)
        warnings.warn(f"kernelbench.nn takes PyTorch's operators, not our kernels: {why}",
                      stacklevel=2)  # fmt: skip


@torch._dynamo.assume_constant_result  # type: ignore[no-untyped-call, untyped-decorator, unused-ignore]
def _asked(op: str, dtype: str, backward: bool, axes: tuple[tuple[str, Axis], ...]) -> str:
    """By the table; "" where there is none."""
    table = _dispatch
    if table is None:
        return ""
    names = PROVIDERS[op]
    among = tuple(names.values())
    impls: Mapping[str, str] = {provider: impl for impl, provider in names.items()}

    def ask(mode: str) -> tuple[str, bool]:
        choice = table.choose(op, dtype, mode, axes, among)
        if choice.how == "baseline" and OPEN in dict(axes).values():
            _say("a graph of torch.compile leaves sizes open, for which no table has a choice")
        return impls[choice.provider], choice.how != "baseline"

    if not backward:
        return ask("fwd")[0]
    whole, found = ask("full")
    if found:
        return whole
    (there, _), (back, _) = ask("fwd"), ask("bwd")
    return there if there == back else impls[among[0]]
