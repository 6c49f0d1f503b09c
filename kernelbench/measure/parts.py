"""Calls the parts of a family, and checks that they return what spec.Family asks for.

An error goes to the record of every provider and tells the family's author which part failed, what
it returned, what was expected, and the line on which it raised.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import torch

from kernelbench.spec import Cost, Draw, Family, Provider, Traffic, UsageError
from kernelbench.spec.raised import MOST, defined, words_of

Piece = tuple[Any, ...]  # name, index, the fp64 values, and more tensors of the same shape
PIECE = "(name, index, fp64 tensor)"
INDICES = (int, slice, type(...), type(None), torch.Tensor, list, range)


class PartError(ValueError):
    """A part of a family raised, or returned what cannot be used."""


class _Part(AbstractContextManager[None]):
    """Turns an error raised inside into a PartError of the part; out of memory stays as it is."""

    def __init__(self, owner: Family[Any] | Provider[Any], part: str) -> None:
        self._name, self._function = f"{owner.name}: {part}", getattr(owner, part)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
            return
        if isinstance(error, UsageError):  # a family that says it in words of its own
            raise PartError(str(error)) from error
        if isinstance(error, Exception):
            room = MOST - len(f"{PartError.__name__}: {self._name} raised ")
            raise PartError(
                f"{self._name} raised {words_of(error, room, self._function)}"
            ) from error

    def refuse(self, got: str, expected: str) -> PartError:
        """The error of a part that returned something else than expected."""
        place = defined(self._function)
        at = f" ({place})" if place else ""
        return PartError(f"{self._name} {got}, expected {expected}{at}")


def cost_of(family: Family[Any], case: Any) -> Cost:
    """The work that a case must do. Raises PartError unless it is a Cost of whole numbers."""
    part = _Part(family, "cost")
    with part:
        cost = family.cost(case)
    if not isinstance(cost, Cost):
        raise part.refuse(f"returned {_shown(cost)}", "a Cost(flops, read, write)")
    for name in ("flops", "read", "write"):
        value = getattr(cost, name)
        if not isinstance(value, int) or value < 0:
            raise part.refuse(f"says {name}={_shown(value)}", "a whole number ≥ 0: divide with //")
    return cost


def traffic_of(provider: Provider[Any], case: Any) -> tuple[Traffic, ...] | None:
    """The rows of a provider's byte model, None where it has none.

    Raises PartError unless it returns a tuple of Traffic.
    """
    if provider.traffic is None:
        return None
    part = _Part(provider, "traffic")
    with part:
        rows = provider.traffic(case)
    if not isinstance(rows, tuple) or not all(isinstance(row, Traffic) for row in rows):
        raise part.refuse(f"returned {_shown(rows)}", "a tuple of Traffic(tensor, read, write)")
    return rows


def names_of(family: Family[Any], case: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(outputs, inputs with a gradient). Raises PartError unless they are tuples of names."""
    lists = []
    for word in ("outputs", "grads"):
        part = _Part(family, word)
        with part:
            names = getattr(family, word)(case)
        if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
            raise part.refuse(f"returned {_shown(names)}", 'a tuple of names, such as ("x",)')
        if len(set(names)) < len(names):
            raise part.refuse(f"returned {names}", "each name once")
        lists.append(names)
    if not lists[0]:
        raise _Part(family, "outputs").refuse("returned no name", "what a call returns, in order")
    return lists[0], lists[1]


def inputs_of(family: Family[Any], case: Any, draw: Draw) -> dict[str, torch.Tensor]:
    """The inputs of a case by name.

    Raises PartError unless all are dense tensors on the device of `draw`; in a mode with gradients
    also for a graded input that is absent or not floating, and without any upstream gradient.
    """
    outputs, graded = names_of(family, case)
    part = _Part(family, "inputs")
    with part:
        drawn = family.inputs(case, draw)
    if not isinstance(drawn, Mapping) or not drawn:
        raise part.refuse(f"returned {_shown(drawn)}", "a dict of tensors by name")
    for name, tensor in drawn.items():
        if not isinstance(name, str):
            raise part.refuse(f"names a tensor {_shown(name)}", "a str")
        if not isinstance(tensor, torch.Tensor):
            raise part.refuse(f"gives {_shown(tensor)} for {name!r}", "a torch.Tensor")
        if tensor.layout is not torch.strided:
            raise part.refuse(f"gives {tensor.layout} for {name!r}", "a dense (strided) tensor")
        if tensor.device.type != draw.device.type:
            expected = f"{draw.device.type}: draw it with `draw`, or on `draw.device`"
            raise part.refuse(f"gives {name!r} on {tensor.device.type}", expected)
    if case.mode.graded and graded:
        _check_gradients(part, drawn, outputs, graded)
    return dict(drawn)


