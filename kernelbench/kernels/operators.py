"""How a call reaches its kernels: directly, or through an operator of torch.library.

A call on plain tensors launches directly: an operator would cost the host several µs. Whatever
intercepts calls (torch.compile and torch.export, fake tensors and other dispatch modes, subclasses
of Tensor, negative views, functorch's transforms, forward mode) gets an operator of the namespace
`kernelbench` instead, which knows shapes without data and is one node of a graph. An operator takes
a config as a list of whole numbers.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import partial, wraps
from numbers import Real
from types import NoneType
from typing import Any, NoReturn, TypeVar, get_args, get_type_hints

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from kernelbench.kernels.launch import describing
from kernelbench.kernels.sharding import announce

_PLAIN = frozenset((Tensor, Parameter))
_transform = torch._C._functorch.peek_interpreter_stack
_modes = torch._C._len_torch_dispatch_stack
_compiling = torch.compiler.is_compiling

NO_SECOND = (
    "the gradient of this kernelbench function is a kernel that has no derivative of its own, so "
    "that it cannot be differentiated again: for a second derivative, take PyTorch's operators"
)

BATCHED = (
    "the gradient of a call that no transform saw is a kernel, which takes no batch of upstream "
    "gradients and no tangents: take torch.func's transforms of the call"
)

onlookers = 0  # active dispatch modes that only count operators


def direct(*tensors: Tensor | None) -> bool:
    """Whether nothing intercepts a call on these tensors. Takes about 0.3 µs."""
    if (
        _compiling()
        or _transform() is not None
        or _modes() > onlookers
        or forward_ad._current_level >= 0
    ):
        return False
    for tensor in tensors:
        if tensor is None:
            continue
        kind = type(tensor)
        if (kind is not Tensor and kind is not Parameter) or tensor.is_neg():
            return False
    return True


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is no subclass, and its memory holds its values."""
    return type(tensor) in _PLAIN and not tensor.is_neg()


def transformed() -> bool:
    """Whether functorch's transforms or forward mode may be active, which need a Function with
    `setup_context`."""
    return not _compiling() and (_transform() is not None or forward_ad._current_level >= 0)


def graded(*tensors: Tensor | None) -> bool:
    """Whether a gradient of one of them may be asked for."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def admit(name: str, *tensors: Tensor | None) -> None:
    """Check tensors that go to an operator, and register the sharding rules for a DTensor.

    Raises TypeError for nested tensors, whose sizes no kernel here supports, and for sparse ones.
    """
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.is_nested:
            raise TypeError(
                f"{name} takes no nested tensors: call it on .values(), or on each of .unbind()"
            )
        if tensor.layout is not torch.strided:
            raise TypeError(f"{name} takes no {tensor.layout}: call .to_dense() on it")
        if type(tensor).__name__ == "DTensor":
            announce()


def as_flag(function: str, name: str, value: Any) -> bool:
    """A flag that is given as Python's or NumPy's, or as a number. Raises TypeError for others: a
    tensor may change its value, and a plan is kept by its arguments."""
    if isinstance(value, bool):
        return value
    if isinstance(value, Real) or type(value).__name__ in ("bool", "bool_"):  # NumPy's
        return bool(value)
    raise TypeError(
        f"{function} takes {name} as True or False, got {type(value).__name__}: of a tensor or "
        "array, pass .item()"
    )


def check_number(function: str, name: str, value: Any) -> None:
    """Raise TypeError unless a value is Python's or NumPy's number, or None."""
    if value is not None and not isinstance(value, Real):
        raise TypeError(
            f"{function} takes {name} as a number, got {type(value).__name__}: of a tensor or "
            "array, pass .item()"
        )


def as_scale(function: str, name: str, value: Any) -> float | None:
    """A scale of scores as kernels take it, None for their own. Raises TypeError for what is no
    number, ValueError for what float32 has as zero, as infinite, or with few digits."""
    check_number(function, name, value)
    if value is None:
        return None
    try:
        scale = float(value)
    except OverflowError:
        scale = math.inf
    if not 2.0**-126 <= scale <= 2.0**126:
        raise ValueError(f"{function} takes a positive, finite {name}, got {value}")
    return scale


def refuse_some_on_meta(name: str, *tensors: Tensor | None) -> None:
    """Raise RuntimeError where some tensors are on meta and others are not: an operator would
    answer without memory, on the others' device."""
    if len({tensor.is_meta for tensor in tensors if tensor is not None}) > 1:
        raise RuntimeError(
            f"{name} takes no tensors on several devices, some of them meta: move them to one"
        )


