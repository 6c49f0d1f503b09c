"""Do intervals over three processes cover what further processes read? Of kept runs, without a GPU.

    python studies/measuring/coverage.py RUN...

RUN: runs of one suite and build on one machine, of one process or of several; each process counts.
Every three of them give an interval, of each median and of each speedup against the baseline; the
mean of the others lies within it or not. Beside that, how often the interval of a single process,
which is over its own rounds, covers the mean of the others.
"""

import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations

from kernelbench import metrics, store
from kernelbench.numbers.statistics import Interval, over_processes
from kernelbench.numbers.times import of_processes
from kernelbench.spec import Role, RunRecord

THREE = 3


def intervals(runs: Sequence[str]) -> dict[tuple[str, ...], list[Interval]]:
    """Of each row what each process says of itself."""
    found: dict[tuple[str, ...], list[Interval]] = defaultdict(list)
    for run in runs:
        groups: dict[str, list[RunRecord]] = defaultdict(list)
        for record in store.read_apart(run):
            if metrics.timed(record) and record.group:
                groups[record.group].append(record)
        for group in groups.values():
            base = next((r for r in group if r.role is Role.baseline), None)
            for record in group:
                median = of_processes(metrics.timings(record))
                if median is not None:
                    found["median", *record.row].append(median)
                speedup = metrics.speedup(record, base) if base and base is not record else None
                if speedup is not None:
                    found["speedup", *record.row].append(speedup.over)
    return found


def mean(some: Sequence[Interval]) -> float:
    """Geometric."""
    return math.exp(math.fsum(math.log(each.mid) for each in some) / len(some))


def covered(each: Sequence[Interval], size: int) -> list[bool]:
    """Of every `size` of them, whether their interval covers the mean of the others."""
    found = []
    for chosen in combinations(range(len(each)), size):
        over = over_processes([each[n] for n in chosen])
        others = mean([one for n, one in enumerate(each) if n not in chosen])
        found.append(over.lo <= others <= over.hi)
    return found


def main(runs: list[str]) -> None:
    rows = {key: each for key, each in intervals(runs).items() if len(each) > THREE}
    print("what, interval over, rows, processes, covered %")
    for what in ("median", "speedup"):
        some = [each for (kind, *_), each in rows.items() if kind == what]
        counts = sorted({len(each) for each in some})
        for size, over in ((THREE, "three processes"), (1, "one process's rounds")):
            held = [hit for each in some for hit in covered(each, size)]
            share = 100 * sum(held) / len(held) if held else math.nan
            print(f"{what}, {over}, {len(some)}, {'/'.join(map(str, counts))}, {share:.1f}")


if __name__ == "__main__":
    main(sys.argv[1:])
