"""A run directory survives a kill, a full disk, a second writer and a damaged file."""

import errno
import json
import lzma
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kernelbench import store
from kernelbench.spec import (
    SCHEMA,
    Accuracy,
    KernelbenchError,
    OutputError,
    Role,
    RunRecord,
    Status,
    Timing,
    UsageError,
)


def record(number: int = 0, **facts: Any) -> RunRecord:
    known: dict[str, Any] = {
        "run_id": "run",
        "utc": "2026-07-30T12:00:00Z",
        "family": "rms_norm",
        "provider": "eager",
        "case": f"M{number}",
        "status": Status.ok,
        "role": Role.baseline,
        "accuracy": Accuracy.exact,
        "mode": "fwd",
        "dtype": "bf16",
        "axes": {"M": number},
        "source": "s1",
        "timing": Timing(timer="gated", blocks_ns=((10, 11),)),
    }
    return RunRecord(**(known | facts))


@pytest.fixture
def run(tmp_path: Path) -> store.Store:
    return store.create(tmp_path / "results", "smoke", "NVIDIA H200", {"argv": ["run"]})


def test_create_names_the_folder_and_writes_the_manifest(run: store.Store) -> None:
    assert run.path.name.endswith("Z-smoke-h200")
    facts = json.loads((run.path / "manifest.json").read_text())
    assert facts == run.manifest
    assert facts["run_id"] == run.run_id == run.path.name
    assert (facts["schema"], facts["suite"], facts["gpu"]) == (SCHEMA, "smoke", "NVIDIA H200")
    assert facts["argv"] == ["run"]
    assert {p.name for p in run.path.iterdir()} == {"manifest.json", "records.jsonl"}
    assert sorted(p.name for p in run.path.parent.iterdir()) == [run.path.name]  # no probe left
    assert run.records() == store.read(run.path) == []


def test_runs_of_one_second_get_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import UTC, datetime

    class Clock:
        @staticmethod
        def now(zone: Any) -> datetime:
            return datetime(2026, 7, 30, 12, 0, 1, tzinfo=UTC)

    monkeypatch.setattr("kernelbench.store.writer.datetime", Clock)
    names = [store.create(tmp_path, "a/b c", "cpu", {}).path.name for _ in range(3)]
    assert names == [f"20260730T120001Z-a-b-c-cpu{end}" for end in ("", "-2", "-3")]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100-sxm4-80gb"),
        ("NVIDIA GeForce RTX 4090", "geforce-rtx-4090"),
        ("cpu", "cpu"),
        ("../..", "unnamed"),
    ],
)
def test_slug(name: str, expected: str) -> None:
    assert store.slug(name) == expected


def test_create_refuses_a_folder_it_cannot_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KernelbenchError, match="file: cannot be written"):
        store.create(tmp_path / "file", "smoke", "cpu", {})
    with pytest.raises(KernelbenchError, match="cannot be written"):
        store.create(tmp_path / "file" / "below", "smoke", "cpu", {})

    def read_only(fd: int) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "fsync", read_only)
    with pytest.raises(KernelbenchError, match=r"Read-only file system.*another folder"):
        store.create(tmp_path / "results", "smoke", "cpu", {})
    assert list((tmp_path / "results").iterdir()) == []


def test_create_refuses_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**40, 2**40, 49 * 2**20))
    with pytest.raises(KernelbenchError, match=r"49 MiB free, a run needs 50 MiB\. Free"):
        store.create(tmp_path, "smoke", "cpu", {})


def test_records_come_back_as_they_went(run: store.Store) -> None:
    records = [record(1), record(2, provider="compile"), record(2, provider="triton")]
    run.append(records[:1])
    run.append(records[1:])
    assert store.read(run.path) == run.records() == store.history(run.path) == records


def test_a_record_measured_again_stands_in_its_place(run: store.Store) -> None:
    run.append([record(1), record(2)])
    run.append([record(1, source="s2")])
    assert run.records() == [record(1, source="s2"), record(2)]
    assert store.history(run.path) == [record(1), record(2), record(1, source="s2")]


def test_the_manifest_is_replaced_in_one_step(
    run: store.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.update_manifest(ceilings={"read_gbps": 4000.0})
    facts = store.read_manifest(run.path)
    assert facts == run.manifest
    assert (facts["ceilings"], facts["argv"]) == ({"read_gbps": 4000.0}, ["run"])

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KernelbenchError, match="No space left"):
        run.update_manifest(ceilings={})
    assert store.read_manifest(run.path) == run.manifest == facts


