"""PyTorch's operators of nn.lse on a GPU: gradients whose o and lse are of more keys than these."""

import pytest
import torch

from kernelbench.nn import lse
from kernelbench.nn.lse import Operator, plain

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

BF16, FP32 = torch.bfloat16, torch.float32
MOST_ERROR = {BF16: 8e-3, FP32: 2e-5}  # of the norm


def off(found: torch.Tensor, right: torch.Tensor) -> float:
    return float((found.double() - right).norm() / right.norm())


@pytest.mark.parametrize(
    ("operator", "dtype"),
    [
        (lse._CUDNN, BF16),
        (lse._FLASH, BF16),
        (lse._EFFICIENT, FP32),
        (lse._PLAIN, BF16),
        (lse._PLAIN, FP32),
    ],
    ids=["cudnn", "flash", "efficient", "plain", "plain-fp32"],
)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize(
    ("N", "M"), [(2, 2), (333, 333), (1024, 1024), (2, 333), (333, 2), (1024, 333)]
)
@pytest.mark.parametrize("D", [64, 128])
def test_gradients_of_half_the_keys(
    operator: Operator, dtype: torch.dtype, causal: bool, N: int, M: int, D: int
) -> None:
    """dk and dv are of one half each, of M keys, dq is the sum of both, for o and lse of all keys:
    as of the whole in fp64. Tensors are strided: heads of (B,N,H,D), every other row."""
    if causal and N != M:
        pytest.skip("causal operators have as many keys as queries")
    if operator is lse._CUDNN and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("nn.lse takes cuDNN from Hopper on")
    generator = torch.Generator("cuda").manual_seed(N + D)

    def drawn(rows: int) -> torch.Tensor:
        x = torch.randn(2, 2 * rows, 3, D, generator=generator, device="cuda").to(dtype)
        return x[:, ::2].transpose(1, 2)

    q, do = drawn(N), drawn(N)
    halves = [(drawn(M), drawn(M)) for _ in range(2)]
    wide = [x.double().requires_grad_() for x in (q, *halves[0], *halves[1])]
    # a query sees as many keys of one half as of the other
    parts = [plain(wide[0], wide[i], wide[i + 1], causal) for i in (1, 3)]
    whole = torch.logaddexp(parts[0][1], parts[1][1])
    right = sum(o * (part - whole).exp().unsqueeze(-1) for o, part in parts)
    assert isinstance(right, torch.Tensor)
    gradients = torch.autograd.grad(right, wide, do.double())

    forwards = [operator.forward(q, k, v, causal) for k, v in halves]
    for (o, of_half), (o_right, lse_right) in zip(forwards, parts, strict=True):
        assert off(o, o_right.detach()) < MOST_ERROR[dtype]
        assert off(of_half, lse_right.detach()) < MOST_ERROR[dtype]
    o, of_all = right.detach().to(dtype), whole.detach().float()
    found = [operator.backward(do, q, k, v, o, of_all, causal) for k, v in halves]
    assert off(found[0][0].double() + found[1][0].double(), gradients[0]) < MOST_ERROR[dtype]
    for half, (_, dk, dv) in enumerate(found):
        assert off(dk, gradients[1 + 2 * half]) < MOST_ERROR[dtype]
        assert off(dv, gradients[2 + 2 * half]) < MOST_ERROR[dtype]
