"""Options of the command line that several verbs take."""

from typing import Annotated

import typer

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
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Every phase, and where providers failed.")
]
