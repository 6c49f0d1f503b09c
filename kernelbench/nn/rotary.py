"""Rotary position embedding as a module, with its tables."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kernelbench.kernels.rotary import apply_rotary
from kernelbench.nn.choosing import Axes, Impl, check_impl, chosen
from kernelbench.nn.compiling import compiled


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def eager(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """By PyTorch's operators, in q's dtype, as the family `rotary` and Hugging Face's Llama do;
    cos and sin (S,D/2), in fp32."""
    cos, sin = (table[:, None].to(q.dtype) for table in (cos, sin))
    return _turned(q, cos, sin), _turned(k, cos, sin)


class RotaryEmbedding(nn.Module):
    """Turns pairs (x[i], x[i+D/2]) of each head of q and k by position·base^(−2i/D).

    head_dim: D, even. max_seq_len: positions of the tables, which are fp32 whatever the module is
        converted to, and no part of its state_dict.
    impl: `eager`: PyTorch's operators, in q's dtype, to which the tables are rounded. `compile`:
        these, compiled. `triton`: `kernels.rotary.apply_rotary`, q and k in one launch, in fp32 and
        rounded once. `auto`: see `choosing.chosen`.

    Raises ValueError for an unknown impl, a D that is not even, or no positions.

    Su et al., RoFormer, 2021 (arXiv:2104.09864); pairs as in GPT-NeoX and Llama.
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        head_dim: int,
        max_seq_len: int,
        base: float = 10000.0,
        *,
        impl: Impl = "auto",
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        check_impl("RotaryEmbedding", impl)
        if head_dim < 2 or head_dim % 2:
            raise ValueError(f"RotaryEmbedding takes an even head_dim, got {head_dim}")
        if max_seq_len < 1 or not base > 0:
            raise ValueError(
                f"RotaryEmbedding takes positions and a base above 0, got max_seq_len = "
                f"{max_seq_len} and base = {base}"
            )
        self.head_dim, self.max_seq_len, self.base, self.impl = head_dim, max_seq_len, base, impl
        self.register_buffer("cos", torch.empty(0, device=device), persistent=False)
        self.register_buffer("sin", torch.empty(0, device=device), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Make the tables anew, where they are."""
        device = self.cos.device
        with torch.inference_mode(False):  # tables of training, whenever they are made
            half = torch.arange(0, self.head_dim, 2, dtype=torch.float64, device="cpu")
            position = torch.arange(self.max_seq_len, dtype=torch.float64, device="cpu")
            angle = position[:, None] * self.base ** (-half / self.head_dim)
            self.cos, self.sin = (x.float().to(device) for x in (angle.cos(), angle.sin()))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """As every conversion and move; tables keep their precision and values, also `to_empty`."""
        before = {"cos": self.cos, "sin": self.sin}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if before["cos"].device.type == "meta" != self.cos.device.type:
            self.reset_parameters()
            return self
        with torch.inference_mode(False), torch.no_grad():
            for name, old in before.items():
                new = getattr(self, name)
                if new.dtype != old.dtype or new.is_inference():
                    setattr(self, name, old.to(new.device))
                elif new is not old:
                    new.copy_(old)
        return self

    def extra_repr(self) -> str:
        return f"{self.head_dim}, {self.max_seq_len}, base={self.base}, impl={self.impl!r}"

    def forward(self, q: Tensor, k: Tensor, offset: int = 0) -> tuple[Tensor, Tensor]:
        """q, (B,S,H,D), and k, (B,S,G,D), turned; token s is at position offset + s.

        Raises ValueError for shapes that do not fit, and positions that the tables lack, TypeError
        for two dtypes, RuntimeError for tables that were left on meta.
        """
        D = self.head_dim
        fit = q.dim() == k.dim() == 4 and q.shape[3] == k.shape[3] == D
        if not fit or q.shape[:2] != k.shape[:2]:
            raise ValueError(
                f"RotaryEmbedding takes q and k of shape (B, S, heads, {D}), got "
                f"{tuple(q.shape)} and {tuple(k.shape)}"
            )
        if q.dtype != k.dtype:
            raise TypeError(f"RotaryEmbedding takes q and k of one dtype, got {q.dtype}, {k.dtype}")
        S = q.shape[1]
        if offset < 0 or offset + S > self.max_seq_len:
            raise ValueError(
                f"RotaryEmbedding has positions 0 to {self.max_seq_len - 1}, got {offset} to "
                f"{offset + S - 1}: make it with a larger max_seq_len"
            )

        if self.cos.device.type == "meta" != q.device.type:
            raise RuntimeError(
                f"RotaryEmbedding has its tables on meta, q is on {q.device}: call "
                f".to_empty(device={str(q.device)!r}) on it"
            )

        def axes() -> Axes:
            return ("B", len(q)), ("S", S), ("Hq", q.shape[2]), ("Hk", k.shape[2]), ("D", D)

        cos, sin = (table[offset : offset + S] for table in (self.cos, self.sin))
        impl = chosen("rotary", self.impl, axes, q, k)
        if impl == "triton":
            return apply_rotary(q, k, cos, sin)
        turn = compiled(eager) if impl == "compile" else eager
        found: tuple[Tensor, Tensor] = turn(q, k, cos, sin)
        return found
