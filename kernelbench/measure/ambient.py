"""Process-wide state, which every provider must leave unchanged.

Providers share a process. A setting of torch, of Python or of the machine that one of them changes
would affect the next one, which could fail or gain by it. So all such state that is known here is
compared after every step and every batch; changes are named and undone.
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

# State that an import or a compilation is known to set, by the module that a provider requires:
# undone, but not counted against the provider. Every provider may compile, and the harness itself
# traces every provider.
KNOWN_CHANGES: Mapping[str, tuple[str, ...]] = {
    "torch.compile": (
        "environment TORCHINDUCTOR_CACHE_DIR",  # where inductor keeps its code
        "environment TRITON_CACHE_DIR",  # where Triton does, once it compiles for inductor
        "environment TRITON_PTXAS_PATH",  # torch's own assembler, for compile workers
        "environment TRITON_LIBDEVICE_PATH",  # CUDA's mathematical functions, for compile workers
        "environment TORCH_WARM_POOL",  # keeps compile workers from starting more of them
        "environment _TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR",  # read when C++ code is loaded
    ),
    "torch.profiler": (
        "environment DISABLE_CUPTI_LAZY_REINIT",  # keeps CUPTI initialised for CUDA graphs
        "environment TEARDOWN_CUPTI",  # for the same reason
    ),
    "liger_kernel": (  # observed on an H200: set by what it imports
        "the seed of random",
        "environment KMP_DUPLICATE_LIB_OK",
        "environment KMP_INIT_AT_FORK",
    ),
}
ALWAYS_ALLOWED = ("torch.compile", "torch.profiler")
NOTHING = "nothing"
LONGEST_VALUE = 48  # characters of a value in a message
MOST_CHANGES = 4  # changes in a message


class Ambient:
    """A snapshot of the process-wide state, which finds and undoes later changes."""

    def __init__(self) -> None:
        # Imported first, since it patches torch.manual_seed and sets inductor's folder.
        import torch._dynamo  # noqa: F401

        self.patches = Patches()
        self._snapshot = [(switch, switch.read()) for switch in switches()]

    def undo_changes(self, allowed: Collection[str] = ()) -> str:
        """Undo all changes since the last call; a description of those not `allowed`, or ""."""
        patched = [name for name in self.patches.undo() if f"function {name}" not in allowed]
        changes = [f"patched {name}" for name in patched]
        # A GPU whose context is lost cannot be read; its next user reports that. It comes last.
        with suppress(RuntimeError):
            for i, (switch, before) in enumerate(self._snapshot):
                after = switch.read()
                if after != before:
                    restored = _undo(switch, before)
                    self._snapshot[i] = switch, restored
                    changes += _changes(switch, before, after, restored, allowed)
        if not changes:
            return ""
        more = []
        if len(changes) > MOST_CHANGES:
            more = [f"{len(changes) - MOST_CHANGES} more changes"]
        return (
            f"{' and '.join([*changes[:MOST_CHANGES], *more])}, which every other call would feel"
        )


def ambient_for(dtype: DType) -> Ambient:
    """Set the precision that a case of this dtype asks for, and take the snapshot."""
    set_precision(dtype)
    return Ambient()


@cache
def allowed_changes(requires: tuple[str, ...]) -> frozenset[str]:
    """Names of the state that a provider which requires these modules may change."""
    modules = (*ALWAYS_ALLOWED, *requires)
    return frozenset(name for module in modules for name in KNOWN_CHANGES.get(module, ()))


def _undo(switch: Switch, before: Any) -> Any:
    """Put the value back; returns what is read then, which differs if it cannot be undone.

    The next provider is compared with that value, so that it is not blamed for the difference.
    """
    if switch.put is not None:
        with suppress(RuntimeError, ValueError, OSError):
            switch.put(before)
    return switch.read()


def _changes(
    switch: Switch, before: Any, after: Any, restored: Any, allowed: Collection[str]
) -> Iterator[str]:
    """One description for each state that differs and is not `allowed`."""
    final = "" if restored == before else " for good"
    if not isinstance(before, dict):
        if switch.name not in allowed:
            values = f" from {_short(before)} to {_short(after)}" if switch.shown else ""
            yield f"changed {switch.name}{values}{final}"
        return
    for key in sorted(before.keys() | after.keys()):
        was, now, name = before.get(key), after.get(key), f"{switch.name} {os.fsdecode(key)}"
        if was != now and name not in allowed:
            yield f"changed {name} from {_short(was)} to {_short(now)}{final}"


def _short(value: Any) -> str:
    """A value as text; modes and functions by their name."""
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
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"
