"""`kernelbench check --sanitize`: logs of each tool are read, and nothing unseen passes for clean.

The logs have the forms that compute-sanitizer 2022 to 2025 writes. What is run here is a script in
its place, over real processes on the CPU.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kernelbench.cli import app
from kernelbench.profile import sanitize
from kernelbench.profile.sanitize import Check, Look, table
from kernelbench.profile.sanitize.log import Finding, Reading, read
from kernelbench.profile.tool import ProcessEnd, ToolError
from kernelbench.verbs.check import sanitize as verb

PLUGINS = Path(__file__).parent / "plugins"
STEADY, FALLS = str(PLUGINS / "steady.py"), str(PLUGINS / "falls.py")
START = "========= COMPUTE-SANITIZER\n"
CLEAN = f"{START}========= ERROR SUMMARY: 0 errors\n"
MEMCHECK = f"""{START}\
what the program prints
========= Invalid __global__ write of size 4 bytes
=========     at doubled_beyond+0xd0 in unsafe.py:34
=========     by thread (100,0,0) in block (0,0,0)
=========     Access at 0x7f241b000190 is out of bounds
=========     and is 1 bytes after the nearest allocation at 0x7f241b000000 of size 400 bytes
=========
========= Invalid __global__ write of size 4 bytes
=========     at doubled_beyond+0xd0 in unsafe.py:34
=========     by thread (101,0,0) in block (0,0,0)
=========     Address 0x7f241b000194 is out of bounds
=========
========= Invalid __shared__ read of size 8 bytes
=========     at load_tile(float const *)+0xb0 in tile.cuh:39
=========     by thread (0,0,0) in block (0,0,0)
=========     Address 0x87654321 is misaligned
=========     Device Frame: product(float const *, float *)+0x30 in product.cu:44
=========
========= ERROR SUMMARY: 5 errors
========= ERROR SUMMARY: 2 errors were not printed. Use --print-limit option to adjust the number
"""
BEFORE_2023 = f"""{START}\
========= Invalid __shared__ read of size 4 bytes
=========     at 0x578 in /src/task1.cu:120:MatMulKernel(Matrix, Matrix, Matrix)
=========     by thread (31,0,0) in block (0,0,0)
=========     Address 0x1000 is out of bounds
=========     Saved host backtrace up to driver entry point at kernel launch time
=========     Host Frame: [0x2f26f0]
=========                in /usr/lib/x86_64-linux-gnu/libcuda.so.1
=========
========= Invalid __global__ read of size 4 bytes
=========     at 0x1b8 in kernel(float *, float *)
=========     by thread (31,0,0) in block (0,0,0)
=========     Address 0x7f7a4e000000 is out of bounds
========= Error: process didn't terminate successfully
========= Target application returned an error
========= ERROR SUMMARY: 2 errors
"""
RACECHECK = f"""{START}\
========= Error: Race reported between Write access at race(int *)+0x90 in p.cu:13
=========     and Read access at race(int *)+0xa0 in p.cu:14 [2,048 hazards]
=========     and Write access at race(int *)+0x90 in p.cu:13 [508 hazards]
=========
========= Warning: Race reported between Write access at doubled_in_a_race+0x90
=========     and Read access at doubled_in_a_race+0xa0 [1 hazard]
=========
========= RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)
"""
HAZARDS = f"""{START}\
========= Error: Potential RAW hazard detected at __shared__ 0x8c in block (0,0,0) :
=========     Write Thread (35,0,0) at sum(int *, int *)+0x90 in w.cu:44
=========     Read Thread (32,0,0) at sum(int *, int *)+0x120 in w.cu:56
=========     Current Value : 35
=========
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""
INITCHECK = f"""{START}\
========= Uninitialized __global__ memory read of size 4 bytes
=========     at doubled_from_unwritten+0x70 in unsafe.py:58
=========     by thread (31,0,0) in block (1,0,0)
=========     Address 0x7f3c7ec000fc
=========
========= ERROR SUMMARY: 1 error
"""
OF_THE_HOST = f"""{START}\
========= Host API memory access error at host access to 0x1303fd1400 of size 25600 bytes
=========     Uninitialized access at 0x1303fd4600 on access by cudaMemcpy source
=========
========= ERROR SUMMARY: 1 error
"""
SYNCCHECK = f"""{START}\
========= Barrier error detected. Divergent thread(s) in block.
=========     at [clone sum(int *, int *)] outlineSync()+0x11f0 in test.cu:42
=========     by thread (32,0,0) in block (0,0,0)
=========     Device Frame: sum(int *, int *)+0xe40 in test.cu:60
=========
========= ERROR SUMMARY: 1 error
"""
UNSUPPORTED = f"""{START}\
========= Device not supported. Please refer to the "Supported Devices" section
=========
========= Error: Target application terminated before first instrumented API call
"""
UNTRACKED = """========= Internal Sanitizer Error: The Sanitizer encountered an error and \
didn't track the launch. Errors might go undetected. (Unable to allocate enough memory)
"""


