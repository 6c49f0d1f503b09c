"""Five processes, one after another: do they read the same medians?

python processes.py OUT.csv      on a GPU
"""

import csv
import json
import subprocess
import sys
from pathlib import Path
from statistics import median

from kernels import KERNELS

PROCESSES = 5


def one() -> None:
    """Print a line of JSON: median and flags by call."""
    from kernelbench.measure import environment
    from kernelbench.measure.ceilings import calibrate
    from kernelbench.measure.probes import Probe
    from kernelbench.measure.sampling import sample
    from kernelbench.measure.telemetry import Telemetry
    from kernelbench.measure.timer import CudaClock
    from kernelbench.spec import Measure

    clock = CudaClock(environment.device("cuda"))
    overhead, telemetry = calibrate(clock), Telemetry.open(environment.gpu_uuid())
    found = {}
    for name, (make, _) in KERNELS.items():
        telemetry.reset()
        [taken] = sample([Probe(name, make())], clock, Measure(), after_round=telemetry.sample)
        us = (median(taken.samples) - overhead.ns) / 1e3
        flags = (*telemetry.flags(), *(() if taken.held else ("ungated",)))
        found[name] = [us, ";".join(flags), telemetry.facts().get("sm_mhz")]
    print(json.dumps({"overhead_ns": overhead.ns, "calls": found}))


def main(path: Path) -> None:
    runs = []
    for _ in range(PROCESSES):
        command = [sys.executable, __file__, "--one"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    print("overhead_ns", [run["overhead_ns"] for run in runs])
    long, beyond = 0, []
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        times = [f"us_{i}" for i in range(PROCESSES)]
        writer.writerow(["call", *times, "farthest_pct", "flags", "sm_mhz"])
        for name in KERNELS:
            us = [run["calls"][name][0] for run in runs]
            flags = {flag for run in runs for flag in run["calls"][name][1].split(";") if flag}
            farthest = max(abs(t / median(us) - 1) for t in us) * 100
            mhz = [run["calls"][name][2] for run in runs]
            row = [*(f"{t:.3f}" for t in us), f"{farthest:.2f}", ";".join(sorted(flags)), mhz]
            writer.writerow([name, *row])
            print(name, *row)
            if median(us) >= 20:
                long += 1
                beyond += [name] if farthest > 1 and not flags else []
    print(
        f"medians of 20 us and more within 1 %, or flagged: {long - len(beyond)} of {long}", beyond
    )


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        one()
    else:
        main(Path(sys.argv[1]))