def write_half(fd: int, data: bytes, write: Any = os.write) -> int:
    return int(write(fd, data[: len(data) // 2]))


def write_nothing(fd: int, data: bytes) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("write", [write_half, write_nothing])
def test_a_full_disk_keeps_what_was_stored_and_nothing_half(
    run: store.Store, monkeypatch: pytest.MonkeyPatch, write: Any
) -> None:
    run.append([record(1)])
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(KernelbenchError, match=r"are safe; the last 2 records.*--resume"):
            run.append([record(2), record(3)])
    assert (run.path / "records.jsonl").read_bytes() == f"{record(1).to_json()}\n".encode()
    run.append([record(4)])
    assert run.records() == [record(1), record(4)]


def test_half_a_line_that_cannot_be_cut_off_at_once_is_cut_off_later(
    run: store.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(fd: int, size: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write_half)
        patch.setattr(os, "ftruncate", refused)
        with pytest.raises(KernelbenchError):
            run.append([record(1)])
    run.append([record(2)])
    assert store.read_with_problems(run.path) == ([record(2)], [])


def test_one_writer_at_a_time(run: store.Store) -> None:
    with pytest.raises(KernelbenchError, match="another process is writing this run"):
        store.open_run(run.path)
    run.append([record(1)])
    run.close()
    with store.open_run(run.path) as again:
        assert again.records() == [record(1)]
        assert again.manifest == run.manifest
    store.open_run(run.path).close()


def test_open_probes_before_anything_is_measured(
    run: store.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.append([record(1)])
    run.close()

    def read_only(fd: int) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    usage = namedtuple("usage", "total used free")
    for module, name, fault, said in (
        (shutil, "disk_usage", lambda path: usage(2**40, 2**40, 2**20), "1 MiB free, a run needs"),
        (os, "fsync", read_only, r"cannot be written \(Read-only file system\)"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, fault)
            with pytest.raises(KernelbenchError, match=said):
                store.open_run(run.path)
    store.open_run(run.path).close()  # neither refusal keeps hold of it
    assert {p.name for p in run.path.iterdir()} == {"manifest.json", "records.jsonl"}


def test_paths_may_be_text(tmp_path: Path) -> None:
    with store.create(str(tmp_path), "smoke", "cpu", {}) as made:
        made.append([record(1)])
    path = str(made.path)
    assert store.find_runs([str(tmp_path)]) == [made.path]
    assert store.read(path) == store.history(path) == [record(1)]
    assert store.read_with_problems(path) == ([record(1)], [])
    assert store.read_manifest(path) == made.manifest
    with store.open_run(path) as again:
        assert again.path == made.path


def test_open_mends_a_torn_line_and_keeps_what_was_torn(run: store.Store) -> None:
    run.append([record(1)])
    run.close()
    file = run.path / "records.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"schema":1,"run')
    records, problems = store.read_with_problems(run.path)
    assert records == [record(1)] and [p.split(": ")[0] for p in problems] == [f"{file}:2"]
    with store.open_run(run.path) as again:
        assert file.read_bytes() == whole
        assert (run.path / "records.jsonl.torn").read_bytes() == b'{"schema":1,"run\n'
        again.append([record(2)])
        assert again.records() == [record(1), record(2)]


def test_a_whole_last_record_counts_without_its_newline(run: store.Store) -> None:
    run.append([record(1), record(2)])
    run.close()
    file = run.path / "records.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole.removesuffix(b"\n"))
    assert store.read_with_problems(run.path) == ([record(1), record(2)], [])
    with store.open_run(run.path) as again:
        assert file.read_bytes() == whole and not (run.path / "records.jsonl.torn").exists()
        again.append([record(3)])
        assert again.records() == [record(1), record(2), record(3)]


def test_lines_of_another_system_are_read_and_those_that_stand_twice_are_named(
    run: store.Store,
) -> None:
    lines = [record(n).to_json() for n in (1, 2, 1)]
    (run.path / "records.jsonl").write_bytes("\r\n".join([*lines, "", " "]).encode())
    records, problems = store.read_with_problems(run.path)
    assert records == [record(1), record(2)]
    assert [p.split(": ", 1)[1] for p in problems] == ["line 1 once more; left out"]
    (run.path / "records.jsonl.xz").write_bytes(lzma.compress(b""))
    _, problems = store.read_with_problems(run.path)
    assert any("records.jsonl.xz: left out, since" in problem for problem in problems)


SAMPLES = Timing(timer="gated", blocks_ns=((10, 11),))
IMPOSSIBLE = {
    "ok without a sample": {"timing": None},
    "ok without a sample ": {"timing": Timing(timer="gated", blocks_ns=((), ()))},
    "a sample of -5 ns in blocks_ns": {"timing": replace(SAMPLES, blocks_ns=((10, -5),))},
    "a sample of 0 ns in again_ns": {"timing": replace(SAMPLES, again_ns=((0,),))},
    "a sample of 0 ns in graph_ns": {"timing": replace(SAMPLES, graph_ns=(0,))},
    "graph_nodes is -1.0": {"timing": replace(SAMPLES, graph_nodes=-1.0)},
    "overhead_ns is -1": {"timing": replace(SAMPLES, overhead_ns=-1)},
    "compile_s is nan": {"compile_s": math.nan},
    "peak_bytes is -4": {"peak_bytes": -4},
    "read_gbps is inf": {"ceilings": {"read_gbps": math.inf}},
    "ok with a NaN in y": {
        "errors": (OutputError(name="y", rel=math.nan, worst=1.0, rel_budget=1, worst_budget=1),)
    },
}


def test_without_a_gpu_right_providers_have_no_samples(run: store.Store) -> None:
    smoke = replace(record(1), timing=Timing(timer="host", blocks_ns=()))
    run.append([smoke])
    assert store.read_with_problems(run.path) == ([smoke], [])


@pytest.mark.parametrize("reason", IMPOSSIBLE)
def test_what_nothing_can_have_measured_is_named_and_left_out(
    run: store.Store, reason: str
) -> None:
    run.append([record(1), replace(record(2), **IMPOSSIBLE[reason])])
    records, problems = store.read_with_problems(run.path)
    assert records == [record(1)]
    assert problems == [f"{run.path / 'records.jsonl'}:2: impossible: {reason.strip()}"]


def test_a_manifest_of_a_newer_version_is_no_manifest_of_ours(run: store.Store) -> None:
    file = run.path / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "schema": SCHEMA + 1}))
    with pytest.raises(KernelbenchError, match="upgrade kernelbench to read it"):
        store.read_manifest(run.path)


def test_a_damaged_line_is_reported_and_the_rest_is_read(run: store.Store) -> None:
    run.append([record(1)])
    file = run.path / "records.jsonl"
    other = record(3).to_json().replace(f'"schema":{SCHEMA}', '"schema":99')
    with file.open("ab") as out:
        out.write(b'{"half\n\xff\xfe\n' + other.encode() + b"\n" + b'{"schema":1}\n')
    run.append([record(2)])
    records, problems = store.read_with_problems(run.path)
    assert records == store.read(run.path) == [record(1), record(2)]
    assert [p.split(": ")[0] for p in problems] == [f"{file}:{n}" for n in (2, 3, 4, 5)]
    assert "schema 99" in problems[2]


def test_an_archived_run_is_read_and_not_written(run: store.Store) -> None:
    run.append([record(1), record(2)])
    run.close()
    whole = store.read_with_problems(run.path)
    file = run.path / store.RECORDS
    archive = file.with_name("records.jsonl.xz")
    archive.write_bytes(lzma.compress(file.read_bytes()))
    file.unlink()
    assert store.read_with_problems(run.path) == whole
    assert store.find_runs([run.path.parent]) == [run.path]
    with pytest.raises(KernelbenchError, match=r"records\.jsonl\.xz: an archive: xz -d"):
        store.open_run(run.path)
    assert not file.exists()
    archive.write_bytes(archive.read_bytes()[:-9])
    with pytest.raises(KernelbenchError, match=r"records\.jsonl\.xz: cannot be unpacked"):
        store.read(run.path)


def test_open_refuses_what_is_not_its_own(tmp_path: Path, run: store.Store) -> None:
    run.close()
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(KernelbenchError, match="not a run folder"):
            store.open_run(path)
        with pytest.raises(KernelbenchError, match="not a run folder"):
            store.read(path)
    manifest = run.path / "manifest.json"
    manifest.write_text(f'{{"schema": {SCHEMA - 1}, "run_id": "x"}}')
    told = f"schema {SCHEMA - 1}, this version writes schema {SCHEMA}"
    with pytest.raises(KernelbenchError, match=told):
        store.open_run(run.path)
    for text, fault in (("{", "not JSON"), ("[" * 100_000, "not JSON"), ("[]", "not a manifest")):
        manifest.write_text(text)
        with pytest.raises(KernelbenchError, match=fault):
            store.open_run(run.path)


def test_find_runs(tmp_path: Path) -> None:
    runs = []
    for name in ("b", "a", "deep/c"):
        made = store.create(tmp_path / name, "smoke", "cpu", {})
        (made.path / "below").mkdir()
        (made.path / "below" / "manifest.json").write_text("not a run of its own")
        runs.append(made.path)
    assert store.find_runs([tmp_path]) == [runs[1], runs[0], runs[2]]
    assert store.find_runs([runs[0], tmp_path]) == [runs[0], runs[1], runs[2]]
    assert store.find_runs([runs[2] / "records.jsonl"]) == [runs[2]]
    assert store.find_runs([runs[0], runs[0] / "..", f"{runs[0]}/../{runs[0].name}"]) == runs[:1]
    with pytest.raises(UsageError, match="no such file or folder"):
        store.find_runs([tmp_path / "none"])
    (tmp_path / "other.txt").write_text("")
    with pytest.raises(UsageError, match="name a run folder"):
        store.find_runs([tmp_path / "other.txt"])


def test_killed_at_any_step_of_its_making_a_run_is_whole_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Kill(BaseException):
        pass

    steps = ("mkdir", "open", "fsync", "replace", "rename", "link")
    for number in range(40):
        root = tmp_path / f"{number}"
        left = number

        def step(name: str, real: Any) -> Any:
            def counted(*given: Any, **named: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    raise Kill(name)
                return real(*given, **named)

            return counted

        with monkeypatch.context() as patch:
            for name in steps:
                patch.setattr(os, name, step(name, getattr(os, name)))
            try:
                store.create(root, "smoke", "cpu", {}).close()
            except Kill:
                killed = True
            else:
                killed = False
        runs = store.find_runs([root]) if root.exists() else []
        for run in runs:
            store.open_run(run).close()  # --resume takes it
        if not killed:
            assert len(runs) == 1
            assert number > 8  # these steps are what it is made of
            return
    raise AssertionError("the making never ended")


WRITER = """
import sys
from pathlib import Path
from kernelbench import store
sys.path.insert(0, sys.argv[2])
from test_store import record
with store.open_run(Path(sys.argv[1])) as run:
    number = len(run.records())
    while True:
        run.append([record(number, reason="x" * 20_000), record(number + 1)])
        number += 2
        print(number, flush=True)  # acknowledged
"""


def test_killed_anywhere_and_resumed_nothing_acknowledged_is_lost(
    run: store.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.close()
    rng = random.Random(0)
    here = Path(__file__).parent
    command = [sys.executable, "-c", WRITER, str(run.path), str(here)]
    environment = {**os.environ, "PYTHONPATH": str(here.parent)}
    for _ in range(20):
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as child:
            assert child.stdout is not None
            first = child.stdout.readline()
            time.sleep(rng.uniform(0, 0.05))
            child.send_signal(signal.SIGKILL)
            acknowledged = int((first + child.stdout.read()).split()[-1])
        records, problems = store.read_with_problems(run.path)
        numbers = [r.axes["M"] for r in store.history(run.path)]
        whole = (run.path / "records.jsonl").read_bytes().count(b"\n")
        assert [p.split(": ")[0].rpartition(":")[2] for p in problems] in ([], [str(whole + 1)])
        assert len(records) >= acknowledged
        assert numbers == list(range(len(numbers)))  # none lost, none twice


def test_a_kill_in_the_middle_of_a_write_loses_that_line_alone(run: store.Store) -> None:
    run.append([record(1)])
    run.close()
    file = run.path / "records.jsonl"
    whole = file.read_bytes()
    more = f"{record(2).to_json()}\n".encode()
    for cut in range(0, len(more), 7):
        file.write_bytes(whole + more[:cut])
        with store.open_run(run.path) as again:
            again.append([record(3)])
        assert store.read_with_problems(run.path) == ([record(1), record(3)], [])
