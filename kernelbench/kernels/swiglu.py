"""SwiGLU, y = silu(gate)·up with silu(g) = g·σ(g), forward and backward, one launch each.

Shapes: M rows (every axis but the last, folded), N columns of gate and of up (the last axis). Rows
are read where they lie, whatever their stride; tensors without gaps are one row. Bandwidth bounds
it: about 5 flops to an element forward, 11 backward.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernelbench.kernels.launch import (
    Launch,
    Plans,
    Repeats,
    ceil_div,
    check_device,
    check_powers_of_2,
    layout_of,
    on_device,
    power_of_2,
    refusal,
)
from kernelbench.kernels.operators import (
    Transform,
    absent,
    admit,
    differentiable_once,
    direct,
    final,
    graded,
    needed_gradients,
    numbers_of,
    of_numbers,
    refuse_some_on_meta,
    transformed,
    without_data,
)
from kernelbench.kernels.sharding import needed_cut, optional, sharded

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@triton.jit
def _places(M, N_steps, tiles, STEP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """N, then of a program's tile the rows, times STEP, the columns, and which of them there are.

    tiles: of a row. Strides and N are counted in STEPs, so that the compiler knows their divisors.
    """
    N = tl.full([], STEP, tl.int64) * N_steps
    row_M1 = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    col_1N = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    return N, row_M1 * STEP, col_1N, (row_M1 < M) & (col_1N < N)


@triton.jit
def _read(rows, steps, row_M1, col_1N, mask_MN):
    return tl.load(rows + row_M1 * steps + col_1N, mask=mask_MN, other=0.0).to(tl.float32)


@triton.jit
def _write(rows, steps, row_M1, col_1N, mask_MN, values_MN):
    values_MN = values_MN.to(rows.dtype.element_ty)
    tl.store(rows + row_M1 * steps + col_1N, values_MN, mask=mask_MN)


@triton.jit
def _activate(
    gate_ptr,
    up_ptr,
    tangent_gate_ptr,
    tangent_up_ptr,
    y_ptr,
    gate_steps,
    up_steps,
    tangent_gate_steps,
    tangent_up_steps,
    M,
    N_steps,
    tiles,
    STEP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """y, or its tangent where one is given, of BLOCK_M x BLOCK_N elements a program.

    Without up, rows of gate hold it, too, behind the gate; so do those of its tangent.
    """
    N, row_M1, col_1N, mask_MN = _places(M, N_steps, tiles, STEP, BLOCK_M, BLOCK_N)
    if up_ptr is None:
        up_ptr = gate_ptr + N
        up_steps = gate_steps
        if tangent_gate_ptr is not None:
            tangent_up_ptr = tangent_gate_ptr + N
            tangent_up_steps = tangent_gate_steps
    gate_MN = _read(gate_ptr, gate_steps, row_M1, col_1N, mask_MN)
    sigma_MN = tl.sigmoid(gate_MN)
    factor_MN = gate_MN * sigma_MN
    if tangent_up_ptr is not None:
        y_MN = factor_MN * _read(tangent_up_ptr, tangent_up_steps, row_M1, col_1N, mask_MN)
    else:
        y_MN = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if tangent_gate_ptr is not None:
        slope_MN = sigma_MN * (1.0 + gate_MN * (1.0 - sigma_MN))
        factor_MN = slope_MN * _read(tangent_gate_ptr, tangent_gate_steps, row_M1, col_1N, mask_MN)
    if tangent_gate_ptr is not None or tangent_up_ptr is None:
        y_MN += factor_MN * _read(up_ptr, up_steps, row_M1, col_1N, mask_MN)
    _write(y_ptr, N_steps, row_M1, col_1N, mask_MN, y_MN)


@triton.jit
def _differentiate(
    dy_ptr,
    gate_ptr,
    up_ptr,
    dgate_ptr,
    dup_ptr,
    dy_steps,
    gate_steps,
    up_steps,
    M,
    N_steps,
    tiles,
    STEP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The gradients, cut like `_activate`; without up, rows of dgate hold that of up, too."""
    N, row_M1, col_1N, mask_MN = _places(M, N_steps, tiles, STEP, BLOCK_M, BLOCK_N)
    if up_ptr is None:
        up_ptr = gate_ptr + N
        up_steps = gate_steps
        dup_ptr = dgate_ptr + N
        out_steps = 2 * N_steps
    else:
        out_steps = N_steps
    dy_MN = _read(dy_ptr, dy_steps, row_M1, col_1N, mask_MN)
    gate_MN = _read(gate_ptr, gate_steps, row_M1, col_1N, mask_MN)
    sigma_MN = tl.sigmoid(gate_MN)
    if dgate_ptr is not None:
        up_MN = _read(up_ptr, up_steps, row_M1, col_1N, mask_MN)
        dgate_MN = dy_MN * up_MN * (sigma_MN * (1.0 + gate_MN * (1.0 - sigma_MN)))
        _write(dgate_ptr, out_steps, row_M1, col_1N, mask_MN, dgate_MN)
    if dup_ptr is not None:
        dup_MN = dy_MN * (gate_MN * sigma_MN)
        _write(dup_ptr, out_steps, row_M1, col_1N, mask_MN, dup_MN)


