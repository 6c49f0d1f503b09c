"""The loop with a real worker: what falls is a record, what is right is measured."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from kernelbench import families, store
from kernelbench.report.progress import Output
from kernelbench.run import plan
from kernelbench.run.loop import remaining
from kernelbench.run.runner import Options
from kernelbench.source import reached, source_hash
from kernelbench.spec import KernelbenchError, Status, UsageError
from kernelbench.suite.request import Selection
from kernelbench.verbs.run import measure

HERE = Path(__file__).parent
PLUGIN = str(HERE / "plugins" / "falls.py")
SUITE = """
name: falls
device: {device}
measure: {{min_samples: 2, max_samples: 4, block: 2, max_seconds: 0.5}}
families:
  falls:
    providers: [{providers}]
    cases: [{{n: [{sizes}], dtype: fp32, pause: {pause}}}]
"""


def suite(folder: Path, providers: str, sizes: str = "8", pause: float = 0.0, device="cpu") -> Path:
    path = folder / "falls.yaml"
    path.write_text(SUITE.format(providers=providers, sizes=sizes, pause=pause, device=device))
    return path


def go(path: Path, out: Path, quiet_console, **options):
    asked = Selection(plugins=(PLUGIN,), device="cpu")
    plans = plan.new([str(path)], asked)
    code = measure(plans, Options(**options), out, Output(quiet_console, quiet_console, quiet=True))
    (folder,) = store.find_runs([out])
    return code, folder


@pytest.fixture
def console():
    from rich.console import Console

    return Console(file=open(os.devnull, "w"))  # noqa: PTH123


def test_every_way_to_fall_is_a_record(tmp_path, console):
    everyone = "plain, again, exits, segfaults, forks, hangs, raises, oom, wrong, absent"
    code, folder = go(suite(tmp_path, everyone), tmp_path / "out", console, timeout=15)
    records = {record.provider: record for record in store.read(folder)}
    assert {name: record.status.value for name, record in records.items()} == {
        "plain": "ok",
        "again": "ok",
        "exits": "crashed",
        "segfaults": "crashed",
        "forks": "crashed",
        "hangs": "timeout",
        "raises": "failed",
        "oom": "oom",
        "wrong": "incorrect",
        "absent": "skipped",
    }
    assert code == 1
    assert "exited with code 7" in records["exits"].reason
    assert "SIGSEGV" in records["segfaults"].reason
    assert "SIGKILL" in records["forks"].reason  # and not the timeout, while its children live
    assert "nothing happened for 15 s" in records["hangs"].reason
    assert "this provider always raises" in records["raises"].reason
    assert "error 0.01" in records["wrong"].reason and "budget" in records["wrong"].reason
    assert "no_such_module" in records["absent"].reason
    assert records["plain"].group == records["again"].group != ""  # measured together
    assert records["wrong"].timing is None
    assert len(store.history(folder)) == 10  # nothing was recorded twice
    assert "Segmentation fault" in (folder / "worker.log").read_text()
    assert not list((tmp_path / "out").glob(".worker*"))


def test_a_baseline_that_falls_leaves_the_others(tmp_path, console, monkeypatch):
    source = Path(PLUGIN).read_text()
    plugin = tmp_path / "falling_baseline.py"
    plugin.write_text(
        source.replace(
            '"plain",\n            Role.baseline,\n            double,',
            '"plain",\n            Role.baseline,\n            falls(lambda: os._exit(3)),',
        )
    )
    plans = plan.new(
        [str(suite(tmp_path, "again"))], Selection(plugins=(str(plugin),), device="cpu")
    )
    out = tmp_path / "out"
    code = measure(plans, Options(), out, Output(console, console, quiet=True))
    (folder,) = store.find_runs([out])
    (record,) = store.read(folder)
    assert (code, record.provider, record.status) == (0, "again", Status.ok)
    assert record.errors[0].baseline_rel is None


def test_family_code_that_raises_is_a_failure_not_a_crash(tmp_path, console):
    _, folder = go(suite(tmp_path, "plain, picky", sizes="8, 13"), tmp_path / "out", console)
    found = {(r.case, r.provider): (r.status.value, r.reason) for r in store.read(folder)}
    assert found["n8-fp32-fwd", "plain"] == ("ok", "")
    status, reason = found["n8-fp32-fwd", "picky"]
    assert status == "failed" and re.match(r"LookupError: cannot say \(\S*falls\.py:\d+", reason)
    status, reason = found["n13-fp32-fwd", "plain"]
    unknown = r"falls: cost raised ArithmeticError: the cost of 13 is not known \(\S*falls\.py:\d+"
    assert status == "failed" and re.search(unknown, reason)


@pytest.mark.slow
def test_a_death_while_nobody_is_at_work_is_tried_again(tmp_path, console):
    path = suite(tmp_path, "plain, late")
    path.write_text(
        path.read_text().replace(
            "cases: [{n: [8], dtype: fp32, pause: 0.0}]",
            "cases: [{n: 8, dtype: fp32, providers: late}, {n: 14, dtype: fp32, providers: plain}]",
        )
    )
    _, folder = go(path, tmp_path / "out", console)
    assert [(r.case, r.provider, r.status) for r in store.read(folder)] == [
        ("n8-fp32-fwd", "late", Status.ok),
        ("n14-fp32-fwd", "plain", Status.ok),
    ]
    assert (folder / "worker.log").exists()


def test_a_budget_that_runs_out_leaves_the_rest(tmp_path, console):
    out, sizes = tmp_path / "out", ", ".join(map(str, range(1, 30)))
    plans = plan.new(
        [str(suite(tmp_path, "plain", sizes=sizes, pause=0.2))],
        Selection(plugins=(PLUGIN,), device="cpu"),
    )
    code = measure(
        plans, Options(deadline=time.monotonic() + 8.0), out, Output(console, console, quiet=True)
    )
    (folder,) = store.find_runs([out])
    assert code == 0
    assert 0 < len(store.read(folder)) < 29


def test_fail_fast_stops_before_the_next_suite(tmp_path, console):
    (tmp_path / "b").mkdir()
    paths = [suite(tmp_path, "plain, wrong"), suite(tmp_path / "b", "plain")]
    plans = plan.new([str(p) for p in paths], Selection(plugins=(PLUGIN,), device="cpu"))
    output = Output(console, console, quiet=True)
    assert measure(plans, Options(fail_fast=True), tmp_path / "out", output) == 1
    assert len(store.find_runs([tmp_path / "out"])) == 1


def test_quick_and_no_interleave_change_how_every_job_is_measured(tmp_path):
    path = str(suite(tmp_path, "plain"))
    (job,) = plan.new([path], Selection(plugins=(PLUGIN,), quick=True))[0].jobs
    assert (job.measure.max_seconds, job.measure.timers) == (0.2, ())
    (job,) = plan.new([path], Selection(plugins=(PLUGIN,), interleave=False))[0].jobs
    assert job.measure.interleave is False


def test_a_suite_made_for_another_gpu_says_so_and_runs(tmp_path):
    path = suite(tmp_path, "plain")
    path.write_text(path.read_text().replace("device: cpu", "device: cpu\ngpu: H200"))
    done = subprocess.run(
        [*command(str(path), "--plugin", PLUGIN, out=tmp_path / "out")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr.startswith("falls was made for H200; this is ")


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"gpu": "NVIDIA B200"}, "was measured on NVIDIA B200, this is"),
        ({"machine": {"uuid": "GPU-5ac5"}}, r"was measured on .* GPU-5ac5, this is"),
    ],
)
def test_a_run_of_another_gpu_is_not_continued_here(tmp_path, console, other, told):
    _, folder = go(suite(tmp_path, "plain"), tmp_path / "out", console)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | other))
    with pytest.raises(UsageError, match=told):
        measure(plan.resumed(folder, [], Selection()), Options(), tmp_path / "out",
                      Output(console, console))  # fmt: skip


@pytest.mark.slow
def test_a_plugin_whose_code_changed_is_measured_anew_and_says_so(tmp_path, capsys, console):
    plugin = tmp_path / "falls.py"
    plugin.write_text(Path(PLUGIN).read_text())
    asked = Selection(plugins=(str(plugin),), device="cpu")
    output, out = Output(console, console, quiet=True), tmp_path / "out"
    measure(plan.new([str(suite(tmp_path, "plain"))], asked), Options(), out, output)
    (folder,) = store.find_runs([out])
    plugin.write_text(plugin.read_text().replace('a["x"] * 2.02', 'a["x"] * 2.03'))
    arguments = [sys.executable, "-m", "kernelbench", "run", "--resume", str(folder), "-q"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert "falls: its code changed since it was measured; measured anew" in done.stderr
    assert (len(store.history(folder)), len(store.read(folder))) == (2, 1)
    assert {path.name for path in folder.glob("worker*.log")} == {"worker.log", "worker-2.log"}
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert "measured anew" not in done.stderr
    assert len(store.history(folder)) == 2


def test_the_worker_looks_for_modules_where_its_parent_does(tmp_path, console, monkeypatch):
    (tmp_path / "queue.py").write_text("raise ImportError('the wrong queue')")
    monkeypatch.chdir(tmp_path)
    code, _ = go(suite(tmp_path, "plain"), tmp_path / "out", console)
    assert code == 0


def test_fail_fast_leaves_jobs_for_a_resume(tmp_path, console):
    out = tmp_path / "out"
    path = suite(tmp_path, "plain, wrong", sizes="8, 9, 10")
    code, folder = go(path, out, console, fail_fast=True)
    assert code == 1
    assert {record.case for record in store.read(folder)} == {"n8-fp32-fwd"}
    plans = plan.resumed(folder, [str(path)], Selection())
    assert measure(plans, Options(), out, Output(console, console, quiet=True)) == 1
    records = store.history(folder)
    assert Counter(r.key for r in records).most_common(1)[0][1] == 1
    assert len(records) == 6
    assert store.find_runs([out]) == [folder]


def test_resume_refuses_another_suite_and_other_wishes(tmp_path, console):
    out = tmp_path / "out"
    _, folder = go(suite(tmp_path, "plain"), out, console)
    other = tmp_path / "other.yaml"
    other.write_text((tmp_path / "falls.yaml").read_text().replace("n: [8]", "n: [9]"))
    with pytest.raises(UsageError, match="not the suite"):
        plan.resumed(folder, [str(other)], Selection())
    with pytest.raises(UsageError, match="cannot change: seed"):
        plan.resumed(folder, [], Selection(seed=3))
    with pytest.raises(KernelbenchError, match="not a run folder"):
        plan.resumed(tmp_path, [], Selection())


def test_changed_code_is_measured_anew():
    known = families.load((PLUGIN,))
    job = plan.new([str(HERE.parent / "configs/smoke.yaml")], Selection())[0].jobs[0]
    from test_metrics import record  # a hand-made record

    recorded = [
        record(family=job.family, case=job.case.id, provider=name, source="old")
        for name in job.providers
    ]
    left, changed = remaining([job], recorded, {job.family: "old"})
    assert (left, changed) == ([], [])
    left, changed = remaining([job], recorded, {job.family: "new"})
    assert [j.providers for j in left] == [job.providers]
    assert changed == [job.family]
    assert known["falls"].name == "falls"


def test_a_job_with_a_lost_record_is_measured_whole_where_it_was_timed():
    from test_metrics import record

    job = plan.new([str(HERE.parent / "configs/smoke.yaml")], Selection())[0].jobs[0]
    recorded = [
        record(family=job.family, case=job.case.id, provider="eager", source="s"),
        record(
            family=job.family, case=job.case.id, provider="liger", source="s", status=Status.skipped
        ),
    ]
    (left,), _ = remaining(
        [replace(job, providers=("eager", "triton_fused", "liger"))], recorded, {job.family: "s"}
    )
    assert left.providers == ("eager", "triton_fused")


def test_source_hash_follows_imports():
    family = families.load()["rms_norm"]
    names = {path.name for path in reached(Path(families.__path__[0]) / "rms_norm/__init__.py")}
    assert {"device.py", "launch.py", "providing.py", "case.py"} <= names
    assert "app.py" not in names and "rotary.py" not in names
    assert source_hash(family) == source_hash(family) != source_hash(families.load()["rotary"])


def test_a_cuda_suite_without_a_gpu_names_the_one_that_runs(tmp_path, console):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    plans = plan.new([str(suite(tmp_path, "plain", device="cuda"))], Selection(plugins=(PLUGIN,)))
    with pytest.raises(UsageError, match=r"no CUDA device: .*configs/smoke.yaml"):
        measure(plans, Options(), tmp_path / "out", Output(console, console, quiet=True))
    assert not (tmp_path / "out").exists()  # nothing is left behind


def command(*arguments: str, out: Path) -> list[str]:
    return [sys.executable, "-m", "kernelbench", "run", *arguments, "--out", str(out), "-q"]


@pytest.mark.parametrize("moments", [3, pytest.param(12, marks=pytest.mark.slow)])
def test_killed_at_random_moments_nothing_is_lost_or_doubled(tmp_path, moments):
    """kill -9 the whole harness, resume, again and again, until the run is complete."""
    out = tmp_path / "out"
    jobs = 2 * moments
    sizes = ", ".join(str(n) for n in range(1, jobs + 1))
    path = suite(tmp_path, "plain, again, wrong, absent", sizes=sizes, pause=0.01)
    random.seed(moments)
    arguments = [str(path), "--plugin", PLUGIN, "--device", "cpu"]
    acknowledged: set[tuple[str, str, str]] = set()
    for _ in range(moments):
        process = subprocess.Popen(
            command(*arguments, out=out), stdout=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(random.uniform(1.5, 5.0))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        runs = store.find_runs([out]) if out.exists() else []
        if runs:
            records = store.history(runs[0])
            keys = Counter(record.key for record in records)
            assert acknowledged <= set(keys)  # no record lost
            assert max(keys.values(), default=1) == 1  # none doubled
            acknowledged = set(keys)
            arguments = ["--resume", str(runs[0])]
    subprocess.run(command(*arguments, out=out), stdout=subprocess.DEVNULL, check=False)
    (folder,) = store.find_runs([out])
    records, problems = store.read_with_problems(folder)
    assert problems == []
    assert len(records) == len(store.history(folder)) == jobs * 4
    assert json.loads((folder / "manifest.json").read_text())["suite"] == "falls"


def test_an_interrupt_ends_cleanly_with_what_is_there(tmp_path):
    out = tmp_path / "out"
    sizes = ", ".join(str(n) for n in range(1, 60))
    path = suite(tmp_path, "plain, again", sizes=sizes, pause=0.02)
    process = subprocess.Popen(
        [*command(str(path), "--plugin", PLUGIN, "--device", "cpu", out=out)],
        stdout=subprocess.PIPE,
        text=True,
    )
    while not (out.exists() and store.find_runs([out]) and store.read(store.find_runs([out])[0])):
        time.sleep(0.1)
        assert process.poll() is None
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    workers = children.split()
    process.send_signal(signal.SIGINT)
    shown, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted with" in shown and "--resume" in shown
    (folder,) = store.find_runs([out])
    rows = (folder / "results.csv").read_text().splitlines()
    assert len(rows) == 1 + len(store.read(folder))
    assert "\nwall " in shown and store.read_manifest(folder)["spent_s"]["check"] > 0
    assert workers and not any(Path(f"/proc/{pid}").exists() for pid in workers)