def without_data(operator: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates the fake implementation of an operator, which gives shapes alone. Where launches
    are described, the real implementation runs instead, so that no launch is missed."""

    def register(shapes: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(shapes)
        def fake(*args: Any, **options: Any) -> Any:
            function = operator._init_fn if describing() else shapes
            return function(*args, **options)

        operator.register_fake(fake)
        return shapes

    return register


@dataclass(frozen=True)
class Transform:
    """The derivatives of an operator for functorch's transforms and forward mode.

    keep: as torch.library's setup_context; it also saves for forward what `jvp` needs.
    gradients: of the operator's tensors, as for register_autograd, for any number of others.
    jvp: the tangents of the results from those of the tensors; None where there is no jvp.
    """

    name: str
    operator: Callable[..., Any]
    keep: Callable[..., None]
    gradients: Callable[..., Any]
    jvp: Callable[..., Any] | None = None

    def __call__(self, tensors: Sequence[Tensor | None], rest: Sequence[Any]) -> Any:
        """The operator on these tensors and its other arguments."""
        return _Transformed.apply(*tensors, _Call(self, tuple(rest)))


@dataclass(frozen=True)
class _Call:
    """A transform and its other arguments, in a class that functorch does not look into."""

    transform: Transform
    rest: tuple[Any, ...]


class _Transformed(torch.autograd.Function):
    """An operator with `setup_context`, as functorch requires."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*tensors_call: Any) -> Any:
        *tensors, call = tensors_call
        return call.transform.operator(*tensors, *call.rest)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.call = inputs
        ctx.call.transform.keep(ctx, (*tensors, *ctx.call.rest), output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        return ctx.call.transform.gradients(ctx, *grads)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        transform = ctx.call.transform
        if transform.jvp is None:
            raise NotImplementedError(
                f"{transform.name} has no forward-mode derivative: take reverse mode "
                "(torch.autograd.grad), or PyTorch's operators"
            )
        return transform.jvp(ctx, *tangents[:-1])


def final(operator: Callable[..., Any]) -> Callable[..., Any]:
    """An operator on tensors (keywords are no tensors) whose result has no derivative: taking one
    raises, also under functorch's transforms."""
    return lambda *tensors, **rest: _Last.apply(partial(operator, **rest), *tensors)


class _Last(torch.autograd.Function):
    """call(*args), for `final`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(call: Callable[..., Any], *args: Any) -> Any:
        return call(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Saves nothing."""

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> NoReturn:
        raise RuntimeError(NO_SECOND)

    @staticmethod
    def jvp(ctx: Any, *_: Tensor) -> NoReturn:
        raise NotImplementedError(NO_SECOND)


class _Final(torch.autograd.Function):
    """The first `count` tensors unchanged; differentiating them raises. The others connect them to
    the graph."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.view_as(tensor) for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> NoReturn:
        raise RuntimeError(NO_SECOND)


class _Read:
    """A context with its saved tensors read: checkpoints allow reading them once."""

    def __init__(self, ctx: Any) -> None:
        self._ctx, self.saved_tensors = ctx, ctx.saved_tensors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)


def differentiable_once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward whose gradients raise when they are differentiated, whichever input requires grad;
    at no cost without a graph of the gradient.

    torch's `once_differentiable` raises only where an upstream gradient requires grad: otherwise
    the second derivative is silently that of a constant.
    """

    @wraps(backward)
    def guarded(ctx: Any, *grads: Tensor | None) -> Any:
        if transformed():
            raise NotImplementedError(BATCHED)
        grads = tuple(g.resolve_neg() if g is not None and g.is_neg() else g for g in grads)
        if not torch.is_grad_enabled():
            return backward(ctx, *grads)
        read = _Read(ctx)
        with torch.no_grad():
            gradients = backward(read, *grads)
        present = [gradient for gradient in gradients if gradient is not None]
        sources = [t for t in (*grads, *read.saved_tensors) if t is not None and t.requires_grad]
        anchor = torch.zeros((), requires_grad=True)  # in case none of the sources requires grad
        guards = iter(_Final.apply(len(present), *present, *sources, anchor))
        return tuple(None if gradient is None else next(guards) for gradient in gradients)

    return guarded


def refuse_tangents(name: str, *tensors: Tensor | None) -> None:
    """Raise NotImplementedError where forward-mode differentiation reaches a kernel, which would
    lose the tangents."""
    if forward_ad._current_level < 0:
        return
    for tensor in tensors:
        if tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None:
            raise NotImplementedError(
                f"{name} has no forward-mode derivative: take reverse mode (torch.autograd.grad), "
                "or PyTorch's operators"
            )


def gradients_of(gradients: Sequence[Tensor | None], like: Tensor) -> tuple[Tensor, ...]:
    """Gradients as an operator returns them: `absent` for None."""
    return tuple(absent(like) if gradient is None else gradient for gradient in gradients)


def empty_gradients(
    tensors: Sequence[Tensor], needs: Sequence[bool], like: Tensor
) -> tuple[Tensor, ...]:
    """As `gradients_of`, for fake tensors: where needed, contiguous and like the tensor."""
    packed = torch.contiguous_format
    pairs = zip(tensors, needs, strict=True)
    return gradients_of(
        [
            torch.empty_like(tensor, memory_format=packed) if need else None
            for tensor, need in pairs
        ],
        like,
    )


def needed_gradients(
    ctx: Any, count: int, call: Callable[..., Any], *tensors: Tensor | None, **rest: Any
) -> tuple[Tensor | None, ...]:
    """Gradients of the first `count` inputs of an operator, by a call that takes `needs`."""
    needs = list(ctx.needs_input_grad[:count])
    results = call(*tensors, **rest, needs=needs)
    gradients = (g if need else None for g, need in zip(results, needs, strict=True))
    return *gradients, *(None for _ in ctx.needs_input_grad[count:])


def absent(like: Tensor) -> Tensor:
    """What an operator returns for a result that is not needed."""
    return like.new_empty(0)


_NONE, _SOME = -1, 1  # mark a field that may be None


def numbers_of(config: Any) -> list[int]:
    """A config as an operator takes it; the inverse of `of_numbers`. [] for None."""
    if config is None:
        return []
    numbers: list[int] = []
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            numbers += [_SOME, *numbers_of(value)]
        else:
            numbers.append(_NONE if value is None else int(value))
    return numbers


Config = TypeVar("Config")


def of_numbers(kind: type[Config], numbers: Sequence[int]) -> Config | None:
    """The config of this kind from its numbers."""
    return _read(kind, iter(numbers)) if numbers else None


def _read(kind: Any, numbers: Iterator[int]) -> Any:
    hints = get_type_hints(kind)
    values: list[Any] = []
    for field in fields(kind):
        number = next(numbers)
        kinds = [hint for hint in get_args(hints[field.name]) if hint is not NoneType]
        [field_kind] = kinds or [hints[field.name]]
        if kinds and number == _NONE:
            values.append(None)
        else:
            values.append(
                _read(field_kind, numbers) if is_dataclass(field_kind) else field_kind(number)
            )
    config: Any = kind(*values)
    return config
