"""The standard streams as they may be: of a narrow encoding, closed, or on a full disk."""

import errno
import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

from kernelbench.spec.errors import Terminated

CLOSED = 128 + signal.SIGPIPE  # the exit code of a program whose reader has gone
_OF_A_STREAM = {errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.EBADF}


def terminate(number: int, frame: FrameType | None) -> NoReturn:
    """A handler of SIGTERM."""
    raise Terminated


def widen() -> None:
    """What an encoding has no letter for is printed as its code, and stops nothing."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Any = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def lost(error: OSError) -> tuple[str, int]:
    """Why it could not be written or read, in one line, and the exit code."""
    why = error.strerror or str(error)
    if error.filename is not None:
        return f"{error.filename}: {why}", 2
    if error.errno not in _OF_A_STREAM:
        return why, 2
    _silence(sys.stdout)
    if error.errno == errno.EPIPE:
        return "stdout was closed by its reader: not all of it was written", CLOSED
    return f"stdout: cannot be written ({why})", 2


def _silence(stream: Any) -> None:
    """What is left in its buffer goes nowhere, so that the end of the process does not fail."""
    with suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
