"""Do the two halves of a measurement agree? Of runs that are kept, without a GPU.

    python studies/measuring/halves.py RUN...

Each ratio of two providers inside one process, and each median, is formed from the earlier and
from the later half of its rounds; they disagree where the two 95 % intervals do not meet. Of calls
whose rounds are independent, fewer than 5 in 1000 do. Rows whose card was slowed by its power or
thermal limit are counted apart. The interval of a half of eight rounds is all that these said: it
sees a shift of three times what rounds scatter by in 6 of 10 cases, of twice that in 2 of 10
(simulated); by samples, which rounds make alike, it sees far smaller ones, and some that are none.
"""

import sys
from collections import Counter
from itertools import combinations, product

from kernelbench import store
from kernelbench.numbers.statistics import (
    Interval,
    median_interval,
    median_of_rounds,
    ratio_interval,
)
from kernelbench.numbers.times import blocks_ns
from kernelbench.spec import RunRecord

LEAST = 8  # rounds of a half
WHAT = ("medians", "medians, by samples", "ratios")


def groups(records: list[RunRecord]) -> list[list[RunRecord]]:
    """Those of each measurement."""
    found: dict[str, list[RunRecord]] = {}
    for record in records:
        if record.timing and record.timing.timer == "gated" and record.group:
            found.setdefault(record.group, []).append(record)
    return list(found.values())


def halves(*records: RunRecord) -> list[list[list[list[int]]]]:
    """The earlier and the later rounds of each; nothing where there are too few to tell."""
    blocks = [blocks_ns(record.timing) for record in records if record.timing]
    rounds = min(map(len, blocks))
    if rounds < 2 * LEAST:
        return []
    return [[each[:rounds][part] for each in blocks] for part in parts(rounds)]


def parts(rounds: int) -> tuple[slice, slice]:
    return slice(rounds // 2), slice(rounds // 2, None)


def apart(one: Interval, two: Interval) -> bool:
    return one.hi < two.lo or two.hi < one.lo


def main(runs: list[str]) -> None:
    print("run, card, what, rows, halves that disagree, in %")
    for run in runs:
        counts: Counter[tuple[str, str, bool]] = Counter()
        for group in groups(store.read_apart(run)):
            slowed = any(f.startswith("throttled") for record in group for f in record.flags)
            card = "slowed" if slowed else "free"
            for record in group:
                if found := halves(record):
                    ends = (median_of_rounds(blocks) for (blocks,) in found)
                    counts[card, "medians", apart(*ends)] += 1
                    alone = (
                        median_interval([ns for b in blocks for ns in b]) for (blocks,) in found
                    )
                    counts[card, "medians, by samples", apart(*alone)] += 1
            for pair in combinations(group, 2):
                if found := halves(*pair):
                    counts[card, "ratios", apart(*(ratio_interval(*each) for each in found))] += 1
        name = run.rstrip("/").split("/")[-1]
        for card, what in product(("slowed", "free"), WHAT):
            bad, rows = counts[card, what, True], sum(counts[card, what, b] for b in (True, False))
            share = 100 * bad / rows if rows else 0.0
            print(f"{name}, {card}, {what}, {rows}, {bad}, {share:.1f}")


if __name__ == "__main__":
    main(sys.argv[1:])
