"""What to measure: one file or folder a family, each with `FAMILY = Family(…)`.

What several families share is in a file whose name begins with an underscore; `providing` helps to
write providers, `plugins` loads plugin files.
"""

import importlib
import importlib.metadata
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from kernelbench.families import plugins
from kernelbench.spec import (
    Case,
    Declaration,
    Family,
    PluginError,
    Provider,
    Role,
    UsageError,
    is_declared,
)
from kernelbench.spec.raised import named, trace_of, words_of

GROUP = "kernelbench.families"
NO_FAMILIES = ("functions", "plugins", "providing")


@cache
def load(paths: tuple[str, ...] = ()) -> dict[str, Family[Any]]:
    """Every family by name: this package's, installed entry points', and plugin files'.

    paths: of Python files, plugins, that each end in `FAMILY = Family(…)`; or declarations of
        functions (families.functions), as a suite has them.
    Raises UsageError for a plugin that cannot be read or is not a family, and for two families
    of one name.
    """
    families: dict[str, Family[Any]] = {}
    for origin, file, family in _every(paths):
        if not isinstance(family, Family):
            raise UsageError(f"{origin}: no `FAMILY = Family(…)` (see docs/add-a-family.md)")
        if family.name in families:
            raise UsageError(
                f"{origin}: there is a family {family.name!r} already: call this one otherwise"
            )
        _validate(origin, family)
        checks = tuple(case for case in family.checks if case.mode in family.modes)
        families[family.name] = replace(family, origin=file, checks=checks)
    return families


def installed() -> bool:
    """Whether other packages bring families, by an entry point."""
    return bool(importlib.metadata.entry_points(group=GROUP))


def shipped() -> list[str]:
    """The names of this package's own families, without importing them."""
    names = {m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")}
    return sorted(names.difference(NO_FAMILIES))


def unlike(name: str) -> str:
    """A name for a family of functions that no family of this package has: `my_rms_norm`."""
    return f"my_{name}" if name in shipped() else name


def fingerprint() -> str:
    """A hash of the source of this package's own families, without importing them."""
    digest = sha256()
    folder = Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _every(paths: tuple[str, ...]) -> Iterator[tuple[str, str, object]]:
    """Of each family: its name in errors, its file, and the object that ought to be a Family."""
    for name in shipped():
        module = importlib.import_module(f"{__name__}.{name}")
        yield module.__name__, str(module.__file__), getattr(module, "FAMILY", None)
    for entry in importlib.metadata.entry_points(group=GROUP):
        origin = f"entry point {entry.name} = {entry.value} (pip uninstall its package to go on)"
        family = _guarded(origin, entry.load)
        yield origin, str(getattr(sys.modules.get(entry.module), "__file__", "") or ""), family
    for path in paths:
        if is_declared(path):
            from kernelbench.families.functions import of_declaration

            declared = Declaration.from_json(path)
            family = of_declaration(declared)
            yield declared.name, family.origin, family
            continue
        origin = f"--plugin {named(path)}"
        module = _guarded(origin, partial(plugins.load, Path(path)))
        yield origin, path, getattr(module, "FAMILY", None)


def _guarded(origin: str, load: Callable[[], Any]) -> Any:
    """Calls code of others, which may raise anything, and turns it into one error that names it."""
    try:
        return load()
    except UsageError:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001
        raise PluginError(f"{origin}: {words_of(error)}", trace_of(error)) from None


def _validate(origin: str, family: Family[Any]) -> None:
    if not (isinstance(family.case, type) and issubclass(family.case, Case)):
        raise UsageError(f"{origin}: `case` must be a subclass of Case")
    for field, kind in (("providers", Provider), ("checks", family.case)):
        entries = getattr(family, field)
        if not isinstance(entries, tuple) or not all(isinstance(entry, kind) for entry in entries):
            raise UsageError(f"{origin}: `{field}` must be a tuple of {kind.__name__}(…)")
    for part in ("inputs", "outputs", "oracle", "cost", "grads"):
        if not callable(getattr(family, part)):
            raise UsageError(f"{origin}: `{part}` must be a function")
    names = [provider.name for provider in family.providers]
    if len(set(names)) < len(names):
        raise UsageError(f"{origin}: two providers of one name")
    baselines = [p.name for p in family.providers if p.role is Role.baseline]
    if len(baselines) != 1:
        raise UsageError(f"{origin}: exactly one provider has the role baseline, got {baselines}")
