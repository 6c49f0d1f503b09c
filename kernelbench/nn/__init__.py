"""Modules that a model author drops in, over the kernels of this package."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kernelbench.nn.rcm import IMPLEMENTATIONS, RCMAttention

__all__ = ["IMPLEMENTATIONS", "RCMAttention"]


def __getattr__(name: str) -> Any:
    """Imports `nn.rcm` when it is first used: it needs Triton, `nn.sdpa` does not."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from kernelbench.nn import rcm

    return getattr(rcm, name)
