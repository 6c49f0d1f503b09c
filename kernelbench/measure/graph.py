"""CUDA graphs of calls. A capture that fails harms nobody."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch


def capture(calls: Callable[[], Any], stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
    """Of all that `calls` queues on `stream`. Raises what PyTorch raises where that cannot be."""
    graph = torch.cuda.CUDAGraph()
    with _pool() as pool, torch.cuda.graph(graph, pool=pool, stream=stream):
        calls()
    return graph


@contextmanager
def _pool() -> Iterator[Any]:
    """Memory for a capture, given back if it fails.

    Else PyTorch takes it to be underway ever after, and frees no memory, for whomever, that it has
    once reserved (pytorch 180395, in releases up to 2.11).
    """
    pool, device, captured = torch.cuda.graph_pool_handle(), torch.cuda.current_device(), False
    try:
        yield pool
        captured = True
    finally:
        if not captured:
            # The first raises where a release of PyTorch ends a failed capture by itself.
            with suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(device, pool)
                torch._C._cuda_releasePool(device, pool)
