"""Verbs that read results, without torch: report, claims, compare, history."""

from pathlib import Path
from typing import Annotated

import typer

from kernelbench.cli.app import app, console_of
from kernelbench.cli.options import (
    CaseOption,
    FamilyOption,
    JsonOption,
    ProviderOption,
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
    fail_on: Annotated[
        list[str] | None,
        typer.Option("--fail-on", metavar="VERDICT", help="Exit with 3 for such a verdict."),
    ] = None,
) -> None:
    """Figures that documents publish, beside what was measured; impossible ones by arithmetic.

    Needs no GPU and no torch.

    Exit code: 0 whatever the verdicts, 1 a record could not be read, 2 bad input, 3 --fail-on.
    """
    from kernelbench.report import claimed

    code = claimed.verb(
        files or [], against, format, fail_on or [], console_of(), console_of(err=True)
    )
    raise typer.Exit(code)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="Before: a run, or a folder of runs.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="After: likewise, of another build.")],
    fail_on: Annotated[
        str, typer.Option("--fail-on", metavar="slower:PCT%", help="Beyond it the exit code is 3.")
    ] = "slower:3%",
    form: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="table, md, json or csv.")
    ] = "table",
) -> None:
    """What became faster, slower or broken between two builds. Needs no GPU and no torch."""
    from kernelbench.compare import verb

    raise typer.Exit(verb.verb(a, b, fail_on, form, console_of(), console_of(err=True)))


@app.command()
def history(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of runs.")],
    metric: Annotated[
        str, typer.Option("--metric", metavar="NAME", help="A number of results.csv.")
    ] = "median_us",
    family: FamilyOption = None,
    provider: ProviderOption = None,
    case: CaseOption = None,
    form: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="table, json or csv.")
    ] = "table",
) -> None:
    """One number over the runs of a folder, and where its level changed. Needs no GPU."""
    from kernelbench.compare import trends
    from kernelbench.compare.history import Wanted

    wanted = Wanted(family or [], provider or [], case or [])
    raise typer.Exit(trends.verb(folder, metric, wanted, form, console_of(), console_of(err=True)))
