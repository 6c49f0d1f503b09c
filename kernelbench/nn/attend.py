"""Attention alone, softmax(q kᵀ/√D) v, by the faster of our kernels and PyTorch's SDPA.

Shapes: B samples, N tokens, H heads, D head size; q, k, v (B,N,H,D), often views of a packed qkv,
which are not copied; the result is (B,N,H·D). Not causal.
"""

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from kernelbench.kernels.attention.configs import configs
from kernelbench.kernels.launch import arch_of, refusal
from kernelbench.kernels.operators import graded
from kernelbench.kernels.rcm_attention import rcm_attention
from kernelbench.nn.sdpa import sdpa

Attention = Literal["triton", "sdpa"]

# The faster one on an H200, by architecture, head size, and whether a gradient is to come; SDPA
# otherwise. For bf16 and fp16: in fp32 SDPA always is.
_FASTEST: dict[tuple[str, int, bool], Attention] = {
    ("sm_90", 64, False): "triton",
    ("sm_90", 128, False): "triton",
    ("sm_90", 64, True): "triton",
    ("sm_90", 128, True): "sdpa",
}


@torch._dynamo.assume_constant_result  # type: ignore[no-untyped-call, untyped-decorator, unused-ignore]
def _arch(device: torch.device) -> str:
    """`sm_90` and the like where our kernels run on a GPU, else `none`, which no table has."""
    return arch_of(device) if refusal(device) is None else "none"


def fastest(q: Tensor, k: Tensor, v: Tensor) -> Attention:
    """Which of the two is faster for these tensors, as measured.

    `sdpa` also for subclasses of Tensor, such as sharded ones. In a graph of torch.compile the
    sizes may be unknown: `triton` is then checked again when the graph runs, unless a gradient is
    to come.
    """
    if any(type(tensor) is not Tensor for tensor in (q, k, v)):  # a subclass dispatches for itself
        return "sdpa"
    if q.dtype not in (torch.bfloat16, torch.float16):
        return "sdpa"
    chosen = _FASTEST.get((_arch(q.device), q.shape[3], graded(q, k, v)), "sdpa")
    if chosen == "triton" and not torch.compiler.is_compiling() and _pairs(*q.shape):
        return "sdpa"
    return chosen


@lru_cache(maxsize=4096)
def _pairs(B: int, N: int, H: int, D: int) -> bool:
    """Whether our forward would run with two warpgroups a program at D = 64: for sizes that do not
    fill programs of three. There cuDNN is 5 % faster ((2,2048,8,64) on an H200). With a gradient to
    come the forward saves more, and loses more time than the backward gains."""
    tile = configs(B, N, H, D, arch="sm_90", mode="fwd")[0].hopper
    return D == 64 and tile is not None and tile.groups == 2


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ/√D) v by the faster one, see `fastest`: (B,N,H·D), with gradients.

    q, k, v: (B,N,H,D) of one dtype and shape. torch.compile makes one graph of it.
    """
    if fastest(q, k, v) == "sdpa":
        return sdpa(q, k, v)
    if torch.compiler.is_compiling() and not graded(q, k, v):
        traced: Tensor = _traced(q, k, v)
        return traced
    return rcm_attention(q, k, v, None, None, parametrization="none")


@torch.library.custom_op("kernelbench::attend", mutates_args=())
def _traced(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Our attention as one opaque operator for torch.compile."""
    with torch.no_grad():
        return attend(q, k, v)


@_traced.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q.new_empty(q.shape[0], q.shape[1], q.shape[2] * q.shape[3])
