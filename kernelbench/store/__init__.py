"""The run directory: records as they are measured, safe against a kill at any moment.

`records.jsonl` is the truth, one JSON line a record, appended and synced before `append`
returns. `manifest.json` says what was run where. Everything else can be made again from them.
The lines of a run that is kept may be compressed, `records.jsonl.xz`: it can still be read.
"""

from kernelbench.store.reader import (
    MANIFEST,
    MEASURED,
    MEASURED_CSV,
    PROFILES,
    RECORDS,
    RESULTS_CSV,
    Standing,
    find_runs,
    history,
    lines,
    read,
    read_apart,
    read_manifest,
    read_measured,
    read_standing,
    read_with_problems,
)
from kernelbench.store.writer import Store, create, open_run, slug

__all__ = [
    "MANIFEST",
    "MEASURED",
    "MEASURED_CSV",
    "PROFILES",
    "RECORDS",
    "RESULTS_CSV",
    "Standing",
    "Store",
    "create",
    "find_runs",
    "history",
    "lines",
    "open_run",
    "read",
    "read_apart",
    "read_manifest",
    "read_measured",
    "read_standing",
    "read_with_problems",
    "slug",
]
