"""Claims against records: every verdict worked out by hand, the shipped files, and the verb."""

import csv
import io
import json
import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_metrics import MIB, error, fused, ours, record, timing

from kernelbench import claims, store
from kernelbench.claims import ClaimRow, Verdict, arithmetic
from kernelbench.claims.verdicts import judged
from kernelbench.claims.words import Fault
from kernelbench.numbers.statistics import Interval
from kernelbench.report import claim_tables
from kernelbench.spec import (
    KernelUse,
    Measured,
    Role,
    RunRecord,
    Status,
    Timing,
    Tool,
    Traffic,
)

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "tests/data/claims.yaml"
LAYER = ROOT / "results/h200/20261129T121422Z-rcm-seed-h200"
NORMS = ROOT / "results/h200/20261130T202128Z-h200-h200"
PLACE = 'section: S, line: 1, quote: "q"'
RMS = "family: rms_norm, axes: {M: 1024, N: 512}, provider: triton"
PAIR = f"compare: {{{RMS}, against: eager}}"
ONE = f"compare: {{{RMS}}}"


def text(*lines: str, hardware: str = "H200", more: str = "") -> str:
    """A claims file of these claims, each the inside of a mapping."""
    each = "".join(f"  - {{id: c{at}, {PLACE}, {line}}}\n" for at, line in enumerate(lines))
    return f'document: {{id: d, title: T, hardware: "{hardware}"{more}}}\nclaims:\n{each}'


def judge(
    line: str, *records: RunRecord, measured: Any = (), hardware: str = "H200", more: str = ""
) -> ClaimRow:
    """The row of one claim."""
    file = claims.parse(text(line, hardware=hardware, more=more), "f.yaml")
    [row] = claims.rows(records, [file], measured)
    return row


def pair(us: float = 4, **facts: Any) -> tuple[RunRecord, RunRecord]:
    """A baseline of 10 µs, and a provider of `us`."""
    return record(**facts), ours(timing=timing(us), **facts)


def kb(*arguments: str, columns: int = 100) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kernelbench", "claims", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": str(columns)},
    )


@pytest.mark.parametrize(
    ("line", "us", "verdict", "ratio"),
    [
        ("metric: speedup, value: 2.5", 4, Verdict.reproduced, 1),
        ("metric: speedup, value: 2.42", 4, Verdict.better, 2.5 / 2.42),
        ("metric: speedup, value: 2.58", 4, Verdict.not_reproduced, 2.5 / 2.58),
        ("metric: speedup, value: 2", 4, Verdict.better, 1.25),  # not all of 1.5 to 2.5
        ("metric: speedup, value: 2", 4.8, Verdict.reproduced, 1.0417),  # 5 %: 2.083
        ("metric: speedup, value: 2, decimals: 2", 4.8, Verdict.better, 1.0417),  # 3 %: 2.06
        ("metric: speedup, value: 2.44", 4, Verdict.reproduced, 2.5 / 2.44),  # within 3 %
        ("metric: speedup, value: 3.0", 4, Verdict.not_reproduced, 2.5 / 3),
        ("metric: speedup, value: [1.5, 2.0]", 4, Verdict.better, 1.25),
        ("metric: speedup, value: [2.0, 3.0]", 4, Verdict.reproduced, 1),
        ("metric: speedup, value: [3.0, 4.0]", 4, Verdict.not_reproduced, 2.5 / 3),
        ("metric: speedup, value: 2, bound: at_least", 4, Verdict.reproduced, 1.25),
        ("metric: speedup, value: 2.6, bound: at_least", 4, Verdict.not_reproduced, 2.5 / 2.6),
        ("metric: slowdown, value: 2", 20, Verdict.reproduced, 1),
        ("metric: slowdown, value: 3", 20, Verdict.better, 2 / 3),
        ("metric: slowdown, value: 1.5", 20, Verdict.not_reproduced, 2 / 1.5),
        ("metric: gain_pct, value: 25", 8, Verdict.reproduced, 1),
        ("metric: gain_pct, value: 26", 8, Verdict.reproduced, 25 / 26),  # one point
        ("metric: gain_pct, value: 27", 8, Verdict.not_reproduced, 25 / 27),
        ("metric: overhead_pct, value: 100", 20, Verdict.reproduced, 1),
        ("metric: overhead_pct, value: 50", 20, Verdict.not_reproduced, 2),
    ],
)
def test_the_verdict_on_a_pair(line: str, us: float, verdict: Verdict, ratio: float) -> None:
    row = judge(f"{line}, {PAIR}", *pair(us))
    assert row.verdict is verdict
    assert row.verdict_text == str(verdict)  # measured on the very GPU
    assert row.ratio == pytest.approx(ratio, rel=1e-3)
    assert row.evidence.kind == "derived"


