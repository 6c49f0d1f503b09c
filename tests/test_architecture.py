"""The house rules of docs/architecture.md, held by reading the source. Nothing here is run."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "kernelbench"
TABLE = f"ROOMS in {Path(__file__).name}"

# Which rooms of the package a room may import from, besides itself: of those above it alone.
ROOMS: dict[str, set[str]] = {
    "spec": set(),
    "files": {"spec"},
    "source": {"spec"},
    "numbers": {"spec"},
    "store": {"spec", "files"},
    "suite": {"spec"},
    "metrics": {"spec", "files", "numbers"},
    "kernels": set(),
    "dispatch": set(),
    "nn": {"kernels", "dispatch"},
    "parallel": {"kernels", "nn"},
    "integrations": {"kernels", "parallel"},
    "families": {"spec", "source", "kernels", "nn", "parallel"},
    "provide": {"families"},
    "measure": {"spec", "files", "numbers", "kernels"},
    "profile": {"spec", "files", "families", "kernels", "measure"},
    "claims": {"spec", "suite", "metrics", "numbers"},
    "report": {"spec", "files", "metrics", "store", "claims"},
    "compare": {"spec", "numbers", "store", "metrics"},
    "select": {"spec", "numbers", "metrics", "dispatch"},
    "repro": {"spec", "files", "source", "store", "metrics", "families"},
    "run": {"spec", "source", "store", "suite", "metrics", "families", "measure", "profile"},
    "fanout": {"spec", "files", "store", "suite"},
    "verbs": set(),  # all that is above it
    "__init__": {"verbs"},
    "pytest_plugin": {"spec", "files", "report", "compare", "verbs"},
    "cli": {"spec", "verbs"},
    "__main__": {"cli"},
}
ROOMS["verbs"] = {*ROOMS} - {"__init__", "__main__", "cli", "provide", "pytest_plugin", "verbs"}
STDLIB_ONLY = ("spec", "files", "source", "dispatch")
WITHOUT_TORCH = (
    "numbers.times",
    "store",
    "metrics",
    "metrics.audit",
    "compare.verdicts",
    "compare.trends",
    "report.tables",
    "report.profiles",
    "report.page",
    "report.claim_tables",
    "measure.tune",
    "claims",
    "suite",
    "verbs.report",
    "verbs.compare",
    "verbs.select",
    "dispatch",
    "verbs.history",
    "verbs.claims",
    "verbs.cache",
    "verbs.list",
    "verbs.doctor",
)  # results are read on a laptop
SAY_NOTHING = {"utils", "util", "common", "helpers", "helper", "misc"}
MOST_LINES, MOST_BODY, MOST_PARAMETERS = 400, 40, 12
BROAD = {"Exception", "BaseException"}

MODULES = {path.relative_to(ROOT).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
OUTSIDE_KERNELS = [name for name in MODULES if not name.startswith("kernelbench/kernels/")]


def room(name: str) -> str:
    """`kernelbench/suite/reader.py` → `suite`."""
    return Path(name).relative_to("kernelbench").parts[0].removesuffix(".py")


def imported(name: str) -> Iterator[tuple[int, str]]:
    """Every (line, dotted module) that a file imports, in functions and TYPE_CHECKING, too."""
    parents = [*Path(name).with_suffix("").parts[:-1]]
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = parents[: len(parents) - node.level + 1] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            if module == "kernelbench":  # `from kernelbench import store, __version__`
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, module


def rooms_used(name: str) -> Iterator[tuple[int, str]]:
    for line, module in imported(name):
        parts = module.split(".")
        if parts[0] == "kernelbench" and parts[1:] not in ([], ["__version__"]):
            yield line, parts[1]


@pytest.mark.parametrize("name", MODULES)
def test_imports_flow_one_way(name: str) -> None:
    mine = room(name)
    assert mine in ROOMS, f"{name}: a new room; say in {TABLE} what it may use"
    for line, other in rooms_used(name):
        assert other == mine or other in ROOMS[mine], (
            f"{name}:{line}: {mine} may not import {other}, only {sorted(ROOMS[mine]) or 'nothing'}"
            f" of this package. Hand it over as an argument, or change {TABLE} and docs/"
        )


def test_every_grant_is_of_a_room_above_and_used() -> None:
    used: dict[str, set[str]] = {name: set() for name in ROOMS}
    for name in MODULES:
        used[room(name)] |= {other for _, other in rooms_used(name)}
    above = list[str]()
    for mine, granted in ROOMS.items():
        assert granted <= {*above}, f"{mine} may import {granted - {*above}}, which is not above it"
        idle = granted - used[mine]
        assert mine == "verbs" or not idle, (
            f"{mine} may import {sorted(idle)}, and does not: take it out of {TABLE}"
        )
        above.append(mine)


def test_the_documents_list_of_rooms_is_that_of_the_tree() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = re.findall(
        r"(?m)^\| `(\w+)/?` \| ", text.partition("## Rooms")[2].partition("\n## ")[0]
    )
    assert listed == [name for name in ROOMS if not name.startswith("__")]
    assert {*ROOMS} == {room(name) for name in MODULES}


@pytest.mark.parametrize("name", [name for name in MODULES if room(name) in STDLIB_ONLY])
def test_the_words_need_the_standard_library_alone(name: str) -> None:
    for line, module in imported(name):
        top = module.split(".")[0]
        assert top in {*sys.stdlib_module_names, "kernelbench"}, (
            f"{name}:{line}: {room(name)} imports {top}; it is read where nothing is installed"
        )


@pytest.mark.parametrize("name", OUTSIDE_KERNELS)
def test_files_are_of_some_screens(name: str) -> None:
    lines = len(MODULES[name].read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES, f"{name}: {lines} lines, at most {MOST_LINES}: split it by subject"


@pytest.mark.parametrize("name", MODULES)
def test_functions_fit_a_screen(name: str) -> None:
    """All but device code."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not _of_a_device(node):
            body = node.body[1:] if ast.get_docstring(node, clean=False) else node.body
            size = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
            assert size <= MOST_BODY, (
                f"{name}:{node.lineno}: {node.name} has {size} lines besides its docstring, at "
                f"most {MOST_BODY}: give a part of it a name"
            )


