"""Orders of attention's fused backward on Hopper, D = 64: what each compiles to, and takes.

python backward.py compile       needs no GPU: registers, spills, shared memory, instructions
python backward.py check         needs a GPU of sm_90: gradients against fp64, a line per failure
python backward.py time SECONDS  needs one, too; lines: shape,causal,variant,us

A time is of all launches of a backward: δ and zeros, the fused kernel, dq from its sum. `choice` is
what the table takes, fa4 FlashAttention-4 where it is installed, `fa4_auto` the same by autograd.
Medians of event pairs, L2 flushed, variants interleaved in an order drawn anew each round.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from itertools import product
from typing import NamedTuple

import torch
from forward import us_of
from torch import Tensor

from kernelbench.kernels.ahead_of_time import CompileError, ahead_of_time
from kernelbench.kernels.attention.backward import Gradients, deltas_launch, scale_launch
from kernelbench.kernels.attention.checks import How
from kernelbench.kernels.attention.configs import _hopper_backward
from kernelbench.kernels.attention.hopper.backward import HopperFusedTile
from kernelbench.kernels.attention.hopper.fused import fused_launch, unfold_launch
from kernelbench.kernels.attention.parts import forward
from kernelbench.kernels.attention.tiles import NO_HOOK, statistic_of
from kernelbench.kernels.launch import Launch
from kernelbench.profile.inspect.code import BYTES, size_of

D = 64
SHAPES = [  # B, N, H
    (4, 4096, 12),
    (2, 16384, 16),
    (32, 512, 16),
    (1, 2048, 16),
    (1, 32768, 16),
]
VARIANTS = {
    "split": HopperFusedTile(2, 2, rotated=True, split=True),
    "front": HopperFusedTile(2, 2, rotated=True, front=True),
    "frontflat": HopperFusedTile(2, 2, rotated=True, front=True, flat=True),
    "frontsplitflat": HopperFusedTile(2, 2, rotated=True, front=True, split=True, flat=True),
    "halves": HopperFusedTile(2, 2, rotated=True, halves=True),
    "halvesflat": HopperFusedTile(2, 2, rotated=True, halves=True, flat=True),
    "held": HopperFusedTile(2, 2, rotated=True, halves=True, held=1),
    "heldflat": HopperFusedTile(2, 2, rotated=True, halves=True, held=1, flat=True),
    "bothheldflat": HopperFusedTile(2, 2, rotated=True, halves=True, held=2, flat=True),
    "heldflat3": HopperFusedTile(3, 2, rotated=True, halves=True, held=1, flat=True),
}
CHECKED = [(2, 512, 3), (2, 1000, 3), (2, 4096, 3)]
RUNS = 4
LAUNCHES = 1_000_000  # cycles in which those of a backward are queued
MOST_ERROR = 8e-3  # of a gradient, by norm
MORE_ERROR = 1.2  # than the table's choice


class Case(NamedTuple):
    """What a backward takes: q, k, v, do and o (B,N,H,D), lse to base 2."""

    q: Tensor
    k: Tensor
    v: Tensor
    do: Tensor
    o: Tensor
    lse: Tensor
    causal: bool


class Backward(NamedTuple):
    """The gradients that its launches write, and the launches."""

    gradients: tuple[Tensor, Tensor, Tensor]
    total: Tensor
    launches: tuple[Launch, ...]

    def run(self) -> None:
        for launch in self.launches:
            launch.queue()

    def afresh(self) -> tuple[Tensor, ...]:
        """Gradients of one call, into which nothing is left of another."""
        self.total.zero_()
        for gradient in self.gradients:
            gradient.fill_(float("nan"))
        self.run()
        return tuple(gradient.clone() for gradient in self.gradients)


def tiles(causal: bool) -> dict[str, HopperFusedTile]:
    choice = _hopper_backward(D, causal).fused
    assert choice is not None
    return {"choice": choice, **VARIANTS}


def backward_of(case: Case, tile: HopperFusedTile) -> Backward:
    """The launches of a backward by a tile. Zeros of a sum whose rows are more than q's, of a
    `flat` one where N is no multiple of 128, are the caller's."""
    q, k, v, do, o, lse, causal = case
    B, N, H, _ = q.shape
    rows = -(-N // 128) * 128 if tile.flat else N
    total = torch.zeros(B, H, rows, D, device=q.device)
    gradients = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    dq, dk, dv = gradients
    delta, row = statistic_of(q), do.flatten(2)
    tensors, scale = Gradients(row, q, k, v, lse, delta, dq), D**-0.5
    launches = (
        deltas_launch(row, q, o, delta, total if rows == N else None),
        fused_launch(tensors, total, dk, dv, scale=scale, causal=causal, tile=tile),
        unfold_launch(total, dq, scale=scale)
        if tile.flat
        else scale_launch(total, dq, scale=scale, factor=NO_HOOK, read=(row, o)),
    )
    return Backward(gradients, total, launches)


def on_gpu(B: int, N: int, H: int, causal: bool) -> Case:
    generator = torch.Generator("cuda").manual_seed(0)
    q, k, v, do = (
        torch.randn(B, N, H, D, generator=generator, device="cuda").bfloat16() for _ in range(4)
    )
    o, lse = forward(q, k, v, how=How(causal, None, -1, -1))
    return Case(q, k, v, do, o, lse, causal)


def on_meta(B: int, N: int, H: int, causal: bool) -> Case:
    q, k, v, do, o = (
        torch.empty(B, N, H, D, dtype=torch.bfloat16, device="meta") for _ in range(5)
    )
    return Case(q, k, v, do, o, statistic_of(q), causal)


def right(case: Case) -> list[Tensor]:
    """dq, dk and dv in fp64, one head of one sample at a time."""
    B, N, H, _ = case.q.shape
    found = [torch.empty(B, N, H, D, dtype=torch.float64, device=case.q.device) for _ in range(3)]
    hidden = torch.ones(N, N, dtype=torch.bool, device=case.q.device).triu(1)
    for b, h in product(range(B), range(H)):
        q, k, v, do = (x[b, :, h].double() for x in case[:4])
        score = q @ k.T * D**-0.5
        if case.causal:
            score = score.masked_fill(hidden, -torch.inf)
        p = score.softmax(1)
        dp = do @ v.T
        ds = p * (dp - (p * dp).sum(1, keepdim=True)) * D**-0.5
        for gradient, one in zip(found, (ds @ k, ds.T @ q, p.T @ do), strict=True):
            gradient[b, :, h] = one
    return found


def errors_of(gradients: tuple[Tensor, ...], exact: list[Tensor]) -> list[float]:
    pairs = zip(gradients, exact, strict=True)
    return [float((got.double() - want).norm() / want.norm()) for got, want in pairs]


def faults(case: Case, name: str, exact: list[Tensor], choice: list[float]) -> Iterator[str]:
    """What is wrong with a variant: errors of its gradients, or other bits of dk or dv in another
    run, which no order of additions explains."""
    backward = backward_of(case, tiles(case.causal)[name])
    first = backward.afresh()
    for run in range(RUNS):
        gradients = first if run == 0 else backward.afresh()
        errors = errors_of(gradients, exact)
        for kind, error, its in zip(("dq", "dk", "dv"), errors, choice, strict=True):
            if not error < min(MOST_ERROR, MORE_ERROR * its):
                yield f"{kind}, run {run}: {error:.2e}, the choice's {its:.2e}"
        for kind, one, other in zip(("dk", "dv"), first[1:], gradients[1:], strict=True):
            if not torch.equal(one, other):
                yield f"{kind}, run {run}: other bits"


def check() -> int:
    """How many faults there are."""
    count = 0
    for shape, causal in product(CHECKED, (False, True)):
        case = on_gpu(*shape, causal)
        exact = right(case)
        names = tiles(causal)
        choice = errors_of(backward_of(case, names["choice"]).afresh(), exact)
        for name in names:
            for fault in faults(case, name, exact, choice):
                print(f"{name}, {(*shape, D)}, causal={causal}: {fault}", flush=True)
                count += 1
    print(f"{count} faults of {len(CHECKED) * 2 * len(tiles(True))} variants and cases")
    return count


def peers(case: Case) -> Iterator[tuple[str, Callable[[], object]]]:
    q, k, v, do, *_ = case
    with contextlib.suppress(ImportError):
        from flash_attn.cute import flash_attn_func
        from flash_attn.cute.interface import _flash_attn_bwd

        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        o, *_ = flash_attn_func(*leaves, causal=case.causal)
        yield "fa4_auto", lambda: torch.autograd.grad(o, leaves, do, retain_graph=True)
        out, lse, *_ = flash_attn_func(q, k, v, causal=case.causal, return_lse=True)
        yield "fa4", lambda: _flash_attn_bwd(q, k, v, out, do, lse, D**-0.5, case.causal)


def measure(seconds: float) -> None:
    end = time.monotonic() + seconds
    print("shape,causal,variant,us")
    for causal, shape in product((False, True), SHAPES):
        if time.monotonic() > end:
            return
        case = on_gpu(*shape, causal)
        calls: dict[str, Callable[[], object]] = {
            name: backward_of(case, tile).run for name, tile in tiles(causal).items()
        }
        calls |= dict(peers(case))
        for name, us in us_of(calls, 12 if shape[1] < 16384 else 6, LAUNCHES).items():
            print(f'"{(*shape, D)}",{causal},{name},{us:.1f}', flush=True)


def compile_all() -> None:
    print("variant,N,causal,registers,spill_stores,spill_loads,shared,serialised,instructions")
    for causal, N in ((False, 4096), (True, 4096), (False, 1000)):
        case = on_meta(2, N, 3, causal)
        for name, tile in tiles(causal).items():
            try:
                made = ahead_of_time(backward_of(case, tile).launches[1], "sm_90")
            except CompileError as error:
                print(f"{name},{N},{causal},{error}", flush=True)
                continue
            spills = f"{made.spill_stores},{made.spill_loads}"
            notes = " ".join(made.serialised) or "no"
            size = size_of(made.cubin) // BYTES
            numbers = f"{made.registers},{spills},{made.shared_bytes},{notes},{size}"
            print(f"{name},{N},{causal},{numbers}", flush=True)


def main(what: str = "", *rest: str) -> None:
    if what == "time" and len(rest) == 1:
        measure(float(rest[0]))
    elif what == "check" and not rest:
        sys.exit(check() > 0)
    elif what == "compile" and not rest:
        compile_all()
    elif what == "--help":
        print(__doc__)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:])
