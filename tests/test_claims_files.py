"""Claims files: what they may say, and what arithmetic alone tells of them, worked out by hand."""

import re
from pathlib import Path

import pytest
from test_claims import ONE, PAIR, judge, text

from kernelbench import claims
from kernelbench.claims.peaks import model_of, models_in, same
from kernelbench.claims.words import Fault
from kernelbench.spec import UsageError


def refused(line: str, *, whole: bool = False) -> str:
    with pytest.raises(UsageError) as caught:
        claims.parse(line if whole else text(line), "f.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("metric: speedup, value: 2, colour: red", "no key 'colour' of a claim"),
        ("metric: sped, value: 2", "'metric': no value 'sped'; did you mean 'speedup'?"),
        ("metric: speedup", "missing key 'value' of a claim"),
        ("metric: speedup, value: fast", "'value' takes a number or [low, high], got 'fast'"),
        ("metric: speedup, value: [3, 2]", "takes [low, high] with low below high"),
        ("metric: speedup, value: true", "takes a number or [low, high]"),
        (f"metric: ms, value: 2, {PAIR}", "'ms' is of one provider; leave it out"),
        (f"metric: speedup, value: 2, {ONE}", "missing key 'against' of compare"),
        (f"metric: training_gain_pct, value: 2, {PAIR}", "no record holds 'training_gain_pct'"),
        (f"metric: tokens_per_s, value: 2, {ONE}", "need work.tokens"),
        (f"metric: ms, value: 2, {ONE}, unmeasured: no", "give one"),
        ("metric: ms, value: 2, decimals: 13", "'decimals' takes 0 to 12"),
        ("metric: ms, value: 2, gpu_count: 0", "'gpu_count' is at least 1"),
        ("metric: speedup, value: 2, ratio_of: [c0, c1]", "no claim 'c1'"),
        ("metric: speedup, value: 2, ratio_of: [c0]", "'ratio_of' takes two claims"),
        ("metric: ms, value: 0", "'ms' is above 0"),
        ("metric: speedup, value: [-1, 2]", "'speedup' is above 0"),
        ("metric: ms, value: 2, work: {flops: -1}", "'flops' is at least 0"),
        ("metric: ms, value: 2, work: {dtype: fp12}", "no dtype 'fp12'; did you mean 'fp32'?"),
        (
            f"metric: ms, value: 2, {ONE.replace('512', '[1, 2]')}",
            "'N' takes a number, a word, true or false, got a list",
        ),
        ("metric: ms, value: 2, doubts: [{fault: bad, why: x}]", "'fault': no value 'bad'"),
    ],
)
def test_an_error_says_where_what_and_what_is_known(line: str, said: str) -> None:
    found = refused(line)
    assert said in found
    assert re.match(r"f\.yaml:[23]:\d+: ", found), found


def test_what_the_whole_file_must_be() -> None:
    assert "f.yaml:1:1: a claims file is a mapping" in refused("[1]", whole=True)
    assert "missing key 'document'" in refused("claims: []", whole=True)
    assert "'claims' is empty" in refused("document: {id: d, title: T}\nclaims: []", whole=True)
    assert "'id' takes a word" in refused("document: {id: A B, title: T}\nclaims: []", whole=True)
    twice = text("metric: ms, value: 2", "metric: ms, value: 3").replace("c1", "c0")
    assert refused(twice, whole=True) == "f.yaml:4:10: a second claim 'c0'"
    zero = text("metric: ms, value: 2", more=", gpu_count: 0")
    assert "'gpu_count' is at least 1" in refused(zero, whole=True)


def test_every_error_of_a_file_is_named_at_once() -> None:
    found = refused("metric: sped, value: fast, colour: red").splitlines()
    assert len(found) == 3


def test_folders_are_read_and_a_document_stands_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no \*\.yaml in this folder"):
        claims.load([tmp_path])
    (tmp_path / "a.yaml").write_text(text("metric: ms, value: 2"), encoding="utf-8")
    assert [file.document.id for file in claims.load([tmp_path, tmp_path / "a.yaml"])] == ["d"]
    (tmp_path / "b.yaml").write_text(text("metric: ms, value: 2"), encoding="utf-8")
    with pytest.raises(UsageError, match="'d' is described by two files"):
        claims.load([tmp_path])


def impossible(line: str, hardware: str = "H200", more: str = "") -> str:
    """The arithmetic that convicts a claim; nothing where it is acquitted."""
    row = judge(line, hardware=hardware, more=more)
    return row.whys[0] if row.fault is Fault.impossible else ""


def test_a_rate_above_the_peak_is_impossible_by_arithmetic() -> None:
    line = "metric: gflops, value: 26293.59, work: {dtype: fp32}"
    said = judge(line, hardware="2x NVIDIA GTX 1080 (Pascal)").whys[0]
    assert said == (  # 26293.59 / (2 · 8870) = 1.482
        "26,294 GFLOP/s, 1.48 × the peak of 2 × GTX 1080 in fp32 "
        "(17,740: NVIDIA GeForce GTX 1080 whitepaper)"
    )
    assert judge(line, hardware="4 × GTX 1080").fault is None  # 35,480
    assert judge(line, hardware="GTX 1080 and friends", more=", gpu_count: 3").fault is None
    assert judge(line, hardware="GTX 9090").fault is None  # not in the table: convicts nobody
    assert judge(line, hardware="GTX 1080", more=", gpus: [GTX 1080, Foo]").fault is None


