"""Do intervals mean what they say? The same call against itself, and against 2 % more work.

    python intervals.py collect OUT.xz [SECONDS]   on a GPU
    python intervals.py judge OUT.xz…              anywhere

A job samples four parts interleaved as a run does: A (the baseline), A once more as a provider,
where it can be made B, which takes 2 % longer, and A a last time for the noise floor.
"""

import array
import json
import lzma
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from kernelbench.numbers.statistics import noise_floor, ratio_interval
from kernelbench.spec import Measure

REPEATS = 30  # jobs a kernel


def pairs() -> dict[str, tuple[Any, Any]]:
    """How to make each call, and where it can be made, one that takes 2 % longer."""
    import kernels

    calls: dict[str, tuple[Any, Any]] = {
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
    return calls


def collect(path: Path, seconds: float) -> None:
    from kernelbench.measure import environment
    from kernelbench.measure.ceilings import calibrate
    from kernelbench.measure.probes import Probe
    from kernelbench.measure.sampling import sample
    from kernelbench.measure.timer import CudaClock

    calls = pairs()
    clock = CudaClock(environment.device("cuda"))
    clock.overhead_ns = calibrate(clock).ns
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
            taken = sample(parts, clock, Measure(), stays=(0, len(parts) - 1))
            found[name].append(
                {t.name: t.blocks_ns if t.held else None for t in taken} | {"stop": taken[1].stop}
            )
    path.write_bytes(packed({"overhead_ns": clock.overhead_ns, "jobs": found}))


def packed(facts: dict[str, Any]) -> bytes:
    """A line of JSON with the length of each block of samples in its place, and of all samples the
    different ones; then, in 16 bits each, which of these every sample is. A clock has few."""
    samples: list[int] = []

    def lengths(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: lengths(part) for name, part in value.items()}
        if isinstance(value, list) and value and isinstance(value[0], int):
            samples.extend(value)
            return len(value)
        return [lengths(part) for part in value] if isinstance(value, list) else value

    head = {"facts": facts | {"jobs": lengths(facts["jobs"])}, "values": sorted(set(samples))}
    number = {value: i for i, value in enumerate(head["values"])}
    numbers = array.array("H", map(number.__getitem__, samples))
    return lzma.compress(json.dumps(head).encode() + b"\n" + numbers.tobytes(), preset=9)


def unpacked(content: bytes) -> dict[str, Any]:
    """What `packed` was given."""
    line, _, rest = lzma.decompress(content).partition(b"\n")
    head = json.loads(line)
    samples = iter([head["values"][i] for i in array.array("H", rest)])

    def blocks(part: Any) -> Any:
        return [[next(samples) for _ in range(n)] for n in part] if isinstance(part, list) else part

    facts: dict[str, Any] = head["facts"]
    facts["jobs"] = {
        name: [{k: blocks(v) for k, v in job.items()} for job in jobs]
        for name, jobs in facts["jobs"].items()
    }
    return facts


def load(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The jobs by kernel, of every part the blocks less the overhead."""
    facts = unpacked(path.read_bytes())
    return {
        name: [
            {k: less(v, facts["overhead_ns"]) for k, v in job.items() if k != "stop" and v}
            for job in jobs
        ]
        for name, jobs in facts["jobs"].items()
    }


@dataclass
class Verdict:
    """What the comparisons of one call came to."""

    us: float
    widths: list[float] = field(default_factory=list)
    planted: list[float] = field(default_factory=list)
    covered: int = 0
    declared: int = 0
    found: int = 0

    def __str__(self) -> str:
        planted = f"{(median(self.planted) - 1) * 100:.2f} %, {self.found}" if self.planted else "-"
        return (
            f"{self.us:8.2f} {len(self.widths):4} {self.covered / len(self.widths):6.3f} "
            f"{self.declared:3} {median(self.widths):7.3f}  {planted}"
        )


def verdict(jobs: list[dict[str, Any]]) -> Verdict:
    made = Verdict(median(ns for parts in jobs for block in parts["A"] for ns in block) / 1e3)
    for parts in jobs:
        floor = noise_floor((parts["A"], parts['A"']))
        same = ratio_interval(parts["A"], parts["A'"])
        made.covered += same.lo <= 1 <= same.hi
        made.declared += different(same, floor)
        made.widths.append((same.hi - same.lo) / 2 * 100)
        if "B" in parts:
            more = ratio_interval(parts["B"], parts["A"])
            made.planted.append(more.mid)
            made.found += different(more, floor)
    return made


def judge(paths: list[Path]) -> None:
    """A line a call, and the totals that are asked for."""
    jobs: dict[str, list[dict[str, Any]]] = {}
    for path in paths:
        for name, more in load(path).items():
            jobs.setdefault(name, []).extend(more)
    made = {name: verdict(of) for name, of in jobs.items()}
    print("call, median us, jobs, covered, declared different, half-width %, planted, found")
    for name, one in made.items():
        print(f"{name:24} {one}")
    long = [one for one in made.values() if one.us >= 20]
    for name, some in (("all", list(made.values())), ("20 us and more", long)):
        n = sum(len(one.widths) for one in some)
        covered, declared = (sum(getattr(o, w) for o in some) for w in ("covered", "declared"))
        print(
            f"{name}: covered {covered}/{n} = {covered / n:.3f}, declared different "
            f"{declared / n:.3f}, half-width {median(w for o in some for w in o.widths):.3f} %, "
            f"planted found {sum(o.found for o in some)}/{sum(len(o.planted) for o in some)}"
        )


def less(blocks: list[list[int]], overhead: int) -> list[list[int]]:
    return [[max(ns - overhead, 0) for ns in block] for block in blocks]


def different(interval: Any, floor: float) -> bool:
    """What a table prints as a difference."""
    return (interval.lo > 1 or interval.hi < 1) and abs(interval.mid - 1) > floor


if __name__ == "__main__":
    verb, files = sys.argv[1], sys.argv[2:]
    if verb == "collect":
        collect(Path(files[0]), float(files[1]) if files[1:] else 600.0)
    else:
        judge([Path(file) for file in files])
