"""The page without a browser: what it holds, says, leaves out, and never lets through."""

import re
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from page_run import MANIFEST, Seen, case, counted, noisy, sweep
from test_metrics import error, ours, record, timing

from kernelbench import metrics
from kernelbench.report import cases, page
from kernelbench.report.bars import margin
from kernelbench.report.figures import looks
from kernelbench.report.gather import gather
from kernelbench.spec import KernelbenchError, Measured, Role, RunRecord, Status
from kernelbench.spec import UsageError as Usage

pytest.importorskip("matplotlib", reason="matplotlib draws the page: the extra `report`")

ROOT = Path(__file__).parent.parent
FIGURES = ("Case by case", "Speedup over the baseline", "Scaling", "Roofline",
           "Modelled and measured bytes", "Error against speed", "Raw samples")  # fmt: skip


def render(records: list[RunRecord], measured: tuple[Measured, ...] = (), **options: Any) -> str:
    return page.render(records, measured, {"run": MANIFEST}, **options)


@pytest.fixture(scope="module")
def full() -> str:
    """A page that has every figure."""
    records = sweep()
    records[2] = noisy(records[2], "throttled:sw_power_cap")
    return render(records, (counted(), counted("eager", 2 * 2**30, role=Role.baseline)))


@pytest.fixture(scope="module")
def seen(full: str) -> Seen:
    return Seen(full)


def section(html: str, title: str) -> str:
    """What stands between this third heading and the next."""
    return html.split(f"<h3>{title}</h3>")[1].split("<h3>")[0]


@pytest.mark.parametrize("title", FIGURES)
def test_every_figure_is_there_and_says_its_kind(full: str, title: str) -> None:
    part = section(full, title)
    assert part.count("<svg") == part.count("<figcaption") > 0
    for caption in re.findall(r"<figcaption>.*?</figcaption>", part, re.DOTALL):
        kinds = re.findall(r'<span class="kind \w+">(\w+)</span>', caption)
        assert kinds and set(kinds) <= {*metrics.Kind}, caption


@pytest.mark.parametrize(
    ("title", "says"),
    [
        ("Scaling", "No axis was swept over three values or more."),
        ("Roofline", "No ceiling was measured, or no rate could be formed."),
        ("Modelled and measured bytes", "no profiler counted bytes of this family"),
        ("Error against speed", "Too few providers have both."),
        ("Raw samples", "No case was noisy: the widest interval is ± 0%."),
    ],
)
def test_a_figure_without_data_is_a_sentence(title: str, says: str) -> None:
    bare = page.render([replace(r, errors=()) for r in case(1024)], (), {})
    part = section(bare, title)
    assert "<svg" not in part and says in part


def test_nothing_of_speed_where_nothing_has_one() -> None:
    lone = render([record(group="")])
    assert "No speedup could be formed" in section(lone, "Speedup over the baseline")
    assert "Geometric means" not in lone


