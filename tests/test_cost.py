"""What a sweep costs: time is accounted for, a provider costs its own, memory stays flat."""

import io
import os
import re
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
from rich.console import Console

from kernelbench import families, store
from kernelbench.report.progress import Output, Silent
from kernelbench.run.ledger import Ledger
from kernelbench.run.loop import run_jobs
from kernelbench.run.plan import Plan, new, resumed
from kernelbench.run.runner import Options, Runner
from kernelbench.spec import Context, DType, Job, KernelbenchError, Measure, Status
from kernelbench.suite.request import Selection
from kernelbench.verbs.run import measure

PLUGIN = str(Path(__file__).parent / "plugins" / "steady.py")
ASKED = Selection(plugins=(PLUGIN,), device="cpu")
OPTIONS = Options(device="cpu", plugins=(PLUGIN,))
SUITE = """
name: steady
device: cpu
measure: {{min_samples: 2, max_samples: 2, block: 2, max_seconds: 1}}
families:
  steady:
    providers: [first, second]
    cases: [{{n: {sizes}, dtype: fp32, pause: {pause}}}]
"""
GROWTH_KIB = 5 * 1024  # of some 300 MiB


def begun(folder: Path, sizes: Sequence[int], pause: float = 0.0) -> Plan:
    path = folder / "steady.yaml"
    path.write_text(SUITE.format(sizes=list(sizes), pause=pause))
    (plan,) = new([str(path)], ASKED)
    return plan


def measured(plan: Plan, out: Path) -> tuple[float, str]:
    """Seconds that a run took, and what it printed."""
    shown = io.StringIO()
    console = Console(file=shown, width=200)
    output, start = Output(console, console, quiet=True), time.monotonic()
    assert measure([plan], Options(), out, output) == 0
    return time.monotonic() - start, shown.getvalue()


def test_the_manifest_says_where_the_time_went_and_a_resume_adds_its_own(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first, shown = measured(begun(tmp_path, range(1, 5), pause=0.03), out)
    (folder,) = store.find_runs([out])
    spent = store.read_manifest(folder)["spent_s"]
    assert {"start", "ceilings", "inputs", "compile", "check", "harness"} <= set(spent)
    assert sum(spent.values()) == pytest.approx(first, rel=0.1)
    assert all(seconds == round(seconds, 2) for seconds in spent.values())
    (line,) = [line for line in shown.splitlines() if line.startswith("wall ")]
    assert " s: " in line and "check " in line

    records = folder / store.RECORDS
    records.write_text("".join(records.read_text().splitlines(keepends=True)[:4]))
    (plan,) = resumed(folder, [], Selection())
    second, _ = measured(plan, out)
    both = store.read_manifest(folder)["spent_s"]
    assert sum(both.values()) == pytest.approx(first + second, rel=0.1)
    assert both["check"] == pytest.approx(1.5 * spent["check"], rel=0.2)


def test_an_account_that_cannot_be_written_costs_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(opened: store.Store, **facts: object) -> None:
        if "spent_s" in facts:
            raise KernelbenchError("no space left")

    monkeypatch.setattr(store.Store, "update_manifest", full)
    _, shown = measured(begun(tmp_path, [1, 2]), tmp_path / "out")
    (folder,) = store.find_runs([tmp_path / "out"])
    assert "no space left" in shown and "wall " in shown
    assert len(store.read(folder)) == 4
    assert "spent_s" not in store.read_manifest(folder)


def test_one_more_provider_costs_its_own_time_only(tmp_path: Path) -> None:
    """By the ledger of one worker; the providers sleep 10, 20 and 30 ms a call."""
    known = families.load((PLUGIN,))
    family = known["steady"]
    case = family.case(n=8, dtype=DType.fp32, pause=0.01)
    measure = Measure(min_samples=8, max_samples=8, block=2, max_seconds=10)
    context = Context(run_id="test", gpu="", seed=0, source="")
    with closing(Runner(known, OPTIONS, Silent(Console()), tmp_path)) as runner:
        runner.ceilings(None)

        def cost(*names: str) -> tuple[float, dict[str, float]]:
            """Seconds that a job with these providers takes, and how many are each provider's."""
            before = by_provider(runner.ledger)
            job = Job(family=family.name, case=case, providers=names, measure=measure)
            records = [record for found in runner.measure(job, context) for record in found]
            assert [(r.provider, r.status) for r in records] == [(n, Status.ok) for n in names]
            after = by_provider(runner.ledger)
            own = {name: after[name] - before.get(name, 0.0) for name in names}
            return sum(after.values()) - sum(before.values()), own

        cost("first", "second")  # a worker's first job loads what later ones find
        two, _ = cost("first", "second")
        three, own = cost("first", "second", "third")
    assert own["third"] > 0.3  # ten calls and more
    assert three - two == pytest.approx(own["third"], rel=0.15)


def by_provider(ledger: Ledger) -> dict[str, float]:
    """Seconds up to now; "" for what is no provider's."""
    found: dict[str, float] = {}
    for (provider, _), seconds in ledger.spent().items():
        found[provider] = found.get(provider, 0.0) + seconds
    return found


class Scale(Silent):
    """Weighs the parent and its worker when some jobs begin: KiB of resident memory."""

    def __init__(self, jobs: Sequence[int]) -> None:
        super().__init__(Console())
        self._jobs = jobs
        self.weights: list[tuple[int, int]] = []

    def job(self, job: Job, number: int, total: int) -> None:
        if number in self._jobs:
            self.weights.append((resident(os.getpid()), resident(worker())))


def worker() -> int:
    """The process that measures, of the children of this one."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    (found,) = [n for n in children if b"serve()" in Path(f"/proc/{n}/cmdline").read_bytes()]
    return int(found)


def resident(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)[0])


@pytest.mark.parametrize(
    ("early", "jobs"), [(60, 200), pytest.param(200, 1000, marks=pytest.mark.slow)]
)
def test_many_jobs_keep_memory_flat(tmp_path: Path, early: int, jobs: int) -> None:
    plan, out, scale = begun(tmp_path, range(1, jobs + 1)), tmp_path / "out", Scale((early, jobs))
    outcome, opened = run_jobs(
        plan.jobs,
        families.load((PLUGIN,)),
        OPTIONS,
        scale,
        lambda machine: store.create(out, "steady", machine["name"], {}),
        out,
    )
    with opened:
        assert (outcome.bad, outcome.left, len(opened.records())) == (False, 0, 2 * jobs)
    (early_parent, early_worker), (late_parent, late_worker) = scale.weights
    assert late_parent - early_parent < GROWTH_KIB
    assert late_worker - early_worker < GROWTH_KIB
