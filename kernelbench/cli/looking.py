"""Verbs that look inside: profile, inspect."""

from pathlib import Path
from typing import Annotated

import typer

from kernelbench.cli.app import app, narrow_of, plugins_of
from kernelbench.cli.options import (
    CaseOption,
    DeviceOption,
    FamilyOption,
    JsonOption,
    PluginOption,
    ProviderOption,
    QuietOption,
    SeedOption,
    TraceOption,
    Words,
    YesOption,
)
from kernelbench.spec import Tool, UsageError


@app.command()
def profile(
    words: Annotated[
        Words,
        typer.Argument(
            metavar="[SUITE|CASE]...",
            help="Name a suite, or cases by their ids or as FAMILY/CASE-ID.",
        ),
    ] = None,
    nsys: Annotated[
        bool, typer.Option("--nsys", help="Record a timeline with Nsight Systems.")
    ] = False,
    ncu: Annotated[
        bool, typer.Option("--ncu", help="Count DRAM bytes with Nsight Compute.")
    ] = False,
    torch: Annotated[
        bool, typer.Option("--torch", help="Trace with torch.profiler, which needs no GPU.")
    ] = False,
    all_: Annotated[bool, typer.Option("--all", help="Use all three.")] = False,
    family: FamilyOption = None,
    provider: ProviderOption = None,
    case: CaseOption = None,
    calls: Annotated[
        int,
        typer.Option("--calls", metavar="N", min=1, max=1000, help="Call each provider N times."),
    ] = 3,
    gpu_metrics: Annotated[
        bool, typer.Option("--gpu-metrics", help="Have nsys sample the GPU's counters, too.")
    ] = False,
    shapes: Annotated[
        bool, typer.Option("--shapes", help="Have torch tell calls apart by input shapes.")
    ] = False,
    stacks: Annotated[
        bool, typer.Option("--stacks", help="Have torch keep Python stacks in the trace.")
    ] = False,
    nsys_args: Annotated[
        str, typer.Option("--nsys-args", metavar="ARGS", help="Hand more options to nsys.")
    ] = "",
    ncu_args: Annotated[
        str, typer.Option("--ncu-args", metavar="ARGS", help="Hand more options to ncu.")
    ] = "",
    import_: Annotated[
        Path | None,
        typer.Option(
            "--import", metavar="RUN_DIR", help="Read what nsys captured for this run elsewhere."
        ),
    ] = None,
    plugin: PluginOption = None,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Look for runs in this folder.")
    ] = Path("results"),
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout",
            metavar="SECONDS",
            min=1,
            max=604800,
            help="End a case that takes longer than this.",
        ),
    ] = 900.0,
    yes: YesOption = False,
    quiet: QuietOption = False,
    verbose: TraceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Look at providers with nsys, ncu or torch.profiler; nothing is timed.

    Cases are those of the newest run's suite, of smoke, or of any other suite that kernelbench
    ships; without a word, all of the newest run's suite, else of smoke. Without an option for a
    tool: the best that is here.

    What was seen goes to the run's `profiles/` and `measured.jsonl`.

    Exit code: 0 well, 1 a provider failed, 2 bad input or a tool that is missing or may not look.
    """
    from kernelbench.verbs import profile as verb
    from kernelbench.verbs.screen import output_of

    output = output_of(quiet=quiet, as_json=as_json)
    if import_ and (words or nsys or ncu or torch or all_ or family or provider or case):
        raise UsageError("--import reads all that waits in RUN_DIR: name nothing besides")
    picked = {Tool.nsys: nsys or all_, Tool.ncu: ncu or all_, Tool.torch: torch or all_}
    request = verb.ProfileRequest(
        words=tuple(words or ()),
        tools=tuple(tool for tool, is_on in picked.items() if is_on),
        plugins=plugins_of(plugin),
        narrow=narrow_of(family, provider, case=case),
        device=device,
        seed=seed,
        out=out,
        captured=import_,
        calls=calls,
        timeout_s=timeout,
        gpu_metrics=gpu_metrics,
        shapes=shapes,
        stacks=stacks,
        nsys_args=nsys_args,
        ncu_args=ncu_args,
        yes=yes,
    )
    raise typer.Exit(verb.profile(request, output))


@app.command()
def inspect(
    names: Annotated[
        Words,
        typer.Argument(
            metavar="[SUITE|FAMILY]...", help="Name suites or families; without, all families."
        ),
    ] = None,
    target: Annotated[
        Words,
        typer.Option(
            "--target",
            metavar="SM",
            help="Compile for these: sm_80, sm_86, sm_89, sm_90, sm_100, one or several.",
        ),
    ] = None,
    every: Annotated[
        bool,
        typer.Option("--every", help="Compile all configs of the tables, not only their choice."),
    ] = False,
    provider: ProviderOption = None,
    plugin: PluginOption = None,
    against: Annotated[
        Path | None,
        typer.Option("--against", metavar="FILE", help="Compare with what --save or --json wrote."),
    ] = None,
    fail_on: Annotated[
        str,
        typer.Option(
            "--fail-on",
            metavar="KINDS",
            help="Exit with 1 for any of spills, smem, serialized, registers:10%, "
            "instructions:10%.",
        ),
    ] = "",
    save: Annotated[
        Path | None,
        typer.Option(
            "--save", metavar="FILE", help="Write here what --against reads later; packed for .xz."
        ),
    ] = None,
    quiet: QuietOption = False,
    verbose: TraceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show what the compiler makes of our kernels: registers, spills, shared memory, instructions.

    Needs no GPU: every kernel is compiled ahead of time, as a launch would have it.

    --fail-on: spills, more than in --against, or any; smem, more than the target has; serialized,
    wgmma that are waited for one by one and were not; registers:10% and instructions:10%, so many
    more than before.

    Exit code: 0 all is well, 1 a kernel fails that or does not compile, 2 bad input.
    """
    from kernelbench.verbs import inspect as verb
    from kernelbench.verbs.screen import output_of

    request = verb.InspectRequest(
        names=tuple(names or ()),
        targets=tuple(target or verb.TARGETS),
        providers=tuple(provider or ()),
        plugins=plugins_of(plugin),
        every=every,
        against=against,
        fail_on=fail_on,
        save=save,
    )
    raise typer.Exit(verb.inspect(request, output_of(quiet=quiet, as_json=as_json)))
