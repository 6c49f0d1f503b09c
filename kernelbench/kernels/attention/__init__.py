"""Attention: what its kernels share."""
