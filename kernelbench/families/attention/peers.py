"""Attention by others: FlashAttention-3, also in FP8, and -4."""

from functools import partial
from typing import Any

from kernelbench.families import _flash
from kernelbench.families._flash import FP8_ERROR, FP8_ON_OUTLIERS
from kernelbench.families.providing import DTYPES, compiled, no_compiler
from kernelbench.spec import (
    Accuracy,
    Call,
    Device,
    Distribution,
    Provider,
    Role,
    Tensors,
    Traffic,
)

PACKED = ("q8", "k8", "v8", "q_scale", "k_scale", "v_scale")


def _of(case: Any, attend: _flash.Attend, names: tuple[str, ...] = ("q", "k", "v")) -> Call:
    names = (*names, "cu_seqlens") if case.packed else names
    return lambda a: attend(*(a[name] for name in names))


def fa4(case: Any, config: Any) -> Call:
    return _of(case, _flash.fa4(case.causal, case.longest))


def fa3(case: Any, config: Any) -> Call:
    """FlashAttention-3, its forward alone, as PyPI's fa3-fwd builds it: bf16, sm_90a."""
    return _of(case, _flash.fa3(case.causal, case.longest))


def fa3_fp8(case: Any, config: Any) -> Call:
    """FlashAttention-3 in FP8, one scale a head; a compiled function quantises inside the call."""
    attend = _flash.fa3_fp8(case.causal, DTYPES[case.dtype])
    return _of(case, _flash.quantised(compiled(_flash.in_fp8), attend))


def fa3_prepack(case: Any, a: Tensors) -> Tensors:
    parts = _flash.in_fp8(a["q"], a["k"], a["v"])
    return dict(zip(PACKED, [*parts[::2], *parts[1::2]], strict=True))


def fa3_fp8_prepacked(case: Any, config: Any) -> Call:
    """The attention alone, quantised already."""
    return _of(case, _flash.fa3_fp8(case.causal, DTYPES[case.dtype]), PACKED)


def fp8_serves(case: Any, device: Device) -> str | None:
    if case.D % 16:
        return f"FlashAttention-3 in FP8 takes D in multiples of 16, not {case.D}"
    if case.packed or case.Hq != case.Hk:
        return "its scales are of a head of a sample: not for documents, or heads that share keys"
    if case.inputs is Distribution.outliers:
        return FP8_ON_OUTLIERS
    return _flash.fa3_takes(case, device) or no_compiler(case, device)


def fp8_traffic(case: Any, prepacked: bool = False) -> tuple[Traffic, ...]:
    """Each of q, k and v is read for its largest values and again to be quantised. Left out:
    scales."""
    of = {"q": case.B * case.N * case.Hq * case.D}
    of |= dict.fromkeys(("k", "v"), case.B * case.keys * case.Hk * case.D)
    size = case.dtype.bytes
    rows = [] if prepacked else [Traffic(name, read=2 * n * size) for name, n in of.items()]
    rows += [Traffic(f"{name}8", n, 0 if prepacked else n) for name, n in of.items()]
    return (*rows, Traffic("o", write=of["q"] * size))


def peers(traffic: Any) -> tuple[Provider[Any], ...]:
    """traffic: of attention with its gradients."""
    three: dict[str, Any] = {
        "accuracy": Accuracy.approximate,
        "max_error": FP8_ERROR,
        "precision": {"fp8": 1.0},
        "promises": {"outliers": FP8_ON_OUTLIERS},
        "requires": ("fa3_fwd_interface",),
        "unsupported": fp8_serves,
    }
    return (
        Provider(
            "fa4", Role.peer, fa4, traffic=traffic, requires=("flash_attn",),
            unsupported=_flash.fa4_takes,
        ),
        Provider(
            "fa3", Role.peer, fa3, traffic=traffic, requires=("fa3_fwd_interface",),
            unsupported=_flash.fa3_takes,
        ),
        Provider("fa3_fp8", Role.peer, fa3_fp8, traffic=fp8_traffic, **three),
        Provider(
            "fa3_fp8_prepacked", Role.peer, fa3_fp8_prepacked, prepare=fa3_prepack,
            traffic=partial(fp8_traffic, prepacked=True), prepacked=True, **three,
        ),
    )  # fmt: skip
