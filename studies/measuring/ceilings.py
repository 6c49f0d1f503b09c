"""The limits that a run measures, against everything else that was tried to beat them.

python ceilings.py OUT.csv      on a GPU
"""

import csv
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from kernels import Call

from kernelbench.kernels import rms_norm, stream
from kernelbench.measure import environment
from kernelbench.measure.ceilings import FOOTPRINTS, measure
from kernelbench.measure.probes import Probe
from kernelbench.measure.timer import CudaClock

BLOCKS = [(b, w) for b in (1024, 2048, 4096, 8192, 16384) for w in (4, 8, 16)]


def copies(size: int) -> Iterator[tuple[str, Call]]:
    source = torch.randn(size // 4, device="cuda").to(torch.bfloat16)
    target = torch.empty_like(source)
    yield "torch neg", partial(torch.neg, source, out=target)
    yield "torch copy_", partial(target.copy_, source)
    yield "torch mul", partial(torch.mul, source, 2.0, out=target)
    for block, warps in BLOCKS:
        yield f"triton {block}/{warps}", stream.copy(source, target, block, warps).run
    if size >= 1 << 20:
        x, weight = source.view(-1, 4096), torch.ones(4096, device="cuda", dtype=source.dtype)
        yield "our rms_norm", partial(rms_norm.rms_norm, x, weight)


def reads(size: int) -> Iterator[tuple[str, Call]]:
    source, sink = torch.randn(size // 4, device="cuda"), torch.zeros(1, device="cuda")
    yield "torch sum", partial(torch.sum, source, dim=0, out=torch.empty((), device="cuda"))
    yield "torch amax", partial(torch.amax, source, 0)
    for block in (1024, 2048, 4096, 8192):
        for times in (1, 2, 4, 8):
            yield f"triton {block}x{times}", stream.read(source, sink, block, times).run


def writes(size: int) -> Iterator[tuple[str, Call]]:
    target = torch.empty(size // 4, device="cuda")
    yield "torch fill_", partial(target.fill_, 1.0)
    yield "torch zero_", target.zero_
    for block in (512, 1024, 2048, 4096, 8192):
        yield f"triton {block}", stream.write(target, block).run


def products(n: int, dtype: torch.dtype) -> Iterator[tuple[str, Call]]:
    a, b = (torch.randn(n, n, device="cuda").to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    for layout, left, right in (("nn", a, b), ("nt", a, b.t()), ("tn", a.t(), b)):
        yield layout, partial(torch.mm, left, right, out=out)


def main(path: Path) -> None:
    device = environment.device("cuda")
    clock = CudaClock(device)
    known = measure(clock, device)

    def ns(call: Call) -> float:
        probe = Probe("tried", call)
        clock.batch(probe, 8)
        return median(clock.batch(probe, 8).samples_ns + clock.batch(probe, 8).samples_ns) - (
            clock.overhead_ns
        )

    rows: list[list[Any]] = []
    for kind, tries in (("copy", copies), ("read", reads), ("write", writes)):
        for size, ceiling in known.bandwidth[kind]:
            assert size in FOOTPRINTS
            with torch.no_grad():
                best, name = min((ns(call), name) for name, call in tries(size))
            rows.append([kind, size, size / ceiling, size / best, name, ceiling / best])
    for dtype, name in ((torch.bfloat16, "bf16"), (torch.float16, "fp16")):
        for n in (2048, 4096, 6144, 8192, 12288, 16384):
            best, layout = min((ns(call), layout) for layout, call in products(n, dtype))
            rate = 2 * n**3 / best / 1e3
            rows.append([name, n, known.tflops[name], rate, layout, rate / known.tflops[name]])
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["limit", "bytes or n", "of the run", "best tried", "which", "ratio"])
        for row in rows:
            line = [f"{v:.4g}" if isinstance(v, float) else v for v in row]
            writer.writerow(line)
            print(*(f"{v!s:>14}" for v in line))
    large = [row for row in rows if row[0] in ("copy", "read", "write") and row[1] >= 1 << 24]
    print("largest ratio from 16 MiB on", max(row[-1] for row in large))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