@dataclass(frozen=True)
class SwigluConfig:
    """Elements of y that a program takes, and its warps; powers of two."""

    block: int
    warps: int

    def __post_init__(self) -> None:
        check_powers_of_2(self, "block", "warps")


_BYTES = 1024  # of a tensor to a warp: two 16-byte loads a thread


def configs(*, arch: str, itemsize: int = 2) -> tuple[SwigluConfig, ...]:
    """What is chosen, whatever the shape, then others that a tuner may pick.

    arch: `sm_90` and the like, or `cpu`; without shared memory one choice serves all.
    """
    a_warp = _BYTES // itemsize
    others = (
        SwigluConfig(share * warps * a_warp // 2, warps)
        for warps in (1, 2, 4, 8)
        for share in (1, 2, 4)
    )
    return tuple(dict.fromkeys((SwigluConfig(2 * a_warp, 2), *others)))


def _tile(N: int, block: int) -> tuple[int, int]:
    """Rows and columns of a tile: as wide as leaves no more than an eighth of it idle."""
    width = min(block, power_of_2(N))
    while width > 128 and 8 * ceil_div(N, width) * width > 9 * N:
        width //= 2
    return block // width, width


def _launch(
    kernel: Any,
    inputs: Mapping[str, Tensor | None],
    outputs: Mapping[str, Tensor | None],
    like: Tensor,
    packed: bool,
    config: SwigluConfig,
) -> Launch:
    """The launch of a kernel on tensors by name. Inputs are contiguous, of any shape, or rows
    (M,N), rows of 2N where they are packed; outputs are contiguous. like: has the shape of y."""
    whole = not packed and all(x is None or x.is_contiguous() for x in inputs.values())
    N = like.numel() if whole else like.shape[-1]
    M = like.numel() // N if N else 0
    strides = dict[str, int | None].fromkeys(inputs)
    for name, x in inputs.items():
        if x is not None:  # one row needs no stride
            strides[name] = 0 if whole else x.shape[-1] if x.is_contiguous() else x.stride(0)
    step = math.gcd(16, N, *(stride or 0 for stride in strides.values()))
    block_m, block_n = _tile(N, config.block)
    tiles = ceil_div(N, block_n)
    args: dict[str, Any] = {f"{name}_ptr": x for name, x in {**inputs, **outputs}.items()}
    for name, stride in strides.items():
        args[f"{name}_steps"] = None if stride is None else stride // step
    args |= {"M": M, "N_steps": N // step, "tiles": tiles}
    constexprs = {"STEP": step, "BLOCK_M": block_m, "BLOCK_N": block_n}
    options = {"num_warps": config.warps, "num_stages": 1}
    return Launch(kernel, (ceil_div(M, block_m) * tiles,), args, constexprs, options)


def forward_launch(
    gate: Tensor,
    up: Tensor | None,
    y: Tensor,
    tangent_gate: Tensor | None = None,
    tangent_up: Tensor | None = None,
    *,
    config: SwigluConfig,
) -> Launch:
    """The launch that writes y, contiguous, or its tangent. gate, up and their tangents: (M,N) of
    any row stride, or contiguous of any shape; without up, gate is packed, with rows of 2N."""
    inputs = {"gate": gate, "up": up, "tangent_gate": tangent_gate, "tangent_up": tangent_up}
    return _launch(_activate, inputs, {"y": y}, y, up is None, config)


def backward_launch(
    dy: Tensor,
    gate: Tensor,
    up: Tensor | None,
    dgate: Tensor | None,
    dup: Tensor | None,
    *,
    config: SwigluConfig,
) -> Launch:
    """The launch that writes dgate and dup, contiguous, each unless None. dy, gate and up as for
    `forward_launch`; without up, dgate is packed like gate."""
    inputs = {"dy": dy, "gate": gate, "up": up}
    outputs = {"dgate": dgate, "dup": dup}
    return _launch(_differentiate, inputs, outputs, dy, up is None, config)


def _rows(x: Tensor) -> Tensor:
    """x itself when contiguous, else a view of rows (M,N), copied only when there is no view."""
    if x.is_contiguous():
        return x
    N = x.shape[-1]
    x_MN = x.reshape(x.numel() // N, N)
    return x_MN if x_MN.stride(1) == 1 or N == 1 else x_MN.contiguous()


def _rows_of(*tensors: Tensor | None) -> list[Any]:
    return [None if x is None else _rows(x) for x in tensors]


def _shape(gate: Tensor, up: Tensor | None) -> tuple[int, ...]:
    """The shape of y."""
    return gate.shape if up is not None else (*gate.shape[:-1], gate.shape[-1] // 2)


def _check(gate: Tensor, up: Tensor | None) -> None:
    if gate.dtype not in DTYPES or (up is not None and up.dtype != gate.dtype):
        of_up = "" if up is None else f" and {up.dtype}"
        raise TypeError(
            f"swiglu takes gate and up of one dtype, float32, float16 or bfloat16, got "
            f"{gate.dtype}{of_up}: convert them with .to()"
        )
    if gate.dim() == 0 or (gate.shape[-1] % 2 if up is None else up.shape != gate.shape):
        of_up = "" if up is None else f" and {tuple(up.shape)}"
        raise ValueError(
            "swiglu takes gate and up of one shape (..., F), or one packed tensor (..., 2F), "
            f"got {tuple(gate.shape)}{of_up}"
        )


class _SwigluPlan:
    """Calls that differ only in their tensors' addresses: checked once, with prepared launches."""

    def __init__(self, gate: Tensor, up: Tensor | None, config: SwigluConfig | None) -> None:
        device = check_device(gate=gate, up=up)
        _check(gate, up)
        self.shape = _shape(gate, up)
        self.config = config or configs(arch=device.type, itemsize=gate.element_size())[0]
        self.repeats = Repeats(device)

    def forward(self, gate: Tensor, up: Tensor | None) -> Tensor:
        y = gate.new_empty(self.shape)
        self.repeats.run("forward", (*_rows_of(gate, up), y), self._launches)
        return y

    def _launches(self, kind: Hashable, tensors: Sequence[Any]) -> tuple[Launch, ...]:
        launch = forward_launch if kind == "forward" else backward_launch
        return (launch(*tensors, config=self.config),)

    def backward(
        self, dy: Tensor, gate: Tensor, up: Tensor | None, needs: Sequence[bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of gate and up, each where it is needed; of a packed gate that of both.

        Hooks on saved tensors may return them with other strides.
        """
        dgate = dy.new_empty(gate.shape) if needs[0] else None
        dup = dy.new_empty(dy.shape) if up is not None and needs[1] else None
        if dgate is not None or dup is not None:
            given = _rows_of(dy, gate, up)
            kind = *map(layout_of, given), dgate is None, dup is None
            self.repeats.run(kind, (*given, dgate, dup), self._launches)
        return dgate, dup


_PLANS: Plans[_SwigluPlan] = Plans()


def _plan(gate: Tensor, up: Tensor | None, config: SwigluConfig | None) -> _SwigluPlan:
    of_up = None if up is None else (up.shape, up.stride(), up.dtype, up.get_device())
    key = (gate.shape, gate.stride(), gate.dtype, gate.device), of_up, config
    plan = _PLANS.get(key)
    return plan or _PLANS.add(key, _SwigluPlan(gate, up, config))


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up, plan):
        ctx.plan = plan
        ctx.save_for_backward(gate, up)
        return plan.forward(gate, up)

    @staticmethod
    @differentiable_once
    def backward(ctx, dy):
        return *ctx.plan.backward(dy, *ctx.saved_tensors, ctx.needs_input_grad[:2]), None


@torch.library.custom_op("kernelbench::swiglu", mutates_args=())
def _operator(gate: Tensor, up: Tensor | None, config: list[int]) -> Tensor:
    return _plan(gate, up, of_numbers(SwigluConfig, config)).forward(gate, up)


@without_data(_operator)
def _(gate, up, config):
    return gate.new_empty(_shape(gate, up))


@torch.library.custom_op("kernelbench::swiglu_backward", mutates_args=())
def _operator_backward(
    dy: Tensor, gate: Tensor, up: Tensor | None, config: list[int], needs: list[bool]
) -> tuple[Tensor, Tensor]:
    """The gradients of gate, packed where there is no up, and of up; `absent` unless needed."""
    plan = _plan(gate, up, of_numbers(SwigluConfig, config))
    dgate, dup = plan.backward(dy, gate, up, needs)
    return absent(gate) if dgate is None else dgate, absent(gate) if dup is None else dup


@without_data(_operator_backward)
def _(dy, gate, up, config, needs):
    dgate = gate.new_empty(gate.shape) if needs[0] else absent(gate)
    dup = dy.new_empty(dy.shape) if up is not None and needs[1] else absent(gate)
    return dgate, dup


@torch.library.custom_op("kernelbench::swiglu_jvp", mutates_args=())
def _operator_jvp(
    gate: Tensor,
    up: Tensor | None,
    tangent_gate: Tensor | None,
    tangent_up: Tensor | None,
    config: list[int],
) -> Tensor:
    """The tangent of y by those of gate, packed where there is no up, and of up."""
    chosen = _plan(gate, up, of_numbers(SwigluConfig, config)).config
    out = gate.new_empty(_shape(gate, up))
    gate, up, of_gate, of_up = _rows_of(gate, up, tangent_gate, tangent_up)
    with on_device(out.device):
        forward_launch(gate, up, out, of_gate, of_up, config=chosen).run()
    return out


@without_data(_operator_jvp)
def _(gate, up, tangent_gate, tangent_up, config):
    return gate.new_empty(_shape(gate, up))


def _keep(ctx, inputs, output):
    gate, up, ctx.config = inputs
    ctx.save_for_backward(gate, up)
    ctx.save_for_forward(gate, up)


def _gradients(ctx, dy, call=_operator_backward):
    return needed_gradients(ctx, 2, call, dy, *ctx.saved_tensors, config=ctx.config)


_operator.register_autograd(_gradients, setup_context=_keep)


def _tangents(ctx, gate, up):
    return final(_operator_jvp)(*ctx.saved_tensors, gate, up, config=ctx.config)


def _ways(gate, up, config):
    for axis in range(gate.ndim - (up is None)):
        yield (axis,), (axis, optional(up, axis))


def _ways_backward(dy, gate, up, config, needs):
    for axis in range(gate.ndim - (up is None)):
        results = needed_cut(needs[0], axis), needed_cut(up is not None and needs[1], axis)
        yield results, (axis, axis, optional(up, axis))


sharded(_operator, _ways)
sharded(_operator_backward, _ways_backward)
_TRANSFORM = Transform(
    "swiglu", _operator, _keep, partial(_gradients, call=final(_operator_backward)), _tangents
)


def swiglu(gate: Tensor, up: Tensor | None = None, *, config: SwigluConfig | None = None) -> Tensor:
    """y = silu(gate)·up with silu(g) = g·σ(g), in fp32 with one rounding at the end.

    gate, up: (..., F) of one shape and dtype, float32, float16 or bfloat16. Rows are read where
        they lie, whatever their stride, as those of a packed projection's halves; rows that do not
        lie at one distance from each other, or whose columns are apart, cost a copy.
    up: None for a packed gate, (..., 2F): its first half is the gate, its second up, and its
        gradient is one tensor (..., 2F).
    config: how to cut up the work; None for the choice of the table, see `configs`.

    y is (..., F), contiguous, of gate's dtype. The gradients, dup = dy·silu(gate) and
    dgate = dy·up·σ(gate)·(1 + gate·(1 − σ(gate))), come from one launch, in fp32 with one rounding
    each, and are not differentiable themselves; gate and up are all that is kept for them. Forward
    mode (jvp) is in fp32, too, and as final.

    torch.compile and torch.export take it as one operator, `kernelbench::swiglu`.

    Raises TypeError for other dtypes, nested and sparse tensors; ValueError for shapes that do not
    fit; RuntimeError for tensors that are not on one device where Triton runs, or have no memory.

    Shazeer, GLU Variants Improve Transformer, 2020 (arXiv:2002.05202).
    """
    if not direct(gate, up) or (gate.is_meta and refusal(gate.device)):
        refuse_some_on_meta("swiglu", gate, up)
        admit("swiglu", gate, up)
        _check(gate, up)
        numbers = numbers_of(config)
        y: Tensor
        y = _TRANSFORM((gate, up), (numbers,)) if transformed() else _operator(gate, up, numbers)
        return y
    try:
        plan = _plan(gate, up, config)
    except RuntimeError:
        admit("swiglu", gate, up)  # may raise a clearer error
        raise
    y = _Swiglu.apply(gate, up, plan) if graded(gate, up) else plan.forward(gate, up)
    return y
