"""Tables of choices: what is read from them, what is stale, and what is chosen where nothing was
measured."""

import json
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kernelbench.dispatch import (
    Dispatch,
    Entry,
    FamilyTable,
    NoChoiceError,
    Option,
    Table,
    TableError,
    Where,
    as_python,
)
from kernelbench.dispatch.tree import fewest, loss

H200 = Where(gpu="NVIDIA H200", arch="sm_90", driver="580", torch="2.11.0", triton="3.6.0")
AMONG = ("eager", "compile", "triton", "peer")


def entry(best: dict[str, float], behind: dict[str, float] | None = None, **axes: Any) -> Entry:
    """An entry whose options are `best`, the baseline `eager`, and `behind`."""
    speeds = {**best, "eager": 1.0, **(behind or {})}
    options = tuple(
        Option(name, x, *((x, x) if name == "eager" else (round(0.98 * x, 4), round(1.02 * x, 4))))
        for name, x in speeds.items()
    )
    known = {"dtype": "bf16", "mode": "fwd", "reason": "why", "regret_pct": 0.5, "processes": 3}
    facts = {name: axes.pop(name) for name in ("dtype", "mode") if name in axes}
    return Entry(**{**known, **facts}, axes={"eps": 1e-6, **axes}, options=options)


def table(*entries: Entry, **facts: Any) -> Table:
    family = FamilyTable(
        baseline="eager", source="abc", defaults={"eps": 1e-6, "residual": False}, entries=entries
    )
    return Table(where=H200, families={"rms_norm": family}, **facts)


GRID = table(
    entry({"triton": 2.0, "compile": 1.5}, M=1024, N=512, residual=False),
    entry({"triton": 2.2, "compile": 1.6}, M=4096, N=512, residual=False),
    entry({"peer": 3.0, "triton": 2.5}, M=1024, N=2048, residual=False),
    entry({"peer": 3.5, "triton": 3.0}, {"compile": 0.9}, M=4096, N=2048, residual=False),
    entry({}, {"triton": 0.8}, M=1024, N=512, residual=True),
)


def chosen(dispatch: Dispatch, among: tuple[str, ...] = AMONG, **axes: Any) -> tuple[str, str]:
    found = dispatch.choose("rms_norm", "bf16", "fwd", tuple(axes.items()), among)
    return found.provider, found.how


def test_what_was_measured_is_chosen_by_its_entry() -> None:
    dispatch = Dispatch(GRID, H200)
    assert chosen(dispatch, M=1024, N=512) == ("triton", "measured")
    assert chosen(dispatch, M=1024, N=512, eps=1e-6) == ("triton", "measured")
    assert chosen(dispatch, M=4096, N=2048) == ("peer", "measured")
    assert chosen(dispatch, M=1024, N=512, residual=True) == ("eager", "measured")


def test_an_axis_that_came_later_was_at_its_default() -> None:
    dispatch = Dispatch(table(entry({"triton": 2.0}, M=1024, N=512)), H200)
    assert chosen(dispatch, M=1024, N=512, residual=False) == ("triton", "measured")
    assert chosen(dispatch, M=1024, N=512, residual=True) == ("eager", "baseline")


def test_of_those_that_the_caller_has() -> None:
    """And nothing that the baseline is faster than."""
    dispatch = Dispatch(GRID, H200)
    assert chosen(dispatch, ("eager", "triton"), M=4096, N=2048) == ("triton", "measured")
    assert chosen(dispatch, ("eager", "compile"), M=4096, N=2048) == ("eager", "measured")
    found = dispatch.choose(
        "rms_norm", "bf16", "fwd", (("M", 1024), ("N", 2048)), ("eager", "triton")
    )
    assert found.reason == "peer, which was chosen, is not to be had here" and found.speedup == 2.5


def test_what_the_baseline_beats_is_not_chosen_under_another_name_of_the_baseline() -> None:
    dispatch = Dispatch(table(entry({}, {"triton": 0.8}, M=1, N=1)), H200)
    assert chosen(dispatch, ("torch", "triton"), M=1, N=1) == ("torch", "measured")
    assert chosen(Dispatch(GRID, H200), ("torch", "triton"), M=1024, N=512)[0] == "triton"


