"""Shards, the folder of a fan-out, what a scheduler is told, and what is said of lost shards."""

import json
import os
import shlex
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from test_metrics import ours, record, timing
from typer.testing import CliRunner

from kernelbench import families, metrics, store, suite
from kernelbench.cli import app
from kernelbench.fanout import copied, gather, shards, slurm, state, task, watch
from kernelbench.fanout.state import Where
from kernelbench.report import sheet
from kernelbench.report.portability import portability
from kernelbench.spec import Context, Job, KernelbenchError, Status, UsageError, record_of
from kernelbench.verbs import fanout as verb

SUITE = """
name: tiny
families:
  rms_norm:
    providers: [eager, torch_fused]
    cases: [{M: [4, 8, 16], N: [64, 128, 256], dtype: fp32, mode: [fwd, bwd]}]
"""
FAMILIES = families.load()
Executor = suite.Executor


def jobs_of(text: str = SUITE) -> tuple[Job, ...]:
    return suite.load("tiny.yaml", FAMILIES, text=text).jobs


def a_run(
    root: Path,
    jobs: Sequence[Job],
    gpu: str = "NVIDIA H100",
    status: Status = Status.skipped,
    **facts: Any,
) -> Path:
    """A run that has these jobs whole, in one process."""
    with store.create(root, "tiny", gpu, {}) as opened:
        context = Context(run_id=opened.run_id, gpu=gpu, seed=0, source="")
        for job in jobs:
            found = [FAMILIES[job.family].provider(name) for name in job.providers]
            opened.append([record_of(job, each, status, context, **facts) for each in found])
        return opened.path


@pytest.mark.parametrize("by", shards.CUTS)
def test_every_job_is_in_one_shard_and_modes_stay_together(by: str) -> None:
    jobs = jobs_of()
    found = shards.cut(jobs, 4, by)
    ids = [job for shard in found for job in shard.jobs]
    assert sorted(ids) == sorted(job.id for job in jobs) and 1 < len(found) <= 4
    for shard in found:
        assert {job.replace("-fwd", "-bwd") for job in shard.jobs} <= {*shard.jobs}


def test_by_hash_a_job_stays_where_it_was_and_by_time_shards_are_even() -> None:
    more = SUITE.replace("N: [64,", "N: [32, 64,")
    before = {j: s.name for s in shards.cut(jobs_of(), 4, "hash") for j in s.jobs}
    after = {j: s.name for s in shards.cut(jobs_of(more), 4, "hash") for j in s.jobs}
    assert len(after) > len(before) and before.items() <= after.items()
    assert {len(s.jobs) for s in shards.cut(jobs_of(), 3, "time")} == {6}


def test_each_gpu_model_gets_every_job() -> None:
    found = shards.cut(jobs_of(), 2, "time", ("A100", "H100"))
    assert [s.name for s in found] == ["a100-0", "a100-1", "h100-0", "h100-1"]
    assert found[0].jobs == found[2].jobs and {s.gpus for s in found} == {1}
    assert {s.gpus for s in shards.cut(jobs_of(), 2, "time", device="cpu")} == {0}


def test_a_filter_lets_its_jobs_through_alone() -> None:
    jobs = jobs_of()
    wanted = [job.id for job in jobs[::5]]
    left = suite.narrow(jobs, FAMILIES, filter=shards.filter_of(wanted))
    assert [job.id for job in left] == wanted
    with pytest.raises(UsageError, match="9000 jobs in one shard"):
        shards.filter_of(f"rms_norm/M{n}-N4096-bf16" for n in range(9000))


def test_a_shard_lacks_what_no_run_has_whole_on_its_gpu(tmp_path: Path) -> None:
    jobs = jobs_of()
    [shard] = shards.cut(jobs, 1, "hash", ("H100",))
    assert {*shards.missing(shard, [])} == {job.id for job in jobs}
    one = a_run(tmp_path, jobs[:3])
    half = a_run(tmp_path, [Job(family=jobs[3].family, case=jobs[3].case, providers=("eager",))])
    other = a_run(tmp_path, jobs[4:], gpu="NVIDIA A100")
    left = shards.missing(shard, [one, half, other])
    assert {*left} == {job.id for job in jobs[3:]}


