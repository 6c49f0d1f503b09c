"""Keep runs as results/ has them: python tools/keep.py RUN… FOLDER

Of each run its manifest, records and CSV; of records the samples as text (`store.kept`), both
files packed by xz. Only a run of a clean tree is kept.
"""

import lzma
import sys
from pathlib import Path

from kernelbench.store.kept import packed, unpacked
from kernelbench.store.reader import (
    ARCHIVED,
    MANIFEST,
    RECORDS,
    RESULTS_CSV,
    lines,
    read_manifest,
)

BEST = [
    {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 2, "lp": 0, "pb": 0},
]


def xz(content: bytes) -> bytes:
    return lzma.compress(content, filters=BEST)


def keep(run: Path, folder: Path) -> None:
    """Write a run's files to folder/RUN, which may be the run itself."""
    if (read_manifest(run).get("git") or {}).get("dirty"):
        raise SystemExit(f"{run}: its tree was not clean")
    records = lines(run, RECORDS)
    small = [*map(packed, records)]
    assert [*map(unpacked, small)] == records, run
    to = folder / run.name
    to.mkdir(parents=True, exist_ok=True)
    (to / MANIFEST).write_bytes((run / MANIFEST).read_bytes())
    (to / f"{RECORDS}{ARCHIVED}").write_bytes(xz(b"\n".join(small) + b"\n"))
    if (csv := run / RESULTS_CSV).exists() and run.resolve() != to.resolve():
        (to / f"{RESULTS_CSV}{ARCHIVED}").write_bytes(xz(csv.read_bytes()))


*given, where = map(Path, sys.argv[1:])
for each in given:
    keep(each, where)
