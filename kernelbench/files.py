"""Output files: the one way in which anything here is written to a path that a user names."""

import errno
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kernelbench.spec.errors import UnwritableError

STDOUT = Path("-")
_NEW_MODE = 0o666


def write(path: str | Path, content: str | bytes) -> None:
    """Text in UTF-8, or bytes, to a path, as a user means it; `-` is the standard output.

    A regular file, or one that is not there, is replaced in one step: a reader, and whoever comes
    after a crash, meets the old one or the new one. Of a symbolic link that is its target, and the
    link stays. What is no file (a device, a pipe) is written through.

    Raises UnwritableError where it cannot be written: a folder, a missing one, a full disk; also
    for a file without any write bit, of which root, too, says thereby that it is to stay.
    """
    path, data = Path(path), _bytes(content)
    if path == STDOUT:
        _to_stdout(data)
        return
    with _target(path) as (target, mode):
        if mode is None or stat.S_ISREG(mode):
            _replace(target, data, mode)
        else:
            _write_to(target, "wb", data)


def append(path: str | Path, content: str | bytes) -> None:
    """At the end of a file that others write, too; refused where `write` would be."""
    with _target(Path(path)) as (target, _):
        _write_to(target, "ab", _bytes(content))


def deliver(path: str | Path, content: str | bytes) -> None:
    """`write`, for a user who asked for the file: says so on the standard error."""
    write(path, content)
    if Path(path) != STDOUT:
        print(f"wrote {path}", file=sys.stderr)


def _bytes(content: str | bytes) -> bytes:
    return content.encode() if isinstance(content, str) else content


@contextmanager
def _target(path: Path) -> Iterator[tuple[Path, int | None]]:
    """The file that a path means, and its mode, None where it is not there; in the block, why it
    cannot be written is said of the path."""
    try:
        target = path.resolve(strict=False)  # raises for a loop of links
        mode = _mode(target)
        if mode is not None and stat.S_ISREG(mode) and not mode & 0o222:
            raise UnwritableError(
                f"{path}: cannot be written (read-only, mode {stat.S_IMODE(mode):04o}). "
                "chmod u+w it, or write to another file"
            )
        yield target, mode
    except RuntimeError:  # of Path.resolve, up to Python 3.12
        raise _unwritable(path, os.strerror(errno.ELOOP)) from None
    except ValueError as error:  # a name that no file can have
        raise _unwritable(path, str(error)) from None
    except OSError as error:
        raise _unwritable(path, error.strerror or str(error)) from None


def _write_to(path: Path, how: str, data: bytes) -> None:
    with path.open(how, buffering=0) as file:
        _all(file.fileno(), data)


def _to_stdout(data: bytes) -> None:
    """As it is, whatever encoding the terminal has."""
    stream = getattr(sys.stdout, "buffer", None)
    if stream is None:  # somebody put a text stream in its place
        sys.stdout.write(data.decode())
        return
    sys.stdout.flush()
    stream.write(data)
    stream.flush()


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None


def _all(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


def _replace(path: Path, data: bytes, mode: int | None) -> None:
    fd, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", suffix=".part", dir=path.parent)
    try:
        try:
            _all(fd, data)
            os.fchmod(fd, _allowed() if mode is None else stat.S_IMODE(mode))
            os.fsync(fd)
        finally:
            os.close(fd)
        Path(name).replace(path)
    finally:
        with suppress(OSError):  # it is not there any more, if all went well
            Path(name).unlink()


def _allowed() -> int:
    """What a new file's mode would be."""
    mask = os.umask(0)
    os.umask(mask)
    return _NEW_MODE & ~mask


def _unwritable(path: Path, why: str) -> UnwritableError:
    return UnwritableError(
        f"{path}: cannot be written ({why}). Write to another file, or mend its folder"
    )
