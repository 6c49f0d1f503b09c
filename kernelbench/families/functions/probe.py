"""What a function returns and does, found by running it on tensors without memory."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from math import prod
from types import NoneType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from kernelbench.families.providing import stored_bytes, tensors_in
from kernelbench.spec import UsageError

_CREATES = ("empty", "empty_like", "new_empty", "empty_strided", "detach", "alias")
# What reads of its first argument no more than it writes, and what writes a part of it in place.
_PICKS = (
    "embedding", "_embedding_bag", "_embedding_bag_forward_only", "index", "gather", "index_select",
    "take", "nll_loss_forward", "nll_loss", "grid_sampler_2d", "grid_sampler_3d",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
)  # fmt: skip
_PUTS = (
    "index_put_", "_index_put_impl_", "index_copy_", "index_add_", "index_fill_", "scatter_",
    "scatter_add_", "scatter_reduce_", "masked_fill_", "masked_scatter_",
)  # fmt: skip


@dataclass(frozen=True)
class Output:
    """shape and dtype of a tensor that is returned; graded: whether a gradient leads to it;
    aliases: whether it lies in an argument, and need not be written."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    graded: bool
    aliases: bool

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Facts:
    """outputs: in order. reached: which arguments have a gradient. flops: of the forward and of the
    backward, an FMA is two. read: bytes that the forward reads of its arguments, each once at most.
    needed: bytes of the arguments and outputs that the backward reads again. gradients: bytes of
    those.
    """

    outputs: tuple[Output, ...]
    reached: tuple[str, ...] = ()
    flops: int = 0
    backward_flops: int = 0
    read: int = 0
    needed: int = 0
    gradients: int = 0


class _Counted(TorchDispatchMode):
    """Flops: of products as PyTorch's FlopCounterMode has them, of causal attention half of that;
    else one an element that is written. Views, constructors and lookups cost nothing. And bytes
    that are read of some tensors."""

    def __init__(self, tensors: Sequence[torch.Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        self._most = {_storage(t): t.untyped_storage().nbytes() for t in tensors}
        self._read = dict.fromkeys(self._most, 0)

    @property
    def read(self) -> int:
        """Bytes of those tensors, each no more than it has."""
        return sum(min(count, self._most[at]) for at, count in self._read.items())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if func.is_view or name in _CREATES:
            return out
        tensors, results = tensors_in((args, kwargs)), tensors_in(out)
        if func.overloadpacket in flop_registry:
            flops = int(flop_registry[func.overloadpacket](*args, **kwargs, out_val=out))
            self.flops += flops // 2 if _is_causal(func, args, kwargs) else flops
        elif name not in _PICKS + _PUTS:
            self.flops += max((t.numel() for t in results), default=0)
        if name.endswith("_like") or name in ("new_zeros", "new_ones", "new_full"):
            return out
        written = sum(stored_bytes(t) for t in results)
        for at, tensor in enumerate(tensors):
            if _storage(tensor) in self._read:
                size = stored_bytes(tensor)
                if at == 0 and name in _PUTS:
                    size = 0
                elif at == 0 and name in _PICKS:
                    size = min(size, written)
                self._read[_storage(tensor)] += size
        return out


def _is_causal(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether an attention operator leaves out what comes later."""
    names = [argument.name for argument in func._schema.arguments]
    if "is_causal" not in names:
        return False
    at = names.index("is_causal")
    return bool(kwargs.get("is_causal", args[at] if at < len(args) else False))


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def flat(returned: Any, names: Sequence[str] = ()) -> tuple[torch.Tensor, ...]:
    """The tensors of what a function returned, in order: a tensor, any nest of tuples, lists and
    dicts of them, or a dataclass.

    names: of the outputs, by which those of a dict are put in order.
    """
    if isinstance(returned, torch.Tensor):
        return (returned,)
    if type(returned) is tuple and all(isinstance(t, torch.Tensor) for t in returned):
        return returned
    returned = _opened(returned)
    if isinstance(returned, dict) and {*names} == {*returned}:
        returned = [returned[name] for name in names]
    return tuple(tensors_in(returned))


def _opened(returned: Any) -> Any:
    """A dataclass as a dict of its fields, all else as it is."""
    if is_dataclass(returned) and not isinstance(returned, type):
        return {field.name: getattr(returned, field.name) for field in fields(returned)}
    return returned


def names_of(returned: Any) -> tuple[str, ...]:
    """What its tensors are called: by a dict's keys, or a dataclass' fields, where it is one of
    tensors, else `out`, or `out0`, `out1` …"""
    returned = _opened(returned)
    if isinstance(returned, dict) and all(
        isinstance(k, str) and k.isidentifier() and isinstance(v, torch.Tensor)
        for k, v in returned.items()
    ):
        return tuple(returned)
    count = len(flat(returned))
    return ("out",) if count == 1 else tuple(f"out{i}" for i in range(count))


def probe(
    call: Callable[..., Any],
    tensors: Sequence[torch.Tensor],
    graded: Sequence[str],
    names: Sequence[str],
) -> Facts:
    """Call a function once, and go back once where an argument is to have a gradient.

    names: of the arguments. graded: those that are to have a gradient. Raises what it raises, and
    UsageError where it returns what cannot be compared.
    """
    chosen = {n: t.requires_grad_() for n, t in zip(names, tensors, strict=True) if n in graded}
    saved: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    forward, backward = _Counted(tensors), _Counted()
    keep = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with torch.set_grad_enabled(bool(chosen)), keep, forward:
        returned = call(*tensors)
    outputs = flat(returned)
    _hold_tensors(returned, outputs)
    arguments = {_storage(t) for t in tensors}
    described = tuple(
        Output(name, tuple(t.shape), t.dtype, t.requires_grad, _storage(t) in arguments)
        for name, t in zip(names_of(returned), outputs, strict=True)
    )
    roots = [t for t in outputs if t.requires_grad]
    if not roots:
        return Facts(described, flops=forward.flops, read=forward.read)
    ones = [torch.ones_like(t) for t in roots]
    with backward:
        gradients = torch.autograd.grad(roots, [*chosen.values()], ones, allow_unused=True)
    reached = {n: g for n, g in zip(chosen, gradients, strict=True) if g is not None}
    return Facts(
        described,
        tuple(reached),
        forward.flops,
        backward.flops,
        forward.read,
        _needed(saved, [*tensors, *outputs]),
        sum(g.numel() * g.element_size() for g in reached.values()),
    )


def _hold_tensors(returned: Any, outputs: Sequence[torch.Tensor]) -> None:
    """Raises UsageError for what nothing can be held against."""
    if not outputs:
        raise UsageError(f"the reference returns no tensor but {type(returned).__name__}")
    leaves = tree_leaves(_opened(returned))
    others = {type(v).__name__ for v in leaves if not isinstance(v, (torch.Tensor, NoneType))}
    if others:
        raise UsageError(
            f"the reference returns {', '.join(sorted(others))} beside tensors: only tensors are "
            "compared, so return it as one, or not at all"
        )
    if any(tensor.is_complex() for tensor in outputs):
        raise UsageError(
            "the reference returns complex numbers: return torch.view_as_real of them, and so in "
            "each candidate"
        )


def _needed(saved: Sequence[torch.Tensor], known: Sequence[torch.Tensor]) -> int:
    """Bytes of those arguments and outputs that a graph saved."""
    storages = {_storage(tensor) for tensor in saved}
    return sum(t.numel() * t.element_size() for t in known if _storage(t) in storages)