def test_what_was_wrong_in_one_process_is_not_missing_in_the_next(tmp_path: Path) -> None:
    jobs = jobs_of(SUITE.replace("name: tiny", "name: tiny\nmeasure: {processes: 2}"))
    [shard] = shards.cut(jobs, 1, "hash")
    right = {"status": Status.ok, "timing": timing(10)}
    assert len(store.read_apart(once := a_run(tmp_path, jobs, **right))) == 2 * len(jobs)
    assert len(shards.missing(shard, [once])) == len(jobs)
    assert not shards.missing(shard, [a_run(tmp_path, jobs, status=Status.failed)])


def test_the_submitted_source_is_what_runs_or_nothing_does(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("tiny.yaml", "plugin.py", "beside.py"):
        (mine / name).write_text("")
    found = copied.copy(tmp_path / "source", mine / "tiny.yaml", [str(mine / "plugin.py")])
    assert copied.digest(tmp_path / "source") == found.digest
    assert {each.name for each in Path(found.plugins[0]).parent.iterdir()} == {
        "plugin.py", "beside.py",
    }  # fmt: skip
    shipped = copied.copy(tmp_path / "again", suite.find("smoke"), ())
    assert Path(shipped.suite) == tmp_path / "again" / "kernelbench" / "configs" / "smoke.yaml"

    [shard] = shards.cut(jobs_of(), 1, "hash")
    folder = task.asked(tmp_path, shard.name)
    folder.parent.mkdir(parents=True)
    facts = {"command": [], "source": found.digest, "env": [], "shard": shard.as_json()}
    folder.write_text(json.dumps(facts))
    (tmp_path / "source" / "kernelbench" / "spec" / "job.py").write_text("")
    assert task.Task(tmp_path, shard.name)() == 2
    assert state.how_ended(tmp_path, shard.name)["why"] == task.CHANGED


def test_a_run_is_handed_known_names_of_the_environment_alone() -> None:
    have = {"PATH": "/bin", "SECRET_TOKEN": "s", "NCCL_DEBUG": "INFO", "PYTHONPATH": "/a:/src"}
    got = task.environment(have, ["NCCL_DEBUG"], Path("/src"))
    assert got == {"PATH": "/bin", "NCCL_DEBUG": "INFO", "PYTHONPATH": "/src:/a"}


class Fake:
    """An engine that is done at once, but loses the shards of these names."""

    poll_s = 0.0

    def __init__(self, folder: Path, lose: Iterable[str] = (), most: int = 2) -> None:
        self.folder, self.lose, self.most = folder, {*lose}, most
        self.asked: list[list[str]] = []

    def submit(self, found: Sequence[shards.Shard]) -> Iterator[tuple[str, str]]:
        self.asked.append([shard.name for shard in found])
        jobs = {job.id: job for job in jobs_of()}
        for shard in found:
            if shard.name not in self.lose:
                a_run(self.folder / task.RUNS / shard.name, [jobs[name] for name in shard.jobs])
                ended = {"code": 0, "why": "", "host": "node", "seconds": 1.0}
                task.ended(self.folder, shard.name).write_text(json.dumps(ended))
            yield shard.name, f"job{shard.name}"

    def alive(self, jobs: Iterable[str]) -> set[str]:
        return set()

    def said(self, job: str) -> str:
        return "the node fell"

    def close(self, *, stop: bool) -> None:
        assert not stop


def fanned(arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch, lose: Iterable[str]) -> Any:
    """`kernelbench fanout` by a fake engine: what was printed, and the engine."""
    made: list[Fake] = []

    def engine(_: Any, found: state.State) -> Fake:
        made.append(Fake(found.folder, lose))
        return made[-1]

    monkeypatch.setattr(verb, "_engine", engine)
    monkeypatch.setattr(verb, "_package", lambda name: None)
    return CliRunner().invoke(app, ["fanout", *arguments]), made[-1]


@pytest.mark.usefixtures("own_cache")
def test_a_lost_shard_is_named_and_resumed_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny.yaml").write_text(SUITE)
    out = str(tmp_path / "out")
    begin = ["slurm", str(tmp_path / "tiny.yaml"), "--shards=3", "--by=time", f"--out={out}"]
    done, engine = fanned([*begin, "--device=cpu"], monkeypatch, lose=["1"])
    folder = engine.folder
    assert done.exit_code == 1 and engine.asked == [["0", "1"], ["2"]]
    assert "shard 1: lost, 6 of 6 jobs missing: its job job1 ended: the node fell" in done.output
    assert f"kernelbench fanout slurm --resume {folder}" in done.output
    known = json.loads((folder / gather.MANIFEST).read_text())
    assert [*known["missing"]] == ["1"] and known["jobs"] == 18 and len(known["runs"]) == 2
    shown = CliRunner().invoke(app, ["report", str(folder)])
    assert "shard 1: lost, 6 of 6 jobs" in shown.output

    done, engine = fanned(["ray", "--resume", str(folder)], monkeypatch, lose=[])
    assert done.exit_code == 0, done.output
    assert engine.asked == [["1"]] and gather.gaps(folder) == []
    assert {e.where for e in state.load(folder).entries} == {Where.done}
    done, engine = fanned(["ray", "--resume", str(folder)], monkeypatch, lose=[])
    assert done.exit_code == 0 and engine.asked == []
    with state.held(folder), pytest.raises(KernelbenchError, match="another"), state.held(folder):
        pass


def test_what_is_no_fanout_is_said(tmp_path: Path) -> None:
    with pytest.raises(KernelbenchError, match="not the folder of a fan-out"):
        state.load(tmp_path)
    (tmp_path / state.STATE).write_text("{")
    with pytest.raises(KernelbenchError, match="not understood"):
        state.load(tmp_path)
    assert gather.gaps(tmp_path) == []
    (tmp_path / gather.MANIFEST).write_text("[]")
    assert "cannot be read" in gather.gaps(tmp_path)[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("slrum smoke", "did you mean 'slurm'"),
        ("slurm", "takes one suite"),
        ("slurm smoke h200", "takes one suite"),
        ("ray smoke --no-wait", "--no-wait is for a Slurm cluster"),
        ("ray smoke --gres gpu:1", "--gres is Slurm's"),
        ("slurm smoke --dry-run --by size", "did you mean 'time'?"),
        ("slurm smoke --dry-run --set executor.time=0", "'time' of executor"),
        ("slurm smoke --shards 0", "--shards"),
        ("slurm --resume . --quick", "--resume goes on as it was begun"),
        ("slurm --resume .", "not the folder of a fan-out"),
    ],
)
def test_bad_input(arguments: str, said: str) -> None:
    done = CliRunner().invoke(app, ["fanout", *arguments.split()])
    assert done.exit_code == 2 and said in done.output, done.output


