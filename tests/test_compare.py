"""What became of a build: verdicts from samples, their causes, and the gate; six real runs of one
build and runs drawn from them, which are a simulation."""

import csv
import io
import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from simulated import as_measured, drawn_side, scaled
from test_metrics import blocks, fused, ours, record, timing
from typer.main import get_command
from typer.testing import CliRunner

from kernelbench import store
from kernelbench.cli import app
from kernelbench.compare import formats, noise, tables, wording
from kernelbench.compare.attribution import other_card
from kernelbench.compare.gate import FAIL_ON, KINDS, Gate, gate_of
from kernelbench.compare.rows import Change, Comparison, RowChange
from kernelbench.compare.sides import Run, Side, read_runs
from kernelbench.compare.verdicts import compare
from kernelbench.numbers.significance import false_discovery, t_reach, two_sided_p
from kernelbench.numbers.statistics import log_medians
from kernelbench.spec import (
    SCHEMA,
    Accuracy,
    KernelbenchError,
    Role,
    RunRecord,
    Status,
    Traffic,
    UsageError,
)
from kernelbench.store.processes import together

AA = Path(__file__).parent.parent / "results" / "h200" / "aa"
VERSIONS = {"torch": "2.11.0", "triton": "3.6.0"}
PLANTED = 1.05


def manifest(versions: Mapping[str, str] = VERSIONS, **facts: Any) -> dict[str, Any]:
    machine = {"kind": "cuda", "name": "NVIDIA H200", "versions": dict(versions)}
    return {"schema": SCHEMA, "suite": "s", "kernelbench": "0.1.0", "machine": machine} | facts


def job(ours_us: float = 100, base_us: float = 400, **facts: Any) -> list[RunRecord]:
    """A baseline with its second run, PyTorch's own, and ours; on an idle machine."""
    facts = {"source": "s1", "telemetry": {"sm_mhz": 1980.0}} | facts
    again = timing(base_us, again_ns=blocks(base_us))
    return [
        record(timing=again, **facts),
        fused(timing=timing(base_us / 2), **facts),
        ours(timing=timing(ours_us), **facts),
    ]


def side(name: str, *runs: list[RunRecord], **facts: Any) -> Side:
    known = manifest(**facts)
    return Side(name, tuple(Run(Path(f"{name}{n}"), known, tuple(r)) for n, r in enumerate(runs)))


def row(found: Comparison, provider: str = "triton") -> RowChange:
    return next(r for r in found.rows if r.provider == provider)


def held(before: list[RunRecord], after: list[RunRecord], **facts: Any) -> Comparison:
    return compare(side("a", before), side("b", after, **facts))


def kb(*args: str | Path) -> Any:
    return CliRunner().invoke(app, [*map(str, args)], env={"COLUMNS": "100", "NO_COLOR": "1"})


def saved(folder: Path, records: Iterable[RunRecord], **facts: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / store.MANIFEST).write_text(json.dumps(manifest(**facts)))
    named = (replace(record, run_id=str(folder)) for record in records)
    (folder / store.RECORDS).write_text("".join(f"{r.to_json()}\n" for r in named))
    return folder


@pytest.fixture(scope="module")
def real() -> tuple[Run, ...]:
    runs, problems = read_runs(AA)
    assert not problems
    assert len(runs) == 6
    return runs


# Six real runs of one build, in separate processes on an H200.


@pytest.mark.parametrize("runs_a_side", [1, 2, 3])
def test_real_runs_of_one_build_raise_no_alarm(real: tuple[Run, ...], runs_a_side: int) -> None:
    splits = [
        (some, others)
        for some in combinations(real, runs_a_side)
        for others in combinations([run for run in real if run not in some], runs_a_side)
        if some[0].path < others[0].path
    ]
    assert len(splits) == {1: 15, 2: 45, 3: 10}[runs_a_side]
    found = [compare(Side("a", some), Side("b", others)) for some, others in splits]
    verdicts = Counter(r.verdict for one in found for r in one.rows)
    assert set(verdicts) == {Change.same, Change.unsure}
    assert verdicts[Change.same] > {1: 0.45, 2: 0.65, 3: 0.65}[runs_a_side] * verdicts.total()
    assert not any(row.regression for one in found for row in one.rows)
    assert {one.exit_code for one in found} == {2}  # the rows below 50 µs are not known to 3 %
    assert {one.judged for one in found} <= {10, 11} and {one.earlier for one in found} == {13}
    assert not any(one.differences for one in found)


def test_earlier_runs_tell_what_single_ones_cannot(real: tuple[Run, ...]) -> None:
    a, earlier = Side("a", real[:1]), real[2:]
    slow = Run(Path("slow"), real[1].manifest, tuple(scaled(r, 1.05) for r in real[1].records))
    for build, moved in ((real[1], 0), (slow, 10)):
        known = compare(a, Side("b", (build,)), earlier=earlier)
        assert sum(r.verdict.moved for r in known.rows) >= moved
        if not moved:
            assert not [r for r in known.rows if r.verdict.moved]
    assert "4 earlier ones" in " ".join(wording.notes(known))


# Simulations: runs drawn from those six with replacement, their rounds drawn anew.


