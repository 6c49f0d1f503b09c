"""A workload: one provider bound to one case's inputs, ready to be called.

The untimed part (drawing inputs, layout, compiling, the forward pass before a backward) happens
outside `call`, which contains only what a user would pay for.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from kernelbench.kernels import interpreter
from kernelbench.measure import layout
from kernelbench.measure.inputs import CaseInputs, Tensors, copy_into
from kernelbench.measure.lot import Lot
from kernelbench.spec import Case, Device, DType, Family, Mode, Prepared, Provider
from kernelbench.spec.family import as_they_are


def why_not(provider: Provider[Any], case: Case, device: Device) -> str | None:
    """The reason why a provider cannot run a case here, or None."""
    for module in provider.requires:
        if module == "triton":
            if device.no_triton:
                return device.no_triton
        elif importlib.util.find_spec(module) is None:
            return f"{module} is not installed (`kernelbench doctor` says how to get it)"
    if "triton" in provider.requires and device.kind == "cpu" and case.dtype is DType.bf16:
        return interpreter.WRONG_BF16
    return provider.unsupported(case, device)


class NoBackwardError(Exception):
    """A provider that is asked for gradients has none to give."""


class Workload:
    """One provider on one case: `ready()` once, then `restore()` and `call()` any number of times.

    args: the provider's arguments. outputs: names of its forward's outputs. mutates: names of
    arguments that it declares to overwrite. prepared: what its `prepare` returned. lot: judges some
    of the timed calls. watch: is called with what the provider's forward returned; unset while
    timed. call: the timed call of the case's mode, to be run inside `grad_mode()`.
    """

    def __init__(
        self,
        family: Family[Any],
        case: Any,
        provider: Provider[Any],
        inputs: CaseInputs,
        config: Any,
    ) -> None:
        self.name = provider.name
        self.mutates = provider.mutates(case)
        self._inputs = inputs
        self._prepare = partial(provider.prepare, case)
        self._may_compute = provider.prepacked or provider.prepare is as_they_are
        self.outputs = family.outputs(case)
        self._graded = family.grads(case) if case.mode.graded else ()
        self.mode: Mode = case.mode
        shared = {n: t.clone() if n in self.mutates else t for n, t in inputs.tensors.items()}
        laid_out = self._prepare(shared)
        self.prepared: tuple[Prepared, ...] = layout.describe_layout(
            laid_out, shared, provider.prepare
        )
        self.args: Tensors = {
            name: tensor.detach().requires_grad_(name in self._graded)
            for name, tensor in laid_out.items()
        }
        self._leaves = [self.args[name] for name in self._graded]
        self._upstream: Tensors = {}  # empty until the forward has run
        self._upstream_values: list[torch.Tensor] = []
        self._differentiated: list[int] | None = None  # indices of outputs with upstream; None: all
        self._saved: Tensors = {}
        self._function = provider.build(case, config)
        self._graph: tuple[torch.Tensor, ...] = ()
        self.lot: Lot | None = None
        self.watch: Callable[[Any], None] | None = None
        self.call: Callable[[], tuple[torch.Tensor, ...]] = {
            Mode.fwd: self._forward,
            Mode.bwd: self._backward,
            Mode.full: self._full,
            Mode.jvp: self._forward,
        }[self.mode]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of what `call` returns, in order."""
        outputs = () if self.mode is Mode.bwd else self.outputs
        return (*outputs, *(f"d{name}" for name in self._graded))

    def prepare_fault(self) -> str:
        """Why its untimed `prepare` is not a mere layout, though not declared prepacked; or ""."""
        if self._may_compute:
            return ""
        return layout.layout_fault(self._prepare, self._inputs.tensors)

    def all_tensors(self) -> Tensors:
        """The inputs, the upstream gradients, and what a backward's forward returned, by name."""
        return self.inputs() | dict(zip(self.outputs, self._graph, strict=False))

    def inputs(self) -> Tensors:
        """The inputs and, once `ready`, the upstream gradients; an output may lie in them."""
        return self.args | self._upstream

    def grad_mode(self) -> Any:
        """The context of `call`: with a graph only in modes with a backward."""
        return torch.set_grad_enabled(self.mode.graded)

    def ready(self) -> None:
        """Copy the current inputs into the arguments; for a backward, run its forward. Untimed.

        The old graph is deleted first: a leaf's gradient node that outlived it would keep the
        stream on which it was made, and a CUDA graph of the backward cannot be captured on that.
        Upstream gradients are drawn last, so that no forward can use them or their memory.
        """
        self.release()
        pristine = self.pristine_args()
        for name, tensor in pristine.items():
            copy_into(self.args[name], tensor)
        if self.mode is Mode.bwd:
            with torch.enable_grad():
                self._graph = self._forward()
            if self._graded and not any(getattr(o, "requires_grad", False) for o in self._graph):
                raise NoBackwardError(
                    "no gradient leads back from its outputs: it has no backward, which a "
                    "torch.autograd.Function would give it"
                )
        self._draw_upstream()
        self._saved = {name: pristine[name] for name in self.mutates if name in pristine}
        self._saved |= {n: t.clone() for n, t in self._upstream.items() if n in self.mutates}
        if self.mode is Mode.bwd:
            self.restore()

    def _draw_upstream(self) -> None:
        """Draw them in the order of the outputs; an output without one is not differentiated."""
        drawn = self._inputs.upstream()
        names = [f"grad_{output}" for output in self.outputs]
        self._upstream = {name: drawn[name] for name in names if name in drawn}
        self._upstream_values = [*self._upstream.values()]
        indices = [i for i, name in enumerate(names) if name in drawn]
        self._differentiated = None if len(indices) == len(names) else indices

    def release(self) -> None:
        """Release all memory but the inputs', until the next `ready`."""
        self._graph, self._saved, self._upstream, self._upstream_values = (), {}, {}, []

    def restore(self) -> None:
        """Restore what the provider declares to overwrite; costs nothing where that is nothing."""
        for name, tensor in self._saved.items():
            copy_into(self._upstream[name] if name in self._upstream else self.args[name], tensor)

    def peak_bytes(self) -> int | None:
        """The peak of GPU memory that one call adds, in bytes; None without a GPU."""
        if not all(tensor.is_cuda for tensor in self.args.values()):
            return None
        self.ready()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        with self.grad_mode():
            self.call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def poison(self) -> None:
        """Fill every input with NaN; `refill` undoes it in stream order."""
        for tensor in (*self.args.values(), *self._upstream.values()):
            if tensor.is_floating_point():
                tensor.data.fill_(float("nan"))

    def refill(self, snapshot: Tensors) -> None:
        """Copy the inputs back. snapshot: what `snapshot` returned before they were poisoned."""
        for name, tensor in snapshot.items():
            copy_into(self._upstream[name] if name in self._upstream else self.args[name], tensor)

    def changed(self, snapshot: Tensors) -> list[str]:
        """Names of inputs that differ from `snapshot`, but are not declared to be overwritten."""
        now = self.inputs()
        return [
            name
            for name, tensor in snapshot.items()
            if name not in self.mutates and not torch.equal(now[name], tensor)
        ]

    def snapshot(self) -> Tensors:
        """Copies of the inputs and upstream gradients as they are right after `ready`."""
        return self.pristine_args() | {name: t.clone() for name, t in self._upstream.items()}

    def pristine_args(self) -> Tensors:
        """The arguments without any change: this provider's layout of the drawn inputs."""
        return dict(self._prepare(self._inputs.pristine))

    def _forward(self) -> tuple[torch.Tensor, ...]:
        """Call the provider with its own copy of the mapping, which the call may change.

        The items of a tuple subclass are read here, by tuple's own iterator, so that the subclass
        cannot compute them after the call.
        """
        out = self._function(dict(self.args))
        if self.watch is not None:
            self.watch(out)
        if type(out) is tuple:
            return out
        return tuple(tuple.__iter__(out)) if isinstance(out, tuple) else (out,)

    def _backward(self) -> tuple[torch.Tensor, ...]:
        return self._gradients(self._graph, retain_graph=True)

    def _full(self) -> tuple[torch.Tensor, ...]:
        out = self._forward()
        return (*(o.detach() for o in out), *self._gradients(out, retain_graph=False))

    def _gradients(
        self, outputs: tuple[torch.Tensor, ...], retain_graph: bool
    ) -> tuple[torch.Tensor, ...]:
        indices = self._differentiated
        roots = outputs if indices is None else [outputs[i] for i in indices]
        upstream = self._upstream_values
        return torch.autograd.grad(roots, self._leaves, upstream, retain_graph=retain_graph)


@dataclass(eq=False)
class Standing:
    """Stands in for a workload with a clock, as a base of those whose call is another."""

    workload: Workload
    lot: None = field(default=None, init=False)  # judges nothing

    @property
    def name(self) -> str:
        return self.workload.name

    def grad_mode(self) -> Any:
        return self.workload.grad_mode()

    def ready(self) -> None:
        self.workload.ready()

    def restore(self) -> None:
        self.workload.restore()
