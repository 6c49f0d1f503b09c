"""Dilated attention over ranks, by PyTorch and by our kernels."""

from typing import Any

import torch

from kernelbench.families._ranks import all_rows
from kernelbench.families.attention.providers import serves
from kernelbench.families.dilated_attention.case import Combine
from kernelbench.families.dilated_attention.providers import torch_serves
from kernelbench.families.dilated_parallel.case import ParallelDilatedCase
from kernelbench.nn.branches import gathered
from kernelbench.nn.spans import Way, ours
from kernelbench.parallel import RingDilatedAttention
from kernelbench.parallel.dilated import spread
from kernelbench.parallel.segments import Ranks, misfit, unmade
from kernelbench.spec import Call, Device, Tensors


def baseline(case: ParallelDilatedCase, config: Any) -> Call:
    """k and v of all ranks in one message; then of each branch this rank's rows and the keys of
    their segments are gathered, attended to by PyTorch's operator, and merged in eager operators.
    Gradients of all keys are summed over the ranks."""
    return _of_all_keys(case, Way(take=gathered))


def _of_all_keys(case: ParallelDilatedCase, way: Way) -> Call:
    spans, mean = case.spans(case.rank), case.combine == Combine.mean

    def call(a: Tensors) -> Any:
        both = torch.cat([a["k"][0], a["v"][0]], 1)  # one message
        every = all_rows(both) if case.world > 1 else both
        k, v = every.unsqueeze(0).split(case.H, 2)
        return spread(a["q"], k, v, spans, mean, way)

    return call


def triton_all_keys(case: ParallelDilatedCase, config: Any) -> Call:
    """Our kernels likewise, on strided views: what sending kept rows alone is worth."""
    return _of_all_keys(case, Way(ours))


def torch_fused(case: ParallelDilatedCase, config: Any) -> Call:
    """`RingDilatedAttention` by PyTorch's operators on strided views: kept rows of segments that
    span ranks travel, while those of a rank's own keys are attended to."""
    return _ring(case, "eager")


def triton_fused(case: ParallelDilatedCase, config: Any) -> Call:
    """The same by our kernels."""
    return _ring(case, "triton")


def _ring(case: ParallelDilatedCase, impl: Any) -> Call:
    ring = RingDilatedAttention(
        case.whole.lengths,
        case.whole.rates,
        offset_rule=case.offsets.value,
        combine=case.combine.value,
        impl=impl,
    )
    return lambda a: ring(a["q"], a["k"], a["v"], is_causal=case.causal)


def all_keys_serves(case: ParallelDilatedCase, device: Device) -> str | None:
    return torch_serves(case.whole, device)


def ring_serves(case: ParallelDilatedCase, device: Device) -> str | None:
    """Why `RingDilatedAttention` cannot run a case by PyTorch, or None."""
    return _misfit(case) or all_keys_serves(case, device)


def ours_serves(case: ParallelDilatedCase, device: Device) -> str | None:
    return _misfit(case) or serves(case, device)


def _misfit(case: ParallelDilatedCase) -> str | None:
    lengths, at = case.whole.lengths, Ranks(None, case.rank, case.world, case.rows)
    return misfit(lengths, case.rows, case.N) or unmade(lengths, at)