def test_so_few_samples_that_nothing_is_known_of_their_spread_are_inconclusive() -> None:
    one = Timing(timer="gated", blocks_ns=((10_000,),))
    line = f"metric: speedup, value: 2.5, {PAIR}"
    row = judge(line, record(), ours(timing=replace(one, blocks_ns=((4_000, 4_001),))))
    assert row.verdict is Verdict.inconclusive
    assert claim_tables.measured_text(row).endswith("(too few samples)")
    ms = judge(f"metric: ms, value: 0.004, {ONE}", ours(timing=one))
    assert ms.evidence.value is None or ms.verdict is Verdict.inconclusive


def test_the_interval_of_a_speedup_is_at_least_the_noise_of_its_job() -> None:
    noisy = timing(10, again_ns=timing(11).blocks_ns)  # 10 % apart
    line = f"metric: speedup, value: 2.7, {PAIR}"
    assert judge(line, *pair(4)).verdict is Verdict.not_reproduced
    row = judge(line, record(timing=noisy), ours(timing=timing(4)))
    assert row.verdict is Verdict.inconclusive
    assert row.evidence.value is not None
    assert row.evidence.value.hi == pytest.approx(2.5 * 1.1, rel=5e-3)


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [
        ((2.0, 1.95, 2.05), Verdict.reproduced),
        ((2.0, 1.90, 2.10), Verdict.inconclusive),
        ((1.2, 0.6, 2.1), Verdict.inconclusive),  # noise is no evidence for it, nor against it
        ((1.9, 1.88, 1.92), Verdict.not_reproduced),
        ((1.93, 1.92, 1.95), Verdict.inconclusive),
        ((2.2, 2.1, 2.3), Verdict.better),
        ((2.2, 2.0, 9.0), Verdict.inconclusive),
    ],
)
def test_a_claim_is_reproduced_where_the_whole_interval_is_equivalent(
    measured: tuple[float, float, float], verdict: Verdict
) -> None:
    claim = judge("metric: speedup, value: 2.00, decimals: 2").claim  # 1.94 to 2.06
    assert judged(claim, Interval(*measured)) is verdict


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [
        ((2.5, 2.1, 2.9), Verdict.reproduced),
        ((2.1, 1.9, 2.3), Verdict.inconclusive),
        ((1.9, 1.8, 1.99), Verdict.not_reproduced),
    ],
)
def test_so_is_a_bound(measured: tuple[float, float, float], verdict: Verdict) -> None:
    claim = judge("metric: speedup, value: 2.00, decimals: 2, bound: at_least").claim
    assert judged(claim, Interval(*measured)) is verdict


def test_the_noise_of_a_job_is_that_of_its_baseline_whatever_the_pair() -> None:
    noisy = record(timing=timing(10, again_ns=timing(11).blocks_ns))
    other = f"compare: {{{RMS}, against: compile}}"
    row = judge(f"metric: speedup, value: 1.35, {other}", noisy, fused(), ours(timing=timing(4)))
    assert row.evidence.value is not None
    assert row.evidence.value.hi == pytest.approx(row.evidence.value.mid * 1.1, rel=5e-3)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("metric: ms, value: 0.004", 0.004),
        ("metric: gflops, value: 500", 500),  # 2e6 flops in 4 µs
        ("metric: gbps, value: 524.288, decimals: 0", 524.288),  # 2 MiB in 4 µs
        ("metric: tokens_per_s, value: 256000000, work: {tokens: 1024}", 256e6),
    ],
)
def test_absolute_figures_are_read_off_the_records(line: str, value: float) -> None:
    row = judge(f"{line}, {ONE}", *pair(4))
    assert row.verdict is Verdict.reproduced
    assert row.evidence.value is not None
    assert row.evidence.value.mid == pytest.approx(value)


def test_an_overhead_in_ms_is_a_difference() -> None:
    row = judge(f"metric: overhead_ms, value: 0.01, {PAIR}", *pair(20))
    assert row.verdict is Verdict.reproduced
    assert row.evidence.value is not None
    assert row.evidence.value.mid == pytest.approx(0.01)