def _check_gradients(
    part: _Part,
    tensors: Mapping[str, torch.Tensor],
    outputs: tuple[str, ...],
    graded: tuple[str, ...],
) -> None:
    for name in graded:
        if name not in tensors:
            expected = f"every input that `grads` names: {', '.join(graded)}"
            raise part.refuse(f"gives no {name!r} but {', '.join(tensors)}", expected)
        if not tensors[name].is_floating_point():
            expected = "a floating one, since `grads` names it"
            raise part.refuse(f"gives {tensors[name].dtype} for {name!r}", expected)
    upstream = [f"grad_{output}" for output in outputs]
    if not any(name in tensors for name in upstream):
        expected = f"an upstream gradient in mode bwd and full: {' or '.join(upstream)}"
        raise part.refuse(f"gives {', '.join(tensors)}", expected)


def pieces_of(
    family: Family[Any], case: Any, inputs: Mapping[str, torch.Tensor]
) -> Iterator[Piece]:
    """The pieces that the oracle yields, each checked.

    Raises PartError for a piece of another form, with an unknown name, not in fp64, or on another
    device than the inputs.
    """
    outputs, _ = names_of(family, case)
    # A gradient that this case does not ask for may be yielded, and is ignored.
    known = (*outputs, *(f"d{name}" for name in inputs if not name.startswith("grad_")))
    device = next(iter(inputs.values())).device
    part = _Part(family, "oracle")
    with part:
        returned = family.oracle(case, inputs)
        pieces = iter(returned) if hasattr(returned, "__iter__") else None
    if pieces is None:
        raise part.refuse(f"returned {_shown(returned)}", f"that it yields {PIECE}")
    while True:
        with part:
            piece = next(pieces, None)
        if piece is None:
            return
        _check_piece(part, piece, known, device)
        yield piece


def _check_piece(part: _Part, piece: Any, known: tuple[str, ...], device: torch.device) -> None:
    if not isinstance(piece, tuple) or len(piece) < 3:
        raise part.refuse(f"yields {_shown(piece)}", PIECE)
    name, index, ref, *more = piece
    if name not in known:
        raise part.refuse(f"yields {_shown(name)}", f"one of {', '.join(known)}")
    if not all(isinstance(i, INDICES) for i in (index if isinstance(index, tuple) else (index,))):
        expected = "an index of the output: ..., a slice, or a tuple of them"
        raise part.refuse(f"yields {name!r} at {_shown(index)}", expected)
    for tensor in (ref, *more):
        if not isinstance(tensor, torch.Tensor):
            raise part.refuse(f"yields {_shown(tensor)} for {name!r}", "an fp64 tensor")
        if tensor.dtype is not torch.float64:
            expected = "torch.float64: compute with .double()"
            raise part.refuse(f"yields {tensor.dtype} for {name!r}", expected)
        if tensor.device.type != device.type:
            expected = f"{device.type}, where the inputs are"
            raise part.refuse(f"yields {name!r} on {tensor.device.type}", expected)
        if tensor.shape != ref.shape:
            got = f"yields a part of shape {tuple(tensor.shape)} for {name!r}"
            raise part.refuse(got, f"{tuple(ref.shape)}, as its values have")


def elements_at(family: Family[Any], name: str, out: torch.Tensor, index: Any) -> torch.Tensor:
    """The elements of an output at a piece's index. Raises PartError where the index is invalid."""
    try:
        return out[index]
    except (IndexError, TypeError, RuntimeError) as error:
        got = f"yields {name!r} at {_shown(index)}"
        expected = f"an index of its shape {tuple(out.shape)} ({error})"
        raise _Part(family, "oracle").refuse(got, expected) from None


def _shown(value: Any) -> str:
    """`int 3`, `a tuple of 2`, `torch.float32 of shape (3, 4)`, `None`."""
    if value is None or value is ...:
        return "None" if value is None else "..."
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    if isinstance(value, slice):
        return repr(value)
    if isinstance(value, (tuple, list, Mapping)):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, (int, float, str)):
        return f"{type(value).__name__} {repr(value)[:40]}"
    return f"a {type(value).__name__}"
