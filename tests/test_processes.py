"""Several processes of a run: measured apart, kept apart, and one row of every table."""

import io
import json
import math
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from kernelbench import metrics, store
from kernelbench.numbers.statistics import Interval, over_processes
from kernelbench.report import tables
from kernelbench.report.means import mean, over_what
from kernelbench.report.progress import Output
from kernelbench.run import plan
from kernelbench.run.loop import in_processes, remaining
from kernelbench.run.runner import Options
from kernelbench.spec import (
    KernelbenchError,
    Measure,
    OutputError,
    RunRecord,
    Status,
    Timing,
    UsageError,
    migrations,
)
from kernelbench.store.processes import together
from kernelbench.suite.request import Selection
from kernelbench.verbs.run import measure
from tests.test_metrics import fused, ours, record, timing

PLUGIN = str(Path(__file__).parent / "plugins" / "falls.py")
SILENT = Output(Console(file=io.StringIO()), Console(file=io.StringIO()), quiet=True)
SUITE = """
name: falls
device: cpu
measure: {{min_samples: 2, max_samples: 4, block: 2, max_seconds: 0.5, processes: {processes}}}
families:
  falls:
    providers: [{providers}]
    cases: [{{n: [{sizes}], dtype: fp32}}]
"""


def go(path: Path, **asked: Any) -> tuple[int, Path]:
    out = path.parent / "out"
    plans = plan.new([str(path)], Selection(plugins=(PLUGIN,), device="cpu", **asked))
    code = measure(plans, Options(), out, SILENT)
    (folder,) = store.find_runs([out])
    return code, folder


def suite(folder: Path, providers: str, sizes: str = "8", processes: int = 3) -> Path:
    path = folder / "falls.yaml"
    path.write_text(SUITE.format(providers=providers, sizes=sizes, processes=processes))
    return path


def of(process: int, *records: RunRecord, **facts: Any) -> list[RunRecord]:
    """The same job in another process."""
    return [replace(r, process=process, group=f"g{process}", **facts) for r in records]


def run_of(*speedups: float) -> list[RunRecord]:
    """A baseline of 10 µs, and ours of so many times its speed, a process each."""
    found = []
    for process, speedup in enumerate(speedups):
        found += of(process, record(), ours(timing=timing(10 / speedup)))
    return found


def test_a_run_of_three_processes_has_a_record_of_each_and_a_row_of_all(tmp_path: Path) -> None:
    code, folder = go(suite(tmp_path, "plain, again, raises", sizes="8, 9"))
    apart = store.read_apart(folder)
    measured = [(r.case, r.process) for r in apart if r.provider == "again"]
    cases = ["n8-fp32-fwd", "n9-fp32-fwd"]
    assert measured == [(case, process) for process in range(3) for case in cases]
    assert [r.process for r in apart if r.provider == "raises"] == [0, 0]  # once is enough
    groups = {(r.process, r.case): r.group for r in apart if r.provider == "plain"}
    assert len(set(groups.values())) == 6
    rows = store.read(folder)
    assert len(rows) == 6 and code == 1
    again = next(r for r in rows if r.provider == "again")
    assert [r.process for r in again.processes] == [0, 1, 2]
    assert len({(r.utc, r.timing.blocks_ns) for r in again.processes if r.timing}) == 3
    assert again.trials and not any(r.trials for r in again.further)
    assert len(list(folder.glob("worker*.log"))) == 1
    table = metrics.frame(rows)
    assert set(table[table.provider == "again"].processes) == {3}
    assert (folder / "results.csv").read_text().count("\n") == 1 + 6


def test_every_process_is_another_one(tmp_path: Path) -> None:
    plugin = tmp_path / "pids.py"
    source = Path(PLUGIN).read_text()
    plugin.write_text(f"{source}\nwith open({str(tmp_path / 'pids')!r}, 'a') as out:\n"
                      "    import os, sys\n"
                      "    print(os.getpid(), file=out)\n")  # fmt: skip
    path = suite(tmp_path, "plain", processes=2)
    plans = plan.new([str(path)], Selection(plugins=(str(plugin),), device="cpu"))
    measure(plans, Options(), tmp_path / "out", SILENT)
    pids = set((tmp_path / "pids").read_text().split()) - {str(os.getpid())}
    assert len(pids) == 2


