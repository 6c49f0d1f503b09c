"""kernelbench: is this fused kernel right, how much faster is it, and why?"""

__version__ = "0.1.0"
