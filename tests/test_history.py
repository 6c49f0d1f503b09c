"""One metric over runs: levels that changed are marked, noise is not."""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from simulated import scaled
from test_compare import AA, job, kb, saved

from kernelbench import metrics
from kernelbench.compare import trends
from kernelbench.compare.history import LEAST_STEP, Narrowing, Series, level_error, series
from kernelbench.compare.noise import ASSUMED_NS, MEASURED
from kernelbench.compare.sides import Run, read_runs
from kernelbench.numbers.significance import change_points
from kernelbench.spec import RunRecord, UsageError

NOISE = 0.004


def runs_of(factors: Sequence[float], records: Sequence[RunRecord] | None = None) -> list[Run]:
    """A run an hour; ours takes so many times as long in each."""
    found = []
    for n, factor in enumerate(factors):
        utc = f"2026-01-{1 + n // 24:02}T{n % 24:02}:00:00+00:00"
        some = [
            scaled(replace(r, utc=utc, run_id=f"run{n:02}"), factor if r.role.ours else 1.0)
            for r in (records or job())
        ]
        found.append(Run(Path(f"run{n:02}"), {}, tuple(some)))
    return found


def one(runs: Sequence[Run], metric: str = "median_us", provider: str = "triton") -> Series:
    return next(s for s in series(runs, metric, Narrowing()) if s.provider == provider)


def noisy(count: int, seed: int = 1) -> list[float]:
    return [*np.random.default_rng(seed).normal(1, NOISE, count)]


def test_a_flat_series_has_no_change_points() -> None:
    random = np.random.default_rng(3)
    found = [change_points(random.normal(0, 1, 30).tolist(), 1.0, 0.0) for _ in range(300)]
    assert sum(map(bool, found)) <= 15
    many = [
        change_points(random.normal(0, 1, 30).tolist(), 1.0, 0.0, series=300) for _ in range(300)
    ]
    assert not any(many)


def test_a_step_is_found_where_it_is() -> None:
    random = np.random.default_rng(4)
    for _ in range(20):
        values = [*random.normal(0, 1, 12), *random.normal(6, 1, 9), *random.normal(1, 1, 9)]
        found = change_points(values, 1.0, 0.0)
        assert len(found) == 2
        assert abs(found[0] - 12) <= 1 and abs(found[1] - 21) <= 1


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([], []),
        ([1.0], []),
        ([1.0, 9.0], []),
        ([0.0, 0.0, 9.0], []),  # a level holds two
        ([0.0, 0.0, 9.0, 9.0], [2]),
        ([0.0, 0.0, 0.0, 9.0, 0.0, 0.0], []),  # an outlier is no level
        ([0.0] * 5 + [0.5] * 5, []),  # smaller than `least`
        ([0.0] * 5 + [0.6] * 5 + [2.0] * 5, [10]),  # and taken back beside a larger one
    ],
)
def test_levels(values: list[float], found: list[int]) -> None:
    assert change_points(values, 0.1 if max(values, default=0) < 5 else 3.0, 1.0) == found


def test_a_slowdown_is_marked_with_its_size_and_its_first_run() -> None:
    flat = one(runs_of(noisy(12)))
    assert flat.changes == ()
    stepped = one(runs_of([*noisy(8), *(1.05 * v for v in noisy(6, 2))]))
    assert [point.run for point in stepped.changes] == ["run08"]
    assert stepped.changes[0].change == pytest.approx(0.05, abs=0.01)
    assert "│" in trends.bars(stepped)
    assert trends.bars(stepped).index("│") == 8
    assert "│" not in trends.bars(flat)


def changes_of(logs: list[float], rows: int) -> list[int]:
    """As `history` finds them in so many series of a call of 100 µs: by an error of its own."""
    assumed = math.hypot(MEASURED, ASSUMED_NS / 100_000)
    return change_points(logs, level_error(logs, assumed), LEAST_STEP, series=rows)


