"""Every kernel of the rCM rooms as the tables would launch it, compiled ahead of time.

usage: launches.py ARCH [--every]: one JSON line a launch. --every: all configs, not the first.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict

import torch
from torch import Tensor

from kernelbench.kernels import (
    projection,
    projection_hopper,
    rcm_attention,
    rcm_attention_hopper,
    rcm_int8,
)
from kernelbench.kernels.ahead_of_time import ahead_of_time
from kernelbench.kernels.launch import Launch
from kernelbench.kernels.rcm import formula_of

B, N, H = 4, 4096, 12
BF16, FP32 = torch.bfloat16, torch.float32
Described = Iterator[tuple[str, Launch]]


def meta(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def attention(
    arch: str,
    every: bool,
    D: int,
    dtype: torch.dtype = BF16,
    causal: bool = False,
    kind: str = "edm",
    shape: tuple[int, int, int] = (B, N, H),
) -> Described:
    """Forward alone; forward that saves for a backward; the skip of its own; backward."""
    B, N, H = shape
    formula = formula_of(kind, None, causal, None, D)
    q, x, t = meta(B, N, H, D, dtype=dtype), meta(B, N, H * D, dtype=dtype), meta(B, dtype=FP32)
    x_t, y = ((x, t), x) if formula.skips else ((None, None), None)
    dx, dt = x_t
    lse = meta(B, H, N, dtype=FP32)
    options = {"itemsize": dtype.itemsize, "causal": causal, "mixes": formula.skips}
    for mode in ("fwd", "full"):
        found = rcm_attention.configs(B, N, H, D, arch=arch, mode=mode, **options)
        for config in found if every else found[:1]:
            saves = mode == "full"
            o = x if saves or y is None else None
            tensors = (q, q, q, *x_t, y, o, lse if saves else None)
            if config.hopper is None:
                yield mode, rcm_attention.forward_launch(*tensors, formula=formula, config=config)
            else:
                launches = rcm_attention_hopper.forward_launches(
                    *tensors, formula=formula, tile=config.hopper
                )
                yield from ((mode, launch) for launch in launches)
    ways = [
        rcm_attention.configs(B, N, H, D, arch=arch, mode="bwd", deterministic=same, **options)
        for same in (False, True)
    ]
    for config in dict.fromkeys(c for way in ways for c in (way if every else way[:1])):
        launches = rcm_attention.backward_launches(
            x, q, q, q, *x_t, x, lse, q, q, q, dx, dt, formula=formula, config=config
        )
        yield from (("bwd", launch) for launch in launches)
    if formula.skips:
        yield "fwd", rcm_attention.skip_launch(x, x, t, x, formula=formula)


def int8(arch: str, every: bool, D: int, causal: bool = False) -> Described:
    formula = formula_of("edm", None, causal, None, D)
    q, x, t = meta(B, N, H, D), meta(B, N, H * D), meta(B, dtype=FP32)
    found = rcm_int8.configs(N, D, arch=arch)
    for config in found if every else found[:1]:
        launches = rcm_int8.launches(q, q, q, x, t, x, formula=formula, config=config, arch=arch)
        yield from (("fwd", launch) for launch in launches)


def projected(arch: str, every: bool, C: int, dtype: torch.dtype = BF16) -> Described:
    formula = formula_of("edm", None, False, None, 64)
    x, weight, bias = meta(B, N, C, dtype=dtype), meta(C, C, dtype=dtype), meta(C, dtype=dtype)
    t, parts = meta(B, dtype=FP32), meta(B, 4096, dtype=FP32)
    found = projection.configs(B * N, C, C, arch=arch, itemsize=dtype.itemsize)
    plain = next(config for config in found if config.hopper is None)
    for config in found if every else dict.fromkeys((found[0], plain)):
        for skip in ((x, t), (None, None)):
            tensors = (x, weight, bias, *skip, x)
            if config.hopper is None:
                launch = projection.forward_launch(*tensors, formula=formula, config=config)
            else:
                tile = config.hopper
                launch = projection_hopper.forward_launch(*tensors, formula=formula, tile=tile)
            yield "fwd", launch
    yield (
        "bwd",
        projection.skip_backward_launch(
            x, x, bias, t, x, x, meta(B * N, C, dtype=FP32), parts, formula=formula
        ),
    )
    yield "bwd", projection.scale_launch(x, x, t, parts, formula=formula, stores=True)


def all_of(arch: str, every: bool) -> Described:
    for D in (48, 64, 128, 256):
        yield from ((f"D={D} {m}", one) for m, one in attention(arch, every, D))
    for D in (64, 128):
        yield from ((f"D={D} fp32 {m}", one) for m, one in attention(arch, every, D, FP32))
    for D in (48, 64, 128):
        found = attention(arch, every, D, causal=True)
        yield from ((f"D={D} causal {m}", one) for m, one in found)
    found = attention(arch, every, 64, torch.float16, kind="none", shape=(B, 4100, H))
    yield from ((f"D=64 fp16 ragged none {m}", one) for m, one in found)
    found = attention(arch, every, 64, shape=(1, 8192, 8))
    yield from ((f"D=64 in two launches {m}", one) for m, one in found)
    for D in (48, 64, 128):
        yield from ((f"D={D} int8 {m}", one) for m, one in int8(arch, every, D))
    yield from ((f"D=128 int8 causal {m}", one) for m, one in int8(arch, every, 128, causal=True))
    for C, dtype in ((512, BF16), (1024, BF16), (512, FP32)):
        found = projected(arch, every, C, dtype)
        yield from ((f"C={C} {str(dtype).removeprefix('torch.')} {m}", one) for m, one in found)


def main(arch: str, every: bool = False) -> None:
    for title, launch in all_of(arch, every):
        compiled = ahead_of_time(launch, arch)
        found = asdict(compiled) | {"serialised": compiled.serialised}
        del found["ptx"]
        sizes = {k: v for k, v in launch.constexprs.items() if k.startswith(("BLOCK", "GROUPS"))}
        title = f"{title} {found['kernel']} {sizes | dict(launch.options)}"
        print(json.dumps({"title": title} | found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], "--every" in sys.argv[2:])
