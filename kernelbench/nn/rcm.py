"""Self-attention mixed with its input by coefficients of a time: y = c_skip(t)·x + c_out(t)·F(x).

Shapes: B samples, N tokens, C = dim channels, H heads, D = C / H; x and y (B,N,C), t (B,).
F(x) = proj(attention(qkv(x))), so the skip belongs to the epilogue of the output projection.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from kernelbench.kernels.launch import refusal
from kernelbench.kernels.projection import DTYPES, project_and_skip
from kernelbench.kernels.rcm import formula_of
from kernelbench.nn.attend import attend
from kernelbench.nn.sdpa import sdpa
from kernelbench.nn.skip import coefficients, skip

Implementation = Literal["auto", "eager", "triton", "triton_int8"]
IMPLEMENTATIONS: tuple[str, ...] = get_args(Implementation)
MOST_D = 256


@torch._dynamo.assume_constant_result  # type: ignore[no-untyped-call, untyped-decorator, unused-ignore]
def _kernels_run(device: torch.device) -> bool:
    return device.type == "cuda" and refusal(device) is None


_PLAIN = (nn.Parameter, Tensor)  # a weight that a kernel can read: no subclass of these


def why_apart(proj: nn.Module) -> str | None:
    """Why a projection must be called as a module, or None where its weight and bias are all of it:
    a plain nn.Linear without hooks, wrappers or replaced parts."""
    if type(proj) is not nn.Linear:
        return f"it is a {type(proj).__name__}, not an nn.Linear"
    hooks = (proj._forward_hooks, proj._forward_pre_hooks, proj._backward_hooks,
             proj._backward_pre_hooks)  # fmt: skip
    if any(hooks) or nn.modules.module._has_any_global_hook():
        return "it has hooks"
    if "forward" in vars(proj) or proj._compiled_call_impl is not None:
        return "its forward was replaced"
    for name in ("weight", "bias"):
        if name not in proj._parameters:
            return f"its {name} is no parameter of its own"
        if (value := getattr(proj, name)) is not None and type(value) not in _PLAIN:
            return f"its {name} is a {type(value).__name__}"
    return None


class RCMAttention(nn.Module):
    """y = c_skip(t)·x + c_out(t)·proj(softmax(q kᵀ/√D) v), with q, k, v = qkv(x); not causal.

    dim: channels C, a multiple of num_heads; heads have at most 256 elements.
    qkv_bias, proj_bias: whether `qkv` and `proj` have a bias.
    sigma_data, parametrization: of the coefficients, `edm`, `cm`, `trigflow` or `none`, see
        `kernels.rcm_attention.rcm_attention`; sigma_data is the parametrization's own unless given.
    impl: the implementation. The parameters, and so the state_dict, are the same for all.
        `eager`: PyTorch, operator by operator.
        `triton`: the projection, its bias and the skip are one kernel, where `proj` is an
            nn.Linear and nothing else (see `why_apart`): with a hook, a parametrization, a wrapper
            or sharded weights it is called as a module, and the skip is a separate kernel.
            Attention is ours or PyTorch's, whichever is faster there, see `attend.attend`.
        `triton_int8`: as `triton`, with the scores of attention in int8, an approximation; for
            inference only.
        `auto`: `triton` for tensors on a GPU where the kernels run, else `eager`.

    The module trains, under autocast too, and torch.compile makes one graph of it.
    Raises ValueError for a dim that num_heads does not divide, for heads that are too large, for
    an unknown impl or parametrization, or a sigma_data that it cannot have.

    Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, 2022
    (arXiv:2206.00364); Lu and Song, Simplifying, Stabilizing and Scaling Continuous-Time
    Consistency Models, 2024 (arXiv:2410.11081).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        *,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        sigma_data: float | None = None,
        parametrization: str = "edm",
        impl: Implementation = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if dim < 1 or num_heads < 1 or dim % num_heads:
            raise ValueError(
                f"RCMAttention takes a dim that is a multiple of num_heads, got dim = {dim} and "
                f"num_heads = {num_heads}"
            )
        if dim // num_heads > MOST_D:
            raise ValueError(
                f"RCMAttention takes heads of at most {MOST_D} elements, got {dim // num_heads} "
                f"(dim = {dim}, num_heads = {num_heads}): take more heads"
            )
        if impl not in IMPLEMENTATIONS:
            raise ValueError(
                f"RCMAttention has no impl {impl!r}. Known: {', '.join(IMPLEMENTATIONS)}"
            )
        formula = formula_of(parametrization, sigma_data, False, None, dim // num_heads)
        self.dim, self.num_heads, self.impl = dim, num_heads, impl
        self.parametrization, self.sigma_data = parametrization, formula.sigma_data
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, device=device, dtype=dtype)
        self.proj = nn.Linear(dim, dim, bias=proj_bias, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw the parameters anew, as nn.Linear does."""
        self.qkv.reset_parameters()
        self.proj.reset_parameters()

    @property
    def why_apart(self) -> str | None:
        """Why `triton` calls `proj` as a module instead of fusing it with the skip; None if it
        fuses them."""
        return why_apart(self.proj)

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, num_heads={self.num_heads}, sigma_data={self.sigma_data}, "
            f"parametrization={self.parametrization!r}, impl={self.impl!r}"
        )

    def get_skip_coefficients(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """c_skip and c_out of t, of t's shape, in fp32 or wider."""
        t = torch.as_tensor(t)
        wide = t if t.dtype is torch.float64 else t.float()
        return coefficients(wide, self.parametrization, self.sigma_data)

    def forward(self, x: Tensor, t: Tensor | float | None = None) -> Tensor:
        """y (B,N,C) of x's dtype, for x (B,N,C) and t, (B,) or one time for all samples.

        t is left out under `none` alone. Raises ValueError for other shapes, TypeError for a dtype
        that is not the weights' (without autocast), RuntimeError for tensors on several devices,
        for kernels that cannot run there, and for `triton_int8` with a gradient to come.
        """
        self._check(x)
        t = self._times(x, t)
        impl = self.impl
        if impl == "auto":
            fits = x.dtype in DTYPES and next(self.proj.parameters()).dtype in DTYPES
            impl = "triton" if fits and _kernels_run(x.device) else "eager"
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).unbind(2)  # (B,N,H,D)
        a = _ATTENTION[impl](q, k, v)
        if impl == "eager" or self.why_apart is not None:
            return self._mix(self.proj(a), x, t, by_kernel=impl != "eager")
        bias = self.proj.bias
        return project_and_skip(
            a,
            self.proj.weight.to(a.dtype),
            None if bias is None else bias.to(a.dtype),
            x if t is not None else None,
            t,
            sigma_data=self.sigma_data,
            parametrization=self.parametrization,
        )

    def _mix(self, f: Tensor, x: Tensor, t: Tensor | None, *, by_kernel: bool) -> Tensor:
        if t is None:
            return f
        plain = type(f) in _PLAIN and type(x) in _PLAIN
        if by_kernel and plain and not torch.compiler.is_compiling():  # Inductor fuses it itself
            return skip(f, x, t, parametrization=self.parametrization, sigma_data=self.sigma_data)
        c_skip, c_out = (c.to(x.dtype)[:, None, None] for c in self.get_skip_coefficients(t))
        return (c_skip * x + c_out * f).to(x.dtype)

    def _check(self, x: Tensor) -> None:
        if x.dim() != 3 or x.shape[2] != self.dim:
            raise ValueError(
                f"RCMAttention takes x of shape (B, N, {self.dim}), got {tuple(x.shape)}"
            )
        if type(self.qkv) is not nn.Linear:  # another module checks its own inputs
            return
        weight = self.qkv.weight
        if x.device != weight.device:
            raise RuntimeError(
                f"RCMAttention has its weights on {weight.device}, got x on {x.device}: move one"
            )
        if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
            raise TypeError(
                f"RCMAttention has weights of {weight.dtype}, got x of {x.dtype}: convert one with "
                ".to(), or use torch.autocast"
            )

    def _times(self, x: Tensor, t: Tensor | float | None) -> Tensor | None:
        """t as (B,), or None where it takes no part."""
        if self.parametrization == "none":
            return None
        if t is None:
            raise ValueError(f"RCMAttention mixes t in under {self.parametrization!r}, got None")
        B = x.shape[0]
        if not isinstance(t, Tensor):
            return torch.full((B,), float(t), device=x.device)
        if t.dim() == 0:
            return t.to(device=x.device, dtype=torch.float32).expand(B)
        if t.shape != (B,):
            raise ValueError(
                f"RCMAttention takes one t, or t of shape (B,), here ({B},), got {tuple(t.shape)}"
            )
        if t.device != x.device:
            raise RuntimeError(f"RCMAttention got x on {x.device} and t on {t.device}: move one")
        return t if t.is_floating_point() else t.float()


def _attend_int8(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if torch.is_grad_enabled() and q.requires_grad:
        raise RuntimeError(
            "impl='triton_int8' is for inference and has no gradient: call it under "
            "torch.no_grad(), or take impl='triton'"
        )
    from kernelbench.kernels import rcm_int8

    attend: Any = rcm_int8.rcm_attention_int8
    a: Tensor = attend(q, k, v, x=None, t=None, parametrization="none")
    return a


# (B,N,C) of views (B,N,H,D) of a packed qkv, without copies.
_ATTENTION: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "eager": sdpa,
    "triton": attend,
    "triton_int8": _attend_int8,
}
