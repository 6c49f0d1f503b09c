"""What compute-sanitizer finds in tests/plugins/unsafe.py: kernels that are right by luck, and one
that does no wrong."""

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from kernelbench.cli import app
from kernelbench.profile import sanitize
from kernelbench.profile.tool import ToolError

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
PLUGIN = str(Path(__file__).parents[1] / "plugins" / "unsafe.py")


def missing() -> str:
    """Why there is no tool here, or nothing."""
    try:
        sanitize.find()
    except ToolError as error:
        return str(error)
    return ""


def checked(tool: str, provider: str, *more: str) -> tuple[list[dict[str, Any]], int]:
    """What the tool says of each case, and the exit code. more: options."""
    if why := missing():
        pytest.skip(why)
    gc.collect()
    torch.cuda.empty_cache()  # the checked processes need what other tests left in this one's cache
    words = ("--family", "unsafe", "-p", provider, "--sanitize", tool, "--json", *more)
    done = CliRunner().invoke(app, ["check", "--plugin", PLUGIN, *words])
    assert done.stdout, (done.exit_code, done.exception, done.stderr)
    shown = json.loads(done.stdout)
    assert {record["status"] for record in shown["records"]} == {"ok"}, "right, by luck"
    looks: list[dict[str, Any]] = shown["sanitize"]
    if any("Device not supported" in look["could_not_look"] for look in looks):
        pytest.skip(looks[0]["could_not_look"])
    assert not any(look["could_not_look"] for look in looks), looks
    return looks, done.exit_code


@pytest.mark.parametrize(
    ("tool", "provider", "kernel", "kind"),
    [
        ("memcheck", "beyond", "doubled_beyond", "Invalid __global__ write of size 4 bytes"),
        ("racecheck", "race", "doubled_in_a_race", "race between"),
        ("initcheck", "unwritten", "doubled_from_unwritten", "Uninitialized __global__ memory"),
    ],
)
def test_a_planted_fault_is_found_in_each_case_by_kernel_and_line(
    tool: str, provider: str, kernel: str, kind: str
) -> None:
    """Several cases with a fault take a process each after one for all of them: memcheck's do."""
    cases = ["n100-fp32-fwd", "n101-fp32-fwd"][: 2 if tool == "memcheck" else 1]
    looks, code = checked(tool, provider, *([] if len(cases) > 1 else ["--filter", cases[0]]))
    assert code == 1
    assert sorted(look["case"] for look in looks) == cases
    for look in looks:
        found = [one for one in look["findings"] if one["kernel"] == kernel]
        assert any(kind in one["kind"] for one in found), look
        assert all("unsafe.py:" in one["line"] and one["count"] >= 1 for one in found)


@pytest.mark.parametrize("tool", list(sanitize.Check))
def test_nothing_is_found_in_a_kernel_that_does_no_wrong(tool: str) -> None:
    looks, code = checked(tool, "within")
    assert (code, [look["findings"] for look in looks]) == (0, [[], []])
