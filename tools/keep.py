"""Keep runs as results/ has them: python tools/keep.py RUN… FOLDER

Of each run its manifest, records, what profilers saw, and CSV; of records the samples as text
(`store.kept`), all packed by xz. Only a run of a clean tree is kept.
"""

import lzma
import sys
from pathlib import Path

from kernelbench import files
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


def write_xz(path: Path, content: bytes) -> None:
    """In one step: the path may be what the content was read from."""
    files.write(path, lzma.compress(content, filters=BEST))
    assert lzma.decompress(path.read_bytes()) == content, path


def keep(run: Path, folder: Path) -> None:
    """Write a run's files to folder/RUN, which may be the run itself."""
    if (read_manifest(run).get("git") or {}).get("dirty") is not False:
        raise SystemExit(f"{run}: its tree was not clean, or is not known to have been")
    records = lines(run, RECORDS)
    small = [*map(packed, records)]
    assert [*map(unpacked, small)] == records, run
    to = folder / run.name
    to.mkdir(parents=True, exist_ok=True)
    files.write(to / MANIFEST, (run / MANIFEST).read_bytes())
    write_xz(to / f"{RECORDS}{ARCHIVED}", b"\n".join(small) + b"\n")
    for name in (RESULTS_CSV, MEASURED, MEASURED_CSV):
        plain, archive = run / name, run / f"{name}{ARCHIVED}"
        if plain.exists():
            write_xz(to / archive.name, plain.read_bytes())
        elif archive.exists():
            files.write(to / archive.name, archive.read_bytes())
    if run.resolve() == to.resolve():
        for name in (RECORDS, RESULTS_CSV, MEASURED, MEASURED_CSV):
            (run / name).unlink(missing_ok=True)


*given, where = map(Path, sys.argv[1:])
for each in given:
    keep(each, where)
