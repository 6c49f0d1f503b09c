"""A workload: one provider bound to one case's inputs, ready to be called.

The untimed part (drawing inputs, layout, compiling, the forward pass before a backward) happens
here, so that `call` holds nothing but what a user would pay for.
"""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from kernelbench.measure import layout
from kernelbench.measure.inputs import CaseInputs, Tensors, put
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
        return "bf16 arithmetic is wrong in Triton's interpreter"
    return provider.unsupported(case, device)


class Workload:
    """One provider on one case: `restore()` then `call()`, as often as a timer likes."""

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
        self.outputs = family.outputs(case)  # of its forward
        self._graded = family.grads(case) if case.mode.graded else ()
        self.mode: Mode = case.mode
        shared = {n: t.clone() if n in self.mutates else t for n, t in inputs.tensors.items()}
        laid_out = self._prepare(shared)
        self.prepared: tuple[Prepared, ...] = layout.described(laid_out, shared, provider.prepare)
        self.args: Tensors = {
            name: tensor.detach().requires_grad_(name in self._graded)
            for name, tensor in laid_out.items()
        }
        self._leaves = [self.args[name] for name in self._graded]
        self._upstream: Tensors = {}  # not before the forward has run
        self._given: list[torch.Tensor] = []  # its values
        self._chosen: list[int] | None = None  # outputs that take part in the backward; None: all
        self._saved: Tensors = {}
        self._function = provider.build(case, config)
        self._graph: tuple[torch.Tensor, ...] = ()
        self.lot: Lot | None = None  # judges some of the timed calls
        # Looks at what the provider's forward returned, as it was returned; unset while timed.
        self.watch: Callable[[Any], None] | None = None
        # The timed call of this mode; to be run inside `grad_mode()`.
        self.call: Callable[[], tuple[torch.Tensor, ...]] = {
            Mode.fwd: self._forward,
            Mode.bwd: self._backward,
            Mode.full: self._full,
            Mode.jvp: self._forward,
        }[self.mode]

    @property
    def names(self) -> tuple[str, ...]:
        """What `call` returns, in order."""
        outputs = () if self.mode is Mode.bwd else self.outputs
        return (*outputs, *(f"d{name}" for name in self._graded))

    def computed(self) -> str:
        """Why its untimed `prepare` is more than a layout, and does not say so; or nothing."""
        if self._may_compute:
            return ""
        return layout.computed(self._prepare, self._inputs.tensors)

    def known(self) -> Tensors:
        """The inputs, upstream gradients, and what a backward's forward returned, by name."""
        return self.given() | dict(zip(self.outputs, self._graph, strict=False))

    def given(self) -> Tensors:
        """The inputs and, once `ready`, the upstream gradients: an output may lie in them."""
        return self.args | self._upstream

    def grad_mode(self) -> Any:
        """Without a backward there is no graph, and nothing is stored for one."""
        return torch.set_grad_enabled(self.mode.graded)

    def ready(self) -> None:
        """Untimed: take in the inputs as they are now; for a backward, run its forward.

        The old graph goes first: a leaf's gradient node that outlived it would keep the stream
        of its making, on which a CUDA graph of the backward cannot be captured. Upstream gradients
        are drawn last: no forward can make use of them, or of their memory.
        """
        self.rest()
        right = self.right()
        for name, tensor in right.items():
            put(self.args[name], tensor)
        if self.mode is Mode.bwd:
            with torch.enable_grad():
                self._graph = self._forward()
        self._draw_upstream()
        self._saved = {name: right[name] for name in self.mutates if name in right}
        self._saved |= {n: t.clone() for n, t in self._upstream.items() if n in self.mutates}
        if self.mode is Mode.bwd:
            self.restore()

    def _draw_upstream(self) -> None:
        """In the order of the outputs; those without one take no part in the backward."""
        drawn = self._inputs.upstream()
        names = [f"grad_{output}" for output in self.outputs]
        self._upstream = {name: drawn[name] for name in names if name in drawn}
        self._given = [*self._upstream.values()]
        chosen = [i for i, name in enumerate(names) if name in drawn]
        self._chosen = None if len(chosen) == len(names) else chosen

    def rest(self) -> None:
        """Hold nothing but the inputs until the next `ready`."""
        self._graph, self._saved, self._upstream, self._given = (), {}, {}, []

    def restore(self) -> None:
        """Undo what the provider says it overwrites. Costs nothing when it overwrites nothing."""
        for name, tensor in self._saved.items():
            put(self._upstream[name] if name in self._upstream else self.args[name], tensor)

    def peak_bytes(self) -> int | None:
        """What a call takes on a GPU at most, above what was there before it; None without one."""
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
        """Put NaN in every input, to be made good by `refill` in stream order."""
        for tensor in (*self.args.values(), *self._upstream.values()):
            if tensor.is_floating_point():
                tensor.data.fill_(float("nan"))

    def refill(self, right: Tensors) -> None:
        """right: what `state` returned before the inputs were poisoned."""
        for name, tensor in right.items():
            put(self._upstream[name] if name in self._upstream else self.args[name], tensor)

    def changed(self, right: Tensors) -> list[str]:
        """Inputs that are not as in `right`, and that the provider does not say it overwrites."""
        now = self.given()
        return [
            name
            for name, tensor in right.items()
            if name not in self.mutates and not torch.equal(now[name], tensor)
        ]

    def state(self) -> Tensors:
        """What inputs and upstream gradients are right after `ready`, apart from them."""
        return self.right() | {name: t.clone() for name, t in self._upstream.items()}

    def right(self) -> Tensors:
        """The arguments as they ought to be: this provider's layout of what was drawn."""
        return dict(self._prepare(self._inputs.pristine))

    def _forward(self) -> tuple[torch.Tensor, ...]:
        """The provider gets a mapping of its own: what it binds there is gone with the call.

        A tuple's subclass has no say in what its items are: they are there when the call returns.
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
        chosen = outputs if self._chosen is None else [outputs[i] for i in self._chosen]
        return torch.autograd.grad(chosen, self._leaves, self._given, retain_graph=retain_graph)
