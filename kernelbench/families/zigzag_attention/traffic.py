"""What zigzag attention moves through HBM, kernel by kernel: a kernel reads a tensor once, what it
reads again comes from the L2."""

from typing import Any

from kernelbench.spec import Mode, Traffic


def zigzag_traffic(together: bool, case: Any) -> tuple[Traffic, ...]:
    """together: both chunks in one kernel, which reads the keys that any row sees; else a kernel
    for each, which reads those that its rows see. In units of a chunk of one document: rank r of W
    reads 2W−r, else 2W+1.

    Backward, ours: δ = rowsum(do⊙o), dk with dv, dq; of a kernel for each chunk, each writes dk and
    dv of its own, which are then added. Left out: where documents begin; copies of keys.
    """
    e, rows = case.dtype.bytes, sum(case.rows) * case.Hq
    of_queries, row = rows * case.D * e, 4 * rows
    of_key = case.Hk * case.D * e
    seen = case.seen_by_any if together else case.seen(0) + case.seen(1)
    keys, every = seen * of_key, case.N * of_key
    moved = {name: [0, 0] for name in ("q", "k", "v", "o", "grad_o", "dq", "dk", "dv")}
    statistics = [0, 0]

    def add(names: str, read: int, write: int = 0) -> None:
        for name in names.split():
            moved[name][0] += read
            moved[name][1] += write

    if case.mode is not Mode.bwd:
        add("q", of_queries)
        add("k v", keys)
        add("o", 0, of_queries)
        statistics[1] += row
    if case.mode is not Mode.fwd:
        add("o", of_queries)
        add("grad_o", 3 * of_queries)
        add("q", 2 * of_queries)
        add("k v", 2 * keys)
        add("dq", 0, of_queries)
        add("dk dv", 0 if together else 2 * every, every if together else 3 * every)
        statistics[0] += 5 * row if together else 4 * row
        statistics[1] += 2 * row if together else row
    traffic = [Traffic(name, *both) for name, both in moved.items() if any(both)]
    return (*traffic, Traffic("lse, delta", *statistics)) if any(statistics) else (*traffic,)


def one_call_traffic(case: Any) -> tuple[Traffic, ...]:
    """A forward on the keys where they lie; queries are copied one after the other, keys that lie
    in zigzag order to that of documents."""
    q = sum(case.rows) * case.Hq * case.D * case.dtype.bytes
    return (*zigzag_traffic(False, case), Traffic("q, joined", q, q), *_reordered(case))


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
    rows = zigzag_traffic(False, case) + _reordered(case)
    if len(case.lengths) == 1:
        return rows
    copied = (case.seen(0) + case.seen(1)) * case.Hk * case.D * case.dtype.bytes
    names = ["k", "v"] + ([] if case.mode is Mode.fwd else ["dk", "dv"])
    return (*rows, *(Traffic(f"{name}, copied", copied, copied) for name in names))
