"""The folder of a fan-out, and `state.json` in it: of each shard where it is and how it ended."""

import fcntl
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from kernelbench import files, store
from kernelbench.fanout.copied import copy
from kernelbench.fanout.shards import Shard, filter_of, missing
from kernelbench.fanout.task import LOG, SHARDS, SOURCE, asked, ended, runs_of
from kernelbench.spec import KernelbenchError
from kernelbench.suite import Executor

STATE, LOCK = "state.json", ".lock"
SCHEMA = 1


class Where(StrEnum):
    """What is known of a shard."""

    waiting = "waiting"  # to be submitted
    submitted = "submitted"
    done = "done"  # every job has its records, whatever they say
    lost = "lost"  # some have not


@dataclass
class Entry:
    """A shard. job: what its scheduler calls it. why: it was lost. missing: the jobs that it has
    not."""

    shard: Shard
    where: Where = Where.waiting
    job: str = ""
    runs: list[str] = field(default_factory=list)
    why: str = ""
    missing: list[str] = field(default_factory=list)
    ended: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "shard": self.shard.as_json()}


@dataclass
class State:
    """A fan-out. facts: the suite, its text, how it was asked for, and which source it runs."""

    folder: Path
    engine: str
    executor: Executor
    device: str
    facts: dict[str, Any]
    entries: list[Entry]

    def of(self, *where: Where) -> list[Entry]:
        return [entry for entry in self.entries if entry.where in where]

    def save(self) -> None:
        """In one step. Raises UnwritableError where the disk is full."""
        known = {"schema": SCHEMA, "engine": self.engine, "device": self.device, **self.facts}
        known["executor"] = self.executor.model_dump()
        known["shards"] = [entry.as_json() for entry in self.entries]
        files.write(self.folder / STATE, json.dumps(known, indent=1) + "\n")

    def submitted(self, entry: Entry, job: str) -> None:
        entry.where, entry.job, entry.why, entry.missing = Where.submitted, job, "", []

    def settle(self, entry: Entry, said: Callable[[str], str]) -> None:
        """A shard is no longer with its scheduler: what is there of it?"""
        name, entry.where = entry.shard.name, Where.done
        runs = runs_of(self.folder, name)
        entry.runs = [str(run.relative_to(self.folder)) for run in runs]
        entry.missing, entry.why = missing(entry.shard, runs), ""
        entry.ended = how_ended(self.folder, name)
        if entry.missing:
            entry.where, entry.why = Where.lost, self._why(entry, runs, said)

    def _why(self, entry: Entry, runs: Sequence[Path], said: Callable[[str], str]) -> str:
        name, gpu = entry.shard.name, entry.shard.gpu
        others = [str(store.read_manifest(run).get("gpu")) for run in runs]
        if wrong := [o for o in others if gpu.lower() not in o.lower() and entry.shard.gpus]:
            return f"ran on {wrong[-1]}, which is no {gpu}"
        log = f"{SHARDS}/{name}/{LOG}"
        if not entry.ended:
            return f"its job {entry.job} ended: {said(entry.job) or 'without a word'}"
        return str(entry.ended["why"]) or f"exit code {entry.ended['code']}: {log}"


def how_ended(folder: Path, name: str) -> dict[str, Any]:
    """What a shard's machine wrote at its end; nothing where it did not."""
    try:
        facts: dict[str, Any] = json.loads(ended(folder, name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts


def create(
    out: Path,
    shards: Sequence[Shard],
    suite: Path,
    plugins: Sequence[str],
    options: Sequence[str],
    known: State,
) -> State:
    """Make the folder of a new fan-out: the source, and what each shard is to do.

    options: of `kernelbench run`, for every shard. known: what is known so far; its folder is not.
    Raises UsageError for a shard that is too large, KernelbenchError for a folder that cannot be.
    """
    for shard in shards:
        filter_of(shard.jobs)
    now = datetime.now(UTC)
    folder = out.resolve() / f"{now:%Y%m%dT%H%M%SZ}-{store.slug(str(known.facts['suite']))}-fanout"
    try:
        folder.mkdir(parents=True)
        source = copy(folder / SOURCE, suite, plugins)
        loaded = [part for plugin in source.plugins for part in ("--plugin", plugin)]
        command = ["run", source.suite, *loaded, *options, "--yes", "--set"]
        facts: dict[str, Any] = {"source": source.digest, "env": known.executor.env}
        for shard in shards:
            (folder / SHARDS / shard.name).mkdir(parents=True)
            # A name of its own: runs of one second would else have one id.
            facts["command"] = [*command, f"name={known.facts['suite']}-{shard.name}"]
            text = json.dumps({**facts, "shard": shard.as_json()}, indent=1)
            files.write(asked(folder, shard.name), text + "\n")
    except OSError as error:
        raise KernelbenchError(f"{folder}: cannot be made ({error.strerror or error})") from None
    known.folder, known.entries = folder, [Entry(shard) for shard in shards]
    known.facts |= {"source": source.digest, "utc": f"{now:%Y-%m-%dT%H:%M:%SZ}"}
    known.save()
    return known


def load(folder: Path) -> State:
    """Raises KernelbenchError for a folder that is no fan-out, or one of another version."""
    try:
        facts = json.loads((folder / STATE).read_text(encoding="utf-8"))
        if facts.pop("schema") != SCHEMA:
            raise KernelbenchError(f"{folder}: a fan-out of another version")
        entries = [
            Entry(
                **{**each, "shard": Shard.from_json(each["shard"]), "where": Where(each["where"])}
            )
            for each in facts.pop("shards")
        ]
        executor = Executor.model_validate(facts.pop("executor"))
        engine, device = facts.pop("engine"), facts.pop("device")
    except FileNotFoundError:
        raise KernelbenchError(f"{folder}: not the folder of a fan-out (no {STATE})") from None
    except OSError as error:
        raise KernelbenchError(f"{folder}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, KeyError) as error:
        raise KernelbenchError(f"{folder / STATE}: not understood ({error})") from None
    return State(folder.resolve(), engine, executor, device, facts, entries)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Nobody else follows this fan-out meanwhile. Raises KernelbenchError where somebody does, and
    for what is no fan-out."""
    load(folder)
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise KernelbenchError(f"{folder}: another kernelbench fanout waits for it") from None
        yield
