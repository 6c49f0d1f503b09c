"""How a call reaches its kernels: straight, or by way of an operator of torch.library.

A call on plain tensors launches straight away: an operator would cost the host several µs. Whoever
stands between the caller and the kernels (torch.compile and torch.export, fake tensors and other
dispatch modes, subclasses of Tensor, negative views, functorch's transforms, forward mode) gets an
operator of the namespace `kernelbench` instead, which knows shapes without data and is one node of
a graph. An operator takes a config as a list of whole numbers.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import partial, wraps
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

onlookers = 0  # dispatch modes that count what is done, and change nothing


def direct(*tensors: Tensor | None) -> bool:
    """Whether nothing stands between a call on these tensors and its kernels. About 0.3 µs."""
    if (
        _compiling()
        or _transform() is not None
        or _modes() > onlookers
        or forward_ad._current_level >= 0
    ):
        return False
    for tensor in tensors:
        if tensor is not None and (type(tensor) not in _PLAIN or tensor.is_neg()):
            return False
    return True


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is of no subclass, and its memory holds its values."""
    return type(tensor) in _PLAIN and not tensor.is_neg()


def transformed() -> bool:
    """Whether functorch's transforms or forward mode may look on, which need a Function whose
    context is set up apart."""
    return not _compiling() and (_transform() is not None or forward_ad._current_level >= 0)


def graded(*tensors: Tensor | None) -> bool:
    """Whether a gradient of one of them may be asked for."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def admit(name: str, *tensors: Tensor | None) -> None:
    """For tensors that go to an operator: DTensor learns how it may shard them.

    Raises TypeError for nested tensors, whose sizes no kernel here knows, and for sparse ones.
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


def without_data(operator: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates what an operator gives of tensors without data: their shapes alone. Where launches
    are described it does what it does on a GPU, so that none of them is missed."""

    def register(shapes: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(shapes)
        def chosen(*args: Any, **options: Any) -> Any:
            whole = operator._init_fn if describing() else shapes
            return whole(*args, **options)

        operator.register_fake(chosen)
        return shapes

    return register


@dataclass(frozen=True)
class Transform:
    """How functorch's transforms and forward mode take an operator apart.

    keep: as torch.library's setup_context; it saves for forward what `jvp` needs, too.
    gradients: of the operator's tensors, as register_autograd has it, for any number of others.
    jvp: the tangents of the results by those of the tensors; None where there are none.
    """

    name: str
    operator: Callable[..., Any]
    keep: Callable[..., None]
    gradients: Callable[..., Any]
    jvp: Callable[..., Any] | None = None

    def __call__(self, tensors: Sequence[Tensor | None], rest: Sequence[Any]) -> Any:
        """The operator on these tensors and what else it takes."""
        return _Transformed.apply(*tensors, _Call(self, tuple(rest)))


@dataclass(frozen=True)
class _Call:
    """Of a class that functorch does not take apart."""

    transform: Transform
    rest: tuple[Any, ...]


class _Transformed(torch.autograd.Function):
    """An operator whose context is set up apart, as functorch wants it."""

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
    """An operator on tensors, and keywords that are none, whose result has no derivative: who takes
    one is told, also under functorch's transforms."""
    return lambda *tensors, **rest: _Last.apply(partial(operator, **rest), *tensors)


class _Last(torch.autograd.Function):
    """call(*args), for `final`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(call: Callable[..., Any], *args: Any) -> Any:
        return call(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> NoReturn:
        raise RuntimeError(NO_SECOND)

    @staticmethod
    def jvp(ctx: Any, *_: Tensor) -> NoReturn:
        raise NotImplementedError(NO_SECOND)


class _Final(torch.autograd.Function):
    """The first `count` tensors as they are; whoever differentiates them is told why not. The
    others are there to lead to it."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.view_as(tensor) for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> NoReturn:
        raise RuntimeError(NO_SECOND)


class _Read:
    """A context whose saved tensors were read, which checkpoints allow once."""

    def __init__(self, ctx: Any) -> None:
        self._ctx, self.saved_tensors = ctx, ctx.saved_tensors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)


