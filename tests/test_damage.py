"""Run folders that were damaged: no traceback, and every line is either read or named."""

import csv
import io
import json
import lzma
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from kernelbench import store
from kernelbench.cli import app
from kernelbench.compare.sides import read_runs
from kernelbench.report.gather import gather
from kernelbench.report.means import has_time
from kernelbench.spec import KernelbenchError

HERE = Path(__file__).parent
FEW = 12  # lines of the run that is damaged
BYTES = st.sampled_from(
    [b"", b"\0", b"\n", b"\r\n", b"\xff\xfe", b"{}", b'"', b"nan", b"-1", b"1e999", b"null",
     b'{"schema":99}', b"[" * 3000, b"9" * 400, b" " * 9, "µ\u2028".encode()]
)  # fmt: skip
Damage = Callable[[bytes], bytes]


def run_of(folder: Path, content: bytes, manifest: bytes) -> Path:
    folder.mkdir(parents=True)
    (folder / store.RECORDS).write_bytes(content)
    (folder / store.MANIFEST).write_bytes(manifest)
    return folder


@pytest.fixture(scope="module")
def whole() -> tuple[bytes, bytes]:
    run = HERE / "data" / "smoke-cpu"
    content = lzma.decompress((run / f"{store.RECORDS}.xz").read_bytes())
    lines = content.splitlines(keepends=True)[:FEW]
    return b"".join(lines), (run / store.MANIFEST).read_bytes()


@st.composite
def damages(draw: st.DrawFn) -> Damage:
    """One thing that disks, editors, merges and kills do to a file."""
    kind = draw(st.sampled_from(["cut", "put", "swap", "flip", "twice", "lose", "join", "crlf"]))
    at, piece = draw(st.floats(0, 1)), draw(BYTES)
    length, bit = draw(st.integers(0, 60)), draw(st.integers(0, 7))

    def damage(content: bytes) -> bytes:
        place = int(at * len(content))
        lines = content.splitlines(keepends=True) or [b""]
        line = min(int(at * len(lines)), len(lines) - 1)
        if kind == "flip" and place < len(content):
            return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]
        changed = {
            "cut": lambda: content[:place],
            "put": lambda: content[:place] + piece + content[place:],
            "swap": lambda: content[:place] + piece + content[place + length :],
            "twice": lambda: b"".join([*lines[: line + 1], *lines[line:]]),
            "lose": lambda: b"".join([*lines[:line], *lines[line + 1 :]]),
            "join": lambda: content[:place] + content[place:].replace(b"\n", b"", 1),
            "crlf": lambda: content.replace(b"\n", b"\r\n"),
        }
        return changed.get(kind, lambda: content)()

    return damage


def looked_at(folder: Path) -> None:
    """Every line is a record or is named; whoever reads it says so, or refuses in one line."""
    lines = (folder / store.RECORDS).read_bytes().split(b"\n")
    there = {number for number, line in enumerate(lines, 1) if line.strip()}
    problems = store.read_with_problems(folder)[1]
    named = {int(problem.split(".jsonl:")[1].split(":")[0]) for problem in problems}
    assert named <= there and len(store.history(folder)) == len(there - named)
    assert all("\n" not in problem for problem in problems)
    for reader in (lambda: gather([folder]).problems, lambda: read_runs(folder)[1]):
        try:
            told = reader()
        except KernelbenchError as error:
            told = [str(error), *getattr(error, "__notes__", ())]
        assert bool(told) or not problems


def damaged(where: Path, whole: tuple[bytes, bytes], some: list[Damage], of: list[Damage]) -> Path:
    content, manifest = whole
    for damage in some:
        content = damage(content)
    for damage in of:
        manifest = damage(manifest)
    shutil.rmtree(where, ignore_errors=True)
    return run_of(where, content, manifest)


