"""Triton's interpreter, for tests: what it seeks at every call of a function is sought once, since
that is a third of the time of small kernels."""

import inspect
from typing import Any

import triton.language as tl
from triton.runtime import interpreter

PLACES = (tl, tl.core, tl.tensor, tl.math, tl.core.tensor_descriptor_base)


def look_once() -> None:
    """From now on know which names of Triton's language the interpreter replaces. Before any kernel
    runs: a name that is replaced is not found."""
    known = {
        place: [name for name, x in inspect.getmembers(place) if tl.core.is_builtin(x)]
        for place in PLACES
    }

    seek = interpreter._patch_builtin

    def replace(place: Any, *more: Any) -> None:
        if place not in known:
            seek(place, *more)
        for name in known.get(place, ()):
            if tl.core.is_builtin(member := getattr(place, name)):
                interpreter._patch_attr(place, name, member, *more)

    interpreter._patch_builtin = replace
