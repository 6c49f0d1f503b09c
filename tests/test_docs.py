"""What the documents show is run: the very blocks and commands that stand in them."""

import importlib
import json
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from kernelbench import PUBLIC, families, provide, suite
from kernelbench.measure import environment
from kernelbench.measure.ceilings import Ceilings
from kernelbench.measure.job import Request, Session, run_job
from kernelbench.measure.telemetry import Telemetry
from kernelbench.measure.timer import CudaClock, HostClock
from kernelbench.spec import Context, Job, Mode, Provider, Status

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/add-a-family.md"


def blocks(language: str, page: Path = PAGE) -> list[str]:
    """The fenced blocks of a page in one language, in order."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = [line for block in blocks("console") for line in block.splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the two files of the page, as a reader would have it."""
    found = tmp_path_factory.mktemp("reader")
    for name, language in (("softmax.py", "python"), ("sweep.yaml", "yaml")):
        [text] = blocks(language)
        (found / name).write_text(text, encoding="utf-8")
    return found


@pytest.fixture
def softmax(folder: Path) -> Any:
    return families.load((str(folder / "softmax.py"),))["softmax"]


def test_a_family_is_one_file_under_sixty_lines(folder: Path) -> None:
    assert len((folder / "softmax.py").read_text(encoding="utf-8").splitlines()) < 60


def test_its_providers_are_right_on_its_checks(softmax: Any, device: str) -> None:
    found = environment.device(device)
    clock = CudaClock(found) if device == "cuda" else HostClock()
    session = Session(found, clock, Ceilings(), Telemetry.open(None))
    # `kernelbench check` below compiles, too
    names = tuple(provider.name for provider in softmax.providers if provider.name != "compile")
    assert names == ("eager", "torch_fused")
    for case in softmax.checks:
        job = Job(family="softmax", case=case, providers=names)
        context = Context(run_id="test", gpu=found.name, seed=0, source="")
        run = run_job(softmax, Request(job, context, timing=False), session, lambda *_: None)
        records = [record for batch in run for record in batch]
        assert [(r.provider, r.status, r.reason) for r in records] == [
            (name, Status.ok, "") for name in names
        ], case.id


def test_its_cost_is_less_than_what_eager_moves(softmax: Any) -> None:
    """By hand: 3 × 257 elements; in mode full x and grad_y in, y and dx out."""
    for case in softmax.checks:
        size, cost = 3 * 257 * case.dtype.bytes, softmax.cost(case)
        reads, writes = {Mode.fwd: (1, 1), Mode.bwd: (2, 1), Mode.full: (2, 2)}[case.mode]
        assert (cost.read, cost.write) == (reads * size, writes * size)
        eager = softmax.baseline.build(case, None)
        unfused = provide.eager_traffic(case, softmax.inputs, eager, ("y",), ("x",))
        assert sum(row.read + row.write for row in unfused) > cost.bytes


def test_its_sweep_is_a_suite(softmax: Any, folder: Path) -> None:
    found = suite.load(folder / "sweep.yaml", {"softmax": softmax})
    assert sorted(job.case.id for job in found.jobs) == [
        f"M4096-N{N}-bf16-{mode}" for N in (1024, 4096) for mode in ("bwd", "fwd")
    ]
    assert {job.providers for job in found.jobs} == {("eager", "torch_fused", "compile")}


