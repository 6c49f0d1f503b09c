"""What is shipped, what is pinned, and what must not be in the repository."""

import ast
import importlib
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import kernelbench

ROOT = Path(__file__).parent.parent
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MIB = 1 << 20
NVIDIA = re.compile(
    r"\.(nsys-rep|ncu-rep|qdstrm|qdrep|so(\.\d+)*|cubin|fatbin|ptx|deb|rpm|run|whl|a|o)$"
)


def pins() -> dict[str, Version]:
    """constraints.txt: one `name==version` a line."""
    found = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            assert canonicalize_name(name) not in found, f"{name} is pinned twice"
            found[canonicalize_name(name)] = Version(version)
    return found


def declared() -> list[Requirement]:
    """What `make` installs: the dependencies, two extras, and what builds the package."""
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    build = PYPROJECT["build-system"]["requires"]
    return [*map(Requirement, project["dependencies"] + extras["dev"] + extras["report"] + build)]


def git(*arguments: str) -> list[str]:
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 1):
        pytest.skip(f"not a git checkout: {done.stderr.strip()}")
    return [name for name in done.stdout.split("\0") if name]


def tracked() -> dict[str, int]:
    """Bytes of every tracked file that is there."""
    paths = {name: ROOT / name for name in git("ls-files", "-z")}
    return {name: path.lstat().st_size for name, path in paths.items() if path.exists()}


def test_the_module_runs_and_says_its_version() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kernelbench", "--version"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == f"kernelbench {kernelbench.__version__}"


