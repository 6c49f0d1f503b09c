"""The command line as a user meets it: exit codes, messages, what is imported, what is printed."""

import contextlib
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kernelbench import store
from kernelbench.cli import app

ROOT = Path(__file__).parent.parent
PLUGIN = str(Path(__file__).parent / "plugins" / "falls.py")
VERBS = (
    "run", "check", "list", "profile", "inspect", "report", "compare", "history", "repro", "claims",
    "doctor", "cache", "new",
)  # fmt: skip


def kb(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kernelbench", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "100", **environment},
    )


def here(*arguments: str) -> Any:
    """The same in this process, which has imported torch already."""
    return CliRunner().invoke(app, arguments, env={"NO_COLOR": "1", "COLUMNS": "100"})


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> Path:
    """A run of one real job."""
    out = tmp_path_factory.mktemp("out")
    done = kb("run", "smoke", "--case", "M16-N256-fp32-fwd", "--skip", "compile", "--out", str(out))
    assert done.returncode == 0, done.stderr
    return store.find_runs([out])[0]


def test_version_and_help_are_quick_and_need_no_torch():
    code = "import sys, kernelbench.cli; assert 'torch' not in sys.modules, 'torch'"
    subprocess.run([sys.executable, "-c", code], check=True)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        done = kb("--help")
        times.append(time.perf_counter() - start)
        assert done.returncode == 0
    assert min(times) < 0.4
    assert kb("--version").stdout.startswith("kernelbench 0.")


def test_every_verb_has_help_and_a_line_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    shown = kb("--help").stdout
    for verb in VERBS:
        assert f"  {verb} " in shown
        assert f"`kernelbench {verb}" in readme
        text = kb(verb, "--help").stdout
        assert len(text.splitlines()) > 5
        for line in text.splitlines():  # every option says what it does
            words = line.split()
            if words and words[0].startswith("--") and len(words) == 1:
                pytest.fail(f"{verb} {words[0]} has no help")


def test_reading_results_imports_no_torch(smoke):
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from kernelbench.cli import app\n"
        f"done = CliRunner().invoke(app, ['report', {str(smoke)!r}])\n"
        "assert done.exit_code == 0, done.output\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_run_prints_tables_to_stdout_and_progress_to_stderr(smoke):
    report = kb("report", str(smoke))
    assert "rms_norm · " in report.stdout
    assert "smoke: a CPU run checks correctness" in report.stdout or "ceiling" in report.stdout
    assert "\x1b[" not in report.stdout
    assert max(map(len, report.stdout.splitlines())) <= 100
    rows = json.loads(kb("report", str(smoke), "--json").stdout)
    assert {row["provider"] for row in rows} >= {"eager", "torch_fused", "triton_fused"}


def test_a_smoke_run_on_a_cpu_claims_no_speed(smoke):
    rows = json.loads(kb("report", str(smoke), "--json").stdout)
    if {row["timer"] for row in rows if row["timer"]} != {"host"}:
        pytest.skip("there is a GPU: this run was timed")
    for row in rows:
        for column in (
            "speedup",
            "speedup_best",
            "gbps",
            "tflops",
            "sol_pct",
            "samples",
            "median_us",
        ):
            assert row[column] is None


