"""The page's first screen: titles, verdicts, and the two figures case by case."""

import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from page_run import MANIFEST, Seen, case, noisy, sweep
from test_metrics import blocks, error, ours, record, timing

from kernelbench import metrics
from kernelbench.report import leads, page, panels
from kernelbench.spec import Role, RunRecord, Status

pytest.importorskip("matplotlib", reason="matplotlib draws the page: the extra `report`")


@pytest.fixture(autouse=True)
def first_screen_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the figures of the families, which tests/test_page.py is about."""
    monkeypatch.setattr(page, "_parts", lambda family, manifests: ())


def render(records: list[RunRecord], **manifests: Any) -> str:
    return page.render(records, (), {"run": MANIFEST} | manifests)


def strip(html: str) -> list[list[str]]:
    """The cells of each verdict as they are read, without the marks of what needs a look."""
    tables = re.findall(r'<table class="verdict">.*?</table>', html, re.DOTALL)
    lines = [line for table in tables for line in table.split("<tr>")[2:]]
    return [[said(cell) for cell in re.split("</t[hd]>", line)[:-1]] for line in lines]


def said(cell: str) -> str:
    """Its text, notes apart by ` · `."""
    return " ".join(re.sub("<[^>]+>", " ", cell.replace("<li", " · <li")).split())


def figures(html: str) -> list[str]:
    """The titles of the figures that are case by case."""
    return re.findall(r"<title [^>]*>([^<]+: (?:× best other|% of ceiling)[^<]*)</title>", html)


def drawn(html: str, title: str) -> str:
    """The figure whose title ends so."""
    (found,) = [
        one for one in re.findall(r"<svg.*?</svg>", html, re.DOTALL) if f"{title}</ti" in one
    ]
    return found


def texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def timed(one: RunRecord, us: float) -> RunRecord:
    return replace(one, timing=timing(us))


def at(n: int, us: float, **facts: Any) -> list[RunRecord]:
    """A case in which the best other, liger, takes n / 300 µs and ours so many."""
    return [timed(one, us) if one.provider == "triton" else one for one in case(n, **facts)]


def test_one_glance_tells_right_faster_and_near() -> None:
    triton, fast = strip(render(sweep()))
    assert triton == [
        "rms_norm fwd triton",
        "✓ right 4 of 4 cases · 3 other providers right",
        "✓ faster 1.333 × the best other · 95 %: 1.333 to 1.333 within this run, mean of 4"
        " · 4 cases: all faster · 1.33 to 1.33 × liger",
        "– not near 41.0 % of ceiling · 41.0 to 41.0 % over 4 cases, bound by memory"
        " · best other 30.7 %, 30.7 to 30.7 % over 4 cases",
    ]
    assert fast[0] == "rms_norm fwd fast ≈"
    assert fast[2] == "– no opponent · of the same accuracy in the same job"
    assert "best other" not in fast[3]


@pytest.mark.parametrize(("us", "answer"), [(0.58, "✓ near 90.4 %"), (0.59, "– not near 88.9 %")])
def test_near_is_from_90_percent_on(us: float, answer: str) -> None:
    records = [
        one for name in "ab" for one in (record(case=name), ours(case=name, timing=timing(us)))
    ]
    assert strip(render(records))[0][3].startswith(answer)


def test_what_is_wrong_stands_first_and_says_so_in_words() -> None:
    records = [*case(1024, "fwd"), *case(2048, "fwd"), *case(1024, "bwd")]
    wrong = next(
        n for n, one in enumerate(records) if one.mode == "bwd" and one.provider == "triton"
    )
    records[wrong] = replace(
        records[wrong], status=Status.incorrect, reason="dx: 0.5", timing=None
    )  # fmt: skip
    html = render(records)
    first, second, *others = strip(html)
    assert first[0] == "rms_norm bwd triton"
    assert first[1] == (
        "✗ wrong 0 of 1 cases · ✗ incorrect: M1024-N1024-bf16-bwd · 3 other providers right"
    )
    assert first[2].startswith("– no opponent") and first[3].startswith("– not known")
    assert [line[0] for line in (second, *others)] == [
        "rms_norm fwd triton", "rms_norm fwd fast ≈", "rms_norm bwd fast ≈"
    ]  # fmt: skip
    link = re.search(r'<li class="bad">.*?<a href="#([^"]+)">incorrect', html)
    assert link and f'<details id="{link[1]}">' in html


def test_others_that_are_wrong_are_named_beside_ours_that_is_right() -> None:
    records = sweep()
    records[4] = replace(records[4], status=Status.crashed, reason="died", timing=None)
    for line in strip(render(records)):
        assert line[1] == "✓ right 4 of 4 cases · ! others: liger 1 crashed"


def test_what_was_not_tried_is_not_called_right() -> None:
    skip = {"status": Status.skipped, "reason": "no GPU", "timing": None}
    records = [replace(one, **skip) if one.provider == "triton" else one for one in sweep()]
    (cell,) = [line[1] for line in strip(render(records)) if line[0].endswith("triton")]
    assert cell == "– not tried · 4 skipped · 3 other providers right"
    records[2] = sweep()[2]
    (cell,) = [line[1] for line in strip(render(records)) if line[0].endswith("triton")]
    assert cell.startswith("✓ right 1 of 1 cases · 3 skipped")


@pytest.mark.parametrize(
    ("shares", "word"),
    [
        ((0.8, 0.9), "✓ faster 1.178 ×"),
        ((0.7, 1.1), "✓ faster in the mean 1.140 ×"),
        ((1.0, 1.0), "– no difference 1.000 ×"),
        ((1.2, 1.1), "! slower 0.870 ×"),
        ((1.4, 0.9), "! slower in the mean 0.891 ×"),
    ],
)
def test_a_mean_that_hides_slow_cases_says_so(shares: tuple[float, float], word: str) -> None:
    """shares: of the best other's time, ours."""
    one, other = shares
    records = [*at(1024, 1024 / 300 * one), *at(2048, 2048 / 300 * other)]
    assert strip(render(records))[0][2].startswith(word)


