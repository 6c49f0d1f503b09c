"""Verbs that only look: `list`, `cache` and `doctor` answer at once, without torch."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from kernelbench import families
from kernelbench.report import catalogue
from kernelbench.spec import UsageError
from kernelbench.verbs import list as listing

PLUGIN = str(Path(__file__).parent / "plugins" / "falls.py")
NAMES = [
    "attention",
    "dilated_attention",
    "dilated_parallel",
    "dit_block",
    "empty",
    "rcm_attention",
    "rcm_layer",
    "rms_norm",
    "rotary",
    "swiglu",
    "train_step",
    "zigzag_attention",
    "zigzag_parallel",
]


@pytest.mark.parametrize("verb", ["list", "list --json", "cache", "doctor"])
def test_what_only_looks_imports_no_torch_and_takes_no_time(verb: str) -> None:
    if verb == "doctor" and torch.cuda.is_available():
        pytest.skip("only torch knows whether it can use the GPU that is there")
    code = (
        "import resource, sys\n"
        "from typer.testing import CliRunner\n"
        "from kernelbench.cli import app\n"
        f"done = CliRunner().invoke(app, {verb.split()!r})\n"
        "assert done.exit_code == 0 and done.output, done.output\n"
        "assert not {'torch', 'triton', 'pandas'} & {*sys.modules}\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print(used.ru_utime + used.ru_stime)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 1.5  # 0.3 s of a processor that nobody shares


def told(capsys: pytest.CaptureFixture[str], *names: str, plugins: tuple[str, ...] = ()) -> Any:
    listing.show_families(names, plugins, Console(), as_json=True)
    return json.loads(capsys.readouterr().out)


def test_what_list_says_is_what_the_families_say(capsys: pytest.CaptureFixture[str]) -> None:
    """Renew it: make schema."""
    assert listing.SHIPPED.read_text(encoding="utf-8") == listing.text()
    assert told(capsys) == [catalogue.facts_of(family) for family in families.load().values()]


def test_families_that_were_edited_or_added_are_asked_themselves(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    old = {"source": families.fingerprint(), "families": [{"name": "old"}]}
    monkeypatch.setattr(listing, "SHIPPED", tmp_path / "families.json")
    listing.SHIPPED.write_text(json.dumps(old))
    assert [facts["name"] for facts in told(capsys)] == ["old"]
    assert [f["name"] for f in told(capsys, plugins=(PLUGIN,))] == [*NAMES, "falls"]
    monkeypatch.setattr(families, "installed", lambda: True)
    assert [facts["name"] for facts in told(capsys)] == NAMES
    monkeypatch.undo()
    monkeypatch.setattr(listing, "SHIPPED", tmp_path / "families.json")
    listing.SHIPPED.write_text(json.dumps({**old, "source": "of other files"}))
    assert [facts["name"] for facts in told(capsys, "rotary")] == ["rotary"]
    with pytest.raises(UsageError, match="no family 'rotari'; did you mean 'rotary'"):
        told(capsys, "rotari")
