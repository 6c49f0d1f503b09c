"""`kernelbench profile`: what a tool saw becomes lines of the run, whatever the child does."""

import csv
import gzip
import json
import os
import re
import shutil
import stat
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner
from unpacked import unpacked

from kernelbench import store
from kernelbench.cli import app
from kernelbench.metrics import audit
from kernelbench.profile import ncu
from kernelbench.profile.nsys import program
from kernelbench.report.progress import Output
from kernelbench.spec import KernelUse, Measured, Role, Status, Tool
from kernelbench.verbs import profile as profiling

HERE = Path(__file__).parent
FALLS = str(HERE / "plugins" / "falls.py")
STEADY = str(HERE / "plugins" / "steady.py")
SUITE = """
name: {family}
device: cpu
measure: {{min_samples: 2, max_samples: 4, block: 2, max_seconds: 0.5}}
families:
  {family}:
    providers: [{providers}]
    cases: [{{n: [8, 9], dtype: fp32}}]
"""


def suite(folder: Path, family: str = "steady", providers: str = "first, second") -> str:
    path = folder / f"{family}.yaml"
    path.write_text(SUITE.format(family=family, providers=providers))
    return str(path)


def invoke(*words: str, plugin: str = STEADY, out: Path):
    return CliRunner().invoke(app, [*words, "--plugin", plugin, "--out", str(out)])


def lines_of(out: Path) -> list[Measured]:
    (run,) = store.find_runs([out])
    found, problems = store.read_measured(run)
    assert not problems
    return found


