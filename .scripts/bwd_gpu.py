"""The backward of attention on a Hopper GPU, of heads that share keys and of packed sequences.

check [shared|packed|poison]: against fp64; a line for each failure, and a count.
time [shared|packed]: prints variant,us,TFLOP/s.
"""

import faulthandler
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import accumulate, pairwise, product
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.errors import TritonError

from kernelbench.families._documents import Documents, lengths_of
from kernelbench.kernels.attention import attention
from kernelbench.kernels.attention.configs import AttentionConfig, Pattern, configs

DEVICE = "cuda"
SECONDS = 120  # of a case, its compilation included: a kernel that hangs ends the process
RUNS = 5
FLOOR = {torch.bfloat16: 8e-3, torch.float16: 1e-3}
LISTS = {
    "one": ((300,), (300,)),
    "blocks": ((128, 256, 64, 512), (128, 256, 64, 512)),
    "ragged": ((85, 561, 17, 340), (85, 561, 17, 340)),
    "empty": ((0, 136, 0, 527, 0), (0, 136, 0, 527, 0)),
    "around": ((127, 1, 129, 0, 0, 255, 128, 1), (127, 1, 129, 0, 0, 255, 128, 1)),
    "short": (tuple(i % 7 for i in range(200)), tuple(i % 7 for i in range(200))),
    "others": ((51, 640, 200), (700, 640, 70)),
    "none": ((40, 60, 0), (0, 90, 130)),
}


class Case(NamedTuple):
    """lengths: of queries and keys of packed sequences; None for B samples of N rows."""

    name: str
    B: int
    N: int
    H: int
    G: int
    D: int
    causal: bool
    lengths: Any = None
    poisoned: bool = False
    dtype: torch.dtype = torch.bfloat16


def starts_of(lengths: tuple[int, ...]) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=DEVICE)


def drawn(case: Case, seed: int, padding: int) -> list[Tensor]:
    """q, k, v, do; packed (T,H,D), with NaN behind the last sequence."""
    generator = torch.Generator().manual_seed(seed)
    queries = keys = case.N
    if case.lengths is not None:
        queries, keys = (sum(each) + padding for each in case.lengths)
    shapes = [(case.B, n, heads, case.D) for n, heads in ((queries, case.H), (keys, case.G))]
    shapes = [shapes[0], shapes[1], shapes[1], shapes[0]]
    tensors = [torch.randn(s, generator=generator).to(DEVICE, case.dtype) for s in shapes]
    if case.lengths is None:
        return tensors
    tensors = [x[0] for x in tensors]
    for x in tensors[:3]:
        x[len(x) - padding :] = math.nan
    return tensors


