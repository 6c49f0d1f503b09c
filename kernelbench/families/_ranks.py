"""Rows of all ranks, for families that several of them do together."""

from typing import Any

import torch
import torch.distributed as dist

from kernelbench.kernels.operators import differentiable_once
from kernelbench.parallel.collectives import all_gather_single, reduce_scatter_single


def own_rank() -> int:
    """This process's; 0 where it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        every = x.new_empty(dist.get_world_size() * len(x), *x.shape[1:])
        all_gather_single(every, x.contiguous())
        return every

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *grads: Any) -> Any:
        [grad] = grads
        own = grad.new_empty(len(grad) // dist.get_world_size(), *grad.shape[1:])
        reduce_scatter_single(own, grad.contiguous())
        return own


def all_rows(x: torch.Tensor) -> torch.Tensor:
    """The rows of all ranks, as many of each, rank after rank; gradients are summed over the ranks,
    in their own dtype."""
    every: torch.Tensor = _AllGather.apply(x)  # type: ignore[no-untyped-call]
    return every
