"""The figures of a run's records, cached between reports: intervals take most of a report's time.

Kept in the user's cache folder, by a hash of the records, of the code that derives figures from
them, of the versions of Python and numpy, and of what speedups are against: after a change they
are derived again. A cache that cannot be read or written costs only time.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import platformdirs
from numpy import __version__ as numpy_version

from kernelbench import metrics, store
from kernelbench.files import write
from kernelbench.report import shares
from kernelbench.spec import KernelbenchError, migrations

MOST = 256  # files in the cache; a run has one for each provider it was compared with
CODE = (
    *("limits.py", "significance.py", "statistics.py", "times.py"),
    *("metrics/*.py", "store/*.py", "spec/*.py"),
)
SIGNS = re.compile(rb'^\{"schema": ?(\d+),', re.MULTILINE)  # the first field of a line


@dataclass(frozen=True)
class Derived:
    """rows: as `metrics.rows_of`. problems: lines that cannot be read. older: how many lines were
    of a schema that was migrated, by schema."""

    rows: list[dict[str, Any]]
    problems: list[str]
    older: dict[str, int]


def folder() -> Path:
    """The user's cache folder, `…/kernelbench/derived`."""
    return platformdirs.user_cache_path("kernelbench", appauthor=False) / "derived"


def files() -> list[Path]:
    return sorted(folder().glob("*.json"))


def clear() -> int:
    """Delete all cached files; return how many there were."""
    paths = files()
    for file in paths:
        file.unlink(missing_ok=True)
    return len(paths)


def derive(run: Path, against: str = "") -> Derived:
    """The figures of a run's current records. Raises KernelbenchError for an unreadable folder."""
    lines = store.lines(run, store.RECORDS)
    content = b"\n".join(lines)
    versions = [sys.version, numpy_version]  # of random draws and rounding
    names = sorted(file.name for file in run.glob(f"{store.RECORDS}*"))
    words = json.dumps([str(run), names, against, _code(), versions, sorted(migrations.RECORDS)])
    path = folder() / f"{sha256(words.encode() + content).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError, TypeError):
        return Derived(**json.loads(path.read_bytes()))
    with shares.rows_of(lines, against) as rows_of:
        records, problems = store.read_with_problems(run, lines)
        figures = Derived(rows_of(records), problems, _older(content))
    if figures.rows:
        _keep(path, figures)
    return figures


def _older(content: bytes) -> dict[str, int]:
    counts: Mapping[int, int] = Counter(map(int, SIGNS.findall(content)))
    return {str(n): count for n, count in sorted(counts.items()) if n in migrations.RECORDS}


@cache
def _code() -> str:
    """A hash of the code that derives figures from records."""
    package, digest = Path(metrics.__file__).parent, sha256()
    for pattern in CODE:
        for path in sorted(package.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _keep(path: Path, figures: Derived) -> None:
    """Write in one step, so that nobody reads half a file; delete the oldest files."""
    with suppress(OSError, KernelbenchError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, json.dumps(vars(figures)))
        paths = sorted(files(), key=lambda file: file.stat().st_mtime)
        for oldest in paths[:-MOST]:
            oldest.unlink()
