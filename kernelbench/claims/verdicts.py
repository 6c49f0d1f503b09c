"""Claimed beside measured, and what follows."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from kernelbench.claims import arithmetic, evidence
from kernelbench.claims.evidence import Evidence
from kernelbench.claims.peaks import same
from kernelbench.claims.words import Claim, ClaimsFile, Document, Fault, Nature
from kernelbench.spec import Measured, RunRecord
from kernelbench.statistics import Interval


class Verdict(StrEnum):
    reproduced = "reproduced"
    better = "better"
    not_reproduced = "not reproduced"
    not_yet_measured = "not yet measured"
    not_comparable = "not comparable"


@dataclass(frozen=True, kw_only=True)
class Row:
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
) -> list[Row]:
    """One row a claim, in the order of the files.

    records: of any runs; without any, what arithmetic alone tells. measured: what profilers saw.
    """
    return [_row(claim, file, records, measured) for file in claims for claim in file.claims]


def _row(
    claim: Claim, file: ClaimsFile, records: Sequence[RunRecord], measured: Sequence[Measured]
) -> Row:
    document = file.document
    gpus = arithmetic.gpus_of(claim, document)
    found = evidence.find(claim, gpus, records, measured)
    notes = [*claim.notes]
    if said := arithmetic.contradiction(claim, {one.id: one for one in file.claims}):
        notes.append(said)
    fact: dict[str, Any] = {"document": document, "claim": claim, "found": found}
    fact["notes"] = tuple(notes)
    if said := arithmetic.impossible(claim, document):
        return Row(verdict=Verdict.not_comparable, fault=Fault.impossible, whys=(said,), **fact)
    if claim.doubts:
        fault, whys = claim.doubts[0].fault, tuple(doubt.why for doubt in claim.doubts)
        return Row(verdict=Verdict.not_comparable, fault=fault, whys=whys, **fact)
    if found.value is None:
        return Row(verdict=Verdict.not_yet_measured, whys=(found.why,), **fact)
    stated = arithmetic.hardware_of(claim, document)
    label = _elsewhere(claim, gpus, stated, found)
    if label and claim.sort.nature is Nature.absolute:
        where = f"claimed on {stated}" if stated else "no hardware stated"
        why = f"{where}, measured on {found.gpu}"
        return Row(verdict=Verdict.not_comparable, fault=Fault.hardware, whys=(why,), **fact)
    return Row(verdict=judged(claim, found.value), label=label, **fact)


def _elsewhere(claim: Claim, gpus: Sequence[str], stated: str, found: Evidence) -> str:
    """What is to be said of the machine; nothing where it is the claim's, or plays no part."""
    without = claim.sort.nature is Nature.amount or found.kind == "modelled"
    if without or same(gpus, found.gpu):
        return ""
    return "on other hardware" if stated else "hardware not stated"


def judged(claim: Claim, value: Interval) -> Verdict:
    """`reproduced` where what was measured reaches what would be printed like the claim; else
    which side of it."""
    low, high = claim.reach
    if value.lo <= high and low <= value.hi:
        return Verdict.reproduced
    above = value.lo > high
    return Verdict.better if above == claim.sort.more_is_better else Verdict.not_reproduced


def plain(row: Row) -> Mapping[str, Any]:
    """One row for CSV and JSON; None where a field does not apply."""
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
        "hardware": arithmetic.hardware_of(claim, document),
        "shape": claim.shape,
        "said": claim.said.value,
        "bound": claim.bound.value,
        "claimed_lo": low,
        "claimed_hi": high,
        "measured": value.mid if value else None,
        "measured_lo": value.lo if value else None,
        "measured_hi": value.hi if value else None,
        "kind": row.found.kind,
        "ratio": row.ratio,
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
