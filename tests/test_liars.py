"""What tests/plugins/liars.py says of every liar that needs no GPU is true, and of honest ones."""

import gc
import re
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from toy import HostTimes, run

from kernelbench import store
from kernelbench.report.progress import Output
from kernelbench.run import plan
from kernelbench.run.runner import Options
from kernelbench.spec import Measure, RunRecord, Status
from kernelbench.suite.request import Selection
from kernelbench.verbs.run import measure

sys.path.insert(0, str(Path(__file__).parent / "plugins"))
import liars

SUITE = """
name: alone
device: cpu
measure: {{min_samples: 2, max_samples: 2, block: 2}}
families:
  liars:
    providers: [honest, {providers}]
    cases: [{{R: 48, N: 100, dtype: fp32}}]
"""

# 59 of the timed calls are judged, and then about three of sixteen.
SETTINGS = Measure(min_samples=512, max_samples=512, max_seconds=5.0)
LIARS = [
    pytest.param(
        each,
        id=each.name,
        marks=pytest.mark.skipif(each.waits, reason=f"{each.needs} is not there"),
    )
    for each in liars.LIARS.values()
    if each.where != "gpu" and not each.alone
]
HONEST = [pytest.param(each, id=each.name) for each in liars.HONEST.values()]


@pytest.fixture(autouse=True)
def undone() -> Iterator[None]:
    """What a liar did to this process is put right."""
    liars.TRIED.clear()
    yield
    while liars.UNDO:
        liars.UNDO.pop()()


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    """Threads that wait for each other take longer than all that is computed here, and so does a
    collection of garbage among all that was imported."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()
    yield
    gc.unfreeze()
    torch.set_num_threads(before)


def judged(entry: Any, *others: str) -> dict[str, RunRecord]:
    """The records of one and of others beside it."""
    family = liars.FAMILIES[entry.family]
    case = entry.case or liars.CASES[entry.family]
    asked = (*others, entry.name)
    return run(family, case, clock=HostTimes(), measure=SETTINGS, names=asked)


@pytest.mark.parametrize("liar", LIARS)
def test_what_is_said_of_a_liar_is_true(liar: Any) -> None:
    others = () if liar.caught else ("honest",)
    record = judged(liar, *others)[liar.name]
    status, pattern = liar.caught or ("ok", "")
    assert record.status == status, record.reason
    assert re.search(pattern, f"{record.reason} {record.flags}")
    if liar.than:
        assert liar.name not in liars.TRIED


@pytest.mark.parametrize("entry", HONEST)
def test_honest_ones_are_left_alone(entry: Any) -> None:
    record = judged(entry)[entry.name]
    assert record.status is Status.ok, record.reason
    assert record.judged_calls is not None and record.judged_calls >= 59


@pytest.mark.slow
def test_what_is_said_of_those_that_reach_beyond_their_job_is_true(tmp_path: Path) -> None:
    alone = [each for each in liars.LIARS.values() if each.alone]
    assert alone[-1].name == "forges_all_records"  # in which the job ends
    path = tmp_path / "alone.yaml"
    path.write_text(SUITE.format(providers=", ".join(each.name for each in alone)))
    plans = plan.new([str(path)], Selection(plugins=(liars.__file__,), device="cpu"))
    console = Console(file=StringIO())
    measure(plans, Options(), tmp_path / "out", Output(console, console, quiet=True))
    (folder,) = store.find_runs([tmp_path / "out"])
    found = {record.provider: record for record in store.read(folder)}
    for each in alone:
        status, pattern = each.caught or ("ok", "")
        assert found[each.name].status == status, found[each.name].reason
        assert re.search(pattern, found[each.name].reason)


def test_there_are_sixty_mechanisms() -> None:
    assert len(liars.LIARS) >= 60
