"""Verbs that make files to begin with: new."""

from pathlib import Path
from typing import Annotated

import typer

from kernelbench.cli.app import new_app


@new_app.callback()
def new() -> None:
    """Write files to begin with, complete, to be edited.

    Exit code: 0 well, 2 bad input.
    """


@new_app.command()
def family(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name the family, as a Python module is named.")
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Write into this folder.")
    ] = Path(),
) -> None:
    """Write NAME.py, a family that passes its checks, and test_NAME.py, which proves it.

    It computes a softmax until you edit it. Files that are there already are left as they are.

    Exit code: 0 well, 2 bad input.
    """
    from kernelbench.verbs import new as verb
    from kernelbench.verbs.screen import output_of

    raise typer.Exit(verb.family(verb.FamilyRequest(name=name, out=out), output_of()))
