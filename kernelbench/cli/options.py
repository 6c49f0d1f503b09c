"""Options of the command line that several verbs take."""

from pathlib import Path
from typing import Annotated

import typer

Words = list[str] | None
VERBOSE = "kernelbench.verbose"  # in the context's `meta`: whether -v was given


def _remember(context: typer.Context, value: bool) -> bool:
    context.meta[VERBOSE] = value
    return value


Suites = Annotated[
    Words,
    typer.Argument(
        metavar="[SUITE]...", help="Name suites: YAML files, or those that kernelbench ships."
    ),
]
FamilyOption = Annotated[
    Words,
    typer.Option("--family", "-f", metavar="FAMILY", help="Take only this family (repeatable)."),
]
ProviderOption = Annotated[
    Words,
    typer.Option(
        "--provider", "-p", metavar="PROVIDER", help="Take only this provider (repeatable)."
    ),
]
SkipOption = Annotated[
    Words, typer.Option("--skip", metavar="PROVIDER", help="Leave this provider out (repeatable).")
]
CaseOption = Annotated[
    Words, typer.Option("--case", metavar="CASE-ID", help="Take only this case (repeatable).")
]
FilterOption = Annotated[
    str,
    typer.Option(
        "--filter", metavar="REGEX", help="Take only jobs whose FAMILY/CASE-ID matches this."
    ),
]
ModeOption = Annotated[
    Words,
    typer.Option("--mode", metavar="MODE", help="Take only fwd, bwd or full (repeatable)."),
]
DTypeOption = Annotated[
    Words,
    typer.Option(
        "--dtype", metavar="DTYPE", help="Take only fp32, tf32, fp16 or bf16 (repeatable)."
    ),
]
SetOption = Annotated[
    Words,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a key of the suite, such as measure.max_seconds=1 (repeatable).",
    ),
]
PluginOption = Annotated[
    Words,
    typer.Option(
        "--plugin", metavar="FILE", help="Load a family from this Python file (repeatable)."
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device", metavar="DEVICE", help="Use cpu, cuda, or auto: a GPU where there is one."
    ),
]
SeedOption = Annotated[
    int,
    typer.Option("--seed", metavar="N", min=0, max=2**62, help="Draw the inputs from this seed."),
]
TimeoutOption = Annotated[
    float,
    typer.Option(
        "--timeout",
        metavar="SECONDS",
        min=1,
        max=604800,
        help="End a worker that has made no progress for so long.",
    ),
]
OutOption = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="Make the run's folder in this one.")
]
QuickOption = Annotated[
    bool, typer.Option("--quick", help="Take few samples, with one clock, in one process.")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="List the jobs, and measure nothing.")
]
YesOption = Annotated[
    bool, typer.Option("--yes", help="Go on where there are more than 10,000 jobs, too.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for other programs.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print the summary only.")]
VerboseOption = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        callback=_remember,
        help="Show every phase, and tracebacks of providers and plugins that failed.",
    ),
]
TraceOption = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", callback=_remember, help="Show the traceback of a plugin that failed."
    ),
]