@pytest.mark.parametrize("runs_a_side", [1, 3])
def test_drawn_runs_of_one_build_raise_no_alarm_in_20_pairs(
    real: tuple[Run, ...], runs_a_side: int
) -> None:
    random = np.random.default_rng(20)
    for _ in range(20):
        a, b = (drawn_side(n, real, runs_a_side, random, as_measured) for n in "ab")
        found = compare(a, b)
        assert not [r for r in found.rows if r.verdict.moved]
        assert found.exit_code != 3


@pytest.mark.parametrize("runs_a_side", [3, 5])
def test_a_planted_slowdown_of_5_percent_is_found_in_19_of_20(
    real: tuple[Run, ...], runs_a_side: int
) -> None:
    def slower(one: RunRecord) -> float:
        planted = (one.family, one.provider) == ("rms_norm", "triton_fused")
        return PLANTED if planted else 1.0

    random, hits, false = np.random.default_rng(5), 0, 0
    for _ in range(20):
        a = drawn_side("a", real, runs_a_side, random, as_measured)
        found = compare(a, drawn_side("b", real, runs_a_side, random, slower))
        worse = {(r.case, r.family, r.provider) for r in found.rows if r.regression}
        long = {(f"M32768-N4096-bf16-{m}", "rms_norm", "triton_fused") for m in ("fwd", "bwd")}
        hits += long <= worse and found.exit_code == 3
        false += bool({(family, provider) for _, family, provider in worse} - {long.pop()[1:]})
        assert all(r.cause == "this provider" for r in found.rows if r.regression)
    assert hits >= 19
    assert false <= 1


@pytest.mark.parametrize("family", ["rotary", "rcm_attention"])
def test_a_row_that_is_slower_alone_is_found_in_19_of_20(
    real: tuple[Run, ...], family: str
) -> None:
    def slower(one: RunRecord) -> float:
        return PLANTED if (one.family, one.provider) == (family, "triton_fused") else 1.0

    random, hits = np.random.default_rng(6), 0
    for _ in range(20):
        a = drawn_side("a", real, 3, random, as_measured)
        found = compare(a, drawn_side("b", real, 3, random, slower))
        hits += [r.family for r in found.rows if r.regression] == [family]
    assert hits >= 19


# Verdicts.


def test_a_change_beyond_noise_is_slower_or_faster_and_one_within_the_limit_is_the_same() -> None:
    for factor, verdict in (
        (1.10, Change.slower), (0.90, Change.faster), (1.0, Change.same), (1.01, Change.same),
    ):  # fmt: skip
        found = row(compare(side("a", *[job()] * 3), side("b", *[job(100 * factor)] * 3)))
        assert found.verdict is verdict
        assert found.ratio == pytest.approx(factor, rel=1e-3)
        assert found.lo is not None and found.hi is not None
        assert found.lo < factor < found.hi


def test_same_says_that_the_whole_interval_is_within_the_limit() -> None:
    assert row(held(job(), job())).verdict is Change.same
    tight = compare(side("a", job()), side("b", job()), Gate(1))
    assert row(tight).verdict is Change.unsure  # one run a side does not tell 1 %
    short = held(job(3), job(3))
    assert row(short).verdict is Change.unsure  # nor 3 % of 3 µs


def test_the_limit_is_the_callers() -> None:
    before, after = side("a", job()), side("b", job(108))
    assert compare(before, after, Gate(3)).exit_code == 3
    assert compare(before, after, Gate(10)).exit_code == 0
    assert compare(before, side("b", job(90)), Gate(3)).exit_code == 0


def test_rows_that_statuses_settle() -> None:
    base, compiled, kernel = job()
    wrong = replace(kernel, status=Status.incorrect, reason="y: rel 0.2\nmore", timing=None)
    skipped = replace(kernel, status=Status.skipped, reason="needs sm_90", timing=None)
    for before, after, verdict, code in (
        (kernel, wrong, Change.broken, 3),
        (wrong, kernel, Change.fixed, 0),
        (wrong, wrong, Change.bad, 0),
        (skipped, kernel, Change.new, 0),
        (kernel, skipped, Change.gone, 3),
    ):
        found = held([base, compiled, before], [base, compiled, after])
        assert (row(found).verdict, found.exit_code) == (verdict, code)
        assert row(found).ratio is None
    found = held(job(), [base, wrong])
    assert row(found).why == "incorrect: y: rel 0.2"
    assert row(found, "compile").verdict is Change.gone
    assert [r.provider for r in held([base, skipped], [base, skipped]).rows] == ["eager"]


def test_one_broken_run_of_several_is_broken() -> None:
    base, _, kernel = job()
    crashed = replace(kernel, status=Status.crashed, reason="gone", timing=None)
    found = compare(side("a", job()), side("b", job(), [base, crashed], job()))
    assert row(found).verdict is Change.broken
    assert row(found).why == "1 of 3 runs: crashed: gone"
    bad = [base, crashed]
    found = compare(side("a", job(), bad, job()), side("b", bad, bad))
    assert row(found).verdict is Change.broken
    assert row(found).why == "crashed: gone, before 1 of 3 runs"
    found = compare(side("a", bad, bad), side("b", job(), bad))
    assert row(found).verdict is Change.bad


def test_ungated_times_and_other_work_are_not_judged() -> None:
    loose = job()
    loose[2] = replace(loose[2], timing=timing(200, timer="ungated"))
    found = row(held(job(), loose))
    assert (found.verdict, found.why) == (Change.unjudged, "ungated in B")
    other = job()
    other[2] = replace(other[2], flops=4_000_000)
    assert "other work" in row(held(job(), other)).why


