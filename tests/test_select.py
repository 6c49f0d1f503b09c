"""Choosing by records: who is worth it, who is not and why; and the verb."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_gather import a_run
from test_metrics import fused, ours, record, timing
from typer.testing import CliRunner

from kernelbench import families
from kernelbench import select as selecting
from kernelbench.cli import app
from kernelbench.dispatch import Dispatch, Entry, Table, Where
from kernelbench.numbers import times
from kernelbench.select import Rules
from kernelbench.spec import Accuracy, Job, Role, RunRecord, Status, UsageError
from kernelbench.verbs import select as verb

HERE = Where(gpu="NVIDIA H200")


def only(records: Sequence[RunRecord], rules: Rules | None = None) -> Entry:
    """The entry of the one case that these records are of."""
    [(_, entry)] = selecting.select(records, HERE, {}, rules).entries()
    return entry


def ranking(*records: RunRecord, rules: Rules | None = None) -> list[str]:
    return [option.provider for option in only(records, rules).options]


def test_the_fastest_that_is_worth_it_and_what_would_be_next() -> None:
    entry = only([record(), fused(), ours()])
    assert (entry.choice, entry.runner_up) == ("triton", "compile")
    assert entry.options[0].speedup == pytest.approx(2.5)
    assert entry.reason == "2.5 × the baseline, at least 2.5"
    assert entry.axes == {"M": 1024, "N": 512} and entry.regret_pct == 0


def test_inside_the_margin_the_baseline_is_kept() -> None:
    """By the lower end of the interval, not by the estimate."""
    just = ours(timing=timing(9.8))
    assert ranking(record(), just) == ["eager", "triton"]
    assert only([record(), just]).reason == "triton is 1.02 ×, at least 1.02, not beyond 1.03"
    assert ranking(record(), just, rules=Rules(margin=1.01)) == ["triton", "eager"]
    unsure = ours(timing=timing(9, quantum_ns=2000))  # 1.11, to within 11 %
    assert only([record(), unsure]).options[1].lo < 1.03
    assert ranking(record(), unsure) == ["eager", "triton"]
    assert only([record()]).reason == "nothing else may be chosen"


def test_of_equals_the_simpler_one() -> None:
    close = [record(), fused(timing=timing(5)), ours(timing=timing(4.99, quantum_ns=100))]
    entry = only(close)
    assert (entry.choice, entry.runner_up) == ("compile", "triton")
    assert entry.reason.endswith("; simpler than triton, which cannot be told from it")
    assert 0 < entry.regret_pct < 3
    clear = [record(), fused(timing=timing(5)), ours(timing=timing(4.8))]
    assert ranking(*clear) == ["triton", "compile", "eager"]


def peer(**facts: Any) -> RunRecord:
    return record("liger", Role.peer, **({"timing": timing(3)} | facts))


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (peer(status=Status.incorrect, reason="y: error 2"), "incorrect: y: error 2"),
        (peer(status=Status.oom, reason="CUDA out of memory"), "oom: CUDA out of memory"),
        (peer(status=Status.implausible, reason="faster than"), "implausible: faster than"),
        (peer(accuracy=Accuracy.approximate), "approximate"),
        (peer(prepacked=True), "prepacked"),
        (record("naive", Role.ablation, timing=timing(1)), "an ablation"),
        (peer(timing=timing(3, timer="ungated")), "it was not timed beside the baseline"),
        (peer(group="other"), "it was not timed beside the baseline"),
        (peer(flags=("shared",)), "suspicious (shared): it has to win twice"),
        (peer(flags=("throttled:sw_power_cap",)), "suspicious (throttled:sw_power_cap): it has"),
    ],
)
def test_wrong_but_fast_never_wins(bad: RunRecord, why: str) -> None:
    entry = only([record(), ours(), bad])
    assert entry.choice == "triton"
    assert entry.excluded[bad.provider].startswith(why)
    assert bad.provider not in {option.provider for option in entry.options}


def test_what_may_be_chosen_can_be_said() -> None:
    known = [record(), fused(), ours(), peer(accuracy=Accuracy.approximate)]
    assert ranking(*known, rules=Rules(approximate=True))[0] == "liger"
    assert ranking(*known, rules=Rules(providers=("compile",))) == ["compile", "eager"]


def test_a_flag_matters_to_who_would_win_and_not_where_it_won_twice() -> None:
    doubtful = peer(flags=("shared",))
    assert selecting.suspects([record(), ours(), doubtful], Rules()) == {doubtful.row}
    assert selecting.winners([record(), ours(), doubtful], Rules()) == {doubtful.row, ours().row}
    other = Rules(confirmed=frozenset({ours().row}))
    assert ranking(record(), ours(), doubtful, rules=other)[0] == "triton"
    confirmed = Rules(confirmed=frozenset({doubtful.row}))
    assert ranking(record(), ours(), doubtful, rules=confirmed)[0] == "liger"
    assert selecting.suspects([record(), ours(), doubtful], confirmed) == set()
    slow = peer(flags=("shared",), timing=timing(20))
    assert selecting.suspects([record(), slow], Rules()) == set()
    assert only([record(), slow]).excluded == {}


def test_a_call_that_tracing_slows_down_wins_under_suspicion() -> None:
    slowed = replace(
        timing(3), kernel_ns=(3000,) * 9, kernel_event_ns=(9000,) * 9, traced_overhead_ns=0
    )
    assert times.differs_when_traced(slowed)
    entry = only([record(), ours(), peer(timing=slowed)])
    assert entry.choice == "triton"
    assert entry.excluded["liger"] == "suspicious (differs-when-traced): it has to win twice"


def test_only_the_code_and_the_method_that_were_measured_last_count() -> None:
    old = [record(source="old"), ours(source="old", timing=timing(1))]
    late = {"source": "new", "utc": "2026-12-01T00:00:00Z", "case": "other", "group": "g2"}
    new = [record(**late), ours(**late)]
    for order in ([*old, *new], [*new, *old]):
        table = selecting.select(order, HERE, {})
        assert table.families["rms_norm"].source == "new"
        assert [entry.options[0].speedup for _, entry in table.entries()] == [pytest.approx(2.5)]
        said = "rms_norm: 2 records of older code or of another method are left out"
        assert selecting.current(order) == (new, [said])
    assert (
        selecting.current([*new, replace(new[0], method=1, utc="2026-01-01T00:00:00Z")])[0] == new
    )


def test_a_later_run_without_the_baseline_takes_nothing_away() -> None:
    later = ours(run_id="later", utc="2026-12-01T00:00:00Z", timing=timing(1))
    assert ranking(record(), ours(), later) == ["triton", "eager"]
    assert only([record(), ours(), later]).options[0].speedup == pytest.approx(2.5)


def test_a_case_is_of_the_run_that_measured_it_last() -> None:
    older = [record(utc="2026-01-01T00:00:00Z"), ours(utc="2026-01-01T00:00:00Z")]
    newer = [
        record(run_id="later"),
        ours(run_id="later", timing=timing(20)),
    ]
    assert ranking(*older)[0] == "triton"
    assert ranking(*newer, *older)[0] == ranking(*older, *newer)[0] == "eager"


def test_other_distributions_of_inputs_choose_nothing_and_no_time_is_no_choice() -> None:
    axes = record().axes | {"inputs": "zeros"}
    other = [record(axes=axes, case="zeros"), ours(axes=axes, case="zeros", timing=timing(99))]
    assert ranking(record(), ours(), *other)[0] == "triton"
    with pytest.raises(UsageError, match="no case has a baseline with a time of a GPU"):
        selecting.select([record(timing=timing(1, timer="host")), *other], HERE, {})


def test_a_table_is_of_one_machine() -> None:
    def manifest(**versions: str) -> dict[str, Any]:
        return {"machine": {"name": "NVIDIA H200", "arch": "sm_90", "versions": versions}}

    one = manifest(torch="2.11.0", triton="3.6.0", driver="580")
    where = selecting.where_of([one, one])
    assert where == Where("NVIDIA H200", "sm_90", "580", "2.11.0", "3.6.0")
    with pytest.raises(UsageError, match="of different machines or versions: driver 570 and 580"):
        selecting.where_of([one, manifest(torch="2.11.0", triton="3.6.0", driver="570")])
    older = manifest(torch="2.11.0")  # of which less is known
    for order in ([older, one], [one, older]):
        with pytest.raises(UsageError, match=r"driver 580 and unknown, triton 3\.6\.0 and unknown"):
            selecting.where_of(order)


def held_out(us: float, **times: float) -> list[RunRecord]:
    facts = {"case": f"M{us}", "axes": record().axes | {"M": int(us)}, "group": f"g{us}"}
    roles = {"compile": fused, "triton": ours}
    known = [record(timing=timing(us), **facts)]
    return [*known, *(roles[name](timing=timing(t), **facts) for name, t in times.items())]


def test_regret_is_what_the_choice_loses_where_it_was_not_measured() -> None:
    small, large = held_out(100, triton=40, compile=50), held_out(400, triton=160, compile=200)
    table = selecting.select([*small, *large], HERE, {})
    dispatch = Dispatch(table, HERE)
    between, lost = held_out(200, triton=80, compile=100), held_out(300, triton=150, compile=120)
    one, other = selecting.verify(dispatch, [*between, *lost], Rules())
    assert (one.choice.provider, one.choice.how, one.best) == ("triton", "between", "triton")
    assert one.pct == 0 and one.always["compile"] == pytest.approx(25)
    assert (other.choice.provider, other.best) == ("triton", "compile")
    assert other.pct == pytest.approx(25) and other.always["eager"] == pytest.approx(150)
    wrong = [replace(r, status=Status.incorrect) if r.provider == "triton" else r for r in between]
    [lost_all] = selecting.verify(dispatch, wrong, Rules())
    assert (lost_all.choice.provider, lost_all.pct) == ("triton", math.inf)


def manifest_of(driver: str = "580") -> dict[str, Any]:
    versions = {"torch": "2.11.0", "triton": "3.6.0", "driver": driver}
    return {"machine": {"name": "NVIDIA H200", "arch": "sm_90", "versions": versions}}


def asked(*words: Any) -> Any:
    return CliRunner().invoke(app, ["select", *map(str, words)])


def test_a_table_and_a_tree_from_runs(tmp_path: Path) -> None:
    a_run(tmp_path, "one", [record(), fused(), ours()], **manifest_of())
    out, tree = tmp_path / "dispatch.json", tmp_path / "choose.py"
    done = asked(tmp_path, "--out", out, "--python", tree)
    assert done.exit_code == 0, done.output
    assert "rms_norm · fwd · bf16" in done.output and "2.50 [2.50, 2.50]" in done.output
    table = Table.read(out)
    assert table.runs == ("one",) and table.where.driver == "580"
    assert table.families["rms_norm"].defaults["casting"] == "fp32"  # what is shipped knows it
    assert 'return "triton"' in tree.read_text()
    shown = json.loads(asked(tmp_path, "--json").stdout)
    assert shown == json.loads(out.read_text())


def test_a_table_is_held_against_other_cases(tmp_path: Path) -> None:
    known = [*held_out(100, triton=40, compile=50), *held_out(400, triton=160, compile=200)]
    a_run(tmp_path / "a", "one", known, **manifest_of())
    a_run(tmp_path / "b", "two", [*known, *held_out(200, triton=80)], **manifest_of())
    slower = [*held_out(200, triton=120, compile=100), *held_out(100, triton=1)]
    a_run(tmp_path / "c", "three", slower, **manifest_of())
    a_run(tmp_path / "d", "four", held_out(200, triton=80), **manifest_of(driver="570"))
    table = tmp_path / "dispatch.json"
    assert asked(tmp_path / "a", "-o", table).exit_code == 0
    good = asked(tmp_path / "b", "--verify", table)
    assert good.exit_code == 0
    assert "1 case that the table has not: mean regret 0%" in " ".join(good.output.split())
    bad = asked(tmp_path / "c", "--verify", table, "--json")
    facts = json.loads(bad.stdout)
    assert bad.exit_code == 1 and facts["mean_pct"] == pytest.approx(20)
    always = next(each["always"] for each in facts["cases"] if each["case"] == "M200")
    assert always == pytest.approx({"compile": 0, "triton": 20, "eager": 100})
    sizes = range(110, 390, 20)
    once = [each for us in sizes for each in held_out(us, triton=us * (0.43 if us > 360 else 0.4),
            compile=us * 0.4)]  # fmt: skip
    a_run(tmp_path / "e", "five", once, **manifest_of())
    rare = asked(tmp_path / "e", "--verify", table, "--json")
    facts = json.loads(rare.stdout)
    assert rare.exit_code == 1 and facts["mean_pct"] < 1 < 5 < facts["worst_pct"]
    stale = asked(tmp_path / "d", "--verify", table)
    assert stale.exit_code == 1 and "driver 570, not 580" in stale.output
    same = asked(tmp_path / "a", "--verify", table)
    assert same.exit_code == 2 and "the table has every case of these" in same.output


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ((), "name runs, as results/, or suites"),
        (("{}", "--margin", "0.9"), "--margin is a ratio of at least 1, got 0.9"),
        (("{}", "--margin", "nan"), "--margin is a ratio of at least 1, got nan"),
        (("{}", "--verify", "{}/nowhere.json"), "cannot be read"),
        (("{}/empty",), "no case has a baseline with a time of a GPU"),
        (("{}", "--verify", "x", "-o", "y"), "--verify makes no table"),
        (("{}", "-f", "rms_nrm"), "--family: no 'rms_nrm' in these runs"),
        (("{}", "-p", "tritn"), "--provider: no 'tritn' in these runs"),
    ],
)
def test_bad_input_is_named(words: Sequence[str], why: str, tmp_path: Path) -> None:
    a_run(tmp_path, "one", [record(), ours()], **manifest_of())
    a_run(tmp_path / "empty", "two", [ours()], **manifest_of())
    done = asked(*(word.format(tmp_path) for word in words))
    assert done.exit_code == 2 and why in " ".join(done.output.split())


@pytest.mark.parametrize("again", ["wins", "loses", "ends without a time"])
def test_what_wins_under_suspicion_is_measured_again_and_what_has_no_room_at_half(
    again: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a suite that is measured now; who measures is scripted. again: what becomes of the one
    under suspicion."""
    seen: list[list[str]] = []

    def records_of(job: Any, number: int) -> list[RunRecord]:
        shared = {
            "case": job.case.id,
            "axes": job.case.as_axes(),
            "group": f"{number}{job.case.id}",
        }
        shared |= {"run_id": f"run{number}", "utc": f"2026-01-0{number}T00:00:00Z"}
        full = job.case.M == 8192 and number == 1
        other = {"status": Status.oom, "reason": "no room", "timing": None} if full else {}
        if job.case.M == 64 and number == 2 and again == "loses":
            other = {"timing": timing(9.9)}
        if job.case.M == 64 and number == 2 and again == "ends without a time":
            shared |= {"status": Status.crashed, "reason": "killed", "timing": None}
        flags = ("shared",) if job.case.M == 64 else ()
        return [record(**shared), ours(flags=flags, **(shared | other))]

    def run_one(plan: Any, options: Any, out: Path, output: Any) -> Any:
        seen.append([job.case.id for job in plan.jobs])
        number = len(seen)
        lines = [each for job in plan.jobs for each in records_of(job, number)]
        return SimpleNamespace(interrupted=0), a_run(out, f"run{number}", lines, **manifest_of())

    cases = [{"M": [64, 128, 8192], "N": 256, "providers": ["eager", "triton_fused"]}]
    suite = {"name": "s", "device": "cpu", "families": {"rms_norm": {"cases": cases}}}
    path = tmp_path / "s.yaml"
    path.write_text(json.dumps(suite))
    monkeypatch.setattr("kernelbench.verbs.run.run_one", run_one)
    table = tmp_path / "dispatch.json"
    done = asked(path, "--runs", tmp_path / "runs", "--out", table)
    assert done.exit_code == 0, done.output
    assert [len(ids) for ids in seen] == [3, 2]
    assert [each.split("-")[0] for each in seen[1]] == ["M64", "M4096"]
    said = " ".join(done.output.split())
    assert "won under suspicion, so it is measured once more" in said
    assert "out of memory, which keeps the baseline; M4096-N256-bf16-fwd is measured" in said
    chosen = {entry.axes["M"]: entry.choice for _, entry in Table.read(table).entries()}
    won = "triton" if again == "wins" else "eager"
    assert chosen == {64: won, 128: "triton", 8192: "eager", 4096: "triton"}