@pytest.mark.parametrize("engine", ["slurm", "ray"])
def test_an_absent_package_is_one_message(
    engine: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, {"slurm": "submitit"}.get(engine, engine), None)
    command = ["fanout", engine, "smoke", "--device", "cpu", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2 and f"pip install 'kernelbench[{engine}]'" in done.output
    assert not [*tmp_path.iterdir()]


def test_what_the_batch_script_asks_for() -> None:
    known = Executor.model_validate({"partition": "{gpu}s", "time": 2, "parallel": 3})
    found = slurm.parameters(known, "H100", 2, "name")
    assert found["gres"] == "gpu:h100:2" and found["partition"] == "h100s"
    assert (found["time"], found["signal_delay_s"], found["array_parallelism"]) == (2, 30, 3)
    assert "constraint" not in found
    assert slurm.parameters(known, "", 1, "name")["gres"] == "gpu:1"
    assert "gres" not in slurm.parameters(known, "H100", 0, "name")
    assert "PATH" in found["additional_parameters"]["export"].split(",")


def programs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm's, as far as submitting needs them: sbatch keeps what it is handed."""
    folder.mkdir()
    count = 'n=$(ls "$0".* 2>/dev/null | wc -l)\n'
    texts = {
        "sbatch": f'{count}cp "$1" "$0.$n"\necho Submitted batch job 1$n\n',
        "srun": "",
        "squeue": "echo 10_0\n",
        "scontrol": "echo 'MaxArraySize            = 3'\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}")
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_arrays_are_no_longer_than_the_cluster_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit", reason="needs the extra slurm")
    programs(tmp_path / "bin", monkeypatch)
    monkeypatch.setenv("SECRET_TOKEN", "s")
    known = Executor.model_validate({"setup": ["module load cuda"]})
    engine = slurm.Slurm(tmp_path, known, "kernelbench-tiny")
    found = shards.cut(jobs_of(), 4, "time", ("H100",))
    assert dict(engine.submit(found)) == {
        "h100-0": "10_0", "h100-1": "10_1", "h100-2": "10_2", "h100-3": "11",
    }  # fmt: skip
    script = (tmp_path / "bin" / "sbatch.0").read_text()
    for line in ("--array=0-2%3", "--gres=gpu:h100:1", "--requeue", "--signal=USR2@90"):
        assert f"#SBATCH {line}\n" in script
    assert f"PYTHONPATH={tmp_path / 'source'}" in script and "SECRET_TOKEN" not in script
    assert script.index("module load cuda") < script.index("srun")
    assert "--array" not in (tmp_path / "bin" / "sbatch.1").read_text()
    assert engine.alive(["10_0", "10_1"]) == {"10_0"}


def test_a_suite_says_where_it_runs(tmp_path: Path) -> None:
    text = SUITE + "gpus: [A100, H100, A100]\nexecutor: {partition: gpu, env: [NCCL_DEBUG]}\n"
    found = suite.load("tiny.yaml", FAMILIES, text=text)
    assert found.gpus == ("A100", "H100") and found.executor.partition == "gpu"
    wrong = SUITE + "gpu: A100\ngpus: H100\nexecutor: {partion: gpu, env: [A-B], time: 0}\n"
    with pytest.raises(UsageError) as error:
        suite.load("tiny.yaml", FAMILIES, text=wrong)
    said = str(error.value)
    assert "tiny.yaml:8:1: 'gpu' and 'gpus' are alternatives" in said
    assert "9:12: no key 'partion' of executor; did you mean 'partition'?" in said
    assert "'env' of executor takes the name of an environment variable" in said
    assert "'time' of executor" in said


def test_the_same_case_on_two_gpus_stands_in_one_line() -> None:
    near = [record(timing=timing(100)), ours(timing=timing(50))]
    far = [record(timing=timing(100), gpu="NVIDIA A100")]
    [found] = portability(sheet.source(metrics.rows_of([*near, *far])))
    assert found.heads == ("Config", "provider", "H200", "A100", "all", "")
    eager, mine = found.rows
    assert eager[2] == eager[3] == eager[4] != "" and mine[3] == mine[4] == ""
    assert not [*portability(sheet.source(metrics.rows_of(near)))]


def test_a_job_that_is_gone_once_is_looked_for_again(tmp_path: Path) -> None:
    """The file that says how it ended may come late."""
    [shard] = shards.cut(jobs_of(), 1, "hash")
    task.ended(tmp_path, shard.name).parent.mkdir(parents=True)
    entry = state.Entry(shard, where=Where.submitted, job="7")
    found = state.State(tmp_path, "slurm", Executor.default(), "cpu", {}, [entry])
    lines: list[str] = []
    watch.watch(found, Fake(tmp_path), lines.append, wait=False)
    assert entry.where is Where.lost and len(lines) == 1


def test_the_lines_of_its_page_are_there_to_be_typed(tmp_path: Path) -> None:
    text = (Path(__file__).parent.parent / "docs" / "scale.md").read_text()
    lines = text.partition("```console\n")[2].partition("```")[0].splitlines()
    assert len(lines) == 4
    for line in lines:
        done = CliRunner().invoke(app, shlex.split(line.removeprefix("$ kernelbench ")))
        assert done.exit_code == 0 and "shard " in done.output, f"{line}\n{done.output}"
    block = text.partition("```yaml\n")[2].partition("```")[0]
    assert suite.load("everywhere.yaml", FAMILIES, text=block).executor.parallel == 16
