"""`kernelbench compare`: two builds, on any machine, without torch."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kernelbench.compare import formats, tables
from kernelbench.compare.gate import gate_of
from kernelbench.compare.rows import Comparison
from kernelbench.compare.sides import noise_of, read_runs, sides
from kernelbench.compare.verdicts import compare as judge
from kernelbench.report.progress import Output
from kernelbench.report.waits import waiting

TEXTS: dict[str, Callable[[Comparison], str]] = {
    "md": formats.as_markdown,
    "json": formats.as_json,
    "csv": formats.as_csv,
}
FORMATS = ("table", *TEXTS)
FAIL_ON = "slower:3%,broken,gone,unjudged"
LEAST = "90%"


@dataclass(frozen=True, kw_only=True)
class CompareRequest:
    """What `kernelbench compare` is asked: two runs, or folders of runs, before and after.

    fail_on: what is a regression. least: the share of A's timed rows that must be judged.
    noise_from: earlier runs of this machine.
    """

    a: Path
    b: Path
    fail_on: str = FAIL_ON
    least: str = LEAST
    noise_from: Path | None = None
    format: str = "table"


def compare(request: CompareRequest, output: Output) -> int:
    """Print what became of every row from A to B. Exit code 3 where one regressed, else 2 where too
    little is judged, else 1 where a line could not be read, so that a row may be missing, else 0.

    Raises UsageError for options that are none and for sides that cannot be held against each
    other, and KernelbenchError where nothing can be judged.
    """
    formats.known_format(request.format, FORMATS)
    gate = gate_of(request.fail_on, request.least)
    say = None if request.format == "json" else output.err
    with waiting("reading the runs", say):
        before, after, problems = sides(request.a, request.b)
        earlier, torn = read_runs(request.noise_from) if request.noise_from else ((), [])
    for problem in [*problems, *torn]:
        output.warn(problem)
    with waiting("judging every row", say):
        comparison = judge(before, after, gate, noise_of(earlier, before, after))
    if request.format == "table":
        tables.render(comparison, output.console)
    else:
        end = "" if request.format == "csv" else "\n"
        print(TEXTS[request.format](comparison), end=end)
    if comparison.undecided:
        output.errors.print(
            f"error: {comparison.undecided}", style="red", markup=False, soft_wrap=True
        )
    return comparison.exit_code or int(bool([*problems, *torn]))
