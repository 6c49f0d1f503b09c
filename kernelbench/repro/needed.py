"""Which source a provider needs: device code as whole files, of other files only what is reached.

First the family is cut down to its baseline and one provider. Of the family's file, and of what it
imports from this package, the top-level statements that `FAMILY` then reaches by name are kept,
word for word. Files of `kernels` and `nn` are kept whole, with what they import.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from kernelbench.source import OURS, reached

ROOT = "FAMILY"
WHOLE = ("kernelbench.kernels", "kernelbench.nn")
DROPPED = ("traffic", "unsupported")  # arguments of a provider that a script does not use


class _Module:
    """One file: its statements, what each binds, and which names of it are needed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = path.read_text(encoding="utf-8")
        self.lines = self.text.splitlines()
        self.body = ast.parse(self.text).body
        self.binds = {name: node for node in self.body for name in _bound(node)}
        self.kept: dict[ast.stmt, set[str]] = {}  # statement → the names of it that are needed
        self.rewritten: dict[ast.stmt, str] = {}


class Needed:
    """Collects the sources of one provider, beginning at its family's file.

    name: of the family's module. device_code: False where no kernel of ours runs, which leaves out
    what functions import of `kernels` and `nn`. beside: the folder of a plugin; what the plugin
    imports from there is kept whole.
    """

    def __init__(
        self, family: Path, name: str, *, device_code: bool = True, beside: Path | None = None
    ) -> None:
        self._family, self._device_code, self._beside = name, device_code, beside
        self._modules = {name: _Module(family)}
        self._whole_files: set[Path] = set()

    def add(self, providers: set[str]) -> None:
        """Everything that the family needs, cut down to these providers."""
        module = self._modules[self._family]
        node = module.binds.get(ROOT)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            _cut_down(node.value, providers)
            module.rewritten[node] = _statement(node.value)
        self._name(self._family, ROOT)

    def files(self) -> dict[str, str]:
        """Text by path from the root of an import, device code first."""
        whole = sorted(self._whole_files)
        texts = {self._place(path): path.read_text(encoding="utf-8") for path in whole}
        for name, module in self._modules.items():
            ours = name.startswith(f"{OURS.name}.")
            place = self._place(module.path) if ours else f"{name}.py"
            texts.setdefault(place, _text(module))
        packages = {str(p / "__init__.py") for place in texts for p in Path(place).parents[:-1]}
        order = sorted({*texts, *packages}, key=lambda place: ("/kernels/" not in place, place))
        return {place: texts.get(place, "") for place in order}

    def _name(self, module_name: str, name: str) -> None:
        module = self._modules[module_name]
        node = module.binds.get(name)
        if node is None or name in module.kept.get(node, ()):
            return  # a builtin, or a function's local name; or already kept
        is_new = node not in module.kept
        module.kept.setdefault(node, set()).add(name)
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                if (alias.asname or alias.name.partition(".")[0]) == name:
                    self._import(node, alias)
            return
        if not is_new:
            return
        for part in ast.walk(node):
            if isinstance(part, ast.Name):
                self._name(module_name, part.id)
            elif isinstance(part, (ast.Import, ast.ImportFrom)):
                for alias in part.names:
                    if self._device_code or not str(getattr(part, "module", "")).startswith(WHOLE):
                        self._import(part, alias)

    def _import(self, node: ast.Import | ast.ImportFrom, alias: ast.alias) -> None:
        base = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
        dotted = f"{base}{alias.name}"
        if not dotted.startswith(f"{OURS.name}."):
            self._import_beside(dotted)
            return
        if dotted.startswith(WHOLE):
            for name in (dotted, dotted.rpartition(".")[0]):
                if path := _file(name):
                    self._keep(path)
                    return
        if path := _file(dotted):  # a module as a name: all of it
            for name in self._open(dotted, path).binds:
                self._name(dotted, name)
            return
        owner = dotted.rpartition(".")[0]
        if path := _file(owner):
            self._open(owner, path)
            self._name(owner, alias.name)

    def _import_beside(self, dotted: str) -> None:
        """A neighbour of a plugin, and the packages that it lies in."""
        names = dotted.split(".")
        if self._beside is not None and names[0] not in sys.stdlib_module_names:
            for depth in range(1, len(names) + 1):
                if path := _file(".".join(names[:depth]), self._beside):
                    self._keep(path)

    def _keep(self, path: Path) -> None:
        """A file whole, with all that it imports."""
        self._whole_files |= reached(path, self._beside) - {OURS / "__init__.py"}

    def _place(self, path: Path) -> str:
        root = self._beside
        if root is None or path.is_relative_to(OURS):
            root = OURS.parent
        return path.relative_to(root).as_posix()

    def _open(self, name: str, path: Path) -> _Module:
        if name not in self._modules:
            self._modules[name] = _Module(path)
        return self._modules[name]


