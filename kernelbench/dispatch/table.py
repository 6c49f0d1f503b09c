"""A dispatch table: what was chosen for each measured case, of which machine, and why. It is JSON
that people can read.

Words are those of records: family, provider, case (its axes, dtype and mode), speedup (against the
family's baseline, with its 95 % interval).
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

SCHEMA = 1
MARGIN = 1.03
Axis = int | float | bool | str


class TableError(Exception):
    """A file that is no dispatch table, in words."""


@dataclass(frozen=True)
class Where:
    """The machine and the versions that times are of. What is empty is not known, or does not
    matter. arch: `sm_90` and the like."""

    gpu: str = ""
    arch: str = ""
    driver: str = ""
    torch: str = ""
    triton: str = ""

    def __str__(self) -> str:
        named = {"driver": self.driver, "torch": self.torch, "triton": self.triton}
        versions = [f"{name} {version}" for name, version in named.items() if version]
        return ", ".join(filter(None, (self.gpu or self.arch or "any GPU", *versions)))

    def differs(self, here: "Where") -> str:
        """In words, what is otherwise here; or ""."""
        pairs = (
            (each.name, getattr(self, each.name), getattr(here, each.name)) for each in fields(self)
        )
        return ", ".join(
            f"{name} {now or 'unknown'}, not {then}"
            for name, then, now in pairs
            if then not in ("", now)
        )


@dataclass(frozen=True)
class Option:
    """A provider that may be used. speedup: against the baseline, with the ends of its interval."""

    provider: str
    speedup: float
    lo: float
    hi: float

    @property
    def is_one(self) -> bool:
        """Whether its speedup is 1 and nothing else: that of the baseline is, of what is worth it
        none."""
        return self.lo == self.speedup == self.hi == 1


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The choice for one measured case.

    axes: all but dtype and mode. options: what may be used, the chosen one first; the baseline is
        one of them, and those behind it are not worth it. excluded: the others, and why.
    processes: that intervals are over; 1 is within one process.
    regret_pct: by how much the chosen one may take longer than the fastest option, at the bad end
        of the interval of their ratio.
    """

    dtype: str
    mode: str
    axes: Mapping[str, Axis]
    options: tuple[Option, ...]
    reason: str
    regret_pct: float
    processes: int = 1
    excluded: Mapping[str, str] = field(default_factory=dict)

    @property
    def choice(self) -> str:
        return self.options[0].provider

    @property
    def runner_up(self) -> str:
        """The second best, or "" where there is no other."""
        return self.options[1].provider if len(self.options) > 1 else ""


@dataclass(frozen=True, kw_only=True)
class FamilyTable:
    """The choices of one family. source: a hash of the code that was measured, or "". defaults: of
    its axes."""

    baseline: str
    source: str = ""
    defaults: Mapping[str, Axis] = field(default_factory=dict)
    entries: tuple[Entry, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Table:
    """The choices of one machine. margin: what the lower end of a speedup has to exceed.
    approximate: whether such providers were allowed. runs: what it was made from."""

    where: Where
    families: Mapping[str, FamilyTable]
    margin: float = MARGIN
    approximate: bool = False
    runs: tuple[str, ...] = ()

    def entries(self) -> Iterator[tuple[str, Entry]]:
        for name, family in self.families.items():
            for entry in family.entries:
                yield name, entry

    def to_json(self) -> str:
        """A line an entry."""
        families = []
        for name, family in self.families.items():
            entries = ",\n".join(f"      {json.dumps(_plain(entry))}" for entry in family.entries)
            head = ", ".join(
                f"{json.dumps(key)}: {json.dumps(_plain(getattr(family, key)))}"
                for key in ("baseline", "source", "defaults")
            )
            families.append(f'    {json.dumps(name)}: {{{head}, "entries": [\n{entries}\n    ]}}')
        facts = {
            "schema": SCHEMA,
            "where": {k: v for k, v in asdict(self.where).items() if v},
            "margin": self.margin,
            "approximate": self.approximate,
            "runs": list(self.runs),
        }
        lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in facts.items()]
        body = ",\n".join(families)
        lines.append(f'  "families": {{\n{body}\n  }}' if families else '  "families": {}')
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @staticmethod
    def read(path: Path) -> "Table":
        """Raises TableError, with the path, for a file that cannot be read or is no table."""
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise TableError(f"{path}: cannot be read ({error.strerror})") from None
        except (ValueError, RecursionError) as error:
            raise TableError(f"{path}: not JSON ({error})") from None
        try:
            return _table(facts)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise TableError(
                f"{path}: no dispatch table ({what}): `kernelbench select` makes one"
            ) from None


def _plain(value: Any) -> Any:
    if isinstance(value, Entry):
        facts = {each.name: getattr(value, each.name) for each in fields(value)}
        options = {o.provider: [_digits(x) for x in (o.speedup, o.lo, o.hi)] for o in value.options}
        facts |= {"options": options, "regret_pct": round(value.regret_pct, 2)}
        return {k: v for k, v in facts.items() if v or k not in ("excluded",)}
    return dict(value) if isinstance(value, Mapping) else value


def _digits(value: float) -> float | str:
    """Five of them; JSON has no infinite numbers, which the end of a wide interval may be."""
    return float(f"{value:.5g}") if math.isfinite(value) else str(value)


def _table(facts: Any) -> Table:
    if facts["schema"] != SCHEMA:
        raise ValueError(f"schema {facts['schema']}, this version reads {SCHEMA}")
    families = {name: _family(each) for name, each in facts["families"].items()}
    return Table(
        where=Where(**facts["where"]),
        families=families,
        margin=float(facts["margin"]),
        approximate=bool(facts["approximate"]),
        runs=tuple(facts["runs"]),
    )


def _family(facts: Any) -> FamilyTable:
    family = FamilyTable(
        baseline=str(facts["baseline"]),
        source=str(facts["source"]),
        defaults=_axes(facts["defaults"]),
        entries=tuple(map(_entry, facts["entries"])),
    )
    for entry in family.entries:
        if family.baseline not in {option.provider for option in entry.options}:
            raise ValueError(f"an entry without its baseline {family.baseline}")
    return family


def _entry(facts: Any) -> Entry:
    options = tuple(Option(name, *map(float, each)) for name, each in facts["options"].items())
    if not all(math.isfinite(o.speedup) and o.speedup > 0 and 0 <= o.lo <= o.hi for o in options):
        raise ValueError("a speedup that is none")
    return Entry(**{**facts, "options": options, "axes": _axes(facts["axes"])})


def _axes(facts: Any) -> dict[str, Axis]:
    axes = dict(facts)
    if not all(isinstance(value, Axis) for value in axes.values()):
        raise ValueError("an axis that is neither a number nor text")
    return axes
