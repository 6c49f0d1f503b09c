"""`kernelbench compare`, on any machine, without torch."""

import re
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from kernelbench.compare import formats, tables
from kernelbench.compare.rows import LIMIT_PCT, Comparison
from kernelbench.compare.sides import sides
from kernelbench.compare.verdicts import compare
from kernelbench.spec import UsageError

TEXTS: dict[str, Callable[[Comparison], str]] = {
    "md": formats.as_markdown,
    "json": formats.as_json,
    "csv": formats.as_csv,
}
FORMATS = ("table", *TEXTS)
_LIMIT = re.compile(r"slower:([0-9]+(?:\.[0-9]+)?)%")
MOST_PCT = 1000.0


def limit_of(text: str) -> float:
    """`slower:3%` → 3.0. Raises UsageError for anything else."""
    given = _LIMIT.fullmatch(text.strip())
    if not given or not 0 < float(given[1]) <= MOST_PCT:
        raise UsageError(
            f"--fail-on: {text!r} is no limit; it is slower:PERCENT%, above 0 and at most "
            f"{MOST_PCT:g}, such as slower:{LIMIT_PCT:g}%"
        )
    return float(given[1])


def verb(a: Path, b: Path, fail_on: str, form: str, console: Console, errors: Console) -> int:
    """Print what became of every row from A to B. Exit code 3 where one regressed, else 1
    where a line could not be read, so that a row may be missing, else 0.

    Raises UsageError for options that are none and for sides that cannot be held against each
    other, and KernelbenchError where nothing can be judged.
    """
    formats.known_format(form, FORMATS)
    limit = limit_of(fail_on)
    before, after, problems = sides(a, b)
    for problem in problems:
        errors.print(problem, style="yellow", highlight=False, markup=False, soft_wrap=True)
    found = compare(before, after, limit)
    if form == "table":
        tables.render(found, console)
    else:
        print(TEXTS[form](found), end="" if form == "csv" else "\n")
    return found.exit_code or int(bool(problems))
