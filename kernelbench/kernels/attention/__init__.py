"""Attention: tiles of rows in memory, the forward, the gradients; what else an operator does in
the same kernels are hooks (`tiles.Hook`)."""
