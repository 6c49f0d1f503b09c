"""Ours against the best other, a line a case: what a report says first."""

from collections.abc import Iterator, Sequence

from kernelbench.metrics import said
from kernelbench.report.documents import untimed_reasons
from kernelbench.report.means import has_time, over_what, within_noise
from kernelbench.report.sheet import Row, Sheet, Source, by_case, without_empty_columns
from kernelbench.report.tables import figures, percent, short_time
from kernelbench.spec import Role, Status

_NAMES = {"times": "median_us", "×": "speedup_best", "% of ceiling, bound by": "sol_pct"}
OURS = "triton_fused"  # the role, and what most families call the provider
HEADS = ("case", "run", "ours", "best other", "its time", "× best other\n[95 %]",
         "% of ceiling\nbound by", "")  # fmt: skip
WORDS = frozenset({"case", "run", "best other", ""})


def note(rows: Sequence[Row]) -> str:
    """How to read these tables. rows: those in the tables."""
    return (
        f"{said(_NAMES)} Best other: the fastest of the same accuracy that is not ours; above 1 "
        f"ours is faster. [95 %]: {over_what(rows)}. ~: no difference beyond noise. Ceiling: the "
        "time at this machine's own measured limits, over ours. !: flagged."
    )


def best(source: Source) -> Iterator[Sheet]:
    """One sheet a family, mode, dtype, GPU and provider of ours; the lines of a case that several
    runs have stand together. Skipped cases are counted below, with the reason."""
    parts: dict[tuple[str, ...], list[Row]] = {}
    for row in source.rows:
        parts.setdefault(_part(row), []).append(row)
    for key, rows in parts.items():
        timed = (row for row in rows if _is_ours(row) and has_time(row))
        for name, accuracy in dict.fromkeys((row["provider"], row["accuracy"]) for row in timed):
            provider = [] if name == OURS else [str(name)]
            title = [*key, *provider, *([] if accuracy == "exact" else [str(accuracy)])]
            comparable = [row for row in rows if row["accuracy"] == accuracy]
            yield _sheet(" · ".join(title), source, comparable, str(name))


def covered_cases(rows: Sequence[Row]) -> set[tuple[str, ...]]:
    """The cases that have a line here, as `case_of` names them."""
    ours = [row for row in rows if _is_ours(row)]
    parts = {_part(row) for row in ours if has_time(row)}
    return {case_of(row) for row in ours if _part(row) in parts}


def case_of(row: Row) -> tuple[str, ...]:
    return (str(row["run_id"]), str(row["case"]), *_part(row))


def _part(row: Row) -> tuple[str, ...]:
    """The values that name a sheet."""
    return tuple(str(row[name]) for name in ("family", "mode", "dtype", "gpu"))


def _is_ours(row: Row) -> bool:
    return row["role"] == OURS and "prepacked" not in str(row["flags"]).split(";")


def _sheet(title: str, source: Source, rows: Sequence[Row], name: str) -> Sheet:
    """rows: of the same accuracy as our provider `name`."""
    cases = {row["case"] for row in rows if row["provider"] == name}
    present = [row for row in rows if row["case"] in cases]
    lines = by_case(source, present, lambda part: _cells(part, name))
    # Not failures, which a report lists first.
    skipped = [row for row in present if row["status"] == Status.skipped]
    return without_empty_columns(
        Sheet(title, HEADS, lines, "\n".join(untimed_reasons(skipped)), WORDS, labelled=True)
    )


def _cells(part: Sequence[Row], name: str) -> tuple[str, ...]:
    """A case's cells: our time, the best other and its time, ×, % of ceiling and what bounds it."""
    ours = next((row for row in part if row["provider"] == name), None)
    timed = {str(row["provider"]): row for row in part if has_time(row)}
    if ours is None or name not in timed:
        others = [row for row in timed.values() if not Role(row["role"]).ours]
        other = min(others, key=lambda row: float(row["median_us"]), default=None)
        return (str(ours["status"]) if ours else "", *_other(other), "", "")
    other = timed.get(str(ours["best_other"]))
    return (
        _time(ours),
        *_other(other),
        _ratio(ours) if other else "none ran",
        f"{percent(ours['sol_pct'])} {ours['bound']}".strip(),
    )


def _other(row: Row | None) -> tuple[str, str]:
    return (str(row["provider"]), _time(row)) if row else ("", "")


def _time(row: Row) -> str:
    return f"{short_time(row['median_us'])}{'!' * bool(row['flags'])}"


def _ratio(row: Row) -> str:
    mid = "~" if within_noise(row, "speedup_best") else figures(row["speedup_best"])
    lo, hi = (figures(row[f"speedup_best_{end}"]) for end in ("lo", "hi"))
    return f"{mid} [{lo}, {hi}]" if lo and hi else mid
