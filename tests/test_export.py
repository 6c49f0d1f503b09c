"""What leaves for other programs: Markdown, JUnit, dashboards, trackers; and the files of them."""

import io
import json
import math
import re
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from page_run import counted
from rich.console import Console
from test_gather import a_run
from test_report import job, reported, smoke

from kernelbench import metrics
from kernelbench.report import export, markdown, page, sheet, sheets, tables, trackers
from kernelbench.report.choice import FEW, NAMES, choice
from kernelbench.report.junit import junit
from kernelbench.report.sheet import Sheet
from kernelbench.spec import KernelbenchError, Measured, Role, RunRecord, Status, UsageError

CASES = 2 * FEW + 1

pytestmark = pytest.mark.usefixtures("own_cache")


def many(**facts: Any) -> list[RunRecord]:
    """More cases than have a line a provider: a sweep over M, time in step with it."""
    found = []
    for n in range(1, CASES + 1):
        axes = {"M": 1024 * n, "N": 512, "inputs": "normal", "dtype": "bf16", "mode": "fwd"}
        case = f"M{1024 * n}-N512-bf16-fwd"
        found += job(case, n, axes=axes, label="sweep" if n > 1 else "alone", **facts)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    machine = {"name": "NVIDIA H200", "versions": {"torch": "2.11.0", "triton": "3.6.0"}}
    a_run(tmp_path, "one", many(), machine=machine, git={"commit": "a" * 40})
    return tmp_path


@pytest.fixture
def two(folder: Path) -> Path:
    machine = {"name": "NVIDIA A100", "versions": {"torch": "2.12.0", "triton": "3.6.0"}}
    far = [replace(each, gpu="NVIDIA A100") for each in many()]
    a_run(folder, "two", far, machine=machine, git={"commit": "b" * 40})
    return folder


def printed(folder: Path, capsys: pytest.CaptureFixture[str], **options: Any) -> str:
    reported(folder, **options)
    return capsys.readouterr().out


# What is shown


def line_of(shown: str, case: str) -> list[str]:
    line = next(line for line in shown.splitlines() if line.strip().startswith(f"{case} "))
    return re.split(r"\s{2,}", line.strip())


def test_the_first_table_holds_ours_against_the_best_other(folder: Path, tmp_path: Path) -> None:
    _, shown, _ = reported(folder)
    assert line_of(shown, "M2048-N512") == [
        "M2048-N512", "79.04 µs", "f_rms_norm", "92.20 µs", "1.17 [1.17, 1.17]", "0.66% memory",
        "sweep",
    ]  # fmt: skip
    for title in ("H200 · rms_norm_triton", "H200 · rms_norm_triton_persistent"):
        assert f"rms_norm · fwd · bf16 · NVIDIA {title}\n" in shown
    assert "rms_norm_int8" not in shown.partition("measured: ")[0], "it is prepacked"
    assert "liger: skipped: needs liger_kernel (13 cases)" in shown
    assert "\ntwo_kernels: incorrect" not in shown, "what failed stands first, with its case"
    assert "rms_norm/M2048-N512-bf16-fwd two_kernels: incorrect" in shown
    assert "[95 %]: within this run, of one process" in " ".join(shown.split())
    assert "Every provider, with errors: --tables cases" in shown and "MiB" not in shown
    a_run(tmp_path / "few", "three", job())
    _, shown, _ = reported(tmp_path / "few")
    assert re.search(r"^torch_compile\S* +51\.00 µs", shown, re.MULTILINE), "a line a provider, too"


def test_it_fits_80_columns_with_labels_that_are_whole(folder: Path, tmp_path: Path) -> None:
    label = "A label that is longer than what is left of a line of eighty columns"
    slow = [replace(r, label=label) for r in job()]
    a_run(tmp_path / "x", "one", slow)
    for width in (80, 200):
        out = io.StringIO()
        best, _ = choice(("best",), sheet.source(metrics.rows_of(slow))).first
        sheet.show(best, Console(file=out, width=width))
        assert label in out.getvalue() and "1.17 [1.17, 1.17]" in out.getvalue()
        assert max(map(len, out.getvalue().splitlines())) <= width


