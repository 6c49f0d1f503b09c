"""Ours beside the package's own: how far they are apart, and how far they may be."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

# Relative to the norm of the answer: what the gate of kernelbench allows at most.
BUDGETS = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 2e-5}

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class WrongAttentionError(RuntimeError):
    """Ours differs from the package's own by more than the budget of the dtype."""


def compare(
    found: Mapping[str, Tensor],
    right: Sequence[Tensor],
    worst: Callable[[Tensor], Tensor] = lambda figures: figures,
) -> None:
    """Raises WrongAttentionError where a tensor is beyond the budget of the first one's dtype.

    worst: of each figure the largest of any rank, where ranks are to raise together.
    """
    figures = []
    for one, other in zip(found.values(), right, strict=True):
        apart = (one.double() - other.double()).abs()
        largest = apart.max() if apart.numel() else apart.new_zeros(())
        figures.append(
            torch.stack([apart.norm() / other.double().norm().clamp(min=1e-30), largest])
        )
    dtype = next(iter(found.values())).dtype
    agreed = worst(torch.stack(figures).nan_to_num(torch.inf)).tolist()
    for name, (error, largest) in zip(found, agreed, strict=True):
        if error > BUDGETS[dtype]:
            raise WrongAttentionError(
                f"zigzag_attention's {name} differs from the package's own by {error:.2g} of its "
                f"norm, {largest:.3g} at most, where {BUDGETS[dtype]:g} is allowed in {dtype}"
            )


class Compared(torch.autograd.Function):
    """o and gradients of the first function, once they are those of the second one."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, both: tuple[Attend, Attend], worst: Any
    ) -> Tensor:
        with torch.enable_grad():
            leaves = [[x.detach().requires_grad_() for x in (q, k, v)] for _ in both]
            outputs = [attend(*each) for attend, each in zip(both, leaves, strict=True)]
        compare({"o": outputs[0]}, [outputs[1]], worst)
        ctx.graphs, ctx.worst = list(zip(outputs, leaves, strict=True)), worst
        return outputs[0].detach()

    @staticmethod
    def backward(ctx: Any, do: Tensor) -> Any:
        do = do.contiguous()
        found, right = (
            torch.autograd.grad(o, leaves, do, retain_graph=True) for o, leaves in ctx.graphs
        )
        compare(dict(zip(("dq", "dk", "dv"), found, strict=True)), right, ctx.worst)
        return *found, None, None