def exact(q: Tensor, k: Tensor, v: Tensor, do: Tensor, causal: bool) -> tuple[Tensor, ...]:
    """dq, dk, dv of one sequence a sample in fp64, (B,N,H,D)."""
    given = [x.detach().double().requires_grad_() for x in (q, k, v)]
    q, k, v = given[0], *(x.repeat_interleave(q.shape[2] // x.shape[2], 2) for x in given[1:])
    N, K = q.shape[1], k.shape[1]
    score = torch.einsum("bnhd,bmhd->bhnm", q, k) * q.shape[-1] ** -0.5
    seen = torch.ones(N, K, dtype=torch.bool, device=q.device)
    if causal:
        seen = seen.tril(K - N)
    weight = torch.softmax(score.masked_fill(~seen, -1e300), -1) * seen
    o = torch.einsum("bhnm,bmhd->bnhd", weight, v)
    return torch.autograd.grad(o, given, do.double())


def wanted_of(case: Case, tensors: list[Tensor]) -> list[Tensor]:
    """dq, dk, dv; zeros behind the last sequence."""
    if case.lengths is None:
        q, k, v, do = tensors
        return list(exact(q, k, v, do, case.causal))
    outs = [torch.zeros_like(x, dtype=torch.float64) for x in tensors[:3]]
    q, k, v, do = (x[None] for x in tensors)
    starts = [pairwise([0, *accumulate(each)]) for each in case.lengths]
    for at, of in zip(*starts, strict=True):
        rows, keys = slice(*at), slice(*of)
        if rows.start == rows.stop or keys.start == keys.stop:
            continue
        found = exact(q[:, rows], k[:, keys], v[:, keys], do[:, rows], case.causal)
        for out, part, one in zip(outs, (rows, keys, keys), found, strict=True):
            out[part] = one[0]
    return outs


def gradients(case: Case, tensors: list[Tensor], config: AttentionConfig | None) -> list[Tensor]:
    *inputs, do = tensors
    given = [x.detach().clone().requires_grad_() for x in inputs]
    more: dict[str, Any] = {}
    if case.lengths is not None:
        more["cu_seqlens_q"] = starts_of(case.lengths[0])
        if case.lengths[0] != case.lengths[1]:
            more["cu_seqlens_k"] = starts_of(case.lengths[1])
    o = attention(*given, causal=case.causal, config=config, **more)
    return list(torch.autograd.grad(o, given, do))


def configs_of(case: Case) -> dict[str, AttentionConfig]:
    """Those with the fused backward, by name, and what a tuner does not have yet."""
    packed = case.lengths is not None
    pattern = Pattern(None, case.H // case.G, plain=not packed, packed=packed)
    how: dict[str, Any] = {"arch": "sm_90", "mode": "bwd", "causal": case.causal}
    found = configs(case.B, case.N, case.H, case.D, **how, pattern=pattern)
    if packed:  # of the backward alone: the forward is tl's
        found = tuple(dict.fromkeys(replace(config, hopper=None) for config in found))
    named = {"tl": next(config for config in found if config.bwd_hopper is None)}
    for config in found:
        tile = config.bwd_hopper
        if tile is not None and tile.fused is not None:
            late, rotated = tile.fused.late, tile.fused.rotated and not case.causal
            named["fused" + " late" * late + " rotated" * rotated] = config
    return named


def varied(named: dict[str, AttentionConfig], case: Case) -> dict[str, AttentionConfig]:
    """And the other ways to run the fused kernel."""
    config = next(config for name, config in named.items() if name != "tl")
    tile = config.bwd_hopper
    assert tile is not None and tile.fused is not None
    for late, rotated in product((False, True), (False, True)):
        if (rotated and case.causal) or (late and case.D == 64):
            continue
        fused = replace(tile.fused, late=late, rotated=rotated)
        name = "fused" + " late" * late + " rotated" * rotated
        named.setdefault(name, replace(config, bwd_hopper=replace(tile, fused=fused)))
    return named


def faults(case: Case, config: AttentionConfig, seed: int) -> Iterator[str]:
    """What is wrong, in several runs of one call."""
    padding = 19 + 100 * (seed % 2)
    tensors = drawn(case, seed, padding)
    wanted = wanted_of(case, tensors)
    own = slice(None)
    if case.poisoned:  # the first sequence alone is looked at, its neighbour is NaN
        first, second = case.lengths[0][:2]
        for x in tensors:
            x[first : first + second] = math.nan
        own = slice(0, first)
    runs = [gradients(case, tensors, config) for _ in range(RUNS)]
    for i, name in enumerate(("dq", "dk", "dv")):
        for run in runs:
            found, right = run[i][own].double(), wanted[i][own]
            if not found.isfinite().all():
                yield f"{name} has {(~found.isfinite()).sum()} that are no numbers"
                break
            error = float((found - right).norm() / right.norm().clamp(min=1e-3))
            if not error < FLOOR[case.dtype]:
                yield f"{name} is off by {error:.2e}"
                break
            if case.lengths is not None and not case.poisoned and run[i][-padding:].any():
                yield f"{name} is not zero behind the last sequence"
                break
            if i > 0 and not torch.equal(run[i][own], runs[0][i][own]):
                yield f"{name} differs from run to run"
                break


def cases(what: str) -> Iterator[Case]:
    sizes = list(product((64, 128), (False, True)))
    if what in ("", "shared"):
        for (D, causal), N, (H, G) in product(sizes, (129, 1000, 2048), ((8, 2), (32, 8))):
            yield Case(f"shared {N}", 2, N, H, G, D, causal)
        for D, causal in sizes:
            yield Case("one head of keys", 1, 777, 8, 1, D, causal)
            yield Case("fp16", 1, 777, 8, 2, D, causal, dtype=torch.float16)
    if what in ("", "packed"):
        for (D, causal), name, (H, G) in product(sizes, LISTS, ((4, 4), (8, 2))):
            yield Case(f"packed {name}", 1, 2048, H, G, D, causal, LISTS[name])
        for (D, causal), name in product(sizes, ("ragged", "around")):
            yield Case(f"packed {name}", 1, 2048, 32, 8, D, causal, LISTS[name])
    if what in ("", "poison"):
        lengths = ((70, 50, 300),) * 2
        for (D, causal), (H, G) in product(sizes, ((4, 4), (8, 2))):
            yield Case("poison", 1, 420, H, G, D, causal, lengths, poisoned=True)


def check(what: str) -> int:
    wrong = done = 0
    begun = time.time()
    for case in cases(what):
        for name, config in configs_of(case).items():
            if name == "tl":
                continue
            for seed in range(2):
                faulthandler.dump_traceback_later(SECONDS, exit=True)
                print(f"\r{case[:7]} {name}", end=" " * 20, file=sys.stderr, flush=True)
                try:
                    found = list(faults(case, config, seed))
                except (RuntimeError, ValueError, TypeError, TritonError) as error:
                    found = [f"{type(error).__name__}: {error}"]
                faulthandler.cancel_dump_traceback_later()
                done += 1
                wrong += bool(found)
                for line in found:
                    print(f"\nWRONG {case[:7]} {name} seed {seed}: {line}", flush=True)
    print(f"\n{done} cases, {wrong} wrong, {time.time() - begun:.0f} s", flush=True)
    return 1 if wrong else 0


def us_of(calls: dict[str, Callable[[], Any]], rounds: int = 11) -> dict[str, float]:
    """Medians, the calls in turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(2):
        for call in calls.values():
            call()
    for _ in range(rounds):
        for name, call in calls.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            times[name].append(begin.elapsed_time(end) * 1e3)
    return {name: median(each) for name, each in times.items()}


def measure(case: Case, label: str) -> None:
    """Of the backward alone. A variant's first call compiles it, and is compared with tl's."""
    faulthandler.dump_traceback_later(2 * SECONDS, exit=True)
    tensors = drawn(case, 0, 0)
    more: dict[str, Any] = {}
    pairs: float = case.B * case.N**2
    if case.lengths is not None:
        more["cu_seqlens_q"] = starts_of(case.lengths[0])
        pairs = sum(n * n for n in case.lengths[0])
    flops = 10 * pairs * case.H * case.D / (2 if case.causal else 1)
    calls: dict[str, Callable[[], Any]] = {}
    found = {}
    for name, config in varied(configs_of(case), case).items():
        given = [x.detach().clone().requires_grad_() for x in tensors[:3]]
        o = attention(*given, causal=case.causal, config=config, **more)
        calls[name] = partial(torch.autograd.grad, o, given, tensors[3], retain_graph=True)
        found[name] = calls[name]()
    for name, grads in found.items():
        pairs_of = zip(grads, found["tl"], strict=True)
        errors = [float((a.float() - b.float()).norm() / b.float().norm()) for a, b in pairs_of]
        if not max(errors) < 2e-2:
            print(f"WRONG {label} {name}: {errors}", flush=True)
    found.clear()
    for name, us in us_of(calls).items():
        print(f'"{label}",{name},{us:.1f},{flops / us / 1e6:.0f}', flush=True)
    faulthandler.cancel_dump_traceback_later()


def timed(what: str) -> None:
    print("case,variant,us,TFLOP/s")
    for D, causal in product((128, 64), (True, False)):
        word = "causal" if causal else "full"
        if what in ("", "shared"):
            for N in (8192, 32768):
                measure(Case("shared", 1, N, 32, 8, D, causal), f"shared 32:8 {N} D={D} {word}")
        if what in ("", "packed"):
            for N, name in product((8192, 32768), ("four", "mixed", "corpus")):
                lengths = lengths_of(Documents(name), N)
                for G in (8, 32):
                    case = Case("packed", 1, N, 32, G, D, causal, (lengths, lengths))
                    measure(case, f"packed {name} 32:{G} {N} D={D} {word}")


if __name__ == "__main__":
    verb, what = [*sys.argv[1:], "", ""][:2]
    if verb == "check":
        sys.exit(check(what))
    elif verb == "time":
        timed(what)
    else:
        sys.exit(__doc__)