@pytest.mark.slow
def test_a_baseline_that_took_its_worker_down_is_not_tried_in_the_next_process(
    tmp_path: Path,
) -> None:
    plugin, deaths = tmp_path / "falling_baseline.py", tmp_path / "deaths"
    falls = f"falls(lambda: (open({str(deaths)!r}, 'a').write('x'), os._exit(3)))"
    source = Path(PLUGIN).read_text()
    before = '"plain",\n            Role.baseline,\n            double,'
    assert before in source
    plugin.write_text(source.replace(before, before.replace("double,", f"{falls},")))
    path = suite(tmp_path, "plain, again", processes=2)
    plans = plan.new([str(path)], Selection(plugins=(str(plugin),), device="cpu"))
    measure(plans, Options(), tmp_path / "out", SILENT)
    (folder,) = store.find_runs([tmp_path / "out"])
    found = [(r.provider, r.process, r.status) for r in store.read_apart(folder)]
    assert found == [
        ("plain", 0, Status.crashed),
        ("again", 0, Status.ok),
        ("again", 1, Status.ok),
    ]
    assert deaths.stat().st_size == 1


@pytest.mark.slow
def test_resume_goes_on_in_the_process_that_was_cut_short(tmp_path: Path) -> None:
    path = suite(tmp_path, "plain, again", sizes="8, 9", processes=2)
    _, folder = go(path)
    whole = (folder / "records.jsonl").read_text().splitlines()
    (folder / "records.jsonl").write_text("".join(f"{line}\n" for line in whole[:6]))
    plans = plan.resumed(folder, [], Selection())
    assert measure(plans, Options(), tmp_path, SILENT) == 0
    lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    assert [(x["case"], x["process"]) for x in lines[6:]] == [("n9-fp32-fwd", 1)] * 2


def test_quick_is_one_process(tmp_path: Path) -> None:
    _, folder = go(suite(tmp_path, "plain"), quick=True)
    assert [r.process for r in store.read_apart(folder)] == [0]


@pytest.mark.parametrize("processes", [0, 101])
def test_a_number_of_processes_that_is_none(processes: int) -> None:
    with pytest.raises(UsageError, match="1 <= processes <= 100"):
        Measure(processes=processes)


def test_all_jobs_of_a_process_come_before_the_next() -> None:
    from kernelbench import families
    from kernelbench.suite.request import load

    asked = Selection(overrides=("measure.processes=2",))
    _, jobs = load(asked, families.load(()), "configs/smoke.yaml")
    first, second = in_processes(jobs)
    assert [job.id for job in first] == [job.id for job in second] == [job.id for job in jobs]
    assert {job.process for job in second} == {1}
    sources = {job.family: "s" for job in jobs}
    assert remaining(second, [], sources) == (second, [])


def test_what_is_wrong_in_one_process_is_wrong() -> None:
    records = run_of(2, 2)
    bad = replace(records[3], status=Status.incorrect, reason="error 1", timing=None)
    (baseline, mine) = together([*records[:3], bad])
    assert (mine.status, mine.reason) == (Status.incorrect, "in process 2: error 1")
    assert not metrics.timed(mine) and metrics.timed(baseline)
    assert metrics.speedup(mine, baseline) is None
    row = metrics.dicts(metrics.frame([baseline, mine]))[1]
    assert math.isnan(row["median_us"]) and row["timer"] == ""  # nothing to be taken for a time
    assert over_what(metrics.dicts(metrics.frame([baseline, mine]))) == "over 2 processes"


def test_who_fell_before_its_config_was_chosen_is_not_forgotten() -> None:
    records = [replace(r, config={"BLOCK": 64}) for r in run_of(2, 2, 2)]
    fell = replace(records[3], status=Status.crashed, reason="SIGSEGV", timing=None, config=None)
    (_, mine) = together([*records[:3], fell, *records[4:]])
    assert (mine.status, mine.reason) == (Status.crashed, "in process 2: SIGSEGV")


@pytest.mark.parametrize(
    "other",
    [{"source": "changed"}, {"gpu_uuid": "GPU-2"}, {"method": 1}, {"config": {"BLOCK": 64}}],
)
def test_what_is_not_alike_is_not_taken_together(other: dict[str, Any]) -> None:
    records = [*run_of(2), *of(1, *(replace(r, **other) for r in run_of(2)))]
    assert [len(r.processes) for r in together(records)] == [1, 1]


