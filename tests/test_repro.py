"""A record as a script that runs without this package, and says the same."""

import ast
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_gather import a_run
from typer.testing import CliRunner

from kernelbench import families, store
from kernelbench.cli import app
from kernelbench.kernels import interpreter
from kernelbench.measure.inputs import Draw as Measured
from kernelbench.repro.loop import Draw, names_of
from kernelbench.repro.record import repro, script_of
from kernelbench.spec import (
    KernelbenchError,
    OutputError,
    RunRecord,
    Status,
    Timing,
    UsageError,
)
from kernelbench.spec.job import Job
from kernelbench.spec.record import Context, record_of

FAMILIES = families.load()
SMALL: dict[str, dict[str, Any]] = {
    "rms_norm": {"M": 4, "N": 256, "residual": True, "mode": "full"},
    "rotary": {"B": 1, "S": 8, "Hq": 2, "Hk": 1, "D": 32, "inplace": True},
    "swiglu": {"M": 4, "F": 96, "packed": True, "mode": "full"},
    "empty": {"M": 3, "N": 20},
    "rcm_attention": {"B": 1, "N": 20, "H": 2, "D": 32, "mode": "full"},
    "rcm_layer": {"B": 1, "N": 16, "C": 32, "H": 2},
    "attention": {"B": 1, "N": 12, "Hq": 2, "Hk": 1, "D": 16},
    "dilated_attention": {"B": 1, "N": 16, "branches": "8r1_16r2", "H": 2, "D": 16},
    "dilated_parallel": {"world": 1, "N": 16, "branches": "8r1_16r2", "H": 2, "D": 16},
    "dit_block": {"B": 1, "N": 12, "C": 32, "H": 2},
    "train_step": {"B": 1, "S": 8, "C": 16, "H": 2, "layers": 1, "V": 20},
    "zigzag_attention": {"W": 2, "rank": 1, "N": 16, "Hq": 2, "Hk": 1, "D": 16},
    "zigzag_parallel": {"world": 1, "N": 16, "Hq": 2, "Hk": 1, "D": 16, "least": 1},
}


def made(family: str, provider: str, **facts: Any) -> RunRecord:
    """A record that was not measured, with a budget that holds in fp32."""
    known = FAMILIES[family]
    case = known.case.from_axes({**SMALL[family], "dtype": "fp32"})
    names = names_of(known, case)
    budgets = tuple(
        OutputError(name=n, rel=1e-7, worst=1e-6, rel_budget=1e-5, worst_budget=1e-3) for n in names
    )
    job = Job(family=family, case=case, providers=(provider,))
    context = Context(run_id="one", gpu="a CPU", seed=3, source="")
    found = record_of(job, known.provider(provider), Status.ok, context, errors=budgets)
    return replace(found, **facts)


def measured(family: str, provider: str, **facts: Any) -> RunRecord:
    return made(family, provider, timing=Timing(timer="host", blocks_ns=((10,),)), **facts)


ALONE = """
import importlib.util, pathlib, runpy, sys
sys.path[:] = [p for p in sys.path if not pathlib.Path(p, "kernelbench").exists()]
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in str(getattr(f, "__module__", ""))]
assert importlib.util.find_spec("kernelbench") is None
runpy.run_path("script.py", run_name="__main__")
"""