def test_amounts_are_met_or_not_on_any_machine() -> None:
    moved = (Traffic("x", read=MIB), Traffic("y", write=MIB))
    fused = ours(traffic=moved, errors=(error("y", 1e-3, 5e-3, worst=5e-3),), peak_bytes=3 * MIB)
    eager = record(traffic=(*moved, *moved), peak_bytes=4 * MIB)

    def verdict(line: str, hardware: str = "A100") -> str:
        return judge(line, eager, fused, hardware=hardware).verdict_text

    assert verdict(f"metric: hbm_mib, value: 2, {ONE}") == "reproduced, modelled"
    assert verdict(f"metric: hbm_mib, value: 1.9, {ONE}") == "not reproduced, modelled"
    assert verdict(f"metric: hbm_saved_pct, value: 50.9, {PAIR}") == "reproduced, modelled"
    assert verdict(f"metric: hbm_saved_pct, value: 27.3, {PAIR}") == "better, modelled"
    assert verdict(f"metric: max_error, value: 0.005, bound: at_most, {ONE}") == "reproduced"
    assert verdict(f"metric: max_error, value: 0.004, bound: at_most, {ONE}") == "not reproduced"
    memory = f"metric: memory_saved_pct, value: [20, 30], {PAIR}"
    assert verdict(memory) == "reproduced, on other hardware"
    assert verdict(memory, "H200") == "reproduced"


def test_times_on_other_hardware_are_shown_and_not_judged_but_ratios_are() -> None:
    row = judge(f"metric: ms, value: 0.004, {ONE}", *pair(4), hardware="8x A100")
    assert row.verdict_text == "not comparable: hardware"
    assert row.whys == ("claimed on 8x A100, measured on NVIDIA H200",)
    assert row.ratio == pytest.approx(1)
    row = judge(f"metric: ms, value: 0.004, {ONE}", *pair(4), hardware="")
    assert row.whys == ("no hardware stated, measured on NVIDIA H200",)
    row = judge(f"metric: speedup, value: 2.5, {PAIR}", *pair(4), hardware="A100")
    assert row.verdict_text == "reproduced, on other hardware"
    row = judge(f"metric: speedup, value: 2.5, {PAIR}", *pair(4), hardware="")
    assert row.verdict_text == "reproduced, hardware not stated"


def test_a_doubt_stands_before_what_was_measured() -> None:
    doubts = "doubts: [{fault: jit, why: compiled}, {fault: flops, why: miscounted}]"
    row = judge(f"metric: speedup, value: 2.5, {PAIR}, {doubts}", *pair(4))
    assert row.verdict_text == "not comparable: jit"
    assert row.whys == ("compiled", "miscounted")
    assert row.ratio == pytest.approx(1, rel=1e-3)
    row = judge(f"metric: gbps, value: 9999, {doubts}")
    assert row.fault is Fault.impossible  # what arithmetic finds stands before what a file says


@pytest.mark.parametrize(
    ("records", "why"),
    [
        ((), "no record of rms_norm M=1024 N=512 bf16 fwd triton"),
        ((record(),), "no record of rms_norm M=1024 N=512 bf16 fwd triton"),
        ((ours(),), "eager was not measured beside triton"),
        ((ours(), record(run_id="other")), "eager was not measured beside triton"),
        ((ours(), record(group="g2")), "M1024-N512-bf16-fwd triton has no speedup"),
        (
            (record(), ours(status=Status.incorrect, reason="y: wrong\nmore", timing=None)),
            "triton is incorrect: y: wrong",
        ),
        (pair(4, mode="bwd"), "no record of"),
        (pair(4, dtype="fp16"), "no record of"),
        ((*pair(4), *pair(4, case="other")), "2 cases fit; give more axes: M1024-N512-bf16-fwd"),
    ],
)
def test_what_is_not_there_is_not_yet_measured(records: tuple[RunRecord, ...], why: str) -> None:
    row = judge(f"metric: speedup, value: 2.5, {PAIR}", *records)
    assert row.verdict_text == "not yet measured"
    assert row.whys[0].startswith(why)
    assert row.ratio is None


