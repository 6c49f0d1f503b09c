"""Every optional part of the tree is in doctor's list, with what it adds and how to get it."""

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from typer.testing import CliRunner

from kernelbench import families
from kernelbench.cli import app
from kernelbench.verbs import doctor
from kernelbench.verbs.doctor import optional

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NEEDED = {"torch", "triton"}  # doctor has lines of its own for these
MODULES = {module for part in optional.PACKAGES for module in part.modules}
PROGRAMS = {name for part in optional.PROGRAMS for name in part.names} | {*optional.PROFILERS}


def test_every_extra_is_listed_as_pyproject_has_it():
    wanted = {
        (text.partition(";")[0].strip(), extra, "3.12" in text)
        for extra, texts in PROJECT["optional-dependencies"].items()
        if extra != optional.DEVELOPING
        for text in texts
    }
    listed = {(p.requirement, p.extra, p.python == (3, 12)) for p in optional.PACKAGES if p.extra}
    assert listed == wanted
    along = {part.requirement for part in optional.PACKAGES if not part.extra}
    assert along <= {*PROJECT["dependencies"]}


def test_every_module_that_a_provider_requires_is_listed():
    required = {m for f in families.load().values() for p in f.providers for m in p.requires}
    assert required - NEEDED and required - NEEDED <= MODULES


def imported_in_functions(tree: ast.AST) -> set[str]:
    """Top names of what is imported only where it is used, or may be missing."""
    found = set()
    for function in ast.walk(tree):
        if isinstance(function, (ast.FunctionDef, ast.Try)):
            for node in ast.walk(function):
                if isinstance(node, ast.Import):
                    found |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    found.add(str(node.module).partition(".")[0])
    return found


def test_every_optional_import_and_program_is_listed():
    comes_along = {re.split("[>;]", text)[0].lower() for text in PROJECT["dependencies"]}
    known = {*sys.stdlib_module_names, "kernelbench", "yaml", *comes_along} | MODULES
    for path in (ROOT / "kernelbench").rglob("*.py"):
        text = path.read_text()
        assert not imported_in_functions(ast.parse(text)) - known, path
        programs = re.findall(r'(?:shutil\.which|tool\.find)\("([^"]+)"', text)
        assert {*programs} <= PROGRAMS, path
        extras = re.findall(r"kernelbench\[(\w+)\]", text)
        assert {*extras} <= {*PROJECT["optional-dependencies"]}, path


def test_doctor_says_of_each_what_it_adds_and_how_to_get_it(monkeypatch):
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    monkeypatch.setattr(optional.shutil, "which", lambda name: None)
    parts = [*doctor._programs(), *doctor._packages(), doctor._developing()]
    assert len(parts) == len(optional.PACKAGES) + len(optional.PROGRAMS) + 1
    for part in parts:
        assert part.ok is None and part.adds and "install" in part.remedy, part
    assert "sageattention>=1.0.6,<2" in next(p.remedy for p in parts if p.what == "sageattention")


def test_paths_of_programs_are_shown_with_v_alone(monkeypatch):
    found = [doctor.Finding("gcc", True, "gcc", adds="Triton", path="/opt/bin/gcc")]
    monkeypatch.setattr(doctor, "examine", lambda: found)
    runner = CliRunner()
    assert runner.invoke(app, ["doctor"]).output.split() == ["ok", "gcc", "gcc", "·", "Triton"]
    assert "/opt/bin/gcc" in runner.invoke(app, ["doctor", "-v"]).output
    assert json.loads(runner.invoke(app, ["doctor", "--json"]).output)[0]["adds"] == "Triton"


def test_the_list_needs_no_torch():
    code = (
        "import sys\nfrom kernelbench.verbs.doctor import optional\n"
        "[(p.version, p.remedy) for p in optional.PACKAGES], optional.developing()\n"
        "assert not {'torch', 'jinja2', 'matplotlib'} & {*sys.modules}\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