# Noise.


def test_several_runs_a_side_narrow_the_interval() -> None:
    def arm(found: Comparison) -> float:
        one = row(found)
        assert one.ratio and one.hi
        return one.hi / one.ratio - 1

    alone = arm(held(job(), job()))
    assert alone == pytest.approx(0.0281, abs=0.002)  # 1.96 · √2 · 1 % and a little
    several = arm(compare(side("a", *[job()] * 4), side("b", *[job()] * 4)))
    assert several < alone / 2


def test_processes_of_a_run_count_as_runs_do() -> None:
    times = {"a": (100, 106, 94), "b": (106, 112, 100)}
    apart = {name: [job(us) for us in some] for name, some in times.items()}
    whole = {
        name: [
            replace(r, process=n, group=f"g{n}") for n, some in enumerate(jobs) for r in some
        ]
        for name, jobs in apart.items()
    }  # fmt: skip
    of_runs = compare(side("a", *apart["a"]), side("b", *apart["b"]))
    of_processes = held(together(whole["a"]), together(whole["b"]))
    assert row(of_processes) == row(of_runs)
    assert (row(of_processes).processes_a, row(of_processes).processes_b) == (3, 3)
    assert [s.processes for s in (of_processes.a, of_processes.b)] == [3, 3]
    assert "measured from 3 + 3 of them" in " ".join(wording.notes(of_processes))


def test_runs_that_lie_apart_widen_it() -> None:
    """The mean moved by 6 %, as single runs do."""
    a = side("a", job(100), job(106), job(94))
    b = side("b", job(106), job(112), job(100))
    assert row(compare(a, b)).verdict is Change.unsure
    steady = compare(side("a", *[job()] * 3), side("b", *[job(106)] * 3))
    assert row(steady).verdict is Change.slower


def test_a_chain_of_launches_is_noisier_than_one_kernel() -> None:
    one = record(traffic=(Traffic("x", read=1), Traffic("y", write=1)))
    chain = record(traffic=tuple(Traffic(f"{n} mul", read=1) for n in range(1, 10)))
    assert (noise.launches(one), noise.launches(chain)) == (1, 9)
    short, long = (noise.observe([[r]])[0].variance for r in (one, chain))
    assert math.sqrt(long - short) == pytest.approx(
        math.sqrt(80) * noise.ASSUMED_NS / 10_000, rel=0.01
    )


def test_the_baselines_second_run_is_a_floor_of_its_job() -> None:
    noisy = job()
    noisy[0] = replace(noisy[0], timing=timing(400, again_ns=blocks(416)))
    quiet, loud = (row(held(job(), other)) for other in (job(), noisy))
    assert loud.floor_pct == pytest.approx(4, abs=0.2)
    assert (quiet.floor_pct or 0) < 0.5
    assert (loud.hi or 0) - (loud.lo or 0) > 2 * ((quiet.hi or 0) - (quiet.lo or 0))