def test_the_newest_on_the_named_gpu_is_the_evidence() -> None:
    def run(name: str, us: float, **facts: Any) -> tuple[RunRecord, RunRecord]:
        return pair(us, run_id=name, utc=f"2026-07-{name}T00:00:00Z", **facts)

    line = f"metric: speedup, value: 2.5, {PAIR}"
    old, new = run("01", 4), run("02", 5)
    foreign = run("03", 2, gpu="NVIDIA A100")
    assert judge(line, *new, *old, *foreign).evidence.run_id == "02"
    assert judge(line, *new, *old, *foreign, hardware="A100").evidence.run_id == "03"
    alone = (new[0], replace(new[1], status=Status.skipped, reason="no room", timing=None))
    assert judge(line, *old, *alone).evidence.run_id == "01"
    wrong = (new[0], replace(new[1], status=Status.incorrect, reason="off", timing=None))
    row = judge(line, *old, *wrong)  # no older one is looked for
    assert row.whys == ("triton is incorrect: off",)


def counted(provider: str, read: int, **facts: Any) -> Measured:
    """Two calls, profiled by Nsight Compute."""
    kernel = KernelUse(name="k", launches=2, dram_read_bytes=2 * read, dram_write_bytes=0)
    known: dict[str, Any] = {
        "run_id": "run",
        "utc": "2026-07-30T12:00:00Z",
        "tool": Tool.ncu,
        "tool_version": "1",
        "status": Status.ok,
        "family": "rms_norm",
        "provider": provider,
        "role": Role.baseline,
        "case": "M1024-N512-bf16-fwd",
        "mode": "fwd",
        "dtype": "bf16",
        "axes": {"M": 1024, "N": 512},
        "gpu": "NVIDIA H200",
        "calls": 2,
        "kernels": (kernel,),
    }
    return Measured(**(known | facts))


def test_dram_counters_answer_what_asks_for_measured_bytes() -> None:
    line = f"metric: hbm_saved_pct, value: 27.3, {PAIR.replace('}', ', bytes: measured}', 2)}"
    line = line.replace("512, bytes: measured}", "512}")
    both = (counted("eager", 400), counted("triton", 300))
    row = judge(line, measured=both)
    assert row.evidence.value is not None
    assert row.evidence.value.mid == pytest.approx(25)
    assert (row.verdict, row.evidence.kind) == (Verdict.not_reproduced, "measured (DRAM reads)")
    assert judge(line, measured=(counted("eager", 400), counted("triton", 291))).verdict_text == (
        "reproduced"
    )
    for without in (both[:1], both[1:], (both[0], replace(both[1], status=Status.failed))):
        row = judge(line, *pair(4), measured=without)
        assert row.verdict is Verdict.not_yet_measured
        assert "kernelbench profile --ncu" in row.whys[0]


SHIPPED = {
    "hilbert_dilated": 39,
    "llm_med": 19,
    "rcm_readme": 40,
    "rcm_upgrade": 29,
    "zigzag_llama3": 4,
}


def test_every_figure_of_five_documents_is_shipped() -> None:
    files = claims.load(claims.shipped())
    assert {file.document.id: len(file.claims) for file in files} == SHIPPED
    for file in files:
        assert re.fullmatch(r"[0-9a-f]{64}", file.document.sha256)
        assert file.document.repository
        for claim in file.claims:
            assert claim.section and claim.quote and claim.line > 0, claim.id
            shown = [f"{value:,.{claim.places}f}" for value in claim.value]
            told = [f"{value:g}" for value in claim.value] + ["1e-3", "1e-6", "1e-2", "8k"]
            assert any(word in claim.quote for word in (*shown, *told)), claim.id
            assert claim.compare or claim.unmeasured or claim.doubts, claim.id
            if claim.sort.pair and claim.compare:
                assert claim.against, claim.id


def test_the_package_brings_them() -> None:
    told = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "configs/claims/*.yaml" in told["tool"]["setuptools"]["package-data"]["kernelbench"]


def test_hardware_is_as_the_documents_state_it() -> None:
    found = Counter(
        (file.document.id, arithmetic.hardware_of(claim, file.document))
        for file in claims.load(claims.shipped())
        for claim in file.claims
    )
    assert found == {
        ("hilbert_dilated", "2x NVIDIA GTX 1080 (Pascal Architecture)"): 36,
        ("hilbert_dilated", "Pascal GPUs (GTX 1080)"): 2,
        ("hilbert_dilated", "A100/H100"): 1,
        ("llm_med", ""): 12,
        ("llm_med", "RTX 4090"): 7,
        ("rcm_readme", ""): 19,
        ("rcm_readme", "A100"): 21,
        ("rcm_upgrade", "A100/H100"): 29,
        ("zigzag_llama3", "NVIDIA GPU with compute capability ≥ 8.0 (Ampere or newer)"): 3,
        ("zigzag_llama3", "A100/H100"): 1,
    }


