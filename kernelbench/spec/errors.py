"""Errors that a user can mend: each says where, what was got, what is known, and the remedy."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from signal import SIGINT, SIGTERM


class KernelbenchError(Exception):
    """Something the user can mend. Printed as its message alone; exit code 2."""


class UsageError(KernelbenchError):
    """Bad input: a suite, an option or an argument."""


class PluginError(UsageError):
    """A plugin's own code raised. trace: its traceback, which `-v` shows."""

    def __init__(self, said: str, trace: str) -> None:
        super().__init__(said)
        self.trace = trace


class UnwritableError(KernelbenchError):
    """An output file cannot be written: no fault of what was to be in it."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: the same end as by Ctrl-C."""


def exit_code_of(stop: KeyboardInterrupt) -> int:
    """143 of SIGTERM, 130 of Ctrl-C."""
    return 128 + (SIGTERM if isinstance(stop, Terminated) else SIGINT)


@contextmanager
def beside(problems: Iterable[str]) -> Iterator[None]:
    """An error raised inside is told after these, which may be its cause."""
    try:
        yield
    except KernelbenchError as error:
        for problem in problems:
            error.add_note(problem)
        raise


class NoGPUError(UsageError):
    """A GPU was asked for, and there is none."""


def suggest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'N'? Known: M, N` for a word that is not known."""
    names = list(known)
    near = get_close_matches(word, names, n=1, cutoff=0.5)
    if not near:  # a name of one letter never scores when only its case is wrong
        near = [name for name in names if name.lower() == word.lower()]
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"{hint} Known: {', '.join(names) or 'none'}"
