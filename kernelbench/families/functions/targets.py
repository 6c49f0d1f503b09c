"""What a user names to be measured, and how it is found.

my.py:fused             a function in a file, or one that an object of the file has: ops.fused
package.module:fused    one of an installed module, such as torch.nn.functional:layer_norm
my.py:Model(dim=512)    an nn.Module, made with these literals
torch.ops.my.fused      an operator of torch.library, registered by an --import
model.pt2               a package of torch.export and AOTInductor
"""

import ast
import copy
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import torch

from kernelbench.families import plugins
from kernelbench.families.functions import others
from kernelbench.families.functions.others import Raised, attempted
from kernelbench.spec import PluginError, UsageError, suggest
from kernelbench.spec.raised import named, trace_of, words_of

_FORM = (
    "expected FILE.py:NAME, package.module:NAME, either with (…) for an nn.Module, "
    "torch.ops.NAMESPACE.NAME or FILE.pt2"
)
_TORCH = Path(str(torch.__file__)).parent
_TARGET = re.compile(r"(?P<place>[^:()]+):(?P<name>[A-Za-z_][\w.]*)(?:\((?P<literals>.*)\))?")


@dataclass(frozen=True)
class Target:
    """text: as it was named. function: it, or what makes the module. file: where its code
    stands, if that is a file. name: of the provider.
    """

    text: str
    function: Callable[..., Any]
    file: Path | None = None
    is_module: bool = False
    name: str = ""

    @property
    def of_torch(self) -> bool:
        """Whether it is PyTorch's own."""
        if self.file is not None:
            return self.file.is_relative_to(_TORCH)
        return self.text.startswith("torch:") or self.function in vars(torch).values()

    def signature(self) -> inspect.Signature | None:
        """How it is called, where that can be known."""
        try:
            return inspect.signature(self.example.forward if self.is_module else self.function)
        except (TypeError, ValueError):
            return None

    @cached_property
    def example(self) -> Any:
        """A module to look at, not to compute with."""
        return self.module()

    def module(self, seed: int = 0) -> Any:
        """The module, initialised under a seed; torch's own stays as it is. Raises PluginError
        where it cannot be made."""
        with others.seeded(seed):
            return others.named(self.text, self.function)


def of_callable(found: Any, name: str = "") -> Target:
    """The target of a function or nn.Module that is at hand.

    Raises UsageError for anything else.
    """
    if not callable(found):
        raise UsageError(f"{found!r} is no function and no nn.Module")
    name = name or getattr(found, "__name__", type(found).__name__)
    name = word_of(name)
    try:
        file = inspect.getsourcefile(inspect.unwrap(found))
    except TypeError:
        file = inspect.getsourcefile(type(found)) if type(found).__module__ != "builtins" else None
    path = Path(file) if file and Path(file).is_file() else None
    if isinstance(found, torch.nn.Module):
        return Target(name, partial(copy.deepcopy, found), path, is_module=True, name=name)
    return Target(name, found, path, name=name)


def find(text: str, imports: Sequence[str] = ()) -> Target:
    """The target that a user named.

    imports: files or modules to import first. Raises UsageError for what cannot be found, and
    PluginError, with its traceback, for what raises when it is imported.
    """
    for place in imports:
        _module(place, text)
    if text.startswith("torch.ops."):
        return Target(text, _operator(text), name=text.rpartition(".")[2])
    if text.endswith(".pt2"):
        return _package(text)
    match = _TARGET.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text}: {_FORM}")
    module = _module(match["place"], text)
    target = _attribute(module, match["name"], text)
    file = getattr(module, "__file__", None)
    path = Path(file) if file else None
    name = word_of(match["name"])
    if match["literals"] is None and not isinstance(target, torch.nn.Module):
        return Target(text, _function(target, text), path, name=name)
    if isinstance(target, torch.nn.Module):
        return Target(text, partial(copy.deepcopy, target), path, is_module=True, name=name)
    positional, keywords = _literals(text, match["literals"] or "")
    make = partial(target, *positional, **keywords)
    if not isinstance(others.named(text, make), torch.nn.Module):
        raise UsageError(f"{text}: makes no nn.Module; for a function leave out the (…)")
    return Target(text, make, path, is_module=True, name=name)


def _function(found: Any, text: str) -> Callable[..., Any]:
    if isinstance(found, type) and issubclass(found, torch.nn.Module):
        raise UsageError(f"{text}: a class of nn.Module; say how it is made: '{text}(dim=512)'")
    if not callable(found):
        raise UsageError(f"{text}: is a {type(found).__name__}, no function")
    call: Callable[..., Any] = found
    return call