def test_families_axes_and_providers_of_the_shipped_claims_exist() -> None:
    from kernelbench import families

    known = families.load()
    for file in claims.load(claims.shipped()):
        for claim in file.claims:
            if compare := claim.compare:
                family = known[compare.family]
                providers = {provider.name for provider in family.providers}
                assert {compare.provider, compare.against} - {""} <= providers, claim.id


def test_arithmetic_alone_convicts_one_of_the_shipped_claims() -> None:
    rows = claims.rows([], claims.load(claims.shipped()))
    guilty = [row.claim.id for row in rows if row.fault is Fault.impossible]
    assert guilty == ["scaling-16384-python"]
    assert {row.verdict for row in rows} == {Verdict.not_yet_measured, Verdict.not_comparable}


def test_what_an_h200_was_seen_to_do() -> None:
    records = [r for run in (LAYER, NORMS) for r in store.read_with_problems(run)[0]]
    rows = claims.rows(records, claims.load(claims.shipped()))
    found = {f"{row.document.id} {row.claim.id}": row.verdict_text for row in rows}
    assert found["rcm_readme a100-1024-triton"] == "better, on other hardware"
    assert found["rcm_readme a100-4096-triton"] == "reproduced, on other hardware"
    assert found["rcm_readme a100-8192-triton"] == "not reproduced, on other hardware"
    assert found["rcm_readme expected-triton"] == "better, hardware not stated"
    assert found["rcm_upgrade small-hbm"] == "better, modelled"
    assert found["rcm_upgrade real-triton"] == "not comparable: unspecified"
    assert found["llm_med 4090-rms-triton-ms"] == "not comparable: hardware"
    assert found["llm_med 4090-rms"] == "better, on other hardware"
    assert found["llm_med log-rms"] == "better, hardware not stated"
    assert found["llm_med 4090-rotary"] == "not comparable: unequal work"
    assert found["hilbert_dilated scaling-2048-ratio"] == "not comparable: jit"
    [long] = [row for row in rows if row.claim.id == "a100-8192-triton"]
    assert long.evidence.value is not None
    assert long.evidence.value.mid == pytest.approx(1.21, abs=0.01)
    assert long.evidence.run_id == LAYER.name


def shown(rows: list[ClaimRow], width: int) -> list[str]:
    out = io.StringIO()
    claim_tables.render(rows, Console(file=out, width=width, color_system=None))
    return out.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 100, 140])
def test_a_table_fits_its_console_and_cuts_no_figure(width: int) -> None:
    records = [r for run in (LAYER, NORMS) for r in store.read_with_problems(run)[0]]
    rows = claims.rows(records, claims.load(claims.shipped()))
    lines = shown(rows, width)
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)
    heads = [line for line in lines if line.startswith("4090-rms ")]
    assert len(heads) == 1
    assert re.match(r"4090-rms +1\.39 × +1\.7 ±4\.3% +1\.22 +better, on other", heads[0])
    assert "Typical Performance (RTX 4090) · RTX 4090" in map(str.rstrip, lines)
    assert re.search(r"^all +131 +", "\n".join(lines), re.MULTILINE)


def test_figures_are_printed_as_the_document_does() -> None:
    def said(line: str) -> str:
        return claim_tables.claimed_text(judge(line).claim)

    assert said("metric: speedup, value: 1.1, decimals: 2") == "1.10 ×"
    quoted = text("metric: ms, value: 1100").replace(
        'quote: "q"', 'quote: "1,100.50 or 1,100.00 ms"'
    )
    assert claims.parse(quoted, "f.yaml").claims[0].places == 2
    assert said("metric: speedup, value: [1.2, 1.55]") == "1.20–1.55 ×"
    assert said("metric: max_error, value: 1.0e-6, bound: at_most") == "≤ 1e-06 max error"
    assert said("metric: tokens, value: 8000, bound: at_least") == "≥ 8,000 tokens"


def test_nothing_of_a_document_becomes_markup() -> None:
    sly = text("metric: ms, value: 2, notes: ['a | <b> [x](http://y) `c`']").replace(
        "title: T", "title: '*T* [bold]'"
    )
    rows = claims.rows([], [claims.parse(sly, "f.yaml")])
    page = claim_tables.markdown(rows)
    assert r"### \*T\* \[bold\]" in page
    assert r"a \| \<b\> \[x\](http://y) \`c\`" in page
    assert "*T* [bold]" in "\n".join(shown(rows, 100))


