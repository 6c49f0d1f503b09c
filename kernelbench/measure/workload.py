"""A workload: one provider bound to one case's inputs, ready to be called.

The untimed part (drawing inputs, layout, compiling, the forward pass before a backward) happens
here, so that `call` holds nothing but what a user would pay for.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from kernelbench.measure.environment import TORCH_DTYPES
from kernelbench.spec import Case, Device, Distribution, DType, Family, Mode, Provider

Tensors = dict[str, torch.Tensor]


class Draw:
    """Draws inputs from the case's distribution, reproducibly from a seed (see spec.Draw)."""

    def __init__(self, case: Case, device: str, seed: int) -> None:
        self.device = torch.device(device)
        self.dtype = TORCH_DTYPES[case.dtype]
        self._kind = case.inputs
        self._generator = torch.Generator(self.device).manual_seed(seed)

    def __call__(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        out = torch.empty(shape, dtype=dtype or self.dtype, device=self.device)
        match self._kind:
            case Distribution.zeros:
                return out.zero_()
            case Distribution.ones:
                return out.fill_(1)
            case Distribution.uniform:
                return out.uniform_(-1, 1, generator=self._generator)
            case Distribution.normal:
                return out.normal_(generator=self._generator)
            case Distribution.outliers:
                out.normal_(generator=self._generator)
                out.view(-1)[::1024] *= 100
                return out

    def integers(self, low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=self._generator, device=self.device)


class CaseInputs:
    """The inputs of one case, shared by its providers, beside a pristine copy of them."""

    def __init__(self, family: Family[Any], case: Case, device: str, seed: int) -> None:
        self._family, self._case, self._device = family, case, device
        self.tensors: Tensors = dict(family.inputs(case, Draw(case, device, seed)))
        self.pristine: Tensors = {name: t.clone() for name, t in self.tensors.items()}
        self.alike = case.inputs in (Distribution.zeros, Distribution.ones)

    def redraw(self, seed: int) -> None:
        """Draw fresh values, which `Workload.ready` puts into the very same memory.

        A cached answer is then a wrong one. Where all values are alike, so would fresh ones be:
        they are drawn from a normal distribution.
        """
        self.pristine = {}
        like = replace(self._case, inputs=Distribution.normal) if self.alike else self._case
        fresh = self._family.inputs(self._case, Draw(like, self._device, seed))
        self.pristine = dict(fresh)


def put(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copy, also into a tensor that a layout expanded (stride 0): each element is stored once."""
    for dim, (size, stride) in enumerate(zip(target.shape, target.stride(), strict=True)):
        if stride == 0 and size > 1:
            target, source = target.narrow(dim, 0, 1), source.narrow(dim, 0, 1)
    target.data.copy_(source)


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
        self._outputs = family.outputs(case)
        self._graded = family.grads(case) if case.mode is not Mode.fwd else ()
        self.mode: Mode = case.mode
        shared = {n: t.clone() if n in self.mutates else t for n, t in inputs.tensors.items()}
        self.args: Tensors = {
            name: tensor.detach().requires_grad_(name in self._graded)
            for name, tensor in self._prepare(shared).items()
        }
        self._leaves = [self.args[name] for name in self._graded]
        named = [(i, f"grad_{o}") for i, o in enumerate(self._outputs)]
        named = [(i, name) for i, name in named if self._graded and name in self.args]
        self._upstream = [self.args[name] for _, name in named]
        # Which outputs take part in the backward; None for all, so that a timed call does less.
        self._chosen = None if len(named) == len(self._outputs) else [i for i, _ in named]
        self._saved: Tensors = {}
        self._function = provider.build(case, config)
        self._graph: tuple[torch.Tensor, ...] = ()
        # The timed call of this mode; to be run inside `grad_mode()`.
        self.call: Callable[[], tuple[torch.Tensor, ...]] = {
            Mode.fwd: self._forward,
            Mode.bwd: self._backward,
            Mode.full: self._full,
        }[self.mode]

    @property
    def names(self) -> tuple[str, ...]:
        """What `call` returns, in order."""
        outputs = () if self.mode is Mode.bwd else self._outputs
        return (*outputs, *(f"d{name}" for name in self._graded))

    def known(self) -> Tensors:
        """The inputs, and what a backward's forward returned, by name."""
        return self.args | dict(zip(self._outputs, self._graph, strict=False))

    def grad_mode(self) -> Any:
        """`fwd` runs without a graph and stores nothing for a backward."""
        return torch.set_grad_enabled(self.mode is not Mode.fwd)

    def ready(self) -> None:
        """Untimed: take in the inputs as they are now; for a backward, run its forward.

        The old graph goes first: a leaf's gradient node that outlived it would keep the stream
        of its making, on which a CUDA graph of the backward cannot be captured.
        """
        self._graph = ()
        right = self.right()
        self._saved = {name: right[name] for name in self.mutates if name in right}
        for name, tensor in right.items():
            put(self.args[name], tensor)
        if self.mode is Mode.bwd:
            with torch.enable_grad():
                self._graph = self._forward()
            self.restore()

    def rest(self) -> None:
        """Hold nothing but the inputs until the next `ready`."""
        self._graph, self._saved = (), {}

    def restore(self) -> None:
        """Undo what the provider says it overwrites. Costs nothing when it overwrites nothing."""
        for name, tensor in self._saved.items():
            put(self.args[name], tensor)

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
        for tensor in self.args.values():
            if tensor.is_floating_point():
                tensor.data.fill_(float("nan"))

    def refill(self, right: Tensors) -> None:
        """right: what `right` returned before the inputs were poisoned."""
        for name, tensor in right.items():
            put(self.args[name], tensor)

    def changed(self) -> list[str]:
        """Inputs that the last call changed without saying so."""
        return [
            name
            for name, tensor in self.right().items()
            if name not in self.mutates and not torch.equal(self.args[name], tensor)
        ]

    def right(self) -> Tensors:
        """The arguments as they ought to be: this provider's layout of what was drawn."""
        return dict(self._prepare(self._inputs.pristine))

    def _forward(self) -> tuple[torch.Tensor, ...]:
        out = self._function(self.args)
        return out if isinstance(out, tuple) else (out,)

    def _backward(self) -> tuple[torch.Tensor, ...]:
        return self._gradients(self._graph, retain_graph=True)

    def _full(self) -> tuple[torch.Tensor, ...]:
        out = self._forward()
        return (*(o.detach() for o in out), *self._gradients(out, retain_graph=False))

    def _gradients(
        self, outputs: tuple[torch.Tensor, ...], retain_graph: bool
    ) -> tuple[torch.Tensor, ...]:
        chosen = outputs if self._chosen is None else [outputs[i] for i in self._chosen]
        return torch.autograd.grad(chosen, self._leaves, self._upstream, retain_graph=retain_graph)
