"""Tokens so far apart that offsets pass 32 bits, in bf16, on whichever kernels this GPU runs: see
tests/kernels/test_addresses.py, which has fp16, also on a CPU."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from kernelbench.kernels.projection import project_and_skip
from kernelbench.kernels.rcm_attention import rcm_attention, rcm_attention_unfused
from kernelbench.kernels.rcm_int8 import rcm_attention_int8
from kernelbench.kernels.rms_norm import rms_norm
from kernelbench.kernels.rotary import apply_rotary

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
TOKENS, APART = 256, 1 << 24  # elements from a token to the next: the last lie beyond 2^31
FRONT = 1 << 31  # elements before the first token, which products of 32 bits would read
SLOT = 1 << 14  # elements of a token in each tensor
Outputs = tuple[Tensor, ...]


@pytest.fixture(scope="module")
def memory() -> Iterator[Tensor]:
    size = FRONT + TOKENS * APART
    if torch.cuda.mem_get_info()[0] < 3 * size:
        pytest.skip("needs 20 GB of free GPU memory")
    yield torch.zeros(size, dtype=torch.bfloat16, device="cuda")
    torch.cuda.empty_cache()


def spread(memory: Tensor, tensors: tuple[Tensor, ...]) -> Outputs:
    """Copies of tensors (B,256,..), each token far from the next."""
    copies = []
    for slot, tensor in enumerate(tensors):
        assert tensor.shape[1] == TOKENS and tensor.numel() // TOKENS <= SLOT
        strides = list(tensor[:, :1].contiguous().stride())
        strides[1] = APART
        copy = memory.as_strided(tensor.shape, strides, FRONT + slot * SLOT)
        copies.append(copy.copy_(tensor))
    return tuple(copies)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda").bfloat16()


def attention(D: int) -> tuple[Tensor, ...]:
    return (*(draw(2, TOKENS, 4, D) for _ in "qkv"), draw(2, TOKENS, 4 * D))


def gradients(function: Callable[..., Tensor], *given: Tensor) -> Outputs:
    """Of all but the last, which comes from upstream."""
    leaves = [tensor.detach().requires_grad_() for tensor in given[:-1]]
    y = function(*leaves)
    return y, *torch.autograd.grad(y, leaves, given[-1])


def close(call: Callable[..., Outputs], memory: Tensor, *given: Tensor) -> None:
    far = spread(memory, given)
    assert all(tensor.stride(1) == APART for tensor in far)
    for got, expected in zip(call(*far), call(*given), strict=True):
        torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("D", [32, 64, 128])
@pytest.mark.parametrize("function", [rcm_attention, rcm_attention_unfused, rcm_attention_int8])
def test_attention(function: Callable[..., Tensor], D: int, causal: bool, memory: Tensor) -> None:
    torch.manual_seed(D)
    t = torch.rand(2, device="cuda")
    close(lambda *given: (function(*given, t, causal=causal),), memory, *attention(D))


@pytest.mark.parametrize("D", [32, 64, 128])
def test_gradients_of_attention(D: int, memory: Tensor) -> None:
    torch.manual_seed(D)
    t = torch.rand(2, device="cuda")

    def call(*given: Tensor) -> Outputs:
        return gradients(lambda *leaves: rcm_attention(*leaves, t), *given)

    close(call, memory, *attention(D), draw(2, TOKENS, 4 * D))


def test_projection(memory: Tensor) -> None:
    torch.manual_seed(0)
    weight, bias, t = draw(512, 512) / 20, draw(512), torch.rand(2, device="cuda")

    def call(*given: Tensor) -> Outputs:
        return gradients(lambda a, x: project_and_skip(a, weight, bias, x, t), *given)

    close(call, memory, *(draw(2, TOKENS, 512) for _ in range(3)))


def test_rotary(memory: Tensor) -> None:
    angles = torch.rand(TOKENS, 32, device="cuda")
    cos, sin = angles.cos(), angles.sin()
    q, k = draw(2, TOKENS, 4, 64), draw(2, TOKENS, 2, 64)
    close(lambda q, k: apply_rotary(q, k, cos, sin), memory, q, k)
    close(lambda q, k: apply_rotary(q, k, cos, sin, inplace=True), memory, q, k)


def test_rms_norm(memory: Tensor) -> None:
    weight = draw(2048)

    def call(x: Tensor, residual: Tensor) -> Outputs:
        y = rms_norm(x[0], weight)
        assert isinstance(y, Tensor)
        return y, *rms_norm(x[0], weight, residual=residual[0])

    close(call, memory, draw(1, TOKENS, 2048), draw(1, TOKENS, 2048))