def differentiable_once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward whose gradients raise when they are differentiated, whatever of its inputs
    requires grad; at no cost where no graph of the gradient is wanted.

    torch's `once_differentiable` does so only where an upstream gradient requires grad: of others
    the second derivative is silently that of a constant.
    """

    @wraps(backward)
    def chosen(ctx: Any, *grads: Tensor | None) -> Any:
        if transformed():
            raise NotImplementedError(BATCHED)
        grads = tuple(g.resolve_neg() if g is not None and g.is_neg() else g for g in grads)
        if not torch.is_grad_enabled():
            return backward(ctx, *grads)
        read = _Read(ctx)
        with torch.no_grad():
            found = backward(read, *grads)
        given = [each for each in found if each is not None]
        ways = [t for t in (*grads, *read.saved_tensors) if t is not None and t.requires_grad]
        always = torch.zeros((), requires_grad=True)  # where none of these leads back
        left = iter(_Final.apply(len(given), *given, *ways, always))
        return tuple(None if each is None else next(left) for each in found)

    return chosen


def refuse_tangents(name: str, *tensors: Tensor | None) -> None:
    """Raise NotImplementedError where forward-mode differentiation reaches a function that a kernel
    computes: it would lose the tangents."""
    if forward_ad._current_level < 0:
        return
    for tensor in tensors:
        if tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None:
            raise NotImplementedError(
                f"{name} has no forward-mode derivative: take reverse mode (torch.autograd.grad), "
                "or PyTorch's operators"
            )


def gradients_of(found: Sequence[Tensor | None], like: Tensor) -> tuple[Tensor, ...]:
    """As an operator returns them."""
    return tuple(absent(like) if each is None else each for each in found)


def empty_gradients(
    likes: Sequence[Tensor], needs: Sequence[bool], like: Tensor
) -> tuple[Tensor, ...]:
    """As `gradients_of`, of fake tensors: contiguous, each like one, where it is needed."""
    packed = torch.contiguous_format
    pairs = zip(likes, needs, strict=True)
    return gradients_of(
        [torch.empty_like(each, memory_format=packed) if need else None for each, need in pairs],
        like,
    )


def needed_gradients(
    ctx: Any, count: int, call: Callable[..., Any], *tensors: Tensor | None, **rest: Any
) -> tuple[Tensor | None, ...]:
    """Of the first `count` inputs of an operator, by a call that is told which are needed."""
    needs = list(ctx.needs_input_grad[:count])
    found = call(*tensors, **rest, needs=needs)
    gradients = (g if need else None for g, need in zip(found, needs, strict=True))
    return *gradients, *(None for _ in ctx.needs_input_grad[count:])


def absent(like: Tensor) -> Tensor:
    """What an operator returns for a result that was not wanted."""
    return like.new_empty(0)


_NONE, _SOME = -1, 1  # before a part that may be None


def numbers_of(config: Any) -> list[int]:
    """A config as an operator takes it, `of_numbers` undoes it; [] for None."""
    if config is None:
        return []
    found: list[int] = []
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            found += [_SOME, *numbers_of(value)]
        else:
            found.append(_NONE if value is None else int(value))
    return found


Config = TypeVar("Config")


def of_numbers(kind: type[Config], numbers: Sequence[int]) -> Config | None:
    """The config of this kind that the numbers stand for."""
    return _read(kind, iter(numbers)) if numbers else None


def _read(kind: Any, numbers: Iterator[int]) -> Any:
    hints = get_type_hints(kind)
    values: list[Any] = []
    for field in fields(kind):
        number = next(numbers)
        known = [each for each in get_args(hints[field.name]) if each is not NoneType]
        [of] = known or [hints[field.name]]
        if known and number == _NONE:
            values.append(None)
        else:
            values.append(_read(of, numbers) if is_dataclass(of) else of(number))
    made: Any = kind(*values)
    return made
