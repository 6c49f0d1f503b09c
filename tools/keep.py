"""Keep runs as results/ has them: python tools/keep.py RUN… FOLDER

Of each run its manifest, records, what profilers saw, and CSV; of records the samples as text
(`store.kept`), all packed by xz. Only a run of a clean tree is kept.
"""

import lzma
import sys
from pathlib import Path

from kernelbench.store.kept import packed, unpacked
from kernelbench.store.reader import (
    ARCHIVED,
    MANIFEST,
    MEASURED,
    MEASURED_CSV,
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
    if (read_manifest(run).get("git") or {}).get("dirty") is not False:
        raise SystemExit(f"{run}: its tree was not clean, or is not known to have been")
    records = lines(run, RECORDS)
    small = [*map(packed, records)]
    assert [*map(unpacked, small)] == records, run
    to = folder / run.name
    to.mkdir(parents=True, exist_ok=True)
    (to / MANIFEST).write_bytes((run / MANIFEST).read_bytes())
    (to / f"{RECORDS}{ARCHIVED}").write_bytes(xz(b"\n".join(small) + b"\n"))
    for name in (RESULTS_CSV, MEASURED, MEASURED_CSV):
        plain, archive = run / name, run / f"{name}{ARCHIVED}"
        if plain.exists():
            (to / archive.name).write_bytes(xz(plain.read_bytes()))
        elif archive.exists():
            (to / archive.name).write_bytes(archive.read_bytes())
    if run.resolve() == to.resolve():
        for name in (RECORDS, RESULTS_CSV, MEASURED, MEASURED_CSV):
            (run / name).unlink(missing_ok=True)


*given, where = map(Path, sys.argv[1:])
for each in given:
    keep(each, where)
