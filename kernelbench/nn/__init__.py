"""Modules that a model author drops in, over the kernels of this package."""

from kernelbench.nn.rcm import IMPLEMENTATIONS, RCMAttention

__all__ = ["IMPLEMENTATIONS", "RCMAttention"]
