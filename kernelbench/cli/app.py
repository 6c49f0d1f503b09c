"""The application, and what its verbs share."""

import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from kernelbench import __version__
from kernelbench.cli import streams
from kernelbench.cli.options import VERBOSE, Words
from kernelbench.spec.errors import KernelbenchError, PluginError, Terminated, exit_code_of


class _Group(TyperGroup):
    """A message and exit code 2 for what the user can mend, 130 for an interrupt, 143 for SIGTERM,
    141 where nobody reads on. Nothing ends in a traceback that lies outside this program.

    Commands are listed with the first sentence of their help, whole: lines wrap, none is cut."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for command in self.commands.values():  # Click cuts what it makes of the help itself
            command.short_help = command.get_short_help_str(limit=sys.maxsize)

    def main(self, *args: Any, **options: Any) -> Any:
        streams.widen()
        try:
            return super().main(*args, **options)
        except OSError as error:  # of `--help`, which is no verb
            raise SystemExit(_end(error)) from None

    def invoke(self, ctx: Any) -> Any:
        with suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, streams.terminate)
        try:
            try:
                return super().invoke(ctx)
            finally:
                sys.stdout.flush()
        except (KernelbenchError, KeyboardInterrupt, OSError) as error:
            raise typer.Exit(_end(error, verbose=bool(ctx.meta.get(VERBOSE)))) from None


def _end(error: BaseException, *, verbose: bool = False) -> int:
    """Say why, in the last line, and by which exit code. verbose: how a plugin came there, too."""
    match error:
        case OSError():
            why, code = streams.lost(error)
        case KeyboardInterrupt():
            why = "terminated" if isinstance(error, Terminated) else "interrupted"
            code = exit_code_of(error)
        case _:
            why, code = str(error), 2
    prefix = "" if isinstance(error, KeyboardInterrupt) else "error: "
    with suppress(OSError):
        for note in getattr(error, "__notes__", ()):
            typer.echo(note, err=True)
        if verbose and isinstance(error, PluginError) and error.trace:
            typer.echo(error.trace, err=True)
        typer.echo(f"{prefix}{why}", err=True)
    return code


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Is this fused GPU kernel right, how much faster is it, and why?",
)
cache_app = typer.Typer(cls=_Group, invoke_without_command=True, rich_markup_mode=None)
app.add_typer(cache_app, name="cache")
new_app = typer.Typer(cls=_Group, no_args_is_help=True, rich_markup_mode=None)
app.add_typer(new_app, name="new")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"kernelbench {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Is this fused GPU kernel right, how much faster is it, and why?"""


def plugins_of(values: Words) -> tuple[str, ...]:
    """Absolute: the worker reads them, too."""
    return tuple(str(Path(plugin).resolve()) for plugin in values or ())


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
    return {**{name: values or [] for name, values in lists.items()}, "filter": filter}
