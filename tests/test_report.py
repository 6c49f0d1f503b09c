"""What a reader sees: at 100 columns no number is cut, and none says more than was measured."""

import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_metrics import MIB, blocks, error, fused, ours, record, timing

from kernelbench import metrics, store
from kernelbench.report import means, sheet, tables, terminal
from kernelbench.report.choice import choice
from kernelbench.report.progress import Output
from kernelbench.spec import Accuracy, Role, RunRecord, Status, Traffic, TrialErrors
from kernelbench.verbs.report import ReportRequest, report

LONG = "B2-H16-S4096-D128-causal-window=512-prefix=1024-softcap=30.0-inputs=outliers-bf16-fwd"
UNFUSED = (Traffic("x", read=64 * MIB), Traffic("t", read=64 * MIB, write=128 * MIB))
FUSED = (Traffic("x", read=64 * MIB), Traffic("y", write=64 * MIB))
LOOSE = error("y", 1.2e-2, 5e-2)
OURS = "rms_norm_triton"


def job(case: str = "M4096-N4096-bf16-fwd", scale: float = 1, **facts: Any) -> list[RunRecord]:
    """A baseline, two rivals, two of ours, and two that have no time."""
    facts = {"case": case, "group": case, "errors": (error("y", 1.7e-3, 6e-3),)} | facts
    loose = facts | {"errors": (LOOSE,), "accuracy": Accuracy.approximate}
    return [
        record(
            traffic=UNFUSED, timing=timing(128.4 * scale, again_ns=blocks(129 * scale)), **facts
        ),
        fused("torch_compile_max_autotune_no_cudagraphs", timing=timing(51 * scale), **facts),
        fused("f_rms_norm", timing=timing(46.1 * scale), **facts),
        ours("rms_norm_triton", timing=timing(39.52 * scale), traffic=FUSED, **facts),
        ours("rms_norm_triton_persistent", timing=timing(46.0 * scale), traffic=FUSED, **facts),
        ours("rms_norm_int8", timing=timing(20 * scale), prepacked=True, **loose),
        record("liger", Role.peer, status=Status.skipped, reason="needs liger_kernel", **facts),
        record(
            "two_kernels",
            Role.ablation,
            **facts | {"status": Status.incorrect, "reason": "y: 4e-2 above 6e-3", "timing": None},
        ),
    ]


def show(records: list[RunRecord], width: int = 100, **options: Any) -> str:
    out = io.StringIO()
    every = choice(("cases",), sheet.source(metrics.rows_of(records)))
    terminal.show(every, Console(file=out, width=width, **options))
    return out.getvalue()


def lines_of(text: str, provider: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines() if line.startswith(f"{provider} ")]


def test_a_table_says_what_was_measured() -> None:
    text = show(job(label="llama"))
    assert "rms_norm · fwd · bf16 · NVIDIA H200" in text
    assert "llama  M4096-N4096-bf16-fwd" in text
    (eager,) = lines_of(text, "eager")
    assert re.split(r"\s{2,}", eager) == [
        "eager",
        "128.4 µs ±0%",
        "0.36",
        "1.00",
        "0.41%",
        "1.7e-3",
        "28%",
        "1.0e-1",
        "10%",
    ]
    (mine,) = (line for line in lines_of(text, "rms_norm_triton") if "µs" in line)
    assert re.split(r"\s{2,}", mine)[2:4] == ["1.17", "3.25 [3.25, 3.25]"]


def test_the_cosine_of_approximate_providers_is_shown_with_their_error() -> None:
    assert "cosine" not in show(job())
    near = replace(LOOSE, cosine=0.999836)
    fast = replace(job()[5], errors=(near,))
    text = show([job()[0], fast])
    assert re.search(r"int8 ≈ +≈ cosine 0\.99984 *$", text, re.MULTILINE)
    fast = replace(fast, promised={"error": 0.05, "outliers": 0.2, "large": "scores are rounded"})
    text = show([job()[0], fast])
    told = "≈ cosine 0.99984, promises error 0.05, on outliers 0.2, on large nothing (scores are"
    assert told in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 100


def test_what_nothing_was_proven_on_is_shown_once_for_all_or_by_provider() -> None:
    refused = TrialErrors(trial="outliers", unproven="no outliers here")
    left = TrialErrors(trial="small", unproven="it promises nothing")
    first, *others = [replace(record, trials=(refused,)) for record in job()]
    text = show([first, *others])
    assert text.count("no outliers here") == 1
    (line,) = lines_of(text, "all")
    assert re.fullmatch(r"all +not proven on outliers \(no outliers here\)", line)
    text = show([replace(first, trials=(refused, left)), *others])
    assert " ".join(text.split()).count("(no outliers here), small (it promises nothing)") == 1
    assert lines_of(text, "all") == []


