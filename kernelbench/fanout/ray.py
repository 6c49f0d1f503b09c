"""Shards as tasks of a Ray cluster whose machines share the fan-out's folder."""

import importlib
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from kernelbench.fanout.shards import Shard
from kernelbench.fanout.task import SOURCE, Task, path_of
from kernelbench.spec import KernelbenchError, UsageError
from kernelbench.suite import Executor

REACH_S = 10.0
RETRIES = 2  # where a machine is lost; the task finds what was measured, and goes on


def package() -> Any:
    """Raises UsageError where Ray is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise UsageError(
            f"fanout ray: ray cannot be imported ({error}): pip install 'kernelbench[ray]'"
        ) from None


class Ray:
    """Engine of a cluster that runs already or, local, of this machine alone."""

    poll_s = 0.5

    def __init__(self, folder: Path, settings: Executor, *, local: bool) -> None:
        self._folder, self._settings, self._ray = folder, settings, package()
        self.most = settings.parallel or 10**9
        self._tasks: dict[str, Any] = {}
        quiet = {"log_to_driver": False, "logging_level": "error"}
        try:
            if local:
                self._ray.init(include_dashboard=False, **quiet)
            else:
                _reach(settings.address)
                self._ray.init(address=settings.address, **quiet)
        except (OSError, RuntimeError, ValueError) as error:
            raise KernelbenchError(
                f"no Ray cluster at {settings.address!r} ({error}): ray start --head, or --local"
            ) from None

    def submit(self, shards: Sequence[Shard]) -> Iterator[tuple[str, str]]:
        """Raises UsageError for what the cluster never has: Ray would wait for ever."""
        has = self._ray.cluster_resources()
        for shard in shards:
            self._refuse(shard, has)
        for shard in shards:
            kind = {"accelerator_type": shard.gpu} if shard.gpu and shard.gpus else {}
            path = path_of(self._folder / SOURCE, os.environ)
            remote = self._ray.remote(
                num_cpus=self._settings.cpus,
                num_gpus=shard.gpus,
                max_retries=RETRIES,
                max_calls=1,
                runtime_env={"env_vars": {"PYTHONPATH": path}},
                **kind,
            )(_measure)
            task = remote.remote(str(self._folder), shard.name)
            self._tasks[task.hex()] = task
            yield shard.name, task.hex()

    def _refuse(self, shard: Shard, has: dict[str, float]) -> None:
        wants: dict[str, float] = {"GPU": shard.gpus, "CPU": self._settings.cpus}
        if shard.gpu and shard.gpus:
            wants[f"accelerator_type:{shard.gpu}"] = 0.001
        for name, count in wants.items():
            if count > has.get(name, 0):
                raise UsageError(
                    f"shard {shard.name} needs {name} × {count:g}; this cluster has "
                    f"{has.get(name, 0):g}. Without GPUs: --device cpu"
                )

    def alive(self, jobs: Iterable[str]) -> set[str]:
        """Those of this program: tasks end with it."""
        known = {self._tasks[job]: job for job in jobs if job in self._tasks}
        if not known:
            return set()
        _, running = self._ray.wait([*known], num_returns=len(known), timeout=0)
        return {known[task] for task in running}

    def said(self, job: str) -> str:
        """The last line of what it raised."""
        try:
            self._ray.get(self._tasks[job], timeout=0)
        except (KeyError, self._ray.exceptions.RayError) as error:
            return str(error).strip().rpartition("\n")[2]
        return ""

    def close(self, *, stop: bool) -> None:
        for task in self._tasks.values() if stop else ():
            self._ray.cancel(task)
        self._ray.shutdown()


def _reach(address: str) -> None:
    """Ray itself tries for ever. Raises OSError for a port that does not answer, ValueError for
    what is none."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon:
        socket.create_connection((host, int(port)), timeout=REACH_S).close()


def _measure(folder: str, name: str) -> int:
    return Task(Path(folder), name)()
