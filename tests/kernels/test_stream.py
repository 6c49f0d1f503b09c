"""Streaming kernels, in Triton's interpreter or on a GPU: they touch all, and nothing beyond."""

import pytest
import torch
from torch import Tensor

from kernelbench.kernels import stream

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BLOCKS = (64, 1024)


@pytest.mark.parametrize("n", [1, 63, 1000, 4096])
@pytest.mark.parametrize("block", BLOCKS)
def test_copy_and_write_reach_every_element_and_no_other(n: int, block: int) -> None:
    source = torch.randn(n, device=DEVICE)
    target = torch.full((n + 64,), 7.0, device=DEVICE)
    stream.copy(source, target[:n], block, 4).run()
    assert target[:n].equal(source)
    assert target[n:].eq(7).all()
    stream.write(target[:n], block).run()
    assert target[:n].eq(1).all()
    assert target[n:].eq(7).all()


def reads(source: Tensor, **how: int) -> float:
    """The sum that a read forms shows only where it is 12345."""
    sink = torch.zeros(1, device=DEVICE)
    stream.read(source, sink, **how).run()
    return float(sink)


@pytest.mark.parametrize("n", [1, 1000, 4096])
@pytest.mark.parametrize("times", [1, 4])
def test_read_takes_in_every_element(n: int, times: int) -> None:
    for at in {0, n // 2, n - 1}:
        source = torch.zeros(n, device=DEVICE)
        source[at] = 12345
        assert reads(source, block=1024, times=times) == 12345
    assert reads(torch.ones(n, device=DEVICE), block=1024, times=times) == 0


def test_claim_takes_in_every_element() -> None:
    source, sink = torch.zeros(2 * 4096, device=DEVICE), torch.zeros(1, device=DEVICE)
    source[5000] = 12345
    stream.claim(source, sink).run()
    assert sink == 12345


@pytest.mark.skipif(DEVICE == "cpu", reason="inline PTX does not run in Triton's interpreter")
@pytest.mark.parametrize("claimed", [4096, 8192])
def test_release_changes_nothing_but_the_target(claimed: int) -> None:
    kept = torch.randn(claimed, device=DEVICE)
    before, target = kept.clone(), torch.ones(4 * 4096, device=DEVICE)
    stream.write_and_release(target, kept).run()
    assert kept.equal(before)
    assert target.eq(0).all()
