"""`kernelbench report`: tables from run folders, on any machine, without torch."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from kernelbench import metrics, store
from kernelbench.report import profiles, tables
from kernelbench.spec import Measured, RunRecord, UsageError, suggest


def report(
    folders: Sequence[Path],
    families: Sequence[str],
    console: Console,
    errors: Console,
    as_json: bool,
) -> int:
    """Print what the runs hold; name what cannot be read. Exit code 1 if a provider is bad or a
    line could not be read.

    Raises UsageError for a folder without runs and for a family that no run has.
    """
    runs = store.find_runs(folders)
    if not runs:
        raise UsageError(f"no run in {', '.join(map(str, folders))}: kernelbench run smoke")
    records, measured, problems = list[RunRecord](), list[Measured](), list[str]()
    for run in runs:
        found, damaged = store.read_with_problems(run)
        seen, torn = store.read_measured(run)
        records, measured = [*records, *found], [*measured, *seen]
        problems += [*damaged, *torn]
    for problem in problems:
        errors.print(problem, style="yellow", highlight=False, markup=False, soft_wrap=True)
    known = dict.fromkeys([r.family for r in records] + [one.family for one in measured])
    for family in families:
        if family not in known:
            raise UsageError(
                f"--family: no family {family!r} in these runs{suggest(family, known)}"
            )
    records = [record for record in records if not families or record.family in families]
    measured = [one for one in measured if not families or one.family in families]
    if as_json:
        print(json.dumps(metrics.rows_json(records), allow_nan=False))
    else:
        if records or not measured:
            tables.render(metrics.frame(records), console)
        profiles.render(measured, console)
    if problems:
        errors.print(f"{len(problems)} line{'s' * (len(problems) != 1)} could not be read")
    return int(bool(problems) or any(record.status.bad for record in records))
