"""PyTorch's attention of packed sequences, and of one after the other."""

import inspect
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch

from kernelbench.nn.sdpa import sdpa
from kernelbench.spec import DType

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Packed(NamedTuple):
    """Where sequences begin, and the last one ends, among queries and among keys."""

    q_starts: tuple[int, ...]
    k_starts: tuple[int, ...]


def operator(causal: bool, group: int) -> Callable[..., Any]:
    """PyTorch's operator, FlashAttention-2, built in: of q, k, v, cu_seqlens of both, and the
    longest sequence of both. causal: the last query sees the last key. group: heads of q that share
    one of k and v."""
    from torch.nn.attention import varlen

    function: Any = varlen.varlen_attn
    known = inspect.signature(function).parameters
    options: dict[str, Any] = {}
    if "window_size" in known:
        options["window_size"] = (-1, 0 if causal else -1)
    else:
        options["is_causal"] = causal
    repeats = group > 1 and "enable_gqa" not in known
    if group > 1 and not repeats:
        options["enable_gqa"] = True

    def attend(q: Any, k: Any, v: Any, *sequences: Any, **more: Any) -> Any:
        if repeats:  # releases before 2.12 have no shared heads here
            k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        return function(q, k, v, *sequences, **options, **more)

    return attend


def counts_keys() -> bool:
    """Whether PyTorch's operator can be told how many keys of a sequence count."""
    from torch.nn.attention.varlen import varlen_attn

    return "seqused_k" in inspect.signature(varlen_attn).parameters


def takes(dtype: DType) -> str | None:
    """Why PyTorch's operator does not take a dtype, or None."""
    if dtype in (DType.bf16, DType.fp16):
        return None
    return f"PyTorch's varlen_attn takes bf16 and fp16, not {dtype}"


def varlen(pack: Packed, causal: bool, group: int) -> Attend:
    """The operator on sequences that are known before."""
    attend = operator(causal, group)
    longest = [max((end - start for start, end in pairwise(starts)), default=0) for starts in pack]
    starts_on = cache(
        lambda device: [torch.tensor(x, dtype=torch.int32, device=device) for x in pack]
    )

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if not len(q):
            return q
        o: torch.Tensor = attend(q, k, v, *starts_on(q.device), *longest)
        return o

    return call


def one_by_one(pack: Packed, causal: bool) -> Attend:
    """SDPA of each sequence, their results joined."""
    sizes = [[end - start for start, end in pairwise(starts)] for starts in pack]

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if not len(q):
            return q
        rows, keys = sizes
        parts = zip(q[None].split(rows, 1), *(x[None].split(keys, 1) for x in (k, v)), strict=True)
        found = [sdpa(*part, causal=causal) for part in parts]
        o = found[0] if len(found) == 1 else torch.cat(found, 1)
        return o[0].view(q.shape)

    return call