@pytest.mark.parametrize("rows", [1, 13, 250])
def test_one_outlier_is_no_level_wherever_it_lies(rows: int) -> None:
    random, marked = np.random.default_rng(rows), 0
    for _ in range(300):
        values = random.normal(0, 0.003, 12)
        values[random.integers(12)] += 0.05
        marked += bool(changes_of(values.tolist(), rows))
    assert marked <= 3


@pytest.mark.parametrize("rows", [1, 13, 250])
@pytest.mark.parametrize("before", [4, 10, 30])
def test_a_step_of_2_percent_is_found_within_two_runs(before: int, rows: int) -> None:
    random, found = np.random.default_rng(before), 0
    for _ in range(200):
        values = random.normal(0, 0.003, before + 2)
        values[before:] += 0.02
        found += changes_of(values.tolist(), rows) == [before]
    assert found >= (180 if (before, rows) == (4, 250) else 190)  # few runs, many rows: 90 %


def test_through_runs_an_outlier_is_none_and_a_step_is_one() -> None:
    random = np.random.default_rng(5)
    for _ in range(20):
        factors = random.normal(1, 0.003, 12)
        factors[random.integers(12)] *= 1.05
        assert one(runs_of([*factors])).changes == ()
    steps = [*random.normal(1, 0.003, 10), *random.normal(1.02, 0.003, 2)]
    assert [p.run for p in one(runs_of(steps)).changes] == ["run10"]


@pytest.mark.parametrize(
    "facts", [{"gpu_uuid": "GPU-2"}, {"method": 1}, {"gpu": "NVIDIA H100"}, {"suite": "other"}]
)
def test_another_card_suite_or_method_is_another_series(facts: dict[str, Any]) -> None:
    runs = runs_of([1, 1, 1, 1.1, 1.1, 1.1])
    manifests = [{"suite": "s"}] * 3 + [{"suite": facts.get("suite", "s")}] * 3
    known = {name: value for name, value in facts.items() if name != "suite"}
    later = [replace(r, records=tuple(replace(x, **known) for x in r.records)) for r in runs[3:]]
    apart = [replace(r, manifest=m) for r, m in zip([*runs[:3], *later], manifests, strict=True)]
    found = [s for s in series(apart, "median_us", Narrowing()) if s.provider == "triton"]
    assert [len(s.points) for s in found] == [3, 3]
    assert not any(s.changes for s in found)


def test_rows_of_one_run_are_folded(folder: Path) -> None:
    few = job(case="only-once", run_id="run99")
    saved(folder / "one-more", few)
    shown = kb("history", folder).stdout
    assert "only-once" not in shown
    assert "3 rows that have one run: --format csv lists them" in shown
    assert "only-once" in kb("history", folder, "--format", "csv").stdout


def test_runs_stand_in_the_order_of_time_whatever_their_names() -> None:
    runs = runs_of([1, 1, 1, 1.1, 1.1, 1.1])
    shuffled = [runs[n] for n in (4, 0, 5, 2, 1, 3)]
    assert [p.run for p in one(shuffled).points] == [f"run{n:02}" for n in range(6)]
    assert [p.run for p in one(shuffled).changes] == ["run03"]


def test_other_metrics_change_too_and_the_other_way() -> None:
    runs = runs_of([1, 1, 1, 0.5, 0.5, 0.5])
    assert one(runs, "gbps").changes[0].change == pytest.approx(1, rel=1e-3)
    assert one(runs, "speedup").changes[0].change == pytest.approx(1, rel=1e-3)
    assert not one(runs, "flops").changes


def test_a_metric_that_may_be_0_or_negative() -> None:
    records = [replace(r, peak_bytes=0) for r in job()]
    later = [replace(r, peak_bytes=4 * 2**20) for r in job()]
    runs = [*runs_of([1, 1, 1], records), *runs_of([1] * 6, later)[3:]]
    assert [p.run for p in one(runs, "peak_mem_mib").changes] == ["run03"]


def test_six_real_runs_of_one_build_show_no_change() -> None:
    runs, _ = read_runs(AA)
    for metric in ("median_us", "gbps", "speedup"):
        found = series(runs, metric, Narrowing())
        assert len(found) == 13
        assert {len(s.points) for s in found} == {6}
        assert not [s for s in found if s.changes]