def test_a_table_of_chance_moves_is_not_called() -> None:
    """A single row of p = 0.03 is a move; one of sixty such rows is what chance does."""
    p = np.array([0.03])
    assert false_discovery(p) == pytest.approx([0.03])
    many = np.concatenate([p, np.linspace(0.1, 1, 59)])
    assert false_discovery(many)[0] > 0.5
    assert false_discovery(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx(
        [0.02, 0.04, 0.04, 0.02]
    )
    cases = [f"c{n}" for n in range(40)]
    alone = held(job(), job(107))
    assert row(alone).verdict is Change.slower
    before = [r for case in cases for r in job(case=case, group=case)]
    after = [r for c in cases for r in job(107 if c == "c7" else 100, case=c, group=c)]
    moved = [r for r in held(before, after).rows if r.verdict.moved]
    assert not moved


def test_students_t_against_its_tables() -> None:
    for degrees, reach in ((1, 12.7062), (4, 2.7764), (8, 2.3060), (30, 2.0423)):
        assert t_reach(degrees) == pytest.approx(reach, abs=1e-3)
    assert two_sided_p(np.array([3.355]), np.array([8.0])) == pytest.approx([0.01], abs=1e-4)


def test_the_error_of_a_median_is_that_of_its_rounds() -> None:
    random = np.random.default_rng(1)
    drift = random.normal(1000, 10, (40, 1)) + random.normal(0, 0.1, (40, 8))
    logs, errors = log_medians([drift.tolist()])
    assert math.exp(logs[0]) == pytest.approx(1000, rel=0.01)
    assert errors[0] == pytest.approx(1.2533 * 0.01 / math.sqrt(40), rel=0.5)
    assert log_medians([[[5.0]]])[1][0] == math.inf


# Clocks.

SLOW_CLOCK = {"telemetry": {"sm_mhz": 1800.0}}


def test_what_flops_bound_is_judged_in_cycles_where_clocks_differ() -> None:
    heavy = {"flops": 20_000_000_000}
    found = row(held(job(**heavy), job(110, 440, **heavy, **SLOW_CLOCK)))
    assert (found.used, found.verdict) == ("normalised", Change.same)
    assert found.raw == pytest.approx(1.10, rel=1e-3)
    assert found.ratio == found.normalised == pytest.approx(1.0, rel=1e-3)
    worse = row(held(job(**heavy), job(121, 440, **heavy, **SLOW_CLOCK)))
    assert worse.verdict is Change.slower
    assert worse.ratio == pytest.approx(1.1, rel=1e-3)
    assert "SM clock 1980 → 1800 MHz, normalised" in worse.why


def test_any_other_row_must_have_moved_in_time_and_in_cycles() -> None:
    clocked = row(held(job(), job(110, **SLOW_CLOCK)))
    assert (clocked.used, clocked.verdict) == ("raw", Change.unsure)
    assert clocked.lo is not None and clocked.lo < 1 < 1.1 < (clocked.hi or 0)
    worse = row(held(job(), job(125, **SLOW_CLOCK)))
    assert worse.verdict is Change.slower
    assert "in time and in cycles" in worse.why
    still = row(held(job(), job(telemetry={"sm_mhz": 1965.0})))
    assert (still.normalised, still.verdict) == (None, Change.same)


# Causes.


def test_a_move_alone_is_the_providers() -> None:
    found = row(held(job(), job(110, source="s2")))
    assert (found.cause, found.why) == ("this provider", "baseline +0.0%; source changed")
    assert found.regression


def test_a_move_with_its_baseline_is_the_environments_and_no_regression() -> None:
    found = held(job(), job(110, 440))
    assert {r.cause for r in found.rows} == {"environment"}
    assert {r.verdict for r in found.rows} == {Change.slower}
    assert found.exit_code == 0


def test_an_environment_excuses_no_more_than_it_took() -> None:
    """The baseline lost 6 %: of ours, 8 % are within the limit of that, and 12 % are not."""
    within, beyond = (row(held(job(), job(us, 424))) for us in (108, 112))
    assert (within.cause, within.regression) == ("environment", False)
    assert (beyond.cause, beyond.regression) == ("this provider", True)
    assert beyond.why == "baseline +6.0%; same source"
    wide = compare(side("a", job()), side("b", job(112, 424)), Gate(8))
    assert (row(wide).cause, wide.exit_code) == ("environment", 0)


def test_what_a_manifest_does_not_state_is_no_other_version() -> None:
    """Runs from before the driver was recorded stand beside newer ones."""
    newer = {"versions": VERSIONS | {"driver": "580.159.03"}}
    found = held(job(), job(110, 440), **newer)
    assert wording.difference_lines(found) == ["versions driver: — → 580.159.03"]
    assert {r.cause for r in found.rows} == {"environment"}
    assert found.exit_code == 0
    other = {"versions": VERSIONS | {"driver": "570.10"}}
    known = compare(side("a", job(), **newer), side("b", job(110, 440), **other))
    assert {r.cause for r in known.rows} == {"versions"}


def test_a_move_with_other_versions_is_theirs_and_the_manifests_are_told_apart() -> None:
    newer = {"versions": VERSIONS | {"torch": "2.12.0"}}
    found = held(job(), job(110, 440), **newer)
    assert {r.cause for r in found.rows} == {"versions"}
    assert found.exit_code == 3
    assert wording.difference_lines(found) == ["versions torch: 2.11.0 → 2.12.0"]
    alone = held(job(), job(110, source="s2"), **newer)
    assert row(alone).cause == "this provider"
    assert row(held(job(), job(110), **newer)).cause == "versions"


def test_another_gpu_is_named_and_nothing_slower_is_a_regression() -> None:
    found = held(job(), job(200, 800, gpu="NVIDIA H100"))
    assert {r.cause for r in found.rows} == {"GPU"}
    assert (found.exit_code, "no GPU in common" in found.undecided) == (2, True)
    assert "gpu: NVIDIA H200 → NVIDIA H100" in wording.difference_lines(found)
    wrong = job(gpu="NVIDIA H100")
    wrong[2] = replace(wrong[2], status=Status.incorrect, timing=None)
    assert held(job(), wrong).exit_code == 3


def carded(records: list[RunRecord], uuid: str) -> Run:
    machine = manifest()["machine"] | {"uuid": uuid}
    return Run(Path(uuid), manifest(machine=machine), tuple(records))


def test_another_card_of_one_model_is_told_apart_and_excuses_what_moved_with_it() -> None:
    before = Side("a", (carded(job(), "GPU-1"),) * 1)
    same = compare(before, Side("b", (carded(job(110, 440), "GPU-1"),)))
    other = compare(before, Side("b", (carded(job(110, 440), "GPU-2"),)))
    assert "card uuid: GPU-1 → GPU-2" in wording.difference_lines(other)
    assert not wording.difference_lines(same)
    one, two = row(same), row(other)
    assert one.hi and two.hi and one.ratio and two.ratio
    assert math.log(two.hi / two.ratio) == pytest.approx(  # by 1 % a side
        math.hypot(math.log(one.hi / one.ratio), 1.96 * 0.01 * math.sqrt(2)), rel=0.01
    )
    assert "different cards of one model" in " ".join(wording.notes(other))
    far = compare(before, Side("b", (carded(job(130, 520), "GPU-2"),)))
    assert {r.cause for r in far.rows} == {"another card"} and far.exit_code != 3
    alone = compare(before, Side("b", (carded(job(130), "GPU-2"),)))
    assert (row(alone).cause, alone.exit_code) == ("this provider", 3)


def test_another_power_limit_is_told_apart_and_excuses_what_moved_with_it() -> None:
    def told(records: list[RunRecord], **policy: float) -> Side:
        machine = manifest()["machine"] | {"uuid": "GPU-1"} | ({"policy": policy} if policy else {})
        return Side("a", (Run(Path("a"), manifest(machine=machine), tuple(records)),))

    before = told(job(), power_limit_w=700.0, sm_max_mhz=1980.0)
    less = compare(before, told(job(130, 520), power_limit_w=500.0, sm_max_mhz=1980.0))
    assert {r.cause for r in less.rows} == {"power limit or clocks"} and less.exit_code != 3
    (line,) = wording.difference_lines(less)
    assert "700" in line and "500" in line
    alone = compare(before, told(job(130), power_limit_w=500.0, sm_max_mhz=1980.0))
    assert (row(alone).cause, alone.exit_code) == ("this provider", 3)
    unknown = compare(before, told(job(130, 520)))  # an older manifest says nothing of it
    assert {r.cause for r in unknown.rows} == {"environment"}


def test_noise_from_runs_that_cannot_tell_is_refused(tmp_path: Path) -> None:
    a, b = saved(tmp_path / "a", job()), saved(tmp_path / "b", job())
    older = saved(tmp_path / "older", [replace(r, method=1) for r in job()])
    for where in (older, a):
        done = kb("compare", a, b, "--noise-from", where)
        assert done.exit_code == 2
        assert "--noise-from: no run there that is on neither side" in done.stderr
    saved(tmp_path / "past" / "one", job())
    saved(tmp_path / "past" / "two", job(100.5))
    found = json.loads(
        kb("compare", a, b, "--noise-from", tmp_path / "past", "--format", "json").stdout
    )
    assert any("2 earlier ones" in note for note in found["notes"])


def test_runs_without_a_manifest_differ_in_nothing_known() -> None:
    bare = Side("b", (Run(Path("b"), {}, tuple(job(110))),))
    found = compare(side("a", job()), bare)
    assert found.differences == ()
    assert row(found).cause == "this provider"
    assert any("without manifest.json" in note for note in wording.notes(found))


# The verb.


@pytest.fixture
def two(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    def made(after: list[RunRecord], **facts: Any) -> tuple[Path, Path]:
        return saved(tmp_path / "a" / "run", job()), saved(tmp_path / "b" / "run", after, **facts)

    return made


def test_exit_codes_and_the_summary(two: Callable[..., tuple[Path, Path]]) -> None:
    a, b = two(job(110, source="s2"))
    done = kb("compare", a, b)
    assert done.exit_code == 3
    assert done.stdout.splitlines()[-1] == "3 rows: 1 SLOWER, 2 SAME; 1 regression beyond 3 %"
    assert "this provider (baseline +0.0%; source changed)" in done.stdout
    assert "one a side cannot tell, so it is assumed" in done.stdout
    loose = kb("compare", a.parent, b.parent, "--fail-on", "slower:12.5%")
    assert loose.exit_code == 0
    assert "no regression beyond 12.5 %" in loose.stdout


def test_formats(two: Callable[..., tuple[Path, Path]]) -> None:
    a, b = two(job(110, source="s|<2>"), suite="o|t<b>her")
    found = json.loads(kb("compare", a, b, "--format", "json").stdout)
    assert found["exit_code"] == 3
    assert [r["verdict"] for r in found["rows"]] == ["SAME", "SAME", "SLOWER"]
    assert found["rows"][2]["change_pct"] == pytest.approx(10, abs=0.1)
    assert found["differences"] == [{"part": "suite", "what": "suite", "a": "s", "b": "o|t<b>her"}]
    lines = list(csv.DictReader(io.StringIO(kb("compare", a, b, "--format", "csv").stdout)))
    assert [line["regression"] for line in lines] == ["false", "false", "true"]
    assert lines[2]["normalised"] == ""
    done = kb("compare", a, b, "--format", "md")
    assert done.exit_code == 3
    assert "**3 rows: 1 SLOWER, 2 SAME; 1 regression beyond 3 %**" in done.stdout
    assert "| **SLOWER** | rms\\_norm | M1024-N512-bf16-fwd | triton | +10.0% |" in done.stdout
    assert "o\\|t&lt;b>her" in done.stdout


def test_an_endless_interval_is_strict_json() -> None:
    few = [replace(r, timing=replace(r.timing, blocks_ns=((100_000,),), again_ns=())) for r in job()
           if r.timing]  # fmt: skip
    found = held(few, few)
    assert row(found).verdict is Change.unsure
    assert json.loads(formats.as_json(found))["rows"][0]["hi"] == "inf"
    assert "∞" in tables.interval(row(found))


@pytest.mark.parametrize("width", [80, 140])
def test_the_table_fits(real: tuple[Run, ...], width: int) -> None:
    out = io.StringIO()
    slow = Run(Path("slow"), real[5].manifest, tuple(scaled(r, 1.07) for r in real[5].records))
    found = compare(Side("before", real[:1]), Side("after", (slow,)), earlier=real[1:5])
    tables.render(found, Console(file=out, width=width))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert "  triton_fused          SLOWER    +7.0%  [+4.0, +10.0]  122.5 µs  131.1 µs" in text
    assert ("adjusted p" in text) == (width == 140)


@pytest.mark.parametrize(
    "text",
    ["", "slower", "slower:", "slower:3", "slower:-1%", "slower:0%", "faster:3%", "slower:x%",
     "slower:1e9%", "slower:3%,", "slower:9999%", "slower:٣%"],
)  # fmt: skip
def test_a_gate_that_is_none(text: str) -> None:
    with pytest.raises(UsageError, match=r"--fail-on: .* is none of slower, .* slower:PERCENT%"):
        gate_of(text)


@pytest.mark.parametrize("text", ["", "%", "101%", "-1%", "most", "1e9", "nan"])
def test_a_least_share_that_is_none(text: str) -> None:
    with pytest.raises(UsageError, match="--least: "):
        gate_of(FAIL_ON, text)


def test_what_a_gate_is() -> None:
    assert gate_of(FAIL_ON) == Gate() == Gate(3.0, frozenset(KINDS), 90.0)
    assert gate_of("slower:0.5%") == Gate(0.5, frozenset({"slower"}))
    assert gate_of("broken, gone", "50") == Gate(3.0, frozenset({"broken", "gone"}), 50.0)


def test_the_verbs_defaults_are_the_gates() -> None:
    options = {o.name: o.default for o in get_command(app).commands["compare"].params}  # type: ignore[attr-defined]
    assert gate_of(options["fail_on"], options["least"]) == Gate()


def many(count: int, **facts: Any) -> list[RunRecord]:
    return [r for n in range(count) for r in job(case=f"c{n}", group=f"g{n}", **facts)]


def changed(records: list[RunRecord], **facts: Any) -> list[RunRecord]:
    """Ours in the first case became something else."""
    return [replace(r, **facts) if n == 2 else r for n, r in enumerate(records)]


SLOW = timing(150)
TABLE = [
    ("our rows are missing", lambda rs: [r for r in rs if not r.role.ours], 3, "GONE  "),
    ("one of 13 cases is left", lambda rs: rs[:3], 3, "GONE  "),
    ("ok became skipped", lambda rs: changed(rs, status=Status.skipped, timing=None), 3, "GONE  "),
    ("ungated and slower", lambda rs: changed(rs, timing=timing(150, timer="ungated")), 3,
     "ungated in B"),
    ("other work and slower", lambda rs: changed(rs, flops=2_000_001, timing=SLOW), 3,
     "other work"),
    ("shared and slower", lambda rs: changed(rs, flags=("shared",), timing=SLOW), 3,
     "another process used the GPU in B"),
    ("incorrect", lambda rs: changed(rs, status=Status.incorrect, timing=None), 3, "BROKEN  "),
    ("another model of GPU", lambda rs: [replace(r, gpu="NVIDIA H100") for r in rs], 2,
     "no GPU in common"),
    ("the same", lambda rs: rs, 0, "no regression"),
]  # fmt: skip


@pytest.mark.parametrize(("after", "code", "told"), [row[1:] for row in TABLE],
                         ids=[row[0] for row in TABLE])  # fmt: skip
def test_nothing_is_green_because_nothing_was_looked_at(
    after: Callable[[list[RunRecord]], list[RunRecord]], code: int, told: str, tmp_path: Path
) -> None:
    a = saved(tmp_path / "a", many(13))
    b = saved(tmp_path / "b", after(many(13)))
    done = kb("compare", a, b)
    said = " ".join((done.stdout + done.stderr).split())
    assert (done.exit_code, told.strip() in said) == (code, True), said
    found = json.loads(kb("compare", a, b, "--format", "json").stdout)
    assert found["exit_code"] == code


def test_findings_that_were_not_asked_for_fail_nothing_but_the_least_share_does() -> None:
    fewer = [r for r in many(13) if not r.role.ours]
    lost = held(many(13), fewer)
    assert (lost.exit_code, lost.judged, lost.earlier) == (3, 26, 39)
    quiet = compare(side("a", many(13)), side("b", fewer), gate_of("slower:3%,broken"))
    assert quiet.exit_code == 2
    assert "26 of the 39 rows" in quiet.undecided
    assert compare(side("a", many(13)), side("b", fewer), gate_of("broken", "60%")).exit_code == 0


def test_what_only_one_side_has_is_a_line_a_case(tmp_path: Path) -> None:
    a = saved(tmp_path / "a", many(2))
    b = saved(tmp_path / "b", [*job(case="c0", group="g0"), *job(case="c9", group="g9")])
    shown = kb("compare", a, b).stdout
    assert shown.count("c1") == shown.count("c9") == 1
    assert "GONE  rms_norm c1  eager, compile, triton" in shown
    assert "NEW  rms_norm c9  eager, compile, triton" in shown


def test_a_row_that_is_not_known_to_the_limit_is_not_judged() -> None:
    found = held(job(3, 9), job(3, 9))  # of few µs, one run a side
    assert row(found).verdict is Change.unsure
    assert (found.judged, found.exit_code) == (0, 2)
    assert compare(found.a, found.b, gate_of("slower:20%")).exit_code == 0


def test_input_that_cannot_be_compared(tmp_path: Path) -> None:
    a = saved(tmp_path / "a", job())
    b = saved(tmp_path / "b", job())
    (tmp_path / "empty").mkdir()
    other = saved(tmp_path / "other", job(family="rotary"))
    older = saved(tmp_path / "older", [replace(r, method=1) for r in job()])
    bare = saved(tmp_path / "bare", job())
    (bare / store.MANIFEST).unlink()
    (bare / store.RECORDS).write_text(f'{{"schema":{SCHEMA + 1}}}\n')
    host = saved(
        tmp_path / "host", [replace(r, timing=timing(9, timer="host")) for r in job()]
    )  # fmt: skip
    for args, told in (
        ((a, a), "is on both sides, or a copy of it is. Name two builds"),
        ((AA, next(AA.glob("2*"))), "is on both sides"),
        ((a, tmp_path / "none"), "no such file or folder"),
        ((a, tmp_path / "empty"), "no run in"),
        ((a, other), "no case and provider in common"),
        ((a, older), "timed by different methods"),
        ((a, bare), f"schema {SCHEMA + 1}, this version reads schema {SCHEMA}"),
        ((a, host), "smoke runs"),
        ((a, b, "--fail-on", "slower"), "--fail-on: 'slower' is none of slower, broken"),
        ((a, b, "--format", "tabel"), "did you mean 'table'?"),
    ):
        done = kb("compare", *args)
        assert done.exit_code == 2, (args, done.output)
        assert told in done.stderr
        assert done.stderr.count("error: ") == 1
    assert kb("compare", a, b).exit_code == 0


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"machine": "H200"}, "machine is no mapping"),
        ({"machine": {"versions": ["torch"]}}, "machine.versions is no mapping"),
        ({"git": "abc"}, "git is no mapping"),
        ({"asked": [1]}, "asked is no mapping"),
        ({"ceilings": {"bandwidth": [1]}}, "ceilings.bandwidth is no mapping"),
        ({"schema": 99}, "schema 99, this version reads up to"),
    ],
)
def test_a_foreign_manifest_is_named_and_its_records_are_compared(
    tmp_path: Path, facts: dict[str, Any], told: str
) -> None:
    a, b = saved(tmp_path / "a", job()), saved(tmp_path / "b", job(), **facts)
    done = kb("compare", a, b)
    assert done.exit_code == 1
    assert f"{b / store.MANIFEST}: {told}" in done.stderr
    assert "the run is compared, its versions are not" in done.stderr
    assert "3 rows: 3 SAME" in done.stdout


