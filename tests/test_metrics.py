"""Every derived number, by hand-made records with answers that can be worked out on paper."""

import csv
import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from kernelbench import metrics
from kernelbench.measure.telemetry import THROTTLE
from kernelbench.numbers.times import median_ns
from kernelbench.spec import (
    Accuracy,
    KernelbenchError,
    OutputError,
    Role,
    RunRecord,
    Status,
    Timing,
    Traffic,
)

MIB = 2**20
CEILINGS = {"read_gbps": 4000.0, "write_gbps": 4000.0, "copy_gbps": 4000.0, "tflops": 500.0}


def blocks(time_us: float, rounds: int = 13) -> tuple[tuple[int, ...], ...]:
    """Ten samples a round, symmetric around a median of `time_us`, within ± 0.5 %."""
    return tuple(
        tuple(round(time_us * (1000 + step)) for step in (-5, -2, -1, -1, 0, 0, 1, 1, 2, 5))
        for _ in range(rounds)
    )


def timing(time_us: float, **facts: Any) -> Timing:
    return Timing(timer=facts.pop("timer", "gated"), blocks_ns=blocks(time_us), **facts)


def record(provider: str = "eager", role: Role = Role.baseline, **facts: Any) -> RunRecord:
    """A record of a 1 MiB → 1 MiB operator that took 10 µs, unless told otherwise."""
    known: dict[str, Any] = {
        "run_id": "run",
        "utc": "2026-07-30T12:00:00Z",
        "family": "rms_norm",
        "provider": provider,
        "case": "M1024-N512-bf16-fwd",
        "status": Status.ok,
        "role": role,
        "accuracy": Accuracy.exact,
        "mode": "fwd",
        "dtype": "bf16",
        "axes": {"M": 1024, "N": 512, "inputs": "normal", "dtype": "bf16", "mode": "fwd"},
        "group": "g1",
        "gpu": "NVIDIA H200",
        "flops": 2_000_000,
        "read_bytes": MIB,
        "write_bytes": MIB,
        "timing": timing(10),
        "ceilings": CEILINGS,
    }
    return RunRecord(**(known | facts))


def ours(provider: str = "triton", **facts: Any) -> RunRecord:
    return record(provider, Role.triton_fused, **({"timing": timing(4)} | facts))


def fused(provider: str = "compile", **facts: Any) -> RunRecord:
    return record(provider, Role.torch_fused, **({"timing": timing(5)} | facts))


def rows(*records: RunRecord) -> list[dict[str, Any]]:
    return [
        {str(k): v for k, v in row.items()} for row in metrics.frame(records).to_dict("records")
    ]


def row(*records: RunRecord) -> dict[str, Any]:
    """The row of the last record."""
    return rows(*records)[-1]


def empty(row: dict[str, Any], names: Iterable[str]) -> bool:
    return all(pd.isna(row[name]) or row[name] == "" for name in names)


SPEEDS = ["gbps", "tflops", "sol_pct", "bound", "speedup", "speedup_lo", "speedup_hi"]
BESTS = ["speedup_best", "speedup_best_lo", "speedup_best_hi", "best_other"]


def test_times_are_less_the_overhead_of_the_event_pair() -> None:
    found = row(record(timing=timing(10, overhead_ns=3000)))
    assert found["median_us"] == 7
    assert found["samples"] == 130
    assert found["lo_us"] == pytest.approx(6.99, abs=0.011)
    assert found["hi_us"] == pytest.approx(7.01, abs=0.011)
    assert (found["p20_us"], found["p80_us"]) == pytest.approx((6.98, 7.02), abs=0.011)
    assert found["iqr_pct"] == pytest.approx(0.02 / 7 * 100)


def test_a_time_below_the_overhead_is_none_and_has_no_speeds() -> None:
    assert median_ns(timing(2, overhead_ns=3000)) is None
    found = row(record(timing=timing(2, overhead_ns=3000)))
    times = ["median_us", "lo_us", "hi_us", "p20_us", "p80_us"]
    assert empty(found, [*times, *SPEEDS, *BESTS, "noise_pct", "iqr_pct"])


