"""Zigzag attention by others: FlashAttention-3 and -4, and ring attention."""

from collections.abc import Callable
from typing import Any

import torch

from kernelbench.families import _flash
from kernelbench.families._varlen import takes
from kernelbench.families.zigzag_attention.case import CHUNKS, ZigzagCase
from kernelbench.families.zigzag_attention.providers import in_order, packed, prefixes, seen
from kernelbench.spec import Call, Device, Mode, Provider, Role, Tensors


def fa4(case: ZigzagCase, config: Any) -> Call:
    """FlashAttention-4, a call for each chunk: forward on the keys where they lie, of which it is
    told how many count; with gradients on copies of those, as it has none of the other."""
    from flash_attn.cute import flash_attn_varlen_func

    return _a_call_a_chunk(case, flash_attn_varlen_func, copies=case.mode is not Mode.fwd)


def fa3(case: ZigzagCase, config: Any) -> Call:
    """FlashAttention-3, its forward alone, as PyPI's fa3-fwd builds it: a call for each chunk, on
    the keys where they lie, of which it is told how many count."""
    from fa3_fwd_interface import flash_attn_varlen_func

    return _a_call_a_chunk(case, flash_attn_varlen_func, copies=False)


def _a_call_a_chunk(case: ZigzagCase, function: Any, copies: bool) -> Call:
    order = in_order(case)
    cuts = [prefixes(case, chunk) for chunk in (0, 1)]
    known: dict[torch.device, list[dict[str, Any]]] = {}

    def call(a: Tensors) -> Any:
        k, v = order(a["k"]), order(a["v"])
        if k.device not in known:
            known[k.device] = [_names(case, chunk, copies, k.device) for chunk in (0, 1)]
        outs = []
        for name, cut, names in zip(CHUNKS, cuts, known[k.device], strict=True):
            keys = (cut(k), cut(v)) if copies else (k, v)
            out = function(a[f"q{name}"], *keys, causal=case.causal, **names)
            outs.append(out[0] if isinstance(out, tuple) else out)
        return tuple(outs)

    return call


def _names(case: ZigzagCase, chunk: int, copies: bool, device: torch.device) -> dict[str, Any]:
    """The arguments that say where sequences lie."""
    pieces = [piece for piece in case.pieces[chunk] if piece.rows]
    pack = packed(case, chunk)
    ends = [seen(case, piece) for piece in pieces]
    starts = pack.k_starts if copies else (*(piece.start for piece in pieces), case.N)
    names: dict[str, Any] = {"cu_seqlens_q": pack.q_starts, "cu_seqlens_k": starts}
    if not copies:
        names["seqused_k"] = ends
    names = {name: torch.tensor(x, dtype=torch.int32, device=device) for name, x in names.items()}
    names["max_seqlen_q"] = max((piece.rows for piece in pieces), default=0)
    names["max_seqlen_k"] = max(ends, default=0)
    return names


Part = Callable[..., tuple[torch.Tensor, torch.Tensor]]  # q, k, v → o, lse (H,T)


def ring(case: ZigzagCase, config: Any) -> Call:
    """Ring attention's algorithm, of zhuzilin's zigzag_ring_flash_attn, over PyTorch's operator, on
    keys that are there already: W calls, merged by their statistics in fp32. Of one document."""
    c, r, W = case.N // (2 * case.W), case.rank, case.W
    chunk = [slice(i * c, (i + 1) * c) for i in range(2 * W)]

    def both(x: torch.Tensor, rank: int) -> torch.Tensor:
        return torch.cat([x[chunk[rank]], x[chunk[2 * W - 1 - rank]]])

    def call(a: Tensors) -> Any:
        k, v = a["k"], a["v"]
        part: Part = _operator if k.is_cuda else _by_hand
        q = torch.cat([a["q0"], a["q1"]])
        o, lse = part(q, both(k, r), both(v, r), case.causal)
        o = o.float()
        for step in range(1, W):
            source = (r - step) % W
            if source < r or not case.causal:
                rows = slice(0, 2 * c)
                keys = chunk[source]
                k_s, v_s = (k[keys], v[keys]) if case.causal else (both(k, source), both(v, source))
            else:
                rows, k_s, v_s = slice(c, 2 * c), both(k, source), both(v, source)
            o_s, lse_s = part(q[rows], k_s, v_s, False)
            share = torch.sigmoid(lse_s - lse[:, rows]).T[:, :, None]
            o[rows] -= share * (o[rows] - o_s)
            lse[:, rows] -= torch.nn.functional.logsigmoid(lse[:, rows] - lse_s)
        return tuple(o.to(q.dtype).split(c))

    return call


def _operator(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1) if group > 1 else x for x in (k, v))
    starts = [torch.tensor([0, len(x)], dtype=torch.int32, device=q.device) for x in (q, k)]
    o, lse, *_ = torch.ops.aten._flash_attention_forward(
        q, k, v, *starts, len(q), len(k), 0.0, causal, False
    )
    return o, lse


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
    if len(case.lengths) > 1 or case.least or case.N % (2 * case.W) or case.order != "sequence":
        return "one document that is cut evenly, in order, alone"
    return takes(case.dtype) if device.kind == "cuda" else None


def peers(traffic: Any) -> tuple[Provider[Any], ...]:
    """traffic: of attention with a kernel for each chunk."""
    return (
        Provider(
            "fa4", Role.peer, fa4, traffic=traffic, requires=("flash_attn",),
            unsupported=_flash.fa4_takes,
        ),
        Provider(
            "fa3", Role.peer, fa3, traffic=traffic, requires=("fa3_fwd_interface",),
            unsupported=_flash.fa3_takes,
        ),
        Provider("zigzag_ring", Role.peer, ring, unsupported=ring_serves),
    )  # fmt: skip
