"""Which of the package's code a family reaches, as one hash: changed code is measured anew."""

import ast
import inspect
from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from kernelbench.spec import Family

ROOT = Path(__file__).parent.parent


def source_hash(family: Family[Any]) -> str:
    """Of the family's own file and of every module of this package that it imports, in turn."""
    start = inspect.getsourcefile(family.oracle)
    if start is None:
        return ""
    digest = sha256()
    for path in sorted(reached(Path(start))):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def reached(start: Path) -> set[Path]:
    """Files of the package that a file imports, at any depth, imports in functions included."""
    found, waiting = set(), [start]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting.extend(_imported(path))
    return found


@cache
def _imported(path: Path) -> tuple[Path, ...]:
    return tuple(
        file
        for name in _names(ast.parse(path.read_text(encoding="utf-8")))
        if (file := _file(name)) is not None
    )


def _names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _file(module: str) -> Path | None:
    if module.split(".")[0] != __package__:
        return None
    stem = ROOT.joinpath(*module.split("."))
    for path in (stem.with_suffix(".py"), stem / "__init__.py"):
        if path.is_file():
            return path
    return None