def test_every_number_says_its_kind() -> None:
    text = show(job())
    assert "measured: time, errors. derived: speedups (×). mixed: % of ceiling" in text


def test_a_difference_inside_the_noise_is_no_number() -> None:
    text = show(job())
    (line,) = [x for x in text.splitlines() if "46.00 µs" in x]
    assert re.split(r"\s{2,}", line)[2] == "~"
    assert "rms_norm_triton_persistent 1.00 × the best other" in text
    assert "1 within noise" in text


def test_what_has_no_time_says_why() -> None:
    text = show(job())
    for name, said in (
        ("liger", "skipped: needs liger_kernel"),
        ("two_kernels", "incorrect: y: 4e-2 above 6e-3"),
    ):
        (line,) = lines_of(text, name)
        assert line.split(maxsplit=1)[1] == said


def test_doubts_are_shown() -> None:
    records = [replace(r, flags=("shared",)) for r in job()[:4]]
    records[2] = replace(records[2], timing=timing(46, timer="ungated"), flags=())
    text = show(records)
    assert "eager" in text
    assert lines_of(text, "rms_norm_triton")[-1].endswith("! shared")
    assert "! no speedup: the queue ran dry" in lines_of(text, "f_rms_norm")[-1]
    assert "1 flagged" in text
    assert "! prepacked" in show(job())
    assert "rms_norm_int8 ≈" in show(job())


@pytest.mark.parametrize("width", [40, 80, 100, 160])
def test_no_number_is_cut(width: int) -> None:
    records = [
        *job(LONG, 1234.5),
        *job("M1-N1-bf16-fwd", 0.0217),
        *job("M1048576-N1048576-bf16-fwd", 98765.4321, label="a_long_label_of_a_model"),
    ]
    text = show(records, width)
    assert "…" not in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= max(width, 100)
    assert LONG in text
    for row in metrics.frame(records).to_dict("records"):
        if row["status"] == "ok":
            for cell in (tables._time(row), tables._speedup(row), tables._error(row)):
                assert cell in text
    for piece in ("torch_compile_", "rms_norm_triton"):
        assert piece in text


@pytest.mark.parametrize(
    ("us", "arm", "expected"),
    [
        (0.5, 0.001, "500.0 ns ±0.2%"),
        (12.345678, 0.1, "12.35 µs ±0.81%"),
        (1234.5, 200, "1.234 ms ±16%"),
        (2.5e6, 2.5e6, "2.500 s ±100%"),
    ],
)
def test_times_take_the_unit_that_suits_them(us: float, arm: float, expected: str) -> None:
    assert tables._time({"median_us": us, "lo_us": us - arm, "hi_us": us}) == expected


def test_a_smoke_run_says_nothing_about_speed() -> None:
    records = smoke(*job(ceilings=None))
    text = show(records)
    assert tables.SMOKE in text
    assert "correct" in text
    assert "1.7e-3" in text
    assert "6.0e-3" in text
    for word in ("×", "µs", "ceiling", "speedup", "~", "MiB", "mean"):
        assert word not in text
    assert "skipped: needs liger_kernel" in text


def test_columns_that_nobody_fills_are_left_out() -> None:
    bare = [replace(r, ceilings=None) for r in job()]
    assert not re.search(r"% of *\n|% of  |ceiling\n", show(bare))
    assert re.search(r"% of  .*\n.*ceiling", show(job()))


def test_tables_are_one_a_family_mode_and_dtype() -> None:
    records = [*job(), *job(mode="bwd"), *job(dtype="fp32"), *job(family="rotary")]
    titles = [
        str(table.title) for table in tables.run_tables(metrics.filled(metrics.rows_of(records)))
    ]
    assert titles == [
        "rms_norm · fwd · bf16 · NVIDIA H200",
        "rms_norm · bwd · bf16 · NVIDIA H200",
        "rms_norm · fwd · fp32 · NVIDIA H200",
        "rotary · fwd · bf16 · NVIDIA H200",
    ]


def smoke(*records: RunRecord) -> list[RunRecord]:
    return [
        replace(r, timing=timing(10, timer="host") if r.timing else None, gpu="a CPU", group="")
        for r in records
    ]


