"""Zigzag Llama-3 context-parallel attention: one rank's two chunks of every document, to the keys
of all ranks, which are there already; forward and gradients.

Shapes: N tokens of all documents; T0 and T1 rows of the early and the late chunks; Hq heads of q,
Hk of k and v, D head size; q0, o0 (T0,Hq,D), q1, o1 (T1,Hq,D), k, v (N,Hk,D). Bound by matrix
multiplication. Sources: Llama 3 (arXiv:2407.21783, §3.3.2); zhuzilin and petrpan26,
ring-flash-attention.
"""

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch

from kernelbench.families._rcm import probabilities
from kernelbench.families.attention import trials as trials_of_attention
from kernelbench.families.attention.providers import serves
from kernelbench.families.zigzag_attention.case import (
    CHUNKS,
    Piece,
    ZigzagCase,
    inputs,
    places,
)
from kernelbench.families.zigzag_attention.peers import PEERS
from kernelbench.families.zigzag_attention.providers import (
    apart_configs,
    apart_serves,
    baseline,
    core_configs,
    flex_serves,
    one_call_serves,
    ours,
    torch_fused,
    torch_one_call,
    triton_configs,
    twice_serves,
    two_calls,
)
from kernelbench.families.zigzag_attention.traffic import (
    copied_traffic,
    fused_traffic,
    one_call_traffic,
    zigzag_traffic,
)
from kernelbench.spec import Cost, Family, Mode, Provider, Role, Tensors, Trial

ORACLE_ELEMENTS = 1 << 26  # scores of one part: 512 MiB a tensor in fp64


def oracle(case: ZigzagCase, a: Tensors) -> Iterator[tuple[Any, ...]]:
    """In fp64, a document at a time and parts of the rows of its chunks, all heads of them: see
    `families.attention.oracle`. A row at position p of its document sees the keys up to there."""
    place = places(case).to(a["k"].device)
    group = case.Hq // case.Hk
    at = [0, 0]
    for chunk, count in enumerate(case.rows):
        if not count:  # still an answer
            for name in (f"o{chunk}",) if case.mode is Mode.fwd else (f"o{chunk}", f"dq{chunk}"):
                yield name, slice(0, 0), a[f"q{chunk}"].double()
    for early, late in zip(*case.pieces, strict=True):
        lying = place[early.start : early.start + early.keys]
        k, v = (a[name][lying].double().transpose(0, 1) for name in ("k", "v"))  # (Hk,K,D)
        k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
        dk, dv = torch.zeros_like(k), torch.zeros_like(v)
        for chunk, piece in enumerate((early, late)):
            for rows in _parts(case, piece, at[chunk]):
                first = piece.first + rows.start - at[chunk]
                q = a[f"q{chunk}"][rows].double().transpose(0, 1)
                p = probabilities(q, k, first, case.causal)
                o = p @ v
                yield f"o{chunk}", rows, o.transpose(0, 1)
                if case.mode is Mode.fwd:
                    continue
                do = a[f"grad_o{chunk}"][rows].double().transpose(0, 1)
                ds = p * (do @ v.mT - (do * o).sum(-1, keepdim=True)) / math.sqrt(case.D)
                dv += p.mT @ do
                dk += ds.mT @ q
                yield f"dq{chunk}", rows, (ds @ k).transpose(0, 1)
            at[chunk] += piece.rows
        if case.mode is not Mode.fwd:
            for name, each in (("dk", dk), ("dv", dv)):
                yield name, lying, each.unflatten(0, (-1, group)).sum(1).transpose(0, 1)