MANY = st.lists(damages(), min_size=1, max_size=4)
SEVERAL = st.lists(damages(), max_size=1)
ONCE = settings(
    deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "run"


@settings(ONCE, max_examples=150)
@given(some=MANY, of=SEVERAL)
def test_every_line_is_read_or_named(
    place: Path, whole: tuple[bytes, bytes], some: list[Damage], of: list[Damage]
) -> None:
    looked_at(damaged(place, whole, some, of))


@pytest.mark.slow
@settings(ONCE, max_examples=8_000)
@given(some=MANY, of=SEVERAL)
def test_every_line_is_read_or_named_eight_thousand_times(
    place: Path, whole: tuple[bytes, bytes], some: list[Damage], of: list[Damage]
) -> None:
    looked_at(damaged(place, whole, some, of))


@settings(ONCE, max_examples=6)
@given(some=MANY, of=SEVERAL)
def test_no_verb_ends_in_a_traceback(
    place: Path, whole: tuple[bytes, bytes], some: list[Damage], of: list[Damage]
) -> None:
    run = str(damaged(place, whole, some, of))
    for verb in (
        ["report", run], ["report", run, "--format", "html", "--out", f"{run}.html"],
        ["report", run, "--to", "github"], ["report", run, "--json"], ["history", run],
        ["compare", run, run], ["claims", "--against", run], 
        ["repro", "M16-N256-fp32-fwd", "--run", run],
    ):  # fmt: skip
        done = CliRunner().invoke(app, verb)
        assert done.exception is None or isinstance(done.exception, SystemExit), verb
        assert done.exit_code in (0, 1, 2)
        assert done.exit_code != 2 or done.stderr.splitlines()[-1].startswith("error: ")


@pytest.fixture(scope="module")
def timeless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of an H200 in which no sample of ours is above what the clock adds."""
    folder = tmp_path_factory.mktemp("timeless") / "run"
    kept = HERE.parent / "results" / "h200" / "aa" / "20261121T124239Z-aa-h200"
    records = [
        replace(r, timing=replace(r.timing, overhead_ns=10**9))
        if r.timing and r.provider == "triton_fused"
        else r
        for r in store.read_apart(kept)
    ]
    lines = "".join(f"{record.to_json()}\n" for record in records)
    return run_of(folder, lines.encode(), (kept / store.MANIFEST).read_bytes())


@pytest.mark.parametrize(
    "verb",
    [
        ["report"],
        ["report", "--tables", "all"],
        *(["report", "--format", form] for form in ("md", "html", "csv", "json")),
        *(["report", "--to", to] for to in ("github", "hud")),
        ["report", "--junit", "/dev/stdout"],
        *(["history", "--metric", name] for name in ("median_us", "speedup", "gbps", "iqr_pct")),
        ["claims", "--against"],
    ],
    ids=" ".join,
)
def test_what_has_no_time_above_the_clock_has_none_anywhere(
    timeless: Path, verb: list[str]
) -> None:
    done = CliRunner().invoke(app, [*verb, str(timeless)], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.stderr
    shown = re.sub("<style>.*?</style>", "", done.stdout, flags=re.DOTALL)
    assert not re.search(r"\bnan\b|\bNaN\b|(?<![\d.,])0\.?0* [nµm]?s\b|± ?inf", shown)
    if verb[-1] == "json":
        rows = json.loads(shown)
    elif verb[-1] == "csv":
        rows = list(csv.DictReader(io.StringIO(shown)))
    else:
        return
    ours = [row for row in rows if row["provider"] == "triton_fused"]
    times = ("median_us", "lo_us", "hi_us", "p20_us", "speedup", "speedup_best", "gbps", "sol_pct")
    assert ours and not any(row[name] for row in ours for name in times)


def test_rows_of_a_run_say_themselves_whether_they_have_a_time(timeless: Path) -> None:
    rows = gather([timeless]).rows
    assert {row["provider"] for row in rows if not has_time(row)} == {"triton_fused"}
    assert not any(map(has_time, gather([HERE / "data" / "smoke-cpu"]).rows))


def test_what_has_no_time_is_not_judged(timeless: Path, tmp_path: Path) -> None:
    kept = HERE.parent / "results" / "h200" / "aa" / "20261121T124302Z-aa-h200"
    done = CliRunner().invoke(app, ["compare", str(kept), str(timeless)], env={"COLUMNS": "120"})
    assert done.exit_code == 3 and "no time above the clock's own overhead" in done.stdout
    done = CliRunner().invoke(app, ["compare", str(timeless), str(kept), "--least", "0%"])
    assert done.exit_code == 0 and "no time above" in done.stdout  # A has no times to lose
