"""Attention: o = softmax(q kᵀ/√D) v, dense or of packed documents, heads sharing keys or not.

Shapes: B samples, N queries and K keys of each, Hq heads of q, Hk of k and v, D head size; q, o
(B,N,Hq,D), k, v (B,K,Hk,D); of documents without B. Bound by matrix multiplication at long N.
Sources: Dao, FlashAttention-2, 2023 (backward); Ainslie et al., GQA, 2023.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from kernelbench.families._rcm import probabilities
from kernelbench.families.attention.case import AttentionCase, inputs
from kernelbench.families.attention.peers import peers
from kernelbench.families.attention.providers import (
    baseline,
    flex_serves,
    ours,
    ours_repeatable,
    repeatable,
    repeatable_configs,
    serves,
    torch_fused,
    torch_varlen,
    triton_configs,
    varlen_serves,
)
from kernelbench.families.attention.traffic import attention_traffic, one_by_one_traffic
from kernelbench.spec import Cost, DType, Family, Mode, Provider, Role, Tensors, Trial

ORACLE_ELEMENTS = 1 << 26  # scores of one chunk: 512 MiB a tensor in fp64


def oracle(case: AttentionCase, a: Tensors) -> Iterator[tuple[Any, ...]]:
    """In fp64, a sequence at a time and chunks of its query rows, all heads of them.

    With P = softmax(q kᵀ/√D) and O = P v: dv = Pᵀ dO, dP = dO vᵀ, dS = P⊙(dP − rowsum(dO⊙O))/√D,
    dq = dS k, dk = dSᵀ q; dk and dv are sums over the heads that share a head of k and v.
    """
    sequences: list[Any] = case.spans if case.packed else [*range(case.B)]
    for at in sequences:
        q, k, v = (a[name][at].double().transpose(0, 1) for name in ("q", "k", "v"))  # (H,N,D)
        group = case.Hq // case.Hk
        k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
        dk, dv = torch.zeros_like(k), torch.zeros_like(v)
        N, K = q.shape[1], k.shape[1]
        step = max(1, ORACLE_ELEMENTS // (case.Hq * max(K, 1)))
        for start in range(0, N, step):
            rows = slice(start, min(start + step, N))
            p = probabilities(q[:, rows], k, start + K - N, case.causal)
            o = p @ v
            place = _place(at, rows)
            yield "o", place, o.transpose(0, 1)
            if case.mode is Mode.fwd:
                continue
            do = a["grad_o"][place].double().transpose(0, 1)
            ds = p * (do @ v.mT - (do * o).sum(-1, keepdim=True)) / math.sqrt(case.D)
            dv += p.mT @ do
            dk += ds.mT @ q[:, rows]
            yield "dq", place, (ds @ k).transpose(0, 1)
        if case.mode is not Mode.fwd:
            for name, each in (("dk", dk), ("dv", dv)):
                yield name, at, each.unflatten(0, (-1, group)).sum(1).transpose(0, 1)


def _place(at: Any, rows: slice) -> Any:
    """Rows of a sample or, counted from its start, of a document."""
    return (
        slice(at.start + rows.start, at.start + rows.stop) if isinstance(at, slice) else (at, rows)
    )


def trials(case: Any) -> dict[str, Trial]:
    """o is linear in v. q and k keep their size: with larger scores the softmax picks one key, and
    rounding decides which; outliers do the same in fp32. case: with dtype and mode."""
    refused = "scores of 10⁴ leave fp32 too few digits for its budget"
    exact, narrow = case.dtype in (DType.fp32, DType.tf32), case.dtype is DType.fp16
    # One-hot rows of a softmax: dq and dk cancel, and only rounding is left.
    outliers = ("q", "k", "v") if case.mode is Mode.fwd else ("v",)
    return {
        "small": Trial({"v": 2.0**-4 if narrow else 2.0**-10}),
        "large": Trial({"v": 2.0**6}),
        "outliers": Trial(refused=refused) if exact else Trial(outliers=outliers),
    }


def cost(case: AttentionCase) -> Cost:
    """Flops: of each query and a key that it sees, two products of D forward, five backward (the
    score again, dP, dv, dq, dk). Bytes: each input and output once."""
    forward = 4 * case.Hq * case.D * case.pairs
    flops = {Mode.fwd: forward, Mode.bwd: forward * 5 // 2, Mode.full: forward * 7 // 2}
    e = case.dtype.bytes
    q, kv = case.B * case.N * case.Hq * case.D * e, 2 * case.B * case.keys * case.Hk * case.D * e
    read, write = q + kv, q
    if case.mode is Mode.bwd:
        return Cost(flops[case.mode], read + q, read)
    if case.mode is Mode.full:
        return Cost(flops[case.mode], read + q, write + read)
    return Cost(flops[case.mode], read, write)


def _check(dtypes: str, modes: str, **axes: Any) -> list[Any]:
    return [*AttentionCase.grid(dtype=dtypes.split(), mode=modes.split(), **axes)]


CHECKS = (
    *_check("fp32", "fwd bwd", B=2, N=33, Hq=2, Hk=1, D=16),
    *_check("fp32 fp16 bf16", "full", B=2, N=33, Hq=2, Hk=1, D=16),
    *_check("fp32 fp16", "full", B=1, N=19, Nk=40, Hq=2, Hk=2, D=24, causal=True),
    *_check("fp32", "fwd", B=1, N=41, Hq=2, Hk=1, D=16, causal=True, documents="mixed"),
    *_check("fp32", "full", B=1, N=41, Hq=2, Hk=1, D=16, causal=True, documents="four"),
    *_check("fp16", "bwd", B=1, N=40, Hq=1, Hk=1, D=32, documents="four"),
    *_check("bf16", "full", B=1, N=70, Hq=2, Hk=2, D=64, causal=True),
    *_check("bf16", "full", B=1, N=200, Hq=4, Hk=2, D=128),
    *_check("fp32", "fwd", B=1, N=1, Nk=50, Hq=4, Hk=1, D=8, causal=True),
)
TRAFFIC, OURS = partial(attention_traffic, False), partial(attention_traffic, True)

FAMILY = Family(
    name="attention",
    title="Attention, dense or of packed documents",
    case=AttentionCase,
    inputs=inputs,
    outputs=lambda case: ("o",),
    grads=lambda case: ("q", "k", "v"),
    oracle=oracle,
    cost=cost,
    trials=trials,
    checks=CHECKS,
    providers=(
        Provider("baseline", Role.baseline, baseline, traffic=one_by_one_traffic),
        Provider(
            "torch_fused", Role.torch_fused, torch_fused, traffic=TRAFFIC, unsupported=flex_serves
        ),
        Provider(
            "torch_varlen",
            Role.torch_fused,
            torch_varlen,
            traffic=TRAFFIC,
            unsupported=varlen_serves,
        ),
        Provider(
            "triton_fused",
            Role.triton_fused,
            ours,
            configs=triton_configs,
            traffic=OURS,
            requires=("triton",),
            unsupported=serves,
        ),
        Provider(
            "triton_deterministic",
            Role.ablation,
            ours_repeatable,
            configs=repeatable_configs,
            requires=("triton",),
            unsupported=repeatable,
        ),
        *peers(TRAFFIC),
    ),
)
