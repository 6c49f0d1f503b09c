"""What to measure: one file a family, each ending in `FAMILY = Family(…)`."""

import importlib
import importlib.metadata
import importlib.util
import pkgutil
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from kernelbench.spec import Case, Family, KernelbenchError, Role, UsageError

GROUP = "kernelbench.families"


@cache
def load(plugins: tuple[str, ...] = ()) -> dict[str, Family[Any]]:
    """Every family by name: this package's, installed entry points', and plugin files'.

    plugins: paths of Python files that each end in `FAMILY = Family(…)`.
    Raises UsageError for a plugin that cannot be read or is not a family, and for two families
    of one name.
    """
    found: dict[str, Family[Any]] = {}
    for origin, family in _every(plugins):
        if not isinstance(family, Family):
            raise UsageError(f"{origin}: no `FAMILY = Family(…)` (see docs/add-a-family.md)")
        if family.name in found:
            raise UsageError(f"{origin}: there is a family {family.name!r} already")
        _validate(origin, family)
        found[family.name] = family
    return found


def _every(plugins: tuple[str, ...]) -> Iterator[tuple[str, object]]:
    for module in sorted(m.name for m in pkgutil.iter_modules(__path__)):
        if module.startswith("_"):
            continue
        name = f"{__name__}.{module}"
        yield name, getattr(importlib.import_module(name), "FAMILY", None)
    for entry in importlib.metadata.entry_points(group=GROUP):
        yield f"entry point {entry.name} ({entry.value})", _entry(entry)
    for path in plugins:
        yield path, getattr(_module(Path(path)), "FAMILY", None)


def _entry(entry: importlib.metadata.EntryPoint) -> object:
    try:
        return entry.load()
    except (ImportError, AttributeError) as error:
        raise KernelbenchError(f"entry point {entry.name} ({entry.value}): {error}") from None


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"kernelbench_plugin_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UsageError(f"--plugin {path}: no such Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where a dataclass looks for the types of its fields
    try:
        spec.loader.exec_module(module)
    except (ImportError, SyntaxError, NameError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"--plugin {path}: {type(error).__name__}: {error}") from None
    return module


def _validate(origin: str, family: Family[Any]) -> None:
    names = [provider.name for provider in family.providers]
    if len(set(names)) < len(names):
        raise UsageError(f"{origin}: two providers of one name")
    baselines = [p.name for p in family.providers if p.role is Role.baseline]
    if len(baselines) != 1:
        raise UsageError(f"{origin}: exactly one provider has the role baseline, got {baselines}")
    if not issubclass(family.case, Case):
        raise UsageError(f"{origin}: `case` must be a subclass of Case")
