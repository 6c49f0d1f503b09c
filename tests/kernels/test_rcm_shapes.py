"""Attention with a fused skip at the sizes that models have: forward and five gradients against
fp64, with the config that the table picks and with every other. And x, to the bit, where time
begins."""

import pytest
import torch
from test_rcm_attention import FLOOR, check, draw, in_fp64, reference, relative

from kernelbench.kernels.attention.configs import configs
from kernelbench.kernels.launch import arch_of
from kernelbench.kernels.rcm_attention import rcm_attention, rcm_attention_unfused

BITS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}
KINDS = [torch.bfloat16, torch.float16, torch.float32]

# Among them: B of 1 and 16, H of 1 and 12, C of 512, 768, 1024, 1536 and 2048, each N and each D.
SHAPES = [
    (1, 1, 12, 48),
    (16, 7, 12, 96),
    (16, 1, 1, 64),
    (3, 7, 1, 128),
    (16, 1000, 1, 80),
    (3, 1024, 8, 64),
    (2, 1000, 12, 64),
    (2, 1024, 16, 64),
    (2, 1000, 16, 96),
    (2, 1024, 16, 128),
    (2, 1000, 12, 80),
    (1, 1024, 12, 48),
    (2, 1000, 4, 256),
    (1, 1024, 8, 256),
    (16, 1024, 1, 128),
    (1, 8191, 1, 48),
    (1, 8191, 1, 64),
    (1, 8191, 1, 128),
    (1, 8191, 1, 256),
]


@pytest.fixture
def cuda():
    if not torch.cuda.is_available():
        pytest.skip("minutes in the interpreter: needs a GPU")
    return torch.device("cuda", torch.cuda.current_device())


@pytest.mark.gpu
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("B", "N", "H", "D"), SHAPES)
def test_shapes_of_models(B, N, H, D, kind, causal, cuda):
    """Each sample has its own t, and σ is not 1."""
    inputs, dy = draw(B, N, H, D, kind, cuda, seed=N + D)
    check(inputs, dy, causal=causal, sigma_data=0.7)


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize("parametrization", ["edm", "cm", "trigflow", "none"])
@pytest.mark.parametrize("D", [48, 64, 128])
def test_several_seeds_and_parametrizations(D, parametrization, seed, cuda):
    inputs, dy = draw(2, 1000, 3, D, torch.bfloat16, cuda, seed)
    for function in (rcm_attention, rcm_attention_unfused):
        check(inputs, dy, function=function, parametrization=parametrization)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["fwd", "bwd"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("D", [48, 80, 96, 256])
def test_every_config_of_other_heads(D, kind, mode, cuda):
    inputs, dy = draw(2, 390, 2, D, kind, cuda, seed=D)
    found = configs(2, 390, 2, D, arch=arch_of(cuda), mode=mode, itemsize=kind.itemsize)
    for config in found:
        check(inputs, dy, config=config, causal=True)
        check(inputs, dy, config=config, causal=False)


@pytest.mark.gpu
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("N", [1000, 1024])
@pytest.mark.parametrize("D", [64, 80, 128])
def test_views_of_a_packed_qkv_on_a_gpu(D, N, causal, cuda):
    (*_, x, t), dy = draw(2, N, 12, D, torch.bfloat16, cuda)
    qkv = torch.randn(2, N, 3, 12, D, device=cuda, dtype=torch.bfloat16)
    check([*(a.detach().requires_grad_() for a in qkv.unbind(2)), x, t], dy, causal=causal)


@pytest.mark.gpu
@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("D", [48, 64, 128])
def test_late_edm_tends_to_sigma_times_attention_on_a_gpu(D, kind, sigma, cuda):
    inputs, _ = draw(2, 1000, 3, D, kind, cuda)
    inputs[4] = torch.full((2,), 1e4, device=cuda)
    attention = reference(*in_fp64(inputs), parametrization="none")
    with torch.no_grad():
        for function in (rcm_attention, rcm_attention_unfused):
            late = function(*inputs, sigma_data=sigma)
            assert relative(late, sigma * attention) <= 2 * FLOOR[kind]


@pytest.mark.parametrize(("parametrization", "t"), [("edm", 0), ("trigflow", 0), ("cm", 0.002)])
@pytest.mark.parametrize("D", [16, 64, 128])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_x_comes_back_to_the_bit_where_time_begins(kind, D, parametrization, t, device):
    """−0 as well, which a sum with anything but −0 would turn into +0."""
    if device == "cpu" and (D > 16 or kind is torch.bfloat16):
        pytest.skip("as the others in the interpreter, or wrong in it")
    inputs, _ = draw(2, 72, 2, D, kind, device)
    x = inputs[3].detach()
    x[:, ::3] = -0.0
    x[:, 1::3] = 0.0
    inputs[3], inputs[4] = x, torch.tensor([t, 0.9], device=device)
    for function in (rcm_attention, rcm_attention_unfused):
        for graded in (False, True):
            with torch.set_grad_enabled(graded):
                y = function(*inputs, parametrization=parametrization).detach()
            assert torch.equal(y[0].view(BITS[kind]), x[0].view(BITS[kind]))
            assert not torch.equal(y[1], x[1]), "each sample has its own t"
