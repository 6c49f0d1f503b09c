"""The source as it was submitted: a copy of the package, of plugins and of the suite."""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import kernelbench

_UNREAD = shutil.ignore_patterns("__pycache__", "*.pyc")


class Copied(NamedTuple):
    """digest: of every file. suite, plugins: where they lie now."""

    digest: str
    suite: str
    plugins: tuple[str, ...]


def copy(folder: Path, suite: Path, plugins: Sequence[str]) -> Copied:
    """Copy the package that runs now, edits that are not committed included; of a plugin, and of a
    suite that is not the package's, also the Python files beside it."""
    package = Path(kernelbench.__file__).parent
    shutil.copytree(package, folder / "kernelbench", ignore=_UNREAD)
    moved = [_with_neighbours(Path(p), folder / f"plugin-{n}") for n, p in enumerate(plugins)]
    if package in suite.resolve().parents:
        there = folder / "kernelbench" / suite.resolve().relative_to(package)
    else:
        there = _with_neighbours(suite, folder / "suite")
    return Copied(digest(folder), str(there), tuple(map(str, moved)))


def _with_neighbours(file: Path, folder: Path) -> Path:
    folder.mkdir()
    for each in {*file.resolve().parent.glob("*.py"), file.resolve()}:
        shutil.copy2(each, folder / each.name)
    return folder / file.resolve().name


def digest(folder: Path) -> str:
    """A hash of the names and contents of all files but what Python compiles."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            found.update(f"{path.relative_to(folder)} {content}\n".encode())
    return found.hexdigest()
