"""Our kernels inside other people's packages: patched in by one call, and out again."""