def test_the_other_clocks_stand_as_they_are() -> None:
    clocks = timing(10, overhead_ns=500, kernel_ns=(8000, 9000), host_ns=(21000,), graph_ns=(6000,))
    clocks = replace(clocks, graph_nodes=2)
    found = row(record(timing=clocks))
    assert [found[f"{n}_us"] for n in ("kernel", "host", "graph")] == [8.5, 21, 6]
    assert found["graph_nodes"] == 2
    assert empty(row(record()), ["kernel_us", "host_us", "graph_us", "graph_nodes"])


@pytest.mark.parametrize(("slowed", "flagged"), [(0, False), (1_900, False), (2_100, True)])
def test_a_call_that_differs_much_when_it_is_traced_is_flagged(slowed: int, flagged: bool) -> None:
    clocks = timing(8, kernel_ns=(8_000 + slowed,), kernel_event_ns=(8_000 + slowed,))
    flags = str(row(record(timing=clocks))["flags"])
    assert ("differs-when-traced" in flags) is flagged


@pytest.mark.parametrize(
    ("span", "around", "expected"),
    [
        (9_000, 12_500, 9.0),  # traced and untraced events agree
        (9_000, 11_900, 9.0),  # CUPTI does not make a call faster
        (14_000, 17_500, 9.0),  # it was slower by 5 µs while CUPTI looked on
        (4_000, 30_000, 0.0),
    ],
)
def test_what_cupti_slowed_a_call_by_is_taken_off(span: int, around: int, expected: float) -> None:
    clocks = timing(
        12,
        overhead_ns=3_000,
        traced_overhead_ns=3_500,
        kernel_ns=(span,),
        kernel_event_ns=(around,),
    )
    assert row(record(timing=clocks))["kernel_us"] == expected


def test_one_sample_is_its_own_quantiles() -> None:
    found = row(record(timing=Timing(timer="gated", blocks_ns=((5000,),))))
    assert [found[n] for n in ("median_us", "lo_us", "hi_us", "p20_us", "p80_us")] == [5] * 5


def test_rates_are_compulsory_work_over_the_median_in_decimal_units() -> None:
    found = row(record())
    assert found["bytes_min"] == 2 * MIB
    assert found["gbps"] == pytest.approx(209.7152)  # 2 MiB / 10 µs
    assert found["tflops"] == pytest.approx(0.2)  # 2 Mflop / 10 µs
    assert metrics.gbps(record()) == found["gbps"]
    assert metrics.tflops(record()) == found["tflops"]


def test_no_flops_are_no_rate() -> None:
    assert empty(row(record(flops=0)), ["tflops"])
    assert empty(row(record(read_bytes=None)), ["gbps", "bytes_min"])


def test_share_of_the_ceiling_is_the_larger_floor_over_the_median() -> None:
    found = row(record())
    assert found["bound"] == "memory"
    assert found["sol_pct"] == pytest.approx(5.24288)  # 2 MiB at 4 bytes/ns = 524 ns of 10 µs
    found = row(record(flops=2_000_000_000))
    assert found["bound"] == "compute"
    assert found["sol_pct"] == pytest.approx(40)  # 2 Gflop at 500 TFLOP/s = 4 µs of 10 µs
    assert empty(row(record(ceilings=None)), ["sol_pct", "bound"])
    assert empty(row(record(ceilings={})), ["sol_pct", "bound"])


def test_speedup_is_against_the_baseline_of_the_same_group() -> None:
    found = rows(record(), fused(), ours())
    assert [r["speedup"] for r in found] == [1, 2, 2.5]
    assert empty(found[0], ["speedup_lo", "speedup_hi"])
    assert found[2]["speedup_lo"] <= 2.5 <= found[2]["speedup_hi"]
    assert found[2]["speedup_hi"] < 2.53
    found = metrics.speedup(ours(), record())
    assert found is not None and (found.over.mid, found.each) == (2.5, {0: 2.5})


@pytest.mark.parametrize(
    "elsewhere",
    [{"group": "g2"}, {"group": ""}, {"case": "M2048-N512-bf16-fwd"}, {"family": "rotary"}],
)
def test_no_speedup_across_measurements(elsewhere: dict[str, str]) -> None:
    found = row(record(), fused(), ours(**elsewhere))
    assert empty(found, [*SPEEDS[4:], *BESTS, "noise_pct"])


