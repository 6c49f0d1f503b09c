"""Dilated attention: attention of every r-th token of segments of w, for some w and r, combined.

Shapes: B samples, N tokens, H heads, D head size; q, k, v, o (B,N,H,D). Bound by matrix
multiplication at long segments. Source: Ding et al., LongNet, 2023 (arXiv:2307.02486).
"""

import math
from collections.abc import Iterator
from typing import Any

import torch

from kernelbench.families.attention import trials
from kernelbench.families.attention.providers import serves
from kernelbench.families.dilated_attention.case import Combine, DilatedCase, inputs
from kernelbench.families.dilated_attention.providers import (
    baseline,
    fused_serves,
    gather_serves,
    ours,
    torch_fused,
    torch_serves,
    torch_strided,
    triton_gather,
)
from kernelbench.families.dilated_attention.traffic import (
    copied_traffic,
    covered,
    dilated_traffic,
    gathered_traffic,
    strided_traffic,
)
from kernelbench.nn.branches import Piece
from kernelbench.spec import Cost, Family, Mode, Provider, Role, Tensors

ORACLE_ELEMENTS = 1 << 26  # scores of one part: 512 MiB a tensor in fp64


class _Part:
    """Queries of one segment and head of a branch, and all its keys, in fp64; found by position."""

    def __init__(self, case: DilatedCase, a: Tensors, place: torch.Tensor, b: int, h: int) -> None:
        self._causal, self.b, self.h, self.place = case.causal, b, h, place
        self.q, self.k, self.v = (a[name][b, place, h].double() for name in ("q", "k", "v"))
        self._scale = 1 / math.sqrt(case.D)

    def scores(self, rows: slice) -> torch.Tensor:
        """Of some of the queries, −∞ for keys that they do not see."""
        found: torch.Tensor = self.q[rows] @ self.k.mT * self._scale
        hidden = self.place[None] > self.place[rows, None]
        return found.masked_fill(hidden, -math.inf) if self._causal else found


def _parts(case: DilatedCase, a: Tensors, pieces: tuple[Piece, ...]) -> Iterator[_Part]:
    order = _order(case).to(a["q"].device)
    for piece in pieces:
        for segment in range(piece.segments):
            first = piece.first + segment * piece.apart
            place = order[first : first + piece.rows * piece.rate : piece.rate]
            for b in range(case.B):
                for h in range(*piece.heads.indices(case.H)):
                    yield _Part(case, a, place, b, h)


def _order(case: DilatedCase) -> torch.Tensor:
    """Which token stands at each position of the sequence that is cut."""
    if not case.reorder:
        return torch.arange(case.N)
    from kernelbench.kernels.dilated_attention.orders import sequence

    return sequence(case.N, case.order.value, case.sides)


