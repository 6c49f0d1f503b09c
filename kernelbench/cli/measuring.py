"""Verbs that measure, and those about the machine: run, check, list, doctor, cache."""

import json
from pathlib import Path
from typing import Annotated

import typer

from kernelbench.cli.app import (
    app,
    asked_of,
    cache_app,
    console_of,
    narrow_of,
    output_of,
    plugins_of,
)
from kernelbench.cli.options import (
    CaseOption,
    DeviceOption,
    DTypeOption,
    FamilyOption,
    FilterOption,
    JsonOption,
    ModeOption,
    PluginOption,
    ProviderOption,
    QuietOption,
    SeedOption,
    SetOption,
    SkipOption,
    Suites,
    TimeoutOption,
    TraceOption,
    VerboseOption,
    YesOption,
)
from kernelbench.report.waiting import waiting

LOADING = "loading the families, which import torch"


@app.command()
def run(
    suites: Suites = None,
    family: FamilyOption = None,
    provider: ProviderOption = None,
    skip: SkipOption = None,
    case: CaseOption = None,
    filter: FilterOption = "",
    mode: ModeOption = None,
    dtype: DTypeOption = None,
    set_: SetOption = None,
    plugin: PluginOption = None,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Make the run's folder in this one.")
    ] = Path("results"),
    resume: Annotated[
        Path | None,
        typer.Option("--resume", metavar="RUN_DIR", help="Measure what this run still lacks."),
    ] = None,
    timeout: TimeoutOption = 300.0,
    budget: Annotated[
        str,
        typer.Option("--budget", metavar="TIME", help="Stop after 90s or 10m, say; go on later."),
    ] = "",
    quick: Annotated[
        bool, typer.Option("--quick", help="Take few samples, with one clock, in one process.")
    ] = False,
    tune: Annotated[
        bool, typer.Option("--tune", help="Search the best kernel configs first, and keep them.")
    ] = False,
    no_interleave: Annotated[
        bool, typer.Option("--no-interleave", help="Time one provider after the other.")
    ] = False,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", help="Stop at the first provider that fails.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the jobs, and measure nothing.")
    ] = False,
    yes: YesOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
) -> None:
    """Prove every provider of a suite right, then time it with the others of its case.

    Without a suite: smoke, the one that every machine can run.

    Exit code: 0 all that was measured is well, 1 a provider is incorrect or failed, 2 bad input,
    130 or 143 interrupted by Ctrl-C or SIGTERM.
    """
    from kernelbench.run.loop import Options
    from kernelbench.suite.request import seconds
    from kernelbench.verbs import run as verbs

    time = seconds(budget) if budget else None
    asked = asked_of(
        device,
        overrides=tuple(set_ or ()),
        plugin=plugin,
        narrow=narrow_of(family, provider, skip, case, filter, mode, dtype),
        quick=quick,
        interleave=not no_interleave,
        tune=tune,
        seed=seed,
    )
    options = Options(timeout=timeout, fail_fast=fail_fast)
    output = output_of(quiet=quiet, verbose=verbose, as_json=as_json)
    if not suites and not resume:
        output.note(verbs.UNNAMED)
    with waiting(LOADING, output.waits):
        plans = verbs.resumed(resume, suites or [], asked) if resume else verbs.begun(suites, asked)
    verbs.refuse_many(plans, yes)
    if dry_run:
        verbs.show_jobs(plans, output)
        return
    raise typer.Exit(verbs.measure(plans, options, out, output, time))


@app.command()
def check(
    suites: Suites = None,
    family: FamilyOption = None,
    provider: ProviderOption = None,
    skip: SkipOption = None,
    case: CaseOption = None,
    filter: FilterOption = "",
    mode: ModeOption = None,
    dtype: DTypeOption = None,
    set_: SetOption = None,
    plugin: PluginOption = None,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    timeout: TimeoutOption = 300.0,
    dump: Annotated[
        Path | None,
        typer.Option(
            "--dump", metavar="DIR", help="Keep inputs, answers and oracle here, as .pt files."
        ),
    ] = None,
    yes: YesOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
) -> None:
    """Prove providers right, without timing them.

    Without a suite: on every family's own small cases. Nothing is stored but what --dump asks for.

    Exit code: 0 all are right, 1 a provider is incorrect or failed, 2 bad input, 130 or 143
    interrupted by Ctrl-C or SIGTERM.
    """
    from kernelbench.run.loop import Options
    from kernelbench.verbs import run as verbs

    asked = asked_of(
        device,
        overrides=tuple(set_ or ()),
        plugin=plugin,
        narrow=narrow_of(family, provider, skip, case, filter, mode, dtype),
        seed=seed,
    )
    options = Options(
        timeout=timeout, timing=False, dump=str(dump.resolve()) if dump is not None else ""
    )
    output = output_of(quiet=quiet, verbose=verbose, as_json=as_json)
    raise typer.Exit(verbs.check(suites or [], asked, options, yes, output))


@app.command("list")
def list_(
    suites: Suites = None,
    family: FamilyOption = None,
    plugin: PluginOption = None,
    verbose: TraceOption = False,
    as_json: JsonOption = False,
) -> None:
    """List families with their providers and axes, or the jobs of suites.

    Exit code: 0 well, 2 bad input.
    """
    if suites:
        from kernelbench.verbs import run as verbs

        asked = asked_of("auto", plugin=plugin, narrow=narrow_of(family))
        output = output_of(as_json=as_json)
        with waiting(LOADING, output.waits):
            plans = verbs.begun(suites, asked)
        verbs.show_jobs(plans, output)
    else:
        from kernelbench.verbs import list as listing

        listing.show_families(family or [], plugins_of(plugin), console_of(), as_json)


@app.command()
def doctor(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show where programs are, too.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what this machine can do, which optional parts are here, and how to get the others.

    Exit code: 0 all that is needed is here, 2 something is missing.
    """
    from kernelbench.verbs.doctor import examine, show

    with waiting("asking torch for its GPU", None if as_json else console_of(err=True).print):
        findings = examine()
    show(findings, console_of(), as_json, verbose=verbose)
    missing = [finding.what for finding in findings if finding.ok is False]
    if missing:
        typer.echo(f"exit 2: missing: {', '.join(missing)}", err=True)
    raise typer.Exit(2 if missing else 0)


@cache_app.callback()
def cache(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """Show or clear what is kept: configs that `--tune` found, figures that `report` derived.

    Exit code: 0 well, 2 bad input.
    """
    if ctx.invoked_subcommand is None:
        from kernelbench.measure.tune import cache_dir, cached_files
        from kernelbench.report import kept

        count, folder = len(cached_files()), str(cache_dir())
        reports, below = len(kept.files()), str(kept.folder())
        if as_json:
            facts = {"folder": folder, "configs": count, "reports": below, "derived": reports}
            typer.echo(json.dumps(facts))
        else:
            typer.echo(f"{count} tuned configs in {folder}")
            typer.echo(f"{reports} runs' derived figures in {below}")


@cache_app.command()
def clear() -> None:
    """Forget every tuned config, and every figure that `report` derived.

    Exit code: 0 well, 2 bad input.
    """
    from kernelbench.measure.tune import clear as forget
    from kernelbench.report import kept

    typer.echo(f"{forget()} tuned configs forgotten")
    typer.echo(f"{kept.clear()} runs' derived figures forgotten")