# The logs


def test_memcheck() -> None:
    reading = read(MEMCHECK)
    assert reading.findings == (
        Finding(
            "Invalid __global__ write of size 4 bytes, out of bounds",
            "doubled_beyond",
            "unsafe.py:34",
            2,
        ),
        Finding("Invalid __shared__ read of size 8 bytes, misaligned", "product", "tile.cuh:39", 1),
    )
    assert (reading.summed, reading.unprinted, reading.faults, reading.notes) == (5, 2, (), ())


def test_memcheck_as_it_was_up_to_2022() -> None:
    shared, nowhere = read(BEFORE_2023).findings
    assert (shared.kernel, shared.line) == ("MatMulKernel", "/src/task1.cu:120")
    assert (nowhere.kernel, nowhere.line) == ("kernel", "")
    assert read(BEFORE_2023).faults == (), "how the program ended is known from itself"


def test_racecheck_counts_hazards_of_each_pair_of_accesses() -> None:
    assert read(RACECHECK).findings == (
        Finding("race between Write and Read at p.cu:14", "race", "p.cu:13", 2048),
        Finding("race between Write and Write at p.cu:13", "race", "p.cu:13", 508),
        Finding("warning: race between Write and Read", "doubled_in_a_race", "", 1),
    )
    assert read(RACECHECK).summed == 2


def test_racecheck_hazard_by_hazard() -> None:
    assert read(HAZARDS).findings == (Finding("Potential RAW hazard detected", "sum", "w.cu:44"),)


def test_initcheck_and_synccheck() -> None:
    assert read(INITCHECK).findings == (
        Finding(
            "Uninitialized __global__ memory read of size 4 bytes",
            "doubled_from_unwritten",
            "unsafe.py:58",
        ),
    )
    assert read(OF_THE_HOST).findings == (Finding("Host API memory access error", "", ""),)
    assert read(SYNCCHECK).findings == (
        Finding("Barrier error detected. Divergent thread(s) in block", "sum", "test.cu:42"),
    )


@pytest.mark.parametrize(
    "text",
    [CLEAN, f"{START}========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"],
)
def test_a_clean_log(text: str) -> None:
    assert read(text) == Reading(summed=0)
    assert read("nothing of the tool's") == Reading()


def test_what_kept_the_tool_from_looking() -> None:
    reading = read(UNSUPPORTED)
    assert reading.refused and reading.summed is None
    assert reading.faults[0].startswith("Device not supported.")
    reading = read(START + UNTRACKED + "========= ERROR SUMMARY: 0 errors\n")
    assert not reading.refused and "Errors might go undetected" in reading.faults[0]
    reading = read(f"{START}========= Warning: Detected overflow of tracked cuda::barriers\n")
    assert reading.notes == ("Warning: Detected overflow of tracked cuda::barriers",)


# What counts as looked at

