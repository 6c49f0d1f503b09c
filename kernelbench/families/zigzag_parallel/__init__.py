"""Zigzag context-parallel attention over ranks, each with a GPU of its own: what is sent and what
is computed, forward and gradients.

Shapes: N tokens of all documents, L rows of a rank; Hq heads of q, Hk of k and v, D head size; q, o
(L,Hq,D), k, v (L,Hk,D). Sources: Llama 3 (arXiv:2407.21783, §3.3.2); zhuzilin,
ring-flash-attention.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch

from kernelbench.families._rcm import probabilities
from kernelbench.families.attention import trials
from kernelbench.families.zigzag_parallel.case import (
    ParallelCase,
    Piece,
    inputs,
    pieces,
    shards,
)
from kernelbench.families.zigzag_parallel.peers import PEERS
from kernelbench.families.zigzag_parallel.providers import (
    baseline,
    ours,
    ring,
    serves,
    torch_fused,
)
from kernelbench.spec import Cost, Family, Mode, Provider, Role, Tensors

ORACLE_ELEMENTS = 1 << 28  # scores of one part: 2 GiB a tensor in fp64


def oracle(case: ParallelCase, a: Tensors) -> Iterator[tuple[Any, ...]]:
    """In fp64, a document at a time and parts of its rows: forward, of this rank's alone. Gradients
    of keys are sums over all ranks, whose upstream gradients are gathered for it."""
    own, group, start = pieces(case.layout, case.rank), case.Hq // case.Hk, 0
    do = None if case.mode is Mode.fwd else case.layout.unshard(a["grad_o"]).double()
    for length in case.layout.lengths:
        rows, mine = slice(start, start + length), [p for p in own if p.start == start and length]
        q, k, v = (a[name][rows].double().transpose(0, 1) for name in "qkv")
        k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
        dk, dv = (k.new_zeros(k.shape if do is not None else 0) for _ in "kv")
        for first, end in _parts(case, length, mine):
            p = probabilities(q[:, first:end], k[:, :end], first, True)
            o = p @ v[:, :end]
            yield from _of_rank("o", o, mine, first)
            if do is None:
                continue
            upstream = do[rows][first:end].transpose(0, 1)
            ds = p * (upstream @ v[:, :end].mT - (upstream * o).sum(-1, keepdim=True))
            ds /= math.sqrt(case.D)
            yield from _of_rank("dq", ds @ k[:, :end], mine, first)
            dk[:, :end] += ds.mT @ q[:, first:end]
            dv[:, :end] += p.mT @ upstream
        for name, each in (("dk", dk), ("dv", dv)) if do is not None else ():
            yield from _of_rank(name, each.unflatten(0, (-1, group)).sum(1), mine, 0)
        start += length


def _parts(case: ParallelCase, length: int, mine: list[Piece]) -> Iterator[tuple[int, int]]:
    """Rows of a document, some at a time: forward, those that the rank has, else all."""
    step = max(1, ORACLE_ELEMENTS // (case.Hq * max(length, 1)))
    spans = [(piece.first, piece.first + piece.rows) for piece in mine]
    for begin, end in spans if case.mode is Mode.fwd else [(0, length)]:
        for first in range(begin, end, step):
            yield first, min(first + step, end)


def _of_rank(
    name: str, values: torch.Tensor, mine: list[Piece], first: int
) -> Iterator[tuple[str, slice, torch.Tensor]]:
    """Of values, (H,rows,D) from row `first` of a document on, those of a rank's pieces."""
    for piece in mine:
        low, high = max(first, piece.first), min(first + values.shape[1], piece.end)
        if low < high:
            at = slice(piece.row + low - piece.first, piece.row + high - piece.first)
            yield name, at, values[:, low - first : high - first].transpose(0, 1)


def cost(case: ParallelCase) -> Cost:
    """One rank's share: the same for all in zigzag order, else the mean. Flops: two products of D
    for each query and key that it sees forward, five backward. Bytes: its rows of q, and all keys
    of documents that are cut, once."""
    forward = 4 * case.Hq * case.D * case.pairs // case.world
    flops = {Mode.fwd: forward, Mode.bwd: forward * 5 // 2, Mode.full: forward * 7 // 2}
    e = case.dtype.bytes
    q = case.N // case.world * case.Hq * case.D * e
    row, cut = 2 * case.Hk * case.D * e, case.cut_tokens
    keys = (cut + max(case.N - cut, 0) // case.world) * row
    if case.mode is Mode.fwd:
        return Cost(flops[case.mode], q + keys, q)
    written = q + case.N // case.world * row + (q if case.mode is Mode.full else 0)
    return Cost(flops[case.mode], 2 * q + keys, written)


def _check(dtypes: str, modes: str, **axes: Any) -> list[Any]:
    return [*ParallelCase.grid(dtype=dtypes.split(), mode=modes.split(), **axes)]


FAMILY = Family(
    name="zigzag_parallel",
    title="Zigzag context-parallel attention over ranks",
    case=ParallelCase,
    inputs=inputs,
    outputs=lambda case: ("o",),
    grads=lambda case: ("q", "k", "v"),
    oracle=oracle,
    cost=cost,
    trials=trials,
    checks=(
        *_check("fp32", "fwd bwd", world=1, N=40, Hq=2, Hk=1, D=16, least=1),
        *_check("fp16 bf16", "full", world=1, N=96, Hq=2, Hk=1, D=32, documents="two", least=8),
    ),
    providers=(
        Provider("baseline", Role.baseline, baseline, prepare=shards),
        Provider("torch_fused", Role.torch_fused, torch_fused, prepare=shards),
        Provider(
            "triton_fused",
            Role.triton_fused,
            ours,
            prepare=shards,
            requires=("triton",),
            unsupported=serves,
        ),
        Provider(
            "triton_ring",
            Role.ablation,
            ring,
            prepare=shards,
            requires=("triton",),
            unsupported=serves,
        ),
        *PEERS,
    ),
)
