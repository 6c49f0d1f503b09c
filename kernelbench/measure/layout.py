"""Checks that a provider's untimed `prepare` changes the layout of inputs, and computes nothing.

A layout commutes with any substitution of the values that it moves: the layout of substituted
inputs is the substituted layout, bit for bit. Arithmetic does not commute with it, nor does a
conversion of the dtype.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from kernelbench.spec import Prepared
from kernelbench.spec.raised import defined

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_FACTORS = (-25, 1157)  # odd, so that products modulo 2ⁿ are distinct
REMEDY = "move it into the call, or say prepacked=True, which tables show"


class PrepareError(RuntimeError):
    """`prepare` returned something other than a mapping of names to plain tensors."""


def describe_layout(
    laid_out: Mapping[str, Any], inputs: Mapping[str, Any], prepare: Any = None
) -> tuple[Prepared, ...]:
    """The tensors that `prepare` returned, for a record; none where it returned the inputs.

    prepare: the function, whose place errors name.
    Raises PrepareError unless `laid_out` is a mapping of names to plain tensors.
    """
    if laid_out is inputs:
        return ()
    place = defined(prepare) if prepare is not None else None
    at = f" ({place})" if place else ""
    if not isinstance(laid_out, Mapping):
        kind = type(laid_out).__name__
        raise PrepareError(f"prepare returned {kind}, expected names to tensors{at}")
    for name, tensor in laid_out.items():
        if type(tensor) is not torch.Tensor:
            kind = type(tensor).__name__
            raise PrepareError(f"prepare returned {kind} as {name!r}, expected a torch.Tensor{at}")
    return tuple(
        Prepared(
            name=name,
            shape=tuple(tensor.shape),
            dtype=str(tensor.dtype).removeprefix("torch."),
            bytes=tensor.untyped_storage().nbytes(),
        )
        for name, tensor in laid_out.items()
    )


def layout_fault(
    prepare: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]],
    inputs: Mapping[str, torch.Tensor],
) -> str:
    """Why what `prepare` returns is no layout of these inputs; "" if it is one."""
    plain = prepare({name: tensor.clone() for name, tensor in inputs.items()})
    for factor in _FACTORS:
        other = {name: _substituted(tensor, factor) for name, tensor in inputs.items()}
        for name, tensor in prepare(other).items():
            if name not in plain or not _same_bits(_substituted(plain[name], factor), tensor):
                return f"prepare computes {name!r}, which is no layout of the inputs: {REMEDY}"
    return ""


def _substituted(tensor: torch.Tensor, factor: int) -> torch.Tensor:
    """Replace every bit pattern by another one, except zero, which may be padding.

    Two products modulo 2ⁿ with an odd number, and a shift between them, so that neither a change of
    sign nor a longer mantissa commutes with it. Integers stay, since a layout may gather by them.
    """
    if not tensor.is_floating_point():
        return tensor.clone()
    bits = tensor.view(_BITS[tensor.element_size()]) * factor
    return ((bits ^ (bits >> 4 * tensor.element_size())) * factor).view(tensor.dtype)


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.shape != b.shape or a.dtype is not b.dtype:
        return False
    kind = _BITS[a.element_size()] if a.is_floating_point() else a.dtype
    return torch.equal(a.view(kind), b.view(kind))
