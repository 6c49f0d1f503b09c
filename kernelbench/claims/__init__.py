"""Figures that other people's documents publish, held against arithmetic and against records.

A claims file quotes one document (`words`), is read strictly (`grammar`), and each of its claims
gets a verdict (`verdicts`): from its own numbers and the peaks of the GPUs that it names
(`arithmetic`, `peaks`), and from what records say of the same thing (`evidence`). A claimed figure
is quoted; it never enters a run.
"""

from importlib.resources import files
from pathlib import Path

from kernelbench.claims.arithmetic import hardware_of
from kernelbench.claims.grammar import load, parse
from kernelbench.claims.verdicts import ClaimRow, Verdict, plain, rows
from kernelbench.claims.words import Claim, ClaimsFile, Document

__all__ = [
    "Claim",
    "ClaimRow",
    "ClaimsFile",
    "Document",
    "Verdict",
    "hardware_of",
    "load",
    "parse",
    "plain",
    "rows",
    "shipped",
]


def shipped() -> list[Path]:
    """The claims files of the installed package."""
    folder = Path(str(files("kernelbench"))) / "configs" / "claims"
    return sorted(folder.glob("*.yaml"))
