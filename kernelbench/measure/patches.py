"""Finds and undoes replacements of functions and limits that timing and checking rely on.

They are compared by identity, in the namespaces that own them: modules of torch and of Python,
classes, and all that the harness itself defines.
"""

import builtins
import sys
from collections.abc import Iterator
from operator import is_, itemgetter
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch

MODULES = (
    "torch",
    "torch.autograd",
    "torch.cuda",
    "torch.linalg",
    "torch.nn.functional",
    "torch.profiler",
    "builtins",
    "gc",
    "math",
    "os",
    "random",
    "statistics",
    "time",
)
CLASSES = (
    torch.Tensor,
    torch.cuda.CUDAGraph,
    torch.cuda.Event,
    torch.cuda.Stream,
    torch.cuda.graph,
    torch.profiler.profile,
)
# Of this package: what measures, the types for it, and the oracles.
HARNESS = ("measure", "spec", "families", "numbers", "kernels.stream")
_ABSENT = object()


class Patches:
    """The initial values in the namespaces in use; `undo` puts them back."""

    def __init__(self) -> None:
        ours = [module for name, module in list(sys.modules.items()) if _is_ours(name)]
        modules = [*(sys.modules[name] for name in MODULES if name in sys.modules), *ours]
        classes = {*CLASSES, *(cls for module in ours for cls in _classes(module))}
        used = frozenset(name for module in ours for name in _names_used(module))
        spaces = [*(_of_module(module, used) for module in modules), *map(_of_class, classes)]
        self._spaces = [space for space in spaces if space.watched]

    def __len__(self) -> int:
        """The number of values that are watched."""
        return sum(len(space.watched) for space in self._spaces)

    def undo(self) -> list[str]:
        """Undo all patches; returns the names of what was patched."""
        return [name for space in self._spaces if not space.intact() for name in space.undo()]


class _Space:
    """A namespace, and what is watched in it.

    watched: initial values by name. absent: names that it lacks, and that would shadow others if
    they were added.
    """

    def __init__(
        self, name: str, owner: Any, watched: dict[str, Any], absent: frozenset[str] = frozenset()
    ) -> None:
        self.name, self.owner, self.watched, self.absent = name, owner, watched, absent
        # itemgetter returns no tuple for a single name, so that is asked for twice
        names = [*watched] * (1 if len(watched) > 1 else 2)
        self._get = itemgetter(*names) if watched else tuple
        self._values = [watched[name] for name in names]
        self._now = vars(owner)
        self._size = len(self._now)

    def intact(self) -> bool:
        """Whether nothing is patched. Takes a few C calls, since it runs after every batch."""
        if self.absent and len(self._now) != self._size:
            return False
        try:
            return all(map(is_, self._get(self._now), self._values))
        except KeyError:
            return False

    def undo(self) -> Iterator[str]:
        """Undo the patches; yields the names of what was patched."""
        for name, value in self.watched.items():
            if self._now.get(name, _ABSENT) is not value:
                setattr(self.owner, name, value)
                yield f"{self.name}.{name}"
        for name in self.absent & self._now.keys():
            delattr(self.owner, name)
            yield f"{self.name}.{name}"
        self._size = len(self._now)


def _is_ours(name: str) -> bool:
    parts = name.partition("kernelbench.")
    return not parts[0] and any(f"{parts[2]}.".startswith(f"{room}.") for room in HARNESS)


def _classes(module: ModuleType) -> Iterator[type]:
    for value in vars(module).values():
        if isinstance(value, type) and value.__module__ == module.__name__:
            yield value


def _names_used(module: ModuleType) -> Iterator[str]:
    """Every global and attribute that the code of a module uses."""
    spaces = [vars(module), *map(vars, _classes(module))]
    codes = [f.__code__ for space in spaces for f in space.values() if isinstance(f, FunctionType)]
    while codes:
        code = codes.pop()
        yield from code.co_names
        codes += [inner for inner in code.co_consts if isinstance(inner, CodeType)]


def _of_module(module: ModuleType, used: frozenset[str]) -> _Space:
    """Its functions, classes and modules; of a library those in `used`, of the harness constants as
    well.

    In the harness's own modules a new global could shadow a builtin, so those names are watched.
    """
    space, ours = vars(module), _is_ours(module.__name__)
    watched = {n: v for n, v in space.items() if callable(v) or isinstance(v, ModuleType)}
    if ours:
        watched |= {name: value for name, value in space.items() if name.isupper()}
    else:
        watched = {name: value for name, value in watched.items() if name in used}
    absent = vars(builtins).keys() - space.keys() if ours else ()
    return _Space(module.__name__, module, watched, frozenset(absent))


def _of_class(cls: type) -> _Space:
    """The functions that it defines or inherits, and properties."""
    watched = {n: v for n, v in vars(cls).items() if callable(v) or hasattr(v, "__get__")}
    inherited = {n for n in dir(cls) if n not in watched and callable(getattr(cls, n, None))}
    name = f"{cls.__module__}.{cls.__qualname__}"
    return _Space(name, cls, watched, frozenset(inherited))