def test_run_as_json(tmp_path):
    done = kb(
        "run", "smoke", "--case", "M16-N256-fp32-fwd", "--provider", "eager", "--json",
        "--out", str(tmp_path),
    )  # fmt: skip
    (facts,) = json.loads(done.stdout)
    assert Path(facts["run"]).parent == tmp_path
    (row,) = facts["records"]
    assert row["provider"] == "eager"
    assert 0 < row["error_rel"] < 1e-6
    assert len(str(row["error_rel"])) > 10  # at full precision


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "smokey"], "did you mean 'smoke'"),
        (["run", "smoke", "--provider", "triton_fuse"], "did you mean 'triton_fused'"),
        (["run", "smoke", "--family", "rmsnorm"], "did you mean 'rms_norm'"),
        (["run", "smoke", "--device", "gpu"], "--device"),
        (["run", "smoke", "--filter", "("], "regular expression"),
        (["run", "smoke", "--set", "measure.max_second=1"], "max_seconds"),
        (["run", "smoke", "--budget", "soon"], "--budget 'soon'"),
        (["run", "smoke", "--budget", "5x", "--dry-run"], "--budget '5x'"),
        (["run", "--resume", "/nowhere"], "not a run folder"),
        (["run", "smoke", "--plugin", "nothing.py"], "no such Python file"),
        (["run", "smoke", "--out", "/dev/null/x"], "cannot be written"),
        (["report", "/nowhere"], "no such file or folder"),
        (["check", "--mode", "backward"], "fwd"),
        (["run", "smoke", "--timeout", "inf"], "--timeout"),
        (["run", "smoke", "--seed", "-1"], "--seed"),
        (["run", "smoke", "h200", "--device", "cpu"], "the suite says device: cuda"),
        (["check", "h200", "--device", "cpu"], "the suite says device: cuda"),
        (["list", "--family", "rope"], "rotary"),
        (["frobnicate"], "No such command"),
    ],
)
def test_bad_input_is_one_clear_error_and_exit_code_2(arguments, said, tmp_path):
    done = here(*arguments)
    assert done.exit_code == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_more_jobs_than_anybody_means_need_yes(tmp_path):
    suite = tmp_path / "many.yaml"
    sizes = ", ".join(str(n) for n in range(1, 103))
    suite.write_text(
        f"name: many\nfamilies: {{rms_norm: {{cases: [{{M: [{sizes}], N: [{sizes}]}}]}}}}\n"
    )
    done = here("run", str(suite), "--dry-run")
    assert done.exit_code == 2 and "--yes" in done.stderr and "10404 jobs" in done.stderr
    assert "10404 jobs" in here("run", str(suite), "--dry-run", "--yes").stdout
    assert "--yes" in here("check", str(suite)).stderr


def test_dry_run_and_list_show_jobs_without_measuring(tmp_path):
    done = kb(
        "run", "h200", "--dry-run", "--family", "rotary", "--mode", "bwd", "--out", str(tmp_path)
    )
    assert done.returncode == 0
    assert "rotary/B4-S8192-Hq32-Hk8-D128-bf16-bwd" in done.stdout
    assert "-fwd" not in done.stdout
    assert not list(tmp_path.iterdir())
    jobs = json.loads(kb("list", "h200", "--json").stdout)
    assert any(job["id"] == "rms_norm/M32768-N4096-bf16-fwd" for job in jobs)
    known = json.loads(kb("list", "--json").stdout)
    assert {"rms_norm", "rotary"} <= {family["name"] for family in known}


def test_check_exits_with_1_for_a_wrong_provider_and_stores_nothing(tmp_path):
    done = kb("check", "--plugin", PLUGIN, "--family", "falls", "--provider", "plain",
              "--provider", "wrong", "--provider", "raises")  # fmt: skip
    assert done.returncode == 1
    assert "-v shows more" in done.stdout and "Traceback" not in done.stdout
    assert "wrong: incorrect: y: error 0.01" in done.stdout
    done = kb("check", "--plugin", PLUGIN, "--family", "falls", "--provider", "again", "--json")
    (record,) = json.loads(done.stdout)
    assert (done.returncode, record["status"]) == (0, "ok")
    assert "timing" not in record


def test_check_shows_where_a_provider_failed():
    done = kb("check", "--plugin", PLUGIN, "--family", "falls", "--provider", "raises", "-v")
    assert done.returncode == 1
    failed = (
        r"raises: failed: RuntimeError: this provider always raises \(tests/plugins/falls\.py:\d+\)"
    )
    assert re.search(failed, done.stdout)
    assert re.search(r'\n      File "tests/plugins/falls.py", line \d+, in fails\n', done.stdout)
    assert "-v shows more" not in done.stdout


