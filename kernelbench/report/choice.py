"""Which tables a report shows: those that were asked for, or a choice that reads well."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from kernelbench.report import best, sheets
from kernelbench.report.documents import NOTE, documents
from kernelbench.report.means import has_time
from kernelbench.report.sheet import Row, Sheet, Source
from kernelbench.spec import UsageError, suggest

FEW = 6  # cases on GPUs, up to which every provider has a line, too
KINDS: Mapping[str, Callable[[Source], Iterator[Sheet]]] = {
    "best": best.best,
    "documents": documents,
    **sheets.MORE,
}
NAMES = ("cases", *KINDS, "profiles")
EVERY = "Every provider, with errors: --tables cases."
MORE = "More: --tables traffic, documents, memory, scaling, launch, breakeven, environment or all."


@dataclass(frozen=True)
class Choice:
    """rows: all that there is. first: tables of ours against the best other. cases: what is shown a
    line a provider. sheets: the tables after it. note: how to read them."""

    rows: Sequence[Row]
    first: Sequence[Sheet]
    cases: Sequence[Row]
    sheets: Sequence[Sheet]
    profiles: bool
    note: str = ""


def table_names(names: Sequence[str]) -> tuple[str, ...]:
    """The tables that were asked for, `all` being every one.

    Raises UsageError for one that there is not.
    """
    for name in names:
        if name != "all" and name not in NAMES:
            raise UsageError(f"--tables: no table {name!r}{suggest(name, [*NAMES, 'all'])}")
    return NAMES if "all" in names else tuple(dict.fromkeys(names))


def choice(names: Sequence[str], source: Source) -> Choice:
    """Exactly the tables that were named, and which of them are empty. Where none was: ours against
    the best other; a line a provider where that is short, and where nothing of ours has a time;
    then what profilers saw, and which runs these are if they are several."""
    runs = list(sheets.runs(source)) if source.short else []
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
    return Choice(source.rows, first, cases, runs, True, note)


def _nonempty(make: Callable[[Source], Iterator[Sheet]], source: Source) -> list[Sheet]:
    return [sheet for sheet in make(source) if sheet.rows or not sheet.heads]


def _cases(rows: Sequence[Row]) -> int:
    """How many have a GPU's time."""
    return len({(row["run_id"], row["family"], row["case"]) for row in rows if has_time(row)})