def test_its_entry_point_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an installed package declares it: a folder of metadata beside the module."""
    [text] = blocks("toml")
    points = tomllib.loads(text)["project"]["entry-points"]
    assert set(points) == {families.GROUP}
    site, [(name, value)] = folder / "site", points[families.GROUP].items()
    package, metadata = site / value.split(".")[0], site / "softmax_plugin-1.dist-info"
    for each in (package, metadata):
        each.mkdir(parents=True)
    (package / "softmax.py").write_text(blocks("python")[0], encoding="utf-8")
    (metadata / "METADATA").write_text("Name: softmax-plugin\nVersion: 1\n", encoding="utf-8")
    (metadata / "entry_points.txt").write_text(
        f"[{families.GROUP}]\n{name} = {value}\n", encoding="utf-8"
    )
    own = set(families.load())  # kept for other tests, so that it must not see what follows
    monkeypatch.syspath_prepend(str(site))
    found = families.load.__wrapped__()
    assert found["softmax"].title == "Softmax over the last dimension"
    assert set(found) == {*own, "softmax"}


def test_its_first_command_writes_the_file_that_it_shows(folder: Path, tmp_path: Path) -> None:
    first, *_ = commands()
    done = kernelbench(first, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "softmax.py").read_bytes() == (folder / "softmax.py").read_bytes()
    assert (tmp_path / "test_softmax.py").is_file()


@pytest.mark.parametrize("command", commands()[1:])
def test_its_commands_do_what_it_says(command: str, folder: Path) -> None:
    if command.startswith("kernelbench run"):  # as it stands, a minute on a CPU
        command += " --set families.softmax.cases.0.M=64 --set measure.max_seconds=0.1"
    done = kernelbench(command, folder)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "torch_fused" in done.stdout + done.stderr
    assert "failed" not in done.stdout.replace("wrong or failed", "")
    if command.startswith("kernelbench run"):
        [lines] = (folder / "results").glob("*/records.jsonl")
        records = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
        statuses = {(record["provider"], record["status"]) for record in records}
        assert statuses == {("eager", "ok"), ("torch_fused", "ok"), ("compile", "ok")}
        assert len(records) == 4 * 3


def test_the_page_shows_commands_at_all() -> None:
    verbs = [command.split()[1] for command in commands()]
    assert verbs == ["new", "list", "check", "run"]


def test_the_page_names_every_field_of_a_provider() -> None:
    text = PAGE.read_text(encoding="utf-8")
    missing = [f.name for f in fields(Provider) if f"`{f.name}" not in text and f.name != "name"]
    assert not missing, f"{PAGE.name} says nothing about {missing}"


def asked_of_a_reader() -> list[str]:
    """The commands of the README's blocks that are there to be typed, without their comments."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    typed = re.sub(r"<!-- \[\[\[cog.*?\[\[\[end\]\]\] -->", "", text, flags=re.DOTALL)
    lines = re.findall(r"^\$ (.*)$", typed.replace("\\\n", ""), re.MULTILINE)
    return [part.strip() for line in lines for part in line.partition(" #")[0].split("&&")]


def test_the_readmes_commands_are_there_to_be_typed(tmp_path: Path) -> None:
    found = asked_of_a_reader()
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    assert {"make venv", "make smoke", "make test"} <= set(found)
    assert "kernelbench run h200 --family rms_norm" in found
    for command in found:
        if command.startswith("make "):
            done = subprocess.run(
                [*shlex.split(command), "-n"], cwd=ROOT, capture_output=True, text=True, check=False
            )
        elif command.startswith(("kernelbench run ", "kernelbench bench ")):
            done = kernelbench(f"{command} --dry-run", tmp_path)
        else:
            assert command == ". .venv/bin/activate"
            continue
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def test_the_lines_of_bench_are_there_to_be_typed(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "bench.md").read_text(encoding="utf-8")
    block = text.partition("```console\n")[2].partition("```")[0].replace("\\\n", "")
    lines = [line.removeprefix("$ ") for line in block.splitlines() if "…" not in line]
    assert len(lines) == 3
    (tmp_path / "my.py").write_text(MINE)
    for command in lines:
        done = kernelbench(f"{command} --dry-run", tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    suite = text.partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "mine.yaml").write_text(suite)
    done = kernelbench("kernelbench list mine.yaml", tmp_path)
    assert "mine/M4096-N1024-bf16-bwd  reference compile compile_max_autotune fused" in done.stdout


MINE = """
import torch


def reference(x, w, eps=1e-6):
    h = x.float()
    return (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype) * w


fused = other = reference


class MLP(torch.nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.up = torch.nn.Linear(dim, dim)

    def forward(self, x):
        return self.up(x)


FusedMLP = MLP
"""


def test_what_the_documents_import_is_public() -> None:
    text = "\n".join(
        page.read_text(encoding="utf-8")
        for page in (ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.py"))
    )
    used = re.findall(
        r"(?m)^\s*from kernelbench\.([\w.]+) import (\(.*?\)|[^\n]+)", text, re.DOTALL
    )
    assert len(used) > 4
    for module, names in used:
        assert module in PUBLIC, f"{module} is not public, and a document imports it"
        for name in re.findall(r"\w+", names):
            assert not name.startswith("_")
            assert hasattr(importlib.import_module(f"kernelbench.{module}"), name), (
                f"{module}.{name}"
            )


def test_links_between_the_documents_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("results/*.md")]
    bad = []
    for page in pages:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            own = "://" not in target and not target.startswith("mailto:")
            if own and not (page.parent / target).exists():
                bad.append(f"{page.relative_to(ROOT)}: no {target}")
    assert not bad and PAGE in pages


def kernelbench(command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command line of a document, run by this interpreter on this checkout."""
    program, *arguments = shlex.split(command)
    assert program == "kernelbench"
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from kernelbench.cli import app; app()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
