"""RMSNorm as a module, of a sum with a residual too."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernelbench.kernels.rms_norm import rms_norm
from kernelbench.nn.choosing import Axes, Impl, check_impl, chosen
from kernelbench.nn.compiling import compiled


def eager(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """F.rms_norm, and where the weight is of another dtype the same in fp32, or in fp64 where one
    of them is."""
    if x.dtype == weight.dtype:
        return F.rms_norm(x, weight.shape, weight, eps)
    wide = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)
    return F.rms_norm(x.to(wide), weight.shape, weight.to(wide), eps).to(x.dtype)


def _eager_sum(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    r = x + residual
    return eager(r, weight, eps), r


class RMSNorm(nn.Module):
    """y = r·rsqrt(mean(r²) + eps)·weight over the last axis, of r = x or r = x + residual.

    dim: size of that axis. eps: as in nn.RMSNorm, but with a default of its own, for any dtype.
    impl: `eager`: F.rms_norm behind an addition. `compile`: both, compiled. `triton`:
        `kernels.rms_norm.rms_norm`, which fuses them. `auto`: see `choosing.chosen`. The parameter,
        `weight`, is the same for all, and so is what is rounded: r, then y, once each.

    Raises ValueError for an unknown impl, or a dim below 1.

    Zhang and Sennrich, Root Mean Square Layer Normalization, 2019 (arXiv:1910.07467).
    """

    def __init__(
        self,
        dim: int,
        eps: float = 1e-5,
        *,
        impl: Impl = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_impl("RMSNorm", impl)
        if dim < 1:
            raise ValueError(f"RMSNorm takes a dim of at least 1, got {dim}")
        self.dim, self.eps, self.impl = dim, eps, impl
        self.weight = nn.Parameter(torch.ones(dim, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Set the weight to ones."""
        nn.init.ones_(self.weight)

    def extra_repr(self) -> str:
        return f"{self.dim}, eps={self.eps}, impl={self.impl!r}"

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """y, or (y, r) where there is a residual; all of x's shape, (..., dim), and dtype.

        Under autocast x and residual may differ in dtype: r is of the wider one. Raises ValueError
        for another shape.
        """
        if x.shape[-1:] != self.weight.shape:
            raise ValueError(f"RMSNorm takes x of shape (..., {self.dim}), got {tuple(x.shape)}")
        if residual is not None and residual.shape != x.shape:
            raise ValueError(
                f"RMSNorm takes a residual of x's shape, {tuple(x.shape)}, got "
                f"{tuple(residual.shape)}"
            )
        if residual is not None and residual.dtype != x.dtype:
            wide = torch.promote_types(x.dtype, residual.dtype)
            x, residual = x.to(wide), residual.to(wide)

        def axes() -> Axes:
            sizes = ("M", x.numel() // self.dim), ("N", self.dim)
            return sizes if residual is None else (*sizes, ("residual", True))

        added = () if residual is None else (residual,)
        impl = chosen("rms_norm", self.impl, axes, x, self.weight, *added)
        if impl == "triton":
            return rms_norm(x, self.weight, self.eps, residual=residual)
        if residual is None:
            one = compiled(eager) if impl == "compile" else eager
            y: Tensor = one(x, self.weight, self.eps)
            return y
        both = compiled(_eager_sum) if impl == "compile" else _eager_sum
        found: tuple[Tensor, Tensor] = both(x, residual, self.weight, self.eps)
        return found
