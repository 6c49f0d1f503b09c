"""Runs that never ran: real runs of one build drawn with replacement, and their rounds drawn anew.

It is a simulation. What differs from run to run comes with the run that is drawn; what differs
within a run comes with the rounds, which all rows of a job draw alike, so that a drift that hit
them together still does. What six real runs do as they are is tested beside it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from kernelbench.compare.sides import Run, Side
from kernelbench.spec import RunRecord

Slower = Callable[[RunRecord], float]
Blocks = tuple[tuple[int, ...], ...]


def as_measured(record: RunRecord) -> float:
    return 1.0


def drawn_side(
    name: str, runs: Sequence[Run], count: int, random: np.random.Generator, slower: Slower
) -> Side:
    """A side of `count` runs. slower: by what the times of a record are multiplied."""
    picked = [runs[place] for place in random.integers(0, len(runs), count)]
    return Side(
        name, tuple(_again(run, f"{name}{n}", random, slower) for n, run in enumerate(picked))
    )


def _again(run: Run, name: str, random: np.random.Generator, slower: Slower) -> Run:
    seeds = {record.group: int(random.integers(2**31)) for record in run.records}
    records = [
        scaled(_redrawn(record, seeds[record.group]), slower(record)) for record in run.records
    ]
    return Run(Path(name), run.manifest, tuple(replace(r, run_id=name) for r in records))


def _redrawn(record: RunRecord, seed: int) -> RunRecord:
    assert record.timing is not None
    rounds = len(record.timing.blocks_ns)
    picks = np.random.default_rng(seed).integers(0, rounds, rounds)

    def drawn(blocks: Blocks) -> Blocks:
        return tuple(blocks[pick] for pick in picks) if blocks else ()

    changed = replace(
        record.timing,
        blocks_ns=drawn(record.timing.blocks_ns),
        again_ns=drawn(record.timing.again_ns),
    )
    return replace(record, timing=changed)


def scaled(record: RunRecord, factor: float) -> RunRecord:
    """The record with its times multiplied, what the clock adds apart."""
    timing = record.timing
    assert timing is not None
    off = timing.overhead_ns

    def longer(blocks: Blocks) -> Blocks:
        return tuple(tuple(round((ns - off) * factor) + off for ns in block) for block in blocks)

    changed = replace(timing, blocks_ns=longer(timing.blocks_ns), again_ns=longer(timing.again_ns))
    return replace(record, timing=changed)
