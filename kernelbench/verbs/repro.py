"""`kernelbench repro`: a script that reproduces one record with torch and triton alone."""

from dataclasses import dataclass
from pathlib import Path

from kernelbench import files
from kernelbench.report.progress import Output
from kernelbench.report.waits import waiting
from kernelbench.repro import record


@dataclass(frozen=True, kw_only=True)
class ReproRequest:
    """What `kernelbench repro` is asked.

    case: its id, or FAMILY/ID. provider: its name; else our headline's, else the baseline. run: a
    run folder, or one of runs. out: a file instead of the terminal.
    """

    case: str
    provider: str = ""
    run: Path | None = None
    plugins: tuple[str, ...] = ()
    out: Path | None = None


def repro(request: ReproRequest, output: Output) -> int:
    """Print or write the script. Exit code 1 where a record could not be read.

    Raises UsageError for a case, provider or family that is not there; KernelbenchError for a file
    that cannot be written.
    """
    with waiting("reading the run, and loading the families", output.waits):
        text, problems = record.repro(
            request.case, request.provider, request.run, request.plugins, request.out
        )
    for problem in problems:
        output.err(problem)
    files.write(files.STDOUT, text)
    return int(bool(problems))