def test_what_ours_did_not_do_is_said_in_its_line(tmp_path: Path) -> None:
    fell = {"status": Status.incorrect, "reason": "y: wrong", "timing": None}
    records = [replace(r, **fell) if r.role is Role.triton_fused else r for r in many()[:8]]
    a_run(tmp_path, "one", [*records, *many()[8:]])
    assert line_of(reported(tmp_path)[1], "M1024-N512")[1:] == [
        "incorrect", "f_rms_norm", "46.10 µs", "alone",
    ]  # fmt: skip


def test_documents_hold_the_baseline_and_the_fastest_of_each_kind(folder: Path) -> None:
    _, shown, _ = reported(folder, tables=("documents",))
    assert line_of(shown, "M2048-N512") == [
        "M2048-N512", "256.8 µs", "92.20 µs", "79.04 µs", "3.25×", "1.17×", "50%", "sweep",
    ]  # fmt: skip
    _, shown, _ = reported(folder, tables=("cases",))
    assert "f_rms_norm" in shown and "M2048-N512-bf16-fwd" in shown


def test_what_is_modelled_has_a_table_of_its_own(folder: Path) -> None:
    _, shown, _ = reported(folder, tables=("traffic",))
    assert "HBM bytes, modelled" in shown
    (line,) = re.findall(r"^M2048-N512 .*\n.*rms_norm_triton .*", shown, re.MULTILINE)
    assert re.split(r"\s{2,}", line.splitlines()[1].strip())[0] == "rms_norm_triton"
    assert line.splitlines()[1].split()[-1] == "50%"


def test_nothing_is_lost_beside_a_line_a_case(tmp_path: Path) -> None:
    """Families that have nothing of ours, and a CPU's runs, keep a line a provider."""
    alone = [r for r in job("x", family="softmax") if r.role != "triton_fused"]
    a_run(tmp_path, "one", [*many(), *alone, *smoke(*job("y", family="rotary"))])
    _, shown, _ = reported(tmp_path)
    for words in ("rms_norm · fwd · bf16", "softmax · fwd · bf16", "rotary · a CPU · smoke"):
        assert shown.count(words) == (2 if "rms_norm" in words else 1)  # two of ours
    assert tables.SMOKE in shown


def test_what_ours_took_no_part_in_keeps_its_lines(tmp_path: Path) -> None:
    """A case without ours beside others with it, and a GPU on which ours has no time."""
    bare = [r for r in job("bare-bf16-fwd") if r.role is not Role.triton_fused]
    fell = {"status": Status.incorrect, "reason": "y: wrong", "timing": None, "gpu": "NVIDIA A100"}
    other = [
        replace(r, **(fell if r.role is Role.triton_fused else {"gpu": "NVIDIA A100"}))
        for r in job("M7-bf16-fwd")
    ]
    a_run(tmp_path, "one", [*many(), *bare])
    a_run(tmp_path, "two", other)
    _, shown, _ = reported(tmp_path)
    assert "bare-bf16-fwd" in shown and "rms_norm · fwd · bf16 · NVIDIA A100" in shown
    assert len(re.findall(r"^f_rms_norm +46\.10 µs", shown, re.MULTILINE)) == 2


def test_rows_of_two_gpus_stand_together_with_their_run_named(two: Path) -> None:
    code, shown, said = reported(two)
    lines = shown.splitlines()
    place = next(n for n, line in enumerate(lines) if line.startswith("M2048-N512 "))
    assert re.split(r"\s{2,}", lines[place])[1] == "1"
    assert "NVIDIA A100" in shown
    assert re.search(r"^1 +one +NVIDIA H200 +2\.11\.0 +3\.6\.0$", shown, re.MULTILINE)
    assert re.search(r"^2 +two +NVIDIA A100 +2\.12\.0 +3\.6\.0$", shown, re.MULTILINE)
    assert "runs differ in name, versions.torch, git.commit" in said
    assert code == 1  # two_kernels is incorrect
    _, shown, said = reported(two, tables=("environment",))
    assert re.search(r"^versions.torch +2\.11\.0 +2\.12\.0$", shown, re.MULTILINE)
    assert re.search(r"^git.commit +a{12} +b{12}$", shown, re.MULTILINE)
    assert "runs differ" not in said
    text = reported(two, tables=("cases",))[1]
    assert "alone  M1024-N512-bf16-fwd  one" in text and "alone  M1024-N512-bf16-fwd  two" in text


