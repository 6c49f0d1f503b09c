"""Verbs that measure, and those about the machine: run, check, bench, list, doctor, cache."""

from pathlib import Path
from typing import Annotated

import typer

from kernelbench.cli.app import app, cache_app, narrow_of, plugins_of
from kernelbench.cli.options import (
    CaseOption,
    DeviceOption,
    DryRunOption,
    DTypeOption,
    FamilyOption,
    FilterOption,
    JsonOption,
    ModeOption,
    OutOption,
    PluginOption,
    ProviderOption,
    QuickOption,
    QuietOption,
    SeedOption,
    SetOption,
    SkipOption,
    Suites,
    TimeoutOption,
    TraceOption,
    VerboseOption,
    Words,
    YesOption,
)


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
    gpus: Annotated[
        str,
        typer.Option("--gpus", metavar="0,2|all", help="These GPUs at once, each on other cases."),
    ] = "",
    ahead: Annotated[
        int,
        typer.Option(
            "--ahead", min=0, metavar="N", help="Compile for later jobs on N spare CPU cores."
        ),
    ] = 0,
    seed: SeedOption = 0,
    out: OutOption = Path("results"),
    resume: Annotated[
        Path | None,
        typer.Option("--resume", metavar="RUN_DIR", help="Measure what this run still lacks."),
    ] = None,
    timeout: TimeoutOption = 300.0,
    budget: Annotated[
        str,
        typer.Option("--budget", metavar="TIME", help="Stop after 90s or 10m, say; go on later."),
    ] = "",
    quick: QuickOption = False,
    tune: Annotated[
        bool, typer.Option("--tune", help="Search the best kernel configs first, and keep them.")
    ] = False,
    no_interleave: Annotated[
        bool, typer.Option("--no-interleave", help="Time one provider after the other.")
    ] = False,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", help="Stop at the first provider that fails.")
    ] = False,
    dry_run: DryRunOption = False,
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
    from kernelbench.verbs import run as verb
    from kernelbench.verbs.screen import output_of

    request = verb.RunRequest(
        suites=tuple(suites or ()),
        overrides=tuple(set_ or ()),
        plugins=plugins_of(plugin),
        narrow=narrow_of(family, provider, skip, case, filter, mode, dtype),
        quick=quick,
        interleave=not no_interleave,
        tune=tune,
        device=device,
        gpus=gpus,
        ahead=ahead,
        seed=seed,
        resume=resume,
        out=out,
        timeout_s=timeout,
        budget_s=verb.seconds(budget) if budget else None,
        fail_fast=fail_fast,
        dry_run=dry_run,
        yes=yes,
    )
    output = output_of(quiet=quiet, verbose=verbose, as_json=as_json)
    raise typer.Exit(verb.run(request, output))


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
    sanitize: Annotated[
        str,
        typer.Option(
            "--sanitize",
            metavar="TOOLS",
            help="Run providers under these tools of NVIDIA's sanitizer, too: memcheck, "
            "racecheck, initcheck, synccheck.",
        ),
    ] = "",
    yes: YesOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
) -> None:
    """Prove providers right, without timing them.

    Without a suite: on every family's own small cases. Nothing is stored but what --dump asks for.

    --sanitize: one tool, or several separated by commas; needs a GPU and the CUDA toolkit. What
    kernels do to memory is looked at in processes of their own, one call a case.

    Exit code: 0 all are right, 1 a provider is incorrect or failed, or a tool found something or
    could not look, 2 bad input, or no GPU or tool for --sanitize, 130 or 143 interrupted by Ctrl-C
    or SIGTERM.
    """
    from kernelbench.verbs import check as verb
    from kernelbench.verbs.screen import output_of

    request = verb.CheckRequest(
        suites=tuple(suites or ()),
        overrides=tuple(set_ or ()),
        plugins=plugins_of(plugin),
        narrow=narrow_of(family, provider, skip, case, filter, mode, dtype),
        device=device,
        seed=seed,
        timeout_s=timeout,
        dump=dump,
        sanitize=sanitize,
        yes=yes,
    )
    output = output_of(quiet=quiet, verbose=verbose, as_json=as_json)
    raise typer.Exit(verb.check(request, output))


