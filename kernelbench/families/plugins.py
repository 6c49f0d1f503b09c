"""Plugin files, and the modules that lie beside them.

A plugin imports its neighbours, files and package folders, by name. Installed modules come first,
so that a neighbour shadows nothing; where its name means another module, the plugin is refused.
"""

import ast
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from kernelbench.source import OURS, reached
from kernelbench.spec import UsageError
from kernelbench.spec.raised import named


class _Neighbours:
    """A finder of modules in the folders of plugins; the last one on sys.meta_path."""

    def __init__(self) -> None:
        self.folders: list[str] = []

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return None if path is not None else PathFinder.find_spec(name, self.folders)


def load(path: Path, origin: str = "") -> ModuleType:
    """The module of a plugin file. origin: what names it in errors.

    Raises UsageError for a path that is no Python file, for a relative import, and for a neighbour
    whose name means another module; and whatever the file itself raises.
    """
    spec = importlib.util.spec_from_file_location(_name(path), path)
    origin = origin or f"--plugin {named(str(path))}"
    if spec is None or spec.loader is None or not path.is_file():
        raise UsageError(f"{origin}: no such Python file")
    _hold_absolute(path, origin)
    _find_beside(path, origin)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where a dataclass looks for the types of its fields
    spec.loader.exec_module(module)
    return module


def _name(path: Path) -> str:
    """The name of a plugin's module, different for different files of one name."""
    name = f"kernelbench_plugin_{path.stem}"
    while name in sys.modules and getattr(sys.modules[name], "__file__", None) != str(path):
        name += "_"
    return name


def _hold_absolute(path: Path, origin: str) -> None:
    tree = ast.parse(path.read_bytes(), str(path))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            module = node.module or node.names[0].name
            raise UsageError(
                f"{origin}:{node.lineno}: the file is in no package, so it has no relative "
                f"imports: import {module!r}, which lies beside it, by its name alone"
            )


def _find_beside(path: Path, origin: str) -> None:
    """Make the modules beside the plugin importable. Raises UsageError where one of their names
    means another module."""
    folder = path.parent.resolve()
    finder = next((f for f in sys.meta_path if isinstance(f, _Neighbours)), None)
    if finder is None:
        finder = _Neighbours()
        sys.meta_path.append(finder)
    if str(folder) not in finder.folders:
        finder.folders.append(str(folder))
    for name in neighbours(path):
        if other := _elsewhere(name, folder):
            raise UsageError(
                f"{origin}: it imports {name!r}, which lies beside it, but that "
                f"name already means {named(other)}: rename the one beside it"
            )


def neighbours(path: Path) -> list[str]:
    """Names of the modules beside a plugin that it imports, directly or through others."""
    folder, path = path.parent.resolve(), path.resolve()
    beside = [file for file in reached(path, folder) - {path} if file.is_relative_to(folder)]
    names = {file.relative_to(folder).parts[0].removesuffix(".py") for file in beside}
    return sorted(names - {OURS.name})


def _elsewhere(name: str, folder: Path) -> str:
    """The file or folder that a name means, or "" if that is below the folder."""
    loaded = getattr(sys.modules.get(name), "__file__", None)
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    places = [loaded] if loaded else []
    if spec is not None:
        places = [spec.origin, *(spec.submodule_search_locations or ())]
    places = [place for place in places if place]
    if any(Path(place).resolve().is_relative_to(folder) for place in places):
        return ""
    return str(places[0]) if places else ""
