"""Process-wide state, which every provider has to leave as it found it.

Providers share a process. What one of them changes of torch, of Python or of the machine's
settings, the next one would find: it could fail by it, or gain by it. So everything of the kind
that is known here is compared after every step and every batch, named, and put back.
"""

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from enum import Enum
from functools import cache
from typing import Any

import torch

from kernelbench.measure.patches import Patches
from kernelbench.measure.probes import set_precision
from kernelbench.measure.switches import Switch, switches
from kernelbench.spec import DType

# What importing or compiling something is known to set: undone, but nobody's fault. By the module
# that a provider requires. Anyone may compile, and whoever is traced is so by the harness.
KNOWN: Mapping[str, tuple[str, ...]] = {
    "torch.compile": (
        "environment TORCHINDUCTOR_CACHE_DIR",  # where inductor keeps its code
        "environment TRITON_CACHE_DIR",  # likewise Triton, once it compiles for inductor
        "environment TRITON_PTXAS_PATH",  # torch's own assembler, for processes that compile
        "environment TRITON_LIBDEVICE_PATH",  # likewise CUDA's mathematical functions
        "environment TORCH_WARM_POOL",  # keeps those processes from starting more
        "environment _TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR",  # read as C++ code is loaded
    ),
    "torch.profiler": (
        "environment DISABLE_CUPTI_LAZY_REINIT",  # keeps CUPTI up where CUDA graphs are used
        "environment TEARDOWN_CUPTI",  # likewise
    ),
    "liger_kernel": (  # seen on an H200: what it imports
        "the seed of random",
        "environment KMP_DUPLICATE_LIB_OK",
        "environment KMP_INIT_AT_FORK",
    ),
}
EVERYONE = ("torch.compile", "torch.profiler")
NOTHING = "nothing"
LONGEST = 48  # characters of a value that are told
MOST = 4  # changes that are told


class Ambient:
    """The state as it was taken, and what has become of it."""

    def __init__(self) -> None:
        # First used by a job, it would patch torch.manual_seed and name inductor's folder.
        import torch._dynamo  # noqa: F401

        self.patches = Patches()
        self._found = [(switch, switch.read()) for switch in switches()]

    def disturbed(self, excused: Collection[str] = ()) -> str:
        """What was changed and is now undone, except what is excused; or nothing."""
        patched = [name for name in self.patches.undo() if f"function {name}" not in excused]
        changes = [f"patched {name}" for name in patched]
        # A GPU whose context is gone answers nothing, as whoever uses it next finds. It comes last.
        with suppress(RuntimeError):
            for i, (switch, before) in enumerate(self._found):
                after = switch.read()
                if after != before:
                    left = _undo(switch, before)
                    self._found[i] = switch, left
                    changes += _changes(switch, before, after, left, excused)
        if not changes:
            return ""
        more = [f"{len(changes) - MOST} more changes"] if len(changes) > MOST else []
        return f"{' and '.join([*changes[:MOST], *more])}, which every other call would feel"


def as_asked(dtype: DType) -> Ambient:
    """What every provider of a case finds: the precision that it asks for, all else as it is."""
    set_precision(dtype)
    return Ambient()


@cache
def known(requires: tuple[str, ...]) -> frozenset[str]:
    """The states that a provider may change, which requires these modules."""
    return frozenset(name for what in (*EVERYONE, *requires) for name in KNOWN.get(what, ()))


def _undo(switch: Switch, before: Any) -> Any:
    """Put it back; how it then is, so that the next one is not blamed for what cannot be undone."""
    if switch.put is not None:
        with suppress(RuntimeError, ValueError, OSError):
            switch.put(before)
    return switch.read()


def _changes(
    switch: Switch, before: Any, after: Any, left: Any, excused: Collection[str]
) -> Iterator[str]:
    """One in words for each state that differs."""
    final = "" if left == before else " for good"
    if not isinstance(before, dict):
        if switch.name not in excused:
            values = f" from {_short(before)} to {_short(after)}" if switch.shown else ""
            yield f"changed {switch.name}{values}{final}"
        return
    for key in sorted(before.keys() | after.keys()):
        was, now, name = before.get(key), after.get(key), f"{switch.name} {os.fsdecode(key)}"
        if was != now and name not in excused:
            yield f"changed {name} from {_short(was)} to {_short(now)}{final}"


def _short(value: Any) -> str:
    """Modes and functions by their name."""
    match value:
        case None:
            text = NOTHING
        case bytes():
            text = os.fsdecode(value)
        case list():
            text = ", ".join(map(_short, value)) or NOTHING
        case Enum():
            text = value.name
        case str() | int() | tuple() | torch.dtype() | torch.device() | torch.cuda.Stream():
            text = str(value)
        case _:
            text = getattr(value, "__name__", getattr(value, "name", type(value).__name__))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
