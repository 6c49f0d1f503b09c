"""For writing providers: a torch.compile that cannot fall back, the bytes of eager operators."""

import shutil
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernelbench.spec import Call, Device, Mode, Tensors, Traffic

DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}

MAX_AUTOTUNE = "max-autotune-no-cudagraphs"


def compiled(function: Callable[..., Any], mode: str = "default") -> Callable[..., Any]:
    """torch.compile with static shapes, and an error where Dynamo would fall back to eager.

    mode: of torch.compile, as `MAX_AUTOTUNE`. `donated_buffer` is off so that a backward can be
    called again on the same graph.
    """
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    torch._functorch.config.donated_buffer = False
    return torch.compile(function, dynamic=False, fullgraph=True, mode=mode)


def pushed(call: Call, names: Sequence[str]) -> Call:
    """For mode `jvp`: a call that returns the outputs, then their tangents, from `tangent_x` of
    each input x in `names`."""

    def with_tangents(a: Tensors) -> tuple[torch.Tensor, ...]:
        def function(*arguments: torch.Tensor) -> tuple[torch.Tensor, ...]:
            outputs = call({**a, **dict(zip(names, arguments, strict=True))})
            return outputs if isinstance(outputs, tuple) else (outputs,)

        primals = tuple(a[name] for name in names)
        arguments = tuple(a[f"tangent_{name}"] for name in names)
        outputs, tangents, *_ = torch.func.jvp(function, primals, arguments)
        return (*outputs, *tangents)

    return with_tangents


def no_jvp(case: Any, device: Device) -> str | None:
    """Why a function without a forward-mode derivative cannot run a case, or None."""
    return "has no forward-mode derivative" if case.mode is Mode.jvp else None


def no_compiler(case: Any, device: Device) -> str | None:
    """Why torch.compile cannot run here, or None."""
    if device.kind == "cpu" and shutil.which("g++") is None and shutil.which("c++") is None:
        return "torch.compile needs a C++ compiler on a CPU, and none is on the PATH"
    return None


def no_autotuner(case: Any, device: Device) -> str | None:
    """Why torch.compile cannot choose kernels by trial here, or None."""
    return None if device.kind == "cuda" else "autotuning times kernels on a GPU; there is none"


class MetaDraw:
    """Shapes and strides of a family's inputs without their memory (see spec.Draw)."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.device, self.dtype = torch.device("meta"), dtype

    def __call__(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype or self.dtype, device=self.device)

    def integers(self, low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.int64, device=self.device)


class _OpBytes(TorchDispatchMode):
    """Every aten operator reads its tensor arguments once and writes its results once.

    Views move nothing; neither do constructors that leave memory as it is. What an operator
    reads by broadcasting is counted at its stored size. An operator that is two kernels, such as
    zeros and a copy into them, moves what both do.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows: list[Traffic] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.is_view or func.overloadpacket.__name__ in ("empty", "empty_like", "new_empty"):
            return out
        name = func.overloadpacket.__name__
        if isinstance(out, bool):  # forward mode compares the layouts of two tensors
            return out
        targets = [out] if isinstance(out, torch.Tensor) else list(out)
        sources = tensors_in([*args, *(kwargs or {}).values()])
        if name == "copy_":
            sources = sources[1:]
        read = sum(stored_bytes(t) for t in sources if not name.endswith("_like"))
        write = sum(stored_bytes(t) for t in targets if isinstance(t, torch.Tensor))
        if name in ("slice_backward", "select_backward"):  # zeros, then a copy into them
            write += read
        if name == "masked_fill":  # a copy, then a pass over it
            read, write = read + write, 2 * write
        self.rows.append(Traffic(f"{len(self.rows) + 1} {name}", read, write))
        return out


def tensors_in(nest: Any) -> list[torch.Tensor]:
    """The tensors of any nest of lists, tuples and dicts, in order."""
    return [leaf for leaf in tree_leaves(nest) if isinstance(leaf, torch.Tensor)]


def stored_bytes(tensor: torch.Tensor) -> int:
    """Bytes that a tensor's elements occupy; a broadcast dimension is stored once."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= 1 if stride == 0 else size
    return count * tensor.element_size()


def eager_traffic(
    case: Any,
    inputs: Callable[..., Any],
    call: Callable[[Any], Any],
    outputs: tuple[str, ...],
    grads: tuple[str, ...],
) -> tuple[Traffic, ...]:
    """The byte model of an unfused provider: one row per aten operator, in the case's mode.

    The provider runs on tensors without memory, so the model costs nothing and follows the
    operators that this torch dispatches to.
    """
    tensors = dict(inputs(case, MetaDraw(DTYPES[case.dtype])))
    graded = [tensors[name].requires_grad_() for name in grads] if case.mode.graded else []
    forward, backward = _OpBytes(), _OpBytes()
    with torch.set_grad_enabled(bool(graded)):
        with forward:
            out = call(tensors)
        if graded:
            produced = out if isinstance(out, tuple) else (out,)
            upstream = [tensors[f"grad_{name}"] for name in outputs]
            with backward:
                torch.autograd.grad(produced, graded, upstream)
    return (*(forward.rows if case.mode != Mode.bwd else ()), *backward.rows)