@pytest.mark.parametrize("name", [name for name in MODULES if name not in OUTSIDE_KERNELS])
def test_what_travels_together_in_kernels_is_one_argument(name: str) -> None:
    """All but what has a flat signature by its caller's rules: a kernel's launch, an operator's
    schema, a function that users of others know."""
    calls = [node for node in ast.walk(TREES[name]) if isinstance(node, ast.Call)]
    called = {node.func.id for node in calls if isinstance(node.func, ast.Name)}
    for node in calls:
        if ast.unparse(node.func).endswith("warp_specialize") and isinstance(
            node.args[0], ast.List
        ):
            (pairs, *_) = node.args  # [(function, arguments), …]
            assert isinstance(pairs, ast.List)
            called |= {ast.unparse(p.elts[0]) for p in pairs.elts if isinstance(p, ast.Tuple)}
    for node in ast.walk(TREES[name]):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        size = len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs)
        if size > MOST_PARAMETERS and not _of_an_operator(node) and node.name not in KNOWN:
            assert _of_a_device(node) and node.name not in called, (
                f"{name}:{node.lineno}: {node.name} has {size} parameters, at most "
                f"{MOST_PARAMETERS}: those that travel together are one NamedTuple"
            )


KNOWN = (
    "zigzag_attention",  # by ring-flash-attention's users
    "dilated_attention",  # a name for every choice that papers and their code differ in
)


def _of_an_operator(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    decorators = map(ast.unparse, node.decorator_list)
    return any("custom_op" in d or d.startswith("without_data") for d in decorators)


def _of_a_device(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any("jit" in ast.unparse(decorator) for decorator in node.decorator_list)


def test_no_module_has_a_name_that_says_nothing() -> None:
    bad = [n for n in MODULES if {part.strip("_") for part in Path(n[:-3]).parts} & SAY_NOTHING]
    assert not bad, f"{bad}: name modules after their subject"


def _broad(node: ast.ExceptHandler) -> bool:
    kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
    return any(k is None or (isinstance(k, ast.Name) and k.id in BROAD) for k in kinds)


def test_failures_become_records_where_providers_are_called() -> None:
    found = [
        f"{name}:{node.lineno}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler) and _broad(node)
    ]
    places = [place.partition(":")[0] for place in found]
    assert places == [
        "kernelbench/families/__init__.py",
        "kernelbench/families/functions/others.py",
        "kernelbench/measure/guard.py",
        "kernelbench/profile/child.py",
    ], (
        f"broad `except` at {found}: only Guard.attempt and the profiled Child._attempt (a "
        "failure becomes a record) and the loaders of plugins and functions have one; name what "
        "you expect elsewhere"
    )


def test_results_are_read_without_torch() -> None:
    code = (
        f"import sys, {', '.join(f'kernelbench.{name}' for name in WITHOUT_TORCH)}\n"
        "print(*{m.partition('.')[0] for m in sys.modules} & {'torch', 'triton', 'nvtx'})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.split()
    assert not loaded, (
        f"importing {', '.join(WITHOUT_TORCH)} loads {loaded}: move that import into a function "
        f"(`{sys.executable} -X importtime -c 'import …'` shows whose it is)"
    )


def test_no_file_names_a_path_of_this_machine() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("not a git checkout")
    here = {str(ROOT), str(Path.home()), sys.prefix} - {"/", "/usr", "/usr/local"}
    known = "|".join(sorted(map(re.escape, here)))
    pattern = re.compile(rf"(?<![\w.~-])(?:(?:{known})|/(?:home|Users|root|work)/\w+)(?![\w-])")
    bad = []
    for path in (ROOT / name for name in listed.stdout.split("\0") if name):
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="ignore")
            bad += [f"{path.relative_to(ROOT)}: {hit}" for hit in set(pattern.findall(text))]
    assert not bad, f"{bad}: say it relative to the repository, or ask the system for it"