def test_cases_that_the_mean_leaves_out_are_counted() -> None:
    """liger ran in two of three; in the third ours is slower than compile."""
    records = [*at(1024, 2), *at(2048, 4), *at(4096, 30)]
    records[-2] = replace(records[-2], status=Status.skipped, timing=None, reason="too wide")
    cell = strip(render(records))[0][2]
    assert "mean of 2 of 3 ·" in cell and "3 cases: 2 faster, 1 slower" in cell
    assert "0.68 to 1.71 × liger (2), compile (1)" in cell
    assert cell.startswith("✓ faster in the mean")


def test_a_single_case_is_no_mean_and_has_no_figure() -> None:
    html = render(case(1024))
    assert (
        strip(html)[0][2]
        == (
            "✓ faster 1.333 × the best other · 95 %: 1.333 to 1.333 within this run"
            " · 1 case, against liger"
        )
        and figures(html) == []
    )


def test_flags_are_counted_where_the_speed_stands() -> None:
    records = sweep()
    records[2] = noisy(records[2], "throttled:sw_power_cap")
    assert strip(render(records))[0][2].endswith(" · ! 1 flagged")
    assert "1.271 !" in " ".join(texts(drawn(render(records), "triton: × best other")))


def test_intervals_say_how_many_processes_they_are_over() -> None:
    def again(one: RunRecord) -> RunRecord:
        return replace(one, further=tuple(replace(one, process=n) for n in (1, 2)))

    html = render([again(one) if one.timing else one for one in sweep()])
    assert " over 3 processes, mean of 4" in strip(html)[0][2]
    assert "Whiskers: 95 % intervals, over 3 processes." in html


