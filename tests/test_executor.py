"""How a worker's end is seen: at once, by what it was, with all that it said before."""

import os
import time
from pathlib import Path

import pytest

from kernelbench.run import local
from kernelbench.run.executor import WorkerEndedError, events
from kernelbench.run.local import LocalWorker

SAYS = """
import ctypes, json, multiprocessing, os, signal, sys, time
out = int(sys.argv[2])
def say(**facts):
    os.write(out, (json.dumps(facts) + chr(10)).encode())
def child(apart=False):  # as a data loader of a provider: it holds the pipe open
    pid = os.fork()
    if not pid:
        if apart:
            os.setsid()
        time.sleep(60)
        os._exit(0)
    return pid
"""
FALLS = {
    "exited with code 7": "os._exit(7)",
    "killed by SIGKILL (the kernel kills so when memory runs out)": "os.kill(os.getpid(), 9)",
    "killed by SIGSEGV": "ctypes.string_at(0)",
}
FORKS = {
    "nobody": "pids = []",
    "a fork": "pids = [child()]",
    "two, one in a session of its own": "pids = [child(), child(apart=True)]",
    "multiprocessing": "p = multiprocessing.get_context('fork').Process("
    "target=time.sleep, args=(60,)); p.start(); pids = [p.pid]",
}


@pytest.fixture(params=["pidfd", "glances"])
def watch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "glances":  # a system without pidfd
        monkeypatch.delattr(os, "pidfd_open", raising=False)


def worker(folder: Path, monkeypatch: pytest.MonkeyPatch, *lines: str) -> LocalWorker:
    monkeypatch.setattr(local, "START", SAYS + "\n".join(lines))
    return LocalWorker(folder / "log")


def runs(pid: int) -> bool:
    """Whether it does; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while runs(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not runs(pid)


@pytest.mark.usefixtures("watch")
@pytest.mark.parametrize("forks", FORKS)
@pytest.mark.parametrize("ending", FALLS)
def test_a_fall_is_seen_at_once_whoever_is_left(tmp_path, monkeypatch, forks, ending):
    start = time.monotonic()
    fallen = worker(
        tmp_path,
        monkeypatch,
        FORKS[forks],
        "say(event='at', pids=pids)",
        "for n in range(3000): say(event='records', n=n, text='x' * 90)",
        'os.write(out, b\'{"event": "cut sho\')',
        FALLS[ending],
    )
    pids = fallen.receive(60)["pids"]
    said = []
    with pytest.raises(WorkerEndedError) as ended:
        for event in events(fallen, 60, "done"):
            said.append(event["n"])  # noqa: PERF401
    assert (str(ended.value), ended.value.silent) == (ending, False)
    assert said == list(range(3000))
    assert time.monotonic() - start < 5
    in_group = pids[:1]  # one in a session of its own is out of reach
    assert all(gone(pid) for pid in in_group)
    for pid in pids[1:]:
        os.kill(pid, 9)


def test_a_silent_worker_is_ended_with_its_children(tmp_path, monkeypatch):
    silent = worker(tmp_path, monkeypatch, "say(event='at', pid=child())", "time.sleep(60)")
    pid = silent.receive(60)["pid"]
    with pytest.raises(WorkerEndedError, match=r"nothing happened for 0\.1 s") as ended:
        silent.receive(0.1)
    assert ended.value.silent and gone(pid)
    silent.kill()  # again, which is nothing


def test_a_worker_that_closes_its_pipe_is_asked_for_its_code(tmp_path, monkeypatch):
    closed = worker(tmp_path, monkeypatch, "os.close(out); time.sleep(0.2); os._exit(3)")
    with pytest.raises(WorkerEndedError, match="exited with code 3"):
        closed.receive(60)


def test_what_is_sent_reaches_it_and_an_answer_may_come_in_parts(tmp_path, monkeypatch):
    told = worker(
        tmp_path,
        monkeypatch,
        "request = json.loads(os.fdopen(int(sys.argv[1])).readline())",
        "text = json.dumps({'event': 'hello', **request}).encode()",
        "os.write(out, text[:9]); time.sleep(0.2); os.write(out, text[9:] + b'\\n')",
        "time.sleep(60)",
    )
    told.send({"word": "ä" * 100_000})
    assert told.receive(60) == {"event": "hello", "word": "ä" * 100_000}
    told.kill()
