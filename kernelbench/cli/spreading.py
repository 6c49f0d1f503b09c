"""Verbs that spread work over many machines: fanout."""

from pathlib import Path
from typing import Annotated

import typer

from kernelbench.cli.app import app, narrow_of, plugins_of
from kernelbench.cli.options import (
    DeviceOption,
    FamilyOption,
    FilterOption,
    JsonOption,
    PluginOption,
    ProviderOption,
    QuickOption,
    QuietOption,
    SeedOption,
    SetOption,
    SkipOption,
    TimeoutOption,
    YesOption,
)


@app.command()
def fanout(
    engine: Annotated[
        str, typer.Argument(metavar="ENGINE", help="Name who runs the shards: slurm or ray.")
    ],
    suites: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SUITE]", help="Name a suite: a YAML file, or a shipped one."),
    ] = None,
    shards: Annotated[
        int,
        typer.Option(
            "--shards", metavar="N", min=1, max=10_000, help="Cut it into so many, for each GPU."
        ),
    ] = 2,
    by: Annotated[
        str,
        typer.Option("--by", metavar="HOW", help="Cut by hash, or by the time that jobs may take."),
    ] = "hash",
    family: FamilyOption = None,
    provider: ProviderOption = None,
    skip: SkipOption = None,
    filter: FilterOption = "",
    set_: SetOption = None,
    plugin: PluginOption = None,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    timeout: TimeoutOption = 300.0,
    quick: QuickOption = False,
    partition: Annotated[
        str, typer.Option("--partition", metavar="NAME", help="Submit to this one of Slurm.")
    ] = "",
    gres: Annotated[
        str,
        typer.Option("--gres", metavar="GRES", help="Ask Slurm for this, as gpu:{gpu}:{gpus}."),
    ] = "",
    time: Annotated[
        int, typer.Option("--time", metavar="MINUTES", min=0, help="Let a shard's job take it.")
    ] = 0,
    local: Annotated[
        bool, typer.Option("--local", help="Use this machine alone, without a cluster.")
    ] = False,
    no_wait: Annotated[
        bool,
        typer.Option("--no-wait", help="Leave Slurm jobs to themselves; --resume reports later."),
    ] = False,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Make its folder in this shared one.")
    ] = Path("results"),
    resume: Annotated[
        Path | None,
        typer.Option("--resume", metavar="DIR", help="Run what this fan-out lost, and report."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the shards, and submit nothing.")
    ] = False,
    yes: YesOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run a suite in shards on a Slurm or Ray cluster, and report it as one.

    Each shard is a `kernelbench run` of the source as it is now. The suite's `executor:` says where
    they run, its `gpus:` on which models; see docs/scale.md.

    Exit code: 0 all that was measured is well, 1 a provider is incorrect or failed, or a shard was
    lost, 2 bad input, 130 or 143 interrupted by Ctrl-C or SIGTERM.
    """
    from kernelbench.verbs import fanout as verb
    from kernelbench.verbs.screen import output_of

    given: dict[str, str | int] = {"partition": partition, "gres": gres, "time": time}
    request = verb.FanoutRequest(
        engine=engine,
        run=verb.RunRequest(
            suites=tuple(suites or ()),
            overrides=tuple(set_ or ()),
            plugins=plugins_of(plugin),
            narrow=narrow_of(family, provider, skip, filter=filter),
            quick=quick,
            device=device,
            seed=seed,
            resume=resume,
            out=out,
            timeout_s=timeout,
            dry_run=dry_run,
            yes=yes,
        ),
        count=shards,
        by=by,
        flags={name: value for name, value in given.items() if value},
        local=local,
        wait=not no_wait,
    )
    raise typer.Exit(verb.fanout(request, output_of(quiet=quiet, as_json=as_json)))
