"""Orders of attention's fused backward that studies/attention/backward.py times: what they refuse,
that each compiles, and how a `flat` sum is put in order."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from compiling import printed_without_interpreter
from torch import Tensor

from kernelbench.kernels.ahead_of_time import ahead_of_time
from kernelbench.kernels.attention.backward import Gradients
from kernelbench.kernels.attention.hopper.backward import HopperFusedTile
from kernelbench.kernels.attention.hopper.fused import (
    _AS_HELD,
    fused_launch,
    packed_launches,
    unfold_launch,
)
from kernelbench.kernels.attention.places import Packed
from kernelbench.kernels.attention.tiles import statistic_of
from kernelbench.kernels.launch import INTERPRETED, Launch, Target, described_for

PLAIN = HopperFusedTile(2, 2, rotated=True)
ORDERS = [
    replace(PLAIN, split=True),
    replace(PLAIN, front=True, flat=True),
    replace(PLAIN, halves=True),
    replace(PLAIN, halves=True, held=1, flat=True),
    replace(PLAIN, halves=True, held=2),
]


def launch_of(
    tile: HopperFusedTile, D: int = 64, group: int = 1, N: int = 256, packed: bool = False
) -> Launch:
    def empty(*shape: int) -> Tensor:
        return torch.empty(*shape, dtype=torch.bfloat16, device="meta")

    with described_for(Target("sm_90", 132)):
        q, do, keys = empty(1, N, 4, D), empty(1, N, 4 * D), [empty(1, N, 4 // group, D)] * 4
        total = torch.empty(1, 4, N, D, device="meta")
        tensors = Gradients(do, q, *keys[:2], statistic_of(q), statistic_of(q), q)
        sums = tensors, total, *keys[2:]
        if packed:
            starts = torch.empty(3, dtype=torch.int32, device="meta")
            place = Packed(starts, starts, 2, N)
            return packed_launches(sums, place, starts, scale=0.1, causal=True, tile=tile)[1]
        return fused_launch(*sums, scale=0.1, causal=True, tile=tile)


@pytest.mark.parametrize(
    ("tile", "more", "why"),
    [
        (replace(PLAIN, halves=True), {"D": 128}, "for heads of 64, got 128"),
        (replace(PLAIN, flat=True), {"D": 128}, "for heads of 64, got 128"),
        (replace(PLAIN, halves=True), {"group": 2}, "keys that no heads share"),
        (replace(PLAIN, held=1), {}, "0 without halves"),
        (replace(PLAIN, halves=True, held=3), {}, "held is 0, 1 or 2"),
        (replace(PLAIN, late=True, front=True), {}, "exclude each other"),
        (replace(PLAIN, late=True, front=True), {"packed": True}, "exclude each other"),
        (replace(PLAIN, halves=True), {"packed": True}, "no packed sequences"),
        (replace(PLAIN, flat=True), {"N": 250}, "multiples of 128 rows"),
    ],
)
def test_what_an_order_is_not_made_for_is_refused(
    tile: HopperFusedTile, more: dict[str, int], why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        launch_of(tile, **more)


def unfold() -> Launch:
    empty = partial(torch.empty, device="meta")
    with described_for(Target("sm_90", 132)):
        dq = empty(1, 200, 4, 64, dtype=torch.bfloat16)
        return unfold_launch(empty(1, 4, 256, 64), dq, scale=0.1)


def compile_each() -> None:
    """For a process without the interpreter."""
    for launch in [*map(launch_of, ORDERS), unfold()]:
        compiled = ahead_of_time(launch, "sm_90")
        assert not compiled.serialised and compiled.shared_bytes <= 232448, compiled.kernel
        print(compiled.shared_bytes)


@pytest.mark.slow
def test_each_order_compiles() -> None:
    sizes = printed_without_interpreter("test_attention_fused_orders", "compile_each").split()
    assert len(sizes) == len(ORDERS) + 1


@pytest.mark.skipif(not INTERPRETED, reason="the interpreter's answer serves any GPU")
def test_a_flat_sum_is_put_in_order() -> None:
    """By the bases of the layout in which threads have written it."""
    B, N, H = 1, 100, 2
    wanted = torch.randn(B, N, H, 64)
    total = torch.zeros(B, H, 128, 64)
    bases = _AS_HELD.value.offset_bases
    for block in range(2):
        for place in range(4096):
            bits = [basis for i, basis in enumerate(bases) if place >> i & 1]
            row, column = (sum(basis[axis] for basis in bits) for axis in (0, 1))
            if block * 64 + row < N:
                flat = total[0].view(H, 2, 4096)
                flat[:, block, place] = wanted[0, block * 64 + row, :, column]
    dq = torch.full_like(wanted, torch.nan)
    unfold_launch(total, dq, scale=2.0).run()
    assert dq.equal(2 * wanted)
