"""The executor of this machine: a worker process, started, asked, and watched until it ends."""

import contextlib
import json
import os
import queue
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kernelbench.run.executor import WorkerEndedError
from kernelbench.run.worker import life
from kernelbench.spec import KernelbenchError, NoGPUError, UsageError

START, START_RANKS = life("worker", "serve"), life("ranks", "launch")
GLANCE_MS = 100  # between two looks at a process whose end the system does not announce
REFUSALS = {"NoGPUError": NoGPUError, "UsageError": UsageError}


@dataclass
class LocalWorker:
    """One worker process and the two pipes to it: an Executor.

    world: of more than 1, the process starts as many ranks, which do each job together (`ranks`).
    visible: the GPUs that it sees, as CUDA_VISIBLE_DEVICES names them; "" for all of ours.
    """

    log: Path
    world: int = 1
    visible: str = ""
    _process: subprocess.Popen[bytes] = field(init=False)
    _requests: Any = field(init=False)
    _spare: str = field(init=False)  # a folder that the launcher of ranks asks for
    _events: "queue.Queue[dict[str, Any] | None]" = field(default_factory=queue.Queue, init=False)

    def __post_init__(self) -> None:
        self._spare = "" if self.world == 1 else tempfile.mkdtemp(prefix="kernelbench-ranks-")
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if self.visible:
            environment["CUDA_VISIBLE_DEVICES"] = self.visible
        request_read, request_write = os.pipe()
        event_read, event_write = os.pipe()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-c",
                    *self._life(str(request_read), str(event_write)),
                    json.dumps(sys.path),
                ],
                pass_fds=(request_read, event_write),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is the parent's to handle
                env=environment,
            )
        os.close(request_read)
        os.close(event_write)
        self._requests = os.fdopen(request_write, "w", buffering=1, encoding="utf-8")
        threading.Thread(target=self._listen, args=(event_read,), daemon=True).start()

    def _life(self, *pipes: str) -> list[str]:
        """What the process runs, and its arguments."""
        if self.world == 1:
            return [START, *pipes]
        return [START_RANKS, *pipes, str(self.world), str(os.getpid()), self._spare]

    def _listen(self, event_read: int) -> None:
        """Every whole line becomes an event; None follows the last one when the worker has ended.

        The pipe alone does not tell the end: a child that a provider forked holds it open.
        """
        os.set_blocking(event_read, False)
        with _end_of(self._process) as end, os.fdopen(event_read, "rb", buffering=0) as events:
            poll = select.poll()
            poll.register(events, select.POLLIN)
            if end is not None:
                poll.register(end, select.POLLIN)
            cut, over = b"", False
            while not over:  # once it has ended, all that it wrote is in the pipe
                ready = [fd for fd, _ in poll.poll(GLANCE_MS if end is None else None)]
                over = end in ready if end is not None else self._process.poll() is not None
                while part := events.read(1 << 16):
                    *lines, cut = (cut + part).split(b"\n")  # a line cut short is no event
                    for line in lines:
                        with contextlib.suppress(ValueError):  # the half of one, by who was killed
                            self._events.put(json.loads(line.decode(errors="replace")))
                over = over or part is not None
        self._events.put(None)

    def send(self, request: Mapping[str, Any]) -> None:
        try:
            self._requests.write(json.dumps(request) + "\n")
        except BrokenPipeError:
            raise WorkerEndedError(self._ending()) from None

    def receive(self, timeout: float) -> dict[str, Any]:
        """The next event.

        Raises WorkerEndedError when there is none within `timeout` seconds, and what the worker
        was told to its face when it refuses the request.
        """
        try:
            event = self._events.get(timeout=timeout)
        except queue.Empty:
            self.kill()
            raise WorkerEndedError(f"nothing happened for {timeout:g} s", silent=True) from None
        if event is None:
            raise WorkerEndedError(self._ending())
        if event["event"] == "refused":
            self.kill()
            raise REFUSALS.get(event["kind"], KernelbenchError)(event["reason"])
        return event

    def kill(self) -> None:
        """End the worker and whatever it started."""
        if self._requests.closed:  # by an earlier call; its number may be another process's now
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._requests.close()
        if self._spare:
            shutil.rmtree(self._spare, ignore_errors=True)

    def _ending(self) -> str:
        """How it ended; what it started is ended, too."""
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return "closed its pipe and hung"
        finally:
            self.kill()
        if code >= 0:
            return f"exited with code {code}"
        name = signal.Signals(-code).name
        hint = " (the kernel kills so when memory runs out)" if name == "SIGKILL" else ""
        return f"killed by {name}{hint}"

    def tail(self, lines: int = 15) -> str:
        """The end of what it printed."""
        try:
            text = self.log.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])


@contextlib.contextmanager
def _end_of(process: "subprocess.Popen[bytes]") -> Iterator[int | None]:
    """A file descriptor that can be read when the process has ended; None where there is none."""
    try:
        end = os.pidfd_open(process.pid)
    except (AttributeError, OSError):  # not Linux, or forbidden in this container
        yield None
        return
    try:
        yield end
    finally:
        os.close(end)
