"""The cycle of four launches, in the samples of calls against themselves.

    python slots.py intervals.xz      anywhere

In a batch of eight, sample i follows 0 + 1 + 2 + 3 + 0 + … empty launches, three of the flush and
those of the call: its place in the cycle, but for where the batch began. Samples of one place are
averaged, and the spread of the four places is set beside that of four places drawn by lot. The
first sample of a batch is set beside the others, too.
"""

import random
import sys
from pathlib import Path
from statistics import fmean, median

from intervals import load

CYCLE, FLUSH = 4, 3
SINGLE = ("copy 4 Ki", "copy 256 Ki", "copy 16 Mi", "copy 128 Mi", "matmul 1024", "matmul 2048")


def places(n: int, launches: int) -> list[int]:
    found, at = [], 0
    for i in range(n):
        at += i % CYCLE
        found.append((at + FLUSH) % CYCLE)
        at += FLUSH + launches
    return found


def spread(batch: list[int], place: list[int]) -> float:
    """µs between the slowest and the fastest place."""
    means = [fmean(ns for ns, p in zip(batch, place, strict=True) if p == q) for q in set(place)]
    return (max(means) - min(means)) / 1e3


def main(path: Path) -> None:
    lots = random.Random(0)
    jobs = load(path)
    print("call, us between places of the cycle (median batch), between places drawn by lot")
    for name in SINGLE:
        batches = [b for parts in jobs[name] for b in parts["A"] if len(b) == 2 * CYCLE]
        place = places(2 * CYCLE, 1)
        real = median(spread(batch, place) for batch in batches)
        drawn = median(spread(b, lots.sample(place, len(place))) for b in batches)
        print(f"{name:16} {real:5.2f} {drawn:5.2f}")
    print("call, us that the first sample of a batch reads more than the others (medians)")
    for name, made in jobs.items():
        batches = [b for parts in made for b in parts["A"] if len(b) == 2 * CYCLE]
        first, others = median(b[0] for b in batches), median(ns for b in batches for ns in b[1:])
        print(f"{name:24} {(first - others) / 1e3:5.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
