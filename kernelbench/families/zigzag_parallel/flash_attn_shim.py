"""flash_attn's interface on PyTorch's own FlashAttention-2, as far as ring_flash_attn 0.1.8 calls
it, for where flash_attn itself is not installed.

Shapes: T rows of all sequences of q, H heads of q, G of k and v, D head size; q, o (T,H,D), k, v
(·,G,D), lse (H,T); or of B samples, q, o (B,N,H,D), k, v (B,·,G,D), lse (B,H,N). lse is natural, in
fp32, as of flash_attn 2.6 and later.

On a GPU: `aten._flash_attention_forward` and `_backward`, bf16 and fp16; these return gradients,
which flash_attn writes into the caller's tensors, so that here they are copied once more. On a CPU:
the formula in fp64.
"""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

INTERFACE = "flash_attn.flash_attn_interface"
PACKAGE = "ring_flash_attn"
ADAPTERS = f"{PACKAGE}.adapters"
# What flash_attn's functions take, and the values that are served, by name.
SERVED = {
    "dropout_p": (0,),
    "window_size_left": (-1,),
    "window_size_right": (-1,),
    "alibi_slopes": (None,),
    "deterministic": (False,),
    "return_softmax": (False,),
}


def load() -> ModuleType:
    """ring_flash_attn, over this module's functions where flash_attn cannot be found.

    They are in sys.modules only while it is imported. Its adapters, which import transformers, are
    left out. Raises what the import raises.
    """
    if PACKAGE in sys.modules:
        return sys.modules[PACKAGE]
    with _in_place(_adapters() | _missing()):
        return importlib.import_module(PACKAGE)


def _adapters() -> dict[str, ModuleType]:
    module = ModuleType(ADAPTERS)
    for name in ("substitute_hf_flash_attn", "update_ring_flash_attn_params"):
        setattr(module, name, None)
    return {ADAPTERS: module}


def _missing() -> dict[str, ModuleType]:
    """What of flash_attn is not there, made of this module's functions."""
    missing = dict[str, ModuleType]()
    if not _found("flash_attn"):
        missing["flash_attn"] = ModuleType("flash_attn")
    if missing or not _found(INTERFACE):  # FlashAttention-4 is a flash_attn without it
        missing[INTERFACE] = interface = ModuleType(INTERFACE)
        for function in (forward, backward, varlen_forward, varlen_backward):
            setattr(interface, f"_flash_attn_{function.__name__}", function)
    return missing


def _found(module: str) -> bool:
    return module in sys.modules or importlib.util.find_spec(module) is not None


@contextmanager
def _in_place(modules: dict[str, ModuleType]) -> Iterator[None]:
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]


class _Call(NamedTuple):
    """Where sequences begin in q and in k, and the longest of each; None for samples of one
    length. causal: the last query sees the last key."""

    starts: tuple[Tensor | None, Tensor | None]
    longest: tuple[int, int]
    scale: float
    causal: bool


def _call(q: Tensor, k: Tensor, given: dict[str, Any]) -> _Call:
    """Of what flash_attn's functions are given besides tensors. Raises NotImplementedError for
    options that are not served."""
    starts = given.pop("cu_seqlens_q", None), given.pop("cu_seqlens_k", None)
    longest = given.pop("max_seqlen_q", q.shape[1]), given.pop("max_seqlen_k", k.shape[1])
    call = _Call(starts, longest, given.pop("softmax_scale"), given.pop("causal"))
    for name, value in given.items():
        if value not in SERVED.get(name, ()):
            raise NotImplementedError(
                f"flash_attn is not installed, and what stands in for it takes no {name}={value!r}"
            )
    return call


Forward = tuple[Tensor, Tensor, None, None]


