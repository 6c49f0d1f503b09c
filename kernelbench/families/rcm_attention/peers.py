"""Attention with a skip by others and in 8 bits: FlashAttention-3 (also FP8) and -4,
SageAttention, ours in INT8/FP8.

Each replaces SDPA in front of one compiled skip, except ours, which includes the skip.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from kernelbench.families import _flash
from kernelbench.families._flash import FP8_ERROR, FP8_ON_OUTLIERS
from kernelbench.families._rcm import skip
from kernelbench.families.providing import DTYPES, compiled, no_compiler
from kernelbench.spec import (
    Accuracy,
    Call,
    Device,
    Distribution,
    DType,
    Mode,
    Provider,
    Role,
    Tensors,
    Traffic,
)

INT8_ERROR = 0.05  # relative, of the approximate class
OUTLIERS_ERROR = 0.7  # likewise where one value in 1024 is a hundred times as large
EIGHT_BITS = {"int8": 0.5, "fp8": 0.5}
PACKED = ("q8", "k8", "v8", "q_scale", "k_scale", "v_scale")


def _then_skip(case: Any, attend: Any, names: tuple[str, ...] = ("q", "k", "v")) -> Call:
    """attend: q, k, v → (B,N,H,D); then one compiled kernel, if there is a skip.

    names: of its arguments.
    """
    if not case.skips:
        return lambda a: attend(*(a[name] for name in names)).flatten(2)
    mix = compiled(skip(case.parametrization, case.sigma, torch.float32))
    return lambda a: mix(attend(*(a[name] for name in names)).flatten(2), a["x"], a["t"])


def fa4(case: Any, config: Any) -> Call:
    return _then_skip(case, _flash.fa4(case.causal))


def fa4_serves(case: Any, device: Device) -> str | None:
    return _flash.fa4_takes(case, device) or no_compiler(case, device)


def fa3(case: Any, config: Any) -> Call:
    """FlashAttention-3, its forward alone, as PyPI's fa3-fwd builds it: bf16, sm_90a."""
    return _then_skip(case, _flash.fa3(case.causal))


def fa3_fp8(case: Any, config: Any) -> Call:
    """FlashAttention-3 in FP8, one scale a head; a compiled function quantises inside the call."""
    attend = _flash.fa3_fp8(case.causal, DTYPES[case.dtype])
    return _then_skip(case, _flash.quantised(compiled(_flash.in_fp8), attend))


def fa3_prepack(case: Any, a: Tensors) -> Tensors:
    parts = _flash.in_fp8(a["q"], a["k"], a["v"])
    return {"x": a["x"], "t": a["t"]} | dict(zip(PACKED, [*parts[::2], *parts[1::2]], strict=True))


def fa3_fp8_prepacked(case: Any, config: Any) -> Call:
    """The attention alone, quantised already."""
    return _then_skip(case, _flash.fa3_fp8(case.causal, DTYPES[case.dtype]), PACKED)


def fp8_serves(case: Any, device: Device) -> str | None:
    if case.D % 16:
        return f"FlashAttention-3 in FP8 takes D in multiples of 16, not {case.D}"
    if case.inputs is Distribution.outliers:
        return FP8_ON_OUTLIERS
    if case.k_mean:
        return "nothing takes the mean off the keys before FP8 rounds them: no promise holds"
    return fa3_serves(case, device)


def fp8_traffic(case: Any, prepacked: bool = False) -> tuple[Traffic, ...]:
    """Each of q, k and v is read for its largest values and again to be quantised; the attention
    goes through memory to the skip. Left out: scales."""
    e = case.B * case.N * case.H * case.D
    u = e * case.dtype.bytes
    rows = [] if prepacked else [Traffic(name, read=2 * u) for name in "qkv"]
    rows += [Traffic(name, e, 0 if prepacked else e) for name in PACKED[:3]]
    if case.skips:
        rows += [Traffic("o", u, u), Traffic("x", read=u), Traffic("t", read=4 * case.B)]
    return (*rows, Traffic("y", write=u))


def fa3_serves(case: Any, device: Device) -> str | None:
    return _flash.fa3_takes(case, device) or no_compiler(case, device)


def sage1(case: Any, config: Any) -> Call:
    """Triton: INT8 scores, FP16 values. It subtracts the mean of k from k in place."""
    from sageattention import sageattn

    return _then_skip(case, partial(sageattn, tensor_layout="NHD", is_causal=case.causal))


def sage1_serves(case: Any, device: Device) -> str | None:
    if device.kind != "cuda":
        return "a GPU package; there is no GPU here"
    if case.mode is not Mode.fwd:
        return "SageAttention has no backward"
    if case.dtype not in (DType.bf16, DType.fp16):
        return f"SageAttention takes bf16 and fp16, not {case.dtype}"
    if case.D not in (64, 96, 128):
        return f"SageAttention 1 takes D of 64, 96 or 128, not {case.D}"
    return no_compiler(case, device)


def _options(case: Any) -> dict[str, Any]:
    return {
        "parametrization": case.parametrization.value,
        "sigma_data": case.sigma,
        "causal": case.causal,
    }


