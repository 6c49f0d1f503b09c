"""Shards as jobs of Slurm, or as processes of this machine, by submitit.

What submitit leaves to its users is done here: arrays no longer than the cluster takes, a task
that can be requeued, an environment of known names, logs of a folder each, and no accounting.
"""

import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kernelbench.fanout.shards import Shard
from kernelbench.fanout.task import ENVIRONMENT, SOURCE, Task, path_of
from kernelbench.fanout.watch import LOGS
from kernelbench.spec import KernelbenchError, UsageError
from kernelbench.suite import Executor

ARRAY = 1001  # tasks, where a cluster does not say
NOTICE_S = 90  # before a time limit, for the run to end its job
FOREVER = 10**9


def submitit() -> Any:
    """The package. Raises UsageError where it is not installed."""
    try:
        return importlib.import_module("submitit")
    except ImportError as error:
        raise UsageError(
            f"fanout slurm: submitit cannot be imported ({error}): pip install 'kernelbench[slurm]'"
        ) from None


class Slurm:
    """Engine of a cluster that this machine may submit to."""

    poll_s = 5.0
    most = FOREVER

    def __init__(self, folder: Path, settings: Executor, name: str) -> None:
        self._folder, self._settings, self._name = folder, settings, name
        self._submitit = submitit()

    def submit(self, shards: Sequence[Shard]) -> Iterator[tuple[str, str]]:
        """An array, or several, for each kind of GPU. Raises KernelbenchError where Slurm, or who
        asks it, refuses."""
        kinds: dict[tuple[str, int], list[Shard]] = {}
        for shard in shards:
            kinds.setdefault((shard.gpu, shard.gpus), []).append(shard)
        most = min(self._settings.array, array_limit())
        for kind, part in kinds.items():
            for at in range(0, len(part), most):
                yield from self._array(*kind, part[at : at + most]).items()

    def _array(self, gpu: str, gpus: int, shards: Sequence[Shard]) -> dict[str, str]:
        try:
            executor = self._executor(parameters(self._settings, gpu, gpus, self._name))
            with executor.batch():
                jobs = [executor.submit(Task(self._folder, shard.name)) for shard in shards]
        except (RuntimeError, OSError) as error:
            raise KernelbenchError(f"not submitted: {error}") from None
        return {shard.name: job.job_id for shard, job in zip(shards, jobs, strict=True)}

    def _executor(self, known: Mapping[str, Any]) -> Any:
        executor = self._submitit.SlurmExecutor(self._folder / LOGS / "%j", python=self._python)
        # Else srun hands on the names of `export` alone, and not what `setup` did.
        setup = ["export SLURM_EXPORT_ENV=ALL", *self._settings.setup]
        executor.update_parameters(**known, setup=setup)
        return executor

    @property
    def _python(self) -> str:
        """The interpreter, which imports the submitted source, as a command."""
        path = path_of(self._folder / SOURCE, os.environ)
        return shlex.join(["env", f"PYTHONPATH={path}", sys.executable])

    def alive(self, jobs: Iterable[str]) -> set[str]:
        """By the queue, which a cluster without accounting has, too. All of them while Slurm does
        not answer."""
        done = subprocess.run(
            ["squeue", "--me", "--noheader", "--array", "--format=%i"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return {*jobs} if done.returncode else {*jobs} & {*done.stdout.split()}

    def said(self, job: str) -> str:
        """The last line of its log."""
        logs = sorted((self._folder / LOGS / job).glob("*_log.out"))
        lines = [line for log in logs for line in log.read_text(errors="replace").splitlines()]
        return next((line for line in reversed(lines) if line.strip()), "")

    def close(self, *, stop: bool) -> None:
        """Jobs go on without whoever submitted them."""


class Local(Slurm):
    """The same by processes of this machine, one shard after another where they need its GPU."""

    poll_s = 0.3

    def __init__(self, folder: Path, settings: Executor, name: str, *, gpu: bool) -> None:
        super().__init__(folder, settings, name)
        self.most = 1 if gpu else max(1, settings.parallel)
        self._jobs: dict[str, Any] = {}

    def _array(self, gpu: str, gpus: int, shards: Sequence[Shard]) -> dict[str, str]:
        executor = self._submitit.LocalExecutor(self._folder / LOGS / "%j", python=self._python)
        executor.update_parameters(
            timeout_min=self._settings.time, gpus_per_node=gpus, stderr_to_stdout=True
        )
        jobs = {shard.name: executor.submit(Task(self._folder, shard.name)) for shard in shards}
        self._jobs |= {job.job_id: job for job in jobs.values()}
        return {name: job.job_id for name, job in jobs.items()}

    def alive(self, jobs: Iterable[str]) -> set[str]:
        return {job for job in jobs if job in self._jobs and not self._jobs[job].done()}

    def close(self, *, stop: bool) -> None:
        for job in self._jobs.values() if stop else ():
            job.cancel()


def parameters(settings: Executor, gpu: str, gpus: int, name: str) -> dict[str, Any]:
    """What the head of the batch script says, in submitit's words."""
    words = {"gpu": gpu.lower(), "gpus": str(gpus)}
    default = "gpu:{gpu}:{gpus}" if gpu else "gpu:{gpus}"
    flags = {
        "partition": _filled(settings.partition, words),
        "constraint": _filled(settings.constraint, words),
        "gres": _filled(settings.gres or default, words) if gpus else "",
        "account": settings.account,
        "qos": settings.qos,
    }
    names = [n for n in (*ENVIRONMENT, *settings.env) if n in os.environ]
    return {
        "job_name": name,
        "time": settings.time,
        "nodes": 1,
        "ntasks_per_node": 1,
        "cpus_per_task": settings.cpus,
        "array_parallelism": settings.parallel or FOREVER,
        "stderr_to_stdout": True,
        "signal_delay_s": min(NOTICE_S, settings.time * 15),
        "wckey": None,
        "additional_parameters": {"export": ",".join(names), "requeue": True},
        **{flag: value for flag, value in flags.items() if value},
    }


def _filled(text: str, words: Mapping[str, str]) -> str:
    return re.sub(r"\{(gpus?)\}", lambda found: words[found[1]], text)


def array_limit() -> int:
    """How many tasks an array of this cluster may have; 1 where it has none."""
    try:
        shown = subprocess.run(
            ["scontrol", "show", "config"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return ARRAY
    found = re.search(r"(?m)^MaxArraySize\s*=\s*(\d+)", shown)
    return max(1, int(found[1])) if found else ARRAY