def titles(records: list[RunRecord]) -> list[str]:
    return [
        str(table.title) for table in tables.run_tables(metrics.filled(metrics.rows_of(records)))
    ]


def test_smoke_runs_have_one_table_a_family() -> None:
    records = smoke(*job(), *job(mode="bwd", dtype="fp32"), *job(family="rotary"))
    assert titles(records) == ["rms_norm · a CPU · smoke", "rotary · a CPU · smoke"]


def test_smoke_is_said_of_the_machine_not_of_what_went_well_on_it() -> None:
    lost = record(family="rotary", status=Status.failed, timing=None, gpu="a CPU")
    assert titles([*smoke(*job()), lost])[1] == "rotary · a CPU · smoke"
    assert titles([*smoke(*job()), *job()]) == [
        "rms_norm · a CPU · smoke",
        "rms_norm · fwd · bf16 · NVIDIA H200",
    ]
    both = str(tables.summary(metrics.filled(metrics.rows_of([*smoke(*job()), *job()]))))
    assert f"{tables.SMOKE} (a CPU)" in both
    assert "smoke" not in show(job())


@pytest.mark.parametrize("width", [60, 100])
def test_a_title_is_not_folded_where_nothing_could_be_measured(width: int) -> None:
    lost = record("x", status=Status.oom, timing=None, reason="", case="a", label="")
    first, empty, title, *_ = map(str.rstrip, show([lost], width).splitlines())
    assert (first, empty) == ("rms_norm/a x: oom", "")
    assert title == "rms_norm · fwd · bf16 · NVIDIA H200"


def test_markup_in_a_name_is_text() -> None:
    assert "[/b] · fwd" in show(job(family="[/b]"))


def test_headlines_pool_neither_runs_nor_gpus() -> None:
    def faster(scale: float, **facts: Any) -> list[RunRecord]:
        made = [replace(r, **facts) for r in job()[:4]]
        return [*made[:3], replace(made[3], timing=timing(46.1 / scale))]

    alone = str(tables.summary(metrics.filled(metrics.rows_of(faster(2)))))
    assert "rms_norm fwd: rms_norm_triton 2.00 ×" in alone
    second = faster(8, run_id="second", group="g2")
    text = str(tables.summary(metrics.filled(metrics.rows_of([*faster(2), *second]))))
    assert "8 records of 2 runs: 8 ok" in text
    assert "rms_norm fwd in run: rms_norm_triton 2.00 ×" in text
    assert "rms_norm fwd in second: rms_norm_triton 8.00 ×" in text
    second = faster(8, gpu="NVIDIA A100", group="g2")
    text = str(tables.summary(metrics.filled(metrics.rows_of([*faster(2), *second]))))
    assert "rms_norm fwd on NVIDIA H200: rms_norm_triton 2.00 ×" in text
    assert "rms_norm fwd on NVIDIA A100: rms_norm_triton 8.00 ×" in text


def test_many_headlines_are_lines_of_a_table() -> None:
    records = [
        replace(r, run_id=f"run-{n}", group=f"g{n}", timing=timing(46.1 / n) if r.provider == OURS
                else r.timing)
        for n in range(1, tables.MOST_HEADLINES + 2)
        for r in job()[:4]
    ]  # fmt: skip
    _, head, *lines = str(tables.summary(metrics.filled(metrics.rows_of(records)))).splitlines()
    assert head == "geometric means against the best other, derived:"
    assert len(lines) == tables.MOST_HEADLINES + 1
    assert lines[1].split() == ["rms_norm", "fwd", OURS, "2.00", "×", "run-2", "1", "case"]
    assert len({line.index("run-") for line in lines}) == 1


def test_two_runs_side_by_side_are_told_apart() -> None:
    other = [replace(r, run_id="second", group="g2") for r in job()]
    assert "  second" in show([*job(), *other])
    assert "  run" not in show(job())


def test_the_headline_is_the_geometric_mean_over_the_cases() -> None:
    records = [*job("a"), *job("b")]
    records[3] = replace(records[3], timing=timing(46.1 / 2))
    records[11] = replace(records[11], timing=timing(46.1 / 8))
    text = str(tables.summary(metrics.filled(metrics.rows_of(records))))
    assert "16 records: 12 ok, 2 skipped, 2 incorrect" in text
    found = re.search(
        r"rms_norm fwd: rms_norm_triton 4.00 × the best other, derived \(geometric mean of 2 "
        r"cases, 2.00 to 8.00, 95 % (\S+) to (\S+) within this run\)",
        " ".join(text.split()),
    )
    assert found is not None
    assert 3.9 < float(found[1]) <= 4 <= float(found[2]) < 4.1
    assert "int8" not in text  # nothing of its accuracy to be held against