def test_nothing_lies_between_a_size_and_what_zero_stands_for() -> None:
    cases = [entry({"triton": 2.0}, M=1, window=window) for window in (0, 4096, 8192)]
    dispatch = Dispatch(table(*cases), H200)
    assert chosen(dispatch, M=1, window=512) == ("eager", "baseline")
    assert chosen(dispatch, M=1, window=5000) == ("triton", "between")


def test_code_that_nobody_knows_is_not_what_was_measured() -> None:
    assert "its code is another" in Dispatch(GRID, H200, {}).stale["rms_norm"]


def test_between_measured_cases_only_what_is_worth_it_at_all_of_them() -> None:
    dispatch = Dispatch(GRID, H200)
    assert chosen(dispatch, M=2000, N=512) == ("triton", "between")
    assert chosen(dispatch, M=2000, N=1000) == ("triton", "between")
    assert chosen(dispatch, M=2000, N=2048) == ("peer", "between")
    assert chosen(dispatch, ("eager", "compile"), M=2000, N=1000) == ("eager", "between")
    found = dispatch.choose("rms_norm", "bf16", "fwd", (("M", 2000), ("N", 512)), AMONG)
    assert found.speedup == pytest.approx((2.0 * 2.2) ** 0.5)


def test_a_missing_corner_is_no_measurement() -> None:
    dispatch = Dispatch(table(*GRID.families["rms_norm"].entries[:3]), H200)
    assert chosen(dispatch, M=2000, N=1000) == ("eager", "baseline")
    assert chosen(dispatch, M=2000, N=512) == ("triton", "between")


@pytest.mark.parametrize(
    ("on_miss", "expected"), [("baseline", ("eager", "baseline")), ("nearest", ("peer", "nearest"))]
)
def test_beyond_what_was_measured(on_miss: Any, expected: tuple[str, str]) -> None:
    assert chosen(Dispatch(GRID, H200, on_miss=on_miss), M=9000, N=4096) == expected


def test_a_miss_may_be_an_error() -> None:
    dispatch = Dispatch(GRID, H200, on_miss="error")
    with pytest.raises(NoChoiceError, match="rms_norm: nothing like it was measured"):
        chosen(dispatch, M=9000, N=4096)
    with pytest.raises(NoChoiceError, match="rotary: nothing like it was measured"):
        dispatch.choose("rotary", "bf16", "fwd", (), ("eager",))
    with pytest.raises(ValueError, match="on_miss is one of baseline, nearest, error, got 'pray'"):
        Dispatch(GRID, H200, on_miss="pray")  # type: ignore[arg-type]


def test_another_dtype_mode_or_kind_was_not_measured() -> None:
    dispatch = Dispatch(GRID, H200, on_miss="nearest")
    for dtype, mode, axes in (
        ("fp16", "fwd", (("M", 1024), ("N", 512))),
        ("bf16", "bwd", (("M", 1024), ("N", 512))),
        ("bf16", "fwd", (("M", 1024), ("N", 512), ("casting", "llama"))),
    ):
        found = dispatch.choose("rms_norm", dtype, mode, axes, AMONG)
        assert (found.provider, found.how) == ("eager", "baseline")


def test_what_the_user_forces_wins_and_choosing_can_be_off() -> None:
    forced = Dispatch(GRID, H200, forced={"rms_norm": "compile"}, enabled=False)
    assert chosen(forced, M=1024, N=512) == ("compile", "forced")
    with pytest.raises(ValueError, match="compile is forced for rms_norm, which has eager, triton"):
        chosen(forced, ("eager", "triton"), M=1024, N=512)
    assert chosen(Dispatch(GRID, H200, enabled=False), M=1024, N=512) == ("eager", "off")