WELL = ProcessEnd(0, 1.0, "")
FELL = ProcessEnd(1, 1.0, "Traceback\nValueError: no such thing")


@pytest.mark.parametrize(
    ("ended", "text", "left", "said"),
    [
        (WELL, CLEAN, [], ""),
        (FELL, MEMCHECK, ["n8"], ""),  # the finding says why
        (WELL, "", [], "without a summary: it wrote no log"),
        (WELL, START, [], "ended with code 0 and without a summary"),
        (FELL, CLEAN, ["n8"], "ended with code 1 at n8: Traceback | ValueError: no such thing"),
        (WELL, CLEAN, ["n8"], "ended with code 0 at n8: it said nothing"),
        (WELL, CLEAN.replace(": 0", ": 3"), [], "3 errors, none of which is understood"),
        (ProcessEnd(None, 9.0, ""), CLEAN, [], "did not end within 9 s"),
        (WELL, START + UNTRACKED + CLEAN, [], "Errors might go undetected"),
        (WELL, MEMCHECK + UNTRACKED, [], "Errors might go undetected"),
        (FELL, UNSUPPORTED, ["n8"], "Device not supported"),
    ],
)
def test_nothing_is_clean_because_nothing_was_looked_at(
    ended: ProcessEnd, text: str, left: list[str], said: str
) -> None:
    why = sanitize.unseen(ended, read(text), left, 9.0)
    assert said in why and bool(why) == bool(said)


def test_the_last_line_says_why_the_exit_code_is_1() -> None:
    def look(case: str, **facts: Any) -> Look:
        return Look(check=Check.memcheck, family="f", provider="p", case=case, **facts)

    clean, unseen = look("a"), look("b", unseen="it hung")
    found = look(
        "c", findings=(Finding("Invalid read", "k", ""), Finding("Invalid write", "k", ""))
    )
    assert table.why([clean]) == ""
    assert table.why([]) == "exit 1: there was nothing that could be looked at"
    assert table.why([unseen]) == "exit 1: nothing could be looked at: it hung"
    assert table.why([clean, unseen]).endswith(
        "1 of 2 could not be looked at, the first memcheck f/b p"
    )
    assert (
        table.why([clean, unseen, found])
        == "exit 1: 2 findings, the first memcheck f/c p: Invalid read"
    )


# Runs

Fake = Callable[..., Path]
SCRIPT = """#!/bin/bash
if [ "$1" = --version ]; then {version}; exit; fi
printf '%s\\n' "$@" > "{seen}.$$"
env > "{seen}.$$.env"
while [ "$1" != --log-file ]; do shift; done
log=${{2//%%/%}}; shift 2
name=${{log##*/}}
code=0
{run}
exit $code
"""
RUN = '"$@"; code=$?; case $name in {bad}) cat "{sample}";; *) cat "{clean}";; esac > "$log"'


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """A compute-sanitizer on the PATH, and no other; bad: the names of logs that get the sample."""
    monkeypatch.setattr(verb, "DEVICE", "cpu")
    folder, seen = tmp_path / "bin", tmp_path / "seen"
    folder.mkdir()
    seen.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def made(
        bad: str = "none",
        sample: str = MEMCHECK,
        run: str = RUN,
        version: str = "echo 'Version 2025.3.1.0 (build 1)'",
    ) -> Path:
        clean, other = tmp_path / "clean", tmp_path / "sample"
        clean.write_text(CLEAN)
        other.write_text(sample)
        path = folder / "compute-sanitizer"
        run = run.format(bad=bad, sample=other, clean=clean)
        path.write_text(SCRIPT.format(version=version, seen=seen / "run", run=run))
        path.chmod(0o755)
        return seen

    return made


def check(*words: str, plugin: str = STEADY) -> Any:
    family = Path(plugin).stem
    arguments = ["check", "--plugin", plugin, "--family", family, *words]
    return CliRunner().invoke(app, arguments, env={"NO_COLOR": "1", "COLUMNS": "100"})


