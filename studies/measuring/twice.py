"""Does the baseline agree with its own second run? Of kept runs, without a GPU.

    python studies/measuring/twice.py RUN...

Each job runs its baseline twice in every round (A and A'): by how much do the two differ, and does
the 95 % interval of their ratio cover 1? judged: timed calls of a baseline that were compared with
the proven answer between its samples (median over jobs; 0 before that was done).
"""

import sys
from statistics import median

from kernelbench import store
from kernelbench.numbers.statistics import ratio_interval
from kernelbench.numbers.times import again_ns, blocks_ns


def main(runs: list[str]) -> None:
    print("run, jobs, judged, covers 1 %, median difference %, largest %")
    for run in runs:
        off, covered, judged = [], [], []
        for record in store.read_apart(run):
            timing = record.timing
            if timing and timing.timer == "gated" and timing.again_ns:
                ratio = ratio_interval(again_ns(timing), blocks_ns(timing))
                off.append(abs(ratio.mid - 1) * 100)
                covered.append(ratio.lo <= 1 <= ratio.hi)
                judged.append(record.judged_calls or 0)
        if off:
            name = run.rstrip("/").split("/")[-1]
            share = 100 * sum(covered) / len(covered)
            print(
                f"{name}, {len(off)}, {median(judged):.0f}, {share:.1f}, {median(off):.2f}, "
                f"{max(off):.2f}"
            )


if __name__ == "__main__":
    main(sys.argv[1:])
