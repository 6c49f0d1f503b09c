"""What RMSNorm moves through HBM, tensor by tensor, by whoever computes it."""

import math
from typing import Any

from kernelbench.spec import Mode, Traffic


def _size(case: Any) -> int:
    size: int = case.M * case.N * case.dtype.bytes
    return size


def fused_traffic(
    case: Any, *, bwd_passes: int = 1, add_apart: bool = False
) -> tuple[Traffic, ...]:
    """One pass over each tensor forward; `bwd_passes` over what was normalised (x, or the sum r)
    and dy backward.

    add_apart: kernels of their own add the residual forward, the gradient of r backward.
    Left out: partial sums of dw, N numbers in fp32 for each program, however many rows there are.
    """
    size, w = _size(case), case.N * case.dtype.bytes
    rstd = 4 * case.M
    rows: list[Traffic] = []
    if case.mode is Mode.jvp:
        return _traffic_of_tangents(case)
    if case.mode is not Mode.bwd:
        rows += [Traffic("x", read=size), Traffic("weight", read=w), Traffic("y", write=size)]
        if case.residual:
            again = size if add_apart else 0
            rows += [Traffic("residual", read=size), Traffic("r", read=again, write=size)]
        if case.mode is Mode.full:
            rows.append(Traffic("rstd", write=rstd))
    if case.mode.graded:
        rows += [
            Traffic("r" if case.residual else "x", read=bwd_passes * size),
            Traffic("grad_y", read=bwd_passes * size),
            Traffic("rstd", read=bwd_passes * rstd),
            Traffic("weight", read=w),
            Traffic("dx", write=size),
            Traffic("dweight", write=w),
        ]
        if case.residual:
            rows.append(Traffic("grad_r", read=size))
        if case.residual and add_apart:
            rows.append(Traffic("dr, before grad_r is added", read=size, write=size))
    return tuple(rows)


def _traffic_of_tangents(case: Any, passes: int = 1) -> tuple[Traffic, ...]:
    """Of mode jvp. passes: over what was normalised."""
    size, w = _size(case), case.N * case.dtype.bytes
    rows = [
        Traffic("x", read=size if case.residual else passes * size),
        Traffic("weight", read=passes * w),
        Traffic("y", write=size),
        Traffic("tangent_x", read=size),
        Traffic("tangent_weight", read=w),
        Traffic("tangent_y", write=size),
    ]
    if case.residual:
        again = (passes - 1) * size
        rows += [
            Traffic("residual", read=size),
            Traffic("r", read=again, write=size),
            Traffic("tangent_residual", read=size),
            Traffic("tangent_r", read=again, write=size),
        ]
    return tuple(rows)


def ours_traffic(case: Any) -> tuple[Traffic, ...]:
    """One kernel forward; of mode jvp another for the tangent of y, which reads h and rstd again,
    and between them PyTorch's sum of the tangents where there is a residual."""
    if case.mode is not Mode.jvp:
        return fused_traffic(case)
    rstd = 4 * case.M
    return (*_traffic_of_tangents(case, passes=2), Traffic("rstd", rstd, rstd))


def _partial_rows(M: int, N: int) -> int:
    """Rows of partial sums of dw that one kernel of Inductor's leaves, which reads h and dy once;
    0 where it makes two kernels. One (torch's MixOrderReduction) is for at least 4096 rows, twice
    as many as columns, 5 Mi elements, and at most 16384 columns. A partial sum is of 16 to 128
    rows, a power of two: about 8 of them for each of an H200's 132 multiprocessors.
    """
    if max(4096, 2 * N, math.ceil((5 << 20) / N)) > M or N > 16384:
        return 0
    rows = 1 << (M // (132 * 8)).bit_length() - 1
    return math.ceil(M / min(max(rows, 16), 128))


def compiled_traffic(case: Any) -> tuple[Traffic, ...]:
    """Backward one kernel, then one that sums what it left of dw; or dw in a kernel of its own,
    which reads h and dy again: see `_partial_rows`. Measured on an H200 at (16384, 8192)."""
    partial = 4 * case.N * _partial_rows(case.M, case.N)
    if not case.mode.graded or not partial:
        return fused_traffic(case, bwd_passes=2)
    return (*fused_traffic(case), Traffic("dweight, partial sums", partial, partial))


_WIDEST_IN_L2 = 8192  # bytes of a row; measured: 16384 do not stay there


def f_rms_norm_passes(N: int, itemsize: int) -> int:
    """How often F.rms_norm's backward reads h and dy from HBM: for dx, and for dw.

    The kernel of dx reads each row twice. On an H200 16 blocks a multiprocessor hold a row each of
    h, dy and dx: 99 MiB for 8192 columns of 2 bytes, more than the L2 of 60 MiB, so that dx takes
    two passes, as measured; half as wide rows are taken to stay in the L2.
    """
    return 2 if N * itemsize <= _WIDEST_IN_L2 else 3


def f_rms_norm_traffic(case: Any) -> tuple[Traffic, ...]:
    """F.rms_norm knows no residual: both adds are kernels of their own, and so is dw.

    Forward, one pass over x is a lower bound: it, too, reads a row twice (on an H200 x came from
    HBM once at N = 4096, 1.73 times at 8192). In mode jvp, too, it is a lower bound: how many
    kernels PyTorch's tangent takes was not measured.
    """
    passes = f_rms_norm_passes(case.N, case.dtype.bytes)
    return fused_traffic(case, bwd_passes=passes, add_apart=True)