def _parts(case: ZigzagCase, piece: Piece, start: int) -> Iterator[slice]:
    step = max(1, ORACLE_ELEMENTS // (case.Hq * max(piece.keys, 1)))
    for first in range(start, start + piece.rows, step):
        yield slice(first, min(first + step, start + piece.rows))


def trials(case: ZigzagCase) -> Mapping[str, Trial]:
    """As of attention; of queries there are two tensors."""
    made = trials_of_attention(case)
    if case.mode is Mode.fwd and not made["outliers"].refused:
        made["outliers"] = Trial(outliers=("q0", "q1", "k", "v"))
    return made


def cost(case: ZigzagCase) -> Cost:
    """Flops: of each query and a key that it sees, two products of D forward, five backward. Bytes:
    each query row and each key that any row sees once; gradients of all keys, zeros for the
    rest."""
    forward = 4 * case.Hq * case.D * case.pairs
    flops = {Mode.fwd: forward, Mode.bwd: forward * 5 // 2, Mode.full: forward * 7 // 2}
    e = case.dtype.bytes
    q = sum(case.rows) * case.Hq * case.D * e
    seen, every = (2 * n * case.Hk * case.D * e for n in (case.seen_by_any, case.N))
    if case.mode is Mode.fwd:
        return Cost(flops[case.mode], q + seen, q)
    written = q + every + (q if case.mode is Mode.full else 0)
    return Cost(flops[case.mode], 2 * q + seen, written)


def _check(dtypes: str, modes: str, **axes: Any) -> list[Any]:
    return [*ZigzagCase.grid(dtype=dtypes.split(), mode=modes.split(), **axes)]


CHECKS = (
    *_check("fp32", "fwd bwd", W=2, rank=1, N=40, Hq=2, Hk=1, D=16),
    *_check("fp16 bf16", "full", W=2, rank=0, N=32, Hq=2, Hk=1, D=16, documents="two"),
    *_check("fp32", "full", W=2, rank=1, N=32, Hq=2, Hk=2, D=24, order="zigzag"),
    *_check("fp32", "fwd", W=3, rank=2, N=50, Hq=2, Hk=1, D=16, documents="five"),
    *_check("fp16", "full", W=2, rank=0, N=64, Hq=1, Hk=1, D=16, documents="mixed", least=3),
    *_check("fp16", "fwd", W=4, rank=1, N=32, Hq=1, Hk=1, D=32, order="zigzag", causal=False),
    *_check("fp32", "fwd", W=3, rank=1, N=24, Hq=2, Hk=1, D=8, order="zigzag"),
    *_check("fp32", "full", W=4, rank=0, N=5, Hq=1, Hk=1, D=8),
    *_check("bf16", "full", W=4, rank=1, N=512, Hq=4, Hk=1, D=64, documents="two"),
    *_check("bf16", "full", W=4, rank=3, N=512, Hq=4, Hk=2, D=128, order="zigzag"),
)
APART, TOGETHER = partial(zigzag_traffic, False), partial(zigzag_traffic, True)

FAMILY = Family(
    name="zigzag_attention",
    title="Zigzag context-parallel attention of one rank",
    case=ZigzagCase,
    inputs=inputs,
    outputs=lambda case: tuple(f"o{name}" for name in CHUNKS),
    grads=lambda case: ("q0", "q1", "k", "v"),
    oracle=oracle,
    cost=cost,
    trials=trials,
    checks=CHECKS,
    providers=(
        Provider("baseline", Role.baseline, baseline, traffic=copied_traffic),
        Provider("torch_fused", Role.torch_fused, torch_fused, unsupported=flex_serves),
        Provider(
            "torch_one_call",
            Role.torch_fused,
            torch_one_call,
            traffic=one_call_traffic,
            unsupported=one_call_serves,
        ),
        Provider(
            "triton_fused",
            Role.triton_fused,
            ours,
            configs=triton_configs,
            traffic=fused_traffic,
            requires=("triton",),
            unsupported=serves,
        ),
        Provider(
            "triton_apart",
            Role.ablation,
            ours,
            configs=apart_configs,
            traffic=TOGETHER,
            requires=("triton",),
            unsupported=apart_serves,
        ),
        Provider(
            "triton_two_calls",
            Role.ablation,
            two_calls,
            configs=core_configs,
            traffic=APART,
            requires=("triton",),
            unsupported=twice_serves,
        ),
        *PEERS,
    ),
)
