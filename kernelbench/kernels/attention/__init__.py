"""Attention: tiles of rows in memory, the places where a program finds its rows, the forward, the
gradients; the same in Gluon for Hopper. What else an operator does in these kernels are hooks
(`tiles.Hook`, `tiles.Mask`, `hopper.forward.HopperHook`). `attention` is the function of PyTorch,
`parts` has the primitives for parts of the keys."""

from kernelbench.kernels.attention.operator import attention as attention
