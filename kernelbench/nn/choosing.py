"""Which implementation a module's `impl="auto"` comes to, for one operator on one call's tensors.

`eager`: PyTorch's operators. `compile`: the same, compiled for themselves; what is compiled as a
whole is not compiled twice. `triton`: our kernels.
"""

import warnings
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from kernelbench.dispatch import Dispatch
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


def chosen(op: str, impl: str, axes: Callable[[], Axes], *tensors: Tensor) -> str:
    """`impl`, or what `auto` comes to: `eager`, `compile` or `triton`.

    op: a family of the benchmark. axes: makes those of its cases that differ from the defaults.
    tensors: all that may have a gradient, on one device, the first of the call's dtype; subclasses,
        as sharded ones, are PyTorch's.

    By the dispatch table of `use_dispatch`: the choice for mode `full` where a gradient is to come,
    or else what forward and backward agree on. Without one `triton` where the kernels run on a GPU.
    What stands in the way of our kernels is warned of, once a reason.
    """
    if impl != "auto":
        return impl
    first = tensors[0]
    if any(type(tensor) not in (Tensor, torch.nn.Parameter) for tensor in tensors):
        return "eager"
    if why_not(first.device, first.dtype):
        return "eager"
    if has_table():
        asked: str = _asked(op, _NAMES[first.dtype], graded(*tensors), axes())
        return asked
    return "triton"


@torch._dynamo.assume_constant_result  # type: ignore[no-untyped-call, untyped-decorator, unused-ignore]
def why_not(device: torch.device, dtype: torch.dtype) -> str:
    """Why `auto` takes PyTorch's operators here, which a warning says once; or ""."""
    why = refusal(device) if device.type in ("cuda", "meta") else f"tensors on {device.type}"
    if why is None and dtype not in _NAMES:
        why = f"tensors of {dtype}"
    if why is not None and why not in _said and device.type != "meta":
        _said.add(why)
        warnings.warn(f"kernelbench.nn takes PyTorch's operators, not our kernels: {why}",
                      stacklevel=2)  # fmt: skip
    return why or ""


@torch._dynamo.assume_constant_result  # type: ignore[no-untyped-call, untyped-decorator, unused-ignore]
def has_table() -> bool:
    """Whether `auto` asks a table."""
    return _dispatch is not None


@torch._dynamo.assume_constant_result  # type: ignore[no-untyped-call, untyped-decorator, unused-ignore]
def _asked(op: str, dtype: str, backward: bool, axes: Axes) -> str:
    assert _dispatch is not None
    names = PROVIDERS[op]
    among = tuple(names.values())
    impls: Mapping[str, str] = {provider: impl for impl, provider in names.items()}

    def ask(mode: str) -> tuple[str, bool]:
        choice = _dispatch.choose(op, dtype, mode, axes, among)
        return impls[choice.provider], choice.how != "baseline"

    if not backward:
        return ask("fwd")[0]
    whole, found = ask("full")
    if found:
        return whole
    (there, _), (back, _) = ask("fwd"), ask("bwd")
    return there if there == back else impls[among[0]]


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of tensors, compiled for itself; inside a graph of torch.compile, itself."""
    alone = torch.compile(function, fullgraph=True)

    def call(*args: Any) -> Any:
        return function(*args) if torch.compiler.is_compiling() else alone(*args)

    return call
