"""A table's choices as a small decision tree in plain Python: the fewest providers, and few
questions, that lose at most 1 % of the chosen one at any case that was measured."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from kernelbench.dispatch.choice import with_defaults
from kernelbench.dispatch.table import Axis, Entry, FamilyTable, Table

MOST_LOSS = 0.01
INDENT = "    "


def as_python(table: Table) -> str:
    """A module with one function a family, of dtype, mode and the sizes of a case, that returns the
    name of a provider."""
    lines = [
        f'"""Which provider is the fastest, as measured on {table.where}.',
        "",
        f"Each loses at most {MOST_LOSS:.0%} of the chosen one, wherever one was measured.",
        "Elsewhere it is that of sizes nearby: nobody measured it there.",
        '"""',
    ]
    for name, family in table.families.items():
        lines += ["", "", *_function(re.sub(r"\W", "_", name), with_defaults(family))]
    return "\n".join(lines) + "\n"


def _function(name: str, family: FamilyTable) -> Iterator[str]:
    values: dict[str, list[Axis]] = {}
    for entry in family.entries:
        for axis, value in entry.axes.items():
            values.setdefault(axis, []).append(value)
    swept = [axis for axis, found in values.items() if len(set(found)) > 1]
    kinds = {axis: sorted({type(value).__name__ for value in values[axis]}) for axis in swept}
    sizes = [f"{axis}: {' | '.join(kinds[axis])}" for axis in swept]
    words = ["dtype: str", "mode: str", *(["*", *sizes] if sizes else [])]
    yield f"def {name}({', '.join(words)}) -> str:"
    tree = _Tree(swept, family.baseline, tuple(fewest(family.entries, family.baseline)))
    measured: dict[tuple[str, str], list[Entry]] = {}
    for entry in family.entries:
        measured.setdefault((entry.dtype, entry.mode), []).append(entry)
    for (dtype, mode), entries in measured.items():
        yield f'{INDENT}if (dtype, mode) == ("{dtype}", "{mode}"):'
        yield from tree.branches(entries, 2)
    yield f'{INDENT}return "{family.baseline}"  # not measured'


def loss(entry: Entry, provider: str, baseline: str) -> float:
    """What a provider loses of the chosen one, as a share of its time; infinite for one that is no
    option, or behind the baseline."""
    for option in entry.options:
        if option.provider == provider:
            return max(0.0, entry.options[0].speedup / option.speedup - 1)
        if option.provider == baseline:
            break
    return math.inf


def fewest(entries: Sequence[Entry], baseline: str) -> list[str]:
    """So few providers that at every entry one of them loses at most MOST_LOSS: the one that serves
    most entries first, then whoever serves most of what is left."""
    left, chosen = list(entries), list[str]()
    names = list(dict.fromkeys(option.provider for entry in entries for option in entry.options))
    while left:
        serves = {n: [e for e in left if loss(e, n, baseline) <= MOST_LOSS] for n in names}
        best = max(names, key=lambda name: len(serves[name]))
        chosen.append(best)
        left = [entry for entry in left if entry not in serves[best]]
    return chosen


@dataclass(frozen=True)
class _Question:
    text: str
    yes: list[Entry]
    no: list[Entry]


@dataclass(frozen=True)
class _Tree:
    axes: Sequence[str]
    baseline: str
    providers: tuple[str, ...]

    def branches(self, entries: Sequence[Entry], depth: int) -> Iterator[str]:
        leaf = self._leaf(entries)
        if leaf is not None:
            yield f'{INDENT * depth}return "{leaf}"'
            return
        question = max(self._questions(entries), key=self._merit)
        yield f"{INDENT * depth}if {question.text}:"
        yield from self.branches(question.yes, depth + 1)
        yield from self.branches(question.no, depth)

    def _leaf(self, entries: Sequence[Entry]) -> str | None:
        """A provider that is good enough at all of these."""
        for name in self.providers:
            if all(loss(entry, name, self.baseline) <= MOST_LOSS for entry in entries):
                return name
        return None

    def _merit(self, question: _Question) -> tuple[int, int]:
        """How many entries are decided after it, and how well it halves them."""
        sides = question.yes, question.no
        decided = sum(len(side) for side in sides if self._leaf(side) is not None)
        return decided, min(map(len, sides))

    def _questions(self, entries: Sequence[Entry]) -> Iterator[_Question]:
        for axis in self.axes:
            values = {entry.axes[axis] for entry in entries}
            if any(isinstance(value, (bool, str)) for value in values):
                for value in sorted(values, key=str)[1:]:
                    yield _asked(f"{axis} == {value!r}", entries, axis, {value})
                continue
            sizes = sorted(values, key=float)
            for n, (low, high) in enumerate(pairwise(sizes), 1):
                yield _asked(f"{axis} <= {_between(low, high)}", entries, axis, set(sizes[:n]))


def _between(low: Axis, high: Axis) -> Axis:
    """The geometric mean of whole sizes, which a case between them is nearest to."""
    if isinstance(low, int) and isinstance(high, int) and low > 0:
        return math.isqrt(low * high)
    return low


def _asked(text: str, entries: Sequence[Entry], axis: str, values: set[Axis]) -> _Question:
    yes = [entry for entry in entries if entry.axes[axis] in values]
    return _Question(text, yes, [entry for entry in entries if entry not in yes])
