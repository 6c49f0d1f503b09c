"""kernelbench: is this fused kernel right, how much faster is it, and why?

Public are `bench`, `choose_kernels`, `dispatch_from`, and what the modules of PUBLIC have without
an underscore; everything else is private.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kernelbench.verbs.choosing import dispatch_from
    from kernelbench.verbs.here import bench
    from kernelbench.verbs.kernels import choose_kernels

__all__ = ["PUBLIC", "__version__", "bench", "choose_kernels", "dispatch_from"]
__version__ = "0.1.0"

PUBLIC = (
    "dispatch",
    "integrations",
    "kernels.attention",
    "kernels.dilated_attention",
    "kernels.projection",
    "kernels.rcm_attention",
    "kernels.rcm_int8",
    "kernels.rms_norm",
    "kernels.rotary",
    "kernels.swiglu",
    "kernels.zigzag_attention",
    "nn",
    "parallel",
    "provide",
    "spec",
)


def __getattr__(name: str) -> Any:
    """What is above, when it is asked for: it imports torch."""
    import random

    drawn = random.getstate()  # rich, which is imported with them, draws a number
    try:
        if name == "bench":
            from kernelbench.verbs.here import bench

            return bench
        if name == "choose_kernels":
            from kernelbench.verbs.kernels import choose_kernels

            return choose_kernels
        if name == "dispatch_from":
            from kernelbench.verbs.choosing import dispatch_from

            return dispatch_from
    finally:
        random.setstate(drawn)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