def fake(folder: Path, name: str, script: str) -> str:
    """An executable of this name; its folder, for the PATH."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(folder)


@pytest.fixture
def nothing_installed(monkeypatch, tmp_path):
    """A machine without profilers."""
    empty = tmp_path / "bin"
    empty.mkdir()
    for tool in ("sh", "cat", "env", "kill", "sleep"):
        (empty / tool).symlink_to(shutil.which(tool))
    monkeypatch.setenv("PATH", str(empty))
    monkeypatch.setattr(program, "PLACES", ())
    monkeypatch.setattr(ncu, "PLACES", ())
    return empty


def test_torch_sees_every_provider_and_the_lines_stand_in_the_run(tmp_path):
    out, path = tmp_path / "out", suite(tmp_path)
    assert invoke("run", path, "--quiet", out=out).exit_code == 0
    (run,) = store.find_runs([out])
    records = (run / store.RECORDS).read_bytes()
    done = invoke("profile", path, "--torch", "--calls", "4", out=out)
    assert done.exit_code == 0, done.output
    found = lines_of(out)
    assert [(m.case, m.provider) for m in found] == [
        (case, name) for case in ("n8-fp32-fwd", "n9-fp32-fwd") for name in ("first", "second")
    ]
    for m in found:
        assert (m.tool, m.status, m.calls, m.run_id) == (Tool.torch, Status.ok, 4, run.name)
        (mul,) = [kernel for kernel in m.kernels if kernel.name == "aten::mul"]
        assert mul.launches == 4 and mul.host_ns > 0
        (trace,) = (run / name for name in m.files)
        events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
        names = Counter(event.get("name") for event in events)
        assert names[f"kb.steady.{m.provider}.{m.case}"] == 4
    assert (run / store.RECORDS).read_bytes() == records, "a profiled run times nothing"
    assert "aten::mul" in done.stdout and "no latency to quote" in " ".join(done.stdout.split())
    shown = CliRunner().invoke(app, ["report", str(run)])
    assert "first" in shown.stdout and "aten::mul" in shown.stdout


@pytest.mark.slow
def test_a_newer_profile_replaces_an_older_one(tmp_path):
    out, path = tmp_path / "out", suite(tmp_path)
    for calls in ("1", "2"):
        args = ("profile", path, "--torch", "--calls", calls, "--case", "n8-fp32-fwd")
        assert invoke(*args, out=out).exit_code == 0
    assert [m.calls for m in lines_of(out)] == [2, 2]


@pytest.mark.slow
def test_without_a_suite_the_newest_run_is_profiled_and_cases_narrow_it(tmp_path):
    out = tmp_path / "out"
    assert invoke("run", suite(tmp_path), "--quiet", out=out).exit_code == 0
    done = invoke("profile", "steady/n9-fp32-fwd", "--torch", "--provider", "second", out=out)
    assert done.exit_code == 0, done.output
    assert [(m.case, m.provider) for m in lines_of(out)] == [("n9-fp32-fwd", "second")]


@pytest.mark.slow
def test_a_run_of_other_versions_is_not_added_to(tmp_path):
    out = tmp_path / "out"
    assert invoke("run", suite(tmp_path), "--quick", out=out).exit_code == 0
    (run,) = store.find_runs([out])
    facts = store.read_manifest(run)
    facts["machine"]["versions"]["torch"] = "2.0"
    (run / store.MANIFEST).write_text(json.dumps(facts))
    done = invoke("profile", "steady/n9-fp32-fwd", "--torch", out=out)
    assert done.exit_code == 0, done.output
    assert f"{run} was measured with other versions" in done.stdout
    _, new = store.find_runs([out])
    assert not (run / store.MEASURED).exists()
    assert {line.source for line in store.read_measured(new)[0]} != {""}


@pytest.mark.slow
def test_whoever_falls_gets_a_line_and_the_others_are_profiled(tmp_path):
    providers = "plain, again, exits, segfaults, raises, oom, picky, absent"
    path, out = suite(tmp_path, "falls", providers), tmp_path / "out"
    args = ("profile", path, "--torch", "--case", "n8-fp32-fwd")
    done = invoke(*args, plugin=FALLS, out=out)
    assert done.exit_code == 1, done.output
    found = {m.provider: m for m in lines_of(out)}
    assert {name: m.status.value for name, m in found.items()} == {
        "plain": "ok",
        "again": "ok",
        "exits": "crashed",
        "segfaults": "crashed",
        "raises": "failed",
        "oom": "oom",
        "picky": "failed",
        "absent": "skipped",
    }
    assert "code 7" in found["exits"].reason
    assert "always raises" in found["raises"].reason
    assert "no_such_module" in found["absent"].reason
    assert found["plain"].model_read_bytes == 32 and found["plain"].model_write_bytes == 32
    assert "exits: crashed" in done.stdout


@pytest.mark.slow
def test_a_hanging_provider_costs_its_time_and_no_more(tmp_path):
    path, out = suite(tmp_path, "falls", "plain, hangs"), tmp_path / "out"
    args = ("profile", path, "--torch", "--case", "n8-fp32-fwd", "--timeout", "20")
    done = invoke(*args, plugin=FALLS, out=out)
    assert done.exit_code == 1
    assert {m.provider: m.status.value for m in lines_of(out)} == {
        "plain": "ok",
        "hangs": "crashed",
    }
    assert "did not end in time" in done.stdout


@pytest.mark.slow
def test_a_job_whose_inputs_cannot_be_drawn_is_not_the_tools_fault(tmp_path):
    plugin = tmp_path / "steady_broken.py"
    text = Path(STEADY).read_text().replace('{"x": draw(case.n)}', '{"x": draw(1 / 0)}')
    plugin.write_text(text)
    done = invoke("profile", suite(tmp_path), "--torch", plugin=str(plugin), out=tmp_path / "out")
    assert done.exit_code == 1
    assert {m.status for m in lines_of(tmp_path / "out")} == {Status.crashed}
    assert "ZeroDivisionError" in done.stdout


def test_the_profiled_process_knows_nothing_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "abc")
    plugin = tmp_path / "spy.py"
    spying = "import os; assert 'PATH' in os.environ and 'SECRET_TOKEN' not in os.environ"
    text = Path(STEADY).read_text().replace("time.sleep(pauses * case.pause)", spying)
    assert spying in text
    plugin.write_text(text)
    out = tmp_path / "out"
    done = invoke("profile", suite(tmp_path), "--torch", plugin=str(plugin), out=out)
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("tool", ["nsys", "ncu"])
def test_a_missing_tool_says_where_it_was_looked_for(tool, tmp_path, nothing_installed):
    done = invoke("profile", suite(tmp_path), f"--{tool}", out=tmp_path / "out")
    assert done.exit_code == 2
    assert f"error: --{tool}: " in done.stderr and "on the PATH" in done.stderr
    assert "nstall" in done.stderr
    assert not (tmp_path / "out").exists(), "a run of nothing would be the newest"


@pytest.mark.slow
def test_torch_stands_in_only_when_it_was_asked(tmp_path, nothing_installed):
    args = ("profile", suite(tmp_path), "--nsys", "--torch", "--case", "n8-fp32-fwd")
    done = invoke(*args, out=tmp_path / "out")
    assert done.exit_code == 2 and "error: --nsys" in done.stderr
    assert {m.tool for m in lines_of(tmp_path / "out")} == {Tool.torch}


def test_without_an_option_and_a_tool_torch_looks_and_says_why(tmp_path, nothing_installed):
    args = ("profile", suite(tmp_path), "--case", "n8-fp32-fwd")
    done = invoke(*args, out=tmp_path / "out")
    assert done.exit_code == 0
    assert "so torch's profiler looks" in done.stderr and "nsys" in done.stderr
    assert {m.tool for m in lines_of(tmp_path / "out")} == {Tool.torch}


def test_counters_that_may_not_be_read_end_it_with_the_remedy(tmp_path, nothing_installed):
    fake(
        nothing_installed,
        "ncu",
        'case "$*" in *--version*) echo "Version 2025.3.1.0";; *) '
        'echo "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission"; exit 1;; esac',
    )
    done = invoke("profile", suite(tmp_path), "--ncu", out=tmp_path / "out")
    assert done.exit_code == 2
    assert "NVreg_RestrictProfilingToAdminUsers=0" in done.stderr


def test_a_machine_that_refuses_counters_is_blamed_on_no_provider(tmp_path, nothing_installed):
    """ncu may end the program at its first profiled call."""
    fake(
        nothing_installed,
        "ncu",
        'case "$*" in *--version*) echo "Version 2025.3.1.0"; exit;; esac\n'
        'while [ "$1" != -o ]; do shift; done\n'
        'echo \'{"at": "first"}\' > "${2%.ncu-rep}.answers.jsonl"\n'
        'echo "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission"\n'
        'echo "==ERROR== The application returned an error code (9)."; exit 9',
    )
    done = invoke("profile", suite(tmp_path), "--ncu", out=tmp_path / "out")
    assert done.exit_code == 2, done.output
    assert "NVreg_RestrictProfilingToAdminUsers=0" in done.stderr
    assert not lines_of(tmp_path / "out")


@pytest.mark.slow
def test_launches_that_were_left_out_are_noted(tmp_path, nothing_installed):
    """As by --ncu-args '--launch-count 5'."""
    table = unpacked("ncu_h200_nested.csv").read_text()
    names = ("kb.toy.add.M4-bf16-fwd", "kb.toy.bwd.M4-bf16-bwd")
    for name, provider in zip(names, ("first", "second"), strict=True):
        table = table.replace(name, f"kb.steady.{provider}.n8-fp32-fwd")
    (tmp_path / "table.csv").write_text(table)
    fake(
        nothing_installed,
        "ncu",
        'case "$1" in --version) echo "Version 2025.3.1.0"; exit;;\n'
        f'--import) cat "{tmp_path}/table.csv"; exit;; esac\n'
        'while [ "$1" != -o ]; do shift; done; rep=$2; shift 2; "$@" && echo report > "$rep"',
    )
    args = ("profile", suite(tmp_path), "--ncu", "--case", "n8-fp32-fwd", "--calls")
    done = invoke(*args, "2", out=tmp_path / "out")
    assert done.exit_code == 0 and "no whole call" not in done.stderr, done.output
    done = invoke(*args, "3", "--json", out=tmp_path / "out")
    assert json.loads(done.stdout)["measured"]
    assert "first: ncu counted 2 launches in 3 calls" in done.stderr


def test_bad_words_are_named_with_what_is_known(tmp_path):
    out = tmp_path / "out"
    done = invoke("profile", suite(tmp_path), "steady/n7-fp32-fwd", "--torch", out=out)
    assert done.exit_code == 2
    assert "steady/n7-fp32-fwd: no suite, and no case of steady" in done.stderr
    assert "did you mean 'steady/n" in done.stderr
    done = invoke("profile", suite(tmp_path), "smoke", "--torch", out=out)
    assert done.exit_code == 2 and "one suite at a time" in done.stderr
    done = invoke("profile", suite(tmp_path), "steady", "--torch", out=out)
    assert done.exit_code == 2 and "steady: a family; say --family steady" in done.stderr
    done = invoke("profile", "smoke", "--import", str(tmp_path), out=out)
    assert done.exit_code == 2 and "name nothing besides" in done.stderr
    done = invoke("profile", suite(tmp_path), "--nsys", "--nsys-args", "'", out=out)
    assert done.exit_code == 2 and "--nsys-args" in done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    done = invoke("profile", suite(tmp_path), "--torch", out=locked)
    assert done.exit_code == 2 and str(locked) in done.stderr


def measured(provider: str, read: int, model: int | None, largest: int = 256, **more) -> Measured:
    kernel = KernelUse(
        name="k",
        launches=2,
        gpu_ns=3_000,
        dram_read_bytes=read << 20,
        dram_write_bytes=8 << 20,
        l2_bytes=64 << 20,
        dram_pct=80.0,
        sm_pct=20.0,
        occupancy_pct=50.0,
        registers=64,
    )
    facts = {
        "run_id": "r",
        "utc": "2026-01-01T00:00:00+00:00",
        "tool": Tool.ncu,
        "tool_version": "2025.3",
        "status": Status.ok,
        "family": "toy",
        "provider": provider,
        "role": Role.peer,
        "case": "N8-bf16-fwd",
        "mode": "fwd",
        "dtype": "bf16",
        "axes": {"N": 8},
        "gpu": "H200",
        "calls": 2,
        "kernels": (kernel,),
        "model_read_bytes": None if model is None else model << 20,
        "largest_bytes": largest << 20,
        "l2_bytes": 60 << 20,
    }
    return Measured(**{**facts, **more})


@pytest.mark.parametrize(
    ("read", "model", "largest", "verdict", "error"),
    [
        (512, 256, 256, "ok", 0.0),  # two calls of 256 MiB
        (526, 256, 256, "ok", 2.734),
        (528, 256, 256, "off", 3.125),
        (496, 256, 256, "off", -3.125),
        (700, 256, 239, "small", 36.719),
        (512, None, 256, "no model", None),
    ],
)
def test_reads_are_audited_where_the_l2_cannot_hide_them(read, model, largest, verdict, error):
    one = measured("p", read, model, largest)
    assert audit.audit(one) == verdict
    found = audit.model_error_pct(one)
    assert found == (None if error is None else pytest.approx(error, abs=1e-3))
    assert bool(audit.failed_audits([one])) == (verdict == "off")


def test_columns_are_of_one_call():
    found = audit.row(measured("p", 512, 256))
    assert found["launches"] == 1 and found["busy_us"] == 1.5
    assert found["dram_read_mib"] == 256 and found["dram_write_mib"] == 4 and found["l2_mib"] == 32
    assert found["dram_pct"] == 80 and found["registers"] == 64
    assert list(audit.frame([measured("p", 512, 256)]).columns) == list(audit.COLUMNS)


def test_what_a_tool_saw_survives_its_file(tmp_path):
    opened = store.create(tmp_path, "toy", "gpu", {})
    one, other = measured("p", 512, 256), measured("q", 512, None)
    opened.keep(one)
    with (opened.path / store.MEASURED).open("ab") as file:
        file.write(b'{"torn')
    opened.keep(other)
    opened.close()
    found, problems = store.read_measured(opened.path)
    assert found == [one, other]
    (problem,) = problems
    assert f"{store.MEASURED}:2: not JSON" in problem


@pytest.mark.slow
def test_the_table_of_all_that_was_seen_is_written(tmp_path):
    out, path = tmp_path / "out", suite(tmp_path)
    args = ("profile", path, "--torch", "--case", "n8-fp32-fwd")
    for provider in ("first", "second"):
        assert invoke(*args, "--provider", provider, out=out).exit_code == 0
    (run,) = store.find_runs([out])
    rows = [*csv.DictReader((run / store.MEASURED_CSV).open())]
    assert [row["provider"] for row in rows] == ["first", "second"]
    assert list(rows[0]) == list(audit.COLUMNS)
    assert float(rows[0]["busy_us"]) > 0 and rows[0]["dram_read_mib"] == ""


def test_every_column_of_it_is_explained():
    text = (HERE.parent / "results" / "README.md").read_text().split("## measured.csv")[1]
    named = re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)))
    assert sorted(named) == sorted(audit.COLUMNS)


def shipped(out: Path, *words: str):
    return CliRunner().invoke(app, ["profile", *words, "--torch", "--out", str(out)])


@pytest.mark.parametrize("form", ["M16-N256-fp32-fwd", "rms_norm/M16-N256-fp32-fwd"])
def test_a_case_of_a_shipped_suite_is_found_beside_a_run_of_another(tmp_path, form):
    assert invoke("run", suite(tmp_path), "--quiet", out=tmp_path / "out").exit_code == 0
    done = shipped(tmp_path / "out", form, "--provider", "eager", "--calls", "1")
    assert done.exit_code == 0, done.output
    assert f"{form}: of smoke, a suite that kernelbench ships" in done.stderr
    (new,) = [run for run in store.find_runs([tmp_path / "out"]) if "smoke" in run.name]
    [line] = store.read_measured(new)[0]
    assert (line.family, line.case, line.provider) == ("rms_norm", "M16-N256-fp32-fwd", "eager")


def here(kind: str):
    name = "NVIDIA H200" if kind == "cuda" else "a CPU"
    return lambda asked: {"name": name, "kind": kind, "versions": {}}


@pytest.mark.parametrize("form", ["M4096-N384-bf16-fwd", "rms_norm/M4096-N384-bf16-fwd"])
def test_a_case_of_a_gpus_suite_is_found_as_the_docs_say(tmp_path, monkeypatch, form):
    request = profiling.ProfileRequest(words=(form,), out=tmp_path, calls=1, timeout_s=1.0)
    assert f"profile {'rms_norm/' * ('/' in form)}{form.split('/')[-1]}" in (
        (HERE.parent / "docs" / "profiling.md").read_text()
    )
    output = Output(Console(), Console(stderr=True))
    found = profiling._plan(request, here("cuda")(None), output)
    assert found.suite.name == "h200"
    assert [job.id for job in found.jobs] == ["rms_norm/M4096-N384-bf16-fwd"]
    monkeypatch.setattr(profiling, "_machine", here("cpu"))
    done = shipped(tmp_path, form)
    assert done.exit_code == 2 and "a suite for GPUs" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["M4096-N348-bf16-fwd"], "did you mean M4096-N384-bf16-fwd"),
        (["rms_norm/M16-N255-fp32-fwd"], "did you mean rms_norm/M16-N256-fp32-fwd"),
        (["smokey"], "did you mean smoke"),
        (["rms_norm"], "rms_norm: a family; say --family rms_norm"),
        (["M16-N256-fp32-fwd", "M4096-N384-bf16-fwd"], "of several suites"),
    ],
)
def test_what_is_no_case_is_answered_with_those_that_are_near(tmp_path, monkeypatch, words, said):
    monkeypatch.setattr(profiling, "_machine", here("cpu"))
    done = shipped(tmp_path, *words)
    assert done.exit_code == 2 and said in done.stderr, done.stderr
