"""What is left in the L2 after each way to clear it, and what that does to times.

    python flush.py OUT.csv      on a GPU; with ncu on the PATH the DRAM reads are counted, too

write         twice the L2 is written
write, read   and then read
all           lines that were to persist are claimed and released first: what a run does
"""

import csv
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import triton
import triton.language as tl
from kernels import KERNELS
from ncu import by_range

from kernelbench.kernels import stream
from kernelbench.measure import environment
from kernelbench.measure.ceilings import calibrate
from kernelbench.measure.flush import ColdL2
from kernelbench.measure.probes import Probe
from kernelbench.measure.timer import CudaClock

WAYS = {"write": slice(1, 2), "write, read": slice(1, 3), "all": slice(0, 3)}
BYTES = 16 << 20  # what a call leaves behind: fits the L2


@triton.jit
def keep(source, sink, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.sum(tl.load(source + at, eviction_policy="evict_last"), 0)
    tl.store(sink, total, mask=total == 12345)


class Flush(ColdL2):
    """Some of the steps."""

    def only(self, way: str) -> "Flush":
        self._steps = self._steps[WAYS[way]]
        return self


def readers() -> dict[str, Callable[[], Any]]:
    source, sink = torch.zeros(BYTES // 4, device="cuda"), torch.zeros(1, device="cuda")
    return {
        "plain": stream.read(source, sink).run,
        "evict_last": lambda: keep[(BYTES // 4 // 4096,)](source, sink, 4096, num_warps=8),
    }


def times() -> list[list[str]]:
    """Gated medians of the calls whose data the L2 could keep, by way."""
    device = environment.device("cuda")
    calls = {name: make for name, (make, _) in KERNELS.items() if "Gi" not in name}
    rows = []
    clocks = {}
    for way in WAYS:
        clocks[way] = CudaClock(device)
        clocks[way].flush = Flush(device).only(way)
    overhead = calibrate(clocks["all"]).ns
    reading = {f"read 16 MiB {how}": (lambda r=r: r) for how, r in readers().items()}
    for name, make in {**reading, **calls}.items():
        call, samples = make(), {way: list[int]() for way in WAYS}
        for _ in range(16):
            for way, clock in clocks.items():
                samples[way] += clock.batch(Probe(name, call), 8).samples_ns
        rows.append([name, *(f"{(median(s) - overhead) / 1e3:.2f}" for s in samples.values())])
    return rows


def under_ncu() -> None:
    """Read 16 MiB as usual or with evict_last, clear the L2, and read them again in a range."""
    device, reading = environment.device("cuda"), readers()
    for number, way in enumerate(WAYS):
        flush = Flush(device).only(way)
        for how, read in reading.items():
            for _ in range(3):
                read()
            flush()
            torch.cuda.synchronize()
            torch.cuda.nvtx.range_push(f"left_{number}_{how}")
            reading["plain"]()
            torch.cuda.nvtx.range_pop()
            torch.cuda.synchronize()
            Flush(device)()  # what one way left is not there for the next


def left() -> dict[tuple[str, str], float]:
    """MiB of the 16 that were still in the L2, by way and how they were read before."""
    found = {}
    for name, [read] in by_range(__file__, "left_", "dram__bytes_read.sum").items():
        number, how = name.split("_", 1)
        found[list(WAYS)[int(number)], how] = max(0.0, (BYTES - read) / 2**20)
    return found


def main(path: Path) -> None:
    kept = left()
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["what", *WAYS])
        rows = [
            [f"MiB left of 16 read {how}", *(f"{kept.get((way, how), -1):.2f}" for way in WAYS)]
            for how in ("plain", "evict_last")
            if kept
        ]
        rows += [[f"us: {name}", *values] for name, *values in times()]
        writer.writerows(rows)
    for row in rows:
        print(f"{row[0]:36}", *(f"{value:>12}" for value in row[1:]))


if __name__ == "__main__":
    if sys.argv[1] == "--under-ncu":
        under_ncu()
    else:
        main(Path(sys.argv[1]))
