"""The GPUs of a run: which ones were asked for, and that nobody else times on them meanwhile."""

import fcntl
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from kernelbench.spec import KernelbenchError, UsageError

ALL = "all"
LOCKS = Path("/tmp")  # all users' and not TMPDIR, which a scheduler makes one for each job
_NAME = re.compile(r"\d+|GPU-[0-9a-f-]+", re.IGNORECASE)


def named(asked: str, environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """What CUDA_VISIBLE_DEVICES is to be for each GPU of `0,2,5`; nothing for `all`.

    A number counts the GPUs that this process sees, as PyTorch does; `GPU-…` is a UUID.
    Raises UsageError for what names no GPU, or one twice.
    """
    if asked == ALL:
        return ()
    names = [name.strip() for name in asked.split(",")]
    wrong = next((name for name in names if not _NAME.fullmatch(name)), None)
    if wrong is not None:
        raise UsageError(f"--gpus: {wrong!r} names no GPU. Known: all, or such as 0,2 or GPU-…")
    seen = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    found = []
    for name in names:
        if name.isdigit() and seen:
            if int(name) >= len(seen):
                here = f"CUDA_VISIBLE_DEVICES shows {len(seen)}"
                raise UsageError(f"--gpus: there is no GPU {name}: {here}, from 0 on")
            name = seen[int(name)]
        found.append(name)
    if len({*found}) != len(found):
        raise UsageError(f"--gpus {asked}: names a GPU twice")
    return tuple(found)


class Locks:
    """On GPUs, by their UUIDs: nobody else times on those that are held until it is closed, or this
    process ends.

    shared: with others that do not time, either. note: where it is said that none can be had.
    """

    def __init__(self, *, shared: bool, note: Callable[[str], object]) -> None:
        self._shared, self._note = shared, note
        self._held: dict[str, int] = {}  # file descriptors

    def hold(self, uuids: Iterable[str]) -> None:
        """Raises KernelbenchError where another process has one of them."""
        for uuid in uuids:
            if uuid in self._held:
                continue
            try:
                self._held[uuid] = self._taken(uuid)
            except OSError as error:
                self._held[uuid] = -1
                self._note(f"{uuid}: nothing keeps other runs off it ({error})")

    def _taken(self, uuid: str) -> int:
        fd = _opened(LOCKS / f"kernelbench-{uuid}.lock")
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if self._shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"process {os.getpid()}".encode(), 0)
        except BlockingIOError:
            who = os.pread(fd, 100, 0).decode(errors="replace")
            os.close(fd)
            raise KernelbenchError(
                f"{uuid} is in use by another kernelbench, {who}: wait for it, or name other GPUs "
                "by --gpus"
            ) from None
        return fd

    def close(self) -> None:
        """Let others have them."""
        for fd in self._held.values():
            if fd >= 0:
                os.close(fd)
        self._held.clear()


def _opened(path: Path) -> int:
    """A file of any user's; Linux may forbid to open another's by a call that could make it."""
    try:
        return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        os.fchmod(fd, 0o666)  # whatever the umask
        return fd