def test_what_it_needs_besides_code_is_in_the_wheel(tmp_path: Path) -> None:
    """Of the wheel itself, built from a copy of this tree, with what is installed here."""
    copy = tmp_path / "tree"
    names = git("ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in names:
        if name.startswith("kernelbench/") and (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (copy / name).write_bytes((ROOT / name).read_bytes())
    code = "from setuptools.build_meta import build_wheel; build_wheel('..')"
    subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, check=True)
    [wheel] = tmp_path.glob("kernelbench-*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        name
        for name in names
        if name.startswith("kernelbench/")
        and name.endswith((".py", ".yaml", ".json", ".typed", ".html", ".css", ".js", ".template"))
    }
    generated = {"kernelbench/suite.schema.json", "kernelbench/families.json"}
    assert {"kernelbench/py.typed", *generated} <= wanted
    assert "kernelbench/configs/smoke.yaml" in wanted
    assert not wanted - inside, f"package-data in pyproject.toml forgets {sorted(wanted - inside)}"
    extra = {name for name in inside if not name.startswith(("kernelbench/", "kernelbench-"))}
    assert not extra, f"the wheel also holds {extra}"


def test_the_shipped_files_are_found_where_it_is_installed() -> None:
    here = resources.files("kernelbench")
    for name in ("py.typed", "suite.schema.json", "families.json", "configs/smoke.yaml"):
        assert here.joinpath(name).is_file(), name


def test_the_configs_of_the_repository_are_those_that_are_shipped() -> None:
    shipped = {path.name for path in (ROOT / "kernelbench/configs").glob("*.yaml")}
    assert {path.name for path in (ROOT / "configs").glob("*.yaml")} == shipped


def test_every_declared_dependency_is_pinned_as_declared() -> None:
    known = pins()
    for requirement in declared():
        name = canonicalize_name(requirement.name)
        assert name in known, f"{requirement} is not in constraints.txt: `make constraints`"
        assert known[name] in requirement.specifier, f"{requirement}, but {known[name]} is pinned"


def minimum(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "tools/minimum.py", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_lowest_versions_are_the_lower_bounds_beside_the_pinned_torch() -> None:
    lines = [line.split("==") for line in minimum().stdout.splitlines()]
    lowest = {canonicalize_name(name): Version(version) for name, version in lines}
    assert len(lowest) == len(lines)
    extras = PYPROJECT["project"]["optional-dependencies"]
    stated = [*map(Requirement, PYPROJECT["project"]["dependencies"] + extras["report"])]
    for requirement in stated:
        name = canonicalize_name(requirement.name)
        [bound] = [each.version for each in requirement.specifier if each.operator == ">="]
        assert lowest.pop(name) == (pins()[name] if name == "torch" else Version(bound))
    kept = pins()
    assert lowest.items() <= kept.items()
    assert kept.keys() - lowest.keys() == {*(canonicalize_name(r.name) for r in stated)} | {
        "pydantic-core"  # each pydantic requires one, exactly
    }


def test_other_versions_than_the_lowest_are_named() -> None:
    skip_unless_pinned()
    done = minimum("--check")
    assert done.returncode == 1
    assert f"numpy {importlib.metadata.version('numpy')} is installed, not 2\n" in done.stderr


def test_scripts_and_tests_for_a_gpu_import_what_is_there() -> None:
    """They do not run here: what they import, in functions, too, is looked for."""
    gone = []
    for folder in ("studies", "tools", "tests/gpu", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                    "kernelbench"
                ):
                    module = importlib.import_module(str(node.module))
                    gone += [
                        f"{path.relative_to(ROOT)}:{node.lineno}: {node.module}.{alias.name}"
                        for alias in node.names
                        if not hasattr(module, alias.name)
                        and importlib.util.find_spec(f"{node.module}.{alias.name}") is None
                    ]
    assert not gone


def test_the_ci_ends_within_45_minutes() -> None:
    text = (ROOT / ".ci/run").read_text(encoding="utf-8")
    limit = re.search(r"(?m)^readonly seconds=\$\(\((\d+) \* 60\)\)", text)
    assert limit is not None and int(limit[1]) < 45 and " 45 minutes at most." in text
    assert re.findall(r"(?m)^extra (\S+)", text) == ["fanout", "inspect", "minimum", "test-slow"]


@pytest.mark.parametrize(
    "parts, said, code",
    [
        ("part a true\nextra b true", ["a ok", "b ok", "0 not finished", "2 passed, 0 failed"], 0),
        ("part a false\nextra b true", ["a FAILED (1)", "b ok", "1 passed, 1 failed"], 1),
        ("part a true\nextra b false", ["b FAILED (1)", "0 not finished", "1 passed, 1 failed"], 1),
        (
            "SECONDS=98\npart a sleep 60\npart b true",
            ["a OUT OF TIME", "b OUT OF TIME", "2 failed"],
            1,
        ),
        (
            "part a true\nSECONDS=98\nextra b sleep 60\nextra c true",
            ["b not finished: no time was left", "c not finished", "2 not finished", "0 failed"],
            0,
        ),
        ("part a true\nextra b bash -c 'kill -9 $$'", ["b FAILED (137)", "1 failed"], 1),
        ("part a false\nSECONDS=100\nextra b true", ["b not finished", "0 passed, 1 failed"], 1),
        (  # that ends of itself, when time is up
            "part a true\nwithin() { SECONDS=100; return 3; }\nextra b true",
            ["a ok", "b FAILED (3)", "0 not finished", "1 passed, 1 failed"],
            1,
        ),
    ],
)
def test_only_time_excuses_a_part_of_the_ci_and_only_those_that_may_be_cut(
    tmp_path: Path, parts: str, said: list[str], code: int
) -> None:
    text = (ROOT / ".ci/run").read_text(encoding="utf-8")
    before, after = text[: text.index("\npart set-up")], text[text.index("\nprintf '\\n'\n") :]
    before = re.sub(r"seconds=\S+ \* 60\)\)", "seconds=100", before)
    (tmp_path / "ci").mkdir()
    script = tmp_path / "ci/run"
    script.write_text(f"{before}\n{parts}\n{after}", encoding="utf-8")
    ended = subprocess.run(["bash", script], capture_output=True, text=True, check=False)
    shown = re.sub(r"(?m) +\d+ s  ", " ", ended.stdout)
    assert [line for line in said if line not in shown] == [], ended.stdout + ended.stderr
    assert ended.returncode == code


def skip_unless_pinned() -> None:
    installed = importlib.metadata.version("torch").partition("+")[0]
    if installed != str(pins()["torch"]):
        pytest.skip(f"torch {installed} is installed, not the pinned one")


def test_what_they_need_in_turn_is_pinned_too() -> None:
    """Of whatever is installed here; a CUDA build of torch pins its own libraries."""
    skip_unless_pinned()
    known, waiting, seen = pins(), [(r.name, r.extras) for r in declared()], set[str]()
    while waiting:
        name, extras = waiting.pop()
        if (name := canonicalize_name(name)) in seen:
            continue
        seen.add(name)
        assert name in known, f"{name} is not in constraints.txt: `make constraints`"
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for need in map(Requirement, needs):
            own = need.name.startswith(("nvidia-", "cuda-"))
            wanted = need.marker is None or any(
                need.marker.evaluate({"extra": extra}) for extra in {"", *extras}
            )
            if wanted and not own:
                waiting.append((need.name, need.extras))
    assert len(seen) > 30


def test_torch_and_triton_are_the_pair_that_belongs_together() -> None:
    """The CUDA build of torch requires one triton, exactly; on a CPU nothing else would say so."""
    skip_unless_pinned()
    known = pins()
    assert (str(known["torch"]), str(known["triton"])) == ("2.13.0", "3.7.1")
    needs = [Requirement(text) for text in importlib.metadata.requires("torch") or []]
    for need in needs:
        if need.name == "triton":
            assert known["triton"] in need.specifier, need


def test_python_and_licence_are_stated_where_they_are_true() -> None:
    project = PYPROJECT["project"]
    assert project["requires-python"] == ">=3.11"
    assert "version_info < (3, 11)" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert PYPROJECT["tool"]["ruff"]["target-version"] == "py311"
    assert PYPROJECT["tool"]["mypy"]["python_version"] == "3.11"
    assert project["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")


def test_no_registry_is_named() -> None:
    """Whoever installs this says where from; a pin is a name and a version."""
    for name in ("constraints.txt", "Makefile", ".ci/run", "pyproject.toml"):
        text = (ROOT / name).read_text(encoding="utf-8")
        found = re.search(r"(?i)index-url|find-links|https?://\S*(pypi|simple|whl)\S*", text)
        assert found is None, f"{name}: {found and found[0]}"


def test_the_repository_stays_small() -> None:
    sizes = tracked()
    kept = {name: size for name, size in sizes.items() if name.startswith("results/h200/")}
    assert sum(kept.values()) <= 3 * MIB, f"results/h200 has {sum(kept.values()) / MIB:.1f} MiB"
    largest = sorted(sizes, key=lambda name: -sizes[name])[:5]
    assert sum(sizes.values()) <= 6 * MIB, (
        f"{sum(sizes.values()) / MIB:.1f} MiB tracked, at most 6; the largest: {largest}"
    )


def test_no_binary_of_somebody_else_is_tracked() -> None:
    bad = [name for name in tracked() if NVIDIA.search(name)]
    assert not bad, f"{bad}: profiles and built code stay out; keep what was read from them"
    elves = [n for n in tracked() if (ROOT / n).is_file() and _head(ROOT / n) == b"\x7fELF"]
    assert not elves, f"{elves} are programs"


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)


@pytest.mark.parametrize(
    ("path", "ignored"),
    [
        ("results/20260101T000000Z-smoke-cpu/records.jsonl", True),
        ("results/20260101T000000Z-smoke-cpu/manifest.json", True),
        ("results/README.md", False),
        ("results/h200/20260101T000000Z-h200/records.jsonl", False),
        ("results/h200/20260101T000000Z-h200/profiles/rms.nsys-rep", True),
        ("results/h200/20260101T000000Z-h200/profiles/rms.ncu-rep", True),
        (".venv/bin/python", True),
        ("kernelbench/configs/smoke.yaml", False),
    ],
)
def test_git_keeps_quoted_results_and_no_others(path: str, ignored: bool) -> None:
    found = git("check-ignore", "--no-index", path)
    assert bool(found) is ignored
