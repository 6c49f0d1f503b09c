"""Any verb on any standard output: one line and the right exit code, never a traceback."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RUN = "results/h200/20261130T202128Z-h200-h200"
AA = "results/h200/aa"
ONE, TWO = (f"{AA}/20261121T12{time}Z-aa-h200" for time in ("4239", "4302"))
VERBS = {
    "report": ["report", RUN],
    "report md": ["report", RUN, "--format", "md"],
    "report csv": ["report", RUN, "--format", "csv"],
    "report json": ["report", RUN, "--json"],
    "report github": ["report", RUN, "--to", "github"],
    "compare": ["compare", ONE, TWO, "--least", "0%"],
    "compare md": ["compare", ONE, TWO, "--least", "0%", "--format", "md"],
    "history": ["history", AA],
    "claims": ["claims", "--against", RUN],
    "repro": ["repro", "M4096-N384-bf16-fwd", "--run", RUN],
    "list": ["list"],
    "list jobs": ["list", "smoke"],
    "doctor": ["doctor"],
    "cache": ["cache"],
    "check": ["check", "smoke", "--family", "rotary"],
    "run": ["run", "smoke", "--dry-run"],
    "inspect": ["inspect", "rotary", "--target", "sm_90"],
    "help": ["--help"],
}
FIRST = ("report", "compare", "repro", "list", "help")  # the others are slow ones
NAMES = [name if name in FIRST else pytest.param(name, marks=pytest.mark.slow) for name in VERBS]


def kb(*args: str, **options: object) -> "subprocess.Popen[bytes]":
    more = options.pop("env", {})
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "0"} | more  # type: ignore[operator]
    command = [sys.executable, "-m", "kernelbench", *args]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, **options)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize("name", NAMES)
def test_an_encoding_without_letters_for_it_stops_nothing(name: str) -> None:
    process = kb(*VERBS[name], stdout=subprocess.PIPE, env={"PYTHONIOENCODING": "ascii"})
    out, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert out and b"Traceback" not in said


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_is_one_line(name: str) -> None:
    with Path("/dev/full").open("wb") as full:
        process = kb(*VERBS[name], stdout=full)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 2
    assert (
        said.decode().splitlines()[-1]
        == "error: stdout: cannot be written (No space left on device)"
    )
    assert b"Traceback" not in said and b"Exception" not in said


@pytest.mark.parametrize("name", [name for name in NAMES if name != "help"])
def test_a_reader_that_has_gone_is_one_line(name: str) -> None:
    read, write = os.pipe()
    os.close(read)
    process = kb(*VERBS[name], stdout=write)
    os.close(write)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 141
    assert said.decode().splitlines()[-1].startswith("error: stdout was closed by its reader")
    assert b"Traceback" not in said and b"Exception" not in said


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"]
)
def test_a_run_that_is_told_to_end_says_how_to_go_on(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    process = kb("run", "smoke", "--out", str(tmp_path), stdout=subprocess.PIPE)
    end = time.monotonic() + 100
    while time.monotonic() < end and not any(
        file.stat().st_size for file in tmp_path.glob("*/records.jsonl")
    ):
        time.sleep(0.05)
    process.send_signal(number)
    out, said = process.communicate(timeout=100)
    (folder,) = tmp_path.glob("*-smoke-*")
    assert process.returncode == code
    assert said.decode().splitlines()[-1] == (
        f"exit {code}: interrupted. Go on: kernelbench run --resume {folder}"
    )
    assert b"Traceback" not in said and b"jobs left" in out
    lines = (folder / "records.jsonl").read_bytes()
    assert lines.endswith(b"\n") and (folder / "results.csv").stat().st_size