def test_a_manifest_that_is_no_json_is_named_too(tmp_path: Path) -> None:
    a, b = saved(tmp_path / "a", job()), saved(tmp_path / "b", job())
    (a / store.MANIFEST).write_text("{")
    done = kb("compare", a, b)
    assert done.exit_code == 1
    assert f"{a / store.MANIFEST}: not JSON" in done.stderr


def test_ceilings_that_are_none_are_left_out(tmp_path: Path) -> None:
    odd = {"bandwidth": {"copy": [[1]], "read": 3, "write": [[4, 2]]}, "tflops": {"bf16": "x"}}
    a, b = saved(tmp_path / "a", job()), saved(tmp_path / "b", job(), ceilings=odd)
    assert kb("compare", a, b).exit_code == 0


def test_damaged_lines_are_named_and_the_rest_is_compared(tmp_path: Path) -> None:
    a, b = saved(tmp_path / "a", job()), saved(tmp_path / "b", job())
    with (b / store.RECORDS).open("a") as file:
        file.write("{torn\n")
    done = kb("compare", a, b)
    assert done.exit_code == 1, "a row may be missing"
    assert "records.jsonl:4: not JSON" in done.stderr


def test_nothing_timed_cannot_be_judged() -> None:
    loose = [replace(r, timing=timing(9, timer="ungated")) for r in job()]
    with pytest.raises(KernelbenchError, match="no row can be judged: ungated in A, ungated in B"):
        held(loose, loose)


