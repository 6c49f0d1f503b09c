"""`kernelbench new family`: what it writes passes as it is, and nothing is overwritten."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kernelbench import families
from kernelbench.cli import app
from kernelbench.spec import DType
from kernelbench.verbs import new


def made(name: str, out: Path) -> Any:
    return CliRunner().invoke(app, ["new", "family", name, "--out", str(out)])


def test_the_family_passes_its_checks_and_what_comes_next_is_said(tmp_path: Path) -> None:
    out = tmp_path / "a folder"
    done = made("my_gelu", out)
    assert done.exit_code == 0, done.output
    assert {path.name for path in out.iterdir()} == {"my_gelu.py", "test_my_gelu.py"}
    lines = done.stdout.splitlines()
    assert lines[-3:] == [
        "next:",
        f"  kernelbench check --plugin '{out}/my_gelu.py' --family my_gelu",
        f"  python -m pytest '{out}/test_my_gelu.py'",
    ]
    family = families.load((str(out / "my_gelu.py"),))["my_gelu"]
    assert family.case.__name__ == "MyGeluCase"
    assert {case.dtype for case in family.checks} == {*DType}
    words = ("--family", "my_gelu", "--skip", "compile")  # its test compiles, too
    done = CliRunner().invoke(app, ["check", "--plugin", str(out / "my_gelu.py"), *words])
    assert done.exit_code == 0, done.output
    assert ", 0 wrong or failed, 0 skipped" in done.stdout


@pytest.mark.slow
def test_the_test_passes_and_fails_where_the_family_is_wrong(tmp_path: Path) -> None:
    assert made("mine", tmp_path).exit_code == 0
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout
    file = tmp_path / "mine.py"
    text = file.read_text().replace('a["x"].softmax(-1)', 'a["x"].softmax(-1) * 1.1')
    file.write_text(text)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "torch_fused: incorrect: y: error 0.1" in done.stdout


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("soft-max", "not the name of a Python module"),
        ("class", "not the name of a Python module"),
        ("1st", "not the name of a Python module"),
        ("_own", "a letter first"),
        ("../mine", "not the name of a Python module"),
        ("", "not the name of a Python module"),
        ("rms_norm", "there is a family of that name already"),
        ("json", "the name of a module that is installed"),
        ("torch", "the name of a module that is installed"),
    ],
)
def test_a_name_that_no_family_can_have_is_refused(tmp_path: Path, name: str, said: str) -> None:
    done = made(name, tmp_path)
    assert done.exit_code == 2 and f"error: {name!r}: " in done.stderr and said in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("there", ["mine.py", "test_mine.py"])
def test_what_is_there_stays(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("of somebody")
    done = made("mine", tmp_path)
    assert done.exit_code == 2 and f"{tmp_path / there}: it is there already" in done.stderr
    assert [path.read_text() for path in tmp_path.iterdir()] == ["of somebody"]


def test_a_link_that_leads_nowhere_is_there_too(tmp_path: Path) -> None:
    (tmp_path / "mine.py").symlink_to(tmp_path / "gone.py")
    assert made("mine", tmp_path).exit_code == 2
    assert not (tmp_path / "gone.py").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = made("mine", tmp_path / "file")
    assert done.exit_code == 2 and f"--out {tmp_path / 'file'}: cannot be made" in done.stderr


def test_nothing_is_left_to_be_filled_in() -> None:
    for text in (new.family_text("mine"), new.test_text("mine")):
        assert "$" not in text and "TODO" not in text
        assert max(map(len, text.splitlines())) <= 100
        compile(text, "mine.py", "exec")


def test_it_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom kernelbench.cli import app\n"
        "try: app()\nfinally: assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", code, "new", "family", "mine", "--out", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
