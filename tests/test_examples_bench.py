"""The examples of kernels without a family file: as their docstrings call them, on small sizes."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernelbench import store
from kernelbench.spec import Status

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NEEDS_COMPILER = pytest.mark.skipif(
    not (shutil.which("g++") and shutil.which("ninja")),
    reason="builds C++: needs g++ and ninja on the PATH",
)


def command_of(name: str) -> list[str]:
    """The line of bench in an example's docstring, sizes cut down."""
    text = (EXAMPLES / name).read_text(encoding="utf-8").replace("\\\n", " ")
    match = re.search(r"(?m)^ +kernelbench (bench .*)$", text)
    assert match is not None
    line = match[1].replace("4096x1024", "16x100").replace("1024:", "100:")
    return [word.strip("'") for word in re.findall(r"'[^']*'|\S+", line)]


def bench(arguments: list[str], folder: Path) -> list[Status]:
    """The statuses, in a run of its own."""
    code = "from kernelbench.cli import app; app()"
    command = [sys.executable, "-c", code, *arguments, "--quick", "--out", str(folder), "-q"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = store.find_runs([folder])
    return [record.status for record in store.read(run)]


@pytest.mark.parametrize(
    "name",
    [
        "triton_kernel.py",
        "operator.py",
        pytest.param("extension.py", marks=[pytest.mark.slow, NEEDS_COMPILER]),
    ],
)
def test_what_is_no_family_is_benched_in_one_line(name: str, tmp_path: Path) -> None:
    assert bench(command_of(name), tmp_path / "out") == [Status.ok, Status.ok]


@pytest.mark.slow
@NEEDS_COMPILER
def test_a_compiled_package_is_benched(tmp_path: Path) -> None:
    package = tmp_path / "gelu.pt2"
    command = [sys.executable, str(EXAMPLES / "exported.py"), str(package)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    words = [
        str(package) if word == "gelu.pt2" else word.replace("512x100", "512x1024")
        for word in command_of("exported.py")
    ]
    assert bench(words, tmp_path / "out") == [Status.ok, Status.ok]
