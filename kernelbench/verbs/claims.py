"""`kernelbench claims`: figures that documents publish, against what was measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kernelbench import claims as claimed
from kernelbench import store
from kernelbench.report import claim_tables as tables
from kernelbench.report.progress import Output
from kernelbench.report.waits import waiting
from kernelbench.spec import Measured, RunRecord, UsageError, suggest

TEXTS: dict[str, Callable[[Sequence[claimed.ClaimRow]], str]] = {
    "md": tables.markdown,
    "json": tables.to_json,
    "csv": tables.to_csv,
}
FORMATS = ("table", *TEXTS)


@dataclass(frozen=True, kw_only=True)
class ClaimsRequest:
    """What `kernelbench claims` is asked.

    files: of claims, or folders of them; those shipped if there is none. against: a run, or a
    folder of runs. fail_on: verdicts.
    """

    files: tuple[Path, ...] = ()
    against: Path | None = None
    format: str = "table"
    fail_on: tuple[str, ...] = ()


def claims(request: ClaimsRequest, output: Output) -> int:
    """Print the verdicts; name what could not be read. Exit code 1 if a record's line could not be
    read, 3 for a verdict of `fail_on`.

    Raises UsageError for a format, a verdict, a file or a folder that is none.
    """
    if request.format not in FORMATS:
        raise UsageError(f"--format: no {request.format!r}{suggest(request.format, FORMATS)}")
    dreaded = {_verdict(word) for word in request.fail_on}
    say = None if request.format == "json" else output.err
    files = claimed.load(request.files or claimed.shipped())
    with waiting("reading the runs", say):
        records, measured, problems = _read(request.against)
    for problem in problems:
        output.warn(problem)
    with waiting("holding claims against them", say):
        rows = claimed.rows(records, files, measured)
    if request.format == "table":
        tables.render(rows, output.console)
    else:
        print(TEXTS[request.format](rows), end="")
    hit = [row for row in rows if row.verdict in dreaded]
    for row in hit:
        output.err(f"{row.document.id} {row.claim.id}: {row.verdict_text}")
    if hit:
        return 3
    if dreaded and not any(row.evidence.value for row in rows):
        raise UsageError(
            "--fail-on: no claim was held against a measurement. Name runs that hold what they are "
            "of: --against DIR"
        )
    return int(bool(problems))


def _verdict(word: str) -> claimed.Verdict:
    known = {str(verdict).replace(" ", "-"): verdict for verdict in claimed.Verdict}
    if word not in known:
        raise UsageError(f"--fail-on: no verdict {word!r}{suggest(word, known)}")
    return known[word]


def _read(against: Path | None) -> tuple[list[RunRecord], list[Measured], list[str]]:
    records, measured, problems = list[RunRecord](), list[Measured](), list[str]()
    runs = store.find_runs([against]) if against else []
    if against and not runs:
        raise UsageError(f"--against: no run in {against}: kernelbench run smoke")
    for run in runs:
        whole, damaged = store.read_with_problems(run)
        seen, torn = store.read_measured(run)
        records, measured = [*records, *whole], [*measured, *seen]
        problems += [*damaged, *torn]
    return records, measured, problems