def test_an_interrupted_run_chooses_nothing_and_half_of_some_cases_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_one(plan: Any, options: Any, out: Path, output: Any) -> Any:
        lines = [
            each
            for job in plan.jobs
            for shared in [{"case": job.case.id, "axes": job.case.as_axes(), "group": job.case.id}]
            for each in (record(**shared), ours(flags=("shared",), **shared))
        ]
        return SimpleNamespace(interrupted=130), a_run(out, "run", lines, **manifest_of())

    monkeypatch.setattr("kernelbench.verbs.run.run_one", run_one)
    out = tmp_path / "dispatch.json"
    done = asked("smoke", "-f", "rms_norm", "--runs", tmp_path / "runs", "--out", out)
    assert done.exit_code == 130 and "Nothing was chosen" in done.output
    assert not out.exists()
    case = families.load(())["rotary"].case.from_axes(
        {"B": 1, "S": 1, "Hq": 1, "Hk": 1, "D": 2, "dtype": "bf16"}
    )
    assert verb._half(Job(family="rotary", case=case, providers=("eager",))) is None


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has times")
def test_without_a_gpu_nothing_can_be_chosen(tmp_path: Path) -> None:
    done = asked("smoke", "--family", "rms_norm", "--runs", tmp_path)
    assert done.exit_code == 2
    assert "no case has a baseline with a time of a GPU" in " ".join(done.output.split())