def forward(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Forward:
    """o and lse; in the places of a dropout's mask and its seed, None."""
    call = _call(q, k, given)
    if not q.is_cpu:
        o, lse, *_ = torch.ops.aten._flash_attention_forward(
            *(q, k, v, *call.starts, *call.longest, 0.0, call.causal, False), scale=call.scale
        )
        return o, lse, None, None
    o, lse = torch.empty_like(q), q.new_empty(_lse_shape(q), dtype=torch.float32)
    for q_s, k_s, v_s, o_s, lse_s in _sequences(call, (q, k, v, o), lse):
        scores, _, values = _scores(q_s, k_s, v_s, call)
        logarithm = scores.logsumexp(-1)
        lse_s.copy_(logarithm)
        o_s.copy_(torch.einsum("hnm,mhd->nhd", (scores - logarithm[..., None]).exp(), values))
    return o, lse, None, None


def varlen_forward(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Forward:
    """`forward` of packed sequences."""
    return forward(q, k, v, **given)


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, softmax_lse: Tensor, **given: Any
) -> None:
    """Writes dq, dk and dv, three more arguments, by o and lse, which may be of more keys."""
    written = [given.pop(name) for name in ("dq", "dk", "dv")]
    call = _call(q, k, given)
    if not q.is_cpu:
        found = torch.ops.aten._flash_attention_backward(
            *(dout, q, k, v, out, softmax_lse, *call.starts, *call.longest, 0.0, call.causal),
            *_unused(q.device),
            scale=call.scale,
        )
        for gradient, values in zip(written, found, strict=True):
            gradient.copy_(values)
        return
    tensors = (q, k, v, out, dout, *written)
    for q_s, k_s, v_s, o_s, do_s, *gradients, lse_s in _sequences(call, tensors, softmax_lse):
        for gradient, values in zip(
            gradients, _gradients((do_s, o_s, lse_s), (q_s, k_s, v_s), call), strict=True
        ):
            gradient.copy_(values)


def varlen_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, softmax_lse: Tensor, **given: Any
) -> None:
    """`backward` of packed sequences."""
    backward(dout, q, k, v, out, softmax_lse, **given)


@cache
def _unused(device: torch.device) -> tuple[Tensor, Tensor]:
    """In the places of a dropout's seed."""
    return torch.zeros(2, dtype=torch.uint64, device=device), torch.empty(0, device=device)


def _lse_shape(q: Tensor) -> tuple[int, ...]:
    return (q.shape[1], q.shape[0]) if q.dim() == 3 else (q.shape[0], q.shape[2], q.shape[1])


def _sequences(call: _Call, tensors: tuple[Tensor, ...], lse: Tensor) -> Iterator[Any]:
    """Of each sequence its part of every tensor, of which those that lie as k are the second and
    third, and the last two of eight; then its part of lse."""
    of_keys = (1, 2, 6, 7)
    if call.starts[0] is None:
        parts = [tensor.unbind() for tensor in (*tensors, lse)]
    else:
        rows, keys = ([*starts.diff().tolist()] for starts in call.starts if starts is not None)
        parts = [
            tensor.split(keys if place in of_keys else rows) for place, tensor in enumerate(tensors)
        ]
        parts.append(lse.split(rows, 1))
    return zip(*parts, strict=True)


def _scores(q: Tensor, k: Tensor, v: Tensor, call: _Call) -> tuple[Tensor, Tensor, Tensor]:
    """Scores (H,n,m), −∞ where a key is not seen, and k and v of each head of q, (m,H,D)."""
    k, v = (x.double().repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = torch.einsum("nhd,mhd->hnm", q.double(), k) * call.scale
    if call.causal:
        later = torch.ones(len(q), len(k), dtype=torch.bool).triu(1 + len(k) - len(q))
        scores = scores.masked_fill(later, -torch.inf)
    return scores, k, v


def _gradients(
    answer: tuple[Tensor, Tensor, Tensor], tensors: tuple[Tensor, Tensor, Tensor], call: _Call
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv of a sequence. answer: do, o and lse."""
    q, k, v = tensors
    do, o, lse = (x.double() for x in answer)
    scores, keys, values = _scores(q, k, v, call)
    p = (scores - lse[..., None]).exp()
    delta = (do * o).sum(-1).T[..., None]
    ds = p * (torch.einsum("nhd,mhd->hnm", do, values) - delta) * call.scale
    dk, dv = torch.einsum("hnm,nhd->mhd", ds, q.double()), torch.einsum("hnm,nhd->mhd", p, do)
    shared = (x.unflatten(1, (k.shape[1], -1)).sum(2) for x in (dk, dv))
    return torch.einsum("hnm,mhd->nhd", ds, keys), *shared
