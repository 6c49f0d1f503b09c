"""What differs between the sides besides the times, and the cause that a move is attributed to."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from kernelbench.compare.noise import LogMedian
from kernelbench.compare.sides import Run, Side

CEILING_DIFFERS = 0.05
MOST_DRIFT = math.log(1.1)  # that is put down to the environment though the source changed
UNKNOWN = "—"
_SYSTEM = ("machine", "versions", "gpu")


class Cause(StrEnum):
    """The cause that a move is attributed to."""

    provider = "this provider"
    environment = "environment"  # the others of its job moved with it
    card = "another card"  # likewise, and the sides ran on different cards of one model
    policy = "power limit or clocks"  # likewise, and those settings of the cards differ
    versions = "versions"  # likewise, or its source did not change, and the software differs
    gpu = "GPU"  # the sides were measured on different ones


@dataclass(frozen=True)
class Difference:
    """A fact that the manifests of the two sides do not agree on; several values of a side are
    joined by `, `. part: `gpu`, `machine`, `versions`, `git`, `kernelbench`, `asked`, `suite` or
    `ceilings`."""

    part: str
    what: str
    a: str
    b: str

    @property
    def system(self) -> bool:
        """Whether it can change how fast an unchanged kernel runs. What one side does not state,
        as older manifests and those without a package do, is shown but no known difference."""
        return self.part in _SYSTEM and self.known

    @property
    def known(self) -> bool:
        """Whether both sides state it."""
        return not any(UNKNOWN in side.split(", ") for side in (self.a, self.b))


@dataclass(frozen=True)
class Shift:
    """By how much a row of a job moved: the logarithm of B over A, and its 95 % reach. ours:
    whether it is a kernel under test."""

    provider: str
    baseline: bool
    ours: bool
    log_ratio: float
    reach: float

    def as_much_as(self, other: "Shift") -> bool:
        """Whether it moved for sure, the same way, and at least half as far."""
        same_way = self.log_ratio * other.log_ratio > 0
        far = abs(self.log_ratio) >= abs(other.log_ratio) / 2
        return same_way and far and abs(self.log_ratio) > self.reach

    def lost_beyond(self, other: "Shift", limit: float) -> bool:
        """Whether it is slower by more than the limit, a logarithm, and than noise, on top of what
        the other one moved by."""
        return self.log_ratio - other.log_ratio > max(limit, math.hypot(self.reach, other.reach))


def differences(a: Side, b: Side) -> tuple[Difference, ...]:
    """Where the manifests of the sides differ; of runs without one, nothing but the GPU is known.
    Ceilings within 5 % are alike."""
    known = all(run.manifest for run in (*a.runs, *b.runs))
    ours, theirs = ([_facts(run) if known else _gpu(run) for run in s.runs] for s in (a, b))
    names = dict.fromkeys(name for facts in (*ours, *theirs) for name in facts)
    differing = []
    for part, what in names:
        values = [[facts.get((part, what)) for facts in side] for side in (ours, theirs)]
        if part == "ceilings" and not _ceilings_differ(*values):
            continue
        before, after = (_joined(side) for side in values)
        if before != after:
            differing.append(Difference(part, what, before, after))
    return tuple(differing)


def other_card(differing: Iterable[Difference]) -> bool:
    """Whether the sides are known to have run on different cards."""
    return _differs(differing, "uuid")


def _differs(differing: Iterable[Difference], what: str) -> bool:
    """what: of the card, its uuid or its policy (power limit and clocks)."""
    return any((d.part, d.what) == ("card", what) and d.known for d in differing)


def _joined(values: Iterable[Any]) -> str:
    texts = (json.dumps(v) if isinstance(v, (dict, list, bool)) else str(v) for v in values)
    return ", ".join(sorted({UNKNOWN if text == "None" else text for text in texts}))


def _ceilings_differ(a: Sequence[Any], b: Sequence[Any]) -> bool:
    ours, theirs = ([v for v in side if v] for side in (a, b))
    if not ours or not theirs:
        return False
    ratio = (sum(theirs) / len(theirs)) / (sum(ours) / len(ours))
    return bool(abs(ratio - 1) > CEILING_DIFFERS)


def _facts(run: Run) -> dict[tuple[str, str], Any]:
    """(part, name) → value of a manifest, as far as two measurements may differ by it."""
    manifest = run.manifest
    machine = dict(manifest.get("machine") or {})
    versions = dict(machine.pop("versions", None) or {})
    facts = _gpu(run)
    # The card and its settings explain rows that move together, never one row alone.
    card = {("card", name): machine.pop(name, None) for name in ("uuid", "policy")}
    facts = card | facts  # what the records state wins
    facts |= {("machine", name): value for name, value in machine.items() if name != "name"}
    facts |= {("versions", name): value for name, value in versions.items()}
    facts["kernelbench", "kernelbench"] = manifest.get("kernelbench")
    git = manifest.get("git") or {}
    facts["git", "commit"] = str(git.get("commit"))[:12]
    facts["git", "dirty"] = git.get("dirty")
    request = manifest.get("asked") or {}
    for name in ("overrides", "quick", "interleave", "tune", "seed"):
        facts["asked", name] = request.get(name)
    facts["suite", "suite"] = manifest.get("suite")
    return facts | _ceilings(manifest.get("ceilings") or {})


def _gpu(run: Run) -> dict[tuple[str, str], Any]:
    cards = sorted({record.gpu_uuid for record in run.records if record.gpu_uuid})
    facts: dict[tuple[str, str], Any] = {
        ("gpu", "gpu"): ", ".join(sorted({record.gpu for record in run.records}))
    }
    return facts | ({("card", "uuid"): ", ".join(cards)} if cards else {})


def _ceilings(ceilings: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    """Each rate at its largest footprint, in GB/s and TFLOP/s. The overhead in ns is not one:
    times have it subtracted."""
    rates: dict[tuple[str, str], Any] = {}
    for name, points in (ceilings.get("bandwidth") or {}).items():
        match points:
            case [*_, [int() | float() as moved, int() | float() as ns]] if ns:
                rates["ceilings", f"{name} GB/s"] = round(moved / ns)
    for name, rate in (ceilings.get("tflops") or {}).items():
        if isinstance(rate, (int, float)):
            rates["ceilings", f"{name} TFLOP/s"] = round(rate, 1)
    return rates


def cause(
    moved: Shift,
    mates: Sequence[Shift],
    differing: Sequence[Difference],
    changed: bool,
    limit: float,
) -> Cause:
    """The cause that a move is attributed to.

    mates: the other rows of the same job. changed: whether the provider's source or config did.
    limit: the logarithm of what the caller allows; a baseline's move excuses no loss beyond it.
    """
    parts = {difference.part for difference in differing if difference.system}
    if "gpu" in parts:
        return Cause.gpu
    cards = {Cause.policy: "policy", Cause.card: "uuid"}
    alone = next((c for c, what in cards.items() if _differs(differing, what)), Cause.environment)
    system = Cause.versions if parts else alone
    references = [mate for mate in mates if mate.baseline] or [
        mate for mate in mates if not mate.ours
    ]
    following = [mate for mate in references if mate.as_much_as(moved)]
    beyond = not moved.baseline and any(moved.lost_beyond(mate, limit) for mate in following)
    # A machine does not drift that far; shared code that changed moves rows that far.
    drifted = changed and system is Cause.environment
    beyond = beyond or (drifted and moved.log_ratio > MOST_DRIFT)
    if len(following) * 2 > len(references) and not beyond:
        return system
    return Cause.versions if parts and not changed else Cause.provider


def evidence_for(
    moved: Shift, mates: Sequence[Shift], a: Sequence[LogMedian], b: Sequence[LogMedian]
) -> tuple[str, bool]:
    """The evidence for the cause, in words; and whether the provider's source or config changed."""
    reasons = [_mates(moved, mates)]
    sources = [{median.record.source for median in side} for side in (a, b)]
    configs = [{_config(median.record.config) for median in side} for side in (a, b)]
    reasons.append("same source" if sources[0] == sources[1] else "source changed")
    if configs[0] != configs[1]:
        reasons.append(f"config {_either(configs[0])} → {_either(configs[1])}")
    slowed = [any(median.throttled for median in side) for side in (a, b)]
    if any(slowed):
        reasons.append(
            f"throttled in {' and '.join(n for n, s in zip('AB', slowed, strict=True) if s)}"
        )
    changed = sources[0] != sources[1] or configs[0] != configs[1]
    return "; ".join(part for part in reasons if part), changed


def _mates(moved: Shift, mates: Sequence[Shift]) -> str:
    if moved.baseline:
        following = sum(mate.as_much_as(moved) for mate in mates)
        return f"{following} of {len(mates)} others of its job moved with it" if mates else ""
    shift = next((mate.log_ratio for mate in mates if mate.baseline), None)
    return "" if shift is None else f"baseline {change(shift)}"


def change(log_ratio: float) -> str:
    """`+2.1%` of time, from the logarithm of B over A."""
    return f"{math.expm1(log_ratio) * 100:+.1f}%"


def _config(config: Mapping[str, Any] | None) -> str:
    return " ".join(f"{name}={value}" for name, value in (config or {}).items()) or "none"


def _either(texts: set[str]) -> str:
    return " or ".join(sorted(texts))