def test_a_speedup_is_over_processes() -> None:
    found = (2.0, 2.1, 2.4)
    baseline, mine = together(run_of(*found))
    speedup = metrics.speedup(mine, baseline)
    assert speedup is not None
    logs = [math.log(speedup.each[n]) for n in range(3)]
    assert speedup.each == pytest.approx(dict(enumerate(found)), rel=1e-3)
    middle = sum(logs) / 3
    deviation = math.sqrt(sum((x - middle) ** 2 for x in logs) / 2)
    arm = 4.302653 * deviation / math.sqrt(3)
    ends = (math.exp(middle), math.exp(middle - arm), math.exp(middle + arm))
    assert (speedup.over.mid, speedup.over.lo, speedup.over.hi) == pytest.approx(ends, rel=1e-5)
    row = metrics.dicts(metrics.frame([baseline, mine]))[1]
    assert row["speedup_each"].count(";") == 2 and row["processes"] == 3
    assert row["lo_us"] < min(10 / x for x in found) < max(10 / x for x in found) < row["hi_us"]


def test_a_process_whose_gate_did_not_hold_does_not_count() -> None:
    records = run_of(2.0, 2.0, 3.0)
    loose = replace(records[5], timing=timing(10 / 3, timer="ungated"))
    baseline, mine = together([*records[:5], loose])
    speedup = metrics.speedup(mine, baseline)
    assert speedup is not None and speedup.each == pytest.approx({0: 2, 1: 2}, rel=1e-3)
    assert metrics.dicts(metrics.frame([baseline, mine]))[1]["processes"] == 2


def test_its_other_clocks_are_there_though_its_samples_do_not_count() -> None:
    records = run_of(2.0, 2.0, 2.0)
    loose = timing(5, timer="ungated", host_ns=(7_000,), graph_ns=(4_000,))
    records[1] = replace(records[1], timing=loose, flags=("ungated", "shared"))
    row = metrics.dicts(metrics.frame(together(records)))[1]
    assert (row["timer"], row["processes"], row["flags"]) == ("gated", 2, "shared")
    assert (row["host_us"], row["graph_us"]) == (7.0, 4.0)


def test_errors_and_memory_are_the_largest_of_any_process() -> None:
    def error(rel: float) -> tuple[OutputError, ...]:
        return (OutputError(name="y", rel=rel, worst=rel, rel_budget=0.01, worst_budget=0.1),)

    records = run_of(2.0, 2.0)
    records[1] = replace(records[1], errors=error(1e-3), peak_bytes=2**20)
    records[3] = replace(records[3], errors=error(2e-3), peak_bytes=2**21)
    row = metrics.dicts(metrics.frame(together(records)))[1]
    assert (row["error_rel"], row["error_max"], row["peak_mem_mib"]) == (2e-3, 2e-3, 2.0)


def test_no_line_has_what_further_processes_found() -> None:
    merged = together(run_of(2.0, 2.0))[1]
    line = merged.to_json()
    assert merged.further and RunRecord.from_json(line) == replace(merged, further=())
    with pytest.raises(KernelbenchError, match="unknown field 'further'"):
        RunRecord.from_json(line[:-1] + ',"further":[]}')


@pytest.mark.parametrize(("timing", "method"), [({}, 1), ({"places": [0]}, 0), (None, 1)])
def test_what_schema_1_was_timed_by(timing: dict[str, Any] | None, method: int) -> None:
    facts = {"schema": 1, "timing": timing}
    assert migrations.RECORDS[1](facts)["method"] == method


def test_the_noise_floor_keeps_the_step_of_the_clock_whatever_each_process_takes_off() -> None:
    def noisy(*overheads: int) -> float | None:
        records = []
        for process, overhead in enumerate(overheads):
            same = tuple([(3200,) * 4 + (3232,) * 4] * 16)
            one = Timing(timer="gated", blocks_ns=same, again_ns=same, overhead_ns=overhead)
            records += of(process, record(timing=one))
        return metrics.noise_pct(together(records)[0])

    alike, apart = noisy(992, 992, 992), noisy(992, 993, 995)
    assert alike is not None and apart == pytest.approx(alike, rel=0.01)
    assert alike >= 32 / 2240 * 100 * 0.99


def test_processes_that_agree_are_known_to_half_a_step_of_the_clock() -> None:
    same = {"timing": timing(3.2, quantum_ns=32)}
    records = [r for p in range(3) for r in of(p, record(**same), ours(**same))]
    baseline, mine = together(records)
    found = metrics.speedup(mine, baseline)
    assert found is not None
    assert (found.over.lo, found.over.hi) == pytest.approx((0.99, 3.216 / 3.184))  # of each alone
    row = metrics.dicts(metrics.frame([baseline, mine]))[1]
    assert (row["lo_us"], row["hi_us"]) == pytest.approx((3.2 - 0.016, 3.2 + 0.016))


