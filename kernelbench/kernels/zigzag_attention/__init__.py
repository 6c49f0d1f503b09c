"""Zigzag Llama-3 context-parallel attention: one rank's two chunks of every document, in one pass
over the keys, on the core of `kernels.attention`. `zigzag_attention` is the function of PyTorch."""

from kernelbench.kernels.zigzag_attention.configs import ZigzagConfig as ZigzagConfig
from kernelbench.kernels.zigzag_attention.operator import zigzag_attention as zigzag_attention
from kernelbench.kernels.zigzag_attention.operator import (
    zigzag_attention_kvpacked as zigzag_attention_kvpacked,
)
from kernelbench.kernels.zigzag_attention.operator import (
    zigzag_attention_qkvpacked as zigzag_attention_qkvpacked,
)
