"""The calls that the study measures: 1 µs to 10 ms, bound by memory or by compute, one kernel or
many. Each is made on the GPU when it is asked for."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import rms_norm, scaled_dot_product_attention

from kernelbench.kernels import stream

Call = Callable[[], Any]
BF16 = torch.bfloat16


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cuda").to(BF16)


def copy(n: int) -> Call:
    """A Triton copy of n bf16."""
    source = normal(n)
    return stream.copy(source, torch.empty_like(source), 2048, 8).run


def negate(n: int) -> Call:
    source = normal(n)
    return partial(torch.neg, source, out=torch.empty_like(source))


def matmul(n: int) -> Call:
    a, b = normal(n, n), normal(n, n)
    return partial(torch.mm, a, b, out=torch.empty_like(a))


def fused_norm(rows: int, n: int) -> Call:
    return partial(rms_norm, normal(rows, n), (n,), normal(n))


def eager_norm(rows: int, n: int) -> Call:
    """RMSNorm as people write it: eight kernels."""
    x, weight = normal(rows, n), normal(n)

    def call() -> torch.Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(BF16) * weight

    return call


def attention(b: int, h: int, n: int, d: int) -> Call:
    q, k, v = (normal(b, h, n, d) for _ in range(3))

    def call() -> torch.Tensor:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return scaled_dot_product_attention(q, k, v)

    return call


def nothing() -> Call:
    return stream.write(torch.empty(1, device="cuda"), 1024).run


# name: (how to make it, what bounds it)
KERNELS: dict[str, tuple[Callable[[], Call], str]] = {
    "nothing": (nothing, "memory"),
    "copy 4 Ki": (lambda: copy(1 << 12), "memory"),
    "copy 256 Ki": (lambda: copy(1 << 18), "memory"),
    "copy 2 Mi": (lambda: copy(1 << 21), "memory"),
    "copy 8 Mi": (lambda: copy(1 << 23), "memory"),
    "copy 16 Mi": (lambda: copy(1 << 24), "memory"),
    "negate 32 Mi": (lambda: negate(1 << 25), "memory"),
    "copy 128 Mi": (lambda: copy(1 << 27), "memory"),
    "copy 2 Gi": (lambda: copy(1 << 31), "memory"),
    "F.rms_norm 4096x384": (lambda: fused_norm(4096, 384), "memory"),
    "F.rms_norm 8192x4096": (lambda: fused_norm(8192, 4096), "memory"),
    "F.rms_norm 262144x256": (lambda: fused_norm(262144, 256), "memory"),
    "eager norm 4096x384": (lambda: eager_norm(4096, 384), "memory"),
    "eager norm 4096x4096": (lambda: eager_norm(4096, 4096), "memory"),
    "matmul 512": (lambda: matmul(512), "compute"),
    "matmul 1024": (lambda: matmul(1024), "compute"),
    "matmul 2048": (lambda: matmul(2048), "compute"),
    "matmul 4096": (lambda: matmul(4096), "compute"),
    "matmul 16384": (lambda: matmul(16384), "compute"),
    "attention 1x8x1024x64": (lambda: attention(1, 8, 1024, 64), "compute"),
    "attention 4x12x2048x64": (lambda: attention(4, 12, 2048, 64), "compute"),
    "attention 4x16x8192x128": (lambda: attention(4, 16, 8192, 128), "compute"),
}