def test_two_groups_of_one_case_keep_to_themselves() -> None:
    again = [record(group="g2", timing=timing(40)), ours(group="g2", provider="triton_b")]
    found = rows(record(), ours(), *[replace(r, provider=f"{r.provider}2") for r in again])
    assert [r["speedup"] for r in found] == [1, 2.5, 1, 10]


def test_overhead_is_taken_off_before_the_ratio() -> None:
    slow = record(timing=timing(10, overhead_ns=2000))
    assert row(slow, ours(timing=timing(4, overhead_ns=2000)))["speedup"] == 4


def test_speedup_best_is_against_the_fastest_that_is_not_ours() -> None:
    records = [
        record(),
        fused("sdpa", timing=timing(8)),
        fused("compile", timing=timing(5)),
        record("twin", Role.ablation, timing=timing(1)),
        ours(provider="other_triton", timing=timing(2)),
        ours(),
    ]
    found = rows(*records)
    assert {r["best_other"] for r in found} == {"compile"}
    assert found[5]["speedup_best"] == 1.25
    assert found[5]["speedup_best_lo"] <= 1.25 <= found[5]["speedup_best_hi"]
    assert found[2]["speedup_best"] == 1
    assert empty(found[2], ["speedup_best_lo"])
    assert found[0]["speedup_best"] == 0.5


def test_a_peer_can_be_the_yardstick() -> None:
    peer = record("liger", Role.peer, timing=timing(3))
    assert row(record(), peer, ours())["best_other"] == "liger"


@pytest.mark.parametrize(
    "fault",
    [
        {"status": Status.incorrect},
        {"status": Status.implausible},
        {"prepacked": True},
        {"accuracy": Accuracy.approximate},
        {"timing": timing(1, timer="ungated")},
        {"timing": None},
        {"group": "g2"},
    ],
)
def test_no_yardstick_that_is_wrong_or_unlike(fault: dict[str, Any]) -> None:
    found = row(record(), fused(**({"timing": timing(1)} | fault)), ours())
    assert found["best_other"] == "eager"
    assert found["speedup_best"] == 2.5
    assert found["speedup_best_lo"] == found["speedup_lo"]


def test_approximate_ones_are_held_against_approximate_ones() -> None:
    loose = ours(accuracy=Accuracy.approximate, provider="int8")
    assert empty(row(record(), loose), BESTS)
    assert row(record(), loose)["speedup"] == 2.5
    rival = fused("fp8", accuracy=Accuracy.approximate, timing=timing(6))
    assert row(record(), rival, loose)["best_other"] == "fp8"


def test_without_a_baseline_there_is_still_a_best_other() -> None:
    found = row(record(status=Status.oom, timing=None), fused(), ours())
    assert empty(found, [*SPEEDS[4:], "noise_pct"])
    assert found["speedup_best"] == 1.25


@pytest.mark.parametrize("status", [s for s in Status if s is not Status.ok])
def test_only_what_is_right_has_speeds(status: Status) -> None:
    found = row(record(), ours(status=status, reason="because"))
    assert empty(found, [*SPEEDS, *BESTS, "noise_pct"])
    assert (found["status"], found["reason"]) == (status.value, "because")


@pytest.mark.parametrize("timer", ["host", "ungated"])
def test_only_a_gate_that_held_gives_speeds(timer: str) -> None:
    found = row(record(timing=timing(10, timer=timer)), ours(timing=timing(4, timer=timer)))
    assert found["timer"] == timer
    assert found["median_us"] == 4
    assert empty(found, [*SPEEDS, *BESTS, "noise_pct"])
    assert empty(row(record(), ours(timing=timing(4, timer=timer))), [*SPEEDS, *BESTS])


def test_doubtful_records_keep_their_numbers_and_show_the_flags() -> None:
    found = row(record(), ours(flags=("throttled:hw_slowdown", "shared"), prepacked=True))
    assert found["flags"] == "throttled:hw_slowdown;shared;prepacked"
    assert found["speedup"] == 2.5


