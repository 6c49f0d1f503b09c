"""The clocks of a run against other instruments, on the same calls.

    python instruments.py OUT.csv      on a GPU; with ncu on the PATH its column is filled, too

event_us     gated events, cold L2, less the calibrated overhead: what a run calls median_us
kernel_us    CUPTI span less what CUPTI slowed the call by: what a run calls kernel_us
cupti_us     the span as CUPTI, through torch.profiler, gave it
traced_us    event pairs around the very calls of cupti_us, less the overhead calibrated so
busy_us      the sum of the call's kernels in torch.profiler's trace of a gated loop, gaps left out
ncu_us       the sum of gpu__time_duration over the call's kernels, the GPU's clocks left alone
do_bench_us, do_bench_graph_us    triton.testing's medians
"""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from kernels import KERNELS
from ncu import by_range

NCU_REPEATS = 5
OURS = ("_claim", "_write_and_release", "_read", "spin_kernel", "FillFunctor")  # between the calls


def measured() -> Iterator[dict[str, Any]]:
    from triton.testing import do_bench, do_bench_cudagraph

    from kernelbench.measure import environment
    from kernelbench.measure.ceilings import calibrate
    from kernelbench.measure.probes import Probe
    from kernelbench.measure.timer import CudaClock
    from kernelbench.numbers.times import kernel_ns
    from kernelbench.spec import Timing

    clock = CudaClock(environment.device("cuda"))
    overhead = calibrate(clock)
    print(overhead)
    for name, (make, bound) in KERNELS.items():
        call = make()
        probe = Probe(name, call)
        blocks = tuple(clock.batch(probe, 8).samples_ns for _ in range(16))
        spans = clock.kernel_ns([probe], 64)[name]
        timing = Timing(
            timer="gated",
            blocks_ns=blocks,
            overhead_ns=overhead.ns,
            traced_overhead_ns=overhead.traced_ns,
            kernel_ns=spans.ns,
            kernel_event_ns=spans.event_ns,
        )
        busy, kernels = traced(clock, call)
        yield {
            "call": name,
            "bound": bound,
            "kernels": kernels,
            "event_us": median(ns for b in blocks for ns in b) / 1e3 - overhead.ns / 1e3,
            "kernel_us": (kernel_ns(timing) or 0) / 1e3,
            "cupti_us": median(spans.ns) / 1e3,
            "traced_us": (median(spans.event_ns) - overhead.traced_ns) / 1e3,
            "busy_us": busy,
            "do_bench_us": do_bench(call, return_mode="median") * 1e3,
            "do_bench_graph_us": do_bench_cudagraph(call, return_mode="median") * 1e3,
        }
        torch.cuda.empty_cache()


def traced(clock: Any, call: Any, n: int = 10) -> tuple[float, int]:
    """µs that the call's kernels ran, and how many there are, by torch.profiler alone."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        clock.gate(20_000_000)
        for _ in range(n):
            clock.flush()
            call()
        torch.cuda.synchronize()
    found = [e for e in profile.events() if not any(name in e.name for name in OURS)]
    found = [e for e in found if e.device_type == torch.autograd.DeviceType.CUDA]
    return sum(e.device_time for e in found) / n, round(len(found) / n)


def under_ncu() -> None:
    """What ncu is to look at: each call a few times in a range of its own."""
    from kernelbench.measure import environment
    from kernelbench.measure.flush import ColdL2

    flush = ColdL2(environment.device("cuda"))
    for number, (make, _) in enumerate(KERNELS.values()):
        call = make()
        call()
        for _ in range(NCU_REPEATS):
            flush()
            torch.cuda.synchronize()
            torch.cuda.nvtx.range_push(f"call_{number}")
            call()
            torch.cuda.nvtx.range_pop()
            torch.cuda.synchronize()
        torch.cuda.empty_cache()


def by_ncu() -> dict[str, float]:
    """Median µs a call: its kernels' durations, added up."""
    times = {}
    for number, ns in by_range(__file__, "call_", "gpu__time_duration.sum").items():
        each = len(ns) // NCU_REPEATS
        sums = [sum(ns[i * each : (i + 1) * each]) for i in range(NCU_REPEATS)]
        times[list(KERNELS)[int(number)]] = median(sums) / 1e3
    return times


def near(a: float, b: float) -> bool:
    """Within 3 % or 0.7 µs."""
    return abs(a - b) <= max(0.7, 0.03 * b)


def judge(rows: list[dict[str, Any]]) -> None:
    """Each clock of a run against the instrument that does not change what it measures."""
    offset = rows[0]["ncu_us"] - rows[0]["kernel_us"] if rows[0]["ncu_us"] else 0.0
    print(f"ncu reads {offset:.2f} us more than CUPTI on a kernel that does nothing")
    same = [(r["traced_us"], r["cupti_us"]) for r in rows]
    print(f"events against CUPTI on the same calls: {agree(same)}")
    memory = [r for r in rows if r["bound"] == "memory" and r["kernels"] == 1 and r["ncu_us"]]
    for column in ("event_us", "kernel_us"):
        print(
            f"{column} against ncu: {agree([(r[column], r['ncu_us']) for r in memory])};", end=" "
        )
        less = [(r[column], r["ncu_us"] - offset) for r in memory]
        print(f"less its {offset:.2f} us on nothing: {agree(less)}")
    print(f"event_us against kernel_us: {agree([(r['event_us'], r['kernel_us']) for r in rows])}")


def agree(pairs: list[tuple[float, float]]) -> str:
    return f"{sum(near(a, b) for a, b in pairs)} of {len(pairs)} within 3 % or 0.7 us"


def main(path: Path) -> None:
    rows = list(measured())
    ncu = by_ncu()
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "ncu_us"])
        writer.writeheader()
        for row in rows:
            row["ncu_us"] = ncu.get(row["call"])
            writer.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()})
            print(
                " ".join(f"{v:9.2f}" if isinstance(v, float) else f"{v!s:24}" for v in row.values())
            )
    judge(rows)


if __name__ == "__main__":
    if sys.argv[1] == "--under-ncu":
        under_ncu()
    else:
        main(Path(sys.argv[1]))
