"""Dilated attention: every r-th row of segments of w, some such branches combined, on the core of
`kernels.attention`. `dilated_attention` is the function of PyTorch, `coverage` counts the branches
of each token, `orders` has the space-filling curves."""

from kernelbench.kernels.dilated_attention.checks import coverage as coverage
from kernelbench.kernels.dilated_attention.operator import dilated_attention as dilated_attention
