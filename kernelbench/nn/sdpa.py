"""PyTorch's attention on the backend that is fastest on a GPU.

Shapes: B samples, N queries, K keys, H heads, G of k and v, D head size; q (B,N,H,D), k, v
(B,K,G,D), often views of a packed qkv, which are not copied; the result is (B,N,H·D).
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

_LATER = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
_CUDNN_FIRST = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, *_LATER]
_FLASH_FIRST = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, *_LATER]


@torch._dynamo.assume_constant_result  # type: ignore[no-untyped-call, untyped-decorator, unused-ignore]
def _prefers_cudnn(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (9, 0)


def backends(device: torch.device) -> list[SDPBackend]:
    """SDPA's backends, best first; PyTorch takes the first that can run a case.

    cuDNN on Hopper and newer for bf16 and fp16 (flash before it on older GPUs, as in PyTorch's own
    order); fp32 has the memory-efficient one, in IEEE precision, on a GPU.
    """
    return _CUDNN_FIRST if _prefers_cudnn(device) else _FLASH_FIRST


def sdpa(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """softmax(q kᵀ/√D) v on the best of `backends`. causal: the last query sees the last key."""
    with sdpa_kernel(backends(q.device), set_priority=True):
        return unordered_sdpa(q, k, v, causal=causal)


def unordered_sdpa(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """As `sdpa`, on whichever backend the caller or PyTorch chooses."""
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    N, K, shares = q.shape[2], k.shape[2], q.shape[1] != k.shape[1]
    mask = causal_lower_right(N, K) if causal and N != K else None
    a = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal and mask is None, enable_gqa=shares
    )
    return a.transpose(1, 2).flatten(2)