def test_scaling_shows_time_and_rate_against_what_was_swept(folder: Path) -> None:
    _, shown, _ = reported(folder, tables=("scaling",))
    assert "over M (N=512 inputs=normal)" in shown
    assert "over N" not in shown and "nan" not in shown
    sheet = [line for line in shown.splitlines() if re.match(r"\d+ .* · ", line)]
    assert [line.split()[0] for line in sheet] == [str(1024 * n) for n in range(1, CASES + 1)]
    assert "79.04 µs · 26.53" in sheet[1]  # 2 MiB in 79.04 µs


def test_an_axis_that_is_not_a_number_everywhere_is_not_swept() -> None:
    records = [replace(r, axes={**r.axes, "scale": 0.5}) for r in job("a", family="other")]
    given = sheet.source(metrics.rows_of([*many(), *records]))
    assert [s.title.split(" over ")[1][0] for s in sheets.scaling(given) if s.rows] == ["M"]


def test_throughput_launches_and_break_even(folder: Path, tmp_path: Path) -> None:
    def with_clocks(r: RunRecord) -> RunRecord:
        nodes = 12 if r.provider == "eager" else None
        clocks = r.timing and replace(
            r.timing, host_ns=(50_000,), graph_ns=(30_000,), graph_nodes=nodes
        )
        took = 0.5 if r.provider == "f_rms_norm" else 2.0
        return replace(r, timing=clocks, compile_s=took, peak_bytes=3 * 2**20)

    a_run(tmp_path / "x", "one", [with_clocks(r) for r in many()[:8]])

    def lines(kind: str) -> str:
        return reported(tmp_path / "x", tables=(kind,))[1]

    assert re.search(r"rms_norm_triton +25\.91 +3\.000", lines("memory"))  # 1024 rows in 39.52 µs
    assert re.search(r"rms_norm_triton +50\.00 +39\.52 +30\.00 +launch", lines("launch"))
    assert re.search(r"eager +50\.00 +128\.4 +30\.00 +12 +GPU", lines("launch"))
    # 1.5 s longer over the 6.58 µs that a call saves over the best other
    assert re.search(r"triton +f_rms_norm +2\.00 +0\.50 +6\.58 +227,964", lines("breakeven"))
    assert re.search(r"persistent +f_rms_norm +2\.00 +0\.50 +0\.10 +never", lines("breakeven"))
    every = reported(tmp_path / "x", tables=("all",))[1]
    for title in ("throughput and memory", "launches", "break-even"):
        assert title in every


