"""Which program takes which tile of attention on Hopper: what an order should gain, and gains.

python forward.py model          predicted: time over an even share, programs in turn and by order
python forward.py time SECONDS   needs a GPU of sm_90; lines: shape,causal,variant,us
python forward.py packed         the same of documents one after another, causal, heads 32:8

A variant is TILE/ORDER: `turn` for programs in turn, MiB of k and v of heads that run at a time, or
`counter` where samples are packed sequences, whose tiles programs take as they get free.
Peers are fa3 (where `fa3-fwd` is installed) and cudnn. Medians of event pairs, L2 flushed, variants
interleaved in an order drawn anew each round; each variant is compared with SDPA in fp32 first.
"""

import contextlib
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import accumulate, pairwise, product
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from kernelbench.families._documents import Documents, lengths_of
from kernelbench.kernels.attention import attention
from kernelbench.kernels.attention.configs import Pattern, configs
from kernelbench.kernels.attention.forward import Forward
from kernelbench.kernels.attention.hopper import order
from kernelbench.kernels.attention.hopper.forward import (
    HopperTile,
    forward_launches,
    packed_launches,
)
from kernelbench.kernels.attention.hopper.order import listed_size
from kernelbench.kernels.attention.places import Packed
from kernelbench.kernels.launch import ceil_div

SMS = 132
SHAPES = [  # B, N, H, D
    (4, 4096, 12, 64),
    (2, 16384, 16, 64),
    (8, 2048, 16, 128),
    (4, 8192, 16, 128),
    (1, 32768, 16, 128),
    (32, 512, 16, 64),
]
TILES = {
    64: {
        "wide": HopperTile(3, 128, 4, 160, late=True),
        "halved": HopperTile(3, 128, 4, 160, late=True, halves=True),
        "halvedearly": HopperTile(3, 128, 4, 160, halves=True),
        "narrow0": HopperTile(2, 128, 4, 240),
        "held": HopperTile(2, 128, 4, 240, held=True),
    },
    128: {
        "base": HopperTile(2, 128, 2, 240),
        "held": HopperTile(2, 128, 2, 240, held=True),
    },
}
MIB_AT_A_TIME = {"turn": 0, "s24": 24, "s32": 32}
MOST_TILES = order._MOST_TILES
CHECKED = [(2, 1024, 8), (3, 1000, 5)]
MOST_ERROR = 4e-3


def predicted(shape: tuple[int, ...]) -> dict[str, float]:
    """The longest time of a program over an even share, of 128 rows a tile, by order."""
    B, N, H, D = shape
    tiles = ceil_div(N, 128)
    costs = [ceil_div(min((tiles - i) * 128, N), 128) + 1.0 for i in range(tiles)]
    even = sum(costs) * B * H / SMS
    longest = {}
    for name, mib in MIB_AT_A_TIME.items():
        taken = [list(range(p, B * H * tiles, SMS)) for p in range(SMS)]
        if mib:
            sections = max(1, round(4 * B * N * H * D / (mib << 20)))
            section = ceil_div(B * H, min(sections, B * H))
            taken = order.tiles_of_programs(B * H, section, costs, SMS)
        longest[name] = max(sum(costs[i % tiles] for i in one) for one in taken) / even
    return longest


def model() -> None:
    for shape in SHAPES:
        print(shape, ", ".join(f"{name} {time:.3f}" for name, time in predicted(shape).items()))


def drawn(*shape: int) -> list[Tensor]:
    generator = torch.Generator("cuda").manual_seed(0)
    return [torch.randn(shape, generator=generator, device="cuda").bfloat16() for _ in range(3)]


def variants(
    q: Tensor, k: Tensor, v: Tensor, causal: bool
) -> Iterator[tuple[str, Tensor, Callable[[], None]]]:
    """(name, output, call) of each."""
    for name, tile in TILES[q.shape[3]].items():
        for how, mib in MIB_AT_A_TIME.items() if causal else [("turn", 0)]:
            order._MOST_TILES = MOST_TILES if mib else 0
            order._SECTION_BYTES = max(mib, 1) << 20
            o = torch.full_like(q, float("nan"))
            launches = forward_launches(
                Forward(q, k, v, o, None), scale=q.shape[3] ** -0.5, causal=causal, tile=tile
            )
            yield f"{name}/{how}", o, lambda ls=launches: [launch.queue() for launch in ls]
        if causal and tile.groups == 2:
            o = torch.full_like(q, float("nan"))
            launches = taken_as_free(q, k, v, o, tile)
            yield f"{name}/counter", o, lambda ls=launches: [launch.queue() for launch in ls]


def taken_as_free(q: Tensor, k: Tensor, v: Tensor, o: Tensor, tile: HopperTile) -> tuple[Any, ...]:
    """Causal, samples as packed sequences: programs take tiles as they get free."""
    B, N, H, D = q.shape
    starts = torch.arange(0, (B + 1) * N, N, dtype=torch.int32, device=q.device)
    listed = torch.empty(listed_size(B * N, B, 128), dtype=torch.int32, device=q.device)
    one = Forward(*(x.view(1, B * N, H, D) for x in (q, k, v, o)), None)
    place = Packed(starts, starts, B, B * N)
    return packed_launches(one, place, listed, scale=D**-0.5, causal=True, tile=tile)


