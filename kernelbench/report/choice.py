"""Which tables a report shows: those that were asked for, or a choice that reads well."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kernelbench.report import sheets
from kernelbench.report.documents import NOTE, documents
from kernelbench.report.means import has_time
from kernelbench.report.sheets import Row, Sheet, Source
from kernelbench.spec import UsageError, suggest

if TYPE_CHECKING:
    from pandas import DataFrame

MANY = 12  # cases on GPUs, beyond which a line a case says more than one a provider
KINDS: Mapping[str, Callable[[Source], Iterator[Sheet]]] = {"documents": documents, **sheets.MORE}
NAMES = ("cases", *KINDS, "profiles")
SHORT = (
    "A line a case, the fastest of each kind; every provider, with intervals and errors: "
    "--tables cases. More: --tables all."
)


@dataclass(frozen=True)
class Choice:
    """cases: what is shown a line a provider. sheets: the tables after it, and note: how to read
    them."""

    cases: "DataFrame"
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


def choice(names: Sequence[str], frame: "DataFrame", given: Source) -> Choice:
    """Exactly the tables that were named, and which of them are empty. Where none was: a line a
    provider where that is short, else a line a case; then what profilers saw, and which runs these
    are if they are several."""
    runs = list(sheets.runs(given)) if given.short else []
    if names:
        kinds = chosen(names)
        made = {kind: _filled(make, given) for kind, make in KINDS.items() if kind in kinds}
        found = [sheet for each in made.values() for sheet in each]
        cases = frame if "cases" in kinds else frame[:0]
        note = NOTE if made.get("documents") else ""
        if empty := [kind for kind, each in made.items() if kind in names and not each]:
            note = f"{note}\nThese runs have nothing for --tables {','.join(empty)}.".strip()
        return Choice(cases, [*found, *runs], "profiles" in kinds, note)
    keys = frame["family"] + "\n" + frame["mode"] + "\n" + frame["dtype"]
    short = keys.isin(_summed_up(given.rows))
    part = replace(given, rows=[row for row, is_in in zip(given.rows, short, strict=True) if is_in])
    found = _filled(documents, part)
    return Choice(frame[~short], [*found, *runs], True, f"{NOTE}\n{SHORT}" if found else "")


def _filled(make: Callable[[Source], Iterator[Sheet]], given: Source) -> list[Sheet]:
    return [sheet for sheet in make(given) if sheet.rows or not sheet.heads]


def _summed_up(rows: Sequence[Row]) -> set[str]:
    """Families, modes and dtypes that have something of ours to hold up, if cases are many."""
    timed = [row for row in rows if has_time(row)]
    cases = {(row["run_id"], row["family"], row["case"]) for row in timed}
    if len(cases) <= MANY:
        return set()
    ours = (row for row in timed if row["role"] == "triton_fused" and row["accuracy"] == "exact")
    return {f"{row['family']}\n{row['mode']}\n{row['dtype']}" for row in ours}