def lost(*records: RunRecord, status: Status = Status.failed) -> list[RunRecord]:
    return [replace(r, status=status, reason="it fell", timing=None) for r in records]


def ours_slower(factor: float = 2.0) -> list[RunRecord]:
    return job(100 * factor)


def test_a_row_that_fell_in_one_run_is_judged_by_the_others() -> None:
    fell = [*job()[:2], *lost(job()[2])]
    fixed = compare(side("a", job(), job(), fell), side("b", *[ours_slower()] * 3))
    assert (row(fixed).verdict, fixed.exit_code) == (Change.slower, 3)
    assert "before 1 of 3" in row(fixed).why or "1 of 3 runs: failed" in row(fixed).why
    bad = compare(side("a", job(), job(), fell), side("b", ours_slower(), ours_slower(), fell))
    assert (row(bad).verdict, bad.exit_code) == (Change.slower, 3)
    same = compare(side("a", job(), job(), fell), side("b", *[job()] * 3))
    assert (row(same).verdict, row(same).ratio) == (Change.fixed, pytest.approx(1.0))


def test_nothing_of_nothing_is_not_enough() -> None:
    loose = [replace(r, timing=replace(r.timing, timer="ungated")) for r in job() if r.timing]
    found = compare(side("a", [loose[0], *lost(loose[1]), loose[2]]), side("b", job()))
    assert found.exit_code == 2 and "has a time of no row" in found.undecided
    broken = compare(side("a", job()), side("b", lost(*job())), gate_of("slower:3%"))
    assert (broken.exit_code, broken.judged) == (2, 0)
    assert "broken, gone, unjudged not asked for" in wording.verdicts(broken)