def test_a_family_without_a_kernel_of_ours_has_a_verdict() -> None:
    records = [one for one in sweep() if one.role is not Role.triton_fused]
    assert strip(render(records)) == [
        ["rms_norm fwd", "✓ right 12 of 12 records · 4 skipped", "– no kernel of ours",
         "– not known · no ceiling was measured, or no time"]
    ]  # fmt: skip


def test_a_cpu_is_asked_only_whether_it_is_right() -> None:
    host = timing(10, timer="host")
    errors = (error("y", 1e-3, 6e-3),)
    html = render([record(timing=host, errors=errors), ours(timing=host, errors=errors)])
    assert strip(html) == [["rms_norm fwd triton", "✓ right 1 of 1 cases · 1 other provider right"]]
    assert "faster than" not in html and "Case by case" not in html


def test_many_kernels_are_folded_but_none_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "SHOWN", 2)
    records = [replace(one, family=f"f{number}") for number in range(3) for one in case(1024)]
    html = render(records)
    assert '<details class="more"><summary>4 more, of fewer cases</summary>' in html
    assert len(strip(html)) == 6
    bad = [replace(one, status=Status.failed, timing=None) for one in records]
    assert '<details class="more">' not in render(bad)


def test_lead_figures_are_of_a_kernel_each() -> None:
    html = render([*sweep(), *sweep(mode="bwd")])
    assert figures(html) == [
        f"rms_norm {mode} {name}: {what}"
        for mode in ("fwd", "bwd")
        for name, shown in (
            ("triton", ("× best other", "% of ceiling")),
            ("fast ≈", ("% of ceiling",)),
        )
        for what in shown
    ]


def place(svg: str, text: str) -> float:
    """Where a text stands across the figure."""
    found = re.search(rf'<text[^>]*x="([\d.]+)"[^>]*>{re.escape(text)}</text>', svg)
    assert found, text
    return float(found[1])


def test_best_other_is_centred_at_1_on_a_linear_axis() -> None:
    svg = drawn(render([*at(1024, 3), *at(2048, 8)]), "triton: × best other")
    low, one, high = (place(svg, tick) for tick in ("0.9", "1", "1.1"))
    assert one - low == pytest.approx(high - one, abs=0.2)
    said = texts(svg)
    assert said.count("liger") == 2 and {"1.138", "0.853", "best other"} <= {*said}
    assert {"M1024-N1024", "M1024-N2048"} <= {*said}
    assert "Of 2 cases: 1 faster, 1 slower. From 0.85 × liger on M1024-N2048-bf16-fwd to" in svg


def test_noise_is_shaded_and_printed_as_no_difference() -> None:
    loud = [
        replace(one, timing=replace(one.timing, again_ns=blocks(n / 100 * 1.2)))
        if one.provider == "eager" and one.timing else one
        for n in (1024, 2048) for one in at(n, n / 300 * 0.9)
    ]  # fmt: skip
    svg = drawn(render(loud), "triton: × best other")
    assert svg.count("var(--band)") == 2
    assert texts(svg).count("~") == 2
    assert drawn(render([*at(1024, 3), *at(2048, 6)]), "triton: × best other").count("~") == 0


def test_the_share_of_the_ceiling_is_on_an_axis_from_0_to_100() -> None:
    svg = drawn(render(sweep()), "triton: % of ceiling")
    ticks = [place(svg, tick) for tick in ("0", "25", "50", "75", "100 %")]
    steps = [later - now for now, later in pairwise(ticks)]
    assert max(steps) - min(steps) < 0.3
    assert texts(svg).count("41.0") == 4 and texts(svg).count("30.7") == 4
    assert "Median of ours 41.0 %, the best other&#x27;s 30.7 %." in svg


def test_a_case_that_failed_is_named_where_its_bar_would_be() -> None:
    records = sweep()
    records[2] = replace(records[2], status=Status.incorrect, reason="y: 1", timing=None)
    for what in ("× best other", "% of ceiling"):
        svg = drawn(render(records), f"triton: {what}")
        assert texts(svg).count("✗ incorrect") == 1 and "var(--bad)" in svg
        assert "M1024-N1024" in texts(svg)


