"""A Triton kernel with its launcher.

    kernelbench bench examples/triton_kernel.py:rms_norm \
        --against examples/triton_kernel.py:reference --args 'x=4096x1024:fp16, weight=1024:fp16'
"""

import torch
import triton
import triton.language as tl


def reference(x, weight, eps=1e-6):
    h = x.float()
    return (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps) * weight.float()).to(x.dtype)


@triton.jit
def _rms_norm(x_ptr, weight_ptr, y_ptr, N, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * N
    n = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row + n, mask=n < N, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + n, mask=n < N, other=0.0).to(tl.float32)
    y = x * tl.rsqrt(tl.sum(x * x) / N + eps) * weight
    tl.store(y_ptr + row + n, y.to(y_ptr.dtype.element_ty), mask=n < N)


def rms_norm(x, weight, eps=1e-6):
    M, N = x.shape
    y = torch.empty_like(x)
    _rms_norm[(M,)](x, weight, y, N, eps, BLOCK=triton.next_power_of_2(N), num_warps=8)
    return y
