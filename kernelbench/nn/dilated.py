"""LongNet's dilated attention as a module, by our kernels or by PyTorch's operators.

Shapes: B samples, N tokens, H heads of q, G of k and v, D head size; q and y (B,N,H,D), k and v
(B,N,G,D).
"""

import warnings
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from kernelbench.kernels.attention.checks import DTYPES
from kernelbench.kernels.dilated_attention import dilated_attention
from kernelbench.kernels.dilated_attention.checks import (
    check_shapes,
    how_of,
    refuse_dropout,
)
from kernelbench.kernels.dilated_attention.orders import sequence
from kernelbench.kernels.launch import refusal
from kernelbench.nn.branches import How, attend, pieces_of, repeated

Implementation = Literal["auto", "eager", "triton"]
IMPLEMENTATIONS: tuple[str, ...] = get_args(Implementation)
_SAID: set[str] = set()


def check_given(module: Any, q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise TypeError or RuntimeError for tensors that are not of a module's dtype and device."""
    name, dtype, device = type(module).__name__, module.dtype, module.device
    for letter, x in zip("qkv", (q, k, v), strict=True):
        if dtype is not None and x.dtype != dtype:
            raise TypeError(
                f"{name} is of {dtype}, got {letter} of {x.dtype}: convert it with .to()"
            )
        elsewhere = device is not None and device.index not in (None, x.device.index)
        if device is not None and (elsewhere or x.device.type != device.type):
            raise RuntimeError(f"{name} is on {device}, got {letter} on {x.device}: move it")


def chosen(module: Any, q: Tensor) -> str:
    """What a module's `impl` comes to; that `auto` takes PyTorch is warned of, once a reason."""
    if module.impl != "auto":
        return str(module.impl)
    why = refusal(q.device) if q.is_cuda else f"tensors on {q.device.type}"
    if why is None and q.dtype not in DTYPES:
        why = f"tensors of {q.dtype}"
    if why is None:
        return "triton"
    name = type(module).__name__
    if (said := f"{name} takes PyTorch's attention, not our kernels: {why}") not in _SAID:
        _SAID.add(said)
        warnings.warn(said, stacklevel=4)
    return "eager"


def check_impl(name: str, impl: str) -> None:
    """Raise ValueError for an unknown one."""
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"{name} has no impl {impl!r}. Known: {', '.join(IMPLEMENTATIONS)}")


class DilatedAttention(nn.Module):
    """Attention of every r-th token of segments of w, for some w and r, combined. It has no
    parameters.

    segment_lengths, dilation_rates: w and r of each branch.
    dropout: 0; anything else is refused.
    offset_rule, combine, order, grid, reorder: see
        `kernels.dilated_attention.dilated_attention`.
    impl: `triton`: our kernels. `eager`: PyTorch's attention operators on strided views, one call a
        branch and offset; any dtype. `auto`: `triton` on a GPU where the kernels run, in a dtype
        that they take; else `eager`, which a warning says once for each reason.
    device, dtype: that q, k and v must have; any if left out.

    Raises TypeError and ValueError for arguments that cannot be, NotImplementedError for dropout.

    Ding et al., LongNet, 2023 (arXiv:2307.02486).
    """

    def __init__(
        self,
        segment_lengths: Sequence[int],
        dilation_rates: Sequence[int],
        dropout: float = 0.0,
        *,
        offset_rule: str = "head_mod",
        combine: str = "lse",
        order: str = "identity",
        grid: tuple[int, int] | None = None,
        reorder: bool = False,
        impl: Implementation = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        refuse_dropout(dropout)
        check_impl("DilatedAttention", impl)
        self._given: dict[str, Any] = {
            "offset_rule": offset_rule,
            "combine": combine,
            "order": order,
            "grid": grid,
            "reorder": reorder,
        }
        how_of(segment_lengths, dilation_rates, causal=False, scale=None, **self._given)
        self.segment_lengths, self.dilation_rates = [*segment_lengths], [*dilation_rates]
        self.impl, self.dtype = impl, dtype
        self.device = None if device is None else torch.device(device)

    def extra_repr(self) -> str:
        others = ", ".join(f"{name}={value!r}" for name, value in self._given.items())
        return f"{self.segment_lengths}, {self.dilation_rates}, {others}, impl={self.impl!r}"

    def forward(self, q: Tensor, k: Tensor, v: Tensor, is_causal: bool = False) -> Tensor:
        """y, like q and contiguous. is_causal: by the positions of tokens, in every segment.

        Raises TypeError for another dtype, RuntimeError for another device, ValueError for shapes
        that do not fit; NotImplementedError for `reorder` that is causal, under `eager`.
        """
        check_given(self, q, k, v)
        if chosen(self, q) == "triton":
            branches = self.segment_lengths, self.dilation_rates
            return dilated_attention(q, k, v, *branches, causal=is_causal, **self._given)
        return self._eager(q, k, v, is_causal)

    def _eager(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        how = how_of(
            self.segment_lengths, self.dilation_rates, causal=causal, scale=None, **self._given
        )
        check_shapes(q, k, v, how)
        if how.reorder and causal:
            raise NotImplementedError(
                "DilatedAttention has no causal attention of tokens in another order by PyTorch: "
                "take impl='triton'"
            )
        _, N, H, _ = q.shape
        k, v = repeated(k, H), repeated(v, H)
        found = [tuple(pieces_of(max(1, min(w, N)), r, N, H, how.rule)) for w, r in how.branches]
        branches = How(found, causal, how.combine == "mean")
        if not how.reorder:
            return attend(q, k, v, branches)
        order = sequence(N, how.order, how.grid).to(q.device)
        q, k, v = (x.index_select(1, order) for x in (q, k, v))
        o = attend(q, k, v, branches)
        return o.index_select(1, order.argsort())
