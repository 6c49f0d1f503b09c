"""Do intervals mean what they say? The same call against itself, and against 2 % more work.

    python intervals.py collect OUT.json.gz [SECONDS] [SAMPLES]   on a GPU
    python intervals.py judge OUT.json.gz…                         anywhere

A job samples four parts interleaved as a run does: A (the baseline), A once more as a provider,
where it can be made B, which takes 2 % longer, and A a last time for the noise floor.
"""

import gzip
import json
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from kernelbench.spec import Measure
from kernelbench.statistics import noise_floor, ratio_interval

REPEATS = 30  # jobs a kernel


def collect(path: Path, seconds: float, samples: int | None) -> None:
    import kernels

    from kernelbench.measure import environment
    from kernelbench.measure.ceilings import calibrate
    from kernelbench.measure.probes import Probe
    from kernelbench.measure.sampling import sample
    from kernelbench.measure.timer import CudaClock

    calls = {
        "copy 4 Ki": (partial(kernels.copy, 1 << 12), None),
        "copy 256 Ki": (partial(kernels.copy, 1 << 18), None),
        "matmul 1024": (partial(kernels.matmul, 1024), None),
        "matmul 2048": (partial(kernels.matmul, 2048), None),
        "matmul 4096": (partial(kernels.matmul, 4096), None),
        "F.rms_norm 4096x384": (partial(kernels.fused_norm, 4096, 384), None),
        "eager norm 4096x384": (partial(kernels.eager_norm, 4096, 384), None),
        "attention 1x8x1024x64": (partial(kernels.attention, 1, 8, 1024, 64), None),
        "attention 4x12x2048x64": (partial(kernels.attention, 4, 12, 2048, 64), None),
    }
    # How many more bytes take 2 % more time, found by trying: time goes in waves of blocks.
    for shift, factor in ((24, 1.0183), (25, 1.0278), (26, 1.0213), (27, 1.0227)):
        n = 1 << shift
        more = int(n * factor) // 4096 * 4096
        calls[f"copy {n >> 20} Mi"] = (partial(kernels.copy, n), partial(kernels.copy, more))
    for rows in (8192, 32768):
        few = partial(kernels.eager_norm if rows == 8192 else kernels.fused_norm, rows, 4096)
        more_rows = partial(few.func, rows * 51 // 50, 4096)
        calls[f"{few.func.__name__} {rows}x4096"] = (few, more_rows)
    clock = CudaClock(environment.device("cuda"))
    clock.overhead_ns = calibrate(clock).ns
    settings = Measure()
    if samples:
        settings = Measure(min_samples=samples, max_samples=samples, max_seconds=30)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in calls}
    end = time.monotonic() + seconds
    for _ in range(REPEATS):
        for name, (make, make_more) in calls.items():
            if time.monotonic() > end:
                break
            call = make()
            parts = [Probe("A", call), Probe("A'", call), Probe('A"', call)]
            if make_more:
                parts.insert(2, Probe("B", make_more()))
            taken = sample(parts, clock, settings, stays=(0, len(parts) - 1))
            found[name].append(
                {t.name: t.blocks_ns if t.held else None for t in taken} | {"stop": taken[1].stop}
            )
    facts = {"overhead_ns": clock.overhead_ns, "jobs": found}
    with gzip.open(path, "wt") as file:
        json.dump(facts, file)


def load(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The jobs by kernel, of every part the blocks less the overhead."""
    with gzip.open(path, "rt") as file:
        facts = json.load(file)
    return {
        name: [
            {k: less(v, facts["overhead_ns"]) for k, v in job.items() if k != "stop" and v}
            for job in jobs
        ]
        for name, jobs in facts["jobs"].items()
    }


def judge(paths: list[Path]) -> None:
    """A line a kernel, and the totals that are asked for."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in paths:
        for name, jobs in load(path).items():
            found.setdefault(name, []).extend(jobs)
    total = {"pairs": 0, "covered": 0, "declared": 0, "planted": 0, "found": 0}
    arms, long_arms = [], []
    print("kernel, median us, jobs, covered, declared different, half-width %, planted, found")
    for name, jobs in found.items():
        row = dict.fromkeys(total, 0)
        widths, mids, times = [], [], []
        for parts in jobs:
            floor = noise_floor(parts["A"], parts['A"'])
            same = ratio_interval(parts["A"], parts["A'"])
            row["pairs"] += 1
            row["covered"] += same.lo <= 1 <= same.hi
            row["declared"] += different(same, floor)
            widths.append((same.hi - same.lo) / 2 * 100)
            times.append(median(x for b in parts["A"] for x in b) / 1e3)
            if "B" in parts:
                more = ratio_interval(parts["B"], parts["A"])
                mids.append(more.mid)
                row["planted"] += 1
                row["found"] += different(more, floor)
        for key, value in row.items():
            total[key] += value
        arms += widths
        long_arms += widths if median(times) >= 20 else []
        planted = (
            f"{(median(mids) - 1) * 100:.2f} %, {row['found']}/{row['planted']}" if mids else "-"
        )
        print(
            f"{name:24} {median(times):8.2f} {row['pairs']:4} {row['covered'] / row['pairs']:6.3f}"
            f" {row['declared']:3} {median(widths):7.3f}  {planted}"
        )
    print(
        f"covered {total['covered']}/{total['pairs']} = {total['covered'] / total['pairs']:.3f}, "
        f"declared different {total['declared'] / total['pairs']:.3f}, half-width of calls "
        f"of 20 us and more {median(long_arms):.3f} %, "
        f"planted found {total['found']}/{total['planted']}"
    )


def less(blocks: list[list[int]], overhead: int) -> list[list[int]]:
    return [[max(ns - overhead, 0) for ns in block] for block in blocks]


def different(interval: Any, floor: float) -> bool:
    """What a table prints as a difference."""
    return (interval.lo > 1 or interval.hi < 1) and abs(interval.mid - 1) > floor


if __name__ == "__main__":
    verb, files = sys.argv[1], sys.argv[2:]
    if verb == "collect":
        given = [float(x) for x in files[1:]]
        collect(Path(files[0]), given[0] if given else 600.0, int(given[1]) if given[1:] else None)
    else:
        judge([Path(file) for file in files])
