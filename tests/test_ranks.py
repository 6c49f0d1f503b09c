"""Jobs over several ranks: how they agree, and what becomes of one that does not come."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from scripted import MACHINE, Script
from toy import CASE, FAST, provider, right, run, toy
from toy import Script as Clock

from kernelbench.families.zigzag_parallel.case import ParallelCase, pieces
from kernelbench.measure import environment, team
from kernelbench.measure.ceilings import Ceilings
from kernelbench.measure.failure import Failure
from kernelbench.measure.guard import Guard
from kernelbench.measure.job import Session
from kernelbench.measure.sampling import Batch
from kernelbench.measure.slowdown import DRAWS
from kernelbench.measure.task import worst
from kernelbench.measure.team import (
    Alone,
    DeadlockError,
    PeerFailedError,
    Ranks,
    first_reason,
    slowest,
)
from kernelbench.measure.telemetry import Telemetry
from kernelbench.report.progress import Silent
from kernelbench.run import runner
from kernelbench.run.runner import Options, Runner
from kernelbench.spec import Context, DType, Job, Messages, OutputError, Status, UsageError
from kernelbench.store import read

RANKED = Path(__file__).parent / "plugins" / "ranked.py"
WRONG = Failure(Status.failed, "no")


def together(*lives: Callable[[Ranks], Any]) -> list[Any]:
    """What each rank's life comes to, an error included."""
    store, found = dist.HashStore(), dict[int, Any]()

    def live(rank: int) -> None:
        try:
            found[rank] = lives[rank](Ranks(rank, len(lives), store))
        except Exception as error:  # noqa: BLE001
            found[rank] = error

    threads = [threading.Thread(target=live, args=(rank,)) for rank in range(len(lives))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[rank] for rank in range(len(lives))]


def test_everyone_hears_what_everyone_says_again_and_again() -> None:
    def life(ranks: Ranks) -> list[list[int]]:
        return [ranks.gather(10 * i + ranks.rank) for i in range(20)]

    expected = [[10 * i + rank for rank in range(3)] for i in range(20)]
    assert together(life, life, life) == [expected] * 3


def test_who_fails_is_heard_by_those_in_the_midst_of_a_step() -> None:
    def fails(ranks: Ranks) -> Any:
        ranks.gather(1)
        return ranks.fail(WRONG, f"of {ranks.rank}")

    def goes_on(ranks: Ranks) -> Any:
        ranks.gather(1)
        return ranks.gather((4, 5))

    for error in together(goes_on, fails, goes_on):
        assert isinstance(error, PeerFailedError)
        assert (error.failure, error.provider) == (replace(WRONG, reason="rank 1: no"), "of 1")
    for error in together(fails, fails):
        assert (error.failure.reason, error.provider) == ("rank 0: no", "of 0")


def test_who_fails_while_others_wait_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team, "PATIENCE", timedelta(seconds=0.2))
    _, found = together(lambda ranks: time.sleep(0.6), lambda ranks: ranks.fail(WRONG, ""))
    assert isinstance(found, DeadlockError)
    assert str(found) == "rank 1: no; the others wait for it"


def test_a_reason_on_one_rank_is_everyones() -> None:
    assert first_reason(Alone(), "why") == "why"
    lives = [lambda ranks, why=why: first_reason(ranks, why) for why in ("", "late", "too")]
    assert together(*lives) == ["rank 1: late"] * 3
    assert together(lambda r: first_reason(r, ""), lambda r: first_reason(r, "")) == ["", ""]


class Twins:
    """A team of two, in one process: the other one's samples are twice as long."""

    rank, world = 0, 2

    def gather(self, value: Any) -> list[Any]:
        times = isinstance(value, tuple) and value and all(isinstance(x, int) for x in value)
        return [value, tuple(2 * x for x in value) if times else value]

    def fail(self, failure: Failure, provider: str) -> PeerFailedError:
        return PeerFailedError(failure, provider)

    def start_line(self) -> None: ...


def test_all_blame_who_was_at_work_on_the_rank_that_failed() -> None:
    """The others had gone on to the next provider before they heard of it."""
    cpu = environment.device("cpu")

    def life(ranks: Ranks) -> tuple[str, str]:
        session = Session(cpu, Clock(), Ceilings(), Telemetry.open(None), team=ranks)
        guard = Guard(toy(), session, DType.fp32, lambda provider, phase: None)

        def step() -> None:
            guard.tell("first", "measure")
            if ranks.rank == 1:
                raise MemoryError("no room")
            guard.tell("second", "measure")
            ranks.gather(0)

        failure = guard.attempt(step)
        return failure.reason, guard.at_work

    for reason, blamed in together(life, life):
        assert reason.startswith("rank 1: MemoryError: no room (") and blamed == "first"


