"""Writing a run: lines are on the disk before the next job begins, whatever kills the process; or,
where jobs come faster than `pace.FAST`, soon after it."""

import fcntl
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from kernelbench import files
from kernelbench.spec import SCHEMA, KernelbenchError, Measured, RunRecord
from kernelbench.store import pace
from kernelbench.store.reader import (
    MANIFEST,
    MEASURED,
    RECORDS,
    RESULTS_CSV,
    Standing,
    archived,
    read,
    read_manifest,
    read_standing,
)

MIN_FREE_BYTES = 50 * 2**20


class Store:
    """One run directory, open for writing; nobody else can open it so until it is closed.

    Several threads may write to it. fast: whether more jobs came in the last minute than are synced
    one by one.
    """

    def __init__(
        self, path: Path, fd: int, manifest: dict[str, Any], clock: pace.Clock = time.monotonic
    ) -> None:
        self.path = path
        self.fast = False
        self._fd = fd
        self._torn_at: int | None = None  # where a failed append begins that could not be undone
        self._manifest = manifest
        self._lock = threading.RLock()
        self._pace = pace.Pace(clock)
        self._grouped = pace.Grouped(self._sync, self._lock, clock)
        self._safe_bytes = os.fstat(fd).st_size  # that were synced
        self._unsafe = 0  # records after these
        self._failed: KernelbenchError | None = None  # of a sync, until somebody was told

    @property
    def run_id(self) -> str:
        return str(self._manifest["run_id"])

    @property
    def manifest(self) -> Mapping[str, Any]:
        return self._manifest

    @property
    def csv_path(self) -> Path:
        return self.path / RESULTS_CSV

    def update_manifest(self, **facts: Any) -> None:
        """Add or replace facts of the manifest, in one step.

        Raises KernelbenchError when it cannot be written; the old one stays.
        """
        with self._lock:
            changed = {**self._manifest, **facts}
            _write_manifest(self.path, changed)
            self._manifest = changed

    def append(self, records: Sequence[RunRecord]) -> None:
        """Store the records of one job; when this returns they are on the disk, or are within
        100 ms where more than 1,000 jobs came in the last minute, as the manifest then says.

        Raises KernelbenchError when the disk is full or fails. Then none of these records is
        kept, and everything stored before is; of those whose sync was still to come the error says
        how many are not kept, whoever is told: the next append, `sync` or `close`.
        """
        lines = "".join(f"{record.to_json()}\n" for record in records).encode()
        jobs = dict.fromkeys((record.family, record.case, record.process) for record in records)
        with self._lock:
            self._tell()
            self.fast = self._pace.fast(jobs)
            if self.fast and "fsync" not in self._manifest:
                self.update_manifest(fsync={"grouped": True, "at_most_ms": pace.MOST_MS})
            self._write(lines, len(records))
            if self.fast:
                self._grouped.later()
            else:
                self._grouped.now()
            self._tell()

    def sync(self) -> None:
        """What was stored is on the disk when this returns. Raises KernelbenchError as `append`."""
        with self._lock:
            self._grouped.flush()
            self._tell()

    def _tell(self) -> None:
        failed, self._failed = self._failed, None
        if failed is not None:
            raise failed

    def _write(self, lines: bytes, count: int) -> None:
        before = os.fstat(self._fd).st_size if self._torn_at is None else self._torn_at
        try:
            if self._torn_at is not None:
                self._undo(before)
            written = os.write(self._fd, lines)
            if written != len(lines):
                raise OSError(f"only {written} of {len(lines)} bytes fit")
        except OSError as error:
            self._cut(before)
            self._grouped.flush()
            self._tell()
            raise self._lost(before, count, error) from None
        self._unsafe += count

    def _sync(self) -> None:
        try:
            os.fsync(self._fd)
            size = os.fstat(self._fd).st_size
            self._safe_bytes = size if self._torn_at is None else self._torn_at
        except OSError as error:
            self._cut(self._safe_bytes)
            self._failed = self._lost(self._safe_bytes, self._unsafe, error)
        self._unsafe = 0

    def _lost(self, before: int, count: int, error: OSError) -> KernelbenchError:
        return KernelbenchError(
            f"{self.path / RECORDS}: cannot be written ({error.strerror or error}). The "
            f"{before} bytes stored before are safe; the last {count} records are "
            f"not kept. Free some space, then: kernelbench run --resume {self.path}"
        )

    def keep(self, measured: Measured) -> None:
        """Store what a profiler saw; when this returns it is on the disk.

        Raises KernelbenchError when it cannot be written.
        """
        file = self.path / MEASURED
        try:
            with file.open("a+b") as lines:
                if lines.tell() and not _ends_a_line(lines):
                    lines.write(b"\n")  # what a kill left torn stays a damaged line of its own
                lines.write(f"{measured.to_json()}\n".encode())
                lines.flush()
                os.fsync(lines.fileno())
        except OSError as error:
            raise _unwritable(file, error) from None

    def _cut(self, size: int) -> None:
        self._torn_at = size
        with suppress(OSError):  # what cannot be cut off now is cut off later
            self._undo(size)

    def _undo(self, size: int) -> None:
        os.ftruncate(self._fd, size)
        self._torn_at = None

    def records(self) -> list[RunRecord]:
        """The current records, as `read` gives them."""
        return read(self.path)

    def standing(self) -> list[Standing]:
        """What a resumed run asks of the current records, as `read_standing` gives it."""
        return read_standing(self.path)

    def close(self) -> None:
        """Sync what waits, and let go of the directory. Raises KernelbenchError as `append`."""
        if self._fd < 0:
            return
        try:
            self._grouped.end()
            with suppress(KernelbenchError):  # a disk without room for it
                self._say_longest()
            self._tell()
        finally:
            os.close(self._fd)
            self._fd = -1

    def _say_longest(self) -> None:
        if self._grouped.waited_s:
            said = self._manifest["fsync"]
            longest = max(said.get("longest_ms", 0.0), round(self._grouped.waited_s * 1e3, 1))
            self.update_manifest(fsync={**said, "longest_ms": longest})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def create(root: str | Path, suite: str, gpu: str, manifest: Mapping[str, Any]) -> Store:
    """Make `root/<utc>-<suite>-<gpu>/` and open it.

    The manifest gains schema, run_id, utc, suite and gpu. Raises KernelbenchError, before
    anything is measured, when the folder cannot be made or written, or has under 50 MiB free.
    """
    now = datetime.now(UTC)
    root = Path(root)
    name = f"{now:%Y%m%dT%H%M%SZ}-{slug(suite)}-{slug(gpu)}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        _probe(root)
        path = _make(root, name)
        _sync_folder(root)
    except OSError as error:
        raise _unwritable(root, error) from None
    facts = {
        "schema": SCHEMA,
        "run_id": path.name,
        "utc": f"{now:%Y-%m-%dT%H:%M:%SZ}",
        "suite": suite,
        "gpu": gpu,
        **manifest,
    }
    _write_manifest(path, facts)  # the first file: killed before it, this folder is no run
    return Store(path, _locked(path), facts)