def check() -> None:
    for D in TILES:
        for B, N, H in CHECKED:
            q, k, v = drawn(B, N, H, D)
            for causal in (True, False):
                wide = (x.float().transpose(1, 2) for x in (q, k, v))
                right = scaled_dot_product_attention(*wide, is_causal=causal).transpose(1, 2)
                for name, o, call in variants(q, k, v, causal):
                    call()
                    error = float((o.float() - right).norm() / right.norm())
                    if not error < MOST_ERROR:
                        sys.exit(f"{name} is wrong at {(B, N, H, D)}, causal={causal}: {error:.2e}")


def peers(
    q: Tensor, k: Tensor, v: Tensor, causal: bool
) -> Iterator[tuple[str, Callable[[], None]]]:
    with contextlib.suppress(ImportError):
        from fa3_fwd_interface import flash_attn_func

        yield "fa3", lambda: flash_attn_func(q, k, v, causal=causal)
    heads = [x.transpose(1, 2) for x in (q, k, v)]

    def cudnn() -> None:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            scaled_dot_product_attention(*heads, is_causal=causal)

    yield "cudnn", cudnn


def us_of(
    calls: Mapping[str, Callable[[], object]], rounds: int, ahead: int = 200_000
) -> dict[str, float]:
    """ahead: cycles that the GPU spins before a call, so that no launch of it is waited for."""
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    pairs: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {n: [] for n in calls}
    for call in calls.values():
        call()
    names = [*calls]
    for _ in range(rounds):
        random.shuffle(names)
        for name in names:
            flush.zero_()
            torch.cuda._sleep(ahead)
            pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            pair[0].record()
            calls[name]()
            pair[1].record()
            pairs[name].append(pair)
        torch.cuda.synchronize()
    return {n: statistics.median(a.elapsed_time(b) for a, b in of) * 1e3 for n, of in pairs.items()}


def measure(seconds: float) -> None:
    end = time.monotonic() + seconds
    check()
    for causal in (True, False):
        for shape in SHAPES:
            if time.monotonic() > end:
                return
            q, k, v = drawn(*shape)
            calls = {name: call for name, _, call in variants(q, k, v, causal)}
            calls |= dict(peers(q, k, v, causal))
            for name, us in us_of(calls, 12 if shape[1] < 16384 else 6).items():
                print(f'"{shape}",{causal},{name},{us:.1f}', flush=True)


def measure_packed(N: int = 32768, H: int = 32, G: int = 8) -> None:
    for D, documents in product((128, 64), ("four", "mixed", "corpus")):
        lengths = lengths_of(Documents(documents), N)
        starts = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device="cuda")
        q, k, v = (x[0, :, :heads] for x, heads in zip(drawn(1, N, H, D), (H, G, G), strict=True))
        k, v = k.contiguous(), v.contiguous()
        pattern = Pattern(None, H // G, plain=False, packed=True)
        found = configs(1, N, H, D, arch="sm_90", mode="fwd", causal=True, pattern=pattern)
        hoppers = [config for config in found if config.hopper]
        calls = {"tl": partial(attention, config=next(c for c in found if not c.hopper))}
        calls |= {
            ("held" if c.hopper.held else "packed"): partial(attention, config=c) for c in hoppers
        }
        calls = {n: partial(f, q, k, v, cu_seqlens_q=starts, causal=True) for n, f in calls.items()}
        right = torch.cat(
            [
                scaled_dot_product_attention(
                    *(x[rows].float().transpose(0, 1)[None] for x in (q, k, v)),
                    is_causal=True,
                    enable_gqa=True,
                )[0].transpose(0, 1)
                for rows in (slice(*pair) for pair in pairwise(starts.tolist()))
            ]
        )
        for name, call in calls.items():
            error = float((call().float() - right).norm() / right.norm())
            if not error < MOST_ERROR:
                sys.exit(f"{name} is wrong at D={D}, {documents}: {error:.2e}")
        with contextlib.suppress(ImportError):
            from fa3_fwd_interface import flash_attn_varlen_func

            how = (starts, starts, max(lengths), max(lengths))
            calls["fa3"] = partial(flash_attn_varlen_func, q, k, v, *how, causal=True)
        for name, us in us_of(calls, 12).items():
            print(f'"{(documents, N, H, G, D)}",True,{name},{us:.1f}', flush=True)


if __name__ == "__main__":
    what, *rest = sys.argv[1:] or [""]
    if what == "time" and len(rest) == 1:
        measure(float(rest[0]))
    elif what == "packed":
        measure_packed()
    elif what == "model":
        model()
    else:
        sys.exit(__doc__)
