"""Attention whose result is mixed with a skip, y = c_skip(t)·x + c_out(t)·softmax(q kᵀ·scale) v, in
one kernel, and its gradients.

Shapes: B samples, N tokens, H heads, D head size, C = H·D channels, M query rows of a tile. q, k, v
are (B,N,H,D), x and y (B,N,C), t (B,). Tensors are read where they lie, by their strides: views of
a packed qkv cost no copy. What is made here is contiguous; statistics of rows are (B,H,N) in fp32,
laid out by `attention.tiles.statistic_of`.

Attention itself is `attention`'s. The x tile is read once its loop over keys has ended, so that the
skip costs one read of x where a kernel of its own costs two reads and a write. Its gradients are
those of attention, with c_out as the factor of a sample, and with dx = c_skip·dy and
dt = c_skip'·Σ dy⊙x + c_out'·Σ δ, which the kernel that finds δ writes as well.
"""

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernelbench.kernels.attention import backward
from kernelbench.kernels.attention import forward as attention
from kernelbench.kernels.attention.configs import AttentionConfig, choose
from kernelbench.kernels.attention.hopper.channel import suits
from kernelbench.kernels.attention.hopper.forward import HopperHook
from kernelbench.kernels.attention.launches import attend, differentiate, sums_queries
from kernelbench.kernels.attention.plans import Planned, as_saved, check_tile, must_repeat
from kernelbench.kernels.attention.tiles import (
    Hook,
    Rows,
    load_tile,
    pitch,
    statistic_of,
    store_tile,
    strides_of,
    tile_of_head,
    widened,
)
from kernelbench.kernels.launch import (
    Launch,
    Plans,
    Repeats,
    arch_of,
    ceil_div,
    check_device,
    layout_of,
    layouts_of,
    packed_rows,
    power_of_2,
    refusal,
)
from kernelbench.kernels.operators import (
    Transform,
    absent,
    admit,
    direct,
    empty_gradients,
    final,
    graded,
    gradients_of,
    needed_gradients,
    numbers_of,
    of_numbers,
    refuse_some_on_meta,
    transformed,
    without_data,
)
from kernelbench.kernels.rcm import (
    Backward,
    Forward,
    RcmFormula,
    coefficients,
    coefficients_of,
    formula_of,
)
from kernelbench.kernels.sharding import PARTIAL, WHOLE, needed_cut, optional, sharded

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
Inputs = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]  # q, k, v, x, t
How = tuple[float | None, str, bool, float | None]  # sigma_data, parametrization, causal, scale


@triton.jit
def _mix(c_skip, x, c_out, o):
    """c_skip·x + c_out·o; c_skip·x to the bit where c_out is 0, though x be −0."""
    skipped = c_skip * x
    return tl.where(c_out == 0.0, skipped, skipped + c_out * o)


class Mixing(NamedTuple):
    """What the coefficients of a sample follow from."""

    t: Any
    t_stride: Any
    sigma: Any


class Skip(NamedTuple):
    """What the skip reads and writes as a tile of attention is finished."""

    x: Any
    mixing: Any
    y: Any
    x_stride_B: Any
    x_stride_N: Any


@triton.jit
def _factor(mixing, b, KIND: tl.constexpr):
    """The factor of sample b's gradients."""
    t, t_stride, sigma = mixing
    _, c_out, _, _ = coefficients(t, b, t_stride, sigma, KIND)
    return c_out


@triton.jit
def _mix_in(skip, o_MD, tile, KIND: tl.constexpr, work):
    """y = c_skip·x + c_out·O of a tile."""
    x_ptr, mixing, y_ptr, x_stride_B, x_stride_N = skip
    t, t_stride, sigma = mixing
    row, h, b, out, N, H, _, _, _ = tile
    D: tl.constexpr = work.D
    ROWS: tl.constexpr = work.ROWS
    BLOCK_D: tl.constexpr = work.BLOCK_D
    RAGGED: tl.constexpr = work.RAGGED
    WIDE: tl.constexpr = work.WIDE
    c_skip, c_out, _, _ = coefficients(t, b, t_stride, sigma, KIND)
    x = Rows(x_ptr + b * x_stride_B + h * D, widened(x_stride_N, WIDE), N)
    x_MD = load_tile(x, row, D, ROWS, BLOCK_D, RAGGED)
    y_MD = _mix(c_skip, x_MD.to(tl.float32), c_out, o_MD)
    y = Rows(y_ptr + out, widened(H * D, WIDE), N)
    store_tile(y, y_MD, row, D, ROWS, BLOCK_D, RAGGED)