def commands(seen: Path) -> list[list[str]]:
    return [file.read_text().split("\n") for file in seen.iterdir() if file.suffix != ".env"]


@pytest.mark.slow
def test_findings_are_shown_with_their_provider_and_case(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "abc")
    seen = fake(bad="*.second.*memcheck*")
    done = check("--sanitize", "memcheck, racecheck", "-p", "first", "-p", "second")
    assert done.exit_code == 1, done.output
    said = " ".join(done.stdout.split())
    assert "2 right, 0 wrong or failed" in said
    assert "steady/n8-fp32-fwd second memcheck doubled_beyond unsafe.py:34 Invalid" in said
    assert "steady/n8-fp32-fwd first" not in said and "racecheck" not in said
    assert "compute-sanitizer 2025.3.1.0: 2 findings, 4 looked at, 0 could not be" in said
    assert done.stderr.splitlines()[-1].startswith(
        "exit 1: 2 findings, the first memcheck steady/n8-fp32-fwd second: Invalid __global__ write"
    )
    assert "second: memcheck: 2 more errors are not in the log" in done.stderr
    for command in commands(seen):
        assert ("--racecheck-report" in command) == ("racecheck" in command)
    for file in seen.glob("*.env"):
        text, command = file.read_text(), file.with_suffix("").read_text().split("\n")
        alone = "PYTORCH_NO_CUDA_MEMORY_CACHING=1" in text
        assert alone == ("memcheck" in command) and "SECRET_TOKEN" not in text


def test_a_clean_look_exits_with_0_and_json_has_all_of_it(fake: Fake) -> None:
    fake()
    done = check("--sanitize", "initcheck", "-p", "first", "--json")
    assert done.exit_code == 0, done.output
    shown = json.loads(done.stdout)
    assert [record["status"] for record in shown["records"]] == ["ok"]
    assert shown["sanitize"] == [
        {
            "tool": "initcheck",
            "family": "steady",
            "provider": "first",
            "case": "n8-fp32-fwd",
            "findings": [],
            "could_not_look": "",
            "notes": [],
        }
    ]


