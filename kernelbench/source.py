"""Which code a family reaches, as one hash: changed code is measured anew."""

import ast
import functools
import inspect
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from kernelbench.spec import Family

OURS = Path(__file__).parent
_INSTALLED = [Path(p) for name, p in sysconfig.get_paths().items() if "lib" in name]


def source_hash(family: Family[Any]) -> str:
    """Of the family's own files, of those that its functions stand in, and of all that these
    import, in turn, from this package, from their own, and from what lies beside a plugin; and of
    what it was declared to be."""
    digest = sha256(family.declared.encode())
    beside = beside_of(family)
    for path in sorted(set().union(*(reached(path, beside) for path in _files(family)))):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def beside_of(family: Family[Any]) -> Path | None:
    """The folder whose modules the file of a family may import by name; None for one of this
    package, or that lies where packages are installed."""
    folder = Path(family.origin).resolve().parent if family.origin else OURS
    if folder.is_relative_to(OURS) or folder in _INSTALLED:
        return None
    return folder


def _files(family: Family[Any]) -> set[Path]:
    functions = [family.case, family.inputs, family.oracle, family.cost]
    functions += [provider.build for provider in family.providers]
    files = {Path(file) for function in functions if (file := _file_of(function)) is not None}
    return files | {Path(file) for file in (family.origin, *family.files) if file}


def _file_of(function: Any) -> str | None:
    while isinstance(function, functools.partial):
        function = function.func
    try:
        return inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:  # a callable object: its class stands somewhere
        return inspect.getsourcefile(type(function))


def reached(start: Path, beside: Path | None = None) -> set[Path]:
    """Files that a file imports, at any depth, imports in functions included.

    Followed are modules of kernelbench, of the package that the importing file belongs to, and of
    the folder `beside`.
    """
    files, waiting = set(), [start.resolve()]
    while waiting:
        path = waiting.pop()
        if path not in files:
            files.add(path)
            waiting.extend(_imported(path, beside) if path.suffix == ".py" else ())
    return files


@cache
def _imported(path: Path, beside: Path | None) -> tuple[Path, ...]:
    package = path.parent
    while (package.parent / "__init__.py").is_file():
        package = package.parent
    stems = {OURS.name: OURS}
    if (package / "__init__.py").is_file():
        stems[package.name] = package
    return tuple(
        file
        for stem in _stems(ast.parse(path.read_bytes(), str(path)), path, stems, beside)
        for file in (stem.with_suffix(".py"), stem / "__init__.py")
        if file.is_file()
    )


def _stems(
    tree: ast.AST, path: Path, packages: dict[str, Path], beside: Path | None
) -> Iterator[Path]:
    """Where each imported module would stand, without its suffix."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module or ''}.{alias.name}" for alias in node.names]
            names.append(node.module or "")
            if node.level:
                base = path.parents[node.level - 1]
                yield from (base.joinpath(*name.strip(".").split(".")) for name in names)
                continue
        else:
            continue
        for name in names:
            top, *rest = name.split(".")
            if top in packages:
                yield packages[top].joinpath(*rest)
            elif beside is not None and top not in sys.stdlib_module_names:
                yield from (beside.joinpath(top, *rest[:depth]) for depth in range(len(rest) + 1))