def slug(text: str) -> str:
    """A part of a folder's name: `NVIDIA A100-SXM4-80GB` → `a100-sxm4-80gb`."""
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return words.removeprefix("nvidia-") or "unnamed"


def _probe(root: Path) -> None:
    """Find out now what would otherwise stop the run after its first measurement."""
    free = shutil.disk_usage(root).free
    if free < MIN_FREE_BYTES:
        raise KernelbenchError(
            f"{root}: {free / 2**20:.0f} MiB free, a run needs {MIN_FREE_BYTES // 2**20} MiB. "
            "Free some space, or write to another folder"
        )
    probe = root / f".probe-{os.getpid()}"
    try:
        with probe.open("wb") as file:
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
    finally:
        probe.unlink(missing_ok=True)


def _make(root: Path, name: str) -> Path:
    """A folder of this name, or of the next number that nobody took."""
    number = 1
    while True:
        path = root / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            return path


def _unwritable(path: Path, error: OSError) -> KernelbenchError:
    return KernelbenchError(
        f"{path}: cannot be written ({error.strerror or error}). Write to another folder, or mend "
        "its permissions"
    )


def _write_manifest(path: Path, facts: Mapping[str, Any]) -> None:
    files.write(path / MANIFEST, json.dumps(facts, indent=2, default=str) + "\n")
    try:
        _sync_folder(path)
    except OSError as error:
        raise _unwritable(path / MANIFEST, error) from None


def _sync_folder(path: Path) -> None:
    """Make the names of new files last."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _locked(path: Path) -> int:
    """records.jsonl, open to append, and held against every other process."""
    try:
        fd = os.open(path / RECORDS, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError as error:
        raise _unwritable(path / RECORDS, error) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise KernelbenchError(
            f"{path}: another process is writing this run. Wait for it, or end it"
        ) from None
    except OSError as error:
        os.close(fd)
        raise KernelbenchError(
            f"{path}: this file system cannot lock a file ({error.strerror}), so a second process "
            "could write the same run. Write to another folder"
        ) from None
    return fd


def open_run(path: str | Path) -> Store:
    """Open a run to go on with it; a torn last line is moved to `records.jsonl.torn`.

    Raises KernelbenchError for a folder that is no run, or of another schema, or an archive, or in
    use, and as `create` does for one that cannot be written or has under 50 MiB free.
    """
    path = Path(path)
    manifest = read_manifest(path)
    if manifest.get("schema") != SCHEMA or "run_id" not in manifest:
        raise KernelbenchError(
            f"{path / MANIFEST}: schema {manifest.get('schema')}, this version writes schema "
            f"{SCHEMA}. Start a new run"
        )
    for file in (path / RECORDS, path / MEASURED):
        if archived(file).exists():
            raise KernelbenchError(f"{archived(file)}: an archive: xz -d it to go on with this run")
    fd = _locked(path)
    try:
        _probe(path)
        _mend(path, fd)
    except OSError as error:
        os.close(fd)
        raise _unwritable(path, error) from None
    except KernelbenchError:
        os.close(fd)
        raise
    return Store(path, fd, manifest)


def _mend(path: Path, fd: int) -> None:
    """End the last line if it is a whole record, else cut it off, once it is safe elsewhere."""
    content = (path / RECORDS).read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole == len(content):
        return
    with suppress(KernelbenchError, UnicodeDecodeError):
        RunRecord.from_json(content[whole:].decode())  # possible or not: it stays
        os.write(fd, b"\n")
        os.fsync(fd)
        return
    with (path / f"{RECORDS}.torn").open("ab") as file:
        file.write(content[whole:] + b"\n")
        file.flush()
        os.fsync(file.fileno())
    os.ftruncate(fd, whole)
    os.fsync(fd)


def _ends_a_line(file: IO[bytes]) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read() == b"\n"