def int8(case: Any, config: Any) -> Call:
    """Quantisation, smoothing and transposition inside the call."""
    from kernelbench.kernels.rcm_int8 import rcm_attention_int8

    options = _options(case) | {"config": config}
    return lambda a: rcm_attention_int8(a["q"], a["k"], a["v"], a["x"], a["t"], **options)


def int8_configs(case: Any, device: Device) -> tuple[Any, ...]:
    from kernelbench.kernels.rcm_int8 import configs

    return configs(case.N, case.D, arch=device.arch)


def int8_serves(case: Any, device: Device) -> str | None:
    if case.mode is not Mode.fwd:
        return "8 bits have no backward: it is for inference"
    if case.dtype not in (DType.bf16, DType.fp16):
        return f"8 bits stand in for bf16 and fp16, not for {case.dtype}"
    return None if 16 <= case.D <= 128 else f"our 8-bit kernels take D from 16 to 128, not {case.D}"


def prepack(case: Any, a: Tensors) -> Tensors:
    from kernelbench.kernels import rcm_int8

    packed = rcm_int8.prepack(a["q"], a["k"], a["v"])
    return {"x": a["x"], "t": a["t"]} | {name: getattr(packed, name) for name in PACKED}


def int8_prepacked(case: Any, config: Any) -> Call:
    """As published figures of 8-bit attention count: the attention on quantised inputs."""
    from kernelbench.kernels import rcm_int8

    layouts: list[Any] = []  # of the packed buffers, by the first call: shapes alone decide it

    def call(a: Tensors) -> torch.Tensor:
        if not layouts:
            B, N, H, D = case.B, case.N, case.H, case.D
            like = a["x"].new_zeros(1).expand(B, N, H, D)
            layouts.append(rcm_int8.prepack(like, like, like))
        packed = replace(layouts[0], **{name: a[name] for name in PACKED})
        return rcm_int8.rcm_attention_prepacked(packed, a["x"], a["t"], **_options(case))

    return call


def int8_traffic(case: Any, prepacked: bool = False) -> tuple[Traffic, ...]:
    """k and v are read twice, for the mean and the largest values and then to be quantised; what
    is quantised is written and read at a byte an element, as from sm_89 on, with D of 64 or 128.
    Left out: scales and partial sums."""
    u = case.B * case.N * case.H * case.D * case.dtype.bytes
    small = case.B * case.N * case.H * (64 if case.D <= 64 else 128)
    rows = [] if prepacked else [
        Traffic("q", read=u), Traffic("k", read=2 * u), Traffic("v", read=2 * u),
    ]  # fmt: skip
    rows += [Traffic(name, small, 0 if prepacked else small) for name in ("q8", "k8", "v8")]
    if case.skips:
        rows += [Traffic("x", read=u), Traffic("t", read=4 * case.B)]
    return (*rows, Traffic("y", write=u))


def mutated(case: Any) -> tuple[str, ...]:
    return ("k",)


def peers(traffic: Any) -> tuple[Provider[Any], ...]:
    """traffic: of a kernel of attention and one of the skip."""
    approximate: dict[str, Any] = {"accuracy": Accuracy.approximate, "max_error": INT8_ERROR}
    approximate["promises"] = {"outliers": OUTLIERS_ERROR}
    eight: dict[str, Any] = approximate | {"precision": EIGHT_BITS, "requires": ("triton",)}
    three = approximate | {"max_error": FP8_ERROR, "precision": {"fp8": 1.0}}
    three["promises"] = {"outliers": FP8_ON_OUTLIERS}
    three["requires"] = ("fa3_fwd_interface",)
    return (
        Provider(
            "triton_int8", Role.triton_fused, int8, configs=int8_configs, traffic=int8_traffic,
            unsupported=int8_serves, **eight,
        ),
        Provider(
            "triton_int8_prepacked", Role.ablation, int8_prepacked, prepare=prepack,
            traffic=partial(int8_traffic, prepacked=True), unsupported=int8_serves,
            prepacked=True, **eight,
        ),
        Provider(
            "fa4", Role.peer, fa4, traffic=traffic, requires=("flash_attn",),
            unsupported=fa4_serves,
        ),
        Provider(
            "fa3", Role.peer, fa3, traffic=traffic, requires=("fa3_fwd_interface",),
            unsupported=fa3_serves,
        ),
        Provider(
            "fa3_fp8", Role.peer, fa3_fp8, traffic=fp8_traffic, unsupported=fp8_serves, **three,
        ),
        Provider(
            "fa3_fp8_prepacked", Role.peer, fa3_fp8_prepacked, prepare=fa3_prepack,
            traffic=partial(fp8_traffic, prepacked=True), unsupported=fp8_serves,
            prepacked=True, **three,
        ),
        Provider(
            "sage1", Role.peer, sage1, requires=("triton", "sageattention"), mutates=mutated,
            unsupported=sage1_serves, precision={"int8": 0.5, "fp16": 0.5}, **approximate,
        ),
    )  # fmt: skip