def test_doctor_finds_a_foreign_package_of_the_same_name(tmp_path):
    assert kb("doctor").returncode == 0
    foreign = tmp_path / "kernelbench"
    foreign.mkdir()
    (foreign / "__init__.py").touch()
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    findings = json.loads(kb("doctor", "--json", PYTHONPATH=path).stdout)
    (ours,) = [finding for finding in findings if finding["what"] == "kernelbench"]
    assert ours["ok"] is False and str(foreign) in ours["found"]
    assert "ScalingIntelligence/KernelBench" in ours["remedy"]


def test_cache_shows_and_clears(tmp_path):
    kept = tmp_path / "kernelbench" / "tuned"
    kept.mkdir(parents=True)
    (kept / "x.json").write_text("{}")
    derived = tmp_path / "kernelbench" / "derived"
    derived.mkdir()
    (derived / "y.json").write_text("{}")
    shown = kb("cache", XDG_CACHE_HOME=str(tmp_path)).stdout
    assert shown.startswith("1 tuned configs in") and "\n1 runs' derived figures in" in shown
    assert kb("cache", "clear", XDG_CACHE_HOME=str(tmp_path)).stdout.splitlines() == [
        "1 tuned configs forgotten",
        "1 runs' derived figures forgotten",
    ]
    assert not [*kept.iterdir(), *derived.iterdir()]


def on_a_terminal(*arguments: str, **environment: str) -> str:
    """What a terminal of 100 columns is sent."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    plain = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS")}
    process = subprocess.Popen(
        [sys.executable, "-m", "kernelbench", *arguments],
        stdout=slave,
        stderr=slave,
        env={**plain, "TERM": "xterm-256color", **environment},
    )
    os.close(slave)
    shown = b""
    with contextlib.suppress(OSError):  # the terminal is gone when its last writer is
        while part := os.read(master, 65536):
            shown += part
    assert process.wait() == 0
    os.close(master)
    return shown.decode()


def test_a_terminal_gets_a_live_view_and_no_color_means_plain_lines(tmp_path):
    run = ("run", "smoke", "--case", "M16-N256-fp32-fwd", "-p", "eager", "--out", str(tmp_path))
    live = on_a_terminal(*run)
    assert "━" in live and "0/1" in live and "\x1b[?25l" in live
    plain = on_a_terminal(*run, NO_COLOR="1")
    assert "\x1b" not in plain
    assert "[1/1] rms_norm/M16-N256-fp32-fwd" in plain


@pytest.mark.parametrize(
    "code",
    ["raise RuntimeError('x')", "1/0", "assert False", "open('/no')", "exit(3)", "FAMILY = 3"],
)
def test_a_broken_plugin_is_one_clear_error(tmp_path, code):
    plugin = tmp_path / "broken.py"
    plugin.write_text(code)
    done = here("list", "--plugin", str(plugin))
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: --plugin {os.path.relpath(plugin)}: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_family_without_checks_is_listed(tmp_path):
    plugin = tmp_path / "unchecked.py"
    plugin.write_text(
        Path(PLUGIN).read_text().replace("checks=(FallsCase(n=8, dtype=DType.fp32),)", "checks=()")
    )
    assert "falls: Doubling" in here("list", "--plugin", str(plugin), "--family", "falls").stdout


def test_several_suites_make_a_run_each(tmp_path):
    done = kb(
        "run", "smoke", "smoke", "--case", "M16-N256-fp32-fwd", "--provider", "eager",
        "--out", str(tmp_path), "-q",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(store.find_runs([tmp_path])) == 2


def test_run_and_check_without_a_suite_say_first_what_they_do(tmp_path):
    done = kb("run", "--dry-run", "--case", "M16-N256-fp32-fwd", "--out", str(tmp_path))
    first, *_ = done.stderr.splitlines()
    assert first.startswith("no suite named, so this runs smoke: ")
    assert "smoke: 1 jobs" in done.stdout
    for said in (kb("run", "smoke", "--dry-run").stderr, kb("run", "--dry-run", "-q").stderr):
        assert "no suite named" not in said  # a slow machine says what it waits for
    done = kb("check", "--plugin", PLUGIN, "--family", "falls", "--provider", "plain")
    assert done.stderr.splitlines()[0].startswith("no suite named, so this checks every family")
