"""Shards to a scheduler, and what becomes of them."""

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from kernelbench.fanout.shards import Shard
from kernelbench.fanout.state import Entry, State, Where
from kernelbench.fanout.task import ended

LOGS = "logs"  # of submitit, in the fan-out's folder
TWICE = 2  # times that a job must be gone, where no file says that it ended: folders lag


class Engine(Protocol):
    """Whoever runs shards. most: how many it takes at a time. poll_s: between two looks."""

    most: int
    poll_s: float

    def submit(self, shards: Sequence[Shard]) -> Iterator[tuple[str, str]]:
        """Each shard's name and what its job is called, as soon as it is submitted."""

    def alive(self, jobs: Iterable[str]) -> set[str]:
        """Those that wait or run."""

    def said(self, job: str) -> str:
        """What is known of one that ended without our knowing how."""

    def close(self, *, stop: bool) -> None:
        """stop: end what runs, where nobody would find it again."""


def watch(state: State, engine: Engine, say: Callable[[str], None], *, wait: bool) -> None:
    """Submit the shards that wait, and settle those that end; until all have, or without `wait`
    once they are submitted. `state.json` is as it is after every step."""
    stop, gone = True, Counter[str]()
    try:
        while True:
            _settle(state, engine, say, gone)
            _submit(state, engine, say)
            left = state.of(Where.submitted, Where.waiting)
            sure = not state.of(Where.waiting) and not any(gone[e.shard.name] for e in left)
            if not left or (sure and not wait):
                break
            time.sleep(engine.poll_s)
        stop = False
    finally:
        state.save()
        engine.close(stop=stop)
    if not state.of(Where.submitted, Where.waiting, Where.lost):
        shutil.rmtree(state.folder / LOGS, ignore_errors=True)


def _submit(state: State, engine: Engine, say: Callable[[str], None]) -> None:
    room = engine.most - len(state.of(Where.submitted))
    entries = {entry.shard.name: entry for entry in state.of(Where.waiting)[: max(0, room)]}
    if not entries:
        return
    for name in entries:
        ended(state.folder, name).unlink(missing_ok=True)
    for name, job in engine.submit([entry.shard for entry in entries.values()]):
        state.submitted(entries[name], job)
        say(f"shard {name}: {len(entries[name].shard.jobs)} jobs, submitted as {job}")
    state.save()


def _settle(state: State, engine: Engine, say: Callable[[str], None], gone: Counter[str]) -> None:
    entries = state.of(Where.submitted)
    alive = engine.alive([entry.job for entry in entries]) if entries else set[str]()
    for entry in entries:
        name = entry.shard.name
        gone[name] = 0 if entry.job in alive else gone[name] + 1
        if gone[name] and (gone[name] >= TWICE or ended(state.folder, name).exists()):
            state.settle(entry, engine.said)
            say(told(entry))
            if entry.where is Where.done:
                shutil.rmtree(state.folder / LOGS / entry.job, ignore_errors=True)
            state.save()


def told(entry: Entry) -> str:
    """One line on a shard that has ended."""
    name, jobs = entry.shard.name, len(entry.shard.jobs)
    if entry.where is Where.done:
        return f"shard {name}: done, {jobs} jobs on {entry.ended.get('host', 'an unknown host')}"
    return f"shard {name}: lost, {len(entry.missing)} of {jobs} jobs missing: {entry.why}"