@app.command()
def bench(
    candidates: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TARGET]...",
            help="Name functions: my.py:fused, module:fused, 'my.py:Model(dim=512)' for an "
            "nn.Module, torch.ops.my.fused, model.pt2; or NAME=TARGET.",
        ),
    ] = None,
    against: Annotated[
        str,
        typer.Option(
            "--against",
            metavar="TARGET",
            help="Name the reference: the baseline and, in fp64, what is right.",
        ),
    ] = "",
    args: Annotated[
        str,
        typer.Option(
            "--args",
            metavar="ARGS",
            help="Say what they are called with: 'x=4096x1024:bf16, w=1024:bf16, k=8, "
            "i=M:int64[0:V], s=cu_seqlens(B,T)'.",
        ),
    ] = "",
    size: Annotated[
        Words,
        typer.Option(
            "--size",
            metavar="NAME=VALUES",
            help="Give a size of --args values: M=1024,4096 or M=1024..8192 (repeatable).",
        ),
    ] = None,
    grad: Annotated[
        bool, typer.Option("--grad", help="Measure the backward, too, of all that can have one.")
    ] = False,
    wrt: Annotated[
        Words,
        typer.Option(
            "--wrt", metavar="ARG", help="Measure the backward of this argument (repeatable)."
        ),
    ] = None,
    compile: Annotated[
        bool,
        typer.Option(
            "--compile", help="Measure the reference compiled, too: static, and max-autotune."
        ),
    ] = False,
    inputs: Annotated[
        str,
        typer.Option(
            "--inputs", metavar="TARGET", help="Make arguments with this function, not by --args."
        ),
    ] = "",
    oracle: Annotated[
        str,
        typer.Option(
            "--oracle", metavar="TARGET", help="Take this as right, in fp64, not the reference."
        ),
    ] = "",
    import_: Annotated[
        Words,
        typer.Option(
            "--import", metavar="FILE", help="Import this file or module first (repeatable)."
        ),
    ] = None,
    max_error: Annotated[
        Words,
        typer.Option(
            "--max-error",
            metavar="[NAME=]ERROR",
            help="Hold candidates, or one, to this relative error: they are approximate.",
        ),
    ] = None,
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="Call the family so in every table.")
    ] = "",
    save: Annotated[
        Path | None,
        typer.Option("--save", metavar="FILE", help="Keep this as a suite for run, and for CI."),
    ] = None,
    processes: Annotated[
        int,
        typer.Option(
            "--processes", metavar="N", min=1, max=100, help="Time all in so many processes."
        ),
    ] = 1,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    out: OutOption = Path("results"),
    timeout: TimeoutOption = 300.0,
    quick: QuickOption = False,
    dry_run: DryRunOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
) -> None:
    """Prove functions right by a reference, and time them together; no family file is needed.

    kernelbench bench my.py:fused --against my.py:reference --args 'x=4096x1024:bf16, w=1024:bf16'

    Exit code: 0 all that was measured is well, 1 a function is incorrect or failed, 2 bad input,
    130 or 143 interrupted by Ctrl-C or SIGTERM.
    """
    from kernelbench.verbs import bench as verb
    from kernelbench.verbs.screen import output_of

    request = verb.BenchRequest(
        candidates=tuple(candidates or ()),
        against=against,
        args=args,
        sizes=tuple(size or ()),
        grad=tuple(wrt or ()) or (("all",) if grad else ()),
        compile=compile,
        inputs=inputs,
        oracle=oracle,
        imports=tuple(import_ or ()),
        max_error=tuple(max_error or ()),
        name=name,
        save=save,
        processes=processes,
        device=device,
        seed=seed,
        out=out,
        timeout_s=timeout,
        quick=quick,
        dry_run=dry_run,
    )
    output = output_of(quiet=quiet, verbose=verbose, as_json=as_json)
    raise typer.Exit(verb.bench(request, output))


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
    from kernelbench.verbs import list as verb
    from kernelbench.verbs.screen import output_of

    request = verb.ListRequest(
        suites=tuple(suites or ()), families=tuple(family or ()), plugins=plugins_of(plugin)
    )
    raise typer.Exit(verb.list_(request, output_of(as_json=as_json)))


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
    from kernelbench.verbs import doctor as verb
    from kernelbench.verbs.screen import output_of

    raise typer.Exit(verb.doctor(output_of(verbose=verbose, as_json=as_json)))


@cache_app.callback()
def cache(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """Show or clear what is kept: configs that `--tune` found, figures that `report` derived.

    Exit code: 0 well, 2 bad input.
    """
    if ctx.invoked_subcommand is None:
        from kernelbench.verbs import cache as verb
        from kernelbench.verbs.screen import output_of

        raise typer.Exit(verb.show(output_of(as_json=as_json)))


@cache_app.command()
def clear() -> None:
    """Forget every tuned config, and every figure that `report` derived.

    Exit code: 0 well, 2 bad input.
    """
    from kernelbench.verbs import cache as verb
    from kernelbench.verbs.screen import output_of

    raise typer.Exit(verb.clear(output_of()))
