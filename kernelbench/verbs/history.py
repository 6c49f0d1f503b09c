"""`kernelbench history`: one number over the runs of a folder, without torch."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from kernelbench.compare import trends
from kernelbench.compare.formats import known_format
from kernelbench.compare.history import METRIC, Narrowing, series
from kernelbench.compare.sides import read_runs
from kernelbench.report.progress import Output
from kernelbench.report.waits import waiting

FORMATS = ("table", "json", "csv")


@dataclass(frozen=True, kw_only=True)
class HistoryRequest:
    """What `kernelbench history` is asked: a number of the runs of a folder, and of which rows."""

    folder: Path
    metric: str = METRIC
    families: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    cases: tuple[str, ...] = ()
    format: str = "table"


def history(request: HistoryRequest, output: Output) -> int:
    """Print a metric over the runs of a folder. Exit code 1 where a line could not be read.

    Raises UsageError for options that are none, and KernelbenchError as `read_runs` does.
    """
    known_format(request.format, FORMATS)
    say = None if request.format == "json" else output.err
    with waiting("reading the runs", say):
        runs, problems = read_runs(request.folder)
    for problem in problems:
        output.warn(problem)
    narrowing = Narrowing(request.families, request.providers, request.cases)
    with waiting("looking for levels", say):
        lines = series(runs, request.metric, narrowing)
    if request.format == "json":
        print(json.dumps([asdict(line) for line in lines], allow_nan=False))
    elif request.format == "csv":
        print(trends.as_csv(lines), end="")
    else:
        trends.render(lines, output.console)
    return int(bool(problems))
