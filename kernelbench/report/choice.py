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


def chosen(names: Sequence[str]) -> tuple[str, ...]:
    """The tables that were asked for, `all` being every one.

    Raises UsageError for one that there is not.
    """
    for name in names:
        if name != "all" and name not in NAMES:
            raise UsageError(f"--tables: no table {name!r}{suggest(name, [*NAMES, 'all'])}")
    return NAMES if "all" in names else tuple(dict.fromkeys(names))


def choice(names: Sequence[str], given: Source) -> Choice:
    """Exactly the tables that were named, and which of them are empty. Where none was: ours against
    the best other; a line a provider where that is short, and where nothing of ours has a time;
    then what profilers saw, and which runs these are if they are several."""
    runs = list(sheets.runs(given)) if given.short else []
    if names:
        kinds = chosen(names)
        made = {kind: _filled(make, given) for kind, make in KINDS.items() if kind in kinds}
        first = made.get("best", [])
        found = [sheet for kind, each in made.items() if kind != "best" for sheet in each]
        cases = given.rows if "cases" in kinds else ()
        notes = [best.note(given.rows)] if first else []
        note = "\n".join([*notes, *([NOTE] if made.get("documents") else [])])
        if empty := [kind for kind, each in made.items() if kind in names and not each]:
            note = f"{note}\nThese runs have nothing for --tables {','.join(empty)}.".strip()
        return Choice(given.rows, first, cases, [*found, *runs], "profiles" in kinds, note)
    held = best.held_up(given.rows)
    part = replace(given, rows=[row for row in given.rows if best.case_of(row) in held])
    others = [row for row in given.rows if best.case_of(row) not in held]
    first = _filled(best.best, part)
    few = _cases(given.rows) <= FEW
    cases = given.rows if few else others
    note = f"{best.note(part.rows)}\n{MORE if few else f'{EVERY} {MORE}'}" if first else ""
    return Choice(given.rows, first, cases, runs, True, note)


def _filled(make: Callable[[Source], Iterator[Sheet]], given: Source) -> list[Sheet]:
    return [sheet for sheet in make(given) if sheet.rows or not sheet.heads]


def _cases(rows: Sequence[Row]) -> int:
    """How many have a GPU's time."""
    return len({(row["run_id"], row["family"], row["case"]) for row in rows if has_time(row)})
