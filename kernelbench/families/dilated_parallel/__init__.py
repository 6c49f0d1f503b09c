"""Dilated attention over ranks, each with a GPU of its own and as many tokens: what is sent and
what is computed, forward and gradients.

Shapes: N tokens of all W ranks, L = N / W of a rank, H heads, D head size; q, k, v, o (1,L,H,D).
Source: Ding et al., LongNet, 2023 (arXiv:2307.02486, §3.2).
"""

from collections.abc import Iterator
from typing import Any

from kernelbench.families import dilated_attention
from kernelbench.families._ranks import all_rows
from kernelbench.families.attention import trials
from kernelbench.families.attention.providers import serves
from kernelbench.families.dilated_attention.traffic import covered
from kernelbench.families.dilated_parallel.case import ParallelDilatedCase, inputs, shards
from kernelbench.families.dilated_parallel.providers import (
    all_keys_serves,
    baseline,
    ours_serves,
    ring_serves,
    torch_fused,
    triton_all_keys,
    triton_fused,
)
from kernelbench.spec import Cost, Family, Mode, Provider, Role, Tensors


def oracle(case: ParallelDilatedCase, a: Tensors) -> Iterator[tuple[Any, ...]]:
    """This rank's rows of what `dilated_attention`'s oracle says of all tokens, in fp64. Gradients
    of keys are sums over all ranks, whose upstream gradients are gathered for it."""
    whole = dict(a)
    if case.mode is not Mode.fwd and case.world > 1:
        whole["grad_o"] = all_rows(a["grad_o"][0]).unsqueeze(0)
    for name, _, values in dilated_attention.oracle(case.whole, whole):
        yield name, ..., values[:, case.own]


def cost(case: ParallelDilatedCase) -> Cost:
    """The mean of all ranks, as of `dilated_attention`; of keys each row that a rank sees, whoever
    has it."""
    forward = 4 * case.D * case.whole.pairs // case.world
    flops = {Mode.fwd: forward, Mode.bwd: forward * 5 // 2, Mode.full: forward * 7 // 2}
    row = case.D * case.dtype.bytes
    q, keys = covered(case.whole) * row // case.world, case.keys_seen * row // case.world
    read = {Mode.fwd: q + 2 * keys, Mode.bwd: 2 * q + 2 * keys, Mode.full: 2 * q + 2 * keys}
    written = {Mode.fwd: 1, Mode.bwd: 3, Mode.full: 4}[case.mode] * case.rows * case.H * row
    return Cost(flops[case.mode], read[case.mode], written)


def _check(dtypes: str, modes: str, **axes: Any) -> list[Any]:
    return [*ParallelDilatedCase.grid(dtype=dtypes.split(), mode=modes.split(), world=1, **axes)]


def _provider(name: str, role: Role, build: Any, unsupported: Any, *requires: str) -> Provider[Any]:
    return Provider(name, role, build, prepare=shards, requires=requires, unsupported=unsupported)


FAMILY = Family(
    name="dilated_parallel",
    title="Dilated attention over ranks",
    case=ParallelDilatedCase,
    inputs=inputs,
    outputs=lambda case: ("o",),
    grads=lambda case: ("q", "k", "v"),
    oracle=oracle,
    cost=cost,
    trials=trials,
    checks=(
        *_check("fp32", "fwd bwd", N=24, branches="8r1_24r2", H=2, D=16, causal=True),
        *_check("fp32", "bwd", N=24, branches="8r2_24r4", H=3, D=8, combine="mean"),
        *_check("fp16 bf16", "full", N=32, branches="16r1_32r3", H=2, D=16, offsets="head_group"),
    ),
    providers=(
        _provider("baseline", Role.baseline, baseline, all_keys_serves),
        _provider("torch_fused", Role.torch_fused, torch_fused, ring_serves),
        _provider("triton_fused", Role.triton_fused, triton_fused, ours_serves, "triton"),
        _provider("triton_all_keys", Role.ablation, triton_all_keys, serves, "triton"),
    ),
)