def test_rows_of_a_gpu_that_only_the_earlier_side_has_are_gone() -> None:
    other = job(gpu="NVIDIA H100")
    found = compare(side("a", job(), other), side("b", job(), job()))
    gone = [r for r in found.rows if r.verdict is Change.gone]
    assert {r.gpu for r in gone} == {"NVIDIA H100"} and found.exit_code == 3
    kept = next(r for r in found.rows if r.gpu == "NVIDIA H200" and r.provider == "triton")
    assert kept.verdict in (Change.same, Change.unsure)


@pytest.mark.parametrize("after", ["s1", "s2"])
def test_ours_excuse_one_another_in_nothing(after: str) -> None:
    def two(us: float, source: str) -> list[RunRecord]:
        mine = ours(timing=timing(us), source=source)
        return [mine, replace(mine, provider="triton2")]

    found = compare(side("a", *[two(100, "s1")] * 3), side("b", *[two(130, after)] * 3))
    assert {r.cause for r in found.rows} == {"this provider"} and found.exit_code == 3


@pytest.mark.parametrize(
    ("factor", "source", "code"), [(1.5, "s2", 3), (1.5, "s1", 0), (1.06, "s2", 0)]
)
def test_no_machine_drifts_by_half(factor: float, source: str, code: int) -> None:
    """Where all rows of a job slow down alike: code that they share does that, too."""
    slower = job(100 * factor, 400 * factor, source=source)
    found = compare(side("a", *[job()] * 3), side("b", *[slower] * 3))
    assert found.exit_code == code


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"prepacked": True}, "prepacked"),
        ({"accuracy": Accuracy.approximate}, "another accuracy"),
        ({"role": Role.ablation}, "another role"),
        ({"method": 1}, "timed by different methods (A by"),
    ],
)
def test_what_is_another_thing_than_before_is_not_judged(facts: dict[str, Any], why: str) -> None:
    after = job(50)
    after[2] = replace(after[2], **facts)
    found = held(job(), after)
    assert (row(found).verdict, found.exit_code) == (Change.unjudged, 3) and why in row(found).why
    others = [r for r in found.rows if r.provider != "triton"]
    assert len(others) == 2 and all(r.verdict is not Change.unjudged for r in others)


