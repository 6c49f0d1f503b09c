"""Zigzag attention over ranks by others: ring_flash_attn, and PyTorch's context parallelism."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.attention import SDPBackend, sdpa_kernel

from kernelbench.families.zigzag_parallel.case import Order, ParallelCase, shards
from kernelbench.nn.sdpa import backends, unordered_sdpa
from kernelbench.spec import Call, Device, DType, Provider, Role


def ring_zigzag(case: ParallelCase, config: Any) -> Call:
    """ring_flash_attn's `zigzag_ring_flash_attn_varlen_func`, whose rows are as ours. What is
    padded is zero, so that it has no gradient."""
    from kernelbench.families.zigzag_parallel.flash_attn_shim import load

    attend, layout = load().zigzag_ring_flash_attn_varlen_func, case.layout
    lengths = [rows // case.world for rows in layout.cut]
    starts_on = cache(torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to)

    def call(a: Any) -> Any:
        q = a["q"]
        o = attend(q, a["k"], a["v"], starts_on(q.device), max(lengths), causal=True)
        padding = layout.padding(case.rank, q.device)
        return o if padding is None else o.masked_fill(padding[:, None, None], 0)

    return call


def ring_llama3(case: ParallelCase, config: Any) -> Call:
    """ring_flash_attn's `llama3_flash_attn_varlen_func`; heads of k and v that are gathered at a
    time: 4, as in the package's benchmark, or what divides 4 and them."""
    from kernelbench.families.zigzag_parallel.flash_attn_shim import load

    package = load()
    starts = torch.tensor([0, *accumulate(case.layout.lengths)], dtype=torch.int32)
    of_q, of_k, *longest, part = package.llama3_flash_attn_prepare_cu_seqlens(
        starts, True, case.rank, case.world
    )
    starts_on = cache(lambda device: (of_q.to(device), of_k.to(device)))
    attend = partial(
        package.llama3_flash_attn_varlen_func,
        heads_k_stride=math.gcd(case.Hk, 4),
        local_k_slice=part,
        causal=True,
    )
    return lambda a: attend(a["q"], a["k"], a["v"], *starts_on(a["q"].device), *longest)


def ring_takes(case: ParallelCase, device: Device) -> str | None:
    """Why ring_flash_attn cannot run a case, or None."""
    if case.world == 1:
        return "ring_flash_attn is for several ranks"
    if case.dtype not in (DType.bf16, DType.fp16):
        return f"flash_attn takes bf16 and fp16, not {case.dtype}"
    if case.D % 8 or case.D > 256:
        return f"flash_attn takes D in multiples of 8 up to 256, not {case.D}"
    return None


def zigzag_takes(case: ParallelCase, device: Device) -> str | None:
    if case.order != Order.zigzag:
        return "ring_flash_attn's zigzag path has rows in zigzag order"
    if whole := sum(owner is not None for owner in case.layout.owners):
        return (
            f"ring_flash_attn's zigzag path cuts every document, here {whole} of "
            f"{len(case.layout.owners)} are whole on a rank: least: 1 cuts them"
        )
    return ring_takes(case, device)


def llama3_takes(case: ParallelCase, device: Device) -> str | None:
    if case.order != Order.contiguous:
        return "ring_flash_attn's llama3 path has rows in contiguous order"
    return ring_takes(case, device)


def context_parallel(case: ParallelCase, config: Any) -> Call:
    """What `torch.distributed.tensor.experimental.context_parallel` makes of SDPA, on its best
    backend: a ring with its load balancer, whose rows of one document are as ours. k and v are
    repeated for heads that share them, as its users do. What the context does to buffers is left
    out: rows are there already."""
    from torch.distributed.device_mesh import DeviceMesh

    group, everyone = case.Hq // case.Hk, dist.group.WORLD
    assert everyone is not None
    mesh_on = cache(partial(DeviceMesh.from_group, everyone))

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if group > 1:
            k, v = (x.repeat_interleave(group, 1) for x in (k, v))
        fused: list[SDPBackend] = [x for x in backends(q.device) if x is not SDPBackend.MATH]
        with sdpa_kernel(fused, set_priority=True):
            return unordered_sdpa(q[None], k[None], v[None], causal=True)[0].view(q.shape)

    def call(a: Any) -> Any:
        tensors = [a[name] for name in "qkv"]
        inside = partial(_inside, mesh_on(tensors[0].device.type))
        if torch.is_grad_enabled():
            return _Inside.apply(*tensors, attend, inside)  # type: ignore[no-untyped-call]
        with inside():
            return attend(*tensors)

    return call


@contextmanager
def _inside(mesh: Any) -> Iterator[None]:
    """Where SDPA is a ring over a mesh."""
    from torch.distributed.tensor.experimental._context_parallel import _attention as torchs

    torchs._enable_context_parallel_dispatcher_impl(seq_dim=2, mesh=mesh)
    try:
        yield
    finally:
        torchs._disable_context_parallel_dispatcher_impl()


class _Inside(torch.autograd.Function):
    """A function that is called, and whose gradients are found, in a context."""

    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, v: Any, attend: Callable[..., Any], inside: Any) -> Any:
        ctx.leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        with torch.enable_grad(), inside():
            ctx.o = attend(*ctx.leaves)
        ctx.inside = inside
        return ctx.o.detach()

    @staticmethod
    def backward(ctx: Any, do: torch.Tensor) -> Any:
        with ctx.inside():
            return *torch.autograd.grad(ctx.o, ctx.leaves, do, retain_graph=True), None, None


def context_parallel_takes(case: ParallelCase, device: Device) -> str | None:
    """Why PyTorch's context parallelism cannot run a case, or None."""
    if case.world == 1:
        return "context_parallel is for several ranks"
    if case.order != Order.zigzag or case.layout.cut != (case.N,):
        return (
            "context_parallel takes one document in zigzag order, of a multiple of 2·world tokens "
            "that is cut"
        )
    if device.kind == "cpu":
        return "context_parallel has operators of GPUs alone"
    try:
        from torch.distributed.tensor.experimental._context_parallel import _attention as torchs
    except ImportError as error:
        return f"this PyTorch has no context parallelism that is known here ({error})"
    if not hasattr(torchs, "_enable_context_parallel_dispatcher_impl"):
        return "this PyTorch has no context parallelism that is known here"
    return None


PEERS = (
    Provider(
        "ring_flash_attn_zigzag",
        Role.peer,
        ring_zigzag,
        prepare=shards,
        requires=("ring_flash_attn",),
        unsupported=zigzag_takes,
    ),
    Provider(
        "ring_flash_attn_llama3",
        Role.peer,
        ring_llama3,
        prepare=shards,
        requires=("ring_flash_attn",),
        unsupported=llama3_takes,
    ),
    Provider(
        "torch_context_parallel",
        Role.torch_fused,
        context_parallel,
        prepare=shards,
        unsupported=context_parallel_takes,
    ),
)
