"""A function or module as it is called with a case's arguments by name."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.func import functional_call

from kernelbench.families.functions.targets import Target, bound
from kernelbench.spec import UsageError

ByName = Callable[[Mapping[str, Any]], Any]  # of every argument, and every parameter, by name


class Parameters:
    """The parameters and buffers of a reference that is a module, as inputs of a case: the one at
    `layers.0.weight` is `layers_0_weight`."""

    def __init__(self, target: Target) -> None:
        self._target = target
        module = target.made()
        trained = dict(module.named_parameters())
        self.keys = {key.replace(".", "_"): key for key in (*trained, *_buffers(module))}
        self.trained = tuple(key.replace(".", "_") for key in trained)

    def drawn(self, seed: int, device: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """As the module initialises them under a seed, floating ones in the case's dtype."""
        module = self._target.made(seed)
        state = {**dict(module.named_parameters()), **_buffers(module)}
        values = {name: state[key].detach() for name, key in self.keys.items()}
        return {
            name: value.to(device, dtype if value.is_floating_point() else value.dtype, copy=True)
            for name, value in values.items()
        }

    def hold_alike(self, target: Target, module: torch.nn.Module) -> None:
        """Raises UsageError for a candidate that has other parameters or buffers."""
        have, wanted = {*dict(module.named_parameters()), *_buffers(module)}, {*self.keys.values()}
        if have == wanted:
            return
        lacks = ", ".join(sorted(wanted - have)[:4]) or "nothing"
        more = ", ".join(sorted(have - wanted)[:4]) or "nothing"
        raise UsageError(
            f"{target.text} is given the weights of the reference by their names in state_dict, "
            f"but lacks {lacks}, and has {more} besides: name its parameters as the reference does"
        )


def _buffers(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(module.named_buffers())


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
            self._parameters.hold_alike(target, target.made())

    def instance(self) -> ByName:
        """What a provider calls: a module holds the case's tensors in place of its own."""
        if self._parameters is None:
            return self._by_name(self.target.made() if self.target.is_module else self.target.found)
        module = self.target.made().eval()
        places = [(*_place(module, key), name) for name, key in self._parameters.keys.items()]
        call = self._by_name(module)

        def with_tensors(a: Mapping[str, Any]) -> Any:
            for held, key, name in places:
                if held[key] is not a[name]:
                    held[key] = a[name]
            return call(a)

        return with_tensors

    def pure(self) -> ByName:
        """The same, leaving the module as it is: for fp64, and for torch.compile."""
        if self._parameters is None:
            return self.instance()
        module, keys = self.target.made().eval(), self._parameters.keys

        def with_state(a: Mapping[str, Any]) -> Any:
            state = {key: a[name] for name, key in keys.items()}
            given = {name: a[name] for name in self._keywords}
            return functional_call(module, state, tuple(a[n] for n in self._positional), given)

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