def _chunks(part: _Part) -> Iterator[slice]:
    M = len(part.place)
    step = max(1, ORACLE_ELEMENTS // M)
    for first in range(0, M, step):
        yield slice(first, min(first + step, M))


def oracle(case: DilatedCase, a: Tensors) -> Iterator[tuple[Any, ...]]:
    """In fp64, by the sets of positions that branches keep, a segment and head at a time.

    Combined by lse: with the scores s_b of a branch, lse = ln Σ_b Σ exp(s_b), P_b = exp(s_b − lse),
    o = Σ_b P_b v, δ = rowsum(dO⊙o): dS_b = P_b⊙(dO vᵀ − δ)/√D, dq = Σ dS_b k, dk = Σ dS_bᵀ q,
    dv = Σ P_bᵀ dO. For the mean each branch has lse, o and δ of its own, and dO over their number.
    """
    B, N, H, D = a["q"].shape
    how: dict[str, Any] = {"dtype": torch.float64, "device": a["q"].device}
    total, lse = torch.zeros(B, N, H, D, **how), torch.full((B, N, H), -math.inf, **how)
    mean, share = case.combine == Combine.mean, 1 / len(case.pieces)
    for pieces in case.pieces:
        for part in _parts(case, a, pieces):
            for rows in _chunks(part):
                at = part.b, part.place[rows], part.h
                s = part.scores(rows)
                if mean:
                    total[at] += s.softmax(-1) @ part.v * share
                    continue
                both = torch.logaddexp(lse[at], own := s.logsumexp(-1))
                total[at] *= (lse[at] - both).exp()[:, None]
                total[at] += (own - both).exp()[:, None] * (s.softmax(-1) @ part.v)
                lse[at] = both
    yield "o", slice(None), total
    if case.mode is not Mode.fwd:
        for name, gradient in _gradients(case, a, total, lse).items():
            yield name, slice(None), gradient


def _gradients(
    case: DilatedCase, a: Tensors, o: torch.Tensor, lse: torch.Tensor
) -> dict[str, torch.Tensor]:
    mean, share = case.combine == Combine.mean, 1 / len(case.pieces)
    sums = {f"d{name}": torch.zeros_like(o) for name in ("q", "k", "v")}
    for pieces in case.pieces:
        for part in _parts(case, a, pieces):
            keys = part.b, part.place, part.h
            for rows in _chunks(part):
                at = part.b, part.place[rows], part.h
                do = a["grad_o"][at].double() * (share if mean else 1)
                s = part.scores(rows)
                p = s.softmax(-1) if mean else (s - lse[at][:, None]).exp()
                delta = (do * (p @ part.v if mean else o[at])).sum(-1, keepdim=True)
                ds = p * (do @ part.v.mT - delta) / math.sqrt(case.D)
                sums["dq"][at] += ds @ part.k
                sums["dk"][keys] += ds.mT @ part.q[rows]
                sums["dv"][keys] += p.mT @ do
    return sums


def cost(case: DilatedCase) -> Cost:
    """Flops: of each query and a key that it sees in a branch, two products of D forward, five
    backward. Bytes: each row of inputs that a branch keeps once, each output once."""
    forward = 4 * case.D * case.pairs
    flops = {Mode.fwd: forward, Mode.bwd: forward * 5 // 2, Mode.full: forward * 7 // 2}
    row = case.D * case.dtype.bytes
    kept, every = covered(case) * row, case.B * case.N * case.H * row
    read, write = {Mode.fwd: (3, 1), Mode.bwd: (4, 3), Mode.full: (4, 4)}[case.mode]
    return Cost(flops[case.mode], read * kept, write * every)


def _check(dtypes: str, modes: str, **axes: Any) -> list[Any]:
    return [*DilatedCase.grid(dtype=dtypes.split(), mode=modes.split(), **axes)]


_SMALL: dict[str, Any] = {"B": 1, "N": 12, "branches": "4r1_12r2", "H": 2, "D": 8}
CHECKS = (
    *_check("fp32", "bwd", **_SMALL),
    *_check("fp16", "fwd", B=2, N=21, branches="8r1_24r3", H=2, D=16, causal=True),
    *_check("fp32", "full", B=1, N=20, branches="8r2_16r4", H=3, D=24, combine="mean"),
    *_check("fp16", "full", B=1, N=40, branches="16r1_64r3", H=2, D=16, causal=True),
    *_check("fp32", "fwd", B=1, N=36, branches="8r2_16r4", H=3, D=8, offsets="segment_index"),
    *_check("fp16", "fwd", B=1, N=48, branches="16r1_48r3", H=4, D=16, offsets="head_group"),
    *_check("fp32", "fwd", B=1, N=36, branches="36r1", H=1, D=8, order="hilbert", causal=True),
    *_check("fp32", "full", **_SMALL, order="tile", height=4, reorder=True),
    *_check("bf16", "full", B=1, N=300, branches="128r1_256r2", H=2, D=64),
    *_check("bf16", "full", B=1, N=300, branches="128r1_256r2", H=2, D=128, causal=True),
)

FAMILY = Family(
    name="dilated_attention",
    title="Dilated attention",
    case=DilatedCase,
    inputs=inputs,
    outputs=lambda case: ("o",),
    grads=lambda case: ("q", "k", "v"),
    oracle=oracle,
    cost=cost,
    trials=trials,
    checks=CHECKS,
    providers=(
        Provider(
            "baseline", Role.baseline, baseline, traffic=copied_traffic, unsupported=torch_serves
        ),
        Provider(
            "torch_strided",
            Role.torch_fused,
            torch_strided,
            traffic=strided_traffic,
            unsupported=torch_serves,
        ),
        Provider("torch_fused", Role.torch_fused, torch_fused, unsupported=fused_serves),
        Provider(
            "triton_fused",
            Role.triton_fused,
            ours,
            traffic=dilated_traffic,
            requires=("triton",),
            unsupported=serves,
        ),
        Provider(
            "triton_gather",
            Role.ablation,
            triton_gather,
            traffic=gathered_traffic,
            requires=("triton",),
            unsupported=gather_serves,
        ),
    ),
)
