"""Zigzag attention by others: FlashAttention-3 and -4, and ring attention."""

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import torch

from kernelbench.families import _flash
from kernelbench.families._varlen import Packed, takes
from kernelbench.families.zigzag_attention.case import CHUNKS, ZigzagCase
from kernelbench.families.zigzag_attention.providers import (
    in_order,
    one_call,
    packed,
    prefixes,
)
from kernelbench.families.zigzag_attention.traffic import (
    copied_traffic,
    one_call_traffic,
)
from kernelbench.spec import Call, Device, Mode, Provider, Role, Tensors, Traffic


def fa4(case: ZigzagCase, config: Any) -> Call:
    """FlashAttention-4. Forward one call for both chunks, on the keys where they lie; for gradients
    a call for each, on copies of the keys that it sees."""
    from flash_attn.cute import flash_attn_varlen_func

    if case.mode is Mode.fwd:
        return one_call(case, _on_prefixes(case, flash_attn_varlen_func))
    return _a_call_a_chunk(case, flash_attn_varlen_func)


def fa3(case: ZigzagCase, config: Any) -> Call:
    """FlashAttention-3, its forward alone, as PyPI's fa3-fwd builds it: one call for both chunks,
    on the keys where they lie."""
    from fa3_fwd_interface import flash_attn_varlen_func

    return one_call(case, _on_prefixes(case, flash_attn_varlen_func))


def _on_prefixes(case: ZigzagCase, function: Any) -> Any:
    return lambda q, k, v, at: function(q, k, v, causal=case.causal, **at._asdict())


def _a_call_a_chunk(case: ZigzagCase, function: Any) -> Call:
    order = in_order(case)
    cuts = [prefixes(case, chunk) for chunk in (0, 1)]
    packs = [packed(case, chunk) for chunk in (0, 1)]
    names_on = cache(lambda device: [_names(pack, device) for pack in packs])

    def call(a: Tensors) -> Any:
        k, v = order(a["k"]), order(a["v"])
        outs = []
        for name, cut, names in zip(CHUNKS, cuts, names_on(k.device), strict=True):
            q = a[f"q{name}"]
            out = function(q, cut(k), cut(v), causal=case.causal, **names) if len(q) else q
            outs.append(out[0] if isinstance(out, tuple) else out)
        return tuple(outs)

    return call


def _names(pack: Packed, device: torch.device) -> dict[str, Any]:
    """The arguments that say where sequences lie."""
    names: dict[str, Any] = {}
    for of, starts in zip("qk", pack, strict=True):
        names[f"cu_seqlens_{of}"] = torch.tensor(starts, dtype=torch.int32, device=device)
        names[f"max_seqlen_{of}"] = max((b - a for a, b in pairwise(starts)), default=0)
    return names


Part = Callable[..., tuple[torch.Tensor, torch.Tensor]]  # q, k, v → o, lse (H,T)


def ring(case: ZigzagCase, config: Any) -> Call:
    """Ring attention's algorithm, of zhuzilin's zigzag_ring_flash_attn, over PyTorch's operator: W
    calls, merged by their statistics in fp32. The keys of each rank, which a ring sends around, are
    there already, one rank's after another's. Of one document."""
    c, r, W = case.N // (2 * case.W), case.rank, case.W
    at_once = _operator()

    def call(a: Tensors) -> Any:
        k, v = (a[name].split(2 * c) for name in ("k", "v"))
        part: Part = at_once if a["k"].is_cuda else _by_hand
        q = torch.cat([a["q0"], a["q1"]])
        o, lse = part(q, k[r], v[r], case.causal)
        o = o.float()
        for step in range(1, W):
            source = (r - step) % W
            rows, keys = slice(0, 2 * c), slice(0, 2 * c)
            if case.causal and source < r:
                keys = slice(0, c)  # of an earlier rank the early keys, for all rows
            elif case.causal:
                rows = slice(c, 2 * c)  # of a later rank all keys, for the late rows
            o_s, lse_s = part(q[rows], k[source][keys], v[source][keys], False)
            share = torch.sigmoid(lse_s - lse[:, rows]).T[:, :, None]
            o[rows] -= share * (o[rows] - o_s)
            lse[:, rows] -= torch.nn.functional.logsigmoid(lse[:, rows] - lse_s)
        return tuple(o.to(q.dtype).split(c))

    return call


def _operator() -> Part:
    """PyTorch's, with its statistics."""

    @cache
    def starts(T: int, device: torch.device) -> torch.Tensor:
        return torch.tensor([0, T], dtype=torch.int32, device=device)

    def part(q: Any, k: Any, v: Any, causal: bool) -> tuple[torch.Tensor, torch.Tensor]:
        sequences = *(starts(len(x), x.device) for x in (q, k)), len(q), len(k)
        o, lse, *_ = torch.ops.aten._flash_attention_forward(
            q, k, v, *sequences, 0.0, causal, False
        )
        return o, lse

    return part


def _by_hand(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same where PyTorch has no such operator."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = torch.einsum("nhd,mhd->hnm", q, k).float() * q.shape[-1] ** -0.5
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores[0]).triu(1).bool(), float("-inf"))
    o = torch.einsum("hnm,mhd->nhd", scores.softmax(-1), v.float())
    return o, scores.logsumexp(-1)


def ring_serves(case: ZigzagCase, device: Device) -> str | None:
    if case.mode is not Mode.fwd:
        return "its gradients go around the ring a second time, which no single call does"
    if len(case.lengths) > 1 or case.order != "zigzag":
        return "one document alone, its keys one rank's after another's, as a ring sends them"
    return takes(case.dtype) if device.kind == "cuda" else None


def fa4_traffic(case: Any) -> tuple[Traffic, ...]:
    return one_call_traffic(case) if case.mode is Mode.fwd else copied_traffic(case)


PEERS = (
    Provider(
        "fa4", Role.peer, fa4, traffic=fa4_traffic, requires=("flash_attn",),
        unsupported=_flash.fa4_takes,
    ),
    Provider(
        "fa3", Role.peer, fa3, traffic=one_call_traffic, requires=("fa3_fwd_interface",),
        unsupported=_flash.fa3_takes,
    ),
    Provider("zigzag_ring", Role.peer, ring, unsupported=ring_serves),
)  # fmt: skip
