"""QuACK's RMSNorm with its launch chosen by its authors' tuner: an exhaustive search for each
shape, which takes minutes for a backward and is kept in QuACK's own cache on disk."""

from typing import Any

import torch


class Tuned(torch.autograd.Function):
    """x, weight, residual (or None), eps, offset of the weight → y, or y and x + residual."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        residual: torch.Tensor | None,
        eps: float,
        offset: float,
    ) -> Any:
        from quack.rmsnorm import rmsnorm_fwd_tuned

        y = torch.empty_like(x)
        total = None if residual is None else torch.empty_like(x)
        rstd = x.new_empty(x.shape[0], dtype=torch.float32) if any(ctx.needs_input_grad) else None
        rmsnorm_fwd_tuned(
            x,
            weight,
            y,
            rstd=rstd,
            residual=residual,
            residual_out=total,
            eps=eps,
            is_layernorm=False,
            per_head=False,
            weight_offset=offset,
        )
        ctx.save_for_backward(x if total is None else total, weight, rstd)
        ctx.offset, ctx.added = offset, residual is not None
        return y if total is None else (y, total)

    @staticmethod
    def backward(ctx: Any, grad_y: torch.Tensor, *grad_total: torch.Tensor) -> Any:
        from quack.rmsnorm import get_sm_count, rmsnorm_bwd_tuned

        x, weight, rstd = ctx.saved_tensors
        dx, columns = torch.empty_like(x), x.shape[1]
        programs = get_sm_count(columns, x.device)
        partial = x.new_empty(programs, columns, dtype=torch.float32)
        rmsnorm_bwd_tuned(
            x,
            weight,
            grad_y,
            rstd,
            dx,
            dw_partial=partial,
            dresidual_out=grad_total[0] if ctx.added else None,
            per_head=False,
            has_dw_partial=True,
            has_db_partial=False,
            is_layernorm=False,
            weight_offset=ctx.offset,
        )
        dw = partial.sum(dim=0).to(weight.dtype)
        return dx, dw, dx if ctx.added else None, None, None