@pytest.mark.slow
def test_cases_share_a_process_until_something_is_found(fake: Fake, tmp_path: Path) -> None:
    plugin = tmp_path / "steady.py"
    plugin.write_text(
        Path(STEADY)
        .read_text()
        .replace(
            "(SteadyCase(n=8, dtype=DType.fp32),)",
            "tuple(SteadyCase.grid(n=[8, 9], dtype=DType.fp32))",
        )
    )
    seen = fake(bad="*.second.2-cases*|*.second.n9*")
    done = check(
        "--sanitize", "memcheck", "-p", "first", "-p", "second", "--json", plugin=str(plugin)
    )
    assert done.exit_code == 1, done.output
    looks = json.loads(done.stdout)["sanitize"]
    assert [(one["provider"], one["case"], len(one["findings"])) for one in looks] == [
        ("first", "n8-fp32-fwd", 0),
        ("first", "n9-fp32-fwd", 0),
        ("second", "n8-fp32-fwd", 0),
        ("second", "n9-fp32-fwd", 2),
    ]
    assert len(commands(seen)) == 1 + 1 + 2
    fake(bad="*.second.2-cases*")  # found in company alone: it is kept
    done = check("--sanitize", "memcheck", "-p", "second", "--json", plugin=str(plugin))
    assert done.exit_code == 1
    assert [one["case"] for one in json.loads(done.stdout)["sanitize"]] == [
        "n8-fp32-fwd", "n9-fp32-fwd", "2 cases in one process",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_provider_that_raises_was_not_looked_at_and_a_skipped_one_is_left_out(fake: Fake) -> None:
    seen = fake()
    words = ("-p", "plain", "-p", "raises", "-p", "absent")
    done = check("--sanitize", "memcheck", *words, plugin=FALLS)
    assert done.exit_code == 1
    assert "1 right, 1 wrong or failed, 1 skipped" in done.stdout
    assert "raises: memcheck could not look: the program ended with code 1" in done.stdout
    assert "RuntimeError: this provider always raises" in done.stdout
    assert "0 findings, 1 looked at, 1 could not be looked at" in done.stdout
    assert "exit 1: 1 of 2 could not be looked at" in done.stderr
    assert len(commands(seen)) == 2


def test_a_machine_that_refuses_is_asked_once(fake: Fake) -> None:
    seen = fake(bad="*", sample=UNSUPPORTED, run=RUN.replace('"$@"; code=$?', "code=1"))
    done = check("--sanitize", "memcheck,synccheck", "-p", "first", "-p", "second")
    assert done.exit_code == 1
    assert "0 findings, 0 looked at, 4 could not be looked at" in done.stdout
    assert "exit 1: nothing could be looked at: compute-sanitizer: Device not" in done.stderr
    assert len(commands(seen)) == 1


def test_a_clean_log_of_a_program_that_never_ran_is_not_clean(fake: Fake) -> None:
    fake(run=RUN.replace('"$@"; code=$?', "code=0"))
    done = check("--sanitize", "memcheck", "-p", "first")
    assert done.exit_code == 1
    assert "the program ended with code 0 at n8-fp32-fwd: it said nothing" in done.stdout


@pytest.mark.slow
def test_a_program_that_hangs_is_ended(fake: Fake) -> None:
    fake(run="sleep 60")
    done = check("--sanitize", "memcheck", "-p", "first", "--timeout", "1", "--device", "auto")
    assert done.exit_code == 1
    assert "did not end within" in done.stdout


def test_where_all_is_skipped_nothing_is_green(fake: Fake) -> None:
    fake()
    done = check("--sanitize", "memcheck", "-p", "absent", plugin=FALLS)
    assert done.exit_code == 1
    assert "exit 1: there was nothing that could be looked at" in done.stderr


def test_dump_keeps_the_logs_also_where_the_tool_would_fill_in_names(
    fake: Fake, tmp_path: Path
) -> None:
    seen, kept = fake(bad="*"), tmp_path / "50% of it"
    done = check("--sanitize", "memcheck", "-p", "first", "--dump", str(kept))
    assert done.exit_code == 1
    log = kept / "sanitize" / "steady.first.n8-fp32-fwd.memcheck.log"
    assert log.read_text() == MEMCHECK
    [command] = commands(seen)
    assert command[command.index("--log-file") + 1] == str(log).replace("%", "%%")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sanitize", "memchek"], "no tool 'memchek'; did you mean 'memcheck'? Known: memcheck,"),
        (["--sanitize", "memcheck,"], "no tool ''"),
        (["--sanitize", "memcheck", "--device", "cpu"], "--device says cpu"),
    ],
)
def test_bad_words_are_answered_with_what_is_known(fake: Fake, words: list[str], said: str) -> None:
    fake()
    done = check(*words)
    assert done.exit_code == 2 and said in done.stderr


def test_without_the_tool_or_a_gpu_one_message_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sanitize, "PLACES", ())
    done = check("--sanitize", "memcheck")
    assert done.exit_code == 2
    assert done.stderr.startswith("error: no compute-sanitizer on the PATH") and not done.stdout
    assert "It comes with the CUDA toolkit" in done.stderr


def test_a_gpu_is_needed(fake: Fake, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    if device == "cuda":
        pytest.skip("there is a GPU")
    fake()
    monkeypatch.setattr(verb, "DEVICE", "cuda")
    done = check("--sanitize", "memcheck")
    assert done.exit_code == 2
    assert "error: --sanitize looks at what runs on a GPU: no CUDA device" in done.stderr


def test_a_tool_that_does_not_run_is_named(fake: Fake) -> None:
    fake(version="echo broken >&2; exit 3")
    with pytest.raises(ToolError, match=r"--version: ended with 3: broken"):
        sanitize.find()
