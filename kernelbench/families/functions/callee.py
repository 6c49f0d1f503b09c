"""A function or module as it is called with a case's arguments by name."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch.func import functional_call

from kernelbench.families.functions.targets import Target, bound
from kernelbench.spec import UsageError

ByName = Callable[[Mapping[str, Any]], Any]  # of every argument, and every parameter, by name


SPREAD = 0.1  # by how much a parameter differs from what the module initialises it with


class Parameters:
    """The parameters and buffers of a reference that is a module, as inputs of a case: the one at
    `layers.0.weight` is `layers_0_weight`. Tied ones are one input.

    Raises UsageError where an argument, or another parameter, is called so.
    """

    def __init__(self, target: Target, arguments: Sequence[str]) -> None:
        self._target = target
        trained, buffers = _named(target.example)
        self.keys: dict[str, tuple[str, ...]] = {}
        by_tensor: dict[int, str] = {}
        for key, tensor in {**trained, **buffers}.items():
            name = by_tensor.setdefault(id(tensor), key.replace(".", "_"))
            taken = name in arguments or (name in self.keys and name == key.replace(".", "_"))
            if taken:
                raise UsageError(
                    f"{target.text}: the input {name!r} is both its {key} and another argument or "
                    "parameter: rename one"
                )
            self.keys[name] = (*self.keys.get(name, ()), key)
        self.buffers = tuple(n for n, keys in self.keys.items() if keys[0] not in trained)

    def drawn(self, seed: int, device: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """As the module initialises them under a seed, each parameter then scaled by up to
        1 ± SPREAD, zeros moved by up to SPREAD, and so are buffers that are constant: a candidate
        that leaves out a weight of ones or a bias of zeros is found. Floating ones are in the
        case's dtype."""
        trained, buffers = _named(self._target.module(seed))
        generator = torch.Generator().manual_seed(seed)
        values = {}
        for name, (key, *_) in self.keys.items():
            value = {**trained, **buffers}[key].detach()
            if value.is_floating_point() and (key in trained or _is_constant(value)):
                noise = torch.empty(value.shape).uniform_(-SPREAD, SPREAD, generator=generator)
                value = torch.where(value == 0, noise, value * (1 + noise)).to(value.dtype)
            kind = dtype if value.is_floating_point() else value.dtype
            values[name] = value.to(device, kind, copy=True)
        return values

    def hold_alike(self, target: Target) -> None:
        """Raises UsageError for a candidate that has other parameters or buffers."""
        trained, buffers = _named(target.example)
        have, wanted = {*trained, *buffers}, {key for keys in self.keys.values() for key in keys}
        if have == wanted:
            return
        lacks = ", ".join(sorted(wanted - have)[:4]) or "nothing"
        more = ", ".join(sorted(have - wanted)[:4]) or "nothing"
        raise UsageError(
            f"{target.text} is given the weights of the reference by their names in state_dict, "
            f"but lacks {lacks}, and has {more} besides: name its parameters as the reference does"
        )


def _named(module: torch.nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Parameters and buffers by their keys, tied ones by each of theirs."""
    trained: dict[str, torch.Tensor] = dict(module.named_parameters(remove_duplicate=False))
    return trained, dict(module.named_buffers(remove_duplicate=False))


def _is_constant(value: torch.Tensor) -> bool:
    return value.numel() > 0 and bool((value == value.flatten()[0]).all())


class Callee:
    """names: of the arguments, in order; parameters: where the reference is a module.

    Raises UsageError for a target that does not take these arguments.
    """

    def __init__(
        self, target: Target, names: Sequence[str], parameters: Parameters | None = None
    ) -> None:
        self.target = target
        self._keywords = bound(target, names)
        self._positional = [name for name in names if name not in self._keywords]
        self._parameters = parameters if target.is_module else None
        if self._parameters is not None:
            self._parameters.hold_alike(target)
        elif target.is_module and any(map(len, _named(target.example))):
            raise UsageError(
                f"{target.text} has weights, and the reference, a function, has none to give it: "
                "name a module as the reference, or make these arguments of a function"
            )

    def instance(self) -> ByName:
        """What a provider calls: a module holds the case's tensors in place of its own."""
        if self._parameters is None:
            function = (
                self.target.module().eval() if self.target.is_module else self.target.function
            )
            return self._by_name(function)
        module = self.target.module().eval()
        keys = self._parameters.keys.items()
        places = [(*_place(module, key), name) for name, same in keys for key in same]
        call = self._by_name(module)

        def with_tensors(a: Mapping[str, Any]) -> Any:
            for held, key, name in places:
                if held[key] is not a[name]:
                    held[key] = a[name]
            return call(a)

        return with_tensors

    @cached_property
    def pure(self) -> ByName:
        """The same, leaving the module as it is: for fp64, and for torch.compile."""
        if self._parameters is None:
            return self.instance()
        module, keys = self.target.module().eval(), self._parameters.keys

        def with_state(a: Mapping[str, Any]) -> Any:
            state = {key: a[name] for name, same in keys.items() for key in same}
            keywords = {name: a[name] for name in self._keywords}
            return functional_call(module, state, tuple(a[n] for n in self._positional), keywords)

        return with_state

    def _by_name(self, call: Callable[..., Any]) -> ByName:
        positional, keywords = self._positional, self._keywords
        if keywords:
            return lambda a: call(*[a[n] for n in positional], **{n: a[n] for n in keywords})
        return lambda a: call(*[a[n] for n in positional])


def _place(module: torch.nn.Module, key: str) -> tuple[dict[str, Any], str]:
    """Where a module keeps a parameter or buffer: a dict, and the key in it."""
    owner, _, last = key.rpartition(".")
    inner = module.get_submodule(owner)
    held: dict[str, Any] = inner._parameters if last in inner._parameters else inner._buffers
    return held, last
