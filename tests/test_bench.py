"""`kernelbench bench`: from a line to a run, a suite, a script; and what it refuses."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from kernelbench import store, suite
from kernelbench.cli import app
from kernelbench.spec import UsageError
from kernelbench.verbs.bench import named

OTHERS = Path(__file__).parent / "functions" / "others.py"
LINE = [
    "my.py:softmax", "my.py:softmax_wrong", "--against", "my.py:softmax_reference",
    "--args", "logits=MxN:fp16", "--size", "M=4,8", "--size", "N=33", "--device", "cpu",
]  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copy(OTHERS, "my.py")
    return tmp_path


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, arguments, env={"NO_COLOR": "1", "COLUMNS": "100"})


def facts(folder: Path) -> dict[tuple[str, str], str]:
    return {(r.case, r.provider): r.status.value for r in store.read(folder)}


def test_from_a_line_to_a_run_a_suite_and_a_script(here: Path) -> None:
    done = run("bench", *LINE, "--grad", "--save", "kept/mine.yaml", "--quick")
    assert done.exit_code == 2 and "kept/mine.yaml: cannot be written" in done.output
    (here / "kept").mkdir()
    done = run("bench", *LINE, "--grad", "--save", "kept/mine.yaml", "--quick")
    assert done.exit_code == 1, done.output
    assert "softmax_wrong  incorrect: out: error" in done.output
    (first,) = store.find_runs(["results"])
    found = facts(first)
    assert {case for case, _ in found} == {
        f"M{M}-N33-fp16-{mode}" for M in (4, 8) for mode in ("fwd", "bwd")
    }
    assert {name: {s for (_, n), s in found.items() if n == name} for _, name in found} == {
        "softmax_reference": {"ok"},
        "softmax": {"ok"},
        "softmax_wrong": {"incorrect"},
    }

    kept = yaml.safe_load((here / "kept/mine.yaml").read_text())
    assert kept["functions"]["softmax"]["against"] == "../my.py:softmax_reference"
    assert kept["families"]["softmax"]["cases"] == [{"M": [4, 8], "N": 33, "dtype": "fp16"}]
    assert run("run", "kept/mine.yaml", "--out", "again", "--quick", "-q").exit_code == 1
    (second,) = store.find_runs(["again"])
    assert facts(second) == found
    assert {r.source for r in store.read(first)} == {r.source for r in store.read(second)}
    done = run("run", "--resume", str(second), "-q")
    assert done.exit_code == 1 and len(store.history(second)) == len(found)
    assert run("check", "kept/mine.yaml", "--provider", "softmax", "-q").exit_code == 0
    assert "M8-N33-fp16-bwd  softmax_reference" in run("list", "kept/mine.yaml").output

    args = ["--run", str(first), "--provider", "softmax", "--out", "r.py"]
    assert run("repro", "M8-N33-fp16-bwd", *args).exit_code == 0
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    script = [sys.executable, str(here / "r.py")]
    done = subprocess.run(script, cwd="/", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "dlogits: relative error" in done.stdout


def test_a_triton_kernel_in_bf16_is_not_judged_by_the_interpreter(here: Path) -> None:
    """README's first line, on a CPU: nothing says beforehand that a function launches a kernel."""
    example = Path(__file__).parents[1] / "examples/triton_kernel.py"
    line = [f"{example}:rms_norm", "--against", f"{example}:reference"]
    done = run("bench", *line, "--args", "x=4x32:bf16, weight=32:bf16", "--quick")
    assert done.exit_code == 0, done.output
    records = {r.provider: r for r in store.read(store.find_runs(["results"])[0])}
    assert records["reference"].status.value == "ok"
    assert records["rms_norm"].status.value == "skipped"
    assert records["rms_norm"].reason == "bf16 arithmetic is wrong in Triton's interpreter"


