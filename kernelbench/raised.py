"""Where in a provider's or a family's code an error was raised, without paths of this machine."""

import re
import sys
import sysconfig
import traceback
from collections.abc import Sequence
from pathlib import Path

PACKAGE = Path(__file__).parent
MEASURED = ("families", "kernels", "nn", "parallel")  # of this package; the rest is the harness
MOST = 200  # characters of what tables show in one line
MOST_DETAIL = 8000  # characters; the end of a longer traceback is what tells

_LIBRARIES = tuple(
    str(Path(folder)) for name, folder in sysconfig.get_paths().items() if "lib" in name
)
_PATH = re.compile(r"""(?<![\w.…/])(?:/[^\s/'"():,;]+)+/([^\s/'"():,;]+)""")


def words_of(error: BaseException, most: int = MOST) -> str:
    """`KeyError: 'nope' (my.py:12)`: the first line of its message, and where it was raised."""
    place = place_of(error)
    place = f" ({place})" if place else ""
    message = error.msg if place and isinstance(error, SyntaxError) else str(error)
    lines = (line.strip() for line in without_paths(message).splitlines())
    said = f"{type(error).__name__}: {next(filter(None, lines), '')}"
    room = most - len(place)
    return (said if len(said) <= room else f"{said[: room - 1]}…") + place


def place_of(error: BaseException) -> str:
    """`my.py:12`: the deepest line of the provider's own code that the error passed through.

    Code of others is torch, Triton and what is installed, unless the provider lies there, too.
    An error that such code made of another one was raised where the other was. Empty where the
    harness itself raised it, whose words say what is wrong.
    """
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_file():
        return f"{Path(error.filename).name}:{error.lineno}"
    frames = _beyond_the_harness(traceback.extract_tb(error.__traceback__))
    if not frames:
        return ""
    if error.__cause__ is not None and _of_others(frames[-1].filename):
        inner = _beyond_the_harness(traceback.extract_tb(error.__cause__.__traceback__))
        if any(not _of_others(frame.filename) for frame in inner):
            return place_of(error.__cause__)
    own = [frame for frame in frames if not _of_others(frame.filename)]
    home = _home(frames[0].filename)
    deepest = (own or [frame for frame in frames if _home(frame.filename) == home])[-1]
    return f"{Path(deepest.filename).name}:{deepest.lineno}"


def trace_of(error: BaseException) -> str:
    """The traceback from where the harness called, files by their names alone; and its causes.

    Empty where that is no more than the error's own line.
    """
    told = traceback.TracebackException.from_exception(error)
    called = _cut(told)
    text = without_paths("".join(told.format())).strip()
    if not called:
        text = text.removeprefix("Traceback (most recent call last):\n")
    if not called and "\n" not in text:
        return ""
    return text if len(text) <= MOST_DETAIL else f"…{text[-MOST_DETAIL:]}"


def without_paths(text: str) -> str:
    """A message without colours, and with `…/name` for every absolute path."""
    return _PATH.sub(r"…/\1", re.sub(r"\x1b\[[0-9;]*m", "", text))


def _cut(told: traceback.TracebackException) -> bool:
    """Leave the harness and all folders out; whether a call of somebody else's code is left."""
    left = _beyond_the_harness(told.stack)
    told.stack = traceback.StackSummary.from_list(
        [
            traceback.FrameSummary(Path(f.filename).name, f.lineno, f.name, line=f.line or "")
            for f in left
        ]
    )
    if told.exc_type is not None and issubclass(told.exc_type, SyntaxError) and told.filename:
        told.filename = Path(told.filename).name
    others = [told.__cause__, told.__context__, *(told.exceptions or ())]
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
        return False
    inside = path.relative_to(PACKAGE)
    return inside.parts[0] not in MEASURED or inside == Path("families", "__init__.py")


def _of_others(filename: str) -> bool:
    """Whether it is code of torch, Triton, the interpreter or an installed package."""
    path = Path(filename)
    if path.is_relative_to(PACKAGE):
        return _of_the_harness(filename)
    modules = (getattr(sys.modules.get(name), "__file__", None) for name in ("torch", "triton"))
    folders = [*_LIBRARIES, *(str(Path(file).parent) for file in modules if file)]
    made = filename.startswith("<") or "torchinductor" in filename
    return made or any(path.is_relative_to(folder) for folder in folders)


def _home(filename: str) -> str:
    """The package that a file is installed with, else its folder."""
    path = Path(filename)
    for folder in sorted(_LIBRARIES, key=len, reverse=True):
        if path.is_relative_to(folder):
            return path.relative_to(folder).parts[0]
    return str(path.parent)
