"""For cog: the verdicts on the shipped claims, from kept runs."""

from pathlib import Path

import cog

from kernelbench import claims, store
from kernelbench.report import claim_tables


def verdicts(runs: str) -> None:
    """The totals, then a table a document."""
    records, measured = [], []
    for run in store.find_runs([Path(runs)]):
        found, damaged = store.read_with_problems(run)
        seen, torn = store.read_measured(run)
        assert not damaged and not torn, (damaged, torn)
        records += found
        measured += seen
    cog.out(claim_tables.markdown(claims.rows(records, claims.load(claims.shipped()), measured)))
