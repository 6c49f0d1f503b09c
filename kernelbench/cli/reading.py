"""Verbs that read results, without torch: report."""

from pathlib import Path
from typing import Annotated

import typer

from kernelbench.cli.app import app, console_of
from kernelbench.cli.options import (
    FamilyOption,
    JsonOption,
)


@app.command()
def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Run folders, or folders of them.")
    ],
    family: FamilyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tables of what was measured. Needs no GPU and no torch."""
    from kernelbench.report import verb

    raise typer.Exit(
        verb.report(folders, family or [], console_of(), console_of(err=True), as_json)
    )
