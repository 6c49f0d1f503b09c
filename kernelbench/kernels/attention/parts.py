"""Attention to a part of the keys, without autograd: two primitives, with which operators over
parts, on other GPUs or in other orders, give the results and gradients of the whole.

Shapes: as in `operator`.
"""

from torch import Tensor

from kernelbench.kernels.attention.checks import PLAIN, How
from kernelbench.kernels.attention.configs import AttentionConfig
from kernelbench.kernels.attention.plans import inputs_of, plan_of
from kernelbench.kernels.attention.tiles import statistic_of


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    starts: tuple[Tensor, Tensor] | None = None,
    how: How = PLAIN,
    config: AttentionConfig | None = None,
) -> tuple[Tensor, Tensor]:
    """o and lse of a part of the keys, without gradients: to base 2, (B,H,N) of fp32.

    starts: cu_seqlens of queries and keys. how: see `attention`. Results of parts of the keys are
    merged by lse: o = Σ 2^(lse_i − lse)·o_i with lse = log2 Σ 2^lse_i.
    """
    tensors = inputs_of(q, k, v, *_once(starts))
    o, lse = plan_of(tensors, how, config, None, True).forward(tensors, True)
    assert lse is not None
    return o, lse


def delta_of(do: Tensor, o: Tensor) -> Tensor:
    """δ = rowsum(dO⊙O) as `backward` takes it, of (B,N,H,D), or (T,H,D) packed, (B,H,N) in fp32."""
    do, o = (x if x.dim() == 4 else x.unsqueeze(0) for x in (do, o))
    delta = statistic_of(o)
    return delta.copy_((do.float() * o.float()).sum(-1).transpose(1, 2))


def backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    delta: Tensor,
    *,
    starts: tuple[Tensor, Tensor] | None = None,
    how: How = PLAIN,
    config: AttentionConfig | None = None,
    accumulate: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What a part of the keys adds to dq, and its dk and dv.

    lse, delta: of **all** keys, as `forward` and `delta_of` leave them: with them, the gradients of
    parts add up to those of the whole. accumulate: dq, dk and dv so far, contiguous, best in fp32,
    to which these are added; they are returned. The rest: as `forward` takes it.
    """
    tensors = inputs_of(q, k, v, *_once(starts))
    return plan_of(tensors, how, config, None, True).add(do, tensors, lse, delta, accumulate)


def _once(starts: tuple[Tensor, Tensor] | None) -> tuple[Tensor | None, Tensor | None]:
    if starts is None:
        return None, None
    return starts[0], None if starts[1] is starts[0] else starts[1]
