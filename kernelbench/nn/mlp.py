"""The SwiGLU block of a transformer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernelbench.kernels.swiglu import swiglu
from kernelbench.nn.choosing import Axes, Impl, check_impl, chosen
from kernelbench.nn.compiling import compiled


def eager(x: Tensor) -> Tensor:
    """silu(gate)·up, of both next to each other in the last axis."""
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


class MLP(nn.Module):
    """y = down(silu(g)·u), g and u the halves of gate_up(x).

    dim, hidden: channels of x and y, and of g and u. bias: of both projections.
    impl: of silu(g)·u. `eager`: PyTorch's two operators. `compile`: these, compiled. `triton`:
        `kernels.swiglu.swiglu`. `auto`: see `choosing.chosen`. Parameters are the same for all.

    Raises ValueError for an unknown impl.

    Shazeer, GLU Variants Improve Transformer, 2020 (arXiv:2002.05202).
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        bias: bool = False,
        impl: Impl = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_impl("MLP", impl)
        self.impl = impl
        self.gate_up = nn.Linear(dim, 2 * hidden, bias=bias, device=device, dtype=dtype)
        self.down = nn.Linear(hidden, dim, bias=bias, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """y, of x's shape, (..., dim)."""
        both = self.gate_up(x)

        def axes() -> Axes:
            hidden = both.shape[-1] // 2
            return ("M", both.numel() // both.shape[-1]), ("F", hidden), ("packed", True)

        impl = chosen("swiglu", self.impl, axes, both)
        if impl == "triton":
            return self.down(swiglu(both))  # type: ignore[no-any-return]
        gated = compiled(eager) if impl == "compile" else eager
        return self.down(gated(both))  # type: ignore[no-any-return]
