"""`kernelbench compare`, on any machine, without torch."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.console import Console

from kernelbench.compare import formats, tables
from kernelbench.compare.gate import gate_of
from kernelbench.compare.rows import Comparison
from kernelbench.compare.sides import noise_of, read_runs, sides
from kernelbench.compare.verdicts import compare
from kernelbench.report.waiting import waiting

TEXTS: dict[str, Callable[[Comparison], str]] = {
    "md": formats.as_markdown,
    "json": formats.as_json,
    "csv": formats.as_csv,
}
FORMATS = ("table", *TEXTS)


def verb(
    a: Path,
    b: Path,
    fail_on: str,
    least: str,
    noise_from: Path | None,
    form: str,
    console: Console,
    errors: Console,
) -> int:
    """Print what became of every row from A to B. Exit code 3 where one regressed, else 2 where too
    little is judged, else 1 where a line could not be read, so that a row may be missing, else 0.

    Raises UsageError for options that are none and for sides that cannot be held against each
    other, and KernelbenchError where nothing can be judged.
    """
    formats.known_format(form, FORMATS)
    gate = gate_of(fail_on, least)
    say = None if form == "json" else partial(errors.print, highlight=False, markup=False)
    with waiting("reading the runs", say):
        before, after, problems = sides(a, b)
        earlier, torn = read_runs(noise_from) if noise_from else ((), [])
    problems += torn
    for problem in problems:
        errors.print(problem, style="yellow", highlight=False, markup=False, soft_wrap=True)
    with waiting("judging every row", say):
        found = compare(before, after, gate, noise_of(earlier, before, after))
    if form == "table":
        tables.render(found, console)
    else:
        print(TEXTS[form](found), end="" if form == "csv" else "\n")
    if found.undecided:
        errors.print(f"error: {found.undecided}", style="red", markup=False, soft_wrap=True)
    return found.exit_code or int(bool(problems))
