"""Verbs that read results, without torch: report, claims."""

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


@app.command()
def claims(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FILE|DIR]...", help="Claims files, or folders of them; else shipped ones."
        ),
    ] = None,
    against: Annotated[
        Path | None, typer.Option("--against", metavar="DIR", help="Runs to hold them against.")
    ] = None,
    format: Annotated[str, typer.Option("--format", help="table, md, json or csv.")] = "table",
) -> None:
    """Figures that documents publish, beside what was measured; impossible ones by arithmetic.

    Needs no GPU and no torch.
    """
    from kernelbench.report import claimed

    raise typer.Exit(claimed.verb(files or [], against, format, console_of(), console_of(err=True)))
