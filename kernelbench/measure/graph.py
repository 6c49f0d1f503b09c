"""CUDA graphs of calls. A capture that fails harms nobody."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch


def capture(calls: Callable[[], Any], stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
    """Of all that `calls` queues on `stream`. Raises what PyTorch raises where that cannot be."""
    pool, captured = torch.cuda.graph_pool_handle(), False
    try:
        graph = _capture(calls, stream, pool)
        captured = True
    finally:
        if not captured:
            _recover(pool, stream)
    return graph


def _capture(
    calls: Callable[[], Any], stream: torch.cuda.Stream, pool: Any = None
) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=stream):
        calls()
    return graph


def _recover(pool: Any, stream: torch.cuda.Stream) -> None:
    """PyTorch takes a capture that failed to be underway ever after: for whomever, it frees no
    memory that it has once reserved (pytorch 180395, in releases up to 2.11), and refuses random
    numbers until a capture succeeds."""
    device = torch.cuda.current_device()
    with suppress(RuntimeError):  # the first raises where the capture was ended
        torch._C._cuda_endAllocateToPool(device, pool)
        torch._C._cuda_releasePool(device, pool)
    _capture(lambda: torch.zeros(1, device=stream.device), stream)
