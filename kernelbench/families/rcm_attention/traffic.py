"""What attention with a skip moves through HBM, kernel by kernel.

u is one tensor of (B,N,H·D). A kernel reads a tensor once; what it reads again comes from the L2,
but for what is named here; the next kernel reads it again. Measured on an H200, kernel by kernel,
with `kernelbench profile hbm --ncu`, at u = 256 MiB.
"""

from functools import cache
from typing import Any

from kernelbench.spec import Mode, Traffic

_LIBRARY = (("q", 1, 0), ("k", 1, 0), ("v", 1, 0), ("o", 1, 0))
# Tensor (o: the attention, do: its gradient), times read and written, each time B·N·C elements.
_ATTENTION = {
    "attention": (("q", 1, 0), ("k", 1, 0), ("v", 1, 0)),
    "no skip": (("y", 0, 1),),
    "epilogue": (("x", 1, 0), ("y", 0, 1)),
    "kernel": (("o", 1, 1), ("x", 1, 0), ("y", 0, 1)),
    "eager": (("o", 1, 1), ("x", 1, 0), ("c_skip·x", 1, 1), ("c_out·o", 1, 1),
              ("y", 0, 1)),
    "gradients": (("dq", 0, 1), ("dk", 0, 1), ("dv", 0, 1)),
    "library no skip": (*_LIBRARY, ("grad_y", 1, 0)),
    "library kernel": (*_LIBRARY, ("grad_y", 2, 0), ("o", 1, 0), ("x", 1, 0), ("dx", 0, 1),
                       ("c_out·grad_y", 1, 1)),
    "library eager": (*_LIBRARY, ("grad_y", 4, 0), ("o", 1, 0), ("x", 1, 0), ("dx", 0, 1),
                      ("c_out·grad_y", 1, 1), ("grad_y·x", 1, 1), ("grad_y·o", 1, 1)),
    "library, 16 bits": (("do", 1, 0), ("dq, summed in fp32", 4, 4)),
    "ours": (("q", 2, 0), ("k", 2, 0), ("v", 2, 0), ("grad_y", 3, 0), ("o", 1, 0)),
    "ours, one kernel": (("q", 1, 0), ("k", 1, 0), ("v", 1, 0), ("grad_y", 2, 0),
                         ("o", 1, 0), ("dq, summed in fp32", 4, 4)),
    "ours skip": (("x", 1, 0), ("dx", 0, 1)),
}  # fmt: skip


def unit(case: Any) -> int:
    """u of (B,N,H,D) or (B,N,C), in bytes."""
    C: int = case.C if hasattr(case, "C") else case.H * case.D
    return int(case.B * case.N * C * case.dtype.bytes)


@cache
def launches(
    shape: tuple[int, int, int, int], itemsize: int, mode: Mode, causal: bool, mixes: bool
) -> int:
    """How many kernels our forward is on an H200, each of which reads k and v: 2 where the table
    splits the rows of each head of D = 64 (B,N,H,D) between wide tiles and narrow ones.

    All other heads run between the two, so k and v are read from HBM again.
    """
    from kernelbench.kernels.attention.configs import configs

    axes: dict[str, Any] = {"itemsize": itemsize, "causal": causal, "mixes": mixes}
    tile = configs(*shape, arch="sm_90", mode=mode.value, **axes)[0].hopper
    return 1 if tile is None or tile.rest is None else 2


def attention_traffic(skip: str, ours: bool, case: Any) -> tuple[Traffic, ...]:
    """skip: `eager`, `kernel` (one of its own) or `epilogue` (of the attention).

    Forward one kernel, but for ours where it is two `launches`. Backward, PyTorch's (cuDNN, flash)
    and FlashAttention-4 in 16 bits are three kernels: δ = rowsum(do⊙o), which clears a dq in fp32;
    the products, which add to it; its conversion. In fp32 (memory-efficient) one without scratch is
    counted, a lower bound. A compiled skip is two kernels backward: sums over dy⊙x and dy⊙o, then
    dx and do. Ours is the skip with δ, then what runs on sm_90: in 16 bits with D of 64 or 128 one
    kernel that adds dq up in fp32 (cleared, added to, read), else dk with dv and then dq. Left out:
    coefficients, and the partial sums of dt.
    """
    mixes, skip = skip == "epilogue" and case.skips, skip if case.skips else "no skip"
    u, row, t = unit(case), 4 * case.B * case.H * case.N, 4 * case.B
    rows: list[tuple[str, int, int]] = []
    if case.mode is not Mode.bwd:
        rows += (*_ATTENTION["attention"], *_ATTENTION[skip])
        shape = (case.B, case.N, case.H, case.D)
        if ours and launches(shape, case.dtype.bytes, case.mode, case.causal, mixes) > 1:
            rows += [("k, by a second launch", 1, 0), ("v, by a second launch", 1, 0)]
    full, back = case.mode is Mode.full, case.mode is not Mode.fwd
    if full and skip == "epilogue":
        rows.append(("o, kept", 0, 1))
    narrow = case.dtype.bytes == 2
    converts = narrow and not ours
    one_kernel = ours and narrow and case.D in (64, 128)
    if back:
        own_rows = _ATTENTION["ours, one kernel" if one_kernel else "ours"]
        rows += own_rows if ours else _ATTENTION[f"library {skip}"]
        rows += _ATTENTION["library, 16 bits"] if converts else ()
        rows += _ATTENTION["gradients"] + (_ATTENTION["ours skip"] if ours and case.skips else ())
    labels = {"do": "c_out·grad_y"} if case.skips else {"do": "grad_y", "o": "y"}
    traffic = [Traffic(labels.get(n, n), read * u, write * u) for n, read, write in rows]
    if back:
        read = (
            2 if one_kernel or converts else 4 if ours else 1
        )  # both of them in each kernel of ours
        traffic.append(Traffic("lse, delta", read * row, (full + (ours or converts)) * row))
    if case.skips:
        traffic.append(Traffic("t, dt", (2 if full else 1) * t, t if back else 0))
    return tuple(traffic)