@pytest.mark.parametrize(
    ("here", "sources", "why"),
    [
        (replace(H200, gpu="NVIDIA H100"), {}, "it is of gpu NVIDIA H100, not NVIDIA H200"),
        (replace(H200, driver=""), {}, "it is of driver unknown, not 580"),
        (replace(H200, torch="2.12.0", triton="3.7"), {}, "it is of torch 2.12.0, not 2.11.0, tri"),
        (H200, {"rms_norm": "other"}, "its code is another"),
    ],
)
def test_what_is_stale_is_said_once_and_not_used(
    here: Where, sources: dict[str, str], why: str
) -> None:
    said: list[str] = []
    dispatch = Dispatch(GRID, here, sources, say=said.append)
    assert chosen(dispatch, M=1024, N=512) == chosen(dispatch, M=1, N=1) == ("eager", "baseline")
    assert len(said) == 1 and why in said[0] and "`kernelbench select`" in said[0]
    assert list(dispatch.stale) == ["rms_norm"]


def test_what_is_not_stated_does_not_matter() -> None:
    loose = replace(GRID, where=Where(arch="sm_90"))
    assert chosen(Dispatch(loose, H200, {"rms_norm": "abc"}), M=1024, N=512)[0] == "triton"
    assert Dispatch(loose, replace(H200, arch="sm_80")).stale


def test_everything_that_was_decided_can_be_listed() -> None:
    dispatch = Dispatch(GRID, H200)
    chosen(dispatch, M=1024, N=512)
    chosen(dispatch, M=7, N=512)
    chosen(dispatch, M=1024, N=512)
    listed = {case: (each.provider, each.how) for case, each in dispatch.decisions.items()}
    assert listed == {
        "rms_norm/M1024-N512-bf16-fwd": ("triton", "measured"),
        "rms_norm/M7-N512-bf16-fwd": ("eager", "baseline"),
    }


def test_what_is_not_in_the_table_can_be_measured_when_it_is_first_asked_for() -> None:
    asked: list[Any] = []

    def measure(*case: Any) -> Entry | None:
        asked.append(case)
        return entry({"compile": 4.0}, M=9000, N=512) if case[0] == "rms_norm" else None

    dispatch = Dispatch(GRID, H200, measure=measure)
    assert chosen(dispatch, M=1024, N=512) == ("triton", "measured")
    assert chosen(dispatch, M=2000, N=512) == ("triton", "between") and not asked
    for _ in range(3):
        assert chosen(dispatch, M=9000, N=512) == ("compile", "measured")
        found = dispatch.choose("rotary", "bf16", "fwd", (("B", 1),), AMONG)
        assert (found.provider, found.how) == ("eager", "baseline")
    assert asked == [
        ("rms_norm", "bf16", "fwd", {"M": 9000, "N": 512}), ("rotary", "bf16", "fwd", {"B": 1}),
    ]  # fmt: skip
    assert dispatch.summary()["rms_norm/M9000-N512-bf16-fwd"] == {
        "provider": "compile", "how": "measured", "reason": "why", "speedup": 4.0,
    }  # fmt: skip


def test_what_lost_to_the_familys_own_baseline_is_not_chosen_when_it_is_measured() -> None:
    """The caller's baseline is another provider."""
    lost = entry({}, {"triton": 1.045, "compile": 1.0}, M=1, N=8)  # at least 1.024: no margin
    dispatch = Dispatch(None, H200, measure=lambda *case: lost)
    assert chosen(dispatch, ("compile", "triton"), M=1, N=8) == ("compile", "measured")


def test_threads_are_told_the_same() -> None:
    dispatch, found = Dispatch(GRID, H200), list[Any]()

    def ask() -> None:
        for size in range(900, 5000, 100):
            axes = (("M", size), ("N", 512))
            found.append((size, dispatch.choose("rms_norm", "bf16", "fwd", axes, AMONG)))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 * 41
    assert len({(size, id(choice)) for size, choice in found}) == 41


def test_a_choice_that_was_made_is_a_look_up() -> None:
    """Under 2 µs, of the fastest of many."""
    dispatch, axes = Dispatch(GRID, H200), (("M", 2000), ("N", 512))
    dispatch.choose("rms_norm", "bf16", "fwd", axes, AMONG)

    def once() -> float:
        start = time.perf_counter_ns()
        for _ in range(100):
            dispatch.choose("rms_norm", "bf16", "fwd", axes, AMONG)
        return (time.perf_counter_ns() - start) / 100

    assert min(once() for _ in range(50)) < 2000


