"""Attention with a skip by others and in 8 bits: FlashAttention-3 (also FP8) and -4,
SageAttention, ours in INT8/FP8.

Each replaces SDPA in front of one compiled skip, except ours, which includes the skip.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import torch

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
FP8_ERROR = 0.1  # where all of q, k and v have three bits of mantissa; 0.053 on normal inputs
FP8_ON_OUTLIERS = "FP8 rounds the largest scores by more than 1, so that rows get other values"
OUTLIERS_ERROR = 0.7  # likewise where one value in 1024 is a hundred times as large
E4M3 = torch.float8_e4m3fn
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
    from flash_attn.cute import flash_attn_func

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
        out = flash_attn_func(q, k, v, causal=case.causal)
        return out[0] if isinstance(out, tuple) else out

    return _then_skip(case, attend)


def fa4_serves(case: Any, device: Device) -> str | None:
    if device.capability is None or device.capability < (9, 0):
        return f"FlashAttention-4 needs a GPU of sm_90 or later, this is {device.arch}"
    if case.dtype not in (DType.bf16, DType.fp16):
        return f"FlashAttention-4 takes bf16 and fp16, not {case.dtype}"
    if case.D % 8 or case.D > 256:
        return f"FlashAttention-4 takes D in multiples of 8 up to 256, not {case.D}"
    return no_compiler(case, device)


def fa3(case: Any, config: Any) -> Call:
    """FlashAttention-3, its forward alone, as PyPI's fa3-fwd builds it: bf16, sm_90a."""
    from fa3_fwd_interface import flash_attn_func

    return _then_skip(case, partial(flash_attn_func, causal=case.causal))


def fp8(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(B,N,H,D) as e4m3, and the scale of each head of a sample, (B,H) fp32."""
    scale = (t.abs().amax(dim=(1, 3)).float() / torch.finfo(E4M3).max).clamp_min(2.0**-100)
    return (t.float() / scale[:, None, :, None]).to(E4M3), scale


def _fp8_attend(case: Any) -> Any:
    from fa3_fwd_interface import flash_attn_func

    names = ("q_descale", "k_descale", "v_descale")

    def attend(*packed: torch.Tensor) -> torch.Tensor:
        """q, k and v in 8 bits, then their scales."""
        scales = dict(zip(names, packed[3:], strict=True))
        out: torch.Tensor = flash_attn_func(*packed[:3], causal=case.causal, **scales)
        return out if out.dtype is DTYPES[case.dtype] else out.to(DTYPES[case.dtype])

    return attend


def fa3_fp8(case: Any, config: Any) -> Call:
    """FlashAttention-3 in FP8, one scale a head; a compiled function quantises inside the call."""
    attend = _fp8_attend(case)
    pack = compiled(lambda q, k, v: [part for t in (q, k, v) for part in fp8(t)])

    def quantise_and_attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        parts = pack(q, k, v)
        out: torch.Tensor = attend(*parts[::2], *parts[1::2])
        return out

    return _then_skip(case, quantise_and_attend)


def fa3_prepack(case: Any, a: Tensors) -> Tensors:
    parts = [part for name in "qkv" for part in fp8(a[name])]
    return {"x": a["x"], "t": a["t"]} | dict(zip(PACKED, [*parts[::2], *parts[1::2]], strict=True))


def fa3_fp8_prepacked(case: Any, config: Any) -> Call:
    """The attention alone, quantised already."""
    return _then_skip(case, _fp8_attend(case), PACKED)


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
    if device.capability != (9, 0):
        return f"FlashAttention-3 needs a GPU of sm_90, this is {device.arch}"
    if case.mode is not Mode.fwd:
        return "this build of FlashAttention-3 has no backward"
    if case.dtype is not DType.bf16:
        return f"this build of FlashAttention-3 takes bf16, not {case.dtype}"
    if case.D % 8 or case.D > 256:
        return f"FlashAttention-3 takes D in multiples of 8 up to 256, not {case.D}"
    return no_compiler(case, device)


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
