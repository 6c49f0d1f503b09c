"""Rows of a run with very many records, derived by several processes, a share each."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from kernelbench import metrics, store
from kernelbench.spec import RunRecord

WORTH = 2_000  # lines a process: of fewer, it saves less than its start takes
MOST = 4  # processes, each of which holds all records
_CODE = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from kernelbench.report.shares import answer
answer(*sys.argv[2:])
"""
Rows = dict[int, dict[str, Any]]


@contextmanager
def rows_of(
    lines: Sequence[bytes], against: str
) -> Iterator[Callable[[Sequence[RunRecord]], list[dict[str, Any]]]]:
    """In the block, `metrics.rows_of` of the records of these lines; other processes begin to read
    them at once."""
    parts = max(min(len(lines) // WORTH, MOST, len(os.sched_getaffinity(0))), 1)
    with ExitStack() as stack:
        given = stack.enter_context(TemporaryFile())
        if parts > 1:
            given.write(b"\n".join(lines))
            given.flush()
        others = [
            stack.enter_context(_another(given, against, part, parts)) for part in range(1, parts)
        ]

        def rows(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
            if parts == 1:
                return metrics.rows_of(records, against)
            found = metrics.share_of(records, against, 0, parts)
            for part, other in enumerate(others, 1):
                found |= other() or metrics.share_of(records, against, part, parts)
            return [found[number] for number in range(len(records))]

        yield rows


@contextmanager
def _another(given: IO[bytes], against: str, part: int, parts: int) -> Iterator[Callable[[], Rows]]:
    """A process that derives one share; in the block, what it found, nothing if it failed."""
    words = [json.dumps(sys.path), f"/dev/fd/{given.fileno()}", against, str(part), str(parts)]
    with TemporaryFile() as out:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _CODE, *words],
            pass_fds=[given.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.DEVNULL,
        )

        def found() -> Rows:
            if process.wait():
                return {}
            out.seek(0)
            return {int(number): row for number, row in json.load(out).items()}

        try:
            yield found
        finally:
            process.kill()
            process.wait()


def answer(given: str, against: str, part: str, parts: str) -> None:
    """What such a process does: print the rows of its share by their numbers."""
    lines = Path(given).read_bytes().split(b"\n")
    records, _ = store.read_with_problems(Path(), lines)
    print(json.dumps(metrics.share_of(records, against, int(part), int(parts))))