def _bound(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        yield node.name
    elif isinstance(node, (ast.Import, ast.ImportFrom)):
        yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
    elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.If, ast.Try, ast.With)):
        for part in ast.walk(node):
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                yield part.id
            elif isinstance(part, ast.alias):
                yield part.asname or part.name.partition(".")[0]


def _cut_down(family: ast.Call, providers: set[str]) -> None:
    """`FAMILY = Family(…)` without cost and checks, with the named providers alone.

    An entry that is no call with its name first, such as `*peers(…)`, stays unless all names are
    among the other entries.
    """
    nothing = {"cost": ast.Constant(None), "checks": ast.Tuple([], ast.Load())}
    for keyword in family.keywords:
        if keyword.arg in nothing:
            keyword.value = nothing[keyword.arg]
        if keyword.arg == "providers" and isinstance(keyword.value, ast.Tuple):
            entries = keyword.value.elts
            named = {_first(entry): entry for entry in entries}
            chosen = [entry for name, entry in named.items() if name in providers]
            others = [entry for entry in entries if _first(entry) is None]
            keyword.value.elts = chosen if providers <= named.keys() else [*chosen, *others]
            for entry in chosen:
                if isinstance(entry, ast.Call):
                    entry.keywords = [k for k in entry.keywords if k.arg not in DROPPED]


def _statement(family: ast.Call) -> str:
    """The statement, an argument a line."""
    lines = []
    for keyword in family.keywords:
        value = keyword.value
        if isinstance(value, ast.Tuple) and value.elts:
            inner = "".join(f"        {ast.unparse(item)},\n" for item in value.elts)
            lines.append(f"    {keyword.arg}=(\n{inner}    ),\n")
        else:
            lines.append(f"    {ast.unparse(keyword)},\n")
    return f"{ROOT} = {ast.unparse(family.func)}(\n{''.join(lines)})"


def _first(node: ast.expr) -> str | None:
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        return str(node.args[0].value)
    return None


def _file(dotted: str, root: Path = OURS.parent) -> Path | None:
    stem = root.joinpath(*dotted.split("."))
    candidates = (
        path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()
    )
    return next(candidates, None)


def _text(module: _Module) -> str:
    """The statements that are kept, with their comments and decorators, in their order."""
    parts = []
    docstring = ast.get_docstring(ast.parse(module.text), clean=False)
    if docstring and isinstance(module.body[0], ast.Expr):
        parts.append(f"{_lines(module, module.body[0])}\n")
    for node in module.body:
        if node in module.rewritten:
            parts.append(f"\n{module.rewritten[node]}")
        elif node in module.kept:
            names = module.kept[node]
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                node.names = [
                    a for a in node.names if (a.asname or a.name.partition(".")[0]) in names
                ]
                parts.append(ast.unparse(node))
            else:
                gap = "" if isinstance(node, (ast.Assign, ast.AnnAssign)) else "\n"
                parts.append(f"\n{gap}{_lines(module, node)}")
    return "\n".join(parts).strip() + "\n"


def _lines(module: _Module, node: ast.stmt) -> str:
    decorators = getattr(node, "decorator_list", [])
    first = min([node.lineno, *(d.lineno for d in decorators)]) - 1
    while first and module.lines[first - 1].startswith("#"):
        first -= 1
    return "\n".join(module.lines[first : node.end_lineno])
