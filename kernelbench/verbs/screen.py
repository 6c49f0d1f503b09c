"""The terminal, as every verb writes to it."""

import errno
import os

from rich.console import Console

from kernelbench.report.progress import Output


class _Console(Console):
    """One whose reader may go: that ends the program, by an error of its own."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def output_of(*, quiet: bool = False, verbose: bool = False, as_json: bool = False) -> Output:
    """Results to stdout, what is going on to stderr; with NO_COLOR set not even bold."""
    plain = bool(os.environ.get("NO_COLOR"))
    console, errors = (
        _Console(stderr=err, color_system=None, no_color=True) if plain else _Console(stderr=err)
        for err in (False, True)
    )
    return Output(console, errors, quiet=quiet, verbose=verbose, as_json=as_json)