def test_the_noise_floor_comes_from_the_second_run_of_the_baseline() -> None:
    noisy = record(timing=timing(10, again_ns=blocks(10.2)))
    found = rows(noisy, ours())
    assert found[0]["noise_pct"] == pytest.approx(2, abs=0.3)
    assert found[1]["noise_pct"] == found[0]["noise_pct"] == metrics.noise_pct(noisy)
    assert empty(row(record(), ours()), ["noise_pct"])  # it did not run twice


def test_modelled_bytes_and_what_they_save() -> None:
    model = (Traffic("x", read=3 * MIB), Traffic("t", read=2 * MIB, write=2 * MIB))
    plain = record(traffic=(*model, Traffic("y", write=MIB)))
    mine = ours(traffic=(Traffic("x", read=MIB), Traffic("y", write=MIB)), status=Status.failed)
    found = rows(plain, mine, fused())
    assert [(r["model_read_mib"], r["model_write_mib"]) for r in found[:2]] == [(5, 3), (1, 1)]
    assert [r["hbm_saved_pct"] for r in found[:2]] == [0, 75]
    assert empty(found[2], ["model_read_mib", "model_write_mib", "hbm_saved_pct"])
    assert empty(row(plain, replace(mine, case="other")), ["hbm_saved_pct"])
    assert row(plain, replace(mine, group="g9"))["hbm_saved_pct"] == 75  # a model needs no clock
    wasteful = ours(traffic=(Traffic("x", read=16 * MIB),))
    assert row(plain, wasteful)["hbm_saved_pct"] == -100


def error(name: str, rel: float, budget: float, worst: float = 0.1) -> OutputError:
    return OutputError(
        name=name,
        rel=rel,
        worst=worst,
        rel_budget=budget,
        worst_budget=1,
        baseline_rel=rel / 2,
        baseline_worst=worst,
    )


def test_errors_are_those_of_the_output_nearest_its_budget() -> None:
    found = row(record(errors=(error("y", 5e-3, 1e-2, worst=0.3), error("dx", 4e-3, 5e-3))))
    assert found["error_rel"] == 4e-3
    assert found["error_budget"] == 5e-3
    assert found["baseline_error"] == 2e-3
    assert found["error_max"] == 0.3
    assert empty(row(record()), ["error_rel", "error_max", "error_budget", "baseline_error"])


def test_an_error_that_is_no_number_is_infinite() -> None:
    bad = (error("y", 1e-3, 1e-2), error("dx", math.nan, 1e-2, worst=math.nan))
    found = row(record(errors=bad, status=Status.incorrect))
    assert found["error_rel"] == found["error_max"] == math.inf


def test_the_facts_pass_through() -> None:
    found = row(
        record(
            label="llama",
            config={"rows": 4, "warps": 8},
            compile_s=1.5,
            peak_bytes=3 * MIB,
            telemetry={"sm_mhz": 1980, "power_w": 350.5},
        )
    )
    assert (found["label"], found["config"]) == ("llama", "rows=4 warps=8")
    assert (found["compile_s"], found["peak_mem_mib"]) == (1.5, 3)
    assert (found["sm_mhz"], found["power_w"]) == (1980, 350.5)
    assert empty(found, ["temp_c"])
    assert empty(row(record()), ["config", "compile_s", "peak_mem_mib", "sm_mhz", "label"])


def test_the_columns_and_their_order() -> None:
    other = record(axes={"B": 2, "causal": True, "dtype": "bf16", "mode": "fwd", "case": "x"})
    columns = metrics.csv_columns([record(), other])
    assert " ".join(columns[:11]) == (
        "schema run_id utc family provider role accuracy mode dtype case label"
    )
    assert columns[11:17] == ["M", "N", "inputs", "B", "causal", "axis_case"]
    assert " ".join(columns[17:]) == (
        "status reason flags timer samples processes median_us lo_us hi_us kernel_us p20_us "
        "p80_us iqr_pct host_us graph_us graph_nodes compile_s config speedup speedup_lo "
        "speedup_hi speedup_each speedup_best speedup_best_lo speedup_best_hi speedup_best_each "
        "best_other "
        "noise_pct flops bytes_min model_read_mib model_write_mib hbm_saved_pct gbps tflops "
        "sol_pct bound peak_mem_mib error_rel error_max error_budget error_max_budget "
        "baseline_error cosine promised unproven one_gpu_pct one_gpu_lo_pct one_gpu_hi_pct "
        "exposed_us exposed_pct overlap_slowdown received_mib "
        "sm_mhz power_w temp_c gpu gpu_uuid method"
    )
    assert list(metrics.frame([record(), other]).columns) == columns


