"""Ranks of the CPU, over gloo, in Triton's interpreter; and what they attend to, in fp64."""

import math
import multiprocessing
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from interpreter import look_once
from torch import Tensor

from kernelbench.kernels.launch import INTERPRETED

H, G, D = 4, 2, 16
LEFT = "threads of gloo are left"
AT_THE_END = f"""
import atexit, glob, sys
def look():
    names = [open(path).read().strip() for path in glob.glob("/proc/self/task/*/comm")]
    if any("gloo" in name for name in names):
        print("{LEFT}:", *names, file=sys.stderr)
atexit.register(look)
"""
# Imported once, by a process that does nothing else and off which each rank is forked.
BEFORE = (
    "gloo",
    "torch._dynamo",
    "torch.distributed.tensor.experimental",
    "kernelbench.families",
    "kernelbench.nn",
    "kernelbench.parallel",
)


def together(work: Callable[..., None], ranks: int, *args: Any) -> None:
    """Call work(rank, ranks, *args) in a process of each rank."""
    if not INTERPRETED:
        pytest.skip("ranks of the CPU need Triton's interpreter")
    here = Path(__file__).parent
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        meeting = f"tcp://127.0.0.1:{found.getsockname()[1]}"
    with pytest.MonkeyPatch.context() as patch:
        path = [str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(path))
        multiprocessing.set_forkserver_preload([*BEFORE])
        torch.multiprocessing.start_processes(  # type: ignore[no-untyped-call]
            _of_rank, (work, ranks, meeting, *args), nprocs=ranks, start_method="forkserver"
        )


def _of_rank(rank: int, work: Callable[..., None], ranks: int, meeting: str, *args: Any) -> None:
    torch.set_num_threads(1)
    look_once()
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks)
    work(rank, ranks, *args)
    dist.destroy_process_group()


def watched(folder: Path) -> dict[str, str]:
    """An environment in which a Python process says, as it ends, whether threads of gloo are left.
    These may abort it."""
    folder = folder / "watched"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(AT_THE_END, encoding="utf-8")
    path = [str(folder), str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(path)}


def drawn(T: int, seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """q, k, v and do."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (T, H, D), (T, G, D), (T, G, D), (T, H, D)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def exact(inputs: Sequence[Tensor], lengths: Sequence[int], causal: bool) -> list[Tensor]:
    """o, dq, dk and dv in fp64, document by document."""
    q, k, v, do = (x.double() for x in inputs)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    parts = []
    for q_s, k_s, v_s in zip(*(x.split(list(lengths)) for x in leaves), strict=True):
        k_s, v_s = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k_s, v_s))
        score = torch.einsum("nhd,mhd->hnm", q_s, k_s) / D**0.5
        if causal:
            score = score.masked_fill(torch.ones_like(score[0]).triu(1).bool(), -math.inf)
        parts.append(torch.einsum("hnm,mhd->nhd", score.softmax(-1), v_s))
    o = torch.cat(parts)
    return [o.detach(), *torch.autograd.grad(o, leaves, do)]


def worst_token(found: Tensor, wanted: Tensor) -> float:
    """The largest error of a token, relative to the largest norm of one."""
    error = (found.double() - wanted).flatten(1).norm(dim=1).max()
    return float(error / wanted.flatten(1).norm(dim=1).max())
