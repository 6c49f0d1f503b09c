"""Attention for Hopper (sm_90), in Gluon: warps that load and warps that multiply.

A program is one producer warp and some consumer warpgroups of 64 rows each. The producer copies
tiles to shared memory (TMA), as far ahead as buffers allow; barriers tell the consumers that a tile
is there, and the producer that it has been read. Shah et al., FlashAttention-3, 2024
(arXiv:2407.08608).

Gluon has no interpreter: on a CPU the `tl` kernels of `attention` compute the same functions.
"""