def test_a_table_is_json_for_people_and_the_same_when_read(tmp_path: Path) -> None:
    path = tmp_path / "dispatch.json"
    path.write_text(GRID.to_json())
    assert Table.read(path) == GRID
    lines = path.read_text().splitlines()
    assert sum('"dtype"' in line for line in lines) == len(GRID.families["rms_norm"].entries)
    assert json.loads(path.read_text())["schema"] == 1
    wild = entry({"triton": 12.0, "compile": 2.0}, M=1, N=1)
    options = (replace(wild.options[0], lo=3.1e-6, hi=float("inf")), *wild.options[1:])
    path.write_text(table(replace(wild, options=options)).to_json())
    assert next(each for _, each in Table.read(path).entries()).options == options
    empty = replace(GRID, families={})
    path.write_text(empty.to_json())
    assert Table.read(path) == empty


def spoiled(change: Callable[[Any, Any], None]) -> str:
    """change: is given the family's facts, and those of its first entry."""
    facts = json.loads(GRID.to_json())
    change(facts["families"]["rms_norm"], facts["families"]["rms_norm"]["entries"][0])
    return json.dumps(facts)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "not JSON"),
        ("[]", "no dispatch table"),
        ("{}", "no dispatch table (no 'schema')"),
        (GRID.to_json().replace('"schema": 1', '"schema": 2'), "schema 2, this version reads 1"),
        (GRID.to_json().replace('"gpu":', '"moon":'), "unexpected keyword argument 'moon'"),
        (spoiled(lambda f, e: f.update(baseline="x")), "without its baseline x"),
        (spoiled(lambda f, e: e["options"].update(eager=[0, 1, 1])), "a speedup that is none"),
        (spoiled(lambda f, e: e["axes"].update(M=[1])), "an axis that is neither"),
        (spoiled(lambda f, e: f.update(defaults=[1])), "cannot convert"),
        (spoiled(lambda f, e: e.pop("reason")), "missing 1 required keyword-only argument"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_table_is_named(text: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "dispatch.json"
    path.write_text(text)
    with pytest.raises(TableError) as error:
        Table.read(path)
    assert str(error.value).startswith(f"{path}: ") and why in str(error.value)
    with pytest.raises(TableError, match="cannot be read"):
        Table.read(tmp_path / "nowhere.json")


def of_python(made: Table) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(as_python(made), names)
    return names


def test_the_tree_loses_at_most_one_per_cent_anywhere() -> None:
    choose = of_python(GRID)["rms_norm"]
    for each in GRID.families["rms_norm"].entries:
        axes = {name: each.axes[name] for name in ("M", "N", "residual")}
        assert loss(each, choose(each.dtype, each.mode, **axes), "eager") <= 0.01
    assert choose("fp32", "fwd", M=1, N=1, residual=False) == "eager"


def test_the_tree_has_the_fewest_providers_and_asks_no_more_than_it_must() -> None:
    small = [entry({"peer": 2.01, "triton": 2.0}, M=m, N=512) for m in (512, 1024, 2048)]
    close = [*small, *(entry({"triton": 3.0}, M=m, N=512) for m in (4096, 8192))]
    assert fewest(close, "eager") == ["triton"]
    assert as_python(table(*close)).count("if ") == 1, "of dtype and mode alone"
    far = [*close, entry({"peer": 2.0}, M=16384, N=512)]
    assert fewest(far, "eager") == ["triton", "peer"]
    text = as_python(table(*far))
    assert text.count("if ") == 2 and "if M <= 11585:" in text
    assert of_python(table(*far))["rms_norm"]("bf16", "fwd", M=11585) == "triton"
    assert of_python(table(*far))["rms_norm"]("bf16", "fwd", M=11586) == "peer"


def test_the_tree_takes_any_name_and_axes_that_came_later() -> None:
    cases = (entry({"triton": 2.0}, M=1, N=1), entry({"peer": 2.0}, M=1, N=1, residual=True))
    family = replace(table(*cases).families["rms_norm"])
    choose = of_python(replace(GRID, families={"my-op": family}))["my_op"]
    assert choose("bf16", "fwd", residual=False) == "triton"
    assert choose("bf16", "fwd", residual=True) == "peer"


def test_what_the_baseline_beats_is_never_in_the_tree() -> None:
    slow = entry({}, {"triton": 0.999}, M=1, N=1)
    assert loss(slow, "triton", "eager") == float("inf") and fewest([slow], "eager") == ["eager"]


def test_words_and_flags_are_asked_by_name() -> None:
    kinds = [
        entry({"triton": 2.0}, M=64, layout="bshd", on=True),
        entry({"peer": 2.0}, M=64, layout="bhsd", on=True),
        entry({"compile": 2.0}, M=64, layout="bhsd", on=False),
    ]
    choose = of_python(table(*kinds))["rms_norm"]
    for each in kinds:
        axes = {name: each.axes[name] for name in ("layout", "on")}
        assert choose("bf16", "fwd", **axes) == each.choice


def test_a_table_from_a_file_as_it_holds_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import kernelbench
    from kernelbench import families
    from kernelbench.source import source_hash
    from kernelbench.verbs import choosing

    path, now = tmp_path / "dispatch.json", source_hash(families.load(())["rms_norm"])
    made = replace(GRID.families["rms_norm"], source=now)
    path.write_text(replace(GRID, families={"rms_norm": made}).to_json())
    monkeypatch.setattr(choosing, "here", lambda: H200)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dispatch = kernelbench.dispatch_from(path)
        assert chosen(dispatch, M=1024, N=512) == ("triton", "measured")
        off = kernelbench.dispatch_from(path, benchmark_kernels=False, forced={"rotary": "x"})
        assert chosen(off, M=1024, N=512) == ("eager", "off")
    path.write_text(GRID.to_json())
    with pytest.warns(UserWarning, match="not used for rms_norm: its code is another"):
        assert chosen(kernelbench.dispatch_from(path), M=1024, N=512) == ("eager", "baseline")
    path.write_text("{")
    with pytest.warns(UserWarning, match="not JSON .*; every choice is the baseline"):
        assert chosen(kernelbench.dispatch_from(path), M=1024, N=512) == ("eager", "baseline")


def test_this_machine_is_told_as_manifests_tell_it() -> None:
    from kernelbench.measure import environment
    from kernelbench.select import where_of
    from kernelbench.verbs import choosing

    kind = environment.settled("auto")
    assert choosing.here() == where_of([{"machine": environment.describe(kind)}])
    assert H200.differs(choosing.here())


def test_the_first_call_measures_by_the_rules_of_select(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_metrics import ours, record, timing

    import kernelbench
    from kernelbench.spec import RunRecord, Status, UsageError
    from kernelbench.verbs import choosing

    found: list[RunRecord] = [record(), ours()]
    asked: list[Any] = []

    def bench(family: str, **axes: Any) -> list[RunRecord]:
        asked.append((family, axes))
        return found

    (tmp_path / "t.json").write_text(replace(GRID, where=Where()).to_json())
    monkeypatch.setattr(choosing, "bench", bench)

    def ask(m: int) -> tuple[str, str]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*its code is another")
            dispatch = kernelbench.dispatch_from(tmp_path / "t.json", tune="first-call")
        return chosen(dispatch, M=m, N=512)

    assert ask(9000) == ("triton", "measured")
    assert asked == [("rms_norm", {"dtype": "bf16", "mode": "fwd", "M": 9000, "N": 512})]
    found[1] = ours(status=Status.oom, timing=None)
    with pytest.warns(UserWarning, match="out of memory while choosing, so not chosen: triton"):
        assert ask(9000) == ("eager", "measured")
    found[:] = [record(timing=timing(1, timer="host"))]
    with pytest.warns(UserWarning, match="rms_norm cannot be chosen for: no case has a baseline"):
        assert ask(9000) == ("eager", "baseline")

    def refuses(family: str, **axes: Any) -> list[RunRecord]:
        raise UsageError("no axis 'M'")

    monkeypatch.setattr(choosing, "bench", refuses)
    with pytest.warns(UserWarning, match="rms_norm cannot be chosen for: no axis 'M'"):
        assert ask(9000) == ("eager", "baseline")
    with pytest.raises(ValueError, match="tune is one of never, first-call, monitor, got 'always'"):
        kernelbench.dispatch_from(tmp_path / "t.json", tune="always")  # type: ignore[arg-type]
