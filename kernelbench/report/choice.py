"""Which tables a report shows: those that the user named, or a readable default."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from kernelbench.report import best, sheets
from kernelbench.report.documents import NOTE, documents
from kernelbench.report.means import has_time
from kernelbench.report.portability import portability
from kernelbench.report.sheet import Row, Sheet, Source
from kernelbench.spec import UsageError, suggest

FEW = 6  # cases on GPUs; up to so many, every provider has a line, too
KINDS: Mapping[str, Callable[[Source], Iterator[Sheet]]] = {
    "best": best.best,
    "documents": documents,
    "portability": portability,
    **sheets.MORE,
}
NAMES = ("cases", *KINDS, "profiles")
EVERY = "Every provider, with errors: --tables cases."
MORE = "More: --tables traffic, documents, memory, scaling, launch, breakeven, environment or all."


@dataclass(frozen=True)
class Choice:
    """rows: all rows. first: tables of ours against the best other. cases: rows shown a line a
    provider. sheets: the tables after it. note: how to read them."""

    rows: Sequence[Row]
    first: Sequence[Sheet]
    cases: Sequence[Row]
    sheets: Sequence[Sheet]
    profiles: bool
    note: str = ""


def table_names(names: Sequence[str]) -> tuple[str, ...]:
    """The tables that the user named, `all` being every one.

    Raises UsageError for an unknown table.
    """
    for name in names:
        if name != "all" and name not in NAMES:
            raise UsageError(f"--tables: no table {name!r}{suggest(name, [*NAMES, 'all'])}")
    return NAMES if "all" in names else tuple(dict.fromkeys(names))


def choice(names: Sequence[str], source: Source) -> Choice:
    """The named tables, with a note of which are empty. By default: ours against the best other; a
    line a provider where that is short or nothing of ours has a time; then how cases do on several
    GPU models, what spreading work over GPUs costs, what profilers saw, and a list of the runs
    where there are several."""
    runs = list(sheets.runs(source)) if source.short else []
    spread = [*_nonempty(portability, source), *_nonempty(sheets.ranks, source)]
    if names:
        kinds = table_names(names)
        sheets_of = {kind: _nonempty(make, source) for kind, make in KINDS.items() if kind in kinds}
        first = sheets_of.get("best", [])
        more_sheets = [
            sheet
            for kind, kind_sheets in sheets_of.items()
            if kind != "best"
            for sheet in kind_sheets
        ]
        cases = source.rows if "cases" in kinds else ()
        notes = [best.note(source.rows)] if first else []
        note = "\n".join([*notes, *([NOTE] if sheets_of.get("documents") else [])])
        if empty := [
            kind for kind, kind_sheets in sheets_of.items() if kind in names and not kind_sheets
        ]:
            note = f"{note}\nThese runs have nothing for --tables {','.join(empty)}.".strip()
        return Choice(source.rows, first, cases, [*more_sheets, *runs], "profiles" in kinds, note)
    covered = best.covered_cases(source.rows)
    part = replace(source, rows=[row for row in source.rows if best.case_of(row) in covered])
    others = [row for row in source.rows if best.case_of(row) not in covered]
    first = _nonempty(best.best, part)
    few = _cases(source.rows) <= FEW
    cases = source.rows if few else others
    note = f"{best.note(part.rows)}\n{MORE if few else f'{EVERY} {MORE}'}" if first else ""
    return Choice(source.rows, first, cases, [*spread, *runs], True, note)


def _nonempty(make: Callable[[Source], Iterator[Sheet]], source: Source) -> list[Sheet]:
    return [sheet for sheet in make(source) if sheet.rows or not sheet.heads]


def _cases(rows: Sequence[Row]) -> int:
    """How many cases have a time of a GPU."""
    return len({(row["run_id"], row["family"], row["case"]) for row in rows if has_time(row)})
