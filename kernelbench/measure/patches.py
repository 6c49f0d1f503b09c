"""Functions and limits that timing and checking rely on, and what providers put in their place.

Compared by identity, in the namespaces that own them: modules of torch and of Python, classes, and
whatever the harness itself defines.
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
# Of this package: what measures, in what words, and against which oracles.
HARNESS = ("measure", "spec", "families", "numbers", "kernels.stream")
_ABSENT = object()


class Patches:
    """What the namespaces in use held at first; `undo` puts that back."""

    def __init__(self) -> None:
        ours = [module for name, module in list(sys.modules.items()) if _is_ours(name)]
        modules = [*(sys.modules[name] for name in MODULES if name in sys.modules), *ours]
        classes = {*CLASSES, *(cls for module in ours for cls in _classes(module))}
        named = frozenset(name for module in ours for name in _named(module))
        places = [*(_of_module(module, named) for module in modules), *map(_of_class, classes)]
        self._spaces = [space for space in places if space.kept]

    def __len__(self) -> int:
        return sum(len(space.kept) for space in self._spaces)

    def undo(self) -> list[str]:
        """Names of what was patched, and is no longer."""
        return [name for space in self._spaces if not space.intact() for name in space.undo()]


class _Space:
    """A namespace, and what is watched in it.

    inherited: names that it does not hold, but would shadow others if it did.
    """

    def __init__(
        self, name: str, owner: Any, kept: dict[str, Any], inherited: frozenset[str] = frozenset()
    ) -> None:
        self.name, self.owner, self.kept, self.inherited = name, owner, kept, inherited
        names = [*kept] * (1 if len(kept) > 1 else 2)  # of one name, itemgetter makes no tuple
        self._get = itemgetter(*names) if kept else tuple
        self._values = [kept[name] for name in names]
        self._held = vars(owner)
        self._size = len(self._held)

    def intact(self) -> bool:
        """In a few C calls: this is asked after every batch of samples."""
        if self.inherited and len(self._held) != self._size:
            return False
        try:
            return all(map(is_, self._get(self._held), self._values))
        except KeyError:
            return False

    def undo(self) -> Iterator[str]:
        for name, value in self.kept.items():
            if self._held.get(name, _ABSENT) is not value:
                setattr(self.owner, name, value)
                yield f"{self.name}.{name}"
        for name in self.inherited & self._held.keys():
            delattr(self.owner, name)
            yield f"{self.name}.{name}"
        self._size = len(self._held)


def _is_ours(name: str) -> bool:
    parts = name.partition("kernelbench.")
    return not parts[0] and any(f"{parts[2]}.".startswith(f"{room}.") for room in HARNESS)


def _classes(module: ModuleType) -> Iterator[type]:
    for value in vars(module).values():
        if isinstance(value, type) and value.__module__ == module.__name__:
            yield value


def _named(module: ModuleType) -> Iterator[str]:
    """Every global and attribute that the code of a module names."""
    spaces = [vars(module), *map(vars, _classes(module))]
    codes = [f.__code__ for space in spaces for f in space.values() if isinstance(f, FunctionType)]
    while codes:
        code = codes.pop()
        yield from code.co_names
        codes += [inner for inner in code.co_consts if isinstance(inner, CodeType)]


def _of_module(module: ModuleType, named: frozenset[str]) -> _Space:
    """Its functions, classes and modules: of a library's, those that the harness names; of the
    harness's own, constants, too.

    The harness's own modules would find the namesake of a builtin before it.
    """
    space, ours = vars(module), _is_ours(module.__name__)
    kept = {n: v for n, v in space.items() if callable(v) or isinstance(v, ModuleType)}
    if ours:
        kept |= {name: value for name, value in space.items() if name.isupper()}
    else:
        kept = {name: value for name, value in kept.items() if name in named}
    shadows = vars(builtins).keys() - space.keys() if ours else ()
    return _Space(module.__name__, module, kept, frozenset(shadows))


def _of_class(cls: type) -> _Space:
    """The functions that it defines or inherits, and properties."""
    kept = {n: v for n, v in vars(cls).items() if callable(v) or hasattr(v, "__get__")}
    inherited = {n for n in dir(cls) if n not in kept and callable(getattr(cls, n, None))}
    name = f"{cls.__module__}.{cls.__qualname__}"
    return _Space(name, cls, kept, frozenset(inherited))
