"""Claimed beside measured, and what follows."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import isfinite
from typing import Any

from kernelbench import metrics
from kernelbench.claims import arithmetic, evidence
from kernelbench.claims.evidence import Evidence
from kernelbench.claims.peaks import same
from kernelbench.claims.words import Bound, Claim, ClaimsFile, Document, Fault, Nature
from kernelbench.numbers.statistics import Interval
from kernelbench.spec import Measured, RunRecord

TOLERANCE = 0.03  # of a figure: two machines, two versions of a library
COARSE = 0.05  # of a figure at the most, however few decimals it has
POINTS = 1.0  # of a figure in %


class Verdict(StrEnum):
    reproduced = "reproduced"
    better = "better"
    not_reproduced = "not reproduced"
    inconclusive = "inconclusive"
    not_yet_measured = "not yet measured"
    not_comparable = "not comparable"


@dataclass(frozen=True, kw_only=True)
class ClaimRow:
    """One claim with its verdict.

    whys: of what is not comparable or not yet measured. label: what else the reader must know of a
    verdict, such as `on other hardware`. ratio: measured over claimed, of a range its nearest end.
    """

    document: Document
    claim: Claim
    verdict: Verdict
    fault: Fault | None = None
    whys: tuple[str, ...] = ()
    label: str = ""
    found: Evidence = Evidence()
    notes: tuple[str, ...] = ()

    @property
    def ratio(self) -> float | None:
        if self.found.value is None:
            return None
        low, high = self.claim.value
        nearest = min(max(self.found.value.mid, low), high)
        return self.found.value.mid / nearest if nearest else None

    @property
    def verdict_text(self) -> str:
        """`better, on other hardware`, `not comparable: jit`."""
        said = f"{self.verdict}: {self.fault}" if self.fault else str(self.verdict)
        return f"{said}, {self.label}" if self.label else said


def rows(
    records: Sequence[RunRecord],
    claims: Iterable[ClaimsFile],
    measured: Sequence[Measured] = (),
) -> list[ClaimRow]:
    """One row a claim, in the order of the files.

    records: of any runs; without any, what arithmetic alone tells. measured: what profilers saw.
    """
    return [_row(claim, file, records, measured) for file in claims for claim in file.claims]


def _row(
    claim: Claim, file: ClaimsFile, records: Sequence[RunRecord], measured: Sequence[Measured]
) -> ClaimRow:
    document = file.document
    gpus = arithmetic.gpus_of(claim, document)
    found = evidence.find(claim, gpus, records, measured)
    notes = [*claim.notes]
    if said := arithmetic.contradiction(claim, {one.id: one for one in file.claims}):
        notes.append(said)
    fact: dict[str, Any] = {"document": document, "claim": claim, "found": found}
    fact["notes"] = tuple(notes)
    if said := arithmetic.impossible(claim, document):
        return ClaimRow(
            verdict=Verdict.not_comparable, fault=Fault.impossible, whys=(said,), **fact
        )
    if claim.doubts:
        fault, whys = claim.doubts[0].fault, tuple(doubt.why for doubt in claim.doubts)
        return ClaimRow(verdict=Verdict.not_comparable, fault=fault, whys=whys, **fact)
    if found.value is None:
        return ClaimRow(verdict=Verdict.not_yet_measured, whys=(found.why,), **fact)
    stated = arithmetic.hardware_of(claim, document)
    label = _label(claim, gpus, stated, found)
    if label and claim.sort.nature is Nature.absolute:
        where = f"claimed on {stated}" if stated else "no hardware stated"
        why = f"{where}, measured on {found.gpu}"
        return ClaimRow(verdict=Verdict.not_comparable, fault=Fault.hardware, whys=(why,), **fact)
    return ClaimRow(verdict=judged(claim, found.value), label=label, **fact)


def _label(claim: Claim, gpus: Sequence[str], stated: str, found: Evidence) -> str:
    """What is to be said of the evidence: that no machine gave it, or not the claim's."""
    if found.kind == metrics.Kind.modelled:
        return found.kind
    if claim.sort.nature is Nature.amount or same(gpus, found.gpu):
        return ""
    return "on other hardware" if stated else "hardware not stated"


def judged(claim: Claim, value: Interval) -> Verdict:
    """A test of equivalence: `reproduced` where the whole interval of what was measured lies within
    what is accepted as the claim, which side of it where none does, else `inconclusive`."""
    low, high = accepted(claim)
    if low <= value.lo and value.hi <= high:
        return Verdict.reproduced
    if value.lo <= high and low <= value.hi:
        return Verdict.inconclusive
    above = value.lo > high
    return Verdict.better if above == claim.sort.more_is_better else Verdict.not_reproduced


def accepted(claim: Claim) -> tuple[float, float]:
    """The values that count as the claimed one: 3 % of it to either side, up to 5 % where it was
    printed so coarsely, of a figure in % one point. A bound and an amount are met or not."""
    low, high = claim.reach
    if claim.bound is not Bound.exact or claim.sort.nature is Nature.amount:
        return low, high
    percent = claim.sort.unit.startswith("%")
    arms = [
        POINTS if percent else max(TOLERANCE * size, min(half, COARSE * size))
        for size, half in ((abs(end), high - claim.value[1]) for end in claim.value)
    ]
    return claim.value[0] - arms[0], claim.value[1] + arms[1]


def plain(row: ClaimRow) -> Mapping[str, Any]:
    """One row for CSV and JSON; None where a field does not apply, the text `inf` for what is
    infinite."""
    claim, document, value = row.claim, row.document, row.found.value
    low, high = claim.value
    return {
        "document": document.id,
        "claim": claim.id,
        "section": claim.section,
        "line": claim.line,
        "quote": claim.quote,
        "metric": claim.metric.value,
        "unit": claim.sort.unit,
        "of": claim.of,
        "against": claim.against,
        "hardware": arithmetic.hardware_of(claim, document) or "not stated",
        "shape": claim.shape,
        "said": claim.said.value,
        "bound": claim.bound.value,
        "claimed_lo": low,
        "claimed_hi": high,
        "measured": _number(value.mid if value else None),
        "measured_lo": _number(value.lo if value else None),
        "measured_hi": _number(value.hi if value else None),
        "kind": row.found.kind,
        "ratio": _number(row.ratio),
        "verdict": row.verdict.value,
        "fault": row.fault.value if row.fault else "",
        "label": row.label,
        "why": "; ".join(row.whys),
        "notes": "; ".join(row.notes),
        "gpu": row.found.gpu,
        "run_id": row.found.run_id,
        "case": row.found.case,
        "provider": claim.compare.provider if claim.compare else "",
    }


def _number(value: float | None) -> float | str | None:
    return str(value) if value is not None and not isfinite(value) else value
