"""Zigzag attention by PyTorch and by our kernels."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from itertools import accumulate
from typing import Any, NamedTuple

import torch

from kernelbench.families._varlen import (
    Packed,
    counts_keys,
    one_by_one,
    operator,
    takes,
    varlen,
)
from kernelbench.families.attention.providers import flex, serves
from kernelbench.families.providing import compiled, no_compiler
from kernelbench.families.zigzag_attention.case import CHUNKS, Order, Piece, ZigzagCase, places
from kernelbench.spec import Call, Device, Mode, Tensors


def in_order(case: ZigzagCase) -> Callable[[torch.Tensor], torch.Tensor]:
    """Keys, in the order of documents: a copy where they lie otherwise."""
    if case.order == Order.sequence:
        return lambda x: x
    place = cache(places(case).to)
    return lambda x: x.index_select(0, place(x.device))


def prefixes(case: ZigzagCase, chunk: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """The keys that a chunk sees of every document, one after another: a copy unless they lie so,
    as ring-flash-attention's `execute_grouped_attention` makes it."""
    spans = [(piece.start, piece.start + case.sees(piece)) for piece in case.pieces[chunk]]
    spans = [(start, end) for start, end in spans if end > start] or [(0, 0)]
    if len(spans) == 1:
        [(start, end)] = spans
        return lambda x: x[start:end]
    return lambda x: torch.cat([x[start:end] for start, end in spans])


