"""Modules that a model author drops in, over the kernels of this package."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kernelbench.nn.dilated import DilatedAttention
    from kernelbench.nn.rcm import IMPLEMENTATIONS, RCMAttention

__all__ = ["IMPLEMENTATIONS", "DilatedAttention", "RCMAttention"]


def __getattr__(name: str) -> Any:
    """Imports `nn.rcm` or `nn.dilated` when it is first used: they need Triton, `nn.sdpa` does
    not."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from kernelbench.nn import dilated, rcm

    return getattr(dilated if name == "DilatedAttention" else rcm, name)
