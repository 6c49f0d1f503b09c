"""Interleaves the batches of a job's providers, and decides when to stop.

The order is drawn anew for each round, so that drift of clocks and temperature affects all equally,
and so that no provider always follows the same neighbour, which under a power limit determines its
time. The baseline is a part twice: the difference between the two is the job's noise floor.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from kernelbench.numbers.statistics import converged, median_interval, plateau
from kernelbench.spec import Measure

MIN_ROUNDS = 16  # a bootstrap over rounds needs these to cover 95 % (results/h200/measuring)


@dataclass(frozen=True)
class Batch:
    """Samples of one provider in ns, back to back.

    held: whether the gate provably held. lead: calls before them that are no samples. mhz: the SM
    clock right after them; 0 if unknown. ranks: those of each rank, where several make a call
    together; the longest of each call is the sample.
    """

    samples_ns: tuple[int, ...]
    held: bool = True
    lead: int = 0
    mhz: int = 0
    ranks: tuple[tuple[int, ...], ...] = ()


class Part(Protocol):
    """A workload as the sampler needs it: with a name."""

    @property
    def name(self) -> str: ...


class Clock(Protocol):
    """Takes n samples of one workload: the GPU's clock, the host's, or a script in a test."""

    def batch(self, part: Any, n: int) -> Batch: ...


@dataclass
class PartSamples:
    """All samples of one part, in blocks.

    places: of each block in the order of its round. widths: `Interval.relative` after each block.
    lead: the largest of any block. ranks: of each block, each rank's own. stop: why sampling ended.
    """

    name: str
    blocks_ns: list[tuple[int, ...]] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    held: bool = True
    seconds: float = 0.0
    stop: str = ""
    widths: list[float] = field(default_factory=list)
    clocks_mhz: list[int] = field(default_factory=list)
    lead: int = 0
    ranks: list[tuple[tuple[int, ...], ...]] = field(default_factory=list)

    @property
    def samples(self) -> list[int]:
        return [ns for block in self.blocks_ns for ns in block]

    def add(self, batch: Batch, place: int, seconds: float) -> None:
        """Add a batch. place: in its round. seconds: that it took, leading calls included."""
        self.blocks_ns.append(batch.samples_ns)
        self.places.append(place)
        self.held = self.held and batch.held
        n = len(batch.samples_ns)
        self.seconds += seconds * n / (n + batch.lead)  # without the leading calls
        self.lead = max(self.lead, batch.lead)
        self.clocks_mhz.append(batch.mhz)
        self.ranks += [batch.ranks] if batch.ranks else []
        self.widths.append(median_interval(self.samples).relative)

    def reason_to_stop(self, settings: Measure, min_rounds: int) -> str:
        """`interval`, `plateau`, `samples` or `time`; empty to go on."""
        samples = self.samples
        if len(samples) >= settings.max_samples:
            return "samples"
        if self.seconds >= settings.max_seconds and len(samples) >= settings.min_samples:
            return "time"
        if len(samples) < settings.min_samples or len(self.blocks_ns) < min_rounds:
            return ""
        if converged(samples, settings.interval_pct):
            return "interval"
        return "plateau" if plateau(self.widths) else ""

    def size(self, settings: Measure) -> int:
        """Samples of the next block: `block`, fewer where time or count would exceed a limit."""
        left = settings.max_samples - len(self.samples)
        block = settings.block
        if self.blocks_ns:
            per_sample = self.seconds / len(self.samples)
            block = int(settings.max_seconds / MIN_ROUNDS / per_sample) if per_sample > 0 else block
        return max(1, min(settings.block, block, left))


def sample(
    parts: Sequence[Part],
    clock: Clock,
    settings: Measure,
    *,
    seed: int | str = 0,
    lasting: Sequence[int] = (),
    tell: Callable[[str], None] = lambda name: None,
    after_batch: Callable[[int], None] = lambda i: None,
    after_round: Callable[[], None] = lambda: None,
    now: Callable[[], float] = time.perf_counter,
) -> list[PartSamples]:
    """Sample every part until there is evidence to stop; one PartSamples a part, in their order.

    seed: of the orders. lasting: indices of parts (the baseline and its second run) that go on as
    long as any other does, so that every block has a counterpart in the same round.
    tell: is called with the name of a part before its batch, after_batch with its index after it.
    """
    results = [PartSamples(part.name) for part in parts]
    groups = [list(range(len(parts)))] if settings.interleave else [[i] for i in range(len(parts))]
    orders = random.Random(seed)
    for group in groups:
        running = set(group)
        while running:
            active = [i for i in group if i in running or i in lasting]
            orders.shuffle(active)
            for place, i in enumerate(active):
                if len(results[i].samples) >= settings.max_samples:
                    continue
                tell(parts[i].name)
                start = now()
                batch = clock.batch(parts[i], results[i].size(settings))
                results[i].add(batch, place, now() - start)
                after_batch(i)
            after_round()
            for i in sorted(running):
                results[i].stop = results[i].reason_to_stop(settings, MIN_ROUNDS)
                if results[i].stop:
                    running.discard(i)
    return results