def test_the_interval_over_three_processes_covers_what_it_says() -> None:
    random_, held, trials = random.Random(3), 0, 2000
    for _ in range(trials):
        own = [math.exp(random_.gauss(0, 0.01)) for _ in range(3)]
        later = math.exp(sum(random_.gauss(0, 0.01) for _ in range(6)) / 6)
        over = over_processes([Interval(x, x, x) for x in own])
        held += over.lo <= later <= over.hi
    assert 0.91 <= held / trials <= 0.95  # of the mean of six further ones; 0.928 by Student's t


def test_processes_that_agree_by_chance_are_no_surer_than_each_of_them() -> None:
    alike = [Interval(100.0 + n / 100, 99.0, 101.0 + n) for n in range(3)]
    assert (over := over_processes(alike)).lo == 99.0 and over.hi == 103.0
    apart = over_processes([Interval(mid, mid - 0.1, mid + 0.1) for mid in (100.0, 101.0, 102.0)])
    assert apart.lo < 99 and apart.hi > 103  # Student's t alone


@pytest.mark.parametrize("found", [[], [1.0, 0.0], [1.0, -1.0]])
def test_over_processes_refuses(found: list[float]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        over_processes([Interval(x, x, x) for x in found])


def row_of(case: str, *each: float | None, arm: float = 1.0001) -> dict[str, Any]:
    found = [value for value in each if value]
    mid = math.exp(sum(map(math.log, found)) / len(found))
    facts = {"run_id": "r", "family": "f", "case": case, "provider": "triton", "accuracy": "exact"}
    facts |= {"role": "triton_fused", "flags": "", "processes": len(found), "noise_pct": 0.1}
    told = ";".join("" if value is None else f"{value:.6g}" for value in each)
    ends = {"speedup": mid, "speedup_lo": mid / arm, "speedup_hi": mid * arm}
    return facts | ends | {"speedup_each": told if len(found) > 1 else ""}


def test_a_mean_is_formed_in_the_processes_that_all_cases_share() -> None:
    rows = [row_of("a", 1.0, 1.1, 1.2), row_of("b", None, 1.3, 1.4)]
    found = mean(rows, rows, "speedup")
    assert found is not None and (found.processes, found.within) == (2, "over 2 processes")
    assert found.mid == pytest.approx(math.exp((math.log(1.1 * 1.3) + math.log(1.2 * 1.4)) / 4))
    apart = [row_of("a", 1.0, 1.1, None), row_of("b", None, None, 1.3, 1.4)]
    alone = mean(apart, apart, "speedup")
    assert alone is not None and (alone.processes, alone.within) == (1, "from those of its cases")
    one = [row_of("a", 1.0), row_of("b", 1.3)]
    within = mean(one, one, "speedup")
    assert within is not None and within.within == "within this run"


def test_a_mean_of_processes_that_agree_is_no_better_known_than_its_cases() -> None:
    rows = [row_of(case, 1.01, 1.01, 1.01, arm=1.01) for case in "ab"]
    found = mean(rows, rows, "speedup")
    assert found is not None and found.lo < 1.009 < 1.011 < found.hi


def test_means_are_over_processes_and_tables_say_so() -> None:
    one, two = ({"case": name} for name in ("a", "b"))
    records = []
    for process, factor in enumerate((1.0, 1.02, 1.05)):
        for case in (one, two):
            mine = ours(timing=timing(4 * factor), **case)
            records += of(process, record(**case), fused(**case), mine)
    rows = metrics.dicts(metrics.frame(together(records)))
    found = mean([row for row in rows if row["provider"] == "triton"], rows)
    assert found is not None and found.processes == 3
    each = [math.log(5 / 4 / f) for f in (1.0, 1.02, 1.05)]
    assert math.log(found.mid) == pytest.approx(sum(each) / 3, rel=1e-2)
    assert found.lo < 5 / 4 / 1.05 and found.hi > 5 / 4
    assert over_what(rows) == "over 3 processes"
    shown = str(tables.summary(metrics.filled(metrics.rows_of(together(records)))))
    assert "over 3 processes)" in shown
    alone = metrics.frame(together(records[:6]))
    assert "within this run)" in str(tables.summary(metrics.dicts(alone)))
    assert "of one process" in over_what(metrics.dicts(alone))
