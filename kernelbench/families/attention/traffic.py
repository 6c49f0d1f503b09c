"""What attention moves through HBM, kernel by kernel: a kernel reads a tensor once, what it reads
again comes from the L2."""

from typing import Any

from kernelbench.spec import Mode, Traffic

_AT_ONCE = {"q": (1, 0), "k": (1, 0), "v": (1, 0), "grad_o": (1, 0), "o": (1, 0)}
_ONE_KERNEL = _AT_ONCE | {"grad_o": (2, 0)}
_TWO_KERNELS = {"q": (2, 0), "k": (2, 0), "v": (2, 0), "grad_o": (3, 0), "o": (1, 0)}


def attention_traffic(ours: bool, case: Any) -> tuple[Traffic, ...]:
    """Forward one kernel. Backward: δ = rowsum(do⊙o); then, as FlashAttention and ours on Hopper of
    as many keys as queries, one kernel that adds dq up in fp32 (cleared, added to, read); else ours
    is dk with dv, then dq. PyTorch's in fp32 (memory-efficient) is counted without scratch, a lower
    bound. Left out: where sequences begin, and lists of their tiles."""
    e = case.dtype.bytes
    of_queries, of_keys = case.B * case.N * case.Hq * case.D, case.B * case.keys * case.Hk * case.D
    unit = dict.fromkeys(("q", "o", "grad_o", "dq"), of_queries * e)
    unit |= dict.fromkeys(("k", "v", "dk", "dv"), of_keys * e)
    rows = {name: [0, 0] for name in unit}
    statistics = [0, 0]
    row = 4 * case.B * case.N * case.Hq

    def move(times: dict[str, tuple[int, int]]) -> None:
        for name, (read, write) in times.items():
            rows[name][0] += read * unit[name]
            rows[name][1] += write * unit[name]

    if case.mode is not Mode.bwd:
        move({"q": (1, 0), "k": (1, 0), "v": (1, 0), "o": (0, 1)})
        statistics[1] += row if case.mode is Mode.full else 0
    summed = case.mode is not Mode.fwd and (in_one_kernel(case) if ours else e == 2)
    if case.mode is not Mode.fwd:
        move(_ONE_KERNEL if summed else _TWO_KERNELS if ours else _AT_ONCE)
        move(dict.fromkeys(("dq", "dk", "dv"), (0, 1)))
        statistics[0] += (2 if summed else 4 if ours else 1) * row
        statistics[1] += row if summed or ours else 0
    traffic = [Traffic(name, read, write) for name, (read, write) in rows.items() if read or write]
    if summed:
        traffic.append(Traffic("dq, summed in fp32", 8 * of_queries, 8 * of_queries))
    if any(statistics):
        traffic.append(Traffic("lse, delta", *statistics))
    return tuple(traffic)


def one_by_one_traffic(case: Any) -> tuple[Traffic, ...]:
    """PyTorch's, documents one by one: their o, dq, dk and dv are joined by a copy each."""
    rows = attention_traffic(False, case)
    if not case.packed:
        return rows
    joined = [row for row in rows if row.tensor in ("o", "dq", "dk", "dv") and row.write]
    return (*rows, *(Traffic(f"{row.tensor}, joined", row.write, row.write) for row in joined))


def in_one_kernel(case: Any) -> bool:
    """Whether our gradients are those of `attention.hopper.fused` on an sm_90."""
    takes = case.packed or case.keys == case.N
    return takes and case.dtype.bytes == 2 and case.D in (64, 128)