def test_15_percent_above_the_datasheet_is_granted() -> None:
    assert impossible("metric: gbps, value: 5519") == ""  # 4800 · 1.15 = 5520
    assert "5,521 GB/s, 1.15 × the bandwidth of H200 (4,800:" in impossible(
        "metric: gbps, value: 5521"
    )
    assert "1,140,000 GFLOP/s" in impossible(
        "metric: gflops, value: 1140000, work: {dtype: bf16}"
    )  # 989,400 · 1.15 = 1,137,810
    assert impossible("metric: gflops, value: 1137000, work: {dtype: bf16}") == ""
    assert impossible("metric: gflops, value: 1140000") == ""  # perhaps fp8
    assert impossible("metric: gflops, value: 560000, work: {dtype: fp32}") == ""  # perhaps TF32
    halves = "metric: gflops, value: {}, work: {{dtype: fp16}}"  # 140 GFLOP/s, 8,870 converted
    assert impossible(halves.format(9000), "GTX 1080") == ""
    assert "1.24 × the peak" in impossible(halves.format(11000), "GTX 1080")


def test_the_work_of_a_call_over_its_time_is_a_rate() -> None:
    flops = "work: {flops: 4000000000000, dtype: bf16}"
    assert "4,000,000,000,000 flops / 2 ms = 2,000,000 GFLOP/s, 2.02 ×" in impossible(
        f"metric: ms, value: 2, {flops}"
    )
    assert impossible(f"metric: ms, value: 4, {flops}") == ""
    assert impossible(f"metric: ms, value: [2, 4], {flops}") == ""  # the slower end
    assert impossible(f"metric: ms, value: 2, bound: at_most, {flops}") != ""
    assert impossible(f"metric: ms, value: 2, bound: at_least, {flops}") == ""
    assert impossible("metric: gbps, value: 9000, bound: at_most") == ""
    # 1,062,914,560 − 60 MiB = 10⁹ bytes; / 0.1 ms = 10,000 GB/s
    bytes_ = "work: {bytes: 1062914560}"
    assert (
        "(1,062,914,560 bytes − 60 MiB of L2) / 0.1 ms = 10,000 GB/s, 2.08 × the bandwidth of H200"
        in impossible(f"metric: ms, value: 0.1, {bytes_}")
    )
    assert impossible(f"metric: ms, value: 0.2, {bytes_}") == ""
    assert impossible("metric: ms, value: 0.0001, work: {bytes: 52000000}") == ""  # fits the L2
    tokens = "work: {tokens: 1000, flops: 4000000000000}"  # 1000 / 500,000 s = 2 ms; fp8: 1978.9
    assert impossible(f"metric: tokens_per_s, value: 500000, {tokens}") == ""
    assert "/ 1 ms = 4,000,000 GFLOP/s" in impossible(
        f"metric: tokens_per_s, value: 1000000, {tokens}"
    )


def test_of_several_models_the_best_must_not_reach_it() -> None:
    assert impossible("metric: gbps, value: 3000", "A100/H100") == ""
    assert "A100" in impossible("metric: gbps, value: 4600", "A100/H100")


@pytest.mark.parametrize(
    ("line", "hardware"),
    [
        ("metric: gbps, value: 480", "GTX 1080 Ti"),  # 484 by its datasheet
        ("metric: gbps, value: 3900", "H100 NVL"),
        ("metric: gbps, value: 6000", "B200 and H100"),
        ("metric: gbps, value: 20000", "H100 x8"),
        ("metric: gflops, value: 250000, work: {dtype: int8}", "RTX A6000"),
        ("metric: gflops, value: 30000, work: {dtype: int8}", "GTX 1080"),
    ],
)
def test_a_board_that_can_or_that_nobody_knows_convicts_nobody(line: str, hardware: str) -> None:
    assert impossible(line, hardware) == ""


def test_a_claims_own_hardware_stands_before_the_documents() -> None:
    assert impossible('metric: gbps, value: 1500, hardware: "RTX 5090"', "GTX 1080") == ""
    assert impossible('metric: gbps, value: 1500, hardware: ""', "GTX 1080") == ""
    assert "GTX 1080" in impossible("metric: gbps, value: 1500", "GTX 1080")


def test_names_of_gpus() -> None:
    assert model_of("NVIDIA GeForce GTX 1080 Ti") is None
    assert not same(["GTX 1080"], "NVIDIA GeForce GTX 1080 Ti")
    assert models_in("B200 and H100-SXM5-80GB") == ("H100", "b200")
    assert model_of("NVIDIA A100-SXM4-80GB") == "A100"
    assert model_of("NVIDIA L40S") == "L40S"
    assert model_of("NVIDIA GeForce RTX 4090") == "RTX 4090"
    assert model_of("NVIDIA A10G") is None
    assert models_in("A100/H100 and 2x L4") == ("A100", "L4", "H100")
    assert same(["H200"], "NVIDIA H200")
    assert not same(["H100"], "NVIDIA H200")


def test_a_ratio_that_its_own_two_figures_do_not_give_is_noted() -> None:
    lines = ("metric: ms, value: 33.0", "metric: ms, value: 7.15")
    ratio = "metric: slowdown, value: {}, ratio_of: [c0, c1]"
    right = claims.parse(text(*lines, ratio.format(4.6)), "f.yaml")
    assert claims.rows([], [right])[2].notes == ()
    wrong = claims.parse(text(*lines, ratio.format(2.7)), "f.yaml")
    assert claims.rows([], [wrong])[2].notes == ("the document's own c0 / c1 is 4.62",)
