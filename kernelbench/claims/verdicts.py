"""The verdict on each claim: its figure against the measured one."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import isfinite
from typing import Any

from kernelbench import metrics
from kernelbench.claims import arithmetic
from kernelbench.claims.evidence import Evidence, evidence_for
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

    whys: why it is not comparable or not yet measured. label: a condition of the verdict, such as
    `on other hardware`. ratio: measured over claimed; of a range, over its nearest end.
    """

    document: Document
    claim: Claim
    verdict: Verdict
    fault: Fault | None = None
    whys: tuple[str, ...] = ()
    label: str = ""
    evidence: Evidence = Evidence()
    notes: tuple[str, ...] = ()

    @property
    def ratio(self) -> float | None:
        if self.evidence.value is None:
            return None
        low, high = self.claim.value
        nearest = min(max(self.evidence.value.mid, low), high)
        return self.evidence.value.mid / nearest if nearest else None

    @property
    def verdict_text(self) -> str:
        """`better, on other hardware`, `not comparable: jit`."""
        text = f"{self.verdict}: {self.fault}" if self.fault else str(self.verdict)
        return f"{text}, {self.label}" if self.label else text


def rows(
    records: Sequence[RunRecord],
    claims: Iterable[ClaimsFile],
    measured: Sequence[Measured] = (),
) -> list[ClaimRow]:
    """One row a claim, in the order of the files.

    records: of any runs; without any, arithmetic alone decides. measured: what profilers saw.
    """
    return [_row(claim, file, records, measured) for file in claims for claim in file.claims]


def _row(
    claim: Claim, file: ClaimsFile, records: Sequence[RunRecord], measured: Sequence[Measured]
) -> ClaimRow:
    document = file.document
    gpus = arithmetic.gpus_of(claim, document)
    evidence = evidence_for(claim, gpus, records, measured)
    notes = [*claim.notes]
    if reason := arithmetic.contradiction(claim, {other.id: other for other in file.claims}):
        notes.append(reason)
    fields: dict[str, Any] = {"document": document, "claim": claim, "evidence": evidence}
    fields["notes"] = tuple(notes)
    if reason := arithmetic.impossible(claim, document):
        return ClaimRow(
            verdict=Verdict.not_comparable, fault=Fault.impossible, whys=(reason,), **fields
        )
    if claim.doubts:
        fault, whys = claim.doubts[0].fault, tuple(doubt.why for doubt in claim.doubts)
        return ClaimRow(verdict=Verdict.not_comparable, fault=fault, whys=whys, **fields)
    if evidence.value is None:
        return ClaimRow(verdict=Verdict.not_yet_measured, whys=(evidence.why,), **fields)
    hardware = arithmetic.hardware_of(claim, document)
    label = _label(claim, gpus, hardware, evidence)
    if label and claim.sort.nature is Nature.absolute:
        claimed = f"claimed on {hardware}" if hardware else "no hardware stated"
        why = f"{claimed}, measured on {evidence.gpu}"
        return ClaimRow(verdict=Verdict.not_comparable, fault=Fault.hardware, whys=(why,), **fields)
    return ClaimRow(verdict=judged(claim, evidence.value), label=label, **fields)


def _label(claim: Claim, gpus: Sequence[str], hardware: str, evidence: Evidence) -> str:
    """Say where the evidence is modelled, or from other hardware than the claim's."""
    if evidence.kind == metrics.Kind.modelled:
        return evidence.kind
    if claim.sort.nature is Nature.amount or same(gpus, evidence.gpu):
        return ""
    return "on other hardware" if hardware else "hardware not stated"


def judged(claim: Claim, value: Interval) -> Verdict:
    """Test equivalence: `reproduced` where the whole measured interval is inside the accepted one,
    `better` or `not reproduced` where it is all outside, else `inconclusive`."""
    low, high = accepted(claim)
    if low <= value.lo and value.hi <= high:
        return Verdict.reproduced
    if value.lo <= high and low <= value.hi:
        return Verdict.inconclusive
    above = value.lo > high
    return Verdict.better if above == claim.sort.more_is_better else Verdict.not_reproduced


def accepted(claim: Claim) -> tuple[float, float]:
    """The values that count as the claimed one: 3 % to either side, up to 5 % where it was printed
    coarsely, one point for a figure in %. A bound and an amount get no tolerance."""
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
    claim, document, value = row.claim, row.document, row.evidence.value
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
        "kind": row.evidence.kind,
        "ratio": _number(row.ratio),
        "verdict": row.verdict.value,
        "fault": row.fault.value if row.fault else "",
        "label": row.label,
        "why": "; ".join(row.whys),
        "notes": "; ".join(row.notes),
        "gpu": row.evidence.gpu,
        "run_id": row.evidence.run_id,
        "case": row.evidence.case,
        "provider": claim.compare.provider if claim.compare else "",
    }


def _number(value: float | None) -> float | str | None:
    return str(value) if value is not None and not isfinite(value) else value
