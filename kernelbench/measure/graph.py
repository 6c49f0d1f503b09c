"""CUDA graphs of calls. A failed capture leaves PyTorch usable."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch


def capture(calls: Callable[[], Any], stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
    """A graph of all that `calls` queues on `stream`. Raises PyTorch's error if capturing fails."""
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
    """End a failed capture, which PyTorch otherwise treats as underway from then on.

    It then frees no reserved memory for anybody (pytorch 180395, in releases up to 2.11), and
    refuses random numbers until a capture succeeds.
    """
    device = torch.cuda.current_device()
    with suppress(RuntimeError):  # the first call raises where the capture had already ended
        torch._C._cuda_endAllocateToPool(device, pool)
        torch._C._cuda_releasePool(device, pool)
    _capture(lambda: torch.zeros(1, device=stream.device), stream)
