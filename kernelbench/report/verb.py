"""`kernelbench report`: tables from run folders, on any machine, without torch."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from kernelbench import metrics, store
from kernelbench.report import tables
from kernelbench.spec import UsageError, suggest


def report(
    folders: Sequence[Path],
    families: Sequence[str],
    console: Console,
    errors: Console,
    as_json: bool,
) -> int:
    """Print what the runs hold; name what cannot be read. Exit code 1 if a provider is bad.

    Raises UsageError for a folder without runs and for a family that no run has.
    """
    runs = store.find_runs(folders)
    if not runs:
        raise UsageError(f"no run in {', '.join(map(str, folders))}: kernelbench run smoke")
    records = []
    for run in runs:
        found, problems = store.read_with_problems(run)
        records.extend(found)
        for problem in problems:
            errors.print(problem, style="yellow", highlight=False, markup=False, soft_wrap=True)
    known = dict.fromkeys(record.family for record in records)
    for family in families:
        if family not in known:
            raise UsageError(
                f"--family: no family {family!r} in these runs{suggest(family, known)}"
            )
    records = [record for record in records if not families or record.family in families]
    frame = metrics.frame(records)
    if as_json:
        print(frame.to_json(orient="records"))
    else:
        tables.render(frame, console)
    return int(any(record.status.bad for record in records))
