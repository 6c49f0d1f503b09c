"""CUDA graphs of calls, and their nodes. A failed capture leaves PyTorch usable."""

import ctypes
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import torch


class Replays(NamedTuple):
    """Of a call in a replayed CUDA graph: times in ns, and how many nodes of the graph it is."""

    ns: tuple[int, ...]
    nodes: float | None


def capture(calls: Callable[[], Any], stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
    """A graph of all that `calls` queues on `stream`, instantiated when it is replayed first.

    Raises PyTorch's error if capturing fails.
    """
    pool, captured = torch.cuda.graph_pool_handle(), False
    try:
        graph = _capture(calls, stream, pool, keep=True)
        captured = True
    finally:
        if not captured:
            _recover(pool, stream)
    return graph


def count_nodes(graph: torch.cuda.CUDAGraph, driver: Any = None) -> int | None:
    """The number of nodes in a graph of `capture` (cuGraphGetNodes, cuda.h): kernels, copies and
    fills, and others if it has such; None where the driver does not tell, and on ROCm.

    driver: libcuda, or a stand-in for it.
    """
    if torch.version.hip:
        return None
    count = ctypes.c_size_t()
    captured = ctypes.c_void_p(graph.raw_cuda_graph())
    try:
        driver = driver or ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    error = driver.cuGraphGetNodes(captured, None, ctypes.byref(count))
    return None if error else count.value


def _capture(
    calls: Callable[[], Any], stream: torch.cuda.Stream, pool: Any = None, keep: bool = False
) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph(keep_graph=keep)
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
