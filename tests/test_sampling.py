"""The order of batches, and when to stop; on scripted clocks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count, pairwise
from typing import Any

import pytest

from kernelbench.measure.sampling import MIN_ROUNDS, Batch, PartSamples, sample
from kernelbench.spec import Measure


@dataclass
class Part:
    name: str


@dataclass
class Script:
    """Answers each part's samples from its own iterator; a sample takes `seconds[name]`."""

    samples: dict[str, Iterator[int]]
    seconds: dict[str, float] = field(default_factory=dict)
    time: float = 0.0
    order: list[str] = field(default_factory=list)
    sizes: dict[str, list[int]] = field(default_factory=dict)
    held: Callable[[str, int], bool] = lambda name, batch: True

    def batch(self, part: Any, n: int) -> Batch:
        self.order.append(part.name)
        self.sizes.setdefault(part.name, []).append(n)
        self.time += n * self.seconds.get(part.name, 1e-4)
        held = self.held(part.name, len(self.sizes[part.name]))
        return Batch(tuple(next(self.samples[part.name]) for _ in range(n)), held)

    def now(self) -> float:
        return self.time


def steady(ns: int = 1000) -> Iterator[int]:
    while True:
        yield ns


def noisy(ns: int = 1000) -> Iterator[int]:
    """± 20 % for ever: the interval never gets narrow, and never stops narrowing either."""
    for i in count():
        yield int(ns * (0.8 + 0.4 * ((i * 0.618034) % 1)))


def two_levels() -> Iterator[int]:
    """As many samples at one level as at another: a plateau."""
    for i in count():
        yield 1000 + 100 * (i % 2)


def parts(names: str) -> list[Part]:
    return [Part(name) for name in names]


def go(
    script: Script, names: str, settings: Measure | None = None, **more: Any
) -> list[PartSamples]:
    return sample(parts(names), script, settings or Measure(), now=script.now, **more)


def rounds(script: Script, size: int) -> list[str]:
    found = "".join(script.order)
    return [found[i : i + size] for i in range(0, len(found), size)]


def test_the_order_of_each_round_is_drawn_anew_and_told() -> None:
    script = Script({name: noisy() for name in "ABC"})
    taken = go(script, "ABC", Measure(block=1, min_samples=512, max_seconds=100), seed=1)
    found = rounds(script, 3)
    assert len(found) == 512
    assert {"".join(sorted(each)) for each in found} == {"ABC"}
    for each in ("ABC", "ACB", "BAC", "BCA", "CAB", "CBA"):
        assert 55 < found.count(each) < 120
    for name, one in zip("ABC", taken, strict=True):
        assert one.places == [each.index(name) for each in found]
    after = [later[0] for earlier, later in pairwise(found) if earlier[2] == "A"]
    assert 0.2 < after.count("B") / len(after) < 0.5  # nor across two rounds


def test_orders_follow_from_the_seed() -> None:
    def order(seed: int) -> list[str]:
        script = Script({name: steady() for name in "ABCD"})
        go(script, "ABCD", seed=seed)
        return script.order

    assert order(3) == order(3) != order(4)


def test_the_baseline_again_is_a_part_of_its_own_and_stays_as_long_as_any_other() -> None:
    script = Script({"A": steady(), "B": noisy()})
    taken = go(script, "ABA", lasting=(0, 2))
    assert {"".join(sorted(each)) for each in rounds(script, 3)} == {"AAB"}
    first, other, again = taken
    assert (first.stop, other.stop) == ("interval", "samples")
    assert len(first.blocks_ns) == len(other.blocks_ns) == len(again.blocks_ns)


def test_a_part_that_stays_ends_with_the_last() -> None:
    script = Script({"A": steady(), "B": steady()})
    taken = go(script, "ABA", lasting=(0, 2))
    assert [len(t.blocks_ns) for t in taken] == [MIN_ROUNDS] * 3
    script = Script({"A": steady(), "Z": noisy(), "B": steady()})
    first, other, again = go(script, "ABZ", Measure(max_samples=160), lasting=(0, 2))
    assert [len(t.blocks_ns) for t in (first, other, again)] == [20, MIN_ROUNDS, 20]


def test_a_part_that_has_its_evidence_leaves_and_the_rest_go_on() -> None:
    script = Script({"A": steady(), "B": noisy()})
    steady_one, noisy_one = go(script, "AB")
    assert (steady_one.stop, len(steady_one.blocks_ns)) == ("interval", MIN_ROUNDS)
    assert noisy_one.stop == "samples"
    assert len(noisy_one.samples) == 512


def test_stops_on_a_plateau() -> None:
    [taken] = go(Script({"A": two_levels()}), "A")
    assert taken.stop == "plateau"
    assert 16 <= len(taken.blocks_ns) < 52


def test_stops_when_time_is_up_but_not_below_the_least_samples() -> None:
    script = Script({"A": noisy()}, {"A": 0.05})
    [taken] = go(script, "A", Measure(max_seconds=2.0))
    assert taken.stop == "time"
    assert 2.0 <= taken.seconds < 2.3
    [taken] = go(Script({"A": noisy()}, {"A": 5.0}), "A")
    assert (taken.stop, len(taken.samples)) == ("time", 10)


@pytest.mark.parametrize("most", [10, 25, 512])
def test_never_more_than_the_most_samples(most: int) -> None:
    script = Script({"A": noisy(), "B": noisy(2000)})
    taken = go(script, "ABA", Measure(max_samples=most), lasting=(0, 2))
    assert [len(t.samples) for t in taken] == [most] * 3


def test_a_slow_part_gets_small_blocks_so_that_it_takes_part_in_enough_rounds() -> None:
    script = Script({"A": noisy(), "S": noisy()}, {"S": 0.05})
    _, slow = go(script, "AS")
    assert script.sizes["S"][:3] == [8, 2, 2]
    assert len(slow.blocks_ns) >= MIN_ROUNDS
    assert script.sizes["A"][:3] == [8, 8, 8]


def test_not_interleaved_each_part_is_measured_in_one_go() -> None:
    script = Script({name: steady() for name in "AB"})
    taken = go(script, "ABA", Measure(interleave=False), lasting=(0, 2))
    assert "".join(script.order) == "".join(name * MIN_ROUNDS for name in "ABA")
    assert all(t.stop == "interval" for t in taken)


def test_one_batch_that_was_not_held_makes_its_part_ungated() -> None:
    script = Script({name: steady() for name in "AB"}, held=lambda name, n: (name, n) != ("B", 3))
    taken = go(script, "AB")
    assert [t.held for t in taken] == [True, False]


def test_a_part_that_raises_ends_the_sampling_and_was_announced() -> None:
    class Broken(Script):
        def batch(self, part: Any, n: int) -> Batch:
            if part.name == "B":
                raise RuntimeError("no")
            return super().batch(part, n)

    told: list[str] = []
    with pytest.raises(RuntimeError, match="no"):
        go(Broken({"A": steady()}), "AB", tell=told.append)
    assert told == ["A", "B"]


def test_something_happens_after_every_round() -> None:
    rounds: list[int] = []
    script = Script({"A": steady(), "B": steady()})
    go(script, "AB", after_round=lambda: rounds.append(len(script.order)))
    assert rounds == list(range(2, 2 * MIN_ROUNDS + 1, 2))


def test_a_clock_may_return_fewer_samples_than_asked() -> None:
    class Short(Script):
        def batch(self, part: Any, n: int) -> Batch:
            return super().batch(part, 1)

    [taken] = go(Short({"A": steady()}), "A")
    assert (taken.stop, len(taken.samples)) == ("interval", MIN_ROUNDS)
