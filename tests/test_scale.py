"""Thousands of jobs: syncs are grouped where they must be, costs stay, nothing is lost."""

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from test_gather import a_run
from test_metrics import record as timed
from test_store import record

from kernelbench import metrics, store
from kernelbench.report import shares
from kernelbench.spec import KernelbenchError, RunRecord
from kernelbench.store import pace
from kernelbench.store.writer import Store

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "results/h200/20261130T202128Z-h200-h200"


class Disk:
    """A clock that is told the time, and syncs that are counted and may fail."""

    def __init__(self) -> None:
        self.now, self.syncs, self.fails = 0.0, 0, False

    def sync(self, fd: int) -> None:
        self.syncs += 1
        if self.fails:
            raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    made = Disk()
    monkeypatch.setattr(os, "fsync", made.sync)
    return made


def opened(tmp_path: Path, clock: Callable[[], float] = time.monotonic) -> Store:
    with store.create(tmp_path, "smoke", "cpu", {}) as made:
        pass
    fd = os.open(made.path / store.RECORDS, os.O_RDWR | os.O_APPEND)
    return Store(made.path, fd, dict(made.manifest), clock)


def at_a_time(run: Store, disk: Disk, numbers: range, apart: float) -> int:
    """Append a job of each number, so many seconds apart. How often that was synced."""
    before = disk.syncs
    for number in numbers:
        disk.now += apart
        run.append([record(number)])
    return disk.syncs - before


def test_syncs_are_grouped_above_1000_jobs_a_minute_alone(tmp_path: Path, disk: Disk) -> None:
    run = opened(tmp_path, lambda: disk.now)
    assert at_a_time(run, disk, range(1500), 0.0600001) == 1500
    assert not run.fast and "fsync" not in run.manifest
    again = disk.syncs
    for _ in range(3000):  # appends of one job are one job
        disk.now += 0.001
        run.append([record(1499)])
    assert disk.syncs - again == 3000 and not run.fast
    at_a_time(run, disk, range(1500, 2501), 0.005)
    assert run.fast
    assert store.read_manifest(run.path)["fsync"] == {"grouped": True, "at_most_ms": pace.MOST_MS}
    assert 80 <= at_a_time(run, disk, range(3000, 4000), 0.005) <= 100  # 50 ms after the first
    run.sync()
    disk.now += 60
    assert at_a_time(run, disk, range(4000, 4100), 0.1) == 100 and not run.fast
    run.close()
    longest = store.read_manifest(run.path)["fsync"]["longest_ms"]
    assert 45 <= longest <= 60
    assert len(store.read(run.path)) == 1500 + 1001 + 1000 + 100


def fast(run: Store) -> int:
    """Append until syncs are grouped; the next number."""
    for number in range(pace.FAST + 1):
        run.append([record(number)])
    assert run.fast
    run.sync()
    return pace.FAST + 1


def test_the_last_records_are_synced_though_no_more_come(tmp_path: Path, disk: Disk) -> None:
    run = opened(tmp_path)
    number = fast(run)
    before = disk.syncs
    run.append([record(number)])
    end = time.monotonic() + 5
    while disk.syncs == before and time.monotonic() < end:
        time.sleep(0.005)
    assert disk.syncs == before + 1
    run.append([record(number + 1)])
    run.close()  # at once
    assert disk.syncs >= before + 2
    assert not [thread for thread in threading.enumerate() if thread.name == "sync"]
    assert store.read_manifest(run.path)["fsync"]["longest_ms"] > 0


@pytest.mark.parametrize("told", ["append", "sync", "close"])
def test_what_a_later_sync_cannot_keep_is_said_to_whoever_comes_next(
    tmp_path: Path, disk: Disk, told: str
) -> None:
    run = opened(tmp_path, lambda: disk.now)
    number = fast(run)
    safe = (run.path / store.RECORDS).read_bytes()
    run.append([record(number), record(number + 1)])
    run.append([record(number + 2)])
    disk.fails, disk.now = True, disk.now + 1
    end = time.monotonic() + 5
    while run._failed is None and time.monotonic() < end:
        time.sleep(0.005)
    disk.fails = False
    with pytest.raises(KernelbenchError, match=rf"The {len(safe)} bytes.*safe; the last 3 records"):
        {"append": lambda: run.append([record(9999)]), "sync": run.sync, "close": run.close}[told]()
    assert (run.path / store.RECORDS).read_bytes() == safe
    if told != "close":
        run.append([record(number)])
        run.close()
        assert len(store.read(run.path)) == number + 1


