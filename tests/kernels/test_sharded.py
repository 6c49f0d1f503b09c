"""DTensor over two ranks (gloo, CPU): what is sharded along an axis of citizens.py stays sharded
and is right, as are its gradients."""

import socket

import pytest
import torch
import torch.distributed as dist
from citizens import FUNCTIONS
from gloo import together
from torch.distributed.tensor import DeviceMesh, Replicate, Shard, distribute_tensor

from kernelbench.kernels.launch import INTERPRETED


def _of_rank(rank: int, ranks: int) -> None:
    mesh = DeviceMesh("cpu", list(range(ranks)))
    for function in FUNCTIONS.values():
        for cuts in function.cuts.values():
            _is_right(function, cuts, mesh)


def _is_right(function, cuts, mesh):
    torch.manual_seed(0)
    tensors = function.draw(torch.device("cpu"))
    places = [Replicate() if cut is None else Shard(cut) for cut in cuts]
    shards = [
        distribute_tensor(tensor, mesh, [place])
        for tensor, place in zip(tensors, places, strict=True)
    ]
    for given in (tensors, shards):
        for tensor in given[: function.graded]:
            tensor.requires_grad_()
    right, found = function.call(*tensors), function.call(*shards)
    assert all(isinstance(y.placements[0], Shard) for y in found)
    pairs = list(zip(found, right, strict=True))
    if function.graded:
        graded = (given[: function.graded] for given in (shards, tensors))
        totals = (sum(y.square().sum() for y in results) for results in (found, right))
        gradients = [torch.autograd.grad(*each) for each in zip(totals, graded, strict=True)]
        pairs += zip(*gradients, strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one.full_tensor(), other, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_two_ranks_share_the_work():
    together(_of_rank, 2)


def test_a_plain_tensor_beside_a_sharded_one_is_refused_in_words():
    if not INTERPRETED:
        pytest.skip("a rank of the CPU needs Triton's interpreter")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    try:
        mesh = DeviceMesh("cpu", [0])
        for function in FUNCTIONS.values():
            first, *others = function.draw(torch.device("cpu"))
            with pytest.raises(RuntimeError, match=r"mixed torch.Tensor and DTensor"):
                function.call(distribute_tensor(first, mesh, [Shard(0)]), *others)
    finally:
        dist.destroy_process_group()
