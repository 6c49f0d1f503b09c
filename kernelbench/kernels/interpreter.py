"""Triton's interpreter: whether it can run here, a matter of versions, read without importing any,
and whether it has run."""

import sys
from importlib import metadata
from typing import Any

WRONG_BF16 = "bf16 arithmetic is wrong in Triton's interpreter"


def why_broken() -> str:
    """Why the interpreter fails with the installed NumPy, and the remedy; empty where it works.

    Triton before 3.7 calls `int()` on an array of one element, which NumPy refuses since 2.4: every
    loop whose bounds are known only at run time raises. Code compiled for a GPU does not use NumPy.
    A package that is not installed cannot be the reason.
    """
    try:
        triton, numpy = metadata.version("triton"), metadata.version("numpy")
    except metadata.PackageNotFoundError:
        return ""
    if _release(triton) >= (3, 7) or _release(numpy) < (2, 4):
        return ""
    return (
        f"the interpreter of triton {triton} fails with numpy {numpy}: "
        "pip install 'triton>=3.7', or 'numpy<2.4'"
    )


def forget_launches() -> None:
    """From now on count `launched`."""
    if (builder := _builder()) is not None:
        vars(builder).pop("grid_dim", None)


def launched() -> bool:
    """Whether a kernel, anybody's, has run in the interpreter since `forget_launches`."""
    return hasattr(_builder(), "grid_dim")


def _builder() -> Any:
    """What keeps the grid of a launch, if Triton's interpreter has been imported."""
    return getattr(sys.modules.get("triton.runtime.interpreter"), "interpreter_builder", None)


def _release(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)
