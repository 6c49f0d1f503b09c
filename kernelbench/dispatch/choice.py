"""Choices by a table: exact where a case was measured, else between measured ones, else what the
caller wants on a miss.

A choice that was made once is a look-up in a dictionary. Nothing is measured, but by whom the
caller hands over for that, when it is first asked for or, by `Monitor`, again.
"""

import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from typing import Literal

from kernelbench.dispatch.monitor import Decided, Monitor
from kernelbench.dispatch.table import Axis, Entry, FamilyTable, Option, Table, Where

OnMiss = Literal["baseline", "nearest", "error"]
ON_MISS: tuple[OnMiss, ...] = ("baseline", "nearest", "error")
How = Literal["forced", "off", "measured", "between", "nearest", "baseline"]
OPEN = "?"  # an axis that the caller does not know: such a case is a miss, and is not measured


class NoChoiceError(LookupError):
    """Nothing like the case was measured, and the caller wants to know."""


@dataclass(frozen=True)
class Choice:
    """What is to be used, and how it was found: `forced` by the user, `off` (the baseline, since
    choosing is off), `measured` (this very case), `between` measured ones, the `nearest`, or the
    `baseline`, as nothing like it was measured. speedup: against the baseline, where it is known.
    """

    provider: str
    how: How
    reason: str
    speedup: float | None = None


Measuring = Callable[[str, str, str, Mapping[str, Axis]], Entry | None]
Key = tuple[str, str, str, tuple[tuple[str, Axis], ...], tuple[str, ...]]