def test_a_full_disk_beside_waiting_records_loses_what_did_not_fit_alone(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = opened(tmp_path, lambda: disk.now)
    number = fast(run)
    run.append([record(number)])
    before = disk.syncs
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: len(data) // 2)
        with pytest.raises(KernelbenchError, match="the last 1 records are not kept"):
            run.append([record(number + 1)])
    assert disk.syncs == before + 1  # what waited is safe, as the error says
    run.close()
    assert len(store.read(run.path)) == number + 1


def test_several_threads_write_one_run(tmp_path: Path, disk: Disk) -> None:
    run = opened(tmp_path)

    def work(thread: int) -> None:
        for number in range(thread * 1000, thread * 1000 + 150):
            job = [record(number), record(number, provider="ours")]
            run.append(job)
            metrics.append_csv(job, run.csv_path)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run.close()
    records, problems = store.read_with_problems(run.path)
    assert len(records) == 2400 and not problems
    rows = run.csv_path.read_text().splitlines()
    assert len({*rows}) == len(rows) == 2401
    assert {row.count(",") for row in rows} == {rows[0].count(",")}


def calls(work: Callable[[], object]) -> int:
    """How many functions it calls, those of C included."""
    count = 0

    def called(frame: Any, event: str, what: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(called)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def test_a_job_costs_the_same_however_many_came_before(tmp_path: Path, disk: Disk) -> None:
    run = opened(tmp_path, lambda: disk.now)
    costs = list[tuple[int, int]]()
    for number in range(1000, 4000):
        disk.now += 0.05
        job = [record(number)]
        costs.append((calls(partial(run.append, job)), 0))
        if number % 20 == 0:
            table = calls(partial(metrics.append_csv, job, run.csv_path))
            costs[-1] = (costs[-1][0], table)
    early, late = (
        [table for _, table in part if table] for part in (costs[100:1000], costs[1000:])
    )
    assert max(late) <= 1.01 * min(early), "some calls more where a cache was let go"
    assert max(append for append, _ in costs[2000:]) <= max(
        append for append, _ in costs[1100:2000]
    )
    assert len(run._pace._last) == pace.FAST + 1  # all that it keeps of them
    run.close()


def test_a_row_that_a_kill_tore_stays_a_row_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "along.csv"
    metrics.append_csv([timed()], path)
    with path.open("ab") as file:
        file.write("torn,µ".encode()[:-1])
    metrics.append_csv([timed(case="other")], path)
    rows = path.read_text(errors="replace").splitlines()
    assert len(rows) == 4 and rows[2].startswith("torn") and "other" in rows[3]


def test_what_a_resumed_run_asks_is_that_of_the_records(tmp_path: Path) -> None:
    run = opened(tmp_path)
    run.append(
        [
            record(1),
            record(2),
            record(3, process=1),
            record(4, peak_bytes=-4),
        ]
    )
    run.append([record(2, source="s2")])
    run.close()
    with (run.path / store.RECORDS).open("ab") as file:
        file.write(b'{"half\n' + record(1).to_json().encode())
    asked = [(each.key, each.status, each.source) for each in store.read_standing(run.path)]
    assert asked == [(r.key, r.status, r.source) for r in store.read_apart(run.path)]
    assert len(asked) == 3 and store.read_standing(KEPT)  # of an archive, too
    with pytest.raises(KernelbenchError, match="not a run"):
        store.read_standing(tmp_path)


@pytest.mark.parametrize("code", [shares._CODE, "raise SystemExit(1)"])
def test_shares_of_rows_are_the_rows(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(shares, "WORTH", 10)
    monkeypatch.setattr(shares, "_CODE", code)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    lines = store.lines(KEPT, store.RECORDS)[:60]
    records, _ = store.read_with_problems(KEPT, lines)
    with shares.rows_of(lines, "") as rows_of:
        assert rows_of(records) == metrics.rows_of(records)


def many(root: Path, jobs: int) -> Path:
    """A run of so many jobs of three providers, out of those that an H200 measured: their cases
    and times vary, their numbers of samples are what they were."""
    groups: dict[str, list[RunRecord]] = {}
    for each in store.read_apart(KEPT):
        if each.timing and each.timing.counts:
            groups.setdefault(each.group, []).append(each)
    drawn = [group[:3] for group in groups.values() if len(group) >= 3]
    records = list[RunRecord]()
    for number in range(jobs):
        for each in drawn[number % len(drawn)]:
            assert each.timing
            blocks = tuple(
                tuple(ns * (jobs + number) // jobs // 32 * 32 for ns in block)
                for block in each.timing.blocks_ns
            )
            one = replace(each, timing=replace(each.timing, blocks_ns=blocks), process=0)
            axes = {**each.axes, "n": number}
            case = f"{each.case}-n{number}"
            records.append(replace(one, axes=axes, case=case, group=f"g{number}"))
    return a_run(root, "many", records)


PEAK = "VmHWM"  # of /proc/self/status: what the process itself had most, in KiB
REPLAY = """
import sys
from kernelbench import store
assert len(store.read_standing(sys.argv[1])) == 30_000
"""
REPORT = """
import io, sys
from pathlib import Path
from rich.console import Console
from kernelbench.report.progress import Output
from kernelbench.verbs import report as verb
where = Path(sys.argv[1])
request = verb.ReportRequest(folders=(where,), format="csv", out=where / "out.csv")
verb.report(request, Output(Console(file=io.StringIO()), Console(file=io.StringIO())))
assert (where / "out.csv").read_bytes().count(b"H200") >= 10_000
"""


def spent(code: str, run: Path) -> tuple[float, float]:
    """(seconds, MiB) of a process's own, imports included: a busy machine adds none."""
    code += f"""
import re, time
peak = re.search(r"{PEAK}:\\s*(\\d+)", open("/proc/self/status").read())[1]
print(time.process_time(), int(peak) / 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(run)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"XDG_CACHE_HOME": "/dev/null/none", "OMP_NUM_THREADS": "1"},
    )
    seconds, peak = done.stdout.split()
    return float(seconds), float(peak)


@pytest.mark.slow
def test_a_journal_of_10000_jobs_is_replayed_in_5_seconds(tmp_path: Path) -> None:
    run = many(tmp_path, 10_000)
    tries = [spent(REPLAY, run) for _ in range(2)]
    assert min(seconds for seconds, _ in tries) < 5
    assert max(peak for _, peak in tries) < 150  # of 130 MB of lines


@pytest.mark.slow
def test_10000_records_are_reported_in_10_seconds_the_first_time(tmp_path: Path) -> None:
    """Where there are two cores; other processes derive other shares meanwhile."""
    run = many(tmp_path, 3_334)
    assert min(spent(REPORT, run)[0] for _ in range(2)) < 10