def test_what_was_right_and_is_gone_is_a_finding_though_it_had_no_times() -> None:
    before = job()
    before[2] = replace(before[2], flags=("ungated",), timing=timing(100, timer="ungated"))
    assert held(before, job()[:2]).exit_code == 3
    assert held(before, [*job()[:2], *lost(job()[2], status=Status.skipped)]).exit_code == 3


def test_runs_that_lack_times_of_a_row_are_told() -> None:
    loose = [*job()[:2], replace(job()[2], status=Status.skipped, timing=None)]
    found = compare(side("a", *[job()] * 3), side("b", job(), loose, loose))
    assert "times of 1 of 3 processes in B" in row(found).why


def test_a_copy_is_no_second_run(tmp_path: Path) -> None:
    a, b = saved(tmp_path / "a" / "1", job()), tmp_path / "b"
    shutil.copytree(a, b)
    assert "or a copy of it is" in kb("compare", a, b).stderr
    shutil.copytree(a, tmp_path / "a" / "2")
    other = saved(tmp_path / "c", job())
    done = kb("compare", tmp_path / "a", other, "--least", "0%")
    assert done.exit_code == 1 and "a copy of the run in" in done.stderr


def test_what_is_not_stated_is_no_difference() -> None:
    def runs(*machines: dict[str, Any]) -> Side:
        known = [manifest(machine=manifest()["machine"] | each) for each in machines]
        return Side("x", tuple(Run(Path(str(n)), m, tuple(job())) for n, m in enumerate(known)))

    full, bare = {"uuid": "GPU-1", "policy": {"power_limit_w": 700.0}}, dict[str, Any]()
    found = compare(runs(full, full), runs(full, bare))
    assert not any(d.known for d in found.differences if d.part == "card")
    assert not other_card(found.differences)
    records = [replace(r, gpu_uuid="GPU-2") for r in job()]
    plain = [Side(n, (Run(Path(n), {}, tuple(some)),)) for n, some in (
        ("a", [replace(r, gpu_uuid="GPU-1") for r in job()]), ("b", records))]  # fmt: skip
    assert other_card(compare(*plain).differences)


def test_noise_is_of_this_machine(tmp_path: Path) -> None:
    a, b = saved(tmp_path / "a", job()), saved(tmp_path / "b", job())
    far = saved(tmp_path / "far" / "1", job(gpu="NVIDIA H100"))
    done = kb("compare", a, b, "--noise-from", far)
    assert done.exit_code == 2 and "is of this machine (NVIDIA H200" in done.stderr
    for n, commit in enumerate("xyz"):
        saved(tmp_path / "past" / str(n), job(), git={"commit": commit})
    found = json.loads(
        kb("compare", a, b, "--noise-from", tmp_path / "past", "--format", "json").stdout
    )
    assert not any("measured from" in note for note in found["notes"])  # one run of each build


def test_a_limit_is_named_once() -> None:
    with pytest.raises(UsageError, match="slower stands twice"):
        gate_of("slower:3%,slower:50%")