def _module(place: str, text: str) -> Any:
    path = Path(place)
    if path.suffix == ".py":
        if not path.is_file():
            raise UsageError(f"{text}: no file {named(place)}")
        return others.named(text, partial(_file, path.resolve(), path.stat().st_mtime_ns, text))
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # where a user's own packages are
    module = attempted(partial(importlib.import_module, place))
    if not isinstance(module, Raised):
        return module
    name = module.error.name if isinstance(module.error, ModuleNotFoundError) else None
    if name and (place == name or place.startswith(f"{name}.")):
        raise UsageError(
            f"{text}: no module {name!r} is installed; a file is named with its .py"
        ) from None
    raise PluginError(f"{text}: {words_of(module.error)}", trace_of(module.error)) from None


@cache
def _file(path: Path, changed_ns: int, text: str) -> Any:
    """A file's module: one for all that is named in it, until the file changes."""
    return plugins.load(path, text)


def _attribute(module: Any, name: str, text: str) -> Any:
    value = module
    for part in name.split("."):
        if not hasattr(value, part):
            known = [word for word in dir(value) if _is_near(value, word)]
            near = suggest(part, known) if len(known) <= 40 else ""
            raise UsageError(f"{text}: there is no {part!r}{near}")
        value = getattr(value, part)
    return value


def _is_near(owner: Any, word: str) -> bool:
    value = getattr(owner, word, None)
    return not word.startswith("_") and callable(value)


def _operator(text: str) -> Callable[..., Any]:
    operator: Any = torch.ops
    for part in text.split(".")[2:]:
        try:
            operator = getattr(operator, part)
        except AttributeError:
            raise UsageError(
                f"{text}: no such operator is registered; --import the file or module that does"
            ) from None
    if operator is torch.ops or isinstance(operator, type(torch.ops.aten)):
        raise UsageError(f"{text}: a namespace; {_FORM}")
    call: Callable[..., Any] = operator
    return call


def _package(text: str) -> Target:
    path = Path(text)
    if not path.is_file():
        raise UsageError(f"{text}: no such file")
    return Target(text, _Package(path), path, name=word_of(path.stem))


class _Package:
    """A compiled package, which is loaded when it is called: it may need a GPU, which the parent
    of a worker keeps off."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    @cached_property
    def _loaded(self) -> Callable[..., Any]:
        return torch._inductor.aoti_load_package(self._path)

    def __call__(self, *args: Any) -> Any:
        return self._loaded(*args)


def _literals(text: str, inside: str) -> tuple[list[Any], dict[str, Any]]:
    try:
        call = ast.parse(f"f({inside})", mode="eval").body
        assert isinstance(call, ast.Call)
        positional = [ast.literal_eval(node) for node in call.args]
        keywords = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    except (SyntaxError, ValueError):
        raise UsageError(f"{text}: in (…) stand literals, such as (512, bias=False)") from None
    return positional, keywords


def takes(make: Target | None) -> tuple[str, ...] | None:
    """The names that a function of `inputs` takes, None without one."""
    if make is None:
        return None
    signature = make.signature()
    return tuple(signature.parameters) if signature is not None else ()


def word_of(text: str) -> str:
    """A name as tables and axes have it: `ops.Model` → `ops_Model`."""
    return re.sub(r"\W+", "_", text).strip("_") or "function"


def bound(target: Target, names: Sequence[str]) -> tuple[str, ...]:
    """The arguments that a function gets by name, the others come by position, in their order: all
    where it knows all of the names, but in another order, else those that it takes by name alone.

    Raises UsageError where it cannot be called so.
    """
    signature = target.signature()
    if signature is None:
        return ()
    parameters = signature.parameters
    kinds = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    by_name = [n for n, parameter in parameters.items() if parameter.kind in kinds]
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    keywords = tuple(names)
    if [*parameters][: len(names)] == [*names] or not (takes_any or {*by_name} >= {*names}):
        keywords = tuple(n for n in names if n in by_name and parameters[n].kind is kinds[0])
    try:
        signature.bind(*(n for n in names if n not in keywords), **dict.fromkeys(keywords))
    except TypeError as error:
        raise UsageError(
            f"{target.text} is called as {target.name}{signature}, which the arguments "
            f"{', '.join(names)} do not fit: {error}"
        ) from None
    return keywords


def files_of(targets: Sequence[Target]) -> tuple[str, ...]:
    """Where the code of targets stands, but for installed modules that are not the user's."""
    files = {str(target.file) for target in targets if target.file and not target.of_torch}
    return tuple(sorted(files))
