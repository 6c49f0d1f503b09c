"""What to measure: one file a family, each ending in `FAMILY = Family(…)`.

What several families share is in a file whose name begins with an underscore.
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
from types import ModuleType
from typing import Any

from kernelbench.raised import words_of
from kernelbench.spec import Case, Family, Role, UsageError

GROUP = "kernelbench.families"


@cache
def load(plugins: tuple[str, ...] = ()) -> dict[str, Family[Any]]:
    """Every family by name: this package's, installed entry points', and plugin files'.

    plugins: paths of Python files that each end in `FAMILY = Family(…)`.
    Raises UsageError for a plugin that cannot be read or is not a family, and for two families
    of one name.
    """
    found: dict[str, Family[Any]] = {}
    for origin, file, family in _every(plugins):
        if not isinstance(family, Family):
            raise UsageError(f"{origin}: no `FAMILY = Family(…)` (see docs/add-a-family.md)")
        if family.name in found:
            raise UsageError(f"{origin}: there is a family {family.name!r} already")
        _validate(origin, family)
        found[family.name] = replace(family, origin=file)
    return found


def installed() -> bool:
    """Whether other packages bring families, by an entry point."""
    return bool(importlib.metadata.entry_points(group=GROUP))


def fingerprint() -> str:
    """A hash of the source of this package's own families, without importing them."""
    found = sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()[:16]


def _every(plugins: tuple[str, ...]) -> Iterator[tuple[str, str, object]]:
    """What each is called in errors, its file, and what ought to be a family."""
    names = (m.name for m in pkgutil.iter_modules(__path__))
    for name in sorted(name for name in names if not name.startswith("_")):
        module = importlib.import_module(f"{__name__}.{name}")
        yield module.__name__, str(module.__file__), getattr(module, "FAMILY", None)
    for entry in importlib.metadata.entry_points(group=GROUP):
        origin = f"entry point {entry.name} = {entry.value} (pip uninstall its package to go on)"
        family = _guarded(origin, entry.load)
        yield origin, str(getattr(sys.modules.get(entry.module), "__file__", "") or ""), family
    for path in plugins:
        module = _guarded(f"--plugin {path}", partial(_module, Path(path)))
        yield f"--plugin {path}", path, getattr(module, "FAMILY", None)


def _guarded(origin: str, load: Callable[[], Any]) -> Any:
    """Somebody else's code may raise whatever it likes: one clear error says whose it was."""
    try:
        return load()
    except UsageError:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001
        raise UsageError(f"{origin}: {words_of(error)}") from None


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"kernelbench_plugin_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UsageError(f"--plugin {path}: no such Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where a dataclass looks for the types of its fields
    spec.loader.exec_module(module)
    return module


def _validate(origin: str, family: Family[Any]) -> None:
    names = [provider.name for provider in family.providers]
    if len(set(names)) < len(names):
        raise UsageError(f"{origin}: two providers of one name")
    baselines = [p.name for p in family.providers if p.role is Role.baseline]
    if len(baselines) != 1:
        raise UsageError(f"{origin}: exactly one provider has the role baseline, got {baselines}")
    if not (isinstance(family.case, type) and issubclass(family.case, Case)):
        raise UsageError(f"{origin}: `case` must be a subclass of Case")