def test_it_asks_nobody(full: str, seen: Seen) -> None:
    for attributes in (attributes for _, attributes in seen.elements):
        for name in ("src", "href", "data", "poster", "srcset", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:,")), attributes
    assert not re.search(r"url\((?!#)|@import|\bfetch\(|XMLHttpRequest", full)
    (policy,) = (m["content"] for m in seen.of("meta") if "http-equiv" in m)
    assert policy.startswith("default-src 'none'")


def test_its_structure_is_that_of_a_document(full: str, seen: Seen) -> None:
    levels = [int(tag[1]) for tag, _ in seen.elements if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(later <= now + 1 for now, later in pairwise(levels))
    ids = [attributes["id"] for _, attributes in seen.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in seen.elements:
        if attributes.get("href", "#").startswith("#"):
            assert attributes.get("href", f"#{ids[0]}")[1:] in ids, attributes
        assert set(attributes.get("aria-labelledby", "").split()) <= set(ids)
    for head in seen.of("th"):
        assert head["scope"] in ("col", "row")
    assert full.count("<input") == len(re.findall(r"<label>Filter <input", full)) == 1
    sortable = re.findall(r'<div class="scroll".*?(<thead>.*?</thead>)', full, re.DOTALL)
    assert len(sortable) == 2
    for head in sortable:
        assert head.count("<th ") == head.count("<button type")  # a keyboard reaches it
    assert seen.elements[0] == ("html", {"lang": "en"})


def test_a_figure_says_in_words_what_it_shows(seen: Seen) -> None:
    drawn = seen.of("svg")
    assert len(drawn) >= len(FIGURES)
    assert all(svg["role"] == "img" and svg["aria-labelledby"] for svg in drawn)
    messages = seen.text_of("desc")
    assert len(messages) == len(drawn) and all(len(message) > 30 for message in messages)
    told = "geometric mean over the 4 cases that all ran: "
    assert any(told in each and "compile 2.00 × (2.00 to 2.00)" in each for each in messages)


def test_colours_are_names_that_the_stylesheet_gives_a_value(full: str) -> None:
    assert not re.search(r"#a1[0-9a-f]{4}", full)
    used, known = (set(re.findall(form, full)) for form in (r"var\((--[\w-]+)\)", r"(--[\w-]+):"))
    assert used <= known


def luminance(colour: str) -> float:
    def linear(part: int) -> float:
        share = part / 255
        return share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4

    red, green, blue = (linear(int(colour[at : at + 2], 16)) for at in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_the_formula() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_what_is_read_stands_out(scheme: int) -> None:
    css = (ROOT / "kernelbench/report/page.css").read_text(encoding="utf-8")
    block = css.split(":root {")[1 + scheme].split("}")[0]
    colours = dict(re.findall(r"--([\w-]+): (#\w{6});", block))
    for ink in ("ink", "muted", "link", "bad", "good", "doubt"):
        for paper in ("paper", "soft", "warn"):
            assert contrast(colours[ink], colours[paper]) >= 4.5, (ink, paper)
    for ink in ("ink", "link", "muted"):
        assert contrast(colours[ink], colours["band"]) >= 4.5, ink
    drawn = [name for name in colours if re.match("base|torch|ours|part|peer", name)]
    assert len(drawn) == 14
    for name in drawn:
        assert contrast(colours[name], colours["paper"]) >= 3, name


def test_a_role_has_its_colours_and_a_provider_its_marker() -> None:
    rows = [
        {"provider": name, "role": role, "accuracy": accuracy}
        for name, role, accuracy in (
            ("mine", "triton_fused", "exact"),
            ("near", "triton_fused", "approximate"),
            ("eager", "baseline", "exact"),
            *((f"peer{number}", "peer", "exact") for number in range(5)),
        )
    ]
    found = looks(rows)
    assert len({look.marker for look in found.values()}) == len(rows)
    assert found["peer0"].colour == found["peer4"].colour != found["peer1"].colour
    assert found["mine"].colour != found["near"].colour
    assert [name for name, look in found.items() if look.hatch] == ["near"]


EVIL = "<script>alert(1)</script>"
QUOTES = "\"'><img src=x onerror=alert(1)>&amp;$x^2$ Ядро ✓\x00\x1b"


def test_what_records_say_is_text() -> None:
    name = f"{EVIL}{QUOTES}"
    records = [
        replace(
            one, provider=f"{name}{number}", label=name, gpu=name, flags=(name,), run_id=name,
            family=name, case=f"{one.case}{name}", config={name: name},
            reason=name if one.status is not Status.ok else "",
        )
        for number, one in enumerate(sweep())
    ]  # fmt: skip
    records[2] = noisy(records[2], name)
    records[7] = replace(records[7], status=Status.failed, reason=f"{name}\n{name}", timing=None)
    measured = counted(
        f"{name}2", 2**31, run_id=name, family=name, gpu=name, case=f"M1{name}",
        kernels=counted(read=2**31).kernels,
    )  # fmt: skip
    machine = {"arch": name, "versions": {name: name, "torch": name}}
    manifest = MANIFEST | {"machine": machine, "suite": name, "argv": [name], "gpu": name}
    html = page.render(records, (measured,), {name: manifest})
    found = Seen(html)
    assert len(found.of("script")) == 1 and not found.of("img")
    assert not [a for _, attributes in found.elements for a in attributes if a.startswith("on")]
    assert "\x00" not in html and "\x1b" not in html
    shown = EVIL + QUOTES.replace("\x00", "\ufffd").replace("\x1b", "\ufffd")
    assert found.text_of("title")[0] == found.text_of("h1")[0] == f"{shown} on {shown}"
    assert any(shown in text for text in found.text_of("title")[1:])  # of a figure
    assert any(text.startswith(f"{shown}2") for text in found.text_of("td"))


def test_500_records_are_less_than_2_mb() -> None:
    records = [
        one
        for number in range(84)
        for one in case(1024 + number, config={"BLOCK": 1024, "num_warps": 8}, label="Sizes")
    ]
    assert len(records) >= 500
    long = tuple(tuple(range(9000, 9016)) for _ in range(32))  # 512 samples, the most of a timer
    for at in range(2, 42, 6):
        clock = replace(timing(9), blocks_ns=long)
        records[at] = noisy(replace(records[at], timing=clock), "throttled:sw_power_cap")
    assert len(render(records).encode()) < 2_000_000


def test_the_same_records_give_the_same_page(full: str) -> None:
    records = sweep()
    records[2] = noisy(records[2], "throttled:sw_power_cap")
    again = render(records, (counted(), counted("eager", 2 * 2**30, role=Role.baseline)))
    assert again == full


def test_a_case_has_its_commands_and_its_records(full: str) -> None:
    part = full.split("<h4>M1024-N1024-bf16-fwd</h4>")[1].split("<h4>")[0]
    for line in (
        "kernelbench run configs/h200.yaml --family rms_norm --case M1024-N1024-bf16-fwd",
        "kernelbench repro rms_norm/M1024-N1024-bf16-fwd",
        "kernelbench profile --ncu configs/h200.yaml --family rms_norm",
    ):
        assert line in part
    assert part.count("<details><summary>") + part.count('<details id="record-') == 6 + 1
    assert '"blocks_ns": "130 samples"' in part and 'reason: "needs quack"' in part
    assert part.count("flops: 4194304") == 1  # common to all


def test_commands_carry_what_was_asked_and_quote_it() -> None:
    asked = {"plugins": ["my kernels.py"], "seed": 7, "overrides": ["dtype=[bf16]"]}
    run, again, profile = cases.commands("rms_norm", "M1", MANIFEST | {"asked": asked}).split("\n")
    more = " --plugin 'my kernels.py'"
    assert run.endswith(f"--case M1{more} --seed 7 --set 'dtype=[bf16]'")
    assert again == f"kernelbench repro rms_norm/M1{more}"
    assert profile.endswith(f"--case M1{more} --seed 7")
    assert "run SUITE --family" in cases.commands("rms_norm", "M1", {})


def test_means_are_of_a_family_and_mode_alone() -> None:
    html = render([*sweep(), *case(1024, "bwd")])
    table = html.split('<table id="means">')[1].split("</table>")[0]
    rows = [re.findall(r">([^<>]+)</t[hd]>", line) for line in table.split("<tr>")[2:]]
    assert [row[:3] for row in rows] == [
        ["rms_norm", "fwd", "triton"],
        ["rms_norm", "fwd", "fast ≈"],
        ["rms_norm", "bwd", "triton"],
        ["rms_norm", "bwd", "fast ≈"],
    ]
    # liger's thirds, the baseline's quarter
    assert rows[0][3:7:3] == ["1.33", "4.00"] and rows[0][5] == "1.33 to 1.33"
    assert rows[0][8:] == ["4", "4 faster", "eager, compile, liger"]
    assert rows[1][5:] == ["no opponent of its accuracy"]
    assert rows[2][3:] == ["1 case: no mean"]


def test_figures_that_are_there_are_not_derived_again(monkeypatch: pytest.MonkeyPatch) -> None:
    records = sweep()
    rows, derived = metrics.rows_of(records), render(records)
    monkeypatch.setattr(metrics, "rows_of", None)
    assert render(records, rows=rows) == derived


def test_problems_come_first() -> None:
    good = render(case(1024))
    assert "No provider was wrong, failed or crashed, and nothing is flagged." in good
    records = [*case(1024), *case(2048)]
    records[3] = replace(records[3], status=Status.incorrect, reason="y: 0.5\nmore", timing=None)
    records[2] = replace(records[2], flags=("throttled:sw_power_cap",))
    html = render(records, (counted(read=2**31),))
    lists = re.findall(r'<ul class="problems">.*?</ul>', html, re.DOTALL)
    assert [Seen(listed).text_of("li") for listed in lists] == [
        ["✗ wrong rms_norm M1024-N1024-bf16-fwd fast: incorrect: y: 0.5"],
        [
            "! doubtful rms_norm: HBM reads measured are not those modelled, within 3 %: "
            "triton fwd +100 %",
            "! doubtful rms_norm: 1 record flagged throttled:sw_power_cap",
        ],
    ]
    order = (
        "✗ wrong",
        '"verdict"',
        "! doubtful",
        "Case by case",
        "Geometric means",
        "Speedup over",
    )
    places = [html.index(what) for what in order]
    assert places == sorted(places)


def test_another_baseline_is_named_and_counts() -> None:
    html = render(sweep(), baseline="compile")
    assert "× as fast as compile" in section(html, "Speedup over the baseline")
    assert "Against compile, geometric mean over the 4 cases that all ran: " in html
    assert "triton 2.00 × (2.00 to 2.00)" in html
    with pytest.raises(Usage, match="no provider 'compiled'; did you mean 'compile'"):
        render(sweep(), baseline="compiled")


def test_a_smoke_run_has_verdicts_and_no_speeds() -> None:
    host = timing(10, timer="host")
    errors = (error("y", 1e-3, 6e-3),)
    html = render([record(timing=host, errors=errors), ours(timing=host, errors=errors)])
    assert "Smoke: a CPU run checks correctness" in html
    assert "<h3>Correctness</h3>" in html
    assert "<svg" not in html and "µs" not in Seen(html).text_of("main")[0]


def test_who_has_no_bar_is_named_under_the_case() -> None:
    records = case(1024)
    records[1] = replace(records[1], status=Status.failed, timing=None)
    drawn = section(render(records), "Speedup over the baseline")
    assert ">failed: compile; skipped: quack<" in drawn
    assert drawn.count(">10.24 µs<") == 1  # the baseline's time, beside the case


def test_raw_samples_are_of_what_is_flagged_or_wide() -> None:
    records = case(1024)
    records[2] = replace(records[2], flags=("shared",))
    records[4] = noisy(records[4])
    drawn = re.findall(
        r">(\w+ · M1024-N1024-bf16-fwd · [^<]*)<", section(render(records), "Raw samples")
    )
    assert [line.split(" · ")[0] for line in drawn] == ["liger", "triton"]
    assert drawn[1].endswith("±0% · shared")


def test_bytes_of_two_modes_are_told_apart() -> None:
    other = counted(case="M1024-N8192-bf16-bwd", mode="bwd")
    drawn = section(render([], (counted(), other)), "Modelled and measured bytes")
    assert drawn.count(">fwd bf16<") == drawn.count(">bwd bf16<") == 1


def test_runs_are_told_apart() -> None:
    other = [replace(one, run_id="later", gpu="NVIDIA A100") for one in sweep()]
    manifests = {"run": MANIFEST, "later": MANIFEST | {"gpu": "NVIDIA A100"}}
    html = page.render([*sweep(), *other], (), manifests)
    for run in manifests:
        assert f"rms_norm · {run} fwd bf16: speedup" in html
    differing = html.split("<h3>Where the runs differ</h3>")[1].split("</table>")[0]
    assert re.findall(r">([^<>]+)</t[hd]>", differing)[3:] == ["GPU", "NVIDIA H200", "NVIDIA A100"]


def test_a_run_without_a_manifest_says_so() -> None:
    html = page.render(sweep(), (), {})
    assert "No manifest: nothing is known of this run's machine." in html
    assert "No ceiling was measured" in section(html, "Roofline")


def test_what_only_a_profiler_saw_is_shown() -> None:
    html = render([], (counted(),))
    assert section(html, "Modelled and measured bytes").count("<svg") == 1
    assert "<h3>Speedup over" not in html


def test_the_band_of_the_audit_ends_where_the_picture_does() -> None:
    """Nothing clips it: it would stand behind the names."""
    drawn = section(render([], (counted(read=2**30 * 103 // 100),)), "Modelled and measured bytes")
    corners = re.findall(r'<path d="M ([\d.-]+) [\d.-]+ L ([\d.-]+) ', drawn)
    assert corners and min(float(x) for ends in corners for x in ends) >= margin(["triton"]) - 0.1


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_a_missing_package_is_said_with_its_remedy(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(KernelbenchError, match=rf"needs {missing}.*pip install 'kernelbench\[rep"):
        render(case(1024))


@pytest.mark.parametrize(("flops", "slope"), [(4096, 1), (4096 * 100, 0), (4096 * 5000, 0)])
def test_of_the_roof_only_what_is_in_the_picture_is_drawn(flops: int, slope: int) -> None:
    """Beyond the ridge there is no slope, left of it one that ends in the picture."""
    drawn = section(render([r for n in (1024, 2048) for r in case(n, flops=flops * n)]), "Roofline")
    assert drawn.count(">HBM 4.50 TB/s<") == slope
    lines = re.findall(r'<path d="M ([\d.-]+) [\d.-]+ L ([\d.-]+) ', drawn)
    assert lines and all(0 <= float(x) <= 460 for line in lines for x in line)


def test_the_longest_real_run_is_drawn_and_stays_small() -> None:
    files = (ROOT / "results/h200").glob("2026*/records.jsonl*")
    folder = max(files, key=lambda path: path.stat().st_size).parent
    found = gather([folder])
    html = page.render(found.records, found.measured, found.manifests)
    Seen(html)
    for one in {each.case for each in found.records}:
        assert f"<h4>{one}</h4>" in html
    records = sum(1 + len(each.further) for each in found.records)  # one of each process
    assert len(html.encode()) / records * 500 < 2_000_000
