"""The pytest plugin, in test runs of its own."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from test_compare import job, saved

from kernelbench import files, store
from kernelbench.compare.regression import regressions
from kernelbench.pytest_plugin import Kernelbench
from kernelbench.report.records import Records
from kernelbench.spec import UsageError

TEST = """
import torch

def reference(x):
    return (x.float() * 2).to(x.dtype)

def test_right(kernelbench):
    records = kernelbench.check(lambda x: x + x, against=reference, args="x=8x33:bf16")
    assert [r.status for r in records] == ["ok", "ok"]

def test_wrong(kernelbench):
    kernelbench.check(lambda x: x * 2.1, against=reference, args="x=8x33:bf16")

def test_timed(kernelbench):
    records = kernelbench.bench(lambda x: x + x, against=reference, args="x=8x33:bf16")
    kernelbench.assert_not_slower(records, than="main.jsonl")
"""


def pytest_in(folder: Path, *options: str) -> Any:
    """A test run with this plugin and no other, whether or not it is installed."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs"]
    command += ["-p", "kernelbench.pytest_plugin", *options]
    root = str(Path(__file__).parent.parent)
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": root}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_functions_are_proven_and_nothing_is_timed_without_a_gpu(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(TEST)
    done = pytest_in(tmp_path, "--kernelbench-skip-timing")
    assert "1 failed, 1 passed, 1 skipped" in done.stdout, done.stdout + done.stderr
    assert "nothing was timed: no GPU, or --kernelbench-skip-timing" in done.stdout
    assert "x8x33-bf16-fwd lambda: incorrect: out: error" in done.stdout
    assert not (tmp_path / "results").exists()


def test_a_test_run_that_does_not_use_it_imports_nothing(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(
        "import sys\n"
        "def test_nothing():\n"
        "    assert not {'torch', 'kernelbench.verbs', 'rich'} & {*sys.modules}\n"
    )
    done = pytest_in(tmp_path)
    assert "1 passed" in done.stdout and "kernelbench" not in done.stdout.partition("passed")[2]


class Config:
    """What the fixture asks of pytest's."""

    def __init__(self, workers: int = 1, **options: Any) -> None:
        self._options = {"--kernelbench-skip-timing": False, "--kernelbench-out": "results"}
        self._options |= {f"--kernelbench-{k}": v for k, v in options.items()}
        self.workerinput = {"workercount": workers} if workers > 1 else {}

    def getoption(self, name: str) -> Any:
        return self._options.get(name)


def test_what_is_timed_is_kept_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By records of a GPU that is not here."""
    folder = saved(tmp_path / "a", job())
    records = Records(store.read(folder), folder)
    asked: list[dict[str, Any]] = []

    def bench(*candidates: Any, **options: Any) -> Records:
        asked.append(options)
        return records

    monkeypatch.setattr("kernelbench.verbs.here.bench", bench)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    properties: list[tuple[str, object]] = []
    config: Any = Config(save=tmp_path / "main.jsonl")
    fixture = Kernelbench(config, properties)
    assert fixture.bench(len, against=len) is records
    assert asked == [{"against": len, "out": "results"}]
    assert str(properties[0][1]) == str(records)
    lines = (tmp_path / "main.jsonl").read_text().splitlines()
    assert len(lines) == len(records) and json.loads(lines[0])["family"] == records[0].family
    fixture.assert_not_slower(records, than=tmp_path / "main.jsonl")
    with pytest.raises(UsageError, match="2 processes of this test run would use the GPU at once"):
        Kernelbench(Config(workers=2), properties).bench(len, against=len)  # type: ignore[arg-type]


def test_slower_by_more_fails_by_the_rules_of_compare(tmp_path: Path) -> None:
    before = store.read(saved(tmp_path / "a", job()))
    after = store.read(saved(tmp_path / "b", job(120)))
    lines = "".join(f"{record.to_json()}\n" for record in before)
    files.append(tmp_path / "main.jsonl", lines)
    for than in (tmp_path / "a", tmp_path / "main.jsonl"):
        found = regressions(after, than, "3%")
        assert found and "SLOWER" in found[0] and "100.0 µs → 120.0 µs" in found[0]
        assert regressions(after, than, "30") == []
    with pytest.raises(AssertionError, match="SLOWER"):
        Kernelbench(Config(), []).assert_not_slower(  # type: ignore[arg-type]
            Records(after), than=tmp_path / "main.jsonl"
        )
    (tmp_path / "none.jsonl").write_text("{}\n")
    with pytest.raises(UsageError, match="no record"):
        regressions(after, tmp_path / "none.jsonl", "3%")
    with pytest.raises(UsageError, match="--fail-on"):
        regressions(after, tmp_path / "a", "much")


def test_it_is_there_once_installed() -> None:
    project = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    plugins = tomllib.loads(project)["project"]["entry-points"]["pytest11"]
    assert plugins == {"kernelbench": "kernelbench.pytest_plugin"}