def test_names_leave_out_the_usual_dtype_and_say_which_it_is() -> None:
    half = {"dtype": "fp16", "case": "M1024-N64-fp16-fwd"}
    html = render([*sweep(), *(replace(one, **half) for one in case(64))])
    assert "triton, 5 cases, bf16 if not said" in html
    assert {"M1024-N64-fp16", "M1024-N1024"} <= {*texts(drawn(html, "triton: % of ceiling"))}


def test_many_cases_go_on_in_a_next_figure_with_the_same_axis(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leads, "ROWS", 4)
    sizes = [1024 * n for n in range(1, 7)]
    records = [one for n, size in enumerate(sizes) for one in at(size, size / 300 * (0.5 + n / 9))]
    html = render(records)
    shown = [drawn(html, f"triton: × best other ({part} of 2)") for part in (1, 2)]
    ticks = [texts(svg)[: texts(svg).index("×")] for svg in shown]
    assert ticks[0] == ticks[1] == ["0", "0.5", "1", "1.5", "2"]
    for svg, first in zip(shown, (0, 3), strict=True):
        assert [text for text in texts(svg) if text.startswith("M1024-N")] == [
            f"M1024-N{size}" for size in sizes[first : first + 3]
        ]
    assert "triton, 3 cases (2 of 2)" in html


@pytest.mark.parametrize(
    ("runs", "title"),
    [
        ({}, "h200 on NVIDIA H200"),
        ({"b": ("smoke", "NVIDIA A100")}, "h200, smoke on NVIDIA H200, NVIDIA A100, 2 runs"),
        (
            {str(n): (f"s{n}", f"GPU {n}") for n in range(3)},
            "4 suites on 4 GPUs, 4 runs",
        ),
    ],
)
def test_the_title_names_suites_and_gpus(runs: dict[str, tuple[str, str]], title: str) -> None:
    records = case(1024)
    for run, (_, gpu) in runs.items():
        records += [replace(one, run_id=run, gpu=gpu) for one in case(1024)]
    seen = Seen(render(records, **{run: {"suite": suite} for run, (suite, _) in runs.items()}))
    assert seen.text_of("title")[0] == seen.text_of("h1")[0] == title
    names = seen.text_of("dt")[: seen.text_of("dt").index("records")]
    assert ("GPU" in names) == ("suite" in names) == title.startswith("4")


def test_a_title_without_a_manifest_names_the_gpu() -> None:
    html = page.render(case(1024), (), {})
    assert Seen(html).text_of("h1") == ["kernel benchmarks on NVIDIA H200"]


def test_runs_are_not_pooled() -> None:
    later = [replace(one, run_id="later") for one in sweep()]
    lines = strip(render([*sweep(), *later], later=MANIFEST))
    assert [line[0] for line in lines] == [
        f"rms_norm fwd {name} {run}" for run in ("run", "later") for name in ("triton", "fast ≈")
    ]


def test_panels_know_the_best_other_of_their_own_run() -> None:
    rows = [
        row | {"record": one}
        for one, row in zip(sweep(), metrics.filled(metrics.rows_of(sweep())), strict=True)
    ]
    first = panels.panels(rows)[0]
    best = first.best_other(first.ours[0])
    assert best is not None and (best["provider"], best["case"]) == (
        "liger",
        "M1024-N1024-bf16-fwd",
    )


def test_filled_rows_are_those_of_the_frame() -> None:
    records = [*sweep(), record(status=Status.failed, timing=None, case="broken")]
    rows = metrics.rows_of(records)
    for plain, framed in zip(
        metrics.filled(rows), metrics.dicts(metrics.frame_of(rows)), strict=True
    ):
        for name in (name for name in framed if name in plain):
            mine, theirs = plain[name], framed[name]
            same = mine == theirs or str(mine) == str(theirs)  # NaN, too
            assert same or (mine is None and str(theirs) == "<NA>"), name