@triton.jit
def _time(mixing, b, KIND: tl.constexpr):
    """The time of sample b, in fp32."""
    return tl.load(mixing.t + b.to(tl.int64) * mixing.t_stride).to(tl.float32)


@triton.jit
def _weights(t, mixing, KIND: tl.constexpr):
    c_skip, c_out, _, _ = coefficients_of(t, mixing.sigma, KIND)
    return c_skip, c_out


@triton.jit
def _mix_fetched(weights, o_MD, x_MD):
    """y = c_skip·x + c_out·O of a tile whose x was fetched."""
    c_skip, c_out = weights
    return _mix(c_skip, x_MD, c_out, o_MD)


@triton.jit
def _skip(
    o_ptr,
    x_ptr,
    t_ptr,
    y_ptr,
    x_stride_B,
    x_stride_N,
    t_stride,
    sigma,
    N,
    C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PARAMETRIZATION: tl.constexpr,
):
    """y = c_skip·x + c_out·O of BLOCK_N tokens, BLOCK_C channels of them a program."""
    token, chunk, b, _ = tile_of_head(N, tl.cdiv(C, BLOCK_C), BLOCK_N, False)
    c_skip, c_out, _, _ = coefficients(t_ptr, b, t_stride, sigma, PARAMETRIZATION)
    token_N = (token + tl.arange(0, BLOCK_N)).to(tl.int64)
    c_C = chunk * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_NC = (token_N < N)[:, None] & (c_C < C)[None, :]
    x_NC = tl.load(
        x_ptr + b * x_stride_B + token_N[:, None] * x_stride_N + c_C[None, :], mask=mask_NC
    ).to(tl.float32)
    out_NC = (b * N + token_N)[:, None] * C + c_C[None, :]
    o_NC = tl.load(o_ptr + out_NC, mask=mask_NC).to(tl.float32)
    y_NC = _mix(c_skip, x_NC, c_out, o_NC)
    tl.store(y_ptr + out_NC, y_NC.to(y_ptr.dtype.element_ty), mask=mask_NC)


@triton.jit
def _differentiate_skip(
    dy_ptr,
    o_ptr,
    x_ptr,
    t_ptr,
    dx_ptr,
    delta_ptr,
    partial_ptr,
    total_ptr,
    dy_stride_B,
    dy_stride_N,
    x_stride_B,
    x_stride_N,
    t_stride,
    sigma,
    N,
    H,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PARAMETRIZATION: tl.constexpr,
    RAGGED: tl.constexpr,
    WIDE: tl.constexpr,
):
    """dx, δ and a part of dt of BLOCK_M tokens of one head; the parts of a sample lie in a row.

    Where dq is to be summed, it begins as zeros here.
    """
    row, h, b, bh = tile_of_head(N, H, BLOCK_M, False)
    c_skip, _, d_skip, d_out = coefficients(t_ptr, b, t_stride, sigma, PARAMETRIZATION)
    out = b * N * H * D + h * D
    dy = Rows(dy_ptr + b * dy_stride_B + h * D, widened(dy_stride_N, WIDE), N)
    dy_MD = load_tile(dy, row, D, BLOCK_M, BLOCK_D, RAGGED).to(tl.float32)
    if dx_ptr is not None:
        dx = Rows(dx_ptr + out, widened(H * D, WIDE), N)
        store_tile(dx, c_skip * dy_MD, row, D, BLOCK_M, BLOCK_D, RAGGED)
    if total_ptr is not None:
        zero_MD = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        store_tile(Rows(total_ptr + bh * N * D, D, N), zero_MD, row, D, BLOCK_M, BLOCK_D, RAGGED)
    if o_ptr is not None:
        o = Rows(o_ptr + out, widened(H * D, WIDE), N)
        o_MD = load_tile(o, row, D, BLOCK_M, BLOCK_D, RAGGED)
        delta_M = tl.sum(dy_MD * o_MD.to(tl.float32), axis=1)
        if delta_ptr is not None:
            row_M = row + tl.arange(0, BLOCK_M)
            tl.store(delta_ptr + bh * pitch(N) + row_M, delta_M, mask=row_M < N)
        if partial_ptr is not None:
            x = Rows(x_ptr + b * x_stride_B + h * D, widened(x_stride_N, WIDE), N)
            x_MD = load_tile(x, row, D, BLOCK_M, BLOCK_D, RAGGED)
            skipped_M = tl.sum(dy_MD * x_MD.to(tl.float32), axis=1)
            part = tl.sum(d_skip * skipped_M + d_out * delta_M, axis=0)
            tl.store(partial_ptr + tl.program_id(0), part)