def test_no_records_are_an_empty_frame() -> None:
    assert len(metrics.frame([])) == 0
    assert list(metrics.frame([]).columns) == metrics.csv_columns([])


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_csv_says_what_the_frame_says(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    odd = record(
        "odd",
        status=Status.failed,
        timing=None,
        reason='said "no",\nthen left',
        axes={"M": 3, "causal": False, "eps": 1e-6},
        flops=137_438_953_472,
    )
    metrics.to_csv([record(timing=timing(1234.5678)), odd], path)
    first, second = read_csv(path)
    assert (first["M"], first["causal"], first["eps"]) == ("1024", "", "")
    assert (second["M"], second["causal"], second["eps"]) == ("3", "false", "1e-06")
    assert second["reason"] == 'said "no",\nthen left'
    assert second["flops"] == "137438953472"
    assert first["median_us"] == "1234.57"
    assert (first["speedup"], first["speedup_lo"]) == ("1", "")
    assert second["median_us"] == second["speedup"] == second["config"] == ""
    assert path.read_bytes().count(b"\r\n") == 3
    assert [p.name for p in tmp_path.iterdir()] == ["results.csv"]


def test_rows_are_appended_a_job_at_a_time(tmp_path: Path) -> None:
    path, whole = tmp_path / "along.csv", tmp_path / "whole.csv"
    first = [record(), ours()]
    second = [replace(r, case="other", group="g2") for r in first]
    metrics.append_csv(first, path)
    metrics.append_csv(second, path)
    metrics.to_csv([*first, *second], whole)
    assert path.read_bytes() == whole.read_bytes()


def test_a_new_axis_becomes_a_column_of_the_file_that_is_there(tmp_path: Path) -> None:
    path, whole = tmp_path / "along.csv", tmp_path / "whole.csv"
    first = [record(), ours()]
    second = [record(family="rotary", axes={"B": 2, "M": 7})]
    metrics.append_csv(first, path)
    metrics.append_csv(second, path)
    metrics.append_csv(first, path)
    metrics.to_csv([*first, *second, *first], whole)
    assert path.read_bytes() == whole.read_bytes()


def test_json_rows_hold_every_column_in_full() -> None:
    odd = record(
        "odd",
        status=Status.incorrect,
        timing=None,
        axes={"M": 3, "causal": False, "eps": 1 / 3},
        errors=(error("y", math.nan, 1e-2),),
        telemetry={"power_w": 1e-300 / 3},
    )
    records = [record(timing=timing(1234.5678, kernel_ns=(1, 2, 2))), odd]
    found = json.loads(json.dumps(metrics.rows_json(records), allow_nan=False))
    assert [[*row] for row in found] == [metrics.csv_columns(records)] * 2
    first, second = found
    assert (first["M"], first["causal"], first["eps"], first["samples"]) == (1024, None, None, 130)
    assert (first["kernel_us"], first["speedup_lo"], first["label"]) == (0.002, None, "")
    assert (second["M"], second["causal"], second["eps"]) == (3, False, 1 / 3)
    assert second["error_rel"] == "inf"
    assert (second["power_w"], second["median_us"], second["samples"]) == (1e-300 / 3, None, None)
    assert metrics.rows_json([]) == []


def test_a_run_is_not_held_against_the_model_of_another() -> None:
    moved = (Traffic("x", read=4 * MIB),)
    mine = ours(traffic=(Traffic("x", read=MIB),), run_id="second")
    found = rows(record(traffic=moved), mine)
    assert empty(found[1], ["hbm_saved_pct", "speedup"])


def test_a_csv_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KernelbenchError, match="cannot be written"):
        metrics.to_csv([record()], tmp_path / "file" / "results.csv")