def test_all_formats_say_the_same(tmp_path: Path) -> None:
    done = kb("--against", str(LAYER), "--format", "json")
    assert (done.returncode, done.stderr) == (0, "")
    flat = json.loads(done.stdout)
    assert len(flat) == 131
    by_name = {row["claim"]: row for row in flat if row["document"] == "rcm_readme"}
    row = by_name["a100-8192-triton"]
    assert (row["hardware"], row["line"], row["unit"], row["kind"]) == (
        "A100",
        169,
        "×",
        "derived",
    )
    assert (row["claimed_lo"], row["verdict"]) == (1.28, "not reproduced")
    assert row["ratio"] == pytest.approx(row["measured"] / 1.28)
    assert by_name["hbm-theoretical"]["kind"] == "modelled"
    assert by_name["headline"]["hardware"] == "not stated"
    assert by_name["headline"]["measured"] is None
    table = csv.DictReader(io.StringIO(kb("--against", str(LAYER), "--format", "csv").stdout))
    for mine, theirs in zip(table, flat, strict=True):
        assert mine == {key: "" if value is None else str(value) for key, value in theirs.items()}
    page = kb("--against", str(LAYER), "--format", "md").stdout
    saved = "27.3 % HBM saved | 23.2 modelled | 0.849 | not reproduced, modelled"
    assert f"| hbm-theoretical | {saved}" in page
    assert "| a100-8192-triton | 1.28 × | 1.21 ±0.96% | 0.944 | not reproduced, on other" in page


def test_exit_codes(tmp_path: Path) -> None:
    example = str(EXAMPLE)
    done = kb(example)
    assert (done.returncode, done.stderr) == (0, "")
    done = kb(example, "--fail-on", "not-comparable")
    assert done.returncode == 3
    assert done.stderr == "my_norm rate: not comparable: impossible\n"
    done = kb(example, "--fail-on", "not-reproduced")  # nothing was measured
    assert done.returncode == 2 and "no claim was held against a measurement" in done.stderr
    for wrong, said in (
        (("--fail-on", "worse"), "--fail-on: no verdict 'worse'"),
        (("--format", "xml"), "--format: no 'xml'"),
        (("--against", str(tmp_path)), "--against: no run in"),
        ((str(tmp_path / "none.yaml"),), "none.yaml"),
    ):
        done = kb(example, *wrong)
        assert done.returncode == 2, wrong
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def test_a_torn_record_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes((LAYER / "manifest.json").read_bytes())
    lines = [line.decode() for line in store.lines(LAYER, store.RECORDS)]
    broken = "\n".join([*lines[:5], '{"schema": 1, "fam', *lines[5:]])
    (tmp_path / "records.jsonl").write_text(broken + "\n", encoding="utf-8")
    done = kb("--against", str(tmp_path))
    assert done.returncode == 1
    assert "records.jsonl" in done.stderr
    assert "not reproduced" in done.stdout


def test_the_verb_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from kernelbench.cli import app\n"
        f"app(['claims', '--against', {str(LAYER)!r}])"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_example_of_the_page_is_the_file_that_is_run() -> None:
    page = (ROOT / "docs/claims.md").read_text(encoding="utf-8")
    [block] = re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert block == EXAMPLE.read_text(encoding="utf-8")
    [file] = claims.load([EXAMPLE])
    mine = {"family": "rms_norm", "axes": {"M": 16384, "N": 4096}}
    records = (
        record("torch_fused", Role.torch_fused, **mine),
        ours("triton_fused", timing=timing(4), **mine),
    )
    norm, rate = claims.rows(records, [file])
    assert norm.verdict_text == "reproduced"
    assert rate.fault is Fault.impossible


def test_the_page_names_every_metric_fault_verdict_and_key() -> None:
    page = (ROOT / "docs/claims.md").read_text(encoding="utf-8")
    from dataclasses import fields

    from kernelbench.claims.words import Claim, Document, Metric

    for word in (
        *Metric,
        *Fault,
        *(field.name for kind in (Claim, Document) for field in fields(kind)),
    ):
        assert f"`{word}`" in page, word
    for verdict in Verdict:
        assert f"| {verdict} |" in page
