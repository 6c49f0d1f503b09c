"""Blocks that begin in the state of the call itself, on a card that its limits slow."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from kernelbench.measure.sampling import Batch
from kernelbench.measure.telemetry import Telemetry
from kernelbench.measure.throttling import LEAD_NS, SteadyClock
from kernelbench.spec import Measure

SETTINGS = Measure(min_samples=16, max_samples=32, block=8, max_seconds=60)


@dataclass(frozen=True)
class Call:
    name: str
    power: float  # of the card's limit, that it draws


@dataclass
class Card:
    """One whose clock follows what ran on it: a tenth of the way a call.

    slow_from: the batch from which on its limit counts.
    """

    slow_from: int = 0
    lead_ns: int = 0
    state: float = 1.0  # the clock, of its highest
    batches: list[tuple[str, int]] = field(default_factory=list)

    def batch(self, part: Any, n: int) -> Batch:
        lead = 60 if self.lead_ns else 0
        times = []
        for _ in range(lead + n):
            wanted = min(1.0, 1 / part.power) if len(self.batches) >= self.slow_from else 1.0
            self.state += (wanted - self.state) / 10
            times.append(round(100_000 / self.state))
        self.batches.append((part.name, self.lead_ns))
        return Batch(tuple(times[lead:]), lead=lead)


class Nvml(Telemetry):
    """What NVML would tell of that card."""

    def __init__(self, card: Card) -> None:
        super().__init__("GPU-1")
        self.card = card

    def clock(self) -> tuple[int, bool]:
        return round(2000 * self.card.state), self.card.state < 0.99


PARTS = [Call("hot", 1.25), Call("cool", 0.5), Call("warm", 1.1)]


def medians(card: Card, steady: bool) -> dict[str, float]:
    clock = SteadyClock(card, Nvml(card) if steady else Telemetry(None))
    taken = clock.sample(PARTS, SETTINGS, seed=1)
    return {each.name: sorted(each.samples)[len(each.samples) // 2] / 1000 for each in taken}


def test_each_call_is_timed_in_the_state_that_it_keeps_the_card_in() -> None:
    alone = {"hot": 125.0, "cool": 100.0, "warm": 110.0}
    assert medians(Card(), steady=True) == pytest.approx(alone, rel=0.005)
    assert medians(Card(), steady=False) != pytest.approx(alone, rel=0.03)  # by its neighbours


def test_what_was_sampled_before_the_card_was_slowed_is_dropped() -> None:
    card = Card(slow_from=7)
    taken = SteadyClock(card, Nvml(card)).sample(PARTS, SETTINGS, seed=1)
    led = [lead for _, lead in card.batches]
    first = led.index(LEAD_NS)
    assert first == 9 and set(led[first:]) == {LEAD_NS}  # whole rounds of three
    assert all(each.lead == 60 for each in taken)
    assert sum(len(each.blocks_ns) for each in taken) == len(led) - first
    assert card.lead_ns == 0  # for whoever uses the clock next


def test_calls_that_were_judged_among_dropped_samples_do_not_count() -> None:
    @dataclass
    class Lot:
        timed: int = 59

    @dataclass(frozen=True)
    class Judged(Call):
        lot: Lot = field(default_factory=Lot)

    hot, cool = Judged("hot", 1.25), Judged("cool", 0.5)
    card = Card()
    SteadyClock(card, Nvml(card)).sample([hot, cool], SETTINGS, seed=1)
    assert (hot.lot.timed, cool.lot.timed) == (0, 0)
    free = Judged("free", 0.5)
    SteadyClock(Card(), Nvml(Card())).sample([free], SETTINGS, seed=1)
    assert free.lot.timed == 59


def test_a_card_at_its_full_clock_is_not_led() -> None:
    cool = [Call("one", 0.5), Call("two", 0.9)]
    card = Card()
    taken = SteadyClock(card, Nvml(card)).sample(cool, SETTINGS, seed=1)
    assert {lead for _, lead in card.batches} == {0}
    assert [each.clocks_mhz for each in taken] == [[2000] * len(each.blocks_ns) for each in taken]


def test_what_leads_a_block_has_no_share_in_the_time_limit() -> None:
    card, seconds = Card(), iter(range(0, 10_000, 68))
    settings = Measure(min_samples=8, max_samples=512, block=8, max_seconds=200)
    clock = SteadyClock(card, Nvml(card))
    hot = [Call("hot", 2.0)]
    (taken,) = clock.sample(hot, settings, now=lambda: next(seconds))
    assert taken.lead == 60
    assert taken.seconds / len(taken.blocks_ns) == pytest.approx(8, rel=0.01)  # of 68
