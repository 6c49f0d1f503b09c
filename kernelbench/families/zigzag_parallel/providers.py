"""Zigzag attention over ranks, by PyTorch and by our kernels."""

from collections.abc import Callable
from functools import cache
from itertools import accumulate
from typing import Any

import torch

from kernelbench.families._ranks import all_rows
from kernelbench.families._varlen import Packed, one_by_one, takes, varlen
from kernelbench.families.attention import providers as attention
from kernelbench.families.zigzag_parallel.case import Order, ParallelCase, pieces
from kernelbench.nn.sdpa import sdpa
from kernelbench.spec import Call, Device, Tensors


def baseline(case: ParallelCase, config: Any) -> Call:
    """As ring-flash-attention's llama3 path: k and v of all ranks in one message, in the order of
    documents, of which each chunk's prefix is copied; then PyTorch's operator for packed sequences,
    on a CPU and in fp32 SDPA of one after another."""
    return _attending(case, copied=True)


def _attending(case: ParallelCase, copied: bool) -> Call:
    own = pieces(case.layout, case.rank)
    spans = [slice(piece.start, piece.start + piece.end) for piece in own]
    pack = Packed(
        (0, *accumulate(piece.rows for piece in own)),
        (0, *accumulate(piece.end for piece in own)),
    )
    at_once = varlen(pack, True, case.Hq // case.Hk)
    apart, narrow = one_by_one(pack, True), takes(case.dtype) is None
    gathered = _gathering(case)
    real = torch.cat([torch.arange(0), *(torch.arange(p.row, p.row + p.rows) for p in own)])
    real_on = cache(real.to)

    def attend(q: torch.Tensor, both: torch.Tensor) -> torch.Tensor:
        if copied:
            cut = torch.cat([both[:0], *(both[span] for span in spans)])
            return (at_once if narrow and q.is_cuda else apart)(q, *cut.split(case.Hk, 1))
        parts = []
        for chunk, span in zip(q.split([piece.rows for piece in own]), spans, strict=True):
            tensors = chunk, *both[span].split(case.Hk, 1)
            parts.append(sdpa(*(x[None] for x in tensors), causal=True)[0].view(chunk.shape))
        return torch.cat([q[:0], *parts])

    def call(a: Tensors) -> Any:
        q, both = a["q"], gathered(torch.cat([a["k"], a["v"]], 1))
        rows = real_on(q.device)
        return torch.zeros_like(q).index_copy(0, rows, attend(q.index_select(0, rows), both))

    return call


def _gathering(case: ParallelCase) -> Callable[[torch.Tensor], torch.Tensor]:
    """All tokens in order, of each rank's rows."""
    layout = case.layout

    def gathered(x: torch.Tensor) -> torch.Tensor:
        if case.world > 1:
            x = all_rows(torch.nn.functional.pad(x, (0, 0, 0, 0, 0, layout.most_rows - len(x))))
        return x.index_select(0, layout.gathered(x.device))

    return gathered


def torch_fused(case: ParallelCase, config: Any) -> Call:
    """The same without a copy of keys for each chunk: SDPA, on its best backend, of each chunk to
    the keys of its document where they lie, causal from the end."""
    return _attending(case, copied=False)


def serves(case: ParallelCase, device: Device) -> str | None:
    """Why our kernels cannot run a case, or None."""
    if case.order != Order.zigzag:
        return "our kernels have rows in zigzag order"
    return attention.serves(case, device)


def ours(case: ParallelCase, config: Any) -> Call:
    from kernelbench.parallel import zigzag_attention_func

    layout = case.layout
    return lambda a: zigzag_attention_func(a["q"], a["k"], a["v"], layout)


def ring(case: ParallelCase, config: Any) -> Call:
    from kernelbench.parallel import zigzag_attention_func

    layout = case.layout
    return lambda a: zigzag_attention_func(a["q"], a["k"], a["v"], layout, cp_comm_type="p2p")
