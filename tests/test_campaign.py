"""tools/campaign.py: its pieces are the suites that the README quotes, each job once."""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kernelbench import families, suite

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import campaign  # noqa: E402

SUITES = "rcm_seed", "h200", "attention", "swiglu", "train_step"


def jobs_of(words: list[str]) -> list[str]:
    known = families.load()
    name, *options = words
    parser = argparse.ArgumentParser()
    parser.add_argument("--family", action="append", default=[])
    parser.add_argument("--mode", action="append", default=[])
    parser.add_argument("--filter", default="")
    # A filter may begin with a dash, as an option does.
    joined = [f"--filter={o}" if options[n - 1] == "--filter" else o for n, o in enumerate(options)]
    narrow = vars(parser.parse_args([o for o in joined if o != "--filter"]))
    jobs = suite.load(suite.find(name), known).jobs
    return [f"{name} {job.id}" for job in suite.narrow(jobs, known, **narrow)]


def test_the_pieces_are_the_suites_each_job_once() -> None:
    counts = Counter(job for words in campaign.PIECES.values() for job in jobs_of(words.split()))
    whole = [job for name in SUITES for job in jobs_of([name])]
    assert {*counts} == {*whole} and set(counts.values()) == {1}


def test_a_piece_is_begun_then_resumed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commands: list[list[str]] = []

    class Run:
        returncode = 0

        def __init__(self, command: list[str], **options: Any) -> None:
            commands.append(command)

        def communicate(self, timeout: float) -> tuple[str, None]:
            left = 2 - len(commands)
            shown = [{"jobs_left": left, "records": [{"status": "ok"}, {"status": "skipped"}]}]
            return json.dumps(shown), None

    monkeypatch.setattr(campaign.subprocess, "Popen", Run)
    assert campaign.measure(["smoke"], tmp_path, 60.4) == (False, "1 jobs left")
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "manifest.json").write_text("{}")
    assert campaign.measure(["smoke"], tmp_path, 60.4) == (True, "whole")
    assert commands[0][4:] == ["smoke", "--out", str(tmp_path), "--budget", "60s", "--json"]
    assert commands[1][4:6] == ["--resume", str(tmp_path / "one")]


def test_a_job_that_takes_too_long_is_interrupted_and_its_run_goes_on(tmp_path: Path) -> None:
    words = ["smoke", "--family", "rms_norm", "--provider", "eager", "--quick"]
    assert campaign.measure(words, tmp_path, 0.2) == (False, "interrupted")
    assert campaign.measure(words, tmp_path, 120) == (True, "whole")
