"""What zigzag attention moves through HBM, kernel by kernel: a kernel reads a tensor once, what it
reads again comes from the L2."""

from typing import Any

from kernelbench.spec import Mode, Traffic


def zigzag_traffic(together: bool, case: Any) -> tuple[Traffic, ...]:
    """together: both chunks in one kernel, which reads the keys that any row sees; else a kernel
    for each, which reads those that its rows see. In units of a chunk of one document: rank r of W
    reads 2W−r, else 2W+1.

    Backward, ours: δ = rowsum(do⊙o), dk with dv, dq; of a kernel for each chunk, each adds to dk
    and dv so far. Left out: where documents begin; copies of keys.
    """
    e, rows = case.dtype.bytes, sum(case.rows) * case.Hq
    of_queries, row = rows * case.D * e, 4 * rows
    of_key = case.Hk * case.D * e
    seen = case.seen_by_both if together else case.seen(0) + case.seen(1)
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
        statistics[1] += row if case.mode is Mode.full or together else 0
    if case.mode is not Mode.fwd:
        add("o", of_queries)
        add("grad_o", 3 * of_queries)
        add("q", 2 * of_queries)
        add("k v", 2 * keys)
        add("dq", 0, of_queries)
        add("dk dv", 0 if together else every, every if together else 2 * every)
        statistics[0] += 4 * row
        statistics[1] += row
    traffic = [Traffic(name, *both) for name, both in moved.items() if any(both)]
    return (*traffic, Traffic("lse, delta", *statistics)) if any(statistics) else (*traffic,)


def copied_traffic(case: Any) -> tuple[Traffic, ...]:
    """A kernel for each chunk, on copies of the keys that its rows see where these are several
    documents': read and written, their gradients as well."""
    rows = zigzag_traffic(False, case)
    if len(case.lengths) == 1:
        return rows
    copied = (case.seen(0) + case.seen(1)) * case.Hk * case.D * case.dtype.bytes
    names = ["k", "v"] + ([] if case.mode is Mode.fwd else ["dk", "dv"])
    return (*rows, *(Traffic(f"{name}, copied", copied, copied) for name in names))