@triton.jit
def _sum_partials(partial_ptr, dt_ptr, P, BLOCK_P: tl.constexpr):
    """dt of one sample a program: the sum of its P parts, always in the same order."""
    partial_ptr += tl.program_id(0).to(tl.int64) * P
    total_P = tl.zeros([BLOCK_P], tl.float32)
    for start in tl.range(0, P, BLOCK_P):
        part_P = start + tl.arange(0, BLOCK_P)
        total_P += tl.load(partial_ptr + part_P, mask=part_P < P, other=0.0)
    dt = tl.sum(total_P, axis=0)
    tl.store(dt_ptr + tl.program_id(0), dt.to(dt_ptr.dtype.element_ty))


def _mixing(t: Tensor | None, formula: RcmFormula) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments and constexprs of every kernel that needs the coefficients."""
    args = {
        "t_ptr": t,
        "t_stride": None if t is None else t.stride(0),
        "sigma": formula.sigma_data if formula.skips else None,
    }
    return args, {"PARAMETRIZATION": formula.parametrization}


def _mixed_by(t: Tensor, formula: RcmFormula) -> Mixing:
    return Mixing(t, t.stride(0), formula.sigma_data)


def _factor_hook(t: Tensor | None, formula: RcmFormula) -> Hook:
    if t is None or not formula.skips:
        return Hook()
    return Hook(_factor, _mixed_by(t, formula), formula.parametrization)


def skip_hooks(
    x: Tensor | None, t: Tensor | None, y: Tensor | None, formula: RcmFormula
) -> tuple[Hook, HopperHook]:
    """What writes y = c_skip·x + c_out·O of a tile, in `tl` and in Gluon; nothing else."""
    if y is None or x is None or t is None:
        return Hook(), HopperHook()
    kind, mixing = formula.parametrization, _mixed_by(t, formula)
    skip = Skip(x, mixing, y, x.stride(0), x.stride(1))
    return Hook(_mix_in, skip, kind, (x, y)), HopperHook(
        _time, _weights, _mix_fetched, mixing, kind, x, y
    )


def forward_launches(
    tensors: Forward, *, formula: RcmFormula, config: AttentionConfig
) -> tuple[Launch, ...]:
    """The launches that write y, o = softmax(q kᵀ·scale) v and lse, each where it is wanted.

    Without a skip, what is wanted is o.
    """
    q, k, v, x, t, y, o, lse = tensors
    finish, hook = skip_hooks(x, t, y, formula)
    return attend(
        attention.Forward(q, k, v, o, lse),
        scale=formula.scale,
        causal=formula.causal,
        config=config,
        finish=finish,
        hook=hook,
    )


def skip_launch(o: Tensor, x: Tensor, t: Tensor, y: Tensor, *, formula: RcmFormula) -> Launch:
    """The launch that writes y = c_skip·x + c_out·o; o, x, t, y: as in `Forward`."""
    B, N, C = o.shape
    block_C = min(power_of_2(C), 1024)
    block_N = min(4096 // block_C, power_of_2(N))
    mixing, constexprs = _mixing(t, formula)
    args: dict[str, Any] = {"o_ptr": o, "x_ptr": x, "y_ptr": y, "N": N}
    args |= mixing | strides_of(x=x)
    constexprs |= {"C": C, "BLOCK_N": block_N, "BLOCK_C": block_C}
    grid = (ceil_div(N, block_N) * ceil_div(C, block_C) * B,)
    return Launch(_skip, grid, args, constexprs, {"num_warps": 4, "num_stages": 1})


class Scratch(NamedTuple):
    """Memory that the backward's kernels share, each where it is needed. delta: δ, as
    `statistic_of` makes it. total: the sum of dq, fp32 (B,H,N,D). partial: parts of dt, fp32."""

    delta: Tensor | None
    total: Tensor | None
    partial: Tensor | None


def backward_scratch(tensors: Backward, config: AttentionConfig) -> Scratch:
    """Scratch memory for `backward_launches`."""
    q, dq, dk, dt = tensors.q, tensors.dq, tensors.dk, tensors.dt
    B, N, H, D = q.shape
    return Scratch(
        None if dq is None and dk is None else statistic_of(q),
        tensors.lse.new_empty(B, H, N, D) if sums_queries(config, q, dq, dk) else None,
        None if dt is None else tensors.lse.new_empty(B, backward.rows_once(q)[1]),
    )


def backward_launches(
    tensors: Backward, scratch: Scratch, *, formula: RcmFormula, config: AttentionConfig
) -> tuple[Launch, ...]:
    """The launches, in order, that write the gradients."""
    launches = _skip_launches(tensors, scratch, formula)
    if scratch.delta is None:
        return tuple(launches)
    dy, q, k, v, x, t, o, lse, dq, dk, dv, _, dt = tensors
    return *launches, *differentiate(
        backward.Gradients(dy, q, k, v, lse, scratch.delta, o),
        (dq, dk, dv),
        scratch.total,
        scale=formula.scale,
        causal=formula.causal,
        config=config,
        read=(dy, None if dt is None else x, o),
        factor=_factor_hook(t, formula),
    )


def _skip_launches(tensors: Backward, scratch: Scratch, formula: RcmFormula) -> list[Launch]:
    """The launches that write dx and δ, zeros to `total`, and dt."""
    dy, q, o, t, dt = tensors.dy, tensors.q, tensors.o, tensors.t, tensors.dt
    delta, total, partial = scratch
    B, N, H, _ = q.shape
    x = None if dt is None else tensors.x
    grid, constexprs = backward.once(q, dy, x, o)
    mixing, parametrization = _mixing(t, formula)
    args: dict[str, Any] = {
        "dy_ptr": dy,
        "o_ptr": None if delta is None and partial is None else o,
        "x_ptr": x,
        "dx_ptr": tensors.dx,
        "delta_ptr": delta,
        "partial_ptr": partial,
        "total_ptr": total,
        "N": N,
        "H": H,
    }
    args |= mixing | strides_of(dy=dy, x=x)
    constexprs |= parametrization
    launches = [Launch(_differentiate_skip, grid, args, constexprs, backward.LIGHT)]
    if partial is not None:
        parts = partial.shape[1]
        sums = {"partial_ptr": partial, "dt_ptr": dt, "P": parts}
        block_P = min(1024, power_of_2(parts))
        launches.append(Launch(_sum_partials, (B,), sums, {"BLOCK_P": block_P}, backward.LIGHT))
    return launches


class _Plan:
    """Calls that differ only in their tensors' addresses: checked once, with prepared launches."""

    def __init__(
        self,
        tensors: Inputs,
        how: How,
        config: AttentionConfig | None,
        fused: bool,
        save: bool,
    ) -> None:
        """save: for a gradient to come."""
        self.fused = fused
        self.formula, self.config = _parsed(tensors, how, config, fused, save)
        self._repeats = Repeats(tensors[0].device)

    def forward(self, tensors: Inputs, save: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """y, and attention's result and lse when they are to be saved."""
        q, k, v, x, t = tensors
        B, N, H, D = q.shape
        skips = self.formula.skips
        y = q.new_empty(B, N, H * D)
        o = torch.empty_like(y) if skips and (save or not self.fused) else None
        lse = statistic_of(q) if save else None
        self._repeats.run(save, (q, k, v, x, t, y, o, lse), self._forward_launches)
        return y, o if skips else y, lse

    def _forward_launches(self, save: bool, tensors: Sequence[Any]) -> Sequence[Launch]:
        q, k, v, x, t, y, o, lse = tensors
        mixes = self.fused and self.formula.skips
        attention = o if self.formula.skips else y
        arguments = Forward(q, k, v, x, t, y if mixes else None, attention, lse)
        launches = [*forward_launches(arguments, formula=self.formula, config=self.config)]
        if self.formula.skips and not mixes:
            launches.append(skip_launch(o, x, t, y, formula=self.formula))
        return launches

    def results(
        self, tensors: Inputs, needs: Sequence[bool]
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """For `Planned`: y, and what `gradients` takes. needs: which gradients are to come."""
        q, k, v, x, t = tensors
        y, o, lse = self.forward(tensors, save=True)
        return y, (q, k, v, x if needs[4] else None, t, o, lse)

    def gradients(
        self, grads: Sequence[Tensor | None], saved: Sequence[Any], needs: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        """For `Planned`: as `backward`."""
        *tensors, o, lse = saved
        [dy] = grads
        if dy is None:
            return (None,) * len(needs)
        q, k, v, x, t = tensors
        return self.backward(dy, (q, k, v, x, t), o, lse, needs)

    def backward(
        self, dy: Tensor, tensors: Inputs, o: Tensor, lse: Tensor, needs: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        """dq, dk, dv, dx, dt, each where it is needed; x is read for dt alone."""
        q, k, v, x, t = tensors
        needs_q, needs_k, needs_v, needs_x, needs_t = needs
        dy, q, k, v, lse = as_saved(dy, q, k, v, lse, self.config)
        x, o = None if x is None else packed_rows(x), o.contiguous()
        packed = torch.contiguous_format
        dq = torch.empty_like(q, memory_format=packed) if needs_q else None
        dk = torch.empty_like(k, memory_format=packed) if needs_k or needs_v else None
        dv = torch.empty_like(v, memory_format=packed) if needs_k or needs_v else None
        dx = torch.empty_like(dy, memory_format=packed) if needs_x else None
        dt = None if t is None or not needs_t else torch.empty_like(t, memory_format=packed)
        arguments = Backward(dy, q, k, v, x, t, o, lse, dq, dk, dv, dx, dt)
        scratch = backward_scratch(arguments, self.config)
        kind = (*needs, dy.stride(), *map(layout_of, (q, k, v, x, t, o, lse)))
        self._repeats.run(kind, (*arguments, *scratch), self._backward_launches)
        return dq, dk if needs_k else None, dv if needs_v else None, dx, dt

    def _backward_launches(self, kind: Hashable, tensors: Sequence[Any]) -> Sequence[Launch]:
        arguments, scratch = Backward(*tensors[:-3]), Scratch(*tensors[-3:])
        return backward_launches(arguments, scratch, formula=self.formula, config=self.config)


_PLANS: Plans[_Plan] = Plans()


def _plan(
    tensors: Inputs, how: How, config: AttentionConfig | None, fused: bool, save: bool
) -> _Plan:
    """tensors: with packed rows. save: for a gradient to come."""
    key = (*layouts_of(tensors), how, config, fused, save, must_repeat())
    plan = _PLANS.get(key)
    if plan is None:
        plan = _PLANS.add(key, _Plan(tensors, how, config, fused, save))
    return plan


@torch.library.custom_op("kernelbench::rcm_attention", mutates_args=())
def _operator(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    x: Tensor | None,
    t: Tensor | None,
    sigma_data: float | None,
    parametrization: str,
    causal: bool,
    scale: float | None,
    config: list[int],
    fused: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, and attention's result and lse when they are to be saved; else, and for what is y itself,
    `absent`."""
    how = sigma_data, parametrization, causal, scale
    tensors = inputs_of(q, k, v, x, t, parametrization)
    plan = _plan(tensors, how, of_numbers(AttentionConfig, config), fused, save)
    y, o, lse = plan.forward(tensors, save)
    o = absent(y) if o is None or o is y or not save else o
    return y, o, absent(y).float() if lse is None else lse


@without_data(_operator)
def _(q, k, v, x, t, sigma_data, parametrization, causal, scale, config, fused, save):
    y = q.new_empty(q.shape[0], q.shape[1], q.shape[2] * q.shape[3])
    o = torch.empty_like(y) if save and parametrization != "none" else absent(q)
    return y, o, statistic_of(q) if save else absent(q).float()


@torch.library.custom_op("kernelbench::rcm_attention_backward", mutates_args=())
def _operator_backward(
    dy: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    x: Tensor | None,
    t: Tensor | None,
    o: Tensor,
    lse: Tensor,
    sigma_data: float | None,
    parametrization: str,
    causal: bool,
    scale: float | None,
    config: list[int],
    fused: bool,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv, dx, dt; `absent` for what is not needed."""
    how = sigma_data, parametrization, causal, scale
    tensors = inputs_of(q, k, v, x, t, parametrization)
    plan = _plan(tensors, how, of_numbers(AttentionConfig, config), fused, True)
    gradients = plan.backward(dy, tensors, o, lse, needs)
    dq, dk, dv, dx, dt = gradients_of(gradients, q)
    return dq, dk, dv, dx, dt


@without_data(_operator_backward)
def _(dy, q, k, v, x, t, o, lse, sigma_data, parametrization, causal, scale, config, fused, needs):
    return empty_gradients((q, k, v, dy, q if t is None else t), needs, q)


def _keep(ctx, inputs, output):
    q, k, v, x, t, *how, _ = inputs
    ctx.how = how
    y, o, lse = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(o, lse)
    ctx.save_for_backward(q, k, v, x, t, y if how[1] == "none" else o, lse)


def _gradients(ctx, dy, *_, call=_operator_backward):
    if dy is None:
        return (*(None for _ in ctx.needs_input_grad),)
    names = "sigma_data", "parametrization", "causal", "scale", "config", "fused"
    rest = dict(zip(names, ctx.how, strict=True))
    return needed_gradients(ctx, 5, call, dy, *ctx.saved_tensors, **rest)


_operator.register_autograd(_gradients, setup_context=_keep)


def _heads_fit(q):
    """Whether every rank would get the channels of its own heads."""
    return q.shape[2] % q.mesh.size() == 0


def _ways(q, k, v, x, t, *rest):
    save, skips = rest[-1], rest[1] != "none"
    skip_cuts = optional(x, 0), optional(t, 0)
    yield (0, needed_cut(save and skips, 0), needed_cut(save, 0)), (0, 0, 0, *skip_cuts)
    if _heads_fit(q):
        skip_cuts = optional(x, 2), optional(t, WHOLE)
        yield (2, needed_cut(save and skips, 2), needed_cut(save, 1)), (2, 2, 2, *skip_cuts)


def _ways_backward(dy, q, k, v, x, t, o, lse, *rest):
    needs = rest[-1]
    results = [needed_cut(needed, 0) for needed in needs]
    yield results, (0, 0, 0, 0, optional(x, 0), optional(t, 0), 0, 0)
    if _heads_fit(q):
        results = [*(needed_cut(needed, 2) for needed in needs[:4]), needed_cut(needs[4], PARTIAL)]
        yield results, (2, 2, 2, 2, optional(x, 2), optional(t, WHOLE), 2, 1)


sharded(_operator, _ways)
sharded(_operator_backward, _ways_backward)
_TRANSFORM = Transform(
    "rcm_attention", _operator, _keep, partial(_gradients, call=final(_operator_backward))
)


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    if q.dtype not in DTYPES or k.dtype != q.dtype or v.dtype != q.dtype:
        raise TypeError(
            f"rcm_attention takes q, k and v of one dtype, float32, float16 or bfloat16, got "
            f"{q.dtype}, {k.dtype} and {v.dtype}: convert them with .to()"
        )
    if q.dim() != 4 or k.shape != q.shape or v.shape != q.shape:
        raise ValueError(
            f"rcm_attention takes q, k and v of one shape (B,N,H,D), got {tuple(q.shape)}, "
            f"{tuple(k.shape)} and {tuple(v.shape)}"
        )
    if not 16 <= q.shape[3] <= 256:
        raise ValueError(f"rcm_attention takes heads of 16 to 256 elements, got D = {q.shape[3]}")


def _check_skip(q: Tensor, x: Tensor | None, t: Tensor | None, parametrization: str) -> None:
    B, N, H, D = q.shape
    if x is None or t is None:
        raise ValueError(
            f"rcm_attention mixes x and t in under {parametrization!r}, got None: pass both, or "
            "parametrization='none' for attention alone"
        )
    if x.dtype != q.dtype:
        raise TypeError(
            f"rcm_attention takes x of q's {q.dtype}, got {x.dtype}: convert it with .to()"
        )
    if x.shape != (B, N, H * D):
        raise ValueError(
            f"rcm_attention takes x of shape (B, N, H·D), here {(B, N, H * D)}, got "
            f"{tuple(x.shape)}"
        )
    if not t.is_floating_point():
        raise TypeError(f"rcm_attention takes t of a floating dtype, got {t.dtype}: convert it")
    if t.shape != (B,):
        raise ValueError(
            f"rcm_attention takes t of shape (B,), here {(B,)}, got {tuple(t.shape)}: one time "
            "for each sample"
        )


def _check_all(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    x: Tensor | None,
    t: Tensor | None,
    sigma_data: float | None,
    parametrization: str,
    causal: bool,
    scale: float | None,
    check: Callable[[Tensor, Tensor, Tensor], None] = _check,
) -> bool:
    """Check everything except devices; returns whether x and t take part. check: of q, k and v."""
    check(q, k, v)
    scale = 1.0 if scale is None else scale
    skips = formula_of(parametrization, sigma_data, causal, scale, 1).skips
    if skips:
        _check_skip(q, x, t, parametrization)
    return skips


def inputs_of(
    q: Tensor, k: Tensor, v: Tensor, x: Tensor | None, t: Tensor | None, parametrization: str
) -> Inputs:
    """What takes part, with rows as the kernels read them."""
    if parametrization == "none":
        x = t = None
    x = None if x is None else packed_rows(x)
    return packed_rows(q), packed_rows(k), packed_rows(v), x, t


def _parsed(
    tensors: Inputs, how: How, config: AttentionConfig | None, fused: bool, save: bool
) -> tuple[RcmFormula, AttentionConfig]:
    """Formula and config of tensors that are checked. save: for a gradient to come."""
    q, k, v, x, t = tensors
    _, parametrization, causal, scale = how
    _check_all(*tensors, *how)
    formula = formula_of(parametrization, how[0], causal, scale, q.shape[3])
    device = check_device(q=q, k=k, v=v, x=x, t=t)
    suited, arch = suits(q, k, v, x), arch_of(device)
    if config is None:
        fits, itemsize = suited and q.numel() > 0, q.element_size()
        mixes = fused and formula.skips
        config = choose(tuple(q.shape), arch, itemsize, save, fits, causal, mixes, must_repeat())
    check_tile(config, q, suited, arch)
    return formula, config


def _attend_and_skip(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    x: Tensor | None,
    t: Tensor | None,
    sigma_data: float | None,
    parametrization: str,
    causal: bool,
    scale: float | None,
    config: AttentionConfig | None,
    fused: bool,
) -> Tensor:
    if parametrization == "none":
        x = t = None
    tensors: Inputs = q, k, v, x, t
    if direct(*tensors) and not (q.is_meta and refusal(q.device)):
        save = graded(*tensors)
        how = sigma_data, parametrization, causal, scale
        try:
            tensors = inputs_of(*tensors, parametrization)
            plan = _plan(tensors, how, config, fused, save)
            if save:
                y: Tensor = Planned.apply(plan, *tensors)
                return y
            return plan.forward(tensors, save=False)[0]
        except (RuntimeError, IndexError, TypeError):  # a clearer error comes first
            admit("rcm_attention", *tensors)
            _check_all(*tensors, *how)
            raise
    refuse_some_on_meta("rcm_attention", *tensors)
    admit("rcm_attention", *tensors)
    _check_all(*tensors, sigma_data, parametrization, causal, scale)
    rest = sigma_data, parametrization, causal, scale, numbers_of(config), fused
    if transformed():
        y, _, _ = _TRANSFORM(tensors, (*rest, True))
    else:
        y, _, _ = _operator(*tensors, *rest, graded(*tensors))
    return y


def rcm_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    x: Tensor | None,
    t: Tensor | None,
    *,
    sigma_data: float | None = None,
    parametrization: str = "edm",
    causal: bool = False,
    scale: float | None = None,
    config: AttentionConfig | None = None,
) -> Tensor:
    """y = c_skip(t_b)·x + c_out(t_b)·softmax(q kᵀ·scale) v, attention and skip in one kernel.

    q, k, v: (B,N,H,D) of one dtype, float32, float16 or bfloat16, D from 16 to 256. Any strides;
        a last axis that is not contiguous costs a copy. float32 is multiplied exactly, never as
        TF32.
    x: (B,N,H·D) of q's dtype, strides likewise. y is like it, contiguous.
    t: (B,) of a floating dtype, read as fp32: a time for each sample.
    parametrization: the coefficients, in fp32, with σ = sigma_data.
        `edm`: c_skip = σ²/(t²+σ²), c_out = σt/√(σ²+t²); σ is 1 unless given.
        `cm`: c_skip = σ²/((t−ε)²+σ²), c_out = σ(t−ε)/√(σ²+t²), ε = 0.002; σ is 0.5 unless given.
        `trigflow`: c_skip = 1/(cos t+sin t), c_out = −sin t/(cos t+sin t), t in [0, π/2]; σ is 1.
        `none`: attention alone; x and t take no part and may be None.
        Where c_out is 0 (t = 0, and t = ε for `cm`) y is x bit by bit.
    causal: a token attends to itself and those before it.
    scale: of the scores, positive; 1/√D unless given.
    config: how to cut up the work; None for the choice of the table, see `configs`.

    Softmax is computed in fp32; its weights are rounded to v's dtype before they meet v. A score
    that is not finite need not make its row of y NaN. With a
    gradient to come, attention's result in q's dtype and fp32 statistics of its rows are kept.
    The gradients, of q, k, v, x and t, are not differentiable themselves. Their bits are the same
    on every call, but for dq on Hopper, whose parts are added in any order: as PyTorch's own
    attention, this heeds `torch.use_deterministic_algorithms(True)`, at the time of the call (in a
    graph of torch.compile, of the backward), at the cost of a slower backward. A config that is
    passed decides for itself. torch.compile and torch.export take it as one operator,
    `kernelbench::rcm_attention`.

    Raises TypeError for other dtypes, nested tensors and a sigma_data or scale that is no number;
    ValueError for shapes that do not fit, an unknown parametrization, or a sigma_data or scale that
    it cannot have; RuntimeError for tensors that are not on one device where Triton runs, or have
    no memory; NotImplementedError in forward mode.

    Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, 2022
    (arXiv:2206.00364); Song et al., Consistency Models, 2023 (arXiv:2303.01469); Dao,
    FlashAttention-2, 2023 (arXiv:2307.08691).
    """
    return _attend_and_skip(
        q, k, v, x, t, sigma_data, parametrization, causal, scale, config, fused=True
    )


def rcm_attention_unfused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    x: Tensor | None,
    t: Tensor | None,
    *,
    sigma_data: float | None = None,
    parametrization: str = "edm",
    causal: bool = False,
    scale: float | None = None,
    config: AttentionConfig | None = None,
) -> Tensor:
    """`rcm_attention` in two kernels: attention, rounded to q's dtype, then the skip.

    The same code but for the fusion, so that the two of them differ by what fusion is worth.
    """
    return _attend_and_skip(
        q, k, v, x, t, sigma_data, parametrization, causal, scale, config, fused=False
    )