def test_nothing_and_only_failures_are_answers_too() -> None:
    assert "no records" in show([])
    text = show([record(status=Status.oom, timing=None, reason="2 GiB\nmore")])
    assert "oom: 2 GiB" in text
    assert "more" not in text
    assert "1 record: 1 oom" in text


def test_markup_in_a_reason_is_text() -> None:
    text = show([record(status=Status.failed, timing=None, reason="[bold]x[/] in [3, 4]")])
    assert "failed: [bold]x[/] in [3, 4]" in text


def test_plain_where_nobody_can_see_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b" not in show(job())
    monkeypatch.setenv("NO_COLOR", "1")
    colours = re.findall(r"\x1b\[[\d;]*3\dm", show(job(), force_terminal=True))
    assert colours == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.36, "0.36"),
        (0.006, "0.01"),
        (1.234, "1.23"),
        (9.6, "9.60"),
        (9.994, "9.99"),
        (9.996, "10.0"),
        (12.34, "12.3"),
        (99.96, "100"),
        (123.4, "123"),
        (12345.6, "12346"),
        (-1.5, "-1.50"),
        (math.inf, "inf"),
        (math.nan, ""),
    ],
)
def test_figures_are_three_and_never_round_a_number_away(value: float, expected: str) -> None:
    assert tables.figures(value) == expected


def test_scientific() -> None:
    assert tables._scientific(math.inf) == "inf"
    assert tables._scientific(0.0) == "0"
    assert tables._scientific(1.7e-3) == "1.7e-3"


@pytest.mark.parametrize(
    ("value", "lo", "hi", "noise", "expected"),
    [
        (1.3, 1.2, 1.4, 2.0, False),
        (1.015, 1.01, 1.02, 2.0, True),
        (0.985, 0.98, 0.99, 2.0, True),
        (1.03, 0.99, 1.07, 2.0, True),
        (0.9, 0.88, 0.92, 2.0, False),
        (1.3, 1.2, 1.4, math.nan, False),
        (1.3, 0.9, 1.4, math.nan, True),
        (1.0, math.nan, math.nan, 2.0, False),
        (math.nan, math.nan, math.nan, 2.0, False),
    ],
)
def test_within_noise(value: float, lo: float, hi: float, noise: float, expected: bool) -> None:
    facts = {"noise_pct": noise}
    for column in ("speedup", "speedup_best"):
        facts |= {column: value, f"{column}_lo": lo, f"{column}_hi": hi}
    assert means.within_noise(facts) is expected
    assert means.within_noise(facts, "speedup_best") is expected


def reported(folder: Path, **options: Any) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    code = report(
        ReportRequest(folders=(folder,), **options),
        Output(Console(file=out, width=120), Console(file=err)),
    )
    return code, out.getvalue(), err.getvalue()


def test_report_names_lines_that_it_cannot_read_and_shows_the_rest(tmp_path: Path) -> None:
    with store.create(tmp_path, "h200", "NVIDIA H200", {}) as run:
        run.append(job()[:4])
    assert reported(tmp_path)[::2] == (0, "")
    file = run.path / "records.jsonl"
    facts = json.loads(job()[0].to_json())
    with file.open("a", encoding="utf-8") as out:
        for change in ({"axes": [1]}, {"ceilings": {"read_gbps": "x"}}):
            out.write(json.dumps(facts | change) + "\n")
        out.write("[" * 100_000 + "\n")
    code, shown, said = reported(tmp_path)
    assert code == 1
    assert "rms_norm_triton" in shown and "could not be read" not in shown
    assert [line.split(": ")[0] for line in said.splitlines()[:-1]] == [
        f"{file}:{number}" for number in (5, 6, 7)
    ]
    assert said.splitlines()[-1] == "exit 1: 3 things could not be read"


def test_report_as_json_loses_no_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = 1e-17 / 3
    bad = record("bad", status=Status.incorrect, errors=(error("y", math.nan, 1),), timing=None)
    with store.create(tmp_path, "h200", "NVIDIA H200", {}) as run:
        run.append([record(errors=(error("y", tiny, 1e-2),)), bad])
    assert reported(tmp_path, format="json")[0] == 1
    first, second = json.loads(capsys.readouterr().out)
    assert (first["error_rel"], second["error_rel"]) == (tiny, "inf")
    assert second["median_us"] is None
