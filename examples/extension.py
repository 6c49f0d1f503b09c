"""A C++ and CUDA extension, built when the module is imported (it needs a compiler and ninja, on a
GPU nvcc).

    kernelbench bench examples/extension.py:clamped --against examples/extension.py:reference \
        --args 'x=4096x1024:fp32, limit=0.5'
"""

import torch
from torch.utils.cpp_extension import load_inline

CPU = """
torch::Tensor clamped(const torch::Tensor& x, double limit) {
  return x.clamp(-limit, limit);
}
"""
CUDA = """
__global__ void clamped_kernel(const float* x, float* y, float limit, int64_t n) {
  int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (i < n) y[i] = fminf(fmaxf(x[i], -limit), limit);
}

torch::Tensor clamped(const torch::Tensor& x, double limit) {
  auto y = torch::empty_like(x);
  const int64_t n = x.numel();
  clamped_kernel<<<(n + 255) / 256, 256, 0, at::cuda::getCurrentCUDAStream()>>>(
      x.data_ptr<float>(), y.data_ptr<float>(), static_cast<float>(limit), n);
  return y;
}
"""
DECLARED = "torch::Tensor clamped(const torch::Tensor& x, double limit);"
INCLUDES = "#include <ATen/cuda/CUDAContext.h>\n"

if torch.cuda.is_available():
    _built = load_inline("example_clamped_cuda", DECLARED, INCLUDES + CUDA, functions=["clamped"])
else:
    _built = load_inline("example_clamped", CPU, functions=["clamped"])


def reference(x, limit):
    return torch.minimum(torch.maximum(x, -torch.full_like(x, limit)), torch.full_like(x, limit))


def clamped(x, limit):
    return _built.clamped(x, limit)
