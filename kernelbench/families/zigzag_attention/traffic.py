"""What zigzag attention moves through HBM, kernel by kernel: a kernel reads a tensor once, what it
reads again comes from the L2."""

from typing import Any

from kernelbench.spec import Mode, Traffic


def zigzag_traffic(together: bool, case: Any, theirs: bool = False) -> tuple[Traffic, ...]:
    """together: both chunks in one kernel, which reads the keys that any row sees; else a kernel
    for each, which reads those that its rows see. In units of a chunk of one document: rank r of W
    reads 2W−r, else 2W+1.

    Backward, ours: δ = rowsum(do⊙o), dk with dv, dq. theirs: as FlashAttention, one kernel after δ
    that adds dq up in fp32; PyTorch's in fp32 without scratch, a lower bound. A kernel for each
    chunk writes dk and dv of its own, which are then added. Left out: where documents begin.
    """
    e, row = case.dtype.bytes, 4 * sum(case.rows) * case.Hq
    seen = case.seen_by_any if together else case.seen(0) + case.seen(1)
    keys, every = (n * case.Hk * case.D * e for n in (seen, case.N))
    moved: dict[str, list[int]] = {}
    statistics = [0, 0]

    def add(names: str, read: int, write: int = 0) -> None:
        """By how often, of q and what is like it; else in bytes."""
        for name in names.split():
            of = dict(zip((f"{name}0", f"{name}1"), case.rows, strict=True))
            units = {n: T * case.Hq * case.D * e for n, T in of.items()}
            if name[-1] in "kv":
                units = {name: 1}
            for each, unit in units.items():
                both = moved.setdefault(each, [0, 0])
                both[0] += read * unit
                both[1] += write * unit

    if case.mode is not Mode.bwd:
        add("q", 1)
        add("k v", keys)
        add("o", 0, 1)
        statistics[1] += row if not theirs or case.mode is Mode.full else 0
    if case.mode is not Mode.fwd:
        summed = theirs and e == 2
        once = 1 if theirs else 2
        add("o", 1)
        add("grad_o", 2 if summed else once if theirs else 3)
        add("q", once)
        # attention's own kernel for dk and dv reads all keys, seen or not
        add("k v", once * keys if together or theirs else keys + 2 * every)
        add("dq", 0, 1)
        add("dk dv", 0 if together else 2 * every, every if together else 3 * every)
        # of ours, 6: lse is converted into another tensor, both counted as read; δ
        statistics[0] += (2 if summed else 1 if theirs else 6 if together else 4) * row
        statistics[1] += (1 if summed else 0 if theirs else 2 if together else 1) * row
        if summed:
            moved["dq, summed in fp32"] = [8 * sum(case.rows) * case.Hq * case.D] * 2
    traffic = [Traffic(name, *both) for name, both in moved.items() if any(both)]
    return (*traffic, Traffic("lse, delta", *statistics)) if any(statistics) else (*traffic,)


def fused_traffic(case: Any) -> tuple[Traffic, ...]:
    """Ours, both chunks in one kernel. That of Hopper reads rows that follow each other: before a
    forward, keys are copied from zigzag order into that of documents; counted of every case that it
    takes on an sm_90, also where too few rows leave it to `tl`."""
    rows = zigzag_traffic(True, case)
    if case.mode is Mode.bwd or case.dtype.bytes != 2 or case.D not in (64, 128):
        return rows
    return rows + tuple(row for row in _reordered(case) if row.tensor[0] in "kv")


def one_call_traffic(case: Any) -> tuple[Traffic, ...]:
    """A forward on the keys where they lie; queries are copied one after the other, keys that lie
    in zigzag order to that of documents."""
    q = sum(case.rows) * case.Hq * case.D * case.dtype.bytes
    return (*zigzag_traffic(False, case, True), Traffic("q, joined", q, q), *_reordered(case))


def _reordered(case: Any) -> tuple[Traffic, ...]:
    if case.order == "sequence":
        return ()
    size = case.N * case.Hk * case.D * case.dtype.bytes
    names = ("k", "v") if case.mode is Mode.fwd else ("k", "v", "dk", "dv")
    return tuple(Traffic(f"{name}, in order", size, size) for name in names)


def copied_traffic(case: Any) -> tuple[Traffic, ...]:
    """A kernel for each chunk, on copies of the keys that its rows see where these are several
    documents': read and written. Their gradients are as large as k and v, zeros for what is not
    seen, and added."""
    rows = zigzag_traffic(False, case, True) + _reordered(case)
    if len(case.lengths) == 1:
        return rows
    copied = (case.seen(0) + case.seen(1)) * case.Hk * case.D * case.dtype.bytes
    names = ["k", "v"] + ([] if case.mode is Mode.fwd else ["dk", "dv"])
    return (*rows, *(Traffic(f"{name}, copied", copied, copied) for name in names))
