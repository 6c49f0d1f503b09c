"""What a layer around attention moves through HBM, kernel by kernel.

u is one tensor of (B,N,C); how it was measured, and what a kernel reads once, is as in
`rcm_attention.traffic`.
"""

from math import ceil
from typing import Any

from kernelbench.families.rcm_attention.traffic import launches, unit
from kernelbench.spec import Mode, Traffic

_L2 = 60 << 20  # bytes, of an H200
_BAND = 8 * 192  # columns of an output that cuBLAS makes before it takes the next ones

_QKV = (("x", 1, 0), ("qkv", 0, 3), ("qkv", 3, 0), ("A", 0, 1))
_LAYER = {  # as above; F: the projection, A: the attention
    "eager": (*_QKV, ("A", 1, 0), ("F", 0, 1), ("x", 1, 0), ("c_skip·x", 0, 1), ("F", 1, 0),
              ("c_out·F", 0, 1), ("c_skip·x", 1, 0), ("c_out·F", 1, 0), ("y", 0, 1)),
    "kernel": (*_QKV, ("A", 1, 0), ("F", 0, 1), ("x", 1, 0), ("F", 1, 0), ("y", 0, 1)),
    "epilogue": (*_QKV, ("A", 1, 0), ("x", 1, 0), ("y", 0, 1)),
    "no skip": (*_QKV, ("A", 1, 0), ("y", 0, 1)),
    # Backward. dF on its way to da and dw_proj; attention; dq, dk and dv stacked; dqkv on its way
    # to dh, dw_qkv and db_qkv.
    "back": (("A", 2, 0), ("qkv", 3, 0), ("dA", 1, 1), ("dq, dk, dv", 3, 3),
             ("dqkv, stacked", 6, 3), ("x", 1, 0), ("dqkv, db", 3, 0)),
    "back eager": (("grad_y", 4, 0), ("x", 1, 0), ("F", 1, 0), ("grad_y·x", 1, 1),
                   ("grad_y·F", 1, 1), ("dF", 3, 1), ("dx, of skip", 1, 1), ("dh", 1, 1),
                   ("dx", 0, 1)),
    "back kernel": (("grad_y", 4, 0), ("x", 1, 0), ("F", 1, 0), ("dF", 2, 1), ("dh", 1, 1),
                    ("dx", 0, 1)),
    "back ours": (("grad_y", 2, 0), ("x", 1, 0), ("dF", 1, 1), ("A", 1, 0), ("dA, scaled", 1, 1),
                  ("dx, of skip", 1, 1), ("dh", 1, 1), ("dx", 0, 1)),
    "back no skip": (("grad_y", 3, 0), ("dx", 0, 1)),
    "back, 16 bits": (("dA, again", 1, 0), ("dq, summed in fp32", 4, 4)),
}  # fmt: skip


def sizes(case: Any) -> tuple[int, int, int]:
    """Bytes of one tensor of (B,N,C), of the two matrices, of the two biases of a layer."""
    item, C = case.dtype.bytes, case.C
    return unit(case), 4 * C * C * item, 4 * C * item


def bands(case: Any) -> int:
    """How often the product that makes qkv of x reads x from HBM.

    In 16 bits cuBLAS takes tiles of 192 x 192 on an H200. Measured where the L2 cannot hold x: for
    3C = 3072 columns, 16 tiles, x is read twice; for 1024 once. That a band is 8 tiles, all rows of
    which are made before the next band, so that more columns read x more often, is an assumption.
    """
    if case.dtype.bytes != 2 or unit(case) <= _L2:
        return 1
    columns: int = 3 * case.C
    return ceil(columns / _BAND)


def layer_traffic(kind: str, back: str, case: Any) -> tuple[Traffic, ...]:
    """kind: of skip, `eager`, `kernel` (one of its own) or `epilogue` (of the projection).

    Forward, x is read once for each of its `bands`, k and v for each of our `launches`. Backward,
    attention in 16 bits is what `attention_traffic` says, of PyTorch and of ours (D = 64) alike; in
    fp32 one kernel without scratch, a lower bound. Kernels of their own stack dq, dk and dv and sum
    biases, compiled or not: compiled, that of db_proj is from grad_y, which sums of dy⊙x and dy⊙F,
    dF and dx read, too. Left out: coefficients, row sums, partial sums (16 MiB of a product split
    along its rows), and what a product of 3C to C channels reads again (at C = 1024, 17 % of dqkv:
    1.5 % of a backward).
    """
    u, w, b = sizes(case)
    t, lse = 4 * case.B if case.skips else 0, 4 * case.B * case.H * case.N
    ours = back == "back ours"
    kind, back = (kind, back) if case.skips else ("no skip", "back no skip")
    passes = 2 if case.mode is Mode.full else 1
    traffic, rows = [Traffic("w_qkv, w_proj", passes * w)], []
    if case.mode is not Mode.bwd:
        rows += [*_LAYER[kind], ("x, by later columns", bands(case) - 1, 0)]
        shape = (case.B, case.N, case.H, case.C // case.H)
        again = launches(shape, case.dtype.bytes, case.mode, False, False) - 1 if ours else 0
        rows.append(("k and v, by a second launch", 2 * again, 0))
        traffic.append(Traffic("b_qkv, b_proj", b))
    if case.mode is not Mode.fwd:
        rows += _LAYER["back"] + _LAYER[back]
        rows += _LAYER["back, 16 bits"] if case.dtype.bytes == 2 else ()
        traffic.append(Traffic("dw_qkv, dw_proj, db_qkv, db_proj", write=w + b))
        traffic.append(Traffic("lse", lse, lse if case.mode is Mode.full else 0))
    if case.skips:
        traffic.append(Traffic("t, dt", passes * t, 0 if case.mode is Mode.fwd else t))
    moved = (Traffic(name, read * u, write * u) for name, read, write in rows if read or write)
    return (*moved, *traffic)