def test_a_dry_run_lists_the_jobs_and_leaves_nothing(here: Path) -> None:
    done = run("bench", *LINE, "--dry-run", "--compile", "--name", "mine")
    assert done.exit_code == 0, done.output
    providers = "softmax_reference compile compile_max_autotune softmax softmax_wrong"
    assert f"mine/M4-N33-fp16-fwd  {providers}" in done.output
    assert sorted(path.name for path in here.iterdir() if path.suffix != ".py") in (
        [], ["__pycache__"],
    )  # fmt: skip


def test_records_as_json(here: Path) -> None:
    line = [*LINE, "--max-error", "softmax=0.01", "--json", "--out", "out"]
    done = CliRunner().invoke(app, ["bench", *line], env={"NO_COLOR": "1"})
    assert done.exit_code == 1
    (shown,) = json.loads(done.stdout)
    accuracy = {r["provider"]: r["accuracy"] for r in shown["records"]}
    assert accuracy["softmax"] == "approximate" and accuracy["softmax_wrong"] == "exact"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--against", ""], "--against names the reference"),
        (["--args", ""], "says neither args nor inputs"),
        (["--size", "K=3"], "--size K: no argument has this size"),
        (["--wrt", "x"], "grad: no tensor 'x'. Known: logits"),
        (["--max-error", "2"], "a relative error such as 0.05"),
        (["--max-error", "fast=0.1"], "no candidate 'fast'"),
        (["--args", "logits=MxN:fp16, dim=7"], "refuses logits"),
        (["my.py:none"], "there is no 'none'"),
        (["my.py:softmax", "my.py:softmax"], "a second candidate"),
    ],
)
def test_bad_input_is_one_clear_error(here: Path, change: list[str], said: str) -> None:
    done = run("bench", *LINE, *change)
    assert done.exit_code == 2
    assert said in " ".join(done.output.split()), done.output
    assert not Path("results").exists()


def test_nothing_to_hold_against_the_reference(here: Path) -> None:
    done = run("bench", *LINE[2:])
    assert done.exit_code == 2 and "name a function, my.py:fused, or --compile" in done.output


def test_names_of_candidates() -> None:
    assert named(["a.py:f", "b.py:f", "fast=c.py:f", "c.py:Net(dim=3)", "m-1.pt2"]) == {
        "f": "a.py:f",
        "b_f": "b.py:f",
        "fast": "c.py:f",
        "Net": "c.py:Net(dim=3)",
        "m_1": "m-1.pt2",
    }
    assert named(["torch.ops.aten.mm"]) == {"mm": "torch.ops.aten.mm"}
    with pytest.raises(UsageError, match=r"say NAME=c/a\.py:f"):
        named(["a.py:f", "b/a.py:f", "c/a.py:f", "b/a.py:f"])


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("{}", "mine.yaml:3:3: missing key 'against' of functions"),
        ("{against: 3}", "takes text, got 3"),
        ("{against: 'a.py:f', args: 'x=3:bf16', nope: 1}", "no key 'nope'"),
        ("{against: 'a.py:f'}", "mine.yaml:3:9: mine: says neither args nor inputs"),
        ("{against: 'a.py:f', args: 'x=3:bf16', compile: fast}", "no value 'fast'"),
    ],
)
def test_declarations_in_a_suite_are_checked(here: Path, function: str, said: str) -> None:
    path = Path("mine.yaml")
    families = "families: {mine: {cases: [{}]}}"
    path.write_text(f"name: mine\nfunctions:\n  mine: {function}\n{families}\n")
    with pytest.raises(UsageError) as error:
        suite.declared(path)
    assert said in str(error.value)
    assert run("run", "mine.yaml").exit_code == 2


def test_an_axis_of_a_declared_family_is_checked_as_any(here: Path) -> None:
    assert run("bench", *LINE, "--save", "mine.yaml", "--dry-run").exit_code == 0
    text = Path("mine.yaml").read_text().replace("N: 33", "n: 33")
    Path("mine.yaml").write_text(text)
    done = run("run", "mine.yaml")
    assert done.exit_code == 2 and "no softmax axis 'n'; did you mean 'N'" in done.output
