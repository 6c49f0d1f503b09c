"""The command line: one function a verb, no logic, imports inside the verbs."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from kernelbench import __version__
from kernelbench.spec.errors import KernelbenchError

if TYPE_CHECKING:
    from rich.console import Console

    from kernelbench.plan import Asked
    from kernelbench.verbs import Output


class _Group(TyperGroup):
    """A message and exit code 2 for what the user can mend; 130 for an interrupt."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KernelbenchError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Is this fused GPU kernel right, how much faster is it, and why?",
)
cache_app = typer.Typer(cls=_Group, invoke_without_command=True, rich_markup_mode=None)
app.add_typer(cache_app, name="cache", help="Show or clear the configs that `--tune` found.")

Words = list[str] | None
Suites = Annotated[
    Words, typer.Argument(metavar="[SUITE]...", help="YAML files, or names of shipped suites.")
]
FamilyOption = Annotated[Words, typer.Option("--family", "-f", help="Only these families.")]
ProviderOption = Annotated[Words, typer.Option("--provider", "-p", help="Only these providers.")]
SkipOption = Annotated[Words, typer.Option("--skip", help="Not these providers.")]
CaseOption = Annotated[Words, typer.Option("--case", help="Only cases of these ids.")]
FilterOption = Annotated[str, typer.Option("--filter", help="Only FAMILY/CASE that match a regex.")]
ModeOption = Annotated[Words, typer.Option("--mode", help="Only fwd, bwd or full.")]
DTypeOption = Annotated[Words, typer.Option("--dtype", help="Only fp32, tf32, fp16 or bf16.")]
SetOption = Annotated[
    Words, typer.Option("--set", metavar="KEY=VALUE", help="Override a key: measure.max_seconds=1.")
]
PluginOption = Annotated[Words, typer.Option("--plugin", help="A Python file that adds a family.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, max=2**62, help="Of the inputs.")]
TimeoutOption = Annotated[
    float,
    typer.Option("--timeout", min=1, max=604800, help="Seconds without progress that end it."),
]
YesOption = Annotated[bool, typer.Option("--yes", help="Also more than 10,000 jobs.")]
JsonOption = Annotated[bool, typer.Option("--json", help="For machines.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Only the summary.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Every phase.")]


def _version(value: bool) -> None:
    if value:
        typer.echo(f"kernelbench {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="And exit.")
    ] = False,
) -> None:
    """Is this fused GPU kernel right, how much faster is it, and why?"""


def _asked(device: str, **given: Any) -> "Asked":
    from kernelbench.plan import Asked
    from kernelbench.spec import UsageError, suggest

    kinds = ("auto", "cpu", "cuda")
    if device not in kinds:
        raise UsageError(f"--device: no device {device!r}{suggest(device, kinds)}")
    plugins = tuple(str(Path(plugin).resolve()) for plugin in given.pop("plugin") or ())
    return Asked(device=device, plugins=plugins, **given)


def _narrow(
    family: Words = None,
    provider: Words = None,
    skip: Words = None,
    case: Words = None,
    filter: str = "",
    mode: Words = None,
    dtype: Words = None,
) -> dict[str, Any]:
    lists = {"family": family, "provider": provider, "skip": skip, "case": case}
    lists |= {"mode": mode, "dtype": dtype}
    return {**{name: given or [] for name, given in lists.items()}, "filter": filter}


def _console(*, err: bool = False) -> "Console":
    """Plain text with NO_COLOR set, not even bold."""
    from rich.console import Console

    if os.environ.get("NO_COLOR"):
        return Console(stderr=err, color_system=None, no_color=True)
    return Console(stderr=err)


def _output(**options: bool) -> "Output":
    from kernelbench.verbs import Output

    return Output(_console(), _console(err=True), **options)


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
    out: Annotated[Path, typer.Option("--out", help="Where run folders go.")] = Path("results"),
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="RUN_DIR", help="Go on with a run.")
    ] = None,
    timeout: TimeoutOption = 300.0,
    budget: Annotated[str, typer.Option("--budget", help="Time for all of it: 90s, 10m.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="Few samples, no other clocks.")] = False,
    tune: Annotated[bool, typer.Option("--tune", help="Search kernel configs, keep them.")] = False,
    no_interleave: Annotated[
        bool, typer.Option("--no-interleave", help="One provider after the other.")
    ] = False,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at a failure.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the jobs, and stop.")] = False,
    yes: YesOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure suites: every provider is proven right, then timed with the others of its case.

    Exit code: 0 all that was measured is well, 1 a provider is incorrect or failed, 2 bad input,
    130 interrupted.
    """
    from kernelbench import verbs
    from kernelbench.plan import seconds
    from kernelbench.run import Options

    asked = _asked(
        device,
        overrides=tuple(set_ or ()),
        plugin=plugin,
        narrow=_narrow(family, provider, skip, case, filter, mode, dtype),
        quick=quick,
        interleave=not no_interleave,
        tune=tune,
        seed=seed,
    )
    options = Options(timeout=timeout, fail_fast=fail_fast)
    plans = verbs.resumed(resume, suites or [], asked) if resume else verbs.begun(suites, asked)
    verbs.refuse_many(plans, yes)
    output = _output(quiet=quiet, verbose=verbose, as_json=as_json)
    if dry_run:
        verbs.show_jobs(plans, output)
        return
    time = seconds(budget) if budget else None
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
    yes: YesOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Correctness only, of suites or of every family's own small cases; nothing is stored."""
    from kernelbench import verbs
    from kernelbench.run import Options

    asked = _asked(
        device,
        overrides=tuple(set_ or ()),
        plugin=plugin,
        narrow=_narrow(family, provider, skip, case, filter, mode, dtype),
        seed=seed,
    )
    options = Options(timeout=timeout, timing=False)
    output = _output(quiet=quiet, as_json=as_json)
    raise typer.Exit(verbs.check(suites or [], asked, options, yes, output))


@app.command("list")
def list_(
    suites: Suites = None,
    family: FamilyOption = None,
    plugin: PluginOption = None,
    as_json: JsonOption = False,
) -> None:
    """Families with their providers and axes; or the jobs of suites."""
    from kernelbench import verbs

    asked = _asked("auto", plugin=plugin, narrow=_narrow(family))
    if suites:
        verbs.show_jobs(verbs.begun(suites, asked), _output(as_json=as_json))
    else:
        verbs.show_families(family or [], asked.plugins, _output(as_json=as_json))


@app.command()
def profile(
    words: Annotated[
        Words,
        typer.Argument(
            metavar="[SUITE|CASE]...",
            help="A suite, or cases of it; without a suite, the newest run's, else smoke.",
        ),
    ] = None,
    nsys: Annotated[bool, typer.Option("--nsys", help="Timeline: Nsight Systems.")] = False,
    ncu: Annotated[
        bool, typer.Option("--ncu", help="Measured DRAM bytes: Nsight Compute.")
    ] = False,
    torch: Annotated[bool, typer.Option("--torch", help="torch.profiler; no GPU needed.")] = False,
    all_: Annotated[bool, typer.Option("--all", help="All three.")] = False,
    family: FamilyOption = None,
    provider: ProviderOption = None,
    case: CaseOption = None,
    calls: Annotated[int, typer.Option("--calls", min=1, max=1000, help="Of a provider.")] = 3,
    gpu_metrics: Annotated[
        bool, typer.Option("--gpu-metrics", help="nsys: sample the GPU's counters, too.")
    ] = False,
    shapes: Annotated[bool, typer.Option("--shapes", help="torch: by input shapes.")] = False,
    stacks: Annotated[bool, typer.Option("--stacks", help="torch: stacks in the trace.")] = False,
    nsys_args: Annotated[str, typer.Option("--nsys-args", help="More options for nsys.")] = "",
    ncu_args: Annotated[str, typer.Option("--ncu-args", help="More options for ncu.")] = "",
    import_: Annotated[
        Path | None,
        typer.Option("--import", metavar="RUN_DIR", help="Read what nsys captured elsewhere."),
    ] = None,
    plugin: PluginOption = None,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    out: Annotated[Path, typer.Option("--out", help="Where run folders are.")] = Path("results"),
    timeout: Annotated[
        float, typer.Option("--timeout", min=1, max=604800, help="Seconds for a case.")
    ] = 900.0,
    yes: YesOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Look at providers with nsys, ncu or torch.profiler; nothing is timed.

    What was seen goes to the run's `profiles/` and `measured.jsonl`. Exit code: 0 well, 1 a
    provider failed, 2 bad input or a tool that is missing or may not look.
    """
    from kernelbench import profiling

    output = _output(quiet=quiet, as_json=as_json)
    if import_:
        raise typer.Exit(profiling.read_captures(import_, output))
    picked = {"nsys": nsys or all_, "ncu": ncu or all_, "torch": torch or all_}
    asked = _asked(device, plugin=plugin, narrow=_narrow(family, provider, case=case), seed=seed)
    code = profiling.profile(
        profiling.wanted(
            words or [],
            [name for name, is_on in picked.items() if is_on],
            asked,
            out,
            calls=calls,
            timeout=timeout,
            gpu_metrics=gpu_metrics,
            nsys_args=nsys_args,
            ncu_args=ncu_args,
            shapes=shapes,
            stacks=stacks,
        ),
        yes,
        output,
    )
    raise typer.Exit(code)


@app.command()
def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Run folders, or folders of them.")
    ],
    family: FamilyOption = None,
    baseline: Annotated[
        str, typer.Option("--baseline", metavar="PROVIDER", help="Speedups against this one.")
    ] = "",
    format: Annotated[
        str, typer.Option("--format", help="table, md, html, csv or json.")
    ] = "table",
    tables: Annotated[
        str,
        typer.Option(
            "--tables",
            help="More of them: documents, memory, scaling, launch, breakeven, environment; or all.",
        ),
    ] = "",
    claims: Annotated[
        bool, typer.Option("--claims", help="Also what documents claim, beside it.")
    ] = False,
    to: Annotated[
        str, typer.Option("--to", help="Export: github, hud, wandb or tensorboard.")
    ] = "",
    out: Annotated[
        Path | None, typer.Option("--out", help="Write here, not to the terminal.")
    ] = None,
    junit: Annotated[
        Path | None, typer.Option("--junit", metavar="FILE", help="Also as JUnit XML.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """What was measured, in tables or in files. Needs no GPU and no torch.

    Appended as Markdown to $GITHUB_STEP_SUMMARY where that is set. Exit code: 0 all well, 1 a
    provider is bad or something could not be read, 2 bad input.
    """
    from kernelbench.report import verb

    wanted = verb.Wanted(
        families=tuple(family or ()),
        format="json" if as_json else format,
        baseline=baseline,
        tables=tuple(name.strip() for name in tables.split(",") if name.strip()),
        out=out,
        junit=junit,
        claims=claims,
        to=to,
    )
    raise typer.Exit(verb.report(folders, wanted, _console(), _console(err=True)))


@app.command()
def repro(
    case: Annotated[str, typer.Argument(metavar="CASE-ID", help="Or FAMILY/CASE-ID.")],
    provider: Annotated[str, typer.Option("--provider", "-p", help="Else ours.")] = "",
    run: Annotated[
        Path | None,
        typer.Option("--run", metavar="DIR", help="A run, or a folder of them; else results."),
    ] = None,
    plugin: PluginOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write the script here.")] = None,
) -> None:
    """Print a script that reproduces one record with torch and triton alone."""
    from kernelbench.repro import verb

    typer.echo(verb.repro(case, provider, run, plugin or [], out), nl=False)


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """What this machine can do, and how to get what is missing."""
    from kernelbench.doctor import examine, show

    findings = examine()
    show(findings, _console(), as_json)
    raise typer.Exit(2 if any(finding.ok is False for finding in findings) else 0)


@cache_app.callback()
def cache(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """Show where the configs that `--tune` found are kept, and how many there are."""
    if ctx.invoked_subcommand is None:
        from kernelbench.measure.tune import cache_dir, cached_files

        count, folder = len(cached_files()), str(cache_dir())
        facts = json.dumps({"folder": folder, "configs": count})
        typer.echo(facts if as_json else f"{count} tuned configs in {folder}")


@cache_app.command()
def clear() -> None:
    """Forget every tuned config."""
    from kernelbench.measure.tune import clear as forget

    typer.echo(f"{forget()} tuned configs forgotten")


if __name__ == "__main__":
    sys.exit(app())
