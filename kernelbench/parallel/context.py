"""Zigzag context-parallel attention behind `F.scaled_dot_product_attention`, for models that are
written for one GPU: as torch.distributed.tensor.experimental.context_parallel.

Shapes: B batch elements, N tokens of each, n rows of a rank, H heads of q, G of k and v, D head
size, W ranks.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.distributed.device_mesh import DeviceMesh
from torch.overrides import TorchFunctionMode

from kernelbench.parallel.layout import ZigzagLayout
from kernelbench.parallel.zigzag import zigzag_attention_func

_SDPA = "F.scaled_dot_product_attention inside context_parallel"
# Attention that calls no SDPA which is seen here, and would be of a rank's own rows.
_OTHERS = {
    F.multi_head_attention_forward: "nn.MultiheadAttention",
    torch.ops.higher_order.flex_attention: "flex_attention",
}
_GRADIENTS = {torch.autograd.backward, torch.autograd.grad}
_Node = Tensor | GradientEdge


@contextmanager
def context_parallel(
    mesh: DeviceMesh,
    *,
    buffers: Sequence[Tensor] | None = None,
    buffer_seq_dims: Sequence[int] | None = None,
    no_restore_buffers: Iterable[Tensor] | None = None,
    padding_values: Sequence[float] | None = None,
    lengths: Sequence[int] | ZigzagLayout | None = None,
    heads_k_stride: int = 1,
    cp_comm_type: str = "all_gather",
) -> Iterator[ZigzagLayout]:
    """A context in which buffers hold this rank's rows of a sequence, and
    F.scaled_dot_product_attention attends to all of it: `zigzag_attention_func` over the mesh.

    mesh: of one axis; every rank of it enters, with the same sequence.
    buffers: the same N tokens long each, and without a gradient: tokens, labels, positions, masks
        of the loss. Inside, each has n rows along its axis of buffer_seq_dims, in zigzag order,
        as `ZigzagLayout.shard` cuts them: rank r has chunks r and 2W−1−r of 2W.
    no_restore_buffers: of these, those that keep a rank's rows. The others get their own memory
        back at the end, also after an error: what was written to them inside is gone.
    padding_values: what padded rows hold in each buffer, zeros unless given; −100 for the labels of
        F.cross_entropy. Where 2W does not divide N there are up to 2W−1 in all, at the end of the
        sequence: n = 2⌈N/2W⌉ on every rank. No token sees them.
    lengths: of documents that lie one after another in the sequence, N in all, or their layout;
        ranks have the rows of `ZigzagLayout.of`, whose short documents are not cut, and n may
        differ. Without it the sequence is one document, and always cut.
    heads_k_stride, cp_comm_type: as `zigzag_attention_func`'s.

    Yields the layout of the sequence: which tokens the rows are (`rows`, −1 for padded ones), and
    all of what was made of them (`unshard`).

    Inside, SDPA takes q (B,H,n,D), k and v (B,G,n,D), with a gradient or without, is_causal or all
    of a document, scale and, with enable_gqa, G < H; autocast casts them. B is any number of
    sequences of N tokens, or 1 with lengths. It is reached by whatever name a model has it; under
    torch.compile the graph breaks there. The backward belongs inside, too, for activation
    checkpoints call attention again.

    Raises ValueError for buffers that do not fit, before any is changed; inside, ValueError for
    shapes that are not a rank's, TypeError for subclasses such as DTensor, NotImplementedError for
    attn_mask, dropout_p, nn.MultiheadAttention and flex_attention, and what
    `zigzag_attention_func` raises.
    """
    if mesh.ndim != 1:
        raise ValueError(
            f"context_parallel takes a mesh of one axis, got {mesh.ndim}: pass mesh[NAME] of one"
        )
    buffers, group = list(buffers or ()), mesh.get_group()
    dims, values = _of_each(buffers, buffer_seq_dims, padding_values)
    kept = _kept(buffers, no_restore_buffers)
    layout, rank = _layout_of(buffers, dims, lengths, mesh.size()), group.rank()
    parts = zip(buffers, dims, values, strict=True)
    shards = [layout.shard(x, rank, dim, fill) for x, dim, fill in parts]
    own = [(x, x.detach()) for x in buffers if not any(x is other for other in kept)]
    call = _Call(layout, group, rank, lengths is not None, heads_k_stride, cp_comm_type)
    try:
        for buffer, shard in zip(buffers, shards, strict=True):
            _hold(buffer, shard)
        with _Served(call):
            yield layout
    finally:
        for buffer, original in own:
            _hold(buffer, original)


@torch.no_grad()
def _hold(buffer: Tensor, other: Tensor) -> None:
    """Let a tensor have another's memory and shape. Nothing is written to its own memory, which
    others may share: tokens and labels are often views of one tensor."""
    buffer.set_(other)  # type: ignore[call-overload]


def _of_each(
    buffers: Sequence[Tensor], dims: Sequence[int] | None, values: Sequence[float] | None
) -> tuple[list[int], list[float]]:
    dims = list(dims or ())
    values = [0.0] * len(buffers) if values is None else list(values)
    if not len(buffers) == len(dims) == len(values):
        raise ValueError(
            "context_parallel takes as many buffer_seq_dims, and padding_values if any, as buffers,"
            f" got {len(buffers)} buffers, {len(dims)} and {len(values)}"
        )
    for number, (buffer, dim) in enumerate(zip(buffers, dims, strict=True)):
        if type(buffer) is not Tensor or buffer.requires_grad:
            what = type(buffer).__name__ + (" that requires grad" * (type(buffer) is Tensor))
            raise ValueError(
                f"context_parallel takes buffers that are plain tensors without a gradient, got "
                f"buffer {number}, a {what}: what needs a gradient is made of buffers inside"
            )
        if any(buffer is other for other in buffers[:number]):
            raise ValueError(f"context_parallel takes a buffer once, got buffer {number} again")
        if not -buffer.dim() <= dim < buffer.dim():
            raise ValueError(
                f"context_parallel takes an axis of each buffer, got {dim} for buffer {number} of "
                f"shape {tuple(buffer.shape)}"
            )
    return dims, values


def _kept(buffers: Sequence[Tensor], kept: Iterable[Tensor] | None) -> list[Tensor]:
    kept = list(kept or ())
    if not all(any(each is buffer for buffer in buffers) for each in kept):
        raise ValueError("context_parallel takes no_restore_buffers that are among buffers")
    return kept


def _layout_of(
    buffers: Sequence[Tensor],
    dims: Sequence[int],
    lengths: Sequence[int] | ZigzagLayout | None,
    ranks: int,
) -> ZigzagLayout:
    if lengths is None:
        if not buffers:
            raise ValueError(
                "context_parallel takes buffers or lengths, which say how long the sequence is; got"
                " neither"
            )
        layout = ZigzagLayout.of([buffers[0].shape[dims[0]]], ranks, least=0)
    elif isinstance(lengths, ZigzagLayout):
        layout = lengths
    else:
        layout = ZigzagLayout.of(lengths, ranks)
    N = sum(layout.lengths)
    found = [buffer.shape[dim] for buffer, dim in zip(buffers, dims, strict=True)]
    if any(tokens != N for tokens in found) or layout.ranks != ranks:
        raise ValueError(
            f"context_parallel takes buffers of one sequence: got {N} tokens over {layout.ranks} "
            f"ranks, and buffers of {', '.join(map(str, found))} over {ranks}"
        )
    return layout


class _Call(NamedTuple):
    """What SDPA is about inside, besides its arguments."""

    layout: ZigzagLayout
    group: Any
    rank: int
    packed: bool
    heads_k_stride: int
    cp_comm_type: str


class _Served(TorchFunctionMode):
    """Calls of SDPA are ours. A mode sees them by whatever name they are called, in this thread and
    its backward alone; a function that is replaced in torch would be so for everybody."""

    def __init__(self, call: _Call) -> None:
        super().__init__()
        self._attend = torch.compiler.disable(partial(_attend, call))

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        if func in _OTHERS:
            raise NotImplementedError(
                f"context_parallel does not serve {_OTHERS[func]}, which would attend to this "
                "rank's rows alone: call F.scaled_dot_product_attention"
            )
        if func is Tensor.backward:
            with self:
                return _backward(*args, **kwargs)
        if func in _GRADIENTS and not kwargs.get("materialize_grads"):
            return self._differentiate(func, *args, **kwargs)
        return func(*args, **kwargs)

    def _differentiate(
        self,
        func: Callable[..., Any],
        tensors: Sequence[_Node],
        inputs: Sequence[_Node] | None = None,
        **options: Any,
    ) -> Any:
        """In sight of this mode, for checkpoints call attention again. Given tensors, torch would
        ask the mode once more; given edges of the graph, it does not."""
        edges = [_edge(x) for x in tensors]
        ends = None if inputs is None else [_edge(x) for x in inputs]
        with self:
            return func(edges, inputs=ends, **options)


def _edge(x: _Node) -> GradientEdge:
    return x if isinstance(x, GradientEdge) else get_gradient_edge(x)


def _backward(
    tensor: Tensor,
    gradient: Tensor | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: Any = None,
) -> None:
    """Tensor.backward, which has no more in it."""
    if gradient is None and tensor.numel() == 1:
        gradient = torch.ones_like(tensor)
    torch.autograd.backward(tensor, gradient, retain_graph, create_graph, inputs=inputs)


def _attend(
    call: _Call,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if attn_mask is not None or dropout_p:
        what = f"dropout_p={dropout_p}" if attn_mask is None else "attn_mask"
        raise NotImplementedError(
            f"{_SDPA} has no {what}: is_causal, and documents by lengths=, are what it masks"
        )
    _check(call, query, key, value, enable_gqa)
    B, _, n, _ = query.shape
    layout = call.layout
    if B != 1:
        layout = ZigzagLayout(B * layout.lengths, B * layout.owners, layout.ranks)
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in _as_autocast(query, key, value))
    o = zigzag_attention_func(
        q,
        k,
        v,
        layout,
        call.group,
        heads_k_stride=call.heads_k_stride,
        causal=is_causal,
        softmax_scale=scale,
        cp_comm_type=call.cp_comm_type,
    )
    return o.reshape(B, n, *o.shape[1:]).transpose(1, 2)


def _check(call: _Call, q: Tensor, k: Tensor, v: Tensor, enable_gqa: bool) -> None:
    if any(type(x) not in (Tensor, nn.Parameter) for x in (q, k, v)):
        kinds = ", ".join(type(x).__name__ for x in (q, k, v))
        raise TypeError(f"{_SDPA} takes plain tensors, got {kinds}: of a DTensor, .to_local()")
    shapes = [tuple(x.shape) for x in (q, k, v)]
    n = len(call.layout.rows(call.rank))
    got = f"got {', '.join(map(str, shapes))}"
    if (
        any(len(shape) != 4 or shape[2] != n for shape in shapes)
        or shapes[1] != shapes[2]
        or shapes[0][::3] != shapes[1][::3]
    ):
        raise ValueError(
            f"{_SDPA} takes q (B,H,n,D), k and v (B,G,n,D), where rank {call.rank} has n = {n} rows"
            f" of {sum(call.layout.lengths)} tokens, {got}"
        )
    if call.packed and len(q) != 1:
        raise ValueError(f"{_SDPA} takes B = 1 where lengths are given, {got}")
    if not enable_gqa and shapes[0][1] != shapes[1][1]:
        raise ValueError(f"{_SDPA} takes fewer heads of k and v with enable_gqa=True, {got}")


def _as_autocast(*tensors: Tensor) -> Iterable[Tensor]:
    """As autocast casts SDPA's."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return [x if x.dtype is torch.float64 else x.to(dtype) for x in tensors]
