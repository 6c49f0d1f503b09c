"""Attention: tiles of rows in memory, the places where a program finds its rows, the forward, the
gradients. What else an operator does in the same kernels are hooks (`tiles.Hook`)."""
