"""Blocks of axes → jobs. Sizes are counted before anything is built."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from math import prod
from typing import Any

from kernelbench.spec import Case, Family, Job, Measure, UsageError
from kernelbench.spec.raised import words_of
from kernelbench.suite.grammar import BLOCK_KEYS, Families, Loc
from kernelbench.suite.reader import Node, Problem

MAX_POINTS = 100_000
# What a case's own `__post_init__` raises where it is wrong, and not the point.
MISTAKES = (LookupError, TypeError, AttributeError, NameError, AssertionError, RuntimeError)

Values = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Block:
    """One entry of `cases`, with what it inherits from `modes` and `defaults`."""

    family: Family[Any]
    loc: Loc
    own: Values
    inherited: Values
    zipped: bool
    label: str
    providers: tuple[str, ...]

    def __len__(self) -> int:
        own = [len(values) for values in self.own.values()]
        return (max(own, default=1) if self.zipped else prod(own)) * prod(
            len(values) for values in self.inherited.values()
        )

    def points(self) -> Iterator[dict[str, Any]]:
        """Every point; the axis that is written first changes slowest."""
        rows = self._rows() if self.zipped else product(*self.own.values())
        for row in rows:
            for more in product(*self.inherited.values()):
                yield {
                    **dict(zip(self.own, row, strict=True)),
                    **dict(zip(self.inherited, more, strict=True)),
                }

    def _rows(self) -> Iterator[tuple[Any, ...]]:
        longest = max((len(values) for values in self.own.values()), default=1)
        for at in range(longest):
            yield tuple(v[at if len(v) > 1 else 0] for v in self.own.values())


def expand(
    root: Node, families: Families, measure: Measure, bad: Sequence[Loc]
) -> tuple[list[Job], list[Problem]]:
    """The jobs in the order of the file, and every problem found on the way.

    bad: locations whose values are already known to be wrong; no case is built from them.
    """
    blocks, problems = _blocks(root, families, bad)
    total = 0
    for block in blocks:
        total += len(block)
        if total > MAX_POINTS:
            message = f"the suite has more than {MAX_POINTS} points from here on"
            return [], [*problems, Problem(root.spot(block.loc), message)]
    jobs: dict[tuple[str, str], Job] = {}
    for block in blocks:
        cases, refused = _cases(root, block)
        problems += refused
        for case in cases:
            job = Job(
                family=block.family.name,
                case=case,
                providers=block.providers,
                label=block.label,
                measure=measure,
            )
            key = (job.family, case.id)
            jobs[key] = _joined(block.family, jobs[key], job) if key in jobs else job
    return list(jobs.values()), problems


def _joined(family: Family[Any], first: Job, again: Job) -> Job:
    """One job of the same case listed twice: the first label, the providers of both."""
    wanted = {*first.providers, *again.providers}
    providers = tuple(p.name for p in family.providers if p.name in wanted)
    return replace(first, label=first.label or again.label, providers=providers)


def _blocks(
    root: Node, families: Families, bad: Sequence[Loc]
) -> tuple[list[Block], list[Problem]]:
    """The blocks without a wrong value, and what is wrong with the shape of any block."""
    blocks: list[Block] = []
    problems: list[Problem] = []
    data = root.plain()
    defaults = _mapping(data.get("defaults"))
    listed = _mapping(data.get("families"))
    spoilt = {loc[:4] for loc in bad if loc[:1] == ("families",)}
    for name, settings in listed.items():
        cases = _mapping(settings).get("cases")
        if name not in families or not isinstance(cases, list):
            continue
        whole = not any(loc[0] == "defaults" for loc in bad) and not any(
            loc[:2] == ("families", name) and loc[2:3] != ("cases",) for loc in bad
        )
        for at, case in enumerate(cases):
            loc: Loc = ("families", name, "cases", at)
            if not isinstance(case, dict):
                continue
            block = _block(families[name], loc, case, settings, defaults)
            wrong = _shape(root, block, case)
            problems += wrong
            if whole and not wrong and loc not in spoilt:
                blocks.append(block)
    return blocks, problems


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _block(
    family: Family[Any],
    loc: Loc,
    case: Mapping[str, Any],
    given: Mapping[str, Any],
    defaults: Mapping[str, Any],
) -> Block:
    own = {axis: _list(value) for axis, value in case.items() if axis not in BLOCK_KEYS}
    above = {**defaults, **({"mode": defaults["modes"]} if "modes" in defaults else {})}
    if "modes" in given:
        above["mode"] = given["modes"]
    names = [ax.name for ax in family.case.axes() if ax.name in above and ax.name not in own]
    every = [provider.name for provider in family.providers if not provider.on_request]
    wanted = _list(case.get("providers", given.get("providers", every)))
    return Block(
        family=family,
        loc=loc,
        own=own,
        inherited={axis: _list(above[axis]) for axis in names},
        zipped=case.get("zip") is True,
        label=str(case.get("label", "")),
        providers=tuple(name for name in every if name in wanted),
    )


def _shape(root: Node, block: Block, case: Mapping[str, Any]) -> list[Problem]:
    """Required axes that nothing gives, and lists of unequal length under `zip`."""
    problems = []
    given = {*block.own, *block.inherited}
    axes = block.family.case.axes()
    missing = [ax.name for ax in axes if ax.required and ax.name not in given]
    if missing:
        message = f"{block.family.name} needs a value for {', '.join(missing)}"
        problems.append(Problem(root.spot(block.loc, key=True), message))
    lengths = {
        axis: len(value)
        for axis, value in case.items()
        if isinstance(value, list) and axis not in BLOCK_KEYS
    }
    if block.zipped and len(set(lengths.values())) > 1:
        first = next(iter(lengths.values()))
        odd = next(axis for axis, length in lengths.items() if length != first)
        lengths_text = ", ".join(f"{axis} has {length}" for axis, length in lengths.items())
        message = f"zip takes lists of equal length: {lengths_text}"
        problems.append(Problem(root.spot((*block.loc, odd), key=True), message))
    return problems


def _cases(root: Node, block: Block) -> tuple[list[Case], list[Problem]]:
    """The cases of a block, and why its family refuses points: each reason once."""
    cases: list[Case] = []
    refused: dict[str, str] = {}
    for point in block.points():
        try:
            case: Case = block.family.case.from_axes(point)
        except (UsageError, ArithmeticError) as error:  # M % heads with heads = 0
            message = str(error)
        except MISTAKES as error:
            message = words_of(error)
        else:
            cases.append(case)
            continue
        at = ", ".join(f"{axis}={value}" for axis, value in point.items())
        refused.setdefault(message, f"{block.family.name} refuses {at}: {message}")
    return cases, [Problem(root.spot(block.loc), message) for message in refused.values()]


def measure_of(root: Node) -> tuple[Measure, list[Problem]]:
    """The suite's Measure; its constraints are reported at the one key that breaks them."""
    node = _mapping(root.value).get("measure")
    settings = node.plain() if node else {}
    # YAML has 1 for 1.0, and a list for a tuple.
    kinds: dict[str, Any] = {f.name: type(f.default) for f in fields(Measure)}
    typed: dict[str, Any] = {key: kinds[key](value) for key, value in settings.items()}
    try:
        return Measure(**typed), []
    except UsageError as error:
        alone = [key for key in typed if _refused({key: typed[key]})]
        loc = ("measure", alone[0]) if len(alone) == 1 else ("measure",)
        return Measure(), [Problem(root.spot(loc), str(error))]


def _refused(values: Mapping[str, Any]) -> bool:
    try:
        Measure(**values)
    except UsageError:
        return True
    return False