def test_of_errors_the_one_nearest_to_its_budget_counts() -> None:
    def error(rel: float, **more: float) -> OutputError:
        return OutputError(name="y", rel=rel, worst=0, rel_budget=1, worst_budget=1, **more)

    near, far = error(0.9), error(0.1)
    assert worst([far, near]) is near and worst([near, far]) is near
    steep = error(0.1, slope=1e-9, slope_budget=0.0)  # where nothing is allowed
    assert worst([near, steep]) is steep
    assert worst([near, error(math.nan)]).rel != near.rel


def test_a_call_takes_as_long_as_on_the_slowest_rank() -> None:
    batch = slowest(Twins(), Batch((5, 7), held=False))
    assert batch == Batch((10, 14), held=False, ranks=((5, 7), (10, 14)))
    assert slowest(Alone(), Batch((5, 7))) == Batch((5, 7))


def test_what_each_rank_took_is_kept_and_nothing_is_interleaved() -> None:
    order: list[str] = []

    class Slow(Clock):
        def batch(self, part: Any, n: int) -> Batch:
            order.append(part.name)
            batch = super().batch(part, n)
            mine = tuple(ns // 2 for ns in batch.samples_ns)
            return replace(batch, ranks=(mine, batch.samples_ns))

    cpu = environment.device("cpu")
    session = Session(cpu, Slow(), Ceilings(), Telemetry.open(None), team=Twins())
    case = _wide(CASE)
    family = toy(provider("one", right), provider("two", right), case=type(case))
    found = run(family, case, session=session, measure=replace(FAST, max_samples=64, block=2))
    for record in found.values():
        assert record.status is Status.ok, record.reason
        assert record.timing is not None
        assert [sum(t.blocks_ns, ()) for t in record.ranks] == [
            tuple(ns // 2 for ns in sum(record.timing.blocks_ns, ())),
            sum(record.timing.blocks_ns, ()),
        ]
    timed = [name for name in order if name in ("one", "two")]
    once = [name for i, name in enumerate(timed) if i == 0 or timed[i - 1] != name]
    # Once proven and sampled one after the other; then each fresh draw is one sample of each.
    assert once[:2] in (["one", "two"], ["two", "one"]) and len(once) <= 4 + 2 * (DRAWS + 1)


def _wide(case: Any) -> Any:
    from dataclasses import dataclass

    from toy import ToyCase

    from kernelbench.spec import axis

    @dataclass(frozen=True, kw_only=True)
    class WideCase(ToyCase):
        world: int = axis("ranks", 2)

    return WideCase(R=case.R, N=case.N, dtype=case.dtype)


@pytest.mark.parametrize(
    ("known", "why"),
    [
        (True, "needs 2 GPUs, this machine has 1"),
        (False, "2 ranks do it together, and this executor is one process"),
    ],
)
def test_a_job_of_more_gpus_than_there_are_is_skipped(
    known: bool, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = _wide(CASE)
    family = toy(provider("first", right), case=type(case))
    job = Job(family="toy", case=case, providers=("eager", "first"))
    script = Script(lambda request: [])
    if known:
        monkeypatch.setattr(runner, "LocalWorker", script)
    options = Options(executor=script)
    found = Runner({"toy": family}, options, Silent(None), tmp_path / "runs")  # type: ignore[arg-type]
    assert MACHINE["kind"] == "cuda"
    [records] = found.measure(job, Context(run_id="r", gpu="g", seed=3, source="s"))
    found.close()
    assert {record.status for record in records} == {Status.skipped}
    assert {record.reason for record in records} == {why}
    assert script.jobs == []


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("documents", ["none", "five", "uneven", "corpus"])
@pytest.mark.parametrize("order", ["zigzag", "contiguous"])
def test_the_pieces_of_a_rank_are_its_rows(world: int, documents: str, order: str) -> None:
    N = 4001 if order == "zigzag" else 4008
    axes = {"world": world, "N": N, "Hq": 1, "Hk": 1, "D": 8, "dtype": "fp32", "order": order}
    case = ParallelCase.from_axes(axes | {"documents": documents, "least": 40})
    had = list[int]()
    for rank in range(world):
        rows = case.layout.rows(rank)
        had += rows[rows >= 0].tolist()
        found = torch.full_like(rows, -1)
        for piece in pieces(case.layout, rank):
            first = piece.start + piece.first
            found[piece.row : piece.row + piece.rows] = torch.arange(first, first + piece.rows)
        assert torch.equal(found, rows)
    assert had == list(range(N)) if order == "contiguous" else sorted(had) == list(range(N))
    axes |= {"world": world + 1, "N": 3, "least": 2, "order": "zigzag"}
    with pytest.raises(UsageError, match=f"rank . of {world + 1} would have none of 3 tokens"):
        ParallelCase.from_axes(axes)


def test_documents_of_contiguous_rows_are_cut_where_ranks_meet() -> None:
    axes = {"world": 2, "Hq": 1, "Hk": 1, "D": 8, "order": "contiguous"}
    for N, documents, cut in ((96, "none", 96), (96, "two", 0), (96, "four", 0), (96, "five", 37)):
        case = ParallelCase.from_axes(axes | {"N": N, "documents": documents})
        assert case.cut_tokens == cut, (documents, case.layout.lengths)
    with pytest.raises(UsageError, match="N must be a multiple of world, got 97 and 2"):
        ParallelCase.from_axes(axes | {"N": 97})


def suite(folder: Path, *names: str, world: int = 2) -> Path:
    path = folder / "ranked.yaml"
    case = {"world": world, "n": 64, "dtype": "fp32", "providers": [*names]}
    families = {"ranked": {"cases": [case]}}
    path.write_text(json.dumps({"name": "ranked", "device": "cpu", "families": families}))
    return path


def started(folder: Path, *names: str, **options: Any) -> subprocess.Popen[str]:
    words = ["run", str(suite(folder, *names)), "--plugin", str(RANKED), "--out", str(folder)]
    return subprocess.Popen(
        [sys.executable, "-m", "kernelbench", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def ranks_below(folder: Path) -> list[int]:
    """Processes that write to a worker's log of this run."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                log = str((process / "fd" / "1").readlink())
                words = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if log.startswith(str(folder)) and b"run.ranks import serve" in words:
                found.append(int(process.name))
    return found


def test_ranks_are_right_or_wrong_together_and_leave_nothing_behind(tmp_path: Path) -> None:
    process = started(
        tmp_path, "eager", "wrong_on_one", "says_no", "another_shape", "dies", "right"
    )
    shown, _ = process.communicate(timeout=300)
    [folder] = [path.parent for path in tmp_path.glob("*/manifest.json")]
    found = {record.provider: record for record in read(folder)}
    assert {name: record.status for name, record in found.items()} == {
        "eager": Status.ok,
        "wrong_on_one": Status.incorrect,
        "says_no": Status.failed,
        "another_shape": Status.incorrect,
        "dies": Status.crashed,
        "right": Status.ok,
    }, shown
    for name in ("eager", "right"):  # 64 numbers of 4 bytes, summed as in a ring
        assert found[name].messages == Messages(received_bytes=256)
    assert found["wrong_on_one"].reason.startswith("rank 1: y: error")
    assert found["says_no"].reason.startswith("rank 1: ValueError: rank 1 will not (")
    assert found["another_shape"].reason.startswith("rank 1: y has shape (63,), the baseline's")
    assert found["dies"].reason == "compile: rank 1 of 2: killed by SIGKILL"
    assert process.returncode == 1
    assert not ranks_below(tmp_path)


@pytest.mark.slow
def test_who_fails_before_the_others_come_ends_the_job_with_its_reason(tmp_path: Path) -> None:
    process = started(tmp_path, "eager", "before_the_others", "right")
    process.communicate(timeout=300)
    [folder] = [path.parent for path in tmp_path.glob("*/manifest.json")]
    found = {record.provider: record for record in read(folder)}
    assert found["before_the_others"].status is Status.crashed
    reason = found["before_the_others"].reason
    assert "rank 1: ValueError: and the others wait (" in reason
    assert reason.endswith("; the others wait for it")
    assert found["right"].status is found["eager"].status is Status.ok


@pytest.mark.slow
def test_zigzag_attention_over_two_ranks_is_proven(tmp_path: Path) -> None:
    case = {"world": 2, "N": 41, "Hq": 2, "Hk": 1, "D": 16, "dtype": "fp32", "least": 4}
    cases = [case | {"documents": "uneven", "providers": ["baseline", "triton_fused"]}]
    families = {"zigzag_parallel": {"modes": ["fwd", "bwd"], "cases": cases}}
    path = tmp_path / "two.yaml"
    path.write_text(json.dumps({"name": "two", "device": "cpu", "families": families}))
    words = [sys.executable, "-m", "kernelbench", "check", str(path), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    records = json.loads(done.stdout)
    assert [record["status"] for record in records] == ["ok"] * 4, done.stdout + done.stderr


@pytest.mark.parametrize(
    "which", ["who started it", pytest.param("the launcher", marks=pytest.mark.slow)]
)
def test_no_rank_outlives(which: str, tmp_path: Path) -> None:
    process = started(tmp_path, "eager", "right", start_new_session=True)
    while len(ranks := ranks_below(tmp_path)) < 2:
        assert process.poll() is None
        time.sleep(0.1)
    if which == "the launcher":
        stat = Path(f"/proc/{ranks[0]}/stat").read_text().rpartition(")")[2].split()
        os.kill(int(stat[1]), signal.SIGKILL)
    else:
        process.kill()
    for _ in range(100):
        if not set(ranks) & {*ranks_below(tmp_path)}:
            break
        time.sleep(0.1)
    assert not set(ranks) & {*ranks_below(tmp_path)}
    process.kill()
    process.communicate(timeout=60)
