"""When to measure whom, and when to stop: batches of the job's providers, interleaved.

The order of a round is drawn anew for each, so that drift of clocks and temperature hits all alike,
and so that nobody always follows the same neighbour: under a power limit that decides its time. The
baseline is a part twice: what the two disagree by is the job's noise floor.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from kernelbench.numbers.statistics import converged, median_interval, plateau
from kernelbench.spec import Measure

MIN_ROUNDS = 16  # what a bootstrap over rounds needs to cover 95 % (results/h200/measuring)


@dataclass(frozen=True)
class Batch:
    """Samples of one provider in ns, back to back; held: whether the gate provably held.

    lead: calls before them that are no samples. mhz: the SMs' clock right after; 0 if not known.
    """

    samples_ns: tuple[int, ...]
    held: bool = True
    lead: int = 0
    mhz: int = 0


class Part(Protocol):
    """What a sampler needs of a workload: its name."""

    @property
    def name(self) -> str: ...


class Clock(Protocol):
    """Takes n samples of one workload. The GPU's, the host's, or a script in a test."""

    def batch(self, part: Any, n: int) -> Batch: ...


@dataclass
class Sampled:
    """Everything that was read of one part."""

    name: str
    blocks_ns: list[tuple[int, ...]] = field(default_factory=list)
    places: list[int] = field(default_factory=list)  # of each block in the order of its round
    held: bool = True
    seconds: float = 0.0
    stop: str = ""
    widths: list[float] = field(default_factory=list)  # of the interval, after each block
    clocks_mhz: list[int] = field(default_factory=list)
    lead: int = 0  # the most of any block

    @property
    def samples(self) -> list[int]:
        return [ns for block in self.blocks_ns for ns in block]

    def take(self, batch: Batch, place: int, seconds: float) -> None:
        self.blocks_ns.append(batch.samples_ns)
        self.places.append(place)
        self.held = self.held and batch.held
        n = len(batch.samples_ns)
        self.seconds += seconds * n / (n + batch.lead)  # what led them has no share in the limit
        self.lead = max(self.lead, batch.lead)
        self.clocks_mhz.append(batch.mhz)
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
        """Samples of the next block: `block`, less where the time or the count would run over."""
        left = settings.max_samples - len(self.samples)
        block = settings.block
        if self.blocks_ns:
            each = self.seconds / len(self.samples)
            block = int(settings.max_seconds / MIN_ROUNDS / each) if each > 0 else block
        return max(1, min(settings.block, block, left))


def sample(
    parts: Sequence[Part],
    clock: Clock,
    settings: Measure,
    *,
    seed: int | str = 0,
    stays: Sequence[int] = (),
    tell: Callable[[str], None] = lambda name: None,
    after_batch: Callable[[int], None] = lambda i: None,
    after_round: Callable[[], None] = lambda: None,
    now: Callable[[], float] = time.perf_counter,
) -> list[Sampled]:
    """Sample every part until there is evidence to stop; one Sampled a part, in their order.

    seed: of the orders. after_batch: is told the index of the part that was just sampled.
    stays: indices of parts (the baseline and its second run) that go on as long as any other
    does, so that every block has its counterpart of the same round.
    """
    taken = [Sampled(part.name) for part in parts]
    groups = [list(range(len(parts)))] if settings.interleave else [[i] for i in range(len(parts))]
    orders = random.Random(seed)
    for group in groups:
        running = set(group)
        while running:
            awake = [i for i in group if i in running or i in stays]
            orders.shuffle(awake)
            for place, i in enumerate(awake):
                if len(taken[i].samples) >= settings.max_samples:
                    continue
                tell(parts[i].name)
                start = now()
                batch = clock.batch(parts[i], taken[i].size(settings))
                taken[i].take(batch, place, now() - start)
                after_batch(i)
            after_round()
            for i in sorted(running):
                taken[i].stop = taken[i].reason_to_stop(settings, MIN_ROUNDS)
                if taken[i].stop:
                    running.discard(i)
    return taken
