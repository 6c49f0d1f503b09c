"""Exports of Nsight Systems with activity of a GPU that was made up, in tables that are real."""

import shutil
import sqlite3
from pathlib import Path
from typing import Any

from unpacked import unpacked

H200 = unpacked("nsys_h200.sqlite")
MACHINE, PID, TID = 1 << 48, 5 << 24, 5
MAIN = MACHINE | PID | TID
KERNEL, CALL, RANGE = "CUPTI_ACTIVITY_KIND_KERNEL", "CUPTI_ACTIVITY_KIND_RUNTIME", "NVTX_EVENTS"
COPIES = """
CREATE TABLE {} (start INTEGER NOT NULL, end INTEGER NOT NULL, correlationId INTEGER,
  globalPid INTEGER, bytes INTEGER NOT NULL {})"""


class Export:
    """An export that a test writes its own rows into; `copied` has the tables of an H200's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db = sqlite3.connect(path, isolation_level=None)
        kernels = sqlite3.connect(H200).execute(f"SELECT * FROM {KERNEL} LIMIT 1")
        self._kernel = dict(
            zip([c[0] for c in kernels.description], kernels.fetchone(), strict=True)
        )
        self._correlation = 1000

    @staticmethod
    def copied(path: Path) -> "Export":
        """Without rows, but for the domain `kernelbench`, made twice as the nvtx package does."""
        shutil.copyfile(H200, path)
        path.chmod(0o644)
        export = Export(path)
        for table in (KERNEL, CALL, RANGE):
            export.run(f"DELETE FROM {table}")
        for start in (1, 2):
            export.insert(
                RANGE, start=start, eventType=75, text="kernelbench", globalTid=MAIN, domainId=1
            )
        return export

    def run(self, query: str, *values: Any) -> list[Any]:
        return self._db.execute(query, values).fetchall()

    def insert(self, table: str, **row: Any) -> None:
        names = ", ".join(f'"{name}"' for name in row)
        self.run(
            f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' * len(row))})", *row.values()
        )

    def text(self, value: str) -> int:
        found = self.run("SELECT id FROM StringIds WHERE value = ?", value)
        if not found:
            self.run("INSERT INTO StringIds SELECT MAX(id) + 1, ? FROM StringIds", value)
            return self.text(value)
        return int(found[0][0])

    def range(self, name: str, start: int, end: int | None, thread: int = MAIN) -> None:
        self.insert(
            RANGE, start=start, end=end, eventType=59, textId=self.text(name), globalTid=thread,
            domainId=1,
        )  # fmt: skip

    def launch(self, at: int, thread: int = MAIN) -> int:
        """A call of the CUDA runtime; returns its correlation."""
        self._correlation += 1
        self.insert(
            CALL, start=at, end=at + 1, eventClass=0, globalTid=thread, returnValue=0,
            correlationId=self._correlation, nameId=self.text("cudaLaunchKernel"),
        )  # fmt: skip
        return self._correlation

    def kernel(
        self, name: str, start: int, end: int, correlation: int, thread: int = MAIN, **more: Any
    ) -> None:
        row = {
            **self._kernel, "start": start, "end": end, "correlationId": correlation,
            "globalPid": thread & ~0xFFFFFF, "shortName": self.text(name),
            "demangledName": self.text(name), "mangledName": self.text(name), **more,
        }  # fmt: skip
        self.insert(KERNEL, **row)

    def launched(self, name: str, start: int, end: int, at: int, thread: int = MAIN) -> None:
        """A kernel and the call that launched it."""
        self.kernel(name, start, end, self.launch(at, thread), thread)