class Dispatch:
    """A table, as far as it holds here.

    here, sources: this machine, and the hash of each family's code, as they are now; entries of
        another machine or other code are stale: said once by `say`, and not used.
    on_miss: what to do where nothing like a case was measured: take the `baseline`, the `nearest`
        measured case, or raise NoChoiceError (`error`).
    forced: a provider by family that the user wants whatever was measured.
    enabled: whether to choose at all; else everything but what is forced is the baseline.
    measure: makes the entry of a case that is not in the table, when it is first asked for; None
        where it cannot.
    watch, every: makes the entry of a case that was decided anew, after so many calls of `step`.
    """

    def __init__(
        self,
        table: Table | None,
        here: Where,
        sources: Mapping[str, str] | None = None,
        *,
        on_miss: OnMiss = "baseline",
        forced: Mapping[str, str] | None = None,
        enabled: bool = True,
        measure: Measuring | None = None,
        watch: Measuring | None = None,
        every: int = 1000,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        if on_miss not in ON_MISS:
            raise ValueError(f"on_miss is one of {', '.join(ON_MISS)}, got {on_miss!r}")
        self.on_miss, self.enabled, self._measure = on_miss, enabled, measure
        self.forced = dict(forced or {})
        self.margin = table.margin if table else math.inf
        self.stale: dict[str, str] = {}
        self._families: dict[str, FamilyTable] = {}
        self._made: dict[Key, Choice] = {}
        self._lock, self._measuring = threading.Lock(), threading.RLock()
        self.monitor = Monitor(partial(self._watched, watch), every, say) if watch else None
        for name, family in (table.families if table else {}).items():
            assert table is not None
            now = family.source if sources is None else sources.get(name, "unknown")
            if why := _stale(table.where.differs(here), family.source, now):
                self.stale[name] = why
            else:
                self._families[name] = with_defaults(family)
        if self.stale:
            what = "; ".join(f"{name}: {why}" for name, why in self.stale.items())
            say(f"the dispatch table is not used for {what}. `kernelbench select` makes a new one")

    def choose(
        self,
        family: str,
        dtype: str,
        mode: str,
        axes: tuple[tuple[str, Axis], ...],
        among: tuple[str, ...],
    ) -> Choice:
        """What to use for a case. axes: those that differ from the family's defaults, OPEN where
        one is not known.

        among: the providers that the caller has, its baseline first.
        Raises NoChoiceError where nothing like it was measured and `on_miss` is `error`, and
        ValueError for a forced provider that the caller does not have.
        """
        key = (family, dtype, mode, axes, among)
        found = self._made.get(key)
        if found is None:
            found = self._choose(*key)
            with self._lock:
                found = self._made.setdefault(key, found)
        return found

    def step(self) -> None:
        """Count a step of the program that uses the choices: see `Monitor`, where there is one."""
        if self.monitor is not None:
            self.monitor.step()

    def _watched(self, watch: Measuring) -> list[Decided]:
        """For `Monitor`."""
        return [
            (
                _case_of(*key[:4]),
                choice.provider,
                choice.speedup,
                partial(watch, *key[:3], dict(key[3])),
            )
            for key, choice in self._all()
            if OPEN not in dict(key[3]).values()
        ]

    def _all(self) -> list[tuple[Key, Choice]]:
        with self._lock:
            return [*self._made.items()]

    def summary(self) -> dict[str, dict[str, str | float | None]]:
        """All decisions in plain types, for the summary of a run in a tracker."""
        return {case: asdict(choice) for case, choice in self.decisions.items()}

    @property
    def decisions(self) -> dict[str, Choice]:
        """Everything that was decided, by family and case."""
        return {_case_of(*key[:4]): choice for key, choice in self._all()}

    def _choose(
        self,
        family: str,
        dtype: str,
        mode: str,
        axes: tuple[tuple[str, Axis], ...],
        among: tuple[str, ...],
    ) -> Choice:
        baseline = among[0]
        if (wanted := self.forced.get(family)) is not None:
            if wanted not in among:
                raise ValueError(
                    f"{wanted} is forced for {family}, which has {', '.join(among)} here"
                )
            return Choice(wanted, "forced", "the user wants it")
        if not self.enabled:
            return Choice(baseline, "off", "choosing is off")
        found = self._in_table(family, dtype, mode, dict(axes), among)
        if found is not None and found.how in ("measured", "between"):
            return found
        if self._measure is not None and OPEN not in dict(axes).values():
            with self._measuring:  # by one thread at a time, and once
                made = self._made.get((family, dtype, mode, axes, among))
                entry = None if made else self._measure(family, dtype, mode, dict(axes))
            if made is not None:
                return made
            if entry is not None:
                return _of(entry, baseline, among, "measured", entry.reason)
        if found is not None:
            return found
        why = self.stale.get(family, "nothing like it was measured")
        if self.on_miss == "error":
            raise NoChoiceError(f"{family}: {why}")
        return Choice(baseline, "baseline", why)

    def _in_table(
        self,
        family: str,
        dtype: str,
        mode: str,
        axes: Mapping[str, Axis],
        among: tuple[str, ...],
    ) -> Choice | None:
        """By the entry of the case itself, by those around it, or, where a miss is to take it, by
        the nearest."""
        known = self._families.get(family)
        if known is None:
            return None
        wanted = {**known.defaults, **axes}
        alike = [
            entry
            for entry in known.entries
            if (entry.dtype, entry.mode) == (dtype, mode) and _alike(entry.axes, wanted)
        ]
        for entry in alike:
            if entry.axes == wanted:
                return _of(entry, known.baseline, among, "measured", entry.reason)
        corners = _corners(alike, wanted)
        if corners:
            return self._between(corners, among)
        if not alike or self.on_miss != "nearest":
            return None
        near = min(alike, key=lambda entry: _distance(entry.axes, wanted))
        shown = " ".join(f"{name}={value}" for name, value in near.axes.items())
        return _of(near, known.baseline, among, "nearest", f"measured was {shown}")

    def _between(self, corners: Sequence[Entry], among: Sequence[str]) -> Choice:
        """What is worth it at every measured case around, and there the fastest on average; else
        the baseline."""
        at = [{o.provider: o for o in entry.options if o.lo > self.margin} for entry in corners]
        shared = [name for name in at[0] if name in among and all(name in each for each in at)]
        where = f"between {len(corners)} measured cases"
        if not shared:
            return Choice(among[0], "between", f"{where}, and nothing is worth it at all of them")
        best = max(shared, key=lambda name: _mean(each[name] for each in at))
        reason = f"{where}, at all of which it is worth it"
        return Choice(best, "between", reason, _mean(each[best] for each in at))


def _of(entry: Entry, baseline: str, among: Sequence[str], how: How, reason: str) -> Choice:
    """The first of an entry's options that the caller has, up to the baseline, or to what others
    were measured against; else the caller's baseline."""
    for option in entry.options:
        if option.provider == baseline:
            break
        if option.provider in among:
            if option.provider != entry.choice:
                reason = f"{entry.choice}, which was chosen, is not to be had here"
            return Choice(option.provider, how, reason, option.speedup)
        if option.is_one:
            break
    if entry.choice != baseline:
        reason = f"{entry.choice}, which was chosen, is not to be had here"
    return Choice(among[0], how, reason, 1.0 if among[0] == baseline else None)


def with_defaults(family: FamilyTable) -> FamilyTable:
    """Entries that name every axis, also one that was added after they were measured."""
    entries = (replace(e, axes={**family.defaults, **e.axes}) for e in family.entries)
    return replace(family, entries=tuple(entries))


def _case_of(family: str, dtype: str, mode: str, axes: tuple[tuple[str, Axis], ...]) -> str:
    return f"{family}/{'-'.join([*(f'{name}{value}' for name, value in axes), dtype, mode])}"


def _stale(elsewhere: str, source: str, now: str) -> str:
    if elsewhere:
        return f"it is of {elsewhere}"
    return "its code is another" if source and source != now else ""


def _number(value: Axis) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _alike(one: Mapping[str, Axis], other: Mapping[str, Axis]) -> bool:
    """Whether they differ in sizes alone."""
    return one.keys() == other.keys() and all(
        one[name] == other[name] or (_number(one[name]) and _number(other[name])) for name in one
    )


def _corners(entries: Sequence[Entry], wanted: Mapping[str, Axis]) -> list[Entry]:
    """The measured cases at the corners of the smallest box of measured sizes around a case; none
    where one of them is missing. No size is between 0, which stands for something else, and
    another."""
    sides: list[tuple[Axis, ...]] = []
    for name, value in wanted.items():
        sizes = {entry.axes[name] for entry in entries}
        if value in sizes or not _number(value):
            sides.append((value,))
            continue
        below = [size for size in sizes if 0 < size < value]  # type: ignore[operator]
        above = [size for size in sizes if size > value]  # type: ignore[operator]
        if not below or not above:
            return []
        sides.append((max(below), min(above)))
    by_axes = {tuple(entry.axes[name] for name in wanted): entry for entry in entries}
    corners = [by_axes.get(corner) for corner in product(*sides)]
    return [corner for corner in corners if corner is not None] if all(corners) else []


def _distance(one: Mapping[str, Axis], other: Mapping[str, Axis]) -> float:
    """Of sizes, in powers of two."""

    def log(value: Axis) -> float:
        return math.log2(max(float(value), 0.5))

    return sum(abs(log(one[name]) - log(other[name])) for name in one if _number(one[name]))


def _mean(options: Iterable[Option]) -> float:
    speedups = [option.speedup for option in options]
    return math.exp(sum(map(math.log, speedups)) / len(speedups))
