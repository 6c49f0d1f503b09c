"""kernelbench: is this fused kernel right, how much faster is it, and why?

Public is what the modules of PUBLIC have without an underscore; everything else is private.
"""

__version__ = "0.1.0"

PUBLIC = (
    "kernels.projection",
    "kernels.rcm_attention",
    "kernels.rcm_int8",
    "kernels.rms_norm",
    "kernels.rotary",
    "nn",
    "provide",
    "spec",
)
