"""Modules that a model author drops in, over the kernels of this package."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kernelbench.nn.attention import Attention
    from kernelbench.nn.choosing import PROVIDERS, use_dispatch
    from kernelbench.nn.dilated import DilatedAttention
    from kernelbench.nn.mlp import MLP
    from kernelbench.nn.norm import RMSNorm
    from kernelbench.nn.rcm import IMPLEMENTATIONS, RCMAttention
    from kernelbench.nn.rotary import RotaryEmbedding
    from kernelbench.nn.transformer import ModelConfig, Transformer, TransformerBlock

_MODULES = {
    "attention": ("Attention",),
    "choosing": ("PROVIDERS", "use_dispatch"),
    "dilated": ("DilatedAttention",),
    "mlp": ("MLP",),
    "norm": ("RMSNorm",),
    "rcm": ("IMPLEMENTATIONS", "RCMAttention"),
    "rotary": ("RotaryEmbedding",),
    "transformer": ("ModelConfig", "Transformer", "TransformerBlock"),
}

__all__ = [
    "IMPLEMENTATIONS",
    "MLP",
    "PROVIDERS",
    "Attention",
    "DilatedAttention",
    "ModelConfig",
    "RCMAttention",
    "RMSNorm",
    "RotaryEmbedding",
    "Transformer",
    "TransformerBlock",
    "use_dispatch",
]


def __getattr__(name: str) -> Any:
    """Imports a module when a name of it is first used: they need Triton, `nn.sdpa` does not."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
