"""Our kernels inside other people's packages: patched in by one call, and out again."""

from kernelbench.integrations import ring_flash_attn as ring_flash_attn
