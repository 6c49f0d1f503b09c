"""Verbs that read results, without torch: report, claims, compare, history, select; and repro."""

from pathlib import Path
from typing import Annotated

import typer

from kernelbench.cli.app import app, plugins_of
from kernelbench.cli.options import (
    CaseOption,
    FamilyOption,
    JsonOption,
    PluginOption,
    ProviderOption,
    TraceOption,
)


@app.command()
def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Name run folders, or folders of them.")
    ],
    family: FamilyOption = None,
    baseline: Annotated[
        str,
        typer.Option("--baseline", metavar="PROVIDER", help="Derive speedups against this one."),
    ] = "",
    format: Annotated[
        str,
        typer.Option("--format", metavar="FORMAT", help="Write table, md, html, csv or json."),
    ] = "table",
    tables: Annotated[
        str,
        typer.Option(
            "--tables",
            metavar="NAMES",
            help="Show these: best, cases, traffic, documents, portability, memory, scaling, "
            "ranks, launch, breakeven, environment, profiles, or all.",
        ),
    ] = "",
    claims: Annotated[
        bool, typer.Option("--claims", help="Show beside it what documents claim.")
    ] = False,
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="TOOL", help="Export to github, hud, wandb or tensorboard, too."
        ),
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write to this file, not to the terminal."),
    ] = None,
    junit: Annotated[
        Path | None, typer.Option("--junit", metavar="FILE", help="Write this JUnit XML, too.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what was measured, in tables or in files.

    Needs no GPU and no torch. Appended as Markdown to $GITHUB_STEP_SUMMARY where that is set.

    Exit code: 0 all well, 1 a provider is bad or something could not be read, 2 bad input.
    """
    from kernelbench.verbs import report as verb
    from kernelbench.verbs.screen import output_of

    request = verb.ReportRequest(
        folders=tuple(folders),
        families=tuple(family or ()),
        format="json" if as_json else format,
        baseline=baseline,
        tables=tuple(name.strip() for name in tables.split(",") if name.strip()),
        out=out,
        junit=junit,
        claims=claims,
        to=to,
    )
    raise typer.Exit(verb.report(request, output_of()))


@app.command()
def repro(
    case: Annotated[
        str, typer.Argument(metavar="CASE-ID", help="Name a case, also as FAMILY/CASE-ID.")
    ],
    provider: Annotated[
        str,
        typer.Option("--provider", "-p", metavar="PROVIDER", help="Take this one, not ours."),
    ] = "",
    run: Annotated[
        Path | None,
        typer.Option(
            "--run", metavar="DIR", help="Look in this run, or folder of runs, not in results."
        ),
    ] = None,
    plugin: PluginOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write to this file, not to the terminal."),
    ] = None,
    verbose: TraceOption = False,
) -> None:
    """Print a script that reproduces one record with torch and triton alone.

    Exit code: 0 well, 1 a record could not be read, 2 bad input.
    """
    from kernelbench.verbs import repro as verb
    from kernelbench.verbs.screen import output_of

    request = verb.ReproRequest(
        case=case, provider=provider, run=run, plugins=plugins_of(plugin), out=out
    )
    raise typer.Exit(verb.repro(request, output_of()))


@app.command()
def claims(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FILE|DIR]...",
            help="Name claims files, or folders of them; without, those shipped.",
        ),
    ] = None,
    against: Annotated[
        Path | None, typer.Option("--against", metavar="DIR", help="Hold them against these runs.")
    ] = None,
    format: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="Write table, md, json or csv.")
    ] = "table",
    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-on", metavar="VERDICT", help="Exit with 3 for such a verdict (repeatable)."
        ),
    ] = None,
) -> None:
    """Hold figures that documents publish against what was measured, and against arithmetic.

    Needs no GPU and no torch.

    Exit code: 0 whatever the verdicts, 1 a record could not be read, 2 bad input, 3 --fail-on.
    """
    from kernelbench.verbs import claims as verb
    from kernelbench.verbs.screen import output_of

    request = verb.ClaimsRequest(
        files=tuple(files or ()), against=against, format=format, fail_on=tuple(fail_on or ())
    )
    raise typer.Exit(verb.claims(request, output_of()))


@app.command()
def compare(
    a: Annotated[
        Path, typer.Argument(metavar="A", help="Name a run, or a folder of runs, from before.")
    ],
    b: Annotated[
        Path,
        typer.Argument(metavar="B", help="Name a run, or a folder of runs, of the other build."),
    ],
    fail_on: Annotated[
        str,
        typer.Option(
            "--fail-on",
            metavar="KINDS",
            help="Exit with 3 for any of slower:PCT%, broken, gone, unjudged.",
        ),
    ] = "slower:3%,broken,gone,unjudged",
    least: Annotated[
        str,
        typer.Option(
            metavar="PCT%", help="Exit with 2 where fewer of A's timed rows can be judged."
        ),
    ] = "90%",
    noise_from: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Read this machine's noise from these earlier runs."),
    ] = None,
    form: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="Write table, md, json or csv.")
    ] = "table",
) -> None:
    """Show what became faster, slower or broken between two builds.

    Needs no GPU and no torch.

    Exit code: 0 well, 1 a record could not be read, 2 bad input or too little is judged, 3
    --fail-on.
    """
    from kernelbench.verbs import compare as verb
    from kernelbench.verbs.screen import output_of

    request = verb.CompareRequest(
        a=a, b=b, fail_on=fail_on, least=least, noise_from=noise_from, format=form
    )
    raise typer.Exit(verb.compare(request, output_of()))


@app.command()
def history(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Name a folder of runs.")],
    metric: Annotated[
        str, typer.Option("--metric", metavar="NAME", help="Follow this number of results.csv.")
    ] = "median_us",
    family: FamilyOption = None,
    provider: ProviderOption = None,
    case: CaseOption = None,
    form: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="Write table, json or csv.")
    ] = "table",
) -> None:
    """Follow one number over the runs of a folder, and show where its level changed.

    Needs no GPU and no torch.

    Exit code: 0 well, 1 a record could not be read, 2 bad input.
    """
    from kernelbench.verbs import history as verb
    from kernelbench.verbs.screen import output_of

    request = verb.HistoryRequest(
        folder=folder,
        metric=metric,
        families=tuple(family or ()),
        providers=tuple(provider or ()),
        cases=tuple(case or ()),
        format=form,
    )
    raise typer.Exit(verb.history(request, output_of()))


@app.command()
def select(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DIR|SUITE]...", help="Name runs, or suites, which are measured first."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write the table here.")
    ] = None,
    python: Annotated[
        Path | None,
        typer.Option("--python", metavar="FILE", help="Write the choices here, as Python."),
    ] = None,
    verify: Annotated[
        Path | None,
        typer.Option("--verify", metavar="FILE", help="Hold this table against these runs."),
    ] = None,
    margin: Annotated[
        float,
        typer.Option("--margin", metavar="RATIO", help="Choose what is faster by this at least."),
    ] = 1.03,
    approximate: Annotated[
        bool, typer.Option("--approximate", help="Choose approximate providers, too.")
    ] = False,
    family: FamilyOption = None,
    provider: ProviderOption = None,
    plugin: PluginOption = None,
    runs: Annotated[
        Path, typer.Option("--runs", metavar="DIR", help="Keep new runs in this folder.")
    ] = Path("results"),
    as_json: JsonOption = False,
) -> None:
    """Choose a provider for each measured case, and write the choices as a dispatch table.

    One is chosen over the baseline where it is right, and the lower end of its speedup's
    interval exceeds the margin. Of runs it needs no torch.

    --verify: the table was made from other cases; what its choices lose at these is shown.

    Exit code: 0 well, 1 a regret is too large or a record could not be read, 2 bad input.
    """
    from kernelbench.verbs import select as verb
    from kernelbench.verbs.screen import output_of

    request = verb.SelectRequest(
        sources=tuple(sources or ()),
        families=tuple(family or ()),
        rules=verb.rules(margin, approximate, tuple(provider or ())),
        out=out,
        python=python,
        verify=verify,
        plugins=plugins_of(plugin),
        runs=runs,
    )
    raise typer.Exit(verb.select_(request, output_of(as_json=as_json)))