def test_every_column_is_documented_and_every_documented_column_exists() -> None:
    text = (Path(__file__).parents[1] / "results" / "README.md").read_text(encoding="utf-8")
    section = text.split("## results.csv")[1].split("\n## ")[0]
    documented = re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE)
    assert documented == metrics.csv_columns([])


def test_kinds_have_one_source() -> None:
    text = (Path(__file__).parents[1] / "results" / "README.md").read_text(encoding="utf-8")
    kinds = text.split("## Kinds of numbers")[1].split("\n## ")[0]
    assert dict(re.findall(r"^\| (\w+) \| (.+) \|$", kinds, flags=re.MULTILINE)[1:]) == {
        str(kind): meaning for kind, meaning in metrics.MEANING.items()
    }
    named: dict[str, str] = {}
    for section in ("results.csv", "measured.csv"):
        table = text.split(f"## {section}")[1].split("\n## ")[0]
        for columns, kind in re.findall(
            r"^\| (`\w+`(?:, `\w+`)*) \|[^|]*\| (\w+) \|", table, flags=re.MULTILINE
        ):
            named |= dict.fromkeys(re.findall(r"`(\w+)`", columns), kind)
    assert len(named) > 75 and named == {name: str(metrics.kind_of(name)) for name in named}


def test_a_caption_names_each_kind_once_and_in_order() -> None:
    names = {"saved": "hbm_saved_pct", "speedup": "speedup", "time": "median_us", "L": "label"}
    assert metrics.said(names) == "measured: time. derived: speedup. modelled: saved. fact: L."
    assert metrics.kinds_of("lo_us", "median_us", "sol_pct", "speedup") == (
        "measured", "derived", "mixed",
    )  # fmt: skip


def test_every_field_and_status_of_a_record_is_documented() -> None:
    text = (Path(__file__).parents[1] / "results" / "README.md").read_text(encoding="utf-8")
    section = text.split("## records.jsonl")[1].split("\n## ")[0]
    named = set(re.findall(r"`(\w+)`", section))
    for kind in (RunRecord, Timing, Traffic):
        assert {f.name for f in fields(kind)} - {"further"} <= named  # no line has that one
    statuses = text.split("## Statuses")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", statuses, flags=re.MULTILINE) == [*map(str, Status)]


def test_every_flag_file_and_fact_of_a_run_is_documented() -> None:
    text = (Path(__file__).parents[1] / "results" / "README.md").read_text(encoding="utf-8")
    flags = text.split("## Flags")[1].split("\n## ")[0]
    assert {"ungated", "no-baseline-budget", "shared", "prepacked"} <= set(
        re.findall(r"^\| `([\w-]+)` \|", flags, flags=re.MULTILINE)
    )
    for reason in THROTTLE.values():
        assert f"`{reason}`" in flags
    manifest = set(re.findall(r"`(\w+)`", text.split("## manifest.json")[1]))
    assert manifest >= {
        "schema", "run_id", "utc", "suite", "gpu", "kernelbench", "machine", "git", "argv",
        "asked", "suite_text", "ceilings",
    }  # fmt: skip
    for untrue in ("ever overwritten", "longer than it was given"):
        assert untrue not in text


def test_a_thousand_records_take_seconds() -> None:
    records = [
        replace(made, case=f"M{i}", group=f"g{i}")
        for i in range(200)
        for made in (
            record(timing=timing(10, again_ns=blocks(10))),
            fused("a"),
            fused("b"),
            ours(),
            ours(provider="c"),
        )
    ]
    begin = time.perf_counter()
    assert len(metrics.frame(records)) == 1000
    assert time.perf_counter() - begin < 15


def test_reading_results_needs_neither_torch_nor_a_gpu() -> None:
    code = (
        "import sys, kernelbench.store;"
        "assert not {'numpy', 'pandas', 'rich', 'torch'} & set(sys.modules);"
        "import kernelbench.numbers.statistics, kernelbench.metrics, kernelbench.report.tables;"
        "assert not {'pandas', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
