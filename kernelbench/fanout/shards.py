"""A suite's jobs in shards: what one job of a scheduler measures."""

import hashlib
import heapq
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from kernelbench import store
from kernelbench.spec import Job, Status, UsageError, suggest

CUTS = ("hash", "time")
LONGEST = 100_000  # characters that a filter may have: Linux takes 131,071 in one argument
JOB_S, PROVIDER_S = 2.0, 3.0  # what a job and each of its providers need besides sampling, roughly


class Wanted(NamedTuple):
    """What makes a job whole: a record of each provider in each process."""

    providers: tuple[str, ...]
    processes: int


@dataclass(frozen=True, kw_only=True)
class Shard:
    """gpu: the model that it is to run on, or "". gpus: how many; 0 without one. jobs: by id."""

    name: str
    jobs: Mapping[str, Wanted]
    gpu: str = ""
    gpus: int = 0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(facts: Mapping[str, Any]) -> "Shard":
        jobs = {name: Wanted(tuple(names), n) for name, (names, n) in facts["jobs"].items()}
        return Shard(**{**facts, "jobs": jobs})


def cut(
    jobs: Sequence[Job], count: int, by: str, gpus: Sequence[str] = (), *, device: str = "auto"
) -> list[Shard]:
    """At most `count` shards for each GPU model; those without a job are left out.

    by: `hash`, where a job stays in its shard whatever else the suite has, or `time`, where shards
    take about equally long. The modes of one case stay together.
    Raises UsageError for another word.
    """
    if by not in CUTS:
        raise UsageError(f"--by: no way to cut {by!r}{suggest(by, CUTS)}")
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(_group(job), []).append(job)
    parts = _by_hash(groups, count) if by == "hash" else _by_time(groups, count)
    digits = len(str(count - 1))
    return [
        Shard(
            name=f"{store.slug(gpu)}-{number:0{digits}}" if gpu else f"{number:0{digits}}",
            jobs={job.id: Wanted(job.providers, job.measure.processes) for job in part},
            gpu=gpu,
            gpus=0 if device == "cpu" else max(job.world for job in part),
        )
        for gpu in gpus or ("",)
        for number, part in enumerate(parts)
        if part
    ]


def _group(job: Job) -> str:
    axes = {name: value for name, value in job.case.as_axes().items() if name != "mode"}
    return f"{job.family} {json.dumps(axes, sort_keys=True)}"


def _by_hash(groups: Mapping[str, list[Job]], count: int) -> list[list[Job]]:
    parts: list[list[Job]] = [[] for _ in range(count)]
    for key, jobs in groups.items():
        parts[int(hashlib.sha256(key.encode()).hexdigest()[:12], 16) % count] += jobs
    return parts


def _by_time(groups: Mapping[str, list[Job]], count: int) -> list[list[Job]]:
    """The longest first, each into the shard that has least to do."""
    parts: list[list[Job]] = [[] for _ in range(count)]
    load = [(0.0, number) for number in range(count)]
    long = sorted(groups.items(), key=lambda item: (-sum(map(expected_s, item[1])), item[0]))
    for _, jobs in long:
        seconds, number = heapq.heappop(load)
        parts[number] += jobs
        heapq.heappush(load, (seconds + sum(map(expected_s, jobs)), number))
    return parts


def expected_s(job: Job) -> float:
    """How long a job may take: sampling at its longest, and a guess of the rest."""
    providers = len(job.providers) * (PROVIDER_S + job.measure.max_seconds)
    return job.measure.processes * (JOB_S + providers)


def filter_of(ids: Iterable[str]) -> str:
    """The regular expression that these job ids, and no others, match.

    Raises UsageError for more than a command line holds.
    """
    families: dict[str, list[str]] = {}
    for each in ids:
        family, _, case = each.partition("/")
        families.setdefault(family, []).append(re.escape(case))
    parts = (f"{re.escape(name)}/(?:{'|'.join(cases)})" for name, cases in families.items())
    text = rf"^(?:{'|'.join(parts)})\Z"
    if len(text) > LONGEST:
        jobs = sum(map(len, families.values()))
        raise UsageError(f"--shards: {jobs} jobs in one shard are too many; ask for more shards")
    return text


def missing(shard: Shard, runs: Iterable[Path]) -> list[str]:
    """The jobs that no run has whole, on the GPU that the shard is for."""
    left = dict(shard.jobs)
    for run in runs:
        gpu = str(store.read_manifest(run).get("gpu", ""))
        if shard.gpu.lower() not in gpu.lower() and shard.gpus:
            continue
        found: dict[tuple[str, str], dict[int, Status]] = {}
        for record in store.read_apart(run):
            row = (f"{record.family}/{record.case}", record.provider)
            found.setdefault(row, {})[record.process] = record.status
        left = {job: wanted for job, wanted in left.items() if not _whole(job, wanted, found)}
    return list(left)


def _whole(job: str, wanted: Wanted, found: Mapping[tuple[str, str], Mapping[int, Status]]) -> bool:
    """What was not right in one process is not measured in the next."""
    return all(
        len(seen := found.get((job, provider), {})) == wanted.processes
        or any(status is not Status.ok for status in seen.values())
        for provider in wanted.providers
    )
