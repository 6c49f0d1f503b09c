"""Fan-outs by the real things: submitit's processes, and a Ray cluster of two nodes. No GPU."""

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from kernelbench import store
from kernelbench.cli import app
from kernelbench.fanout import slurm, state, watch
from kernelbench.fanout.state import Where
from kernelbench.report.progress import Output
from kernelbench.suite.request import RunRequest
from kernelbench.verbs import fanout as verb

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_cache")]
SUITE = """
name: tiny
device: cpu
executor: {cpus: 1, parallel: 2, time: 5}
families:
  mine:
    cases: [{M: [8, 16, 32, 64], N: 64, dtype: fp32}]
functions:
  mine: {against: my.py:reference, candidates: {fused: my.py:fused}, args: "x=MxN:fp32"}
"""
MINE = "def reference(x):\n    return x * 2\n\n\ndef fused(x):\n    return x + x\n"


def suite_in(folder: Path) -> Path:
    (folder / "my.py").write_text(MINE)
    (folder / "tiny.yaml").write_text(SUITE)
    return folder / "tiny.yaml"


def silent() -> Output:
    return Output(Console(file=io.StringIO()), Console(file=io.StringIO()))


def test_shards_of_submitit_run_the_source_that_was_submitted(tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="needs the extra slurm")
    asked = RunRequest(suites=(str(suite_in(tmp_path)),), out=tmp_path / "out")
    request = verb.FanoutRequest(engine="slurm", run=asked, count=2, by="time", local=True)
    found = verb._create(request, *verb._begin(request, silent()))
    (tmp_path / "my.py").write_text("raise SystemExit('edited since')\n")

    lines: list[str] = []
    name = "kernelbench-tiny"
    engine = slurm.Local(found.folder, found.executor, name, gpu=False)
    watch.watch(found, engine, lines.append, wait=True)
    assert {entry.where for entry in found.entries} == {Where.done}, lines
    assert len(found.entries) == 2 and not (found.folder / watch.LOGS).exists()
    records = [r for run in store.find_runs([found.folder]) for r in store.read(run)]
    assert len(records) == 4 * 2 and {r.status.value for r in records} == {"ok"}


def test_a_shard_that_fell_is_resumed_where_it_stopped(tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="needs the extra slurm")
    command = ["fanout", "slurm", str(suite_in(tmp_path)), "--shards=1", "--local"]
    command += [f"--out={tmp_path / 'out'}", "--set", "executor.time=1"]
    runner = CliRunner()
    done = runner.invoke(app, command)
    assert done.exit_code == 0, done.output
    [folder] = (tmp_path / "out").iterdir()
    [run] = store.find_runs([folder])
    lines = (run / store.RECORDS).read_bytes().splitlines(keepends=True)
    (run / store.RECORDS).write_bytes(b"".join(lines[:4]))
    found = state.load(folder)
    found.settle(found.entries[0], lambda job: "")
    found.save()
    assert found.entries[0].where is Where.lost and len(found.entries[0].missing) == 2
    done = runner.invoke(app, ["fanout", "slurm", "--resume", str(folder), "--local"])
    assert done.exit_code == 0, done.output
    assert store.find_runs([folder]) == [run] and len(store.read(run)) == 8


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A Ray cluster of two nodes of a core each, every one processes of its own."""
    pytest.importorskip("ray", reason="needs the extra ray")
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    made = Cluster(initialize_head=True, head_node_args=small | {"include_dashboard": False})
    made.add_node(**small)
    yield made
    made.shutdown()


def test_a_ray_cluster_of_two_nodes_measures_two_shards(cluster: Any, tmp_path: Path) -> None:
    command = ["fanout", "ray", str(suite_in(tmp_path)), "--shards=2", "--by=time", "--json"]
    command += [f"--out={tmp_path / 'out'}", "--set", f"executor.address={cluster.address}"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    [folder] = (tmp_path / "out").iterdir()
    found = state.load(folder)
    assert [entry.where for entry in found.entries] == [Where.done] * 2
    assert len(json.loads(done.stdout)) == 8


def test_a_node_that_falls_loses_nothing(cluster: Any, tmp_path: Path) -> None:
    command = ["fanout", "ray", str(suite_in(tmp_path)), "--shards=2", "--by=time"]
    command += [f"--out={tmp_path / 'out'}", "--set", f"executor.address={cluster.address}"]
    slow = "import time\n\n" + MINE.replace("return x + x", "time.sleep(0.05)\n    return x + x")
    (tmp_path / "my.py").write_text(slow)

    def logs() -> list[str]:
        return [log.read_text() for log in tmp_path.glob("out/*/shards/*/log.txt")]

    def fell() -> None:
        while sum("[1/2]" in log for log in logs()) < 2:
            time.sleep(0.05)
        [node] = cluster.worker_nodes
        cluster.remove_node(node, allow_graceful=False)

    thread = Thread(target=fell, daemon=True)
    thread.start()
    done = CliRunner().invoke(app, command)
    thread.join()
    assert done.exit_code == 0, done.output
    [folder] = (tmp_path / "out").iterdir()
    assert [entry.where for entry in state.load(folder).entries] == [Where.done] * 2
    assert sorted(log.count("a smoke run") for log in logs()) == [1, 2]


def test_what_a_ray_cluster_has_not_is_refused(cluster: Any, tmp_path: Path) -> None:
    command = ["fanout", "ray", str(suite_in(tmp_path)), f"--out={tmp_path / 'out'}"]
    command += ["--set", f"executor.address={cluster.address}", "--set", "executor.cpus=64"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2 and "needs CPU × 64" in done.output
    command = ["fanout", "ray", str(tmp_path / "tiny.yaml"), f"--out={tmp_path / 'out'}"]
    done = CliRunner().invoke(app, [*command, "--set", "executor.address=127.0.0.1:1"])
    assert done.exit_code == 2 and "no Ray cluster at" in done.output