def baseline(case: ZigzagCase, config: Any) -> Call:
    """A call for each chunk, as ring-flash-attention's `execute_grouped_attention` makes them: its
    keys are copied together, then PyTorch's operator for packed sequences, causal from the end; on
    a CPU, and in fp32, SDPA of each document."""
    order = in_order(case)
    cuts = [prefixes(case, chunk) for chunk in (0, 1)]
    packs = [packed(case, chunk) for chunk in (0, 1)]
    narrow = takes(case.dtype) is None
    at_once = [varlen(pack, case.causal, case.Hq // case.Hk) for pack in packs]
    apart = [one_by_one(pack, case.causal) for pack in packs]

    def call(a: Tensors) -> Any:
        k, v = order(a["k"]), order(a["v"])
        attends = at_once if narrow and k.is_cuda else apart
        return tuple(
            attend(a[f"q{name}"], cut(k), cut(v))
            for name, cut, attend in zip(CHUNKS, cuts, attends, strict=True)
        )

    return call


def packed(case: ZigzagCase, chunk: int) -> Packed:
    rows = [piece for piece in case.pieces[chunk] if piece.rows]
    return Packed(
        (0, *accumulate(piece.rows for piece in rows)),
        (0, *accumulate(case.sees(piece) for piece in rows)),
    )


class Prefixes(NamedTuple):
    """Both chunks of all documents as sequences of one call, which see the first keys of their
    document where they lie: arguments of FlashAttention's functions for packed sequences."""

    cu_seqlens_q: torch.Tensor
    cu_seqlens_k: torch.Tensor
    seqused_k: torch.Tensor
    max_seqlen_q: int
    max_seqlen_k: int


def as_prefixes(case: ZigzagCase, device: torch.device) -> Prefixes:
    pieces = [piece for pieces in case.pieces for piece in pieces if piece.rows]
    rows, ends = [piece.rows for piece in pieces], [case.sees(piece) for piece in pieces]
    q_starts, k_starts, used = (
        torch.tensor(x, dtype=torch.int32, device=device)
        for x in ([0, *accumulate(rows)], [*(piece.start for piece in pieces), case.N], ends)
    )
    return Prefixes(q_starts, k_starts, used, max(rows), max(ends))


def one_call(case: ZigzagCase, attend: Callable[[Any, Any, Any, Prefixes], Any]) -> Call:
    """Both chunks in one call, their queries copied one after the other; keys stay where they
    are."""
    order = in_order(case)
    prefixes = cache(partial(as_prefixes, case))

    def call(a: Tensors) -> Any:
        k, v = order(a["k"]), order(a["v"])
        out = attend(torch.cat([a["q0"], a["q1"]]), k, v, prefixes(k.device))
        return tuple((out[0] if isinstance(out, tuple) else out).split(case.rows))

    return call


def torch_one_call(case: ZigzagCase, config: Any) -> Call:
    """PyTorch's operator for packed sequences, which is told how many keys of a document count."""
    attend = operator(case.causal, case.Hq // case.Hk)

    def both(q: Any, k: Any, v: Any, at: Prefixes) -> Any:
        sequences = at.cu_seqlens_q, at.cu_seqlens_k, at.max_seqlen_q, at.max_seqlen_k
        return attend(q, k, v, *sequences, seqused_k=at.seqused_k)

    return one_call(case, both)


def one_call_serves(case: ZigzagCase, device: Device) -> str | None:
    if case.mode is not Mode.fwd:
        return "PyTorch's operator has no gradients where it is told how many keys count"
    if device.kind != "cuda":
        return "PyTorch has this operator for GPUs alone"
    if not counts_keys():
        return "this PyTorch's varlen_attn cannot be told how many keys count (2.12 and later can)"
    return takes(case.dtype)


def torch_fused(case: ZigzagCase, config: Any) -> Call:
    """FlexAttention, compiled, of both chunks' queries, one after another, to the keys where they
    lie, with a block mask of what a query sees, made once."""
    from torch.nn.attention.flex_attention import create_block_mask

    masks: list[Any] = []
    T0, T1 = case.rows
    queries = torch.cat([_positions(pieces) for pieces in case.pieces], 1)
    keys = torch.empty(2, case.N, dtype=torch.int64)
    keys[:, places(case)] = _positions([Piece(n, 0, 0, n) for n in case.lengths])

    def mask(device: torch.device) -> Any:
        (q_document, q_at), (k_document, k_at) = queries.to(device), keys.to(device)

        def sees(b: Any, h: Any, query: Any, key: Any) -> Any:
            same = q_document[query] == k_document[key]
            return same & (q_at[query] >= k_at[key]) if case.causal else same

        sizes = None, None, T0 + T1, case.N
        return create_block_mask(sees, *sizes, device=device.type, _compile=device.type == "cuda")

    graph = compiled(flex(case.Hq != case.Hk))

    def call(a: Tensors) -> Any:
        if not masks:
            masks.append(mask(a["q0"].device))
        q = torch.cat([a["q0"], a["q1"]])
        o = graph(*(x.unsqueeze(0) for x in (q, a["k"], a["v"])), masks[0])
        return tuple(o[0].split((T0, T1)))

    return call


def _positions(pieces: Any) -> torch.Tensor:
    """Of each row, the number of its document and its position there, (2,T)."""
    rows = [
        torch.stack([torch.full((p.rows,), s), torch.arange(p.first, p.first + p.rows)])
        for s, p in enumerate(pieces)
    ]
    return torch.cat(rows, 1)


def flex_serves(case: ZigzagCase, device: Device) -> str | None:
    if device.kind == "cpu":
        return (
            "compiled for a CPU, FlexAttention is wrong where its mask reads tensors (torch 2.13)"
        )
    if case.D < 16:
        return f"FlexAttention takes D from 16 on, not {case.D}"
    if 0 in case.rows:
        return "a rank whose chunks of one kind are all empty"
    return no_compiler(case, device)


def ours(case: ZigzagCase, config: Any) -> Call:
    from kernelbench.kernels.zigzag_attention import zigzag_attention

    how: dict[str, Any] = {"causal": case.causal, "kv_order": case.order.value, "config": config}
    how |= dict(zip(("chunk_idx_0", "chunk_idx_1"), case.numbers, strict=True))
    how["total_chunks"] = 2 * case.W
    names = ("q0", "q1", "k", "v", "cu_seqlens_q0", "cu_seqlens_q1", "cu_seqlens_k")
    return lambda a: zigzag_attention(*(a[name] for name in names), **how)[:2]


def two_calls(case: ZigzagCase, config: Any) -> Call:
    """Our attention twice, once for each chunk: the core, with chunks as packed sequences, which
    reads every tile of keys for each of them."""
    from kernelbench.kernels.attention.checks import How
    from kernelbench.kernels.attention.parts import attend

    hows = [
        How(causal=case.causal, chunk=number if case.causal else None) for number in case.numbers
    ]

    def call(a: Tensors) -> Any:
        return tuple(
            attend(
                *(a[f"q{name}"], a["k"], a["v"]),
                starts=(a[f"cu_seqlens_q{name}"], a["cu_seqlens_k"]),
                how=how,
                config=config,
            )[0]
            for name, how in zip(CHUNKS, hows, strict=True)
        )

    return call


def triton_configs(case: ZigzagCase, device: Device) -> tuple[Any, ...]:
    from kernelbench.kernels.zigzag_attention.configs import configs

    found = configs(
        max(case.rows),
        case.N,
        case.Hq,
        case.D,
        arch=device.arch,
        itemsize=case.dtype.bytes,
        mode=case.mode.value,
    )
    if min(case.rows):
        return found
    # Hopper's kernel takes no empty chunk
    return tuple(dict.fromkeys(replace(config, hopper=None) for config in found))


def apart_configs(case: ZigzagCase, device: Device) -> tuple[Any, ...]:
    """Those whose chunks come one after the other in a program."""
    return tuple(config for config in triton_configs(case, device) if not config.shared)


def apart_serves(case: ZigzagCase, device: Device) -> str | None:
    if case.mode is Mode.bwd:
        return "its gradients are those of triton_fused"
    return serves(case, device)


def core_configs(case: ZigzagCase, device: Device) -> tuple[Any, ...]:
    """Gradients of chunks are `tl`'s."""
    from kernelbench.kernels.attention.configs import Pattern, configs

    packed = min(case.rows) > 0  # Hopper's kernel takes no empty chunk
    found = configs(
        1,
        max(case.rows),
        case.Hq,
        case.D,
        arch=device.arch,
        mode=case.mode.value,
        itemsize=case.dtype.bytes,
        causal=case.causal,
        pattern=Pattern(case.N, case.Hq // case.Hk, plain=False, packed=packed),
    )
    return tuple(dict.fromkeys(config.plainly() for config in found))


def twice_serves(case: ZigzagCase, device: Device) -> str | None:
    """Where attention's core takes chunks as packed sequences."""
    if case.order == Order.zigzag:
        return "attention's core takes keys in the order of documents alone"
    if case.least or any(length % (2 * case.W) for length in case.lengths):
        return "attention's core takes documents that are all cut, of multiples of 2W tokens, alone"
    return serves(case, device)
