"""Causal self-attention with rotary positions and shared heads, as a module."""

import torch
from torch import Tensor, nn

from kernelbench.kernels.attention import attention
from kernelbench.nn.attend import fastest
from kernelbench.nn.choosing import Axes, Impl, check_impl, chosen
from kernelbench.nn.rotary import RotaryEmbedding
from kernelbench.nn.sdpa import sdpa


class Attention(nn.Module):
    """y = out(softmax(q kᵀ/√D) v), causal, with q, k, v = qkv(x), q and k turned by `rotary`.

    dim: channels of x and y. num_heads: H of q; num_kv_heads: G of k and v, which divides H, H
    unless given (GQA; MQA where it is 1). head_dim: D, dim / num_heads unless given.
    rotary: its positions, of the same D; None for none. bias: of both projections.
    impl: of attention alone. `triton`: `kernels.attention.attention`. `eager` and `compile`: SDPA
        on its best backend, one operator, in which there is nothing to compile. `auto`: see
        `choosing.chosen`, and without a table `attend.fastest`. Parameters are the same for all.

    Raises ValueError for heads that do not fit, and an unknown impl.

    Ainslie et al., GQA, 2023 (arXiv:2305.13245).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        *,
        head_dim: int | None = None,
        rotary: RotaryEmbedding | None = None,
        bias: bool = False,
        impl: Impl = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_impl("Attention", impl)
        G = num_heads if num_kv_heads is None else num_kv_heads
        if num_heads < 1 or G < 1 or num_heads % G:
            raise ValueError(
                f"Attention takes num_heads that num_kv_heads divides, got {num_heads} and {G}"
            )
        if head_dim is None and dim % num_heads:
            raise ValueError(
                f"Attention takes a dim that is a multiple of num_heads, got dim = {dim} and "
                f"num_heads = {num_heads}: or pass head_dim"
            )
        D = dim // num_heads if head_dim is None else head_dim
        if rotary is not None and rotary.head_dim != D:
            raise ValueError(f"Attention has heads of {D}, its rotary of {rotary.head_dim}")
        self.num_heads, self.num_kv_heads, self.head_dim, self.impl = num_heads, G, D, impl
        self.rotary = rotary
        self.qkv = nn.Linear(dim, (num_heads + 2 * G) * D, bias=bias, device=device, dtype=dtype)
        self.out = nn.Linear(num_heads * D, dim, bias=bias, device=device, dtype=dtype)
        self.register_load_state_dict_post_hook(_follow)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        return (
            f"num_heads={self.num_heads}, num_kv_heads={self.num_kv_heads}, "
            f"head_dim={self.head_dim}, impl={self.impl!r}"
        )

    def forward(self, x: Tensor) -> Tensor:
        """y, of x's shape, (B,N,dim)."""
        H, G = self.num_heads, self.num_kv_heads
        heads = self.qkv(x).unflatten(-1, (H + 2 * G, self.head_dim))
        q, k, v = heads.split((H, G, G), 2)
        if self.rotary is not None:
            q, k = self.rotary(q, k)
        if self._chosen(q, k, v) == "triton":
            o = attention(q, k, v, causal=True)
            assert isinstance(o, Tensor)
            return self.out(o.flatten(2))  # type: ignore[no-any-return]
        return self.out(sdpa(q, k, v, causal=True))  # type: ignore[no-any-return]

    def _chosen(self, q: Tensor, k: Tensor, v: Tensor) -> str:
        def axes() -> Axes:
            B, N, H, D = q.shape
            heads = ("Hq", H), ("Hk", self.num_kv_heads), ("D", D)
            return ("B", B), ("N", N), *heads, ("causal", True)

        def untabled() -> str:
            return "triton" if fastest(q, k, v) == "triton" else "eager"

        return chosen("attention", self.impl, axes, q, k, v, untabled=untabled)


def _follow(module: nn.Module, keys: object) -> None:
    """Positions are no state: where weights took the place of those on meta, make them there."""
    assert isinstance(module, Attention)
    rotary, device = module.rotary, module.qkv.weight.device
    if isinstance(rotary, RotaryEmbedding) and rotary.cos.device.type == "meta" != device.type:
        rotary.to_empty(device=device)
