"""What calls of our kernels cost the host: repeated, and of a shape that was not seen before.

python host.py [LABEL]   needs a GPU; PYTHONPATH says of which tree. Lines: label,call,us,least_us

Two trees are compared by their least, over processes that take turns: whatever else runs on the
machine only adds to a time.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from kernelbench.kernels.projection import project_and_skip
from kernelbench.kernels.rcm_attention import rcm_attention
from kernelbench.kernels.rcm_int8 import rcm_attention_int8
from kernelbench.kernels.rms_norm import rms_norm
from kernelbench.kernels.rotary import apply_rotary

CALLS, ROUNDS = 25, 40  # so few calls that the GPU's queue never makes the host wait
KNOWN, NEW = 20, 100  # shapes before and among those that are new: the kernel is compiled
Call = Callable[..., Any]


def draw(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, device="cuda").to(dtype)


def tables(S: int) -> tuple[Tensor, Tensor]:
    return draw(S, 32, dtype=torch.float32), draw(S, 32, dtype=torch.float32)


def attention(N: int) -> tuple[Tensor, ...]:
    return *(draw(1, N, 8, 64) for _ in "qkv"), draw(1, N, 512), torch.rand(1, device="cuda")


def repeated() -> Iterator[tuple[str, Call]]:
    """Calls by name; a backward is of a graph that is kept."""
    x, residual, weight = draw(4096, 384), draw(4096, 384), draw(384)
    q_k, cos_sin = (draw(2, 256, 8, 64), draw(2, 256, 2, 64)), tables(256)
    given, matrix, bias = attention(256), draw(512, 512), draw(512)
    functions: dict[str, tuple[Call, Sequence[Tensor]]] = {
        "rms_norm": (rms_norm, (x, weight)),
        "rms_norm residual": (lambda x, r, w: rms_norm(x, w, residual=r), (x, residual, weight)),
        "apply_rotary": (lambda q, k: apply_rotary(q, k, *cos_sin), q_k),
        "rcm_attention": (lambda *first: rcm_attention(*first, given[4]), given[:4]),
        "project_and_skip": (
            lambda a, x: project_and_skip(a, matrix, bias, x, given[4]),
            (given[3], given[3].clone()),
        ),
    }
    for name, (function, tensors) in functions.items():
        yield name, lambda function=function, tensors=tensors: function(*tensors)
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        outs = function(*leaves)
        outs = outs if isinstance(outs, tuple) else (outs,)
        upstream = [torch.ones_like(out) for out in outs]
        yield (
            f"{name} bwd",
            lambda outs=outs, leaves=leaves, upstream=upstream: torch.autograd.grad(
                outs, leaves, upstream, retain_graph=True
            ),
        )
    yield "apply_rotary inplace", lambda: apply_rotary(*q_k, *cos_sin, inplace=True)
    yield "rcm_attention_int8", lambda: rcm_attention_int8(*given)


def new_shapes() -> Iterator[tuple[str, Call, Call]]:
    """(name, what makes the arguments for a size, call)."""
    weight = draw(384)
    yield "rms_norm", lambda n: (draw(4096 + 16 * n, 384), weight), rms_norm
    yield (
        "apply_rotary",
        lambda n: (draw(2, 256 + n, 8, 64), draw(2, 256 + n, 2, 64), *tables(256 + n)),
        apply_rotary,
    )
    yield "rcm_attention", lambda n: attention(256 + 16 * n), rcm_attention


def us_of(call: Call, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    us = (time.perf_counter() - start) / calls * 1e6
    torch.cuda.synchronize()
    return us


def main(label: str) -> None:
    for name, call in repeated():
        us_of(call, CALLS)
        us = [us_of(call, CALLS) for _ in range(ROUNDS)]
        print(f"{label},{name},{statistics.median(us):.2f},{min(us):.2f}")
    for name, make, call in new_shapes():
        us = []
        for n in range(KNOWN + NEW):
            arguments = make(n)
            torch.cuda.synchronize()
            us.append(us_of(lambda call=call, arguments=arguments: call(*arguments), 1))
        us = us[KNOWN:]
        print(f"{label},{name} of a new shape,{statistics.median(us):.2f},{min(us):.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:2] or ("now",))
