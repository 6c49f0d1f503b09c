"""Runs of one build that never ran: a real run's rounds drawn anew, and noise from run to run.

Each simulated run multiplies every row by its own lognormal factor (`apart`), all rows by a common
one (a third of it), and each row's rounds by a slow drift; and adds what its own calibration of
the clock was off by. It is a simulation: what real runs do is tested in test_compare_aa.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from kernelbench.compare.sides import Run, Side
from kernelbench.spec import RunRecord

CALIBRATION_NS = 25.0


def simulated(
    run: Run,
    random: np.random.Generator,
    number: int,
    *,
    apart: float = 0.003,
    slower: Callable[[RunRecord], float] = lambda record: 1.0,
) -> Run:
    """Another run of the build. slower: by what a record's times are multiplied."""
    common = random.lognormal(0, apart / 3)
    off = random.normal(0, CALIBRATION_NS)
    name = f"run{number}"
    records = [
        _again(record, random, common * random.lognormal(0, apart) * slower(record), off, name)
        for record in run.records
    ]
    return Run(Path(name), run.manifest, tuple(records))


def _again(
    record: RunRecord, random: np.random.Generator, factor: float, off: float, name: str
) -> RunRecord:
    timing = record.timing
    if timing is None:
        return replace(record, run_id=name)
    rounds = len(timing.blocks_ns)
    picks = random.integers(0, rounds, rounds)
    drift = 1 + random.normal(0, 0.001) * np.linspace(-1, 1, rounds)

    def drawn(blocks: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
        return tuple(
            tuple(
                round((ns - timing.overhead_ns) * factor * drift[place] + off) + timing.overhead_ns
                for ns in blocks[min(pick, len(blocks) - 1)]
            )
            for place, pick in enumerate(picks[: len(blocks)])
        )

    changed = replace(timing, blocks_ns=drawn(timing.blocks_ns), again_ns=drawn(timing.again_ns))
    return replace(record, run_id=name, timing=changed)


def side(name: str, runs: Sequence[Run]) -> Side:
    return Side(name, tuple(runs))