def test_a_baseline_of_choice(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(printed(folder, capsys, format="json", baseline="f_rms_norm"))
    found = {row["provider"]: row["speedup"] for row in rows if row["case"].startswith("M1024-")}
    assert found["f_rms_norm"] == 1 and found["eager"] == pytest.approx(46.1 / 128.4, rel=1e-3)
    _, shown, _ = reported(folder, baseline="f_rms_norm", tables=("documents",))
    assert re.search(r"Config +f_rms_norm ", shown)
    with pytest.raises(UsageError, match=r"--baseline: no provider 'f_rms'.*f_rms_norm"):
        reported(folder, baseline="f_rms")


@pytest.mark.parametrize("width", [60, 80, 140])
def test_no_number_is_cut_in_a_line_a_case(two: Path, width: int) -> None:
    out = io.StringIO()
    console = Console(file=out, width=width)
    shown = choice(NAMES, sheet.source(metrics.rows_of(many())))
    for each in (*shown.first, *shown.sheets):
        sheet.show(each, console)
        for row in each.rows:
            for n, cell in enumerate(row):
                assert each.is_word(n) or cell in out.getvalue()


def test_words_fold_and_labels_stand_above_where_the_console_is_narrow() -> None:
    words = frozenset({"Config", ""})
    wide = Sheet("t", ("Config", "µs", ""), (("c" * 70, "12.34", "l" * 50),), "", words, True)
    out = io.StringIO()
    sheet.show(wide, Console(file=out, width=60))
    label, *lines = out.getvalue().splitlines()[2:]
    assert label == "l" * 50 and max(map(len, lines)) <= 60 and "12.34" in lines[0]
    assert "".join(line.split()[0] for line in lines) == "c" * 70


def test_configs_make_room_for_providers_and_fold_between_their_words() -> None:
    config = "B4-N2048-H12-D64-parametrization=none"
    words = frozenset({"Config", "provider"})
    row = (config, "triton_unfused", "12.34")
    out = io.StringIO()
    sheet.show(
        Sheet("t", ("Config", "provider", "µs"), (row,), "", words), Console(file=out, width=50)
    )
    lines = [line.split() for line in out.getvalue().splitlines()[2:]]
    assert lines == [["B4-N2048-H12-D64-", "triton_unfused", "12.34"], ["parametrization=none"]]


def test_a_table_that_has_nothing_says_so(folder: Path, tmp_path: Path) -> None:
    a_run(tmp_path / "x", "one", many()[:8])
    shown = reported(tmp_path / "x", tables=("scaling", "environment", "memory"))[1]
    assert "These runs have nothing for --tables scaling,environment." in shown
    assert "nothing for" not in reported(tmp_path / "x", tables=("all",))[1]


def test_what_is_not_known_never_breaks_even(tmp_path: Path) -> None:
    a_run(tmp_path, "one", [replace(r, compile_s=None) for r in many()[:8]])
    line = next(s for s in reported(tmp_path, tables=("breakeven",))[1].splitlines() if "6.58" in s)
    assert line.split()[-2:] == ["6.58", "alone"]  # no "never": nobody measured it


def test_nothing_is_left_of_a_report_that_cannot_be_written(folder: Path) -> None:
    with pytest.raises(KernelbenchError, match="cannot be written"):
        reported(folder, format="csv", out=folder / "one")
    assert [path.name for path in folder.iterdir()] == ["one"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "mdd"}, r"--format: no 'mdd'.*md"),
        ({"tables": ("scalling",)}, r"--tables: no table 'scalling'.*scaling"),
        ({"tables": ("launch",), "format": "csv"}, "--tables goes with"),
        ({"to": "wand"}, r"--to: no 'wand'.*wandb"),
        ({"to": "github", "format": "md"}, "leave --format out"),
        ({"claims": True, "format": "json"}, "--claims goes with"),
    ],
)
def test_what_does_not_exist_is_refused(
    folder: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        reported(folder, **options)


# Files


def test_out_is_a_file_of_any_format(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("table", "md", "csv", "json"):
        out = folder / f"report.{kind}"
        _, shown, _ = reported(folder, format=kind, out=out)
        assert shown == capsys.readouterr().out == ""
        expected = printed(folder, capsys, format=kind) if kind != "table" else None
        assert expected is None or out.read_bytes().decode() == expected
        assert "rms_norm" in out.read_text()
    assert "\x1b" not in (folder / "report.table").read_text()
    with pytest.raises(KernelbenchError, match="cannot be written"):
        reported(folder, format="md", out=folder / "no" / "where.md")


def test_csv_is_the_canonical_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [replace(each, run_id="one") for each in many()]
    assert printed(folder, capsys, format="csv") == metrics.csv_text(records)


def test_html_is_the_pages(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def render(records: Any, measured: Any, manifests: Any, **more: Any) -> str:
        rows = more.pop("rows")
        assert [row["provider"] for row in rows] == [record.provider for record in records]
        asked.append((len(records), list(measured), list(manifests), more))
        return "<html>"

    monkeypatch.setattr(page, "render", render)
    reported(folder, format="html", out=folder / "x.html")
    assert (folder / "x.html").read_text() == "<html>"
    assert asked == [(104, [], ["one"], {"baseline": None})]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_markdown_tables_are_whole(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for asked in ((), ("all",), ("cases",)):
        text = printed(folder, capsys, format="md", tables=asked)
        blocks = [b for b in text.split("\n\n") if b.startswith("|")]
        assert blocks
        for block in blocks:
            head, rule, *lines = block.splitlines()
            assert re.fullmatch(r"\|(---:?\|)+", rule) and lines
            assert {len(cells(line)) for line in (head, rule, *lines)} == {len(cells(head))}
    text = printed(folder, capsys, format="md")
    assert "| case | ours | best other | its time | × best other \\[95 %\\] |" in text
    assert "### rms_norm · fwd · bf16 · NVIDIA H200" in text
    assert text.startswith("- 104 records: 78 ok, 13 skipped, 13 incorrect")


def test_markdown_escapes_what_it_prints() -> None:
    evil = Sheet("a|b <script>", ("x_", "*y*"), (("`a` [l](u) | <img>", "r_m_s\nz &"),))
    text = markdown.of_sheet(evil)
    assert "<script>" not in text and "<img>" not in text
    assert cells(text.splitlines()[-1]) == [r"\`a\` \[l\](u) \| &lt;img&gt;", "r_m_s<br>z &amp;"]


def test_the_summary_of_a_ci_job_is_appended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / "summary.md"
    file.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(file))
    reported(folder)
    assert file.read_text().startswith("before\n- 104 records")
    monkeypatch.setattr(markdown, "SUMMARY_LIMIT", 900)
    file.write_text("x" * 100)
    reported(folder)
    text = file.read_text()
    assert 500 < len(text.encode()) <= 900 and text.endswith(markdown.CUT)
    reported(folder)
    assert file.read_text() == text  # full: nothing is added
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(folder / "no" / "where"))
    with pytest.raises(KernelbenchError, match=r"GITHUB_STEP_SUMMARY=.*cannot be written"):
        reported(folder)
    file.write_text("kept\n")
    file.chmod(0o444)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(file))
    with pytest.raises(KernelbenchError, match=r"GITHUB_STEP_SUMMARY=.*read-only, mode 0444"):
        reported(folder)
    assert file.read_text() == "kept\n"


def test_junit_counts_what_it_holds(folder: Path) -> None:
    file = folder / "junit.xml"
    reported(folder, junit=file)
    root = ET.fromstring(file.read_text())
    assert root.tag == "testsuites"
    (suite,) = root
    found = suite.findall("testcase")
    assert suite.attrib["name"] == "one"
    assert [int(suite.attrib[n]) for n in ("tests", "failures", "errors", "skipped")] == [
        len(found),
        sum(case.find("failure") is not None for case in found),
        0,
        sum(case.find("skipped") is not None for case in found),
    ]
    assert (
        len(found) == 104 and len({(c.attrib["classname"], c.attrib["name"]) for c in found}) == 104
    )
    assert float(suite.attrib["time"]) == pytest.approx(
        sum(float(case.attrib["time"]) for case in found)
    )
    case = next(c for c in found if c.attrib["name"] == "M1024-N512-bf16-fwd two_kernels")
    failure = case.find("failure")
    assert failure is not None and failure.attrib["type"] == "incorrect"
    assert failure.attrib["message"] == "incorrect: y: 4e-2 above 6e-3"
    assert "properties" in [part.tag for part in found[0]]


def test_junit_is_xml_whatever_a_reason_holds() -> None:
    bad = replace(job()[7], reason="\x00\x1b[31m<&\"'\ud800\nmore ]]>")
    (case,) = ET.fromstring(junit(metrics.frame([bad])).encode()).iter("testcase")
    assert "<&\"'" in (case.findtext("failure") or "")


# Dashboards


def test_github_action_benchmark(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = json.loads(printed(folder, capsys, to="github"))
    assert len(entries) == 78 == len({entry["name"] for entry in entries})
    for entry in entries:
        assert set(entry) == {"name", "unit", "value", "range", "extra"}
        assert entry["unit"] == "µs" and entry["value"] > 0 and math.isfinite(entry["value"])
        assert isinstance(entry["range"], str) and isinstance(entry["extra"], str)
    mine = next(e for e in entries if "rms_norm_triton (" in e["name"])
    assert mine["value"] == pytest.approx(39.52) and "speedup: 3.24" in mine["extra"]


def test_hud_records(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(printed(folder, capsys, to="hud"))
    for entry in found:
        assert entry["benchmark"]["name"] == "kernelbench"
        assert {"name", "mode", "dtype", "extra_info"} <= set(entry["benchmark"])
        assert {"name", "type", "backend"} <= set(entry["model"])
        assert all(math.isfinite(value) for value in entry["metric"]["benchmark_values"])
    one = next(
        e
        for e in found
        if e["model"]["backend"] == "rms_norm_triton" and e["metric"]["name"] == "speedup"
    )
    assert one["metric"]["benchmark_values"] == [pytest.approx(3.249, rel=1e-3)]
    assert set(one["metric"]["extra_info"]) == {"lo", "hi"}
    assert one["benchmark"]["extra_info"]["torch"] == "2.11.0"
    assert one["benchmark"]["extra_info"]["arch"] == "NVIDIA H200"


def test_a_cpu_run_exports_no_speed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a_run(tmp_path, "one", smoke(*job()))
    for target in export.FILES:
        assert json.loads(printed(tmp_path, capsys, to=target)) == []


def test_selected_is_the_fastest_exact_provider_that_packs_nothing() -> None:
    rows = export.timed_rows(metrics.frame(job()))
    assert [row["provider"] for row in export.fastest_exact(rows)] == ["rms_norm_triton"]


# Trackers


class Wandb(ModuleType):
    """As much of wandb as is called."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.runs: list[Any] = []

    def Table(self, *, columns: list[str], data: list[list[Any]]) -> Any:  # noqa: N802
        assert all(len(line) == len(columns) for line in data)
        return SimpleNamespace(columns=columns, data=data)

    def init(self, **facts: Any) -> Any:
        run = SimpleNamespace(facts=facts, logged=[], summary={}, finished=False, dir=facts["dir"])
        run.log = run.logged.append
        run.finish = lambda: setattr(run, "finished", True)
        self.runs.append(run)
        return run


def test_wandb_gets_a_run_a_folder_with_tables_and_selected_kernels(
    two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    _, _, said = reported(two, to="wandb", out=two / "logs")
    assert [run.facts["name"] for run in wandb.runs] == ["one", "two"]
    assert all(run.finished for run in wandb.runs)
    run = wandb.runs[0]
    assert run.facts["config"]["machine"]["versions"]["torch"] == "2.11.0"
    (logged,) = run.logged
    assert len(logged["records"].data) == 104 and len(logged["selected"].data) == 13
    assert {line[2] for line in logged["selected"].data} == {"rms_norm_triton"}
    assert all(value is None or value == value for line in logged["records"].data for value in line)
    name = "rms_norm/M1024-N512-bf16-fwd/rms_norm_triton/speedup"
    assert run.summary[name] == pytest.approx(3.249, rel=1e-3)
    assert "wandb: one: 104 records, 13 selected kernels" in said
    assert not list(two.glob("wandb")) and (two / "logs").is_dir()


def test_tensorboard_gets_a_folder_a_run(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: dict[str, list[Any]] = {}

    class Writer:
        def __init__(self, folder: str) -> None:
            self.kept = written.setdefault(folder, [])

        def add_scalar(self, tag: str, data: float, step: int) -> None:
            assert math.isfinite(data)
            self.kept.append(tag)

        def close(self) -> None:
            self.kept.append("closed")

    summary = ModuleType("tensorboard.summary")
    summary.Writer = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorboard", ModuleType("tensorboard"))
    monkeypatch.setitem(sys.modules, "tensorboard.summary", summary)
    _, _, said = reported(two, to="tensorboard", out=two / "tb")
    assert list(written) == [str(two / "tb" / "one"), str(two / "tb" / "two")]
    for tags in written.values():
        assert tags[-1] == "closed" and len(set(tags)) == len(tags)
        assert "rms_norm/M1024-N512-bf16-fwd/eager/median_us" in tags
    assert "tensorboard: two:" in said


@pytest.mark.parametrize("target", export.TRACKERS)
def test_a_tracker_that_is_absent_is_named_with_the_remedy(
    folder: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("wandb", "tensorboard", "tensorboard.summary"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(KernelbenchError, match=rf"pip install 'kernelbench\[{target}\]'"):
        reported(folder, to=target)
    assert trackers.COLUMNS


def test_profiles_of_two_runs_are_never_one_table(tmp_path: Path) -> None:
    for run in ("one", "two"):
        a_run(tmp_path, run, [])
        seen = [
            counted(name, run_id=run, tool="nsys", axes={"M": 1}) for name in ("eager", "triton")
        ]
        lines = "".join(f"{one.to_json()}\n" for one in seen)
        (tmp_path / run / "measured.jsonl").write_text(lines)
    shown = reported(tmp_path)[1]
    assert shown.count("50%") == 4  # of a run's busy time, not of both
    assert "NVIDIA H200 · one" in shown and "NVIDIA H200 · two" in shown
    assert "NVIDIA H200 · one" not in reported(tmp_path / "one")[1]


def test_profiles_alone_are_a_report(tmp_path: Path) -> None:
    a_run(tmp_path, "one", [])
    seen = Measured(
        run_id="one", utc="u", tool="nsys", tool_version="1", status="ok", family="rms_norm",
        provider="eager", role="baseline", case="a", mode="fwd", dtype="bf16", axes={"M": 1},
    )  # fmt: skip
    (tmp_path / "one" / "measured.jsonl").write_text(seen.to_json() + "\n")
    code, shown, _ = reported(tmp_path)
    assert code == 0 and "nsys" in shown and "no records" not in shown
