"""Several processes that do one job together, one a GPU, by torch.distributed's elastic launcher.

The launcher is the worker that `local` started. Rank 0 hears the requests and tells the others;
what it says of a job is what all agreed on. When one rank ends, the launcher ends all, and says
which it was. No rank outlives the launcher, and no launcher the command: Linux ends them.
"""

import ctypes
import json
import os
import signal
import sys
from datetime import timedelta
from typing import Any

from kernelbench.run.worker import Pipe, life, served, work

RANK = life("ranks", "serve")
WAIT = timedelta(days=1)  # for the next request
LONGEST = 2000  # characters of a reason: a line that fits into the pipe at once
SAID = 120  # the exit code of a rank that has said why it ends
_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG


def _end_with_the_parent(parent: int) -> None:
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before
        os._exit(1)


def launch() -> None:
    """The launcher's whole life; argv holds the file descriptors of requests and events, how many
    ranks there are to be, who started it, and a folder for the launcher's own files."""
    requests, events, world, parent, folder = sys.argv[1:]
    _end_with_the_parent(int(parent))
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of each rank, as torchrun has it
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=int(world),
        run_id="kernelbench",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        logs_specs=DefaultLogsSpecs(log_dir=folder),
        max_restarts=0,
        monitor_interval=0.05,
    )
    pipes = [f"/proc/{os.getpid()}/fd/{number}" for number in (requests, events)]
    arguments = ["-P", "-c", RANK, str(os.getpid()), *pipes, json.dumps(sys.path)]
    try:
        elastic_launch(config, sys.executable)(*arguments)
    except ChildFailedError as failed:
        rank, first = failed.get_first_failure()
        if first.exitcode == SAID:
            os._exit(1)
        how = f"exited with code {first.exitcode}"
        if first.exitcode < 0:
            how = f"killed by {signal.Signals(-first.exitcode).name}"
        with os.fdopen(int(events), "w", encoding="utf-8") as out:
            out.write("\n")  # behind half a line of who was killed
            _say(out, "lost", provider="", reason=f"rank {rank} of {world}: {how}")
        os._exit(1)


def _say(out: Any, event: str, **facts: Any) -> None:
    out.write(json.dumps({"event": event, **facts}) + "\n")
    out.flush()


class Follower:
    """What a worker needs of its pipe, for a rank that follows: requests come from rank 0, and only
    what rank 0 cannot know is said."""

    def __init__(self, store: Any, events: str) -> None:
        self._store, self._number = store, 0
        self._out = os.fdopen(os.open(events, os.O_WRONLY), "w", encoding="utf-8")

    def receive(self) -> dict[str, Any]:
        key = f"request/{self._number}"
        self._store.wait([key], WAIT)
        self._number += 1
        request: dict[str, Any] = json.loads(self._store.get(key))
        return request

    def send(self, event: str, **facts: Any) -> None:
        if event in ("lost", "refused"):
            facts["reason"] = facts["reason"][:LONGEST]
            _say(self._out, event, **facts)


class Leader(Pipe):
    """The pipe of rank 0, which tells the others what it is asked for."""

    def __init__(self, store: Any, requests: str, events: str) -> None:
        super().__init__(os.open(requests, os.O_RDONLY), os.open(events, os.O_WRONLY))
        self._store, self._number = store, 0

    def receive(self) -> dict[str, Any]:
        request = super().receive()
        self._store.set(f"request/{self._number}", json.dumps(request))
        self._number += 1
        return request


def serve() -> None:
    """The whole life of a rank; argv holds the launcher's number and the paths of the pipes."""
    parent, requests, events = sys.argv[1:]
    _end_with_the_parent(int(parent))
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    seen = seen if seen != [""] else list(map(str, range(world)))
    os.environ["CUDA_VISIBLE_DEVICES"] = seen[rank] if rank < len(seen) else ""
    from torch._C._distributed_c10d import PrefixStore, TCPStore

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    shared = PrefixStore("kernelbench", TCPStore(host, port, world, is_master=False))
    pipe: Any = Leader(shared, requests, events) if rank == 0 else Follower(shared, events)

    def join(kind: str) -> Any:
        import torch
        import torch.distributed as dist

        from kernelbench.measure.team import Ranks

        if kind == "cuda":
            dist.init_process_group("cpu:gloo,cuda:nccl", device_id=torch.device("cuda", 0))
        else:
            dist.init_process_group("gloo")
        token = torch.zeros(1, device=kind)

        def barrier() -> None:
            dist.all_reduce(token)

        return Ranks(rank, world, PrefixStore("team", shared), barrier)

    os._exit(SAID if served(pipe, lambda: work(pipe, join)) else 0)
