"""Operators over several GPUs, on torch.distributed."""

from kernelbench.parallel.context import context_parallel as context_parallel
from kernelbench.parallel.dilated import RingDilatedAttention as RingDilatedAttention
from kernelbench.parallel.layout import ZigzagLayout as ZigzagLayout
from kernelbench.parallel.zigzag import ZigzagAttention as ZigzagAttention
from kernelbench.parallel.zigzag import zigzag_attention_func as zigzag_attention_func
