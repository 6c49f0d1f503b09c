"""NVTX ranges without a tool: names, who looks on, and a domain that is real all the same."""

import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import nvtx
import pytest
from nvtx._lib import lib

from kernelbench.profile import nvtx as ours
from kernelbench.spec import KernelbenchError


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (("kb", "rms_norm", "M4096-N1024-bf16-fwd"), "kb.rms_norm.M4096-N1024-bf16-fwd"),
        (("kb", "my fam/ily", "eager@[x]"), "kb.my_fam_ily.eager__x_"),
        (("kb", "größe", "a=b", "c,d:e*f+g\\h"), "kb.gr__e.a=b.c_d_e_f_g_h"),
    ],
)
def test_names_hold_nothing_that_a_filter_reads_otherwise(
    parts: tuple[str, ...], name: str
) -> None:
    assert ours.name_of(*parts) == name


@pytest.mark.parametrize(
    ("env", "tool"),
    [
        ({}, ""),
        ({"NVTX_INJECTION64_PATH": ""}, ""),
        ({"NVTX_INJECTION64_PATH": "/x.so", "NSYS_PROFILING_SESSION_ID": "1"}, "nsys"),
        ({"NVTX_INJECTION64_PATH": "/x.so", "NV_COMPUTE_PROFILER_PERFWORKS_DIR": "/p"}, "ncu"),
        ({"NVTX_INJECTION64_PATH": "/x.so"}, "nvtx"),
    ],
)
def test_the_tool_that_looks_on_is_known_by_what_it_sets(env: dict[str, str], tool: str) -> None:
    assert ours.attached(env) == tool


def test_nvtx_is_imported_only_when_ranges_are_opened() -> None:
    code = (
        "import sys; from kernelbench.profile.nvtx import attached, name_of; name_of('a'); "
        "assert attached({}) == ''; print('nvtx' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"


def test_a_dummy_domain_is_replaced_by_a_real_one() -> None:
    assert isinstance(nvtx.get_domain(ours.DOMAIN), lib.DummyDomain)  # no tool: what nvtx gives
    domain = ours.open_ranges()._domain
    assert type(domain) is lib.Domain
    assert domain.handle.name == ours.DOMAIN


def test_a_domain_that_the_tool_wants_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = object()
    monkeypatch.setattr(nvtx, "get_domain", lambda name: wanted)
    assert ours.open_ranges()._domain is wanted


def test_without_nvtx_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvtx", None)
    with pytest.raises(KernelbenchError, match=r"not installed.*pip install 'nvtx=="):
        ours.open_ranges()


def test_an_nvtx_that_cannot_be_forced_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(lib, "DomainHandle")
    with pytest.raises(KernelbenchError, match=r"records nothing.*DomainHandle.*pip install"):
        ours.open_ranges()


class Spy:
    """A domain that notes what it is told."""

    def __init__(self) -> None:
        self.made: list[dict[str, object]] = []
        self.told: list[tuple[str, object]] = []

    def get_event_attributes(self, **what: object) -> object:
        self.made.append(what)
        return what

    def push_range(self, what: object) -> None:
        self.told.append(("push", what))

    def mark(self, what: object) -> None:
        self.told.append(("mark", what))

    def pop_range(self) -> None:
        self.told.append(("pop", None))


def test_a_name_is_made_once_and_a_payload_never_kept() -> None:
    spy = Spy()
    ranges = ours.Ranges(spy)
    ranges.push("kb.a")
    ranges.push("kb.a", 7)
    ranges.mark("kb.a")
    ranges.pop()
    assert spy.made == [{"message": "kb.a"}, {"message": "kb.a", "payload": 7}]
    assert spy.told == [
        ("push", {"message": "kb.a"}),
        ("push", {"message": "kb.a", "payload": 7}),
        ("mark", {"message": "kb.a"}),
        ("pop", None),
    ]


def test_threads_may_push_and_pop_at_once() -> None:
    ranges = ours.open_ranges()
    done = []

    def work(name: str) -> None:
        for payload in range(200):
            ranges.push(name)
            ranges.push(name, payload)
            ranges.mark(name, 0.5)
            ranges.pop()
            ranges.pop()
        done.append(name)

    threads = [threading.Thread(target=work, args=(f"kb.{i % 2}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 4


def test_a_range_that_nobody_looks_at_costs_less_than_2_us() -> None:
    ranges = ours.open_ranges()
    ranges.push("kb.cost")
    ranges.pop()
    times = []
    for _ in range(2000):
        start = time.perf_counter_ns()
        ranges.push("kb.cost")
        ranges.pop()
        times.append(time.perf_counter_ns() - start)
    assert statistics.median(times) < 2000
