"""Where in a provider's or a family's code an error was raised.

Files are named as whoever ran it would: relative to the working directory; of this package and of
what is installed, by the path inside it.
"""

import functools
import inspect
import linecache
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

PACKAGE = Path(__file__).parent.parent
MEASURED = ("families", "kernels", "nn", "parallel")  # of this package; the rest is the harness
# Of `families`, what is no family's code.
LOADING = ("__init__.py", "functions", "plugins.py", "providing.py")
MOST = 200  # characters of what tables show in one line
LEAST = 80  # characters that an error's own words get, however long the path beside them
MOST_DETAIL = 8000  # characters; the end of a longer traceback is what tells

_LIBRARIES = tuple(
    str(Path(folder)) for name, folder in sysconfig.get_paths().items() if "lib" in name
)
_PATH = re.compile(r"""(?<![\w.…/])(?:/[^\s/'"():,;]+)+/([^\s/'"():,;]+)""")


class Place(NamedTuple):
    """A line of a file. code: what stands there, if that says more than the error's words."""

    path: str
    line: int | None
    code: str = ""

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


def words_of(error: BaseException, most: int = MOST, function: Any = None) -> str:
    """`KeyError: 'nope' (my.py:12: return a["nope"])`: the first line of its message, where it was
    raised, and the code of that line where there is room.

    function: whose call raised it; it is named where nothing inside it was reached.
    """
    place = place_of(error) or (defined(function) if function is not None else None)
    at = f" ({place})" if place else ""
    message = error.msg if place and isinstance(error, SyntaxError) else str(error)
    lines = (line.strip() for line in without_paths(message).splitlines())
    words = f"{type(error).__name__}: {next(filter(None, lines), '')}"
    whole = f" ({place}: {place.code})" if place and place.code else at
    if len(words) + len(whole) <= most:
        return words + whole
    room = max(most - len(at), LEAST)
    return (words if len(words) <= room else f"{words[: room - 1]}…") + at


def place_of(error: BaseException) -> Place | None:
    """The deepest line of the provider's own code that the error passed through.

    Code of others is torch, Triton and what is installed, unless the provider lies there, too.
    An error that such code made of another one was raised where the other was. None where the
    harness itself raised it, whose words say what is wrong.
    """
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_file():
        return Place(named(error.filename), error.lineno, (error.text or "").strip())
    frames = _beyond_the_harness(traceback.extract_tb(error.__traceback__))
    if not frames:
        return None
    if error.__cause__ is not None and _of_others(frames[-1].filename):
        inner = _beyond_the_harness(traceback.extract_tb(error.__cause__.__traceback__))
        if any(not _of_others(frame.filename) for frame in inner):
            return place_of(error.__cause__)
    own = [frame for frame in frames if not _of_others(frame.filename)]
    home = _home(frames[0].filename)
    deepest = (own or [frame for frame in frames if _home(frame.filename) == home])[-1]
    return Place(named(deepest.filename), deepest.lineno, _simple(deepest))


def _simple(frame: traceback.FrameSummary) -> str:
    """Its line of code, where the statement is no longer; a `raise` only repeats the message."""
    if frame.end_lineno not in (None, frame.lineno) or not frame.line:
        return ""
    return "" if frame.line.startswith("raise") else frame.line.strip()


def defined(function: Callable[..., Any]) -> Place | None:
    """Where a function stands; None where no Python file has it."""
    while isinstance(function, functools.partial):
        function = function.func
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None or not Path(code.co_filename).is_file():
        return None
    line = linecache.getline(code.co_filename, code.co_firstlineno).strip()
    is_def = line.startswith("def ")
    return Place(named(code.co_filename), code.co_firstlineno, line if is_def else "")


def named(filename: str) -> str:
    """A file as it is called in messages: relative to the working directory, or inside what it is
    installed with."""
    path = Path(filename)
    if path.is_relative_to(PACKAGE):
        return str(path.relative_to(PACKAGE.parent))
    for folder in sorted(_LIBRARIES, key=len, reverse=True):
        if path.is_relative_to(folder):
            return str(path.relative_to(folder))
    try:
        return os.path.relpath(path) if path.is_absolute() else filename
    except OSError:  # there is no working directory any more
        return path.name


def trace_of(error: BaseException) -> str:
    """The traceback from where the harness called, and its causes.

    Empty where that is no more than the error's own line.
    """
    trace = traceback.TracebackException.from_exception(error)
    called = _cut(trace)
    text = without_paths("".join(trace.format())).strip()
    if not called:
        text = text.removeprefix("Traceback (most recent call last):\n")
    if not called and "\n" not in text:
        return ""
    return text if len(text) <= MOST_DETAIL else f"…{text[-MOST_DETAIL:]}"


def without_paths(text: str) -> str:
    """A message without colours, and with `…/name` for every absolute path, but for those below
    the working directory, which are named from there."""
    return _PATH.sub(_shortened, re.sub(r"\x1b\[[0-9;]*m", "", text))


def _shortened(path: re.Match[str]) -> str:
    near = named(path[0])
    return f"…/{path[1]}" if near.startswith("..") or _of_others(path[0]) else near


def _cut(trace: traceback.TracebackException) -> bool:
    """Leave the harness out, name files as messages do; whether somebody else's code is left."""
    left = _beyond_the_harness(trace.stack)
    trace.stack = traceback.StackSummary.from_list(
        [
            traceback.FrameSummary(named(f.filename), f.lineno, f.name, line=f.line or "")
            for f in left
        ]
    )
    if trace.exc_type is not None and issubclass(trace.exc_type, SyntaxError) and trace.filename:
        trace.filename = named(trace.filename)
    others = [trace.__cause__, trace.__context__, *(trace.exceptions or ())]
    return any([bool(left), *(_cut(other) for other in others if other is not None)])


def _beyond_the_harness(
    frames: Sequence[traceback.FrameSummary],
) -> Sequence[traceback.FrameSummary]:
    """The frames from the first one on that is not the harness's."""
    first = (i for i, frame in enumerate(frames) if not _of_the_harness(frame.filename))
    return frames[next(first, len(frames)) :]


def _of_the_harness(filename: str) -> bool:
    path = Path(filename)
    if not path.is_relative_to(PACKAGE):
        return filename.startswith("<frozen importlib")  # through which it loads plugins
    inside = path.relative_to(PACKAGE)
    room, *below = inside.parts
    return room not in MEASURED or (room == "families" and below[0] in LOADING)


def _of_others(filename: str) -> bool:
    """Whether it is code of torch, Triton, the interpreter or an installed package."""
    path = Path(filename)
    if path.is_relative_to(PACKAGE):
        return _of_the_harness(filename)
    modules = (getattr(sys.modules.get(name), "__file__", None) for name in ("torch", "triton"))
    folders = [*_LIBRARIES, *(str(Path(file).parent) for file in modules if file)]
    generated = filename.startswith("<") or "torchinductor" in filename
    return generated or any(path.is_relative_to(folder) for folder in folders)


def _home(filename: str) -> str:
    """The package that a file is installed with, else its folder."""
    path = Path(filename)
    for folder in sorted(_LIBRARIES, key=len, reverse=True):
        if path.is_relative_to(folder):
            return path.relative_to(folder).parts[0]
    return str(path.parent)