def test_a_clocks_own_numbers_are_those_of_the_csv() -> None:
    run = runs_of([1.0])[0]
    for metric in ("median_us", "lo_us", "p80_us", "iqr_pct", "samples"):
        table = metrics.frame(run.records)
        told = [s.points[0].value for s in series([run], metric, Narrowing())]
        assert told == pytest.approx([float(v) for v in table[metric]])


def test_wrong_and_ungated_times_are_left_out() -> None:
    runs = runs_of([1, 1, 1])
    kernel = runs[1].records[2]
    assert kernel.timing is not None
    loose = replace(kernel, timing=replace(kernel.timing, timer="ungated"))
    runs[1] = replace(runs[1], records=(*runs[1].records[:2], loose))
    assert [p.run for p in one(runs).points] == ["run00", "run02"]


def test_what_no_run_has_is_refused() -> None:
    runs = runs_of([1, 1])
    for metric, wanted, told in (
        ("medain_us", Narrowing(), "did you mean 'median_us'?"),
        ("provider", Narrowing(), "no number 'provider'"),
        ("host_us", Narrowing(), "no run has a host_us"),
        ("median_us", Narrowing(providers=["tritn"]), "--provider: no provider 'tritn'"),
        ("median_us", Narrowing(families=["rotary"]), "--family: no family 'rotary'"),
        ("median_us", Narrowing(cases=["M1"]), "--case: no case 'M1'"),
    ):
        with pytest.raises(UsageError) as error:
            series(runs, metric, wanted)
        assert told in str(error.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for run in runs_of([1, 1, 1, 1.2, 1.2, 1.2]):
        saved(tmp_path / "runs" / run.path, run.records)
    return tmp_path / "runs"


def test_the_verb_prints_tables_csv_and_json(folder: Path) -> None:
    done = kb("history", folder)
    assert done.exit_code == 0
    assert "median_us (measured), of 6 runs, NVIDIA H200" in done.stdout
    assert "▁▁▁│███" in done.stdout
    assert "+20.0%  rms_norm M1024-N512-bf16-fwd  triton" in done.stdout
    assert "run03, 2026-01-01T03:00:00+00:00" in done.stdout
    args: tuple[Any, ...] = ("history", folder, "--provider", "triton", "--metric", "gbps")
    lines = list(csv.DictReader(io.StringIO(kb(*args, "--format", "csv").stdout)))
    assert [line["change_pct"] for line in lines] == ["", "", "", "-16.6667", "", ""]
    found = json.loads(kb(*args, "--format", "json").stdout)
    assert [s["provider"] for s in found] == ["triton"]
    assert found[0]["points"][3]["change"] == pytest.approx(-1 / 6, rel=1e-3)
    flat = kb("history", folder, "--provider", "eager")
    assert "No change of level in 1 series" in flat.stdout


def test_the_head_says_what_kind_a_number_is() -> None:
    runs, _ = read_runs(AA)
    for metric, told in (("median_us", "median_us (measured)"), ("gbps", "gbps (mixed: computed")):
        out = io.StringIO()
        trends.render(series(runs, metric, Narrowing()), Console(file=out, width=140))
        assert out.getvalue().startswith(told)


def test_the_verbs_errors_are_one_line(folder: Path, tmp_path: Path) -> None:
    for args, told in (
        ((tmp_path / "none",), "no such file or folder"),
        ((folder, "--format", "md"), "no format 'md'"),
        ((folder, "--metric", "speed"), "no number 'speed'"),
    ):
        done = kb("history", *args)
        assert done.exit_code == 2
        assert told in done.stderr


@pytest.mark.parametrize("width", [80, 140])
def test_the_table_fits(width: int) -> None:
    runs, _ = read_runs(AA)
    out = io.StringIO()
    trends.render(series(runs, "median_us", Narrowing()), Console(file=out, width=width))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert "122.5 µs" in text
