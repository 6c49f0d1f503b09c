"""The application, and what its verbs share."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from kernelbench import __version__
from kernelbench.cli.options import (
    Words,
)
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
app.add_typer(cache_app, name="cache", help="Show or clear tuned configs and derived figures.")


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


def asked_of(device: str, **given: Any) -> "Asked":
    from kernelbench.plan import Asked
    from kernelbench.spec import UsageError, suggest

    kinds = ("auto", "cpu", "cuda")
    if device not in kinds:
        raise UsageError(f"--device: no device {device!r}{suggest(device, kinds)}")
    plugins = tuple(str(Path(plugin).resolve()) for plugin in given.pop("plugin") or ())
    return Asked(device=device, plugins=plugins, **given)


def narrow_of(
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


def console_of(*, err: bool = False) -> "Console":
    """Plain text with NO_COLOR set, not even bold."""
    from rich.console import Console

    if os.environ.get("NO_COLOR"):
        return Console(stderr=err, color_system=None, no_color=True)
    return Console(stderr=err)


def output_of(**options: bool) -> "Output":
    from kernelbench.verbs import Output

    return Output(console_of(), console_of(err=True), **options)
