"""Files of tests/data that lie there as .xz, because they are large."""

import atexit
import lzma
import shutil
import tempfile
from functools import cache
from pathlib import Path

DATA = Path(__file__).parent / "data"


@cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="kernelbench-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def unpacked(name: str) -> Path:
    """Where DATA/NAME.xz lies unpacked, until the process ends."""
    path = _folder() / name
    path.write_bytes(lzma.decompress((DATA / f"{name}.xz").read_bytes()))
    return path
