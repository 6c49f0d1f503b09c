"""One shard on whatever machine it was sent to: `kernelbench run`, from the submitted source.

Imports neither torch nor a scheduler before it must: it is unpickled on every machine.
"""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernelbench import files, store
from kernelbench.fanout.copied import digest
from kernelbench.fanout.shards import Shard, filter_of, missing
from kernelbench.spec import KernelbenchError

SOURCE, RUNS, SHARDS, LOG = "source", "runs", "shards", "log.txt"
# What a run is handed of the environment; a suite's `executor: {env: …}` adds to it.
ENVIRONMENT = (
    "PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "HOME", "USER", "LOGNAME", "SHELL",
    "LANG", "LC_ALL", "TZ", "TMPDIR", "XDG_CACHE_HOME", "OMP_NUM_THREADS", "CUDA_HOME",
    "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_CACHE_PATH", "NVIDIA_VISIBLE_DEVICES",
    "TRITON_CACHE_DIR", "TRITON_INTERPRET", "TORCHINDUCTOR_CACHE_DIR",
    "TORCHINDUCTOR_COMPILE_THREADS",
)  # fmt: skip
CHANGED = "its copy of the source is not the one that was submitted"
_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG
GRACE_S = 60.0  # between a run's SIGTERM and its end


@dataclass
class Task:
    """folder: the fan-out's. name: the shard's."""

    folder: Path
    name: str

    def __call__(self) -> int:
        """Measure what the shard still lacks; how it ended lies in `ended.json` then."""
        begun, why = time.monotonic(), ""
        try:
            code = self._measure()
        except (KernelbenchError, OSError) as error:
            code, why = 2, str(error)
        facts = {"code": code, "why": why, "host": socket.gethostname()}
        facts["seconds"] = round(time.monotonic() - begun, 1)
        files.write(ended(self.folder, self.name), json.dumps(facts) + "\n")
        return code

    def checkpoint(self) -> Any:
        """submitit asks before a time limit or a preemption: end the run, and come again."""
        from submitit.helpers import DelayedSubmission

        self._end()
        return DelayedSubmission(Task(self.folder, self.name))

    def _measure(self) -> int:
        facts = json.loads(asked(self.folder, self.name).read_text(encoding="utf-8"))
        if digest(self.folder / SOURCE) != facts["source"]:
            raise KernelbenchError(CHANGED)
        shard, out = Shard.from_json(facts["shard"]), self.folder / RUNS / self.name
        runs, code = runs_of(self.folder, self.name), 0
        left = missing(shard, runs)
        if runs and left:
            code = self._run(["run", "--resume", str(runs[-1])], facts["env"])
            left = missing(shard, runs) if code == 2 else []
        if left:  # nothing yet; or on another GPU, where no run goes on
            command = [*facts["command"], "--filter", filter_of(left), "--out", str(out)]
            code = self._run(command, facts["env"])
        return code

    def _run(self, arguments: Sequence[str], names: Sequence[str]) -> int:
        source = self.folder / SOURCE
        with (self.folder / SHARDS / self.name / LOG).open("ab") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "kernelbench", *arguments],
                cwd=source,
                env=environment(os.environ, names, source),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=_end_with_parent,
            )
            try:
                while self._child.poll() is None:  # `wait` would hold a lock that `_end` needs
                    time.sleep(0.1)
            finally:
                self._end()
        return self._child.returncode

    def _end(self) -> None:
        child: subprocess.Popen[bytes] | None = getattr(self, "_child", None)
        if child is not None and child.poll() is None:
            child.terminate()
            try:
                child.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                child.kill()


def _end_with_parent() -> None:
    """A run ends, in good order, when a scheduler kills who watches it."""
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGTERM)


def environment(have: Mapping[str, str], names: Sequence[str], source: Path) -> dict[str, str]:
    """What is handed on: names that are known, and the submitted source before any other."""
    kept = {name: have[name] for name in (*ENVIRONMENT, *names) if name in have}
    return kept | {"PYTHONPATH": path_of(source, have)}


def path_of(source: Path, have: Mapping[str, str]) -> str:
    """PYTHONPATH with the submitted source first."""
    paths = have.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join([str(source), *(p for p in paths if p and p != str(source))])


def runs_of(folder: Path, name: str) -> list[Path]:
    """A shard's run folders, the oldest first."""
    out = folder / RUNS / name
    return sorted(store.find_runs([out])) if out.exists() else []


def asked(folder: Path, name: str) -> Path:
    """The file of what a shard is to do."""
    return folder / SHARDS / name / "shard.json"


def ended(folder: Path, name: str) -> Path:
    """The file of how it ended; there only once it did."""
    return folder / SHARDS / name / "ended.json"
