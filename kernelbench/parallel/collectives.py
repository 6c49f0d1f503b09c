"""Collectives of one tensor of torch.distributed, by the names that they have since PyTorch 2.13,
which warns of those before."""

from typing import Any

import torch.distributed as dist

if dist.is_available():
    # Its functions' defaults are the group of all ranks that there is when it is imported. Were it
    # left to torch._dynamo (to an optimizer's first step, say), they would hold gloo's threads
    # beyond destroy_process_group, and these may abort a process that ends.
    import torch.distributed.nn  # noqa: F401


def all_gather_single(*given: Any, **more: Any) -> Any:
    """`torch.distributed.all_gather_single`, or `all_gather_into_tensor`."""
    return _named("all_gather_single", "all_gather_into_tensor")(*given, **more)


def reduce_scatter_single(*given: Any, **more: Any) -> Any:
    """`torch.distributed.reduce_scatter_single`, or `reduce_scatter_tensor`."""
    return _named("reduce_scatter_single", "reduce_scatter_tensor")(*given, **more)


def _named(name: str, before: str) -> Any:
    """Looked up when it is called: a torch without torch.distributed has neither."""
    return getattr(dist, name, None) or getattr(dist, before)