def run_alone(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """In an empty folder, by an interpreter that finds torch and triton but not this package."""
    (folder / "script.py").write_text(script)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "TRITON"))}
    return subprocess.run(
        [sys.executable, "-I", "-c", ALONE],
        cwd=folder,
        env=kept | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


RAN = [
    ("rms_norm", "triton_fused"),
    ("rms_norm", "eager"),
    ("rotary", "triton_fused"),
    ("rotary", "eager"),
    ("rcm_attention", "triton_fused"),
    ("rcm_attention", "baseline"),
]


@pytest.mark.parametrize(("family", "provider"), RAN)
def test_the_script_runs_alone_and_finds_the_provider_right(
    tmp_path: Path, family: str, provider: str
) -> None:
    if provider == "triton_fused" and (why := interpreter.why_broken()):
        pytest.skip(why)
    record = made(family, provider)
    script = script_of(record, [record], FAMILIES[family])
    done = run_alone(script, tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{family} {record.case} · {provider} · no GPU" in done.stdout
    names = [error.name for error in record.errors]
    assert [n for n in names if f"{n}: relative error" in done.stdout] == names
    assert "budget 1.00e-05" in done.stdout and "✗" not in done.stdout
    assert list(tmp_path.iterdir()) == [tmp_path / "script.py"]


def test_an_error_above_its_budget_is_an_exit_code(tmp_path: Path) -> None:
    tight = [replace(e, rel_budget=1e-30) for e in made("rms_norm", "eager").errors]
    record = made("rms_norm", "eager", errors=tuple(tight))
    done = run_alone(script_of(record, [record], FAMILIES["rms_norm"]), tmp_path)
    assert done.returncode == 1 and "✗" in done.stdout


@pytest.mark.parametrize("kind", ["normal", "uniform", "outliers", "zeros", "ones"])
def test_inputs_are_those_of_the_run(kind: str) -> None:
    """The same seed draws the same values in the script as in a measurement."""
    case = FAMILIES["rms_norm"].case.from_axes({"M": 4, "N": 8, "inputs": kind, "dtype": "fp32"})
    run, mine = Measured(case, "cpu", 5), Draw(torch.float32, kind, 5, "cpu")
    assert torch.equal(mine(4, 2048), run(4, 2048))
    assert torch.equal(mine.integers(0, 9, 50), run.integers(0, 9, 50))


EVERY = [(name, each.name) for name, family in FAMILIES.items() for each in family.providers]


@pytest.mark.parametrize(("family", "provider"), EVERY)
def test_every_provider_of_every_family_has_a_script(family: str, provider: str) -> None:
    record = made(family, provider)
    script = script_of(record, [record], FAMILIES[family])
    tree = ast.parse(script)
    compile(script, "script.py", "exec")
    top = {
        (node.module or "").split(".")[0] if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    assert "torch" in top and top <= {*sys.stdlib_module_names, "torch"}
    assert f"{family}/{record.case}, provider {provider}" in script
    assert "nsys profile" in script and "ncu " in script and "'seed': 3" in script


def timed(**facts: Any) -> RunRecord:
    timing = Timing(timer="gated", blocks_ns=((9000, 9100, 9200),) * 12, overhead_ns=1000)
    return made("rms_norm", "triton_fused", timing=timing, gpu="NVIDIA H200", group="g", **facts)


def test_what_several_ranks_did_is_no_script_of_one() -> None:
    record = made("zigzag_parallel", "triton_fused")
    record = replace(record, axes={**record.axes, "world": 2})
    with pytest.raises(UsageError, match="2 ranks did this together, and a script is one process"):
        script_of(record, [record], FAMILIES["zigzag_parallel"])


def test_the_script_says_what_to_expect(tmp_path: Path) -> None:
    slow = Timing(timer="gated", blocks_ns=((19000, 19100, 19200),) * 12, overhead_ns=1000)
    base = made("rms_norm", "eager", timing=slow, gpu="NVIDIA H200", group="g")
    mine = timed(config={"block": 1}, source="old")
    script = script_of(mine, [base, mine], FAMILIES["rms_norm"])
    doc = ast.get_docstring(ast.parse(script)) or ""
    assert re.search(r"median 8\.1 µs, 95 % \[8(\.\d)?, 8(\.\d)?\] µs on NVIDIA H200", doc)
    assert "2.23 × the baseline" in doc
    assert "newer than what was measured then" in doc
    assert "'overhead_us': 1.0" in script and "'config': {'block': 1}" in script


def script(case: str, provider: str, where: Path) -> str:
    text, problems = repro(case, provider, where)
    assert not problems
    return text


def test_the_newest_run_that_has_the_record_is_taken(tmp_path: Path) -> None:
    first, second = measured("rms_norm", "eager"), measured("rms_norm", "triton_fused")
    a_run(tmp_path, "1", [first, second])
    a_run(tmp_path, "2", [replace(first, seed=77)])
    a_run(tmp_path, "3", [measured("rotary", "eager")])
    text = script(first.case, "", tmp_path)
    assert "'seed': 77" in text and "provider eager" in text
    assert "provider triton_fused" in script(first.case, "", tmp_path / "1")
    assert "provider eager" in script(f"rms_norm/{first.case}", "eager", tmp_path / "1")
    assert "provider triton_fused" in script(first.case, "triton_fused", tmp_path)
    a_run(tmp_path, "0", [replace(first, seed=78, utc="2036-01-01T00:00:00+00:00")])
    assert "'seed': 78" in script(first.case, "", tmp_path)  # by its time, not by its name


HOSTILE = "a \"\"\" b''' \\ \\N{{x}} {x} \0 \n \r \x1b µ"


@pytest.mark.parametrize("name", [HOSTILE, '"' * 7, "\\" * 3 + '"""', "\ud800"])
def test_no_text_from_outside_breaks_the_script(name: str) -> None:
    timing = Timing(timer="gated", blocks_ns=((19000, 19100, 19200),) * 12)
    base = made("rms_norm", "eager", gpu=name, group="g", label=name, timing=timing)
    text = script_of(base, [base], FAMILIES["rms_norm"])
    tree = ast.parse(text.encode("utf-8", "strict"))
    assert " on " in (ast.get_docstring(tree) or "")


def test_lines_that_cannot_be_read_are_named_and_the_exit_code_is_1(tmp_path: Path) -> None:
    known = measured("rms_norm", "eager")
    a_run(tmp_path, "1", [known])
    with (tmp_path / "1" / store.RECORDS).open("ab") as file:
        file.write(b"{")
    done = CliRunner().invoke(app, ["repro", known.case, "--run", str(tmp_path)])
    assert done.exit_code == 1 and f"{store.RECORDS}:2: not JSON" in done.stderr
    assert done.stdout.startswith("#!")


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    known = measured("rms_norm", "eager")
    a_run(tmp_path, "1", [known])
    with pytest.raises(UsageError, match=rf"no case 'M4'.*{tmp_path}"):
        repro("M4", "", tmp_path)
    with pytest.raises(UsageError, match=r"has no 'eagre'.*eager"):
        repro(known.case, "eagre", tmp_path)
    with pytest.raises(UsageError, match="no such file or folder"):
        repro(known.case, "", tmp_path / "nowhere")
    with pytest.raises(KernelbenchError, match="cannot be written"):
        repro(known.case, "", tmp_path, out=tmp_path / "no" / "x.py")
    a_run(tmp_path, "2", [replace(known, family="mine")])
    with pytest.raises(UsageError, match="say which"):
        a_run(tmp_path, "3", [known, replace(known, family="mine")])
        repro(known.case, "", tmp_path / "3")
    with pytest.raises(UsageError, match=r"family 'mine' is not here.*--plugin"):
        repro(known.case, "", tmp_path / "2")


def test_the_verb_prints_or_writes(tmp_path: Path) -> None:
    known = measured("rms_norm", "eager")
    a_run(tmp_path, "1", [known])
    told = CliRunner().invoke(app, ["repro", known.case, "--run", str(tmp_path)])
    assert told.exit_code == 0 and told.stdout.startswith("#!/usr/bin/env python3")
    out = tmp_path / "x.py"
    args = ["repro", known.case, "--run", str(tmp_path), "--out", str(out)]
    done = CliRunner().invoke(app, args)
    assert (done.stdout, done.stderr) == ("", f"wrote {out}\n")
    assert out.read_text() == told.stdout
    assert store.read(tmp_path / "1") == [replace(known, run_id="1")]
